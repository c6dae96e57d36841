"""`sightline data preview` as a user calls it."""

import json
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.config import to_yaml
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, png, record, scene
from tests.reporting.helpers import EVIL, read

CAPTIONS = [EVIL, "كلب بني يجري", "一只狗", "emoji 👩\u200d👧 and \u202eoverride"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs `sightline data preview` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["data", "preview", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def data(path: Path) -> Path:
    rows = [record("evil <b>", "a.png", captions=CAPTIONS), *(record(f"r{n}", "b.png", "val") for n in range(5))]
    return folder(path, rows, {"a.png": png(scene(0)), "b.png": png(scene(1))})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(run_config()), "utf-8")
    return path


def test_json_counts_what_the_page_shows(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.html"
    code, told, _ = call(capsys, data(tmp_path / "data"), "--config", config, "--out", out, "--json")
    assert code == 0
    result = json.loads(told)
    assert result.keys() == {"out", "split", "samples", "tokens", "supervised", "left_out"}
    assert (result["out"], result["split"], result["samples"], result["left_out"]) == (str(out), "train", 1, 0)
    assert 0 < result["supervised"] < result["tokens"]


def test_any_script_shows_and_none_runs(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = call(capsys, data(tmp_path / "data"), "--config", config, "--out", tmp_path / "p.html")
    assert code == 0
    assert told.startswith(f"{tmp_path / 'p.html'}: 1 samples, ")
    page = (tmp_path / "p.html").read_text("utf-8")
    reader = read(page.removeprefix("<!doctype html>"))
    assert "script" not in [name for name, _ in reader.elements]
    assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
    for caption in CAPTIONS[:3]:
        assert caption in reader.text
    assert "\u202e" not in page
    assert "evil <b>" in reader.text
    assert "\u00d7 4" in reader.text  # the block of visual tokens
    kinds = [attributes.get("class") or "" for name, attributes in reader.elements if name == "span"]
    assert any(kind.startswith("token supervised") for kind in kinds)
    assert any(kind.startswith("token visual") for kind in kinds)
    assert any("id " in (attributes.get("title") or "") for name, attributes in reader.elements if name == "span")


def test_split_count_and_seed_choose(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data")
    told = []
    for seed in (0, 0, 3):
        options = (
            "--split",
            "val",
            "--count",
            2,
            "--seed",
            seed,
            "--out",
            tmp_path / "p.html",
            "--json",
            "data.share_prefix=false",
        )
        code, out, _ = call(capsys, path, "--config", config, *options)
        assert code == 0
        assert json.loads(out)["samples"] == 2
        told.append((tmp_path / "p.html").read_text("utf-8"))
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["DATA", "--out", "OUT"], "needs to know the model"),
        (["DATA", "DATA", "--config", "CONFIG", "--out", "OUT"], "one dataset folder, got 2"),
        (["data.prompt=x", "--config", "CONFIG", "--out", "OUT"], "one dataset folder, got 0"),
        (["DATA", "--config", "CONFIG"], "--out"),
        (["DATA", "--config", "CONFIG", "--out", "NONE/p.html"], "is no folder to write p.html in"),
        (["DATA", "--config", "CONFIG", "--out", "OUT", "--split", "nothing"], "no split 'nothing'; it has 'train', 'val'"),
        (["DATA", "--config", "CONFIG", "--out", "OUT", "--stage", "nothing"], "no stage 'nothing'"),
        (["DATA", "--config", "CONFIG", "--out", "OUT", "--id", "nobody"], "has no record 'nobody'"),
        (["DATA", "--config", "CONFIG", "--out", "OUT", "--count", "0"], "--count"),
        (["NONE", "--config", "CONFIG", "--out", "OUT"], "does not exist"),
    ],
)
def test_a_call_that_cannot_work_is_one_line_and_writes_nothing(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    names = {"DATA": data(tmp_path / "data"), "OUT": tmp_path / "p.html", "CONFIG": config, "NONE": tmp_path / "none"}
    filled = []
    for argument in arguments:
        for name, path in names.items():
            argument = argument.replace(name, str(path))
        filled.append(argument)
    code, out, err = call(capsys, *filled)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "p.html").exists()

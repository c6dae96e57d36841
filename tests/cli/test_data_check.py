"""`sightline data check` as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.config import to_yaml
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, jpeg, png, question, record, scene, stored
from tests.data.pictures import lines


def call(capsys: pytest.CaptureFixture[str], *arguments: object, workers: int = 0) -> tuple[int, str, str]:
    """Runs `sightline data check` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", *map(str, arguments), "--workers", str(workers)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def data(path: Path, good: int = 4, **options: Any) -> Path:
    rows = [record(f"r{n}", f"{n}.png", "val" if n == good - 1 else "train") for n in range(good)]
    return folder(path, rows, {f"{n}.png": png(scene(n)) for n in range(good)}, **options)


def written(file: Path, **section: Any) -> Path:
    file.write_text(to_yaml(run_config(**section)), "utf-8")
    return file


def test_json_is_one_object_that_accounts_for_every_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data", 5)
    stored(path, 1).write_bytes(b"broken")
    code, out, err = call(capsys, path, "--json", workers=1)
    told = json.loads(out)
    assert told["input"] == 5 == told["ok"] + sum(told["skipped"].values())
    assert told["skipped"] == {"image_format": 1}
    assert told["splits"] == {"train": 4, "val": 1}
    assert [(fault["id"], fault["reason"]) for fault in told["bad"]] == [("r1", "image_format")]
    assert code == 3
    assert "error[data-budget]: 1 of 5 records cannot be used" in err
    assert call(capsys, path, "--json", "--max-skipped", "0.2")[0] == 0


def test_every_input_of_prepare_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record("a", "a.png"), record("b", "missing.png"), record("c", "a.png")]
    told = asked(capsys, folder(tmp_path / "data", rows, {"a.png": png(scene(0))}))
    assert (told["input"], told["ok"], told["skipped"]) == (2, 2, {})
    assert told["folders"][0]["prepared"] == {"input": 3, "ok": 2, "skipped": {"image_missing": 1}}


def test_people_get_tables_and_warnings_in_plain_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record("[red]a", "a.png"), record("b", "b.jpg", "val"), question("q", "c.png", "what?", ["[bold]yes"], "val")]
    path = folder(tmp_path / "data", rows, {"a.png": png(scene(0)), "b.jpg": jpeg(scene(0)), "c.png": png(scene(1))})
    code, out, _ = call(capsys, path)
    assert code == 0
    assert out.startswith("3 of 3 records can be used, 0 cannot.\nsplits: train 1, val 2\n")
    assert "[bold]yes" in out  # not taken for rich's markup
    assert "! 50 % of the images of val look like one of train (1, other files)." in out
    stored(path, 0).write_bytes(b"broken")
    code, out, err = call(capsys, path)
    assert code == 3
    assert "  [red]a: image_format: not one of JPEG" in out
    assert "Traceback" not in err


def test_a_test_set_is_compared_with_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = data(tmp_path / "mine")
    theirs = folder(
        tmp_path / "bench",
        [record("x", "x.png", "test"), record("y", "y.png", "test")],
        {"x.png": png(scene(1)), "y.png": png(scene(9))},
    )
    told = asked(capsys, mine, "--against", theirs)
    leak = next(item for item in told["duplicates"]["images"]["between"] if item["b"] == "bench:test" and item["a"] == "train")
    assert (leak["exact"], leak["share_b"]) == (1, 0.5)
    assert "50 % of the images of bench:test also stand in train (1, the same file)." in told["warnings"]


def test_hashes_are_compared_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data")
    stored(path, 2).write_bytes(png(scene(77)))
    assert asked(capsys, path)["hashes"] == "not checked"
    code, out, _ = call(capsys, path, "--check-hash", "--json")
    assert (code, json.loads(out)["skipped"]) == (3, {"hash_mismatch": 1})
    records = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(records.replace(b"caption of r0", b"CAPTION of r0"))
    code, out, err = call(capsys, path, "--check-hash", "--json", "--max-skipped", 1)
    assert code == 2
    assert json.loads(out)["damaged_files"] == ["records.jsonl differs from what was written"]
    assert "error[data]: the data is damaged: records.jsonl" in err


def test_limits_make_odd_images_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(
        tmp_path / "data",
        [record("s", "s.png"), record("b", "b.png")],
        {"s.png": png(scene(0).resize((10, 12))), "b.png": png(scene(1))},
    )
    assert asked(capsys, path)["odd"] == {"image_tiny": 1}
    code, out, _ = call(capsys, path, "--min-side", 11, "--json")
    assert (code, json.loads(out)["skipped"]) == (3, {"image_too_small": 1})


def test_page_and_list_are_written_beside_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data", 40)
    for index in range(30):
        stored(path, index).write_bytes(b"broken")
    page, listing = tmp_path / "page.html", tmp_path / "faults.jsonl"
    code, out, _ = call(capsys, path, "--html", page, "--list", listing, "--max-skipped", 1)
    assert code == 0
    assert str(page) in out
    assert page.read_text("utf-8").startswith("<!doctype html>")
    told = lines(listing)
    assert [fault["id"] for fault in told] == [f"r{index}" for index in range(30)]
    assert told[0].keys() == {"path", "id", "split", "folder", "record", "image", "reason", "detail"}


def test_a_configuration_tells_rows_packing_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record(f"r{n}", f"{n}.png", captions=[f"caption {k} of {n}" for k in range(5)]) for n in range(8)]
    path = folder(tmp_path / "data", rows, {f"{n}.png": png(scene(n)) for n in range(8)})
    config = written(tmp_path / "run.yaml")
    told = asked(capsys, path, "--config", config)["training"]
    assert told["model"]["tokens_per_crop"] == 4
    assert told["rows"]["train"]["conversations"] == 40
    assert told["rows"]["train"]["saved_by_sharing"] > 0.1
    (stage,) = told["stages"]
    assert stage["epoch"]["conversations"] == 40
    shorter = asked(capsys, path, "--config", config, "data.captions=first")["training"]
    assert shorter["rows"]["train"]["conversations"] == 8
    listing = tmp_path / "left.jsonl"
    code, _, err = call(capsys, path, "--config", config, "data.max_tokens=20", "data.row_tokens=20", "--list", listing)
    assert code == 3
    assert "error[data-budget]: stage align: nothing of split 'train' can be trained on (too_long 40)" in err
    assert len(lines(listing)) == 40
    assert lines(listing)[0].items() >= {"place": "train", "id": "r0", "conversation": 0, "reason": "too_long"}.items()


def test_a_configuration_alone_names_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data")
    told = asked(capsys, "--config", written(tmp_path / "run.yaml", path=str(path)))
    assert told["input"] == 4
    assert told["training"]["stages"][0]["sources"] == [{"path": str(path), "split": "train"}]


def test_a_recipe_can_be_looked_at_before_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path / "data")
    told = asked(capsys, path, "--recipe", "scenes_tiny", "train.steps=10", "model.language.tokenizer.vocabulary=300")
    assert told["training"]["model"]["image_size"] == [64, 64]
    assert told["training"]["stages"][0]["steps"] == 10


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "Give a dataset folder. Make one: sightline data prepare"),
        (["NONE"], 2, "does not exist"),
        (["IN", "a=b"], 2, "'a=b' is a setting, but there is no --config"),
        (["IN", "--recipe", "nothing"], 2, "no recipe 'nothing'"),
        (["IN", "--recipe", "scenes_tiny", "train.stepz=1"], 2, "unknown key; did you mean 'steps'?"),
        (["IN", "--recipe", "scenes_tiny", "--run", "IN"], 2, "not both"),
        (["IN", "--run", "IN"], 2, ""),
        (["IN", "--html", "NONE/page.html"], 2, "is no folder to write page.html in"),
        (["IN", "--near", "17"], 2, "--near"),
        (["IN", "--against", "NONE"], 2, "does not exist"),
    ],
)
def test_a_call_that_cannot_work_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    data(tmp_path / "in", 1)
    filled = [argument.replace("IN", str(tmp_path / "in")).replace("NONE", str(tmp_path / "none")) for argument in arguments]
    got, out, err = call(capsys, *filled)
    assert (got, out) == (code, "")
    assert says in err
    assert err.startswith("error[")
    assert "Traceback" not in err


def test_a_folder_whose_name_holds_an_equals_sign_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, data(tmp_path / "split=val"))["input"] == 4


def test_without_a_configuration_torch_is_not_loaded(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    words = ["data", "check", str(path), "--json", "--workers", "0", "--html", str(tmp_path / "page.html")]
    code = f"import sys; from sightline.cli import main\ntry: main({words!r})\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()

"""`sightline data prepare` as a user calls it: JSON on stdout and nothing else, one line for an error, the promised exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sightline.cli import main
from tests.data.pictures import lines, picture, put, tree


def source(folder: Path, good: int = 5, bad: int = 0) -> Path:
    rows = []
    for index in range(good + bad):
        put(folder / f"{index}.png", picture(index) if index < good else b"broken")
        rows.append({"id": f"r{index}", "images": [f"{index}.png"], "captions": [f"caption {index}"]})
    put(folder / "records.jsonl", rows)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs `sightline data prepare` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["data", "prepare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_json_is_one_object_that_accounts_for_every_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [source(tmp_path / "in", 5, 2), "--format", "records", "--out", tmp_path / "out", "--json", "--workers", 1]
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    result = json.loads(out)
    assert result["input"] == 7 == result["ok"] + sum(result["skipped"].values())
    assert result["skipped"] == {"image_format": 2}
    assert result["splits"] == {"train": 5}
    assert result["images"] == 5
    assert result["out"] == str(tmp_path / "out")
    assert {"ignored", "notes", "fingerprint"} < result.keys()


def test_people_get_a_table_with_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, source(tmp_path / "in", 5, 2), "--format", "records", "--out", tmp_path / "out", "--workers", 0)
    assert code == 0
    assert "5 of 7 records" in out
    assert "image_format 2" in out
    assert "skipped.jsonl" in out


def test_scenes_need_no_source_and_seed_and_level_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name, seed, level in [("a", 7, 1), ("b", 7, 1), ("c", 8, 1), ("d", 7, 2)]:
        arguments = ["-", "--format", "scenes", "--count", 20, "--seed", seed, "--level", level, "--out", tmp_path / name]
        code, out, _ = call(capsys, *arguments, "--json", "--workers", 0)
        assert code == 0
        assert json.loads(out)["input"] == 20
        folders.append(tree(tmp_path / name))
    assert folders[0] == folders[1]
    assert folders[0] != folders[2]
    assert folders[0] != folders[3]


def test_split_map_sample_and_licence_reach_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{index}.png", "captions": ["x"], "coco_id": "same"} for index in range(60)]
    for index in range(60):
        put(tmp_path / f"in/{index}.png", picture(index))
    put(tmp_path / "in/captions.jsonl", rows)
    code, out, _ = call(
        capsys,
        *(tmp_path / "in", "--format", "coco", "--out", tmp_path / "out", "--map", "id=", "--split", "val=0.3", "--by", "image"),
        *("--sample", 50, "--seed", 5, "--licence", "mine", "--json", "--workers", 0),
    )
    assert code == 0
    result = json.loads(out)
    assert result["ok"] == 50
    assert set(result["splits"]) == {"train", "val"}
    assert lines(tmp_path / "out/records.jsonl")[0]["id"].startswith("row-")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["licence"] == "mine"


def test_too_many_skips_exit_with_3_and_a_larger_budget_lets_them_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source(tmp_path / "in", 2, 8)
    rows = lines(tmp_path / "in/records.jsonl")
    put(tmp_path / "in/records.jsonl", [*rows, *({"id": f"t{index}", "captions": ["x"]} for index in range(250))])
    arguments = [tmp_path / "in", "--format", "records", "--out", tmp_path / "out", "--workers", 0]
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (3, "")
    assert "error[data-budget]: 8 of 260 records" in err
    assert "Traceback" not in err
    assert call(capsys, *arguments, "--max-skipped", 0.05)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["IN", "--format", "records"], 2, "--out"),
        (["IN", "--out", "OUT"], 2, "--format"),
        (["IN", "--format", "nothing", "--out", "OUT"], 2, "There is no format 'nothing'. Formats are cauldron, chartqa"),
        (["IN", "--format", "coc", "--out", "OUT"], 2, "Did you mean 'coco'?"),
        (["IN", "--format", "records", "--out", "OUT", "--split", "val"], 2, "NAME=SHARE"),
        (["IN", "--format", "records", "--out", "OUT", "--split", "val=2"], 2, "between 0 and 1"),
        (["IN", "--format", "records", "--out", "OUT", "--map", "id"], 2, "FIELD=KEY"),
        (["IN", "--format", "records", "--out", "OUT", "--by", "colour"], 2, "--by"),
        (["IN", "--format", "records", "--out", "OUT", "--max-skipped", "2"], 2, "--max-skipped"),
        (["IN", "--format", "records", "--out", "OUT", "--sample", "0"], 2, "--sample"),
        (["IN", "--format", "llava", "--out", "OUT"], 3, "no_text: the row has no caption"),
        (["NONE", "--format", "records", "--out", "OUT"], 2, "does not exist"),
        (["IN", "--format", "llava", "--images", "NONE", "--out", "OUT"], 2, "--images"),
        (["-", "--format", "scenes", "--level", "9", "--out", "OUT"], 2, "--level"),
    ],
)
def test_a_call_that_cannot_work_is_one_line_on_stderr_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    source(tmp_path / "in", 1)
    places = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "none")}
    got, out, err = call(capsys, *(places.get(argument, argument) for argument in arguments), "--workers", 0)
    assert (got, out) == (code, "")
    assert says in err
    assert err.startswith("error[")
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_folder_that_exists_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [source(tmp_path / "in", 1), "--format", "records", "--out", tmp_path / "out", "--workers", 0]
    assert call(capsys, *arguments)[0] == 0
    before = tree(tmp_path / "out")
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "exists already" in err
    assert tree(tmp_path / "out") == before


def test_a_signal_ends_with_75_and_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source(tmp_path / "in", 400)
    arguments = ["data", "prepare", str(tmp_path / "in"), "--format", "records", "--out", str(tmp_path / "out"), "--workers", "1"]
    child = subprocess.Popen([sys.executable, "-m", "sightline", *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "out.preparing").glob("dataset/images/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (75, b""), err
    assert b"Run the same command again" in err
    assert not (tmp_path / "out").exists()
    assert call(capsys, *arguments[2:])[0] == 0
    assert call(capsys, *arguments[2:4], "records", "--out", tmp_path / "reference", "--workers", 0)[0] == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "reference")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    main_arguments = ["data", "prepare", "--help"]
    with pytest.raises(SystemExit) as caught:
        main(main_arguments)
    assert not caught.value.code
    text = capsys.readouterr().out
    for option in (
        "--images",
        "--split",
        "--by",
        "--sample",
        "--map",
        "--workers",
        "--seed",
        "--count",
        "--level",
        "--max-skipped",
    ):
        assert option in text


# Folders that the user trusts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["records", "llava", "csv", "hf"])
def test_a_root_lets_absolute_paths_and_links_lead_into_it_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format_name: str
) -> None:
    disk, other = put(tmp_path / "disk/1.png", picture(1)).parent, put(tmp_path / "other/3.png", picture(3)).parent
    put(disk / "2.png", picture(2))
    names = [str(disk / "1.png"), "link.png", str(other / "3.png"), "../other/3.png", f"{disk}/../other/3.png", "../disk/2.png"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.png").symlink_to(disk / "2.png")
    if format_name == "llava":
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "That."}]
        file = put(tmp_path / "in/a.json", [{"id": f"{n}", "image": name, "conversations": turns} for n, name in enumerate(names)])
    elif format_name == "csv":
        file = put(tmp_path / "in/a.csv", "image,caption\n" + "".join(f"{name},text {n}\n" for n, name in enumerate(names)))
    elif format_name == "hf":
        rows = [{"image": name, "caption": f"text {n}"} for n, name in enumerate(names)]
        file = put(tmp_path / "in/a.jsonl", rows).parent
    else:
        rows = [{"id": f"{n}", "images": [name], "captions": [f"text {n}"]} for n, name in enumerate(names)]
        file = put(tmp_path / "in/records.jsonl", rows)
    words = [file, "--format", format_name, "--max-skipped", 1, "--workers", 1, "--json"]
    words += ["--map", "image=image"] if format_name == "csv" else []
    code, out, err = call(capsys, *words, "--out", tmp_path / "a", "--root", disk)
    assert code == 0, err
    result = json.loads(out)
    assert (result["images"], result["skipped"]) == (2, {"path_outside_root": 3})
    code, out, err = call(capsys, *words, "--out", tmp_path / "b")  # the trust ended with the command
    assert code != 0 or json.loads(out)["ok"] == 0
    assert "path_outside_root" in err + out
    both = call(capsys, *words, "--out", tmp_path / "c", "--root", disk, "--root", other)[1]
    assert (json.loads(both)["images"], json.loads(both)["skipped"]) == (3, {})


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [source(tmp_path / "in"), "--format", "records", "--out", tmp_path / "out"]
    code, _, err = call(capsys, *words, "--root", tmp_path / "none")
    assert code == 2
    assert f"--root {tmp_path / 'none'} is not a folder" in err

"""A dataset folder exported as CSV is the same data when it is read back."""

import csv
import json
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.data.dataset import open_dataset
from sightline.data.prepare.csv_export import export_csv
from sightline.errors import DataError
from tests.data.pictures import lines, picture, prepared, put


def source(folder: Path) -> Path:
    for number in range(3):
        put(folder / f"{number}.png", picture(number))
    rows = [
        {"id": "a", "images": ["0.png"], "captions": ["A dog, running", 'It says "stop".\nTwice.'], "split": "train"},
        {"id": "b", "images": ["1.png"], "captions": ["Une légende"], "split": "val"},
        {"id": "two", "images": ["1.png", "2.png"], "captions": ["Both"]},
        {"id": "text", "captions": ["No image"]},
        {"id": "talk", "images": ["2.png"], "messages": [turn("user", True), turn("assistant", False)]},
    ]
    put(folder / "records.jsonl", rows)
    prepared("records", folder, folder / "set")
    return folder / "set"


def turn(role: str, with_image: bool) -> dict:
    return {"role": role, "content": [*([{"type": "image"}] if with_image else []), {"type": "text", "text": "Words"}]}


def test_what_is_read_back_is_what_was_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = source(tmp_path), tmp_path / "inputs.csv"
    with pytest.raises(SystemExit) as ended:
        main(["data", "export", str(folder), "--format", "csv", "--out", str(out), "--json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["records"], told["rows"]) == (2, 3)
    assert told["skipped"] == {"several_images": 1, "no_image": 1, "conversation": 1}
    prepared("csv", out, tmp_path / "again")
    before, after = open_dataset(folder), open_dataset(tmp_path / "again")
    kept = [record for record in before.records() if record.id in ("a", "b")]
    found = list(after.records())
    assert [(one.id, one.split, one.captions) for one in found] == [(one.id, one.split, one.captions) for one in kept]
    assert [after.image_bytes(one) for one in found] == [before.image_bytes(one) for one in kept]
    assert not lines(tmp_path / "again/skipped.jsonl")


def test_a_split_alone_and_nothing_to_write(tmp_path: Path) -> None:
    folder = source(tmp_path)
    assert export_csv(open_dataset(folder), tmp_path / "val.csv", "val")["rows"] == 1
    with (tmp_path / "val.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["b64string_images", "caption"]
    assert rows[1][1] == "Une légende"
    put(tmp_path / "words/records.jsonl", [{"id": "text", "captions": ["No image"]}])
    prepared("records", tmp_path / "words", tmp_path / "words-set")
    with pytest.raises(DataError, match="no record of one image with captions"):
        export_csv(open_dataset(tmp_path / "words-set"), tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()

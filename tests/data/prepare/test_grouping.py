"""One record for an image, whatever the form of the source: Kaggle's table gives what the published files give."""

from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import open_dataset
from sightline.data.prepare import grouping
from sightline.data.prepare.splitting import SplitRule
from sightline.data.readers import SourceOptions
from sightline.data.records import record_to_json
from tests.data.pictures import picture, prepared, put

PHOTOS = 6
BY_COLUMN = SourceOptions(mapping={"image": "image"})


def captions_of(photo: int) -> list[str]:
    return [f"caption {number} of {photo}, told" for number in range(5)]


def kaggle(folder: Path) -> Path:
    """`captions.txt` and `Images/`; the captions of a photo do not follow each other."""
    rows = [(photo, number) for number in range(5) for photo in range(PHOTOS)]
    table = "".join(f'{photo}.jpg,"{captions_of(photo)[number]}"\n' for photo, number in rows)
    put(folder / "captions.txt", "image,caption\n" + table)
    for photo in range(PHOTOS):
        put(folder / f"Images/{photo}.jpg", picture(photo, "JPEG"))
    return folder


def records(out: Path) -> list[tuple[str, list[str]]]:
    return [(record.split, list(record.captions)) for record in open_dataset(out).records()]


@pytest.mark.parametrize("kind", ["csv", "flickr8k"])
def test_kaggles_table_has_a_record_a_photo(tmp_path: Path, kind: str) -> None:
    source = BY_COLUMN if kind == "csv" else SourceOptions()
    path = kaggle(tmp_path / "in") / ("captions.txt" if kind == "csv" else "")
    summary = prepared(kind, path, tmp_path / "out", source=source, max_skipped=0.0)
    assert (summary["input"], summary["ok"], summary["splits"]) == (PHOTOS, PHOTOS, {"train": PHOTOS})
    assert records(tmp_path / "out") == [("train", captions_of(photo)) for photo in range(PHOTOS)]
    assert summary["notes"] == ({"rows_merged": 4 * PHOTOS} if kind == "csv" else {})
    assert summary["ignored"] == {}


def test_a_row_stays_a_record_where_that_is_asked_for(tmp_path: Path) -> None:
    path = kaggle(tmp_path / "in") / "captions.txt"
    summary = prepared("csv", path, tmp_path / "out", source=BY_COLUMN, group="none")
    assert (summary["ok"], summary["images"], summary["notes"]) == (5 * PHOTOS, PHOTOS, {})
    assert "group" not in summary["options"]
    again = prepared("records", tmp_path / "out", tmp_path / "again", group="image")
    assert (again["ok"], again["options"]["group"]) == (PHOTOS, "image")
    assert prepared("records", tmp_path / "out", tmp_path / "same")["ok"] == 5 * PHOTOS


def test_splits_and_samples_go_by_photo(tmp_path: Path) -> None:
    path = kaggle(tmp_path / "in") / "captions.txt"
    prepared("csv", path, tmp_path / "out", source=BY_COLUMN, split=SplitRule({"val": 0.5}))
    assert sorted(captions for _, captions in records(tmp_path / "out")) == [captions_of(photo) for photo in range(PHOTOS)]
    assert {split for split, _ in records(tmp_path / "out")} == {"train", "val"}
    prepared("csv", path, tmp_path / "some", source=BY_COLUMN, sample=2)
    assert [len(captions) for _, captions in records(tmp_path / "some")] == [5, 5]


def grouped(tmp_path: Path, *lines: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    records = [{"id": str(n), "images": ["1.png"], **line} for n, line in enumerate(lines)]
    put(tmp_path / "in/records.jsonl", records)
    put(tmp_path / "in/1.png", picture(1))
    summary = prepared("records", tmp_path / "in", tmp_path / "out", group="image")
    return summary, [record_to_json(record) for record in open_dataset(tmp_path / "out").records()]


def test_an_image_in_two_splits_stays_in_both_and_is_noted(tmp_path: Path) -> None:
    lines = [{"captions": ["a"]}, {"captions": ["b"], "split": "val"}, {"captions": ["c"]}, {"captions": ["d"], "split": "val"}]
    summary, found = grouped(tmp_path, *lines)
    assert [(record["split"], record["captions"]) for record in found] == [("train", ["a", "c"]), ("val", ["b", "d"])]
    assert summary["notes"] == {"image_in_several_splits": 1, "rows_merged": 2}


def test_what_is_not_a_caption_alone_stays_apart(tmp_path: Path) -> None:
    box = {"label": "dog", "xyxy": [0, 0, 0.5, 0.5]}
    question = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a dog"}]
    lines = [
        {"captions": ["a"], "boxes": [box]},
        {"messages": question},
        {"captions": ["b"], "boxes": [{**box, "label": "cat"}]},
        {"captions": ["c"], "boxes": [box]},
        {"messages": question},
        {"captions": ["x"], "images": []},
        {"captions": ["y"], "images": []},
    ]
    summary, found = grouped(tmp_path, *lines)
    assert [(record["id"], record.get("captions")) for record in found] == [
        ("0", ["a", "c"]),
        ("1", None),
        ("2", ["b"]),
        ("4", None),
        ("5", ["x"]),
        ("6", ["y"]),
    ]
    assert (summary["input"], summary["ok"]) == (6, 6)


def test_meta_is_joined_and_what_contradicts_is_counted(tmp_path: Path) -> None:
    lines = [{"captions": ["a"], "meta": {"url": "u", "k": 1}}, {"captions": ["a"], "meta": {"url": "v", "k": 1, "more": 2}}]
    summary, (record,) = grouped(tmp_path, *lines)
    assert (record["captions"], record["meta"]) == (["a", "a"], {"url": "u", "k": 1, "more": 2})
    assert summary["ignored"] == {"meta.url": 1}


def test_one_image_does_not_swallow_a_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A placeholder that a thousand dead links lead to."""
    monkeypatch.setattr(grouping, "MAX_RECORDS", 4)
    summary, found = grouped(tmp_path, *({"captions": [str(number)]} for number in range(10)))
    assert [record["captions"] for record in found] == [list("0123"), list("4567"), list("89")]
    assert summary["ok"] == 3

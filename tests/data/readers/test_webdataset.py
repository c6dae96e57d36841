"""WebDataset tars as the webdataset library writes them."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from sightline.errors import DataError
from tests.data.pictures import picture, prepared, read


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def sample(index: int, **fields: Any) -> dict[str, Any]:
    return {"__key__": f"{index:05d}", "png": picture(index), "txt": f"caption {index}", **fields}


def test_image_text_pairs_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "00000.tar", [sample(0), sample(1)])
    write(tmp_path / "00001.tar", [sample(2, json={"url": "http://x", "status": "success"})])
    items, skips, tally = read("webdataset", tmp_path)
    assert not skips
    assert [(item.record.id, item.record.captions, item.images) for item in items] == [
        (f"{index:05d}", (f"caption {index}",), (picture(index),)) for index in range(3)
    ]
    assert items[2].where == "00001.tar:00002"
    assert tally.ignored == {"url": 1, "status": 1}


def test_json_fields_say_what_the_text_does_not(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image><image>Q"}, {"from": "gpt", "value": "A"}]
    rows = [
        {"__key__": "a/x", "0.png": picture(1), "1.png": picture(2), "json": {"conversations": turns}},
        {"__key__": "a/y", "jpg": picture(3, "JPEG"), "json": {"alt": "mapped", "split": "val"}},
    ]
    write(tmp_path / "x.tar", rows)
    items, skips, _ = read("webdataset", tmp_path / "x.tar", mapping={"caption": "alt"})
    assert not skips
    assert (items[0].record.id, len(items[0].images), items[0].record.messages[0].num_images) == ("a/x", 2, 2)
    assert (items[1].record.captions, items[1].record.split) == (("mapped",), "val")


def test_samples_that_cannot_be_used_are_skipped(tmp_path: Path) -> None:
    rows = [
        {"__key__": "0", "txt": "no image"},
        {"__key__": "1", "png": picture(1)},
        {"__key__": "2", "png": picture(2), "txt": b"\xff\xfe"},
        {"__key__": "3", "png": picture(3), "json": b'{"a": NaN}'},
        {"__key__": "4", "png": picture(4), "json": b"[]"},
        {"__key__": "5", "png": picture(5), "txt": "fine", "cls": b"7"},
    ]
    write(tmp_path / "x.tar", rows)
    items, skips, tally = read("webdataset", tmp_path)
    assert [item.record.id for item in items] == ["5"]
    assert [skip.reason for skip in skips] == ["image_missing", "no_text", "bad_utf8", "bad_json", "not_an_object"]
    assert tally.ignored == {".cls": 1}


def test_a_pickle_in_a_tar_is_not_opened(tmp_path: Path) -> None:
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR."
    write(tmp_path / "x.tar", [sample(0, pkl=evil, pyd=evil, pth=evil)])
    _, _, tally = read("webdataset", tmp_path)
    assert not (tmp_path / "canary").exists()
    assert tally.ignored == {".pkl": 1, ".pyd": 1, ".pth": 1}


def test_a_torn_tar_is_refused_before_any_of_its_samples(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [sample(0)])
    path = write(tmp_path / "1.tar", [sample(index) for index in range(1, 9)])
    with tarfile.open(path) as file:
        at = file.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(DataError, match=r"1\.tar: it ends without the end marker, at byte \d+ after 6 whole members"):
        read("webdataset", tmp_path)
    with pytest.raises(DataError, match=r"1\.tar"):
        prepared("webdataset", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_come_from_names_and_our_own_shards_are_read(tmp_path: Path) -> None:
    write(tmp_path / "in/train-0.tar", [sample(0), sample(1)])
    write(tmp_path / "in/val-0.tar", [sample(2)])
    first = prepared("webdataset", tmp_path / "in", tmp_path / "one", shards=100_000)
    assert first["splits"] == {"train": 2, "val": 1}
    items, skips, _ = read("webdataset", tmp_path / "one/shards")
    assert not skips
    assert [item.record.captions for item in items] == [("caption 0",), ("caption 1",), ("caption 2",)]
    assert [item.record.split for item in items] == ["train", "train", "val"]
    assert json.loads((tmp_path / "one/dataset.json").read_text())["format"] == "webdataset"

"""The whole check on folders with planted faults: every count is exact, and the law holds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sightline.data.check import CheckOptions, Fault, check
from sightline.data.dataset import Dataset
from sightline.errors import DataError
from tests.data.broken_images import photo
from tests.data.check.planted import folder, jpeg, png, question, record, scene, stored

HERE = CheckOptions(workers=0)


def report(path: Path, *against: Path, **options: Any) -> dict[str, Any]:
    """The report on a folder; the law is checked on the way."""
    told = check([path], CheckOptions(**{"workers": 0, **options}), against).to_json()
    assert told["input"] == told["ok"] + sum(told["skipped"].values())
    json.dumps(told, allow_nan=False)
    return told


def tiny(path: Path, count: int = 4, **options: Any) -> Path:
    pictures = {f"{index}.png": png(scene(index, 64)) for index in range(count)}
    return folder(path, [record(f"r{index}", f"{index}.png") for index in range(count)], pictures, **options)


@pytest.mark.parametrize("shards", [None, 100_000])
def test_a_whole_folder_has_nothing_to_complain_of(tmp_path: Path, shards: int | None) -> None:
    told = report(tiny(tmp_path / "data", shards=shards), check_hash=True)
    assert (told["input"], told["ok"], told["skipped"], told["splits"]) == (4, 4, {}, {"train": 4})
    assert told["bad"] == told["odd_images"] == told["damaged_files"] == []
    assert told["hashes"] == "checked"
    assert (told["images"]["named"], told["images"]["files"], told["images"]["distinct"]) == (4, 4, 4)
    assert told["images"]["width"]["histogram"] == {"edges": [64, 128], "counts": [4]}
    assert told["folders"][0]["prepared"] == {"input": 4, "ok": 4, "skipped": {}}


def test_each_fault_has_its_reason_and_its_record(tmp_path: Path) -> None:
    path = tiny(tmp_path / "data", 6)
    stored(path, 1).unlink()
    data = stored(path, 2).read_bytes()
    stored(path, 2).write_bytes(data[: len(data) // 2])
    stored(path, 3).write_bytes(png(scene(9, 80)))  # another size than was stored
    stored(path, 4).write_bytes(png(scene(10, 64)))  # same size, other image
    assert report(path)["skipped"] == {"image_broken": 1, "image_changed": 1, "image_missing": 1}
    told = report(path, check_hash=True)
    assert told["skipped"] == {"hash_mismatch": 3, "image_missing": 1}
    assert [(fault["id"], fault["record"], fault["image"], fault["reason"]) for fault in told["bad"]] == [
        ("r1", 1, 0, "image_missing"),
        ("r2", 2, 0, "hash_mismatch"),
        ("r3", 3, 0, "hash_mismatch"),
        ("r4", 4, 0, "hash_mismatch"),
    ]
    assert all(fault["detail"] and fault["split"] == "train" for fault in told["bad"])
    assert told["damaged_files"] == []


def test_children_find_the_same_as_this_process(tmp_path: Path) -> None:
    path = tiny(tmp_path / "data", 5)
    stored(path, 1).write_bytes(b"broken")
    assert report(path, workers=1) == report(path, workers=0)


def test_a_broken_image_costs_every_record_that_names_it_and_is_opened_once(tmp_path: Path) -> None:
    rows = [question(f"q{index}", "a.png", f"what {index}?", ["x"]) for index in range(3)] + [record("other", "b.png")]
    path = folder(tmp_path / "data", rows, {"a.png": png(scene(0)), "b.png": png(scene(1))})
    stored(path, 0).write_bytes(b"GIF89a broken")
    told = report(path)
    assert (told["input"], told["ok"], told["skipped"]) == (4, 1, {"image_broken": 3})
    assert [fault["id"] for fault in told["bad"]] == ["q0", "q1", "q2"]
    assert (told["images"]["named"], told["images"]["files"]) == (4, 2)


def test_a_record_with_two_bad_images_is_skipped_once_for_the_first(tmp_path: Path) -> None:
    rows = [{"id": "two", "images": ["a.png", "b.png", "c.png"], "captions": ["three images"]}, record("one", "c.png")]
    path = folder(tmp_path / "data", rows, {name: png(scene(index)) for index, name in enumerate(("a.png", "b.png", "c.png"))})
    names = Dataset(path).record(0).images
    (path / names[1]).unlink()
    (path / names[2]).write_bytes(b"")
    told = report(path)
    assert told["skipped"] == {"image_missing": 1, "image_empty": 1}
    assert [(fault["id"], fault["image"]) for fault in told["bad"]] == [("two", 1), ("one", 0)]


def edited(path: Path, old: bytes, new: bytes) -> None:
    """Changes records.jsonl without changing its length."""
    assert len(old) == len(new)
    data = (path / "records.jsonl").read_bytes()
    assert old in data
    (path / "records.jsonl").write_bytes(data.replace(old, new))


def test_records_are_validated_again(tmp_path: Path) -> None:
    path = tiny(tmp_path / "data", 5)
    edited(path, b'"caption of r1"', b'"             "')
    edited(path, b'"id":"r2"', b'"id":"r0"')
    edited(path, b'"caption of r3"', b'"caption of r3{')
    told = report(path, check_hash=True)
    assert told["skipped"] == {"duplicate_id": 1, "empty_caption": 1, "record_damaged": 1}
    assert [(fault["record"], fault["id"], fault["image"]) for fault in told["bad"]] == [
        (1, "", None),
        (2, "r0", None),
        (3, "", None),
    ]
    assert told["damaged_files"] == ["records.jsonl differs from what was written"]
    assert told["records"]["records"] == 2  # only what can be read is counted in the figures


def test_odd_images_are_counted_and_stay_ok_unless_a_limit_is_set(tmp_path: Path) -> None:
    pictures = {
        "tiny.png": png(photo(9, 30)),
        "strip.png": png(photo(800, 20)),
        "flat.png": png(photo(40, 40).point(lambda value: 90)),
        "good.png": png(scene(0)),
    }
    path = folder(tmp_path / "data", [record(name, name) for name in pictures], pictures)
    told = report(path)
    assert told["ok"] == 4
    assert told["odd"] == {"image_flat": 1, "image_strip": 1, "image_tiny": 1}
    assert {(fault["id"], fault["reason"]) for fault in told["odd_images"]} == {
        ("tiny.png", "image_tiny"),
        ("strip.png", "image_strip"),
        ("flat.png", "image_flat"),
    }
    strict = report(path, min_side=16, max_aspect=20.0)
    assert strict["skipped"] == {"image_aspect": 1, "image_too_small": 1}
    assert strict["odd"] == {"image_flat": 1}


def test_copies_and_leaks_are_found_within_and_between_splits(tmp_path: Path) -> None:
    pictures = {f"{index}.png": png(scene(index)) for index in range(8)}
    pictures |= {
        "0.jpg": jpeg(scene(0), 50),  # of train, again in train
        "1.jpg": jpeg(scene(1, 72), 80),  # smaller, in val
        "same.png": pictures["2.png"],  # byte for byte, in val
    }
    rows = [record(f"t{index}", f"{index}.png") for index in range(6)]
    rows += [
        record("copy", "0.jpg"),
        record("again", "3.png", captions=["caption of t3"]),
        record("v1", "1.jpg", "val"),
        record("v2", "same.png", "val"),
        record("v3", "6.png", "val", captions=["CAPTION  of t4"]),
        record("v4", "7.png", "val"),
    ]
    found = report(folder(tmp_path / "data", rows, pictures))["duplicates"]
    train, val = found["images"]["within"]
    assert (train["place"], train["images"], train["repeated"], train["in_records"], train["near"]) == ("train", 7, 1, 2, 2)
    assert (val["place"], val["images"], val["repeated"], val["near"]) == ("val", 4, 0, 0)
    assert [(pair["a"]["id"], pair["b"]["id"], pair["kind"]) for pair in train["pairs"]] == [
        ("t3", "again", "exact"),
        ("t0", "copy", "near"),
    ]
    (between,) = found["images"]["between"]
    assert (between["a"], between["b"], between["images_a"], between["images_b"]) == ("train", "val", 7, 4)
    assert (between["exact"], between["near_a"], between["near_b"], between["share_b"]) == (1, 1, 1, 0.5)
    assert [(pair["a"]["id"], pair["b"]["id"], pair["kind"]) for pair in between["pairs"]] == [
        ("t2", "v2", "exact"),
        ("t1", "v1", "near"),
    ]
    assert between["pairs"][1]["bits"] <= 8
    assert [item["repeated"] for item in found["records"]["within"]] == [1, 0]
    (texts,) = found["texts"]["between"]
    assert (texts["exact"], texts["records_a"], texts["records_b"], texts["share_b"]) == (1, 1, 1, 0.25)
    assert [(pair["a"]["id"], pair["b"]["id"]) for pair in texts["pairs"]] == [("t4", "v3")]
    assert found["near"] == {"bits": 8, "likeness": 0.97, "complete": True}


def test_records_that_share_a_text_are_counted_on_each_side(tmp_path: Path) -> None:
    rows = [record(f"t{n}", f"{n}.png", captions=["A dog."]) for n in range(3)] + [record("v", "3.png", "val", ["a dog."])]
    rows += [record("w", "4.png", "val", ["a cat"])]
    found = check([folder(tmp_path / "data", rows, {f"{n}.png": png(scene(n)) for n in range(5)})], HERE).to_json()
    (texts,) = found["duplicates"]["texts"]["between"]
    assert (texts["a"], texts["b"], texts["exact"], texts["records_a"], texts["records_b"]) == ("train", "val", 1, 3, 1)
    assert (texts["share_a"], texts["share_b"]) == (1.0, 0.5)


def test_without_the_search_for_near_images_only_equal_files_count(tmp_path: Path) -> None:
    pictures = {"a.png": png(scene(0)), "a.jpg": jpeg(scene(0)), "b.png": png(scene(0))}
    path = folder(tmp_path / "data", [record(name, name) for name in pictures], pictures)
    found = report(path, near_bits=None)["duplicates"]
    assert found["near"] is None
    assert (found["images"]["within"][0]["repeated"], found["images"]["within"][0]["near"]) == (1, 0)
    assert report(path, near_bits=0)["duplicates"]["near"]["bits"] == 0


def test_another_folder_is_compared_and_not_counted(tmp_path: Path) -> None:
    train = tiny(tmp_path / "mine", 5)
    pictures = {"x.jpg": jpeg(scene(1, 64), 70), "y.png": png(scene(2, 64)), "z.png": png(scene(20, 64)), "w.png": png(scene(21))}
    other = folder(tmp_path / "test_set", [record(name, name, "test") for name in pictures], pictures)
    stored(other, 3).write_bytes(b"broken")
    told = report(train, other)
    assert (told["input"], told["ok"]) == (5, 5)
    assert [place["place"] for place in told["duplicates"]["images"]["within"]] == ["train"]
    (between,) = told["duplicates"]["images"]["between"]
    assert (between["a"], between["b"]) == ("train", "test_set:test")
    assert (between["exact"], between["near_b"]) == (1, 1)
    assert told["against"] == [{"path": str(other), "records": 4, "splits": {"test": 4}, "files": 4, "unusable": 1}]


def test_several_folders_are_checked_as_one(tmp_path: Path) -> None:
    first, second = tiny(tmp_path / "a", 3), tiny(tmp_path / "b", 2)
    stored(second, 1).write_bytes(b"broken")
    told = check([first, second], HERE).to_json()
    assert (told["input"], told["ok"], told["splits"]) == (5, 4, {"train": 5})
    assert [(entry["input"], entry["ok"], entry["skipped"]) for entry in told["folders"]] == [
        (3, 3, {}),
        (2, 1, {"image_format": 1}),
    ]
    (between,) = told["duplicates"]["images"]["between"]
    assert (between["a"], between["b"], between["exact"]) == ("a:train", "b:train", 2)
    assert told["bad"][0]["folder"] == 1


def test_shards_are_checked_image_by_image(tmp_path: Path) -> None:
    rows = [record("a", "a.png"), record("b", "a.png"), record("c", "c.png")]
    path = folder(tmp_path / "data", rows, {"a.png": png(scene(0)), "c.png": png(scene(1))}, shards=100_000)
    told = report(path)
    assert (told["ok"], told["images"]["named"], told["images"]["files"], told["images"]["distinct"]) == (3, 3, 3, 2)
    assert told["duplicates"]["images"]["within"][0]["repeated"] == 1
    shard = path / json.loads((path / "dataset.json").read_text())["shards"][0]["file"]
    data = shard.read_bytes()
    place = data.index(png(scene(1))) + 200
    shard.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    hashed = report(path, check_hash=True)
    assert hashed["skipped"] == {"hash_mismatch": 1}
    assert [fault["id"] for fault in hashed["bad"]] == ["c"]
    assert len(hashed["damaged_files"]) == 1


def test_a_torn_shard_is_named_with_what_is_left_of_it(tmp_path: Path) -> None:
    path = tiny(tmp_path / "data", 4, shards=100_000)
    shard = path / json.loads((path / "dataset.json").read_text())["shards"][0]["file"]
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match=r"4 records expected, [1-3] can be read"):
        check([path], HERE)


def test_text_alone_has_no_images_to_look_at(tmp_path: Path) -> None:
    rows = [record(f"t{index}", None, "val" if index > 3 else "train", [f"text {index % 5}"]) for index in range(8)]
    told = report(folder(tmp_path / "data", rows, {}))
    assert (told["ok"], told["images"]) == (8, {"named": 0, "files": 0, "distinct": 0})
    assert told["duplicates"]["texts"]["between"][0]["exact"] == 3
    assert "width" not in told["images"]


def test_many_faults_are_counted_all_listed_in_part_and_told_one_by_one(tmp_path: Path) -> None:
    path = tiny(tmp_path / "data", 30)
    for index in range(28):
        stored(path, index).write_bytes(b"broken")
    told: list[Fault] = []
    checked = check([path], HERE, on_fault=told.append)
    result = checked.to_json()
    assert result["skipped"] == {"image_format": 28}
    assert (len(result["bad"]), result["bad_left_out"]) == (25, 3)
    assert [fault.id for fault in told] == [f"r{index}" for index in range(28)]

"""An opened dataset folder: lazy, checked, shared by threads and processes, and clear about what is wrong."""

import contextlib
import hashlib
import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sightline.data import dataset as module
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import DataError, RecordError
from tests.data.pictures import picture, prepared, put


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 records: two images each but for every third, which is text; every fourth in val."""
    root = tmp_path_factory.mktemp("dataset")
    rows = []
    for index in range(12):
        put(root / f"in/{index}.png", picture(index))
        images = [f"{index}.png", f"{(index + 1) % 12}.png"] if index % 3 else []
        split = "val" if index % 4 == 3 else "train"
        rows.append({"id": f"é{index}", "images": images, "captions": [f"Wörter {index}"], "split": split})
    put(root / "in/records.jsonl", rows)
    prepared("records", root / "in", root / "out")
    return root / "out"


def copied(folder: Path, target: Path) -> Path:
    for name, data in {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}.items():
        put(target / name, data)
    return target


def test_records_come_by_number_with_their_images(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert len(dataset) == 12
    assert [record.id for record in dataset.records()] == [f"é{index}" for index in range(12)]
    record = dataset.record(4)
    assert record.captions == ("Wörter 4",)
    assert [dataset.image_bytes(record, k) for k in range(2)] == [picture(4), picture(5)]
    assert dataset.index["images"].tolist() == [0, 2, 2] * 4


def test_splits_are_numbers_in_order_and_an_unknown_one_is_named_with_those_there_are(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.splits == {"train": 9, "val": 3}
    assert dataset.split_indices("val").tolist() == [3, 7, 11]
    assert dataset.split_indices("val").dtype == np.int64
    assert [record.id for record in dataset.records("val")] == ["é3", "é7", "é11"]
    with pytest.raises(DataError, match="no split 'test'; it has 'train', 'val'"):
        dataset.split_indices("test")


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "out"
    prepared("records", folder, out, shards=1 << 20)
    return out


@pytest.mark.parametrize("way", ["{}/outside.tar", "../outside.tar", "shards/../../outside.tar"])
def test_a_shard_outside_of_the_folder_is_neither_opened_nor_copied(shards: Path, tmp_path: Path, way: str) -> None:
    copy = copied(shards, tmp_path / "copy")
    summary = json.loads((copy / "dataset.json").read_text())
    (copy / summary["shards"][0]["file"]).rename(tmp_path / "outside.tar")
    summary["shards"][0]["file"] = way.format(tmp_path)
    put(copy / "dataset.json", json.dumps(summary).encode())
    with pytest.raises(DataError, match=r"is not a relative path"):
        open_dataset(copy)
    with pytest.raises(DataError, match=r"is not a relative path"):
        prepared("records", copy, tmp_path / "out")


@pytest.mark.parametrize("name", ["dataset.json", "index.npy", "images.npy", "shards/{}", "shards", "records.jsonl"])
def test_a_file_that_is_a_link_out_of_the_folder_is_refused(folder: Path, shards: Path, tmp_path: Path, name: str) -> None:
    copy = copied(folder if name == "records.jsonl" else shards, tmp_path / "copy")
    place = copy / name.format(next((copy / "shards").glob("*.tar")).name if "{}" in name else "")
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"leads to .*outside"):
        open_dataset(copy)
    with pytest.raises(DataError, match=r"leads to .*outside"):
        prepared("records", copy, tmp_path / "out")


def test_a_folder_that_the_user_names_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    dataset = open_dataset(tmp_path / "link")
    assert dataset.image_bytes(dataset.record(4)) == picture(4)


def test_threads_and_forked_or_fresh_processes_read_the_same(folder: Path) -> None:
    dataset = open_dataset(folder)
    wanted = [(record.id, *map(len, [dataset.image_bytes(record)] if record.images else [])) for record in dataset.records()]
    with ThreadPoolExecutor(8) as threads:
        assert [found[0] for found in threads.map(lambda index: [dataset.record(index % 12).id], range(600))] == [
            wanted[index % 12][0] for index in range(600)
        ]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(dataset.record, range(12)) == list(dataset.records())
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.record(7) == dataset.record(7)
    assert copy.fingerprint == dataset.fingerprint


def test_the_fingerprint_follows_content_and_not_place(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [f"moved/{Path(name).name}" for name in row.get("images", [])]
        for name in row["images"]:
            put(tmp_path / "in" / name, (folder / "images" / Path(name).name[:2] / Path(name).name).read_bytes())
    put(tmp_path / "in/records.jsonl", rows)
    fingerprint = open_dataset(folder).fingerprint
    assert prepared("records", tmp_path / "in", tmp_path / "a")["fingerprint"] == fingerprint
    rows[0]["captions"] = ["Wörter  0"]
    put(tmp_path / "in/records.jsonl", rows)
    assert prepared("records", tmp_path / "in", tmp_path / "b")["fingerprint"] != fingerprint


def test_verify_reads_everything_and_finds_a_flipped_bit_anywhere(folder: Path, tmp_path: Path) -> None:
    assert open_dataset(folder).verify() == 12
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    for number, name in enumerate(files):
        if name.name == "dataset.json":
            continue
        broken = copied(folder, tmp_path / str(number))
        data = bytearray((broken / name).read_bytes())
        data[-20] ^= 4
        (broken / name).write_bytes(data)
        with pytest.raises(DataError, match=name.name):
            open_dataset(broken).verify()


def test_a_missing_image_is_named(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path / "x")
    dataset = open_dataset(broken)
    record = dataset.record(1)
    (broken / record.images[0]).unlink()
    with pytest.raises(DataError, match=Path(record.images[0]).name):
        dataset.image_bytes(record)
    with pytest.raises(DataError, match="No such file"):
        dataset.verify()


@pytest.mark.parametrize("name", ["records.jsonl", "index.npy"])
def test_a_cut_file_is_found_when_the_folder_is_opened(folder: Path, tmp_path: Path, name: str) -> None:
    broken = copied(folder, tmp_path / "x")
    (broken / name).write_bytes((broken / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}: \d+ bytes, \d+ expected"):
        open_dataset(broken)
    (broken / name).unlink()
    with pytest.raises(DataError, match=f"{name}: No such file"):
        open_dataset(broken)


def test_an_index_that_points_astray_is_an_error_of_ours(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path / "x")
    index = np.load(broken / "index.npy").copy()
    index["offset"][5] += 3
    index["offset"][6] = 1 << 40
    np.save(broken / "index.npy", index)
    with pytest.raises(DataError, match=r"index\.npy differs from what was written"):
        open_dataset(broken)
    state = json.loads((broken / "dataset.json").read_text())
    state["files"]["index.npy"]["sha256"] = hashlib.sha256((broken / "index.npy").read_bytes()).hexdigest()
    (broken / "dataset.json").write_text(json.dumps(state))
    dataset = open_dataset(broken)
    with pytest.raises(DataError, match="record 5 at byte"):
        dataset.record(5)
    with pytest.raises(DataError, match="it ends at byte"):
        dataset.record(6)
    assert dataset.record(7).id == "é7"


def test_an_index_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = copied(folder, tmp_path / "x")
    size = (broken / "index.npy").stat().st_size
    for value in (np.zeros(12, np.int64), np.array([{"a": 1}] * 12, dtype=object)):
        np.save(broken / "index.npy", value)
        data = (broken / "index.npy").read_bytes()
        (broken / "index.npy").write_bytes(data[:size].ljust(size, b"\0"))
        with pytest.raises(DataError, match=r"index\.npy"):
            open_dataset(broken)


def test_folders_that_are_no_dataset_come_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. Make it.*|Make one: sightline data prepare SOURCE"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"no dataset\.json\)\. Make one"):
        open_dataset(tmp_path)
    (tmp_path / "half.preparing").mkdir()
    with pytest.raises(DataError, match="Run the same command again"):
        open_dataset(tmp_path / "half")
    for content in ("{", "[]", '{"schema": 99}', '{"schema": 1}'):
        put(tmp_path / "x/dataset.json", content)
        with pytest.raises(DataError, match=r"dataset\.json"):
            open_dataset(tmp_path / "x")


def test_image_names_that_climb_are_not_followed(folder: Path) -> None:
    dataset = open_dataset(folder)
    record = dataset.record(1)
    object.__setattr__(record, "images", ("../out/dataset.json",))
    with pytest.raises(DataError, match="relative path"):
        dataset.image_bytes(record)


def test_few_files_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_FILES", 2)
    files = module._Files()
    for round_ in range(3):
        for name in ("records.jsonl", "index.npy", "dataset.json"):
            assert files.read(folder / name, round_, 4) == (folder / name).read_bytes()[round_ : round_ + 4]
            assert len(files._open) <= 2


def test_a_damaged_record_is_not_a_skip() -> None:
    """Loaders count RecordErrors; damage of the folder must not pass as one."""
    assert not issubclass(DataError, RecordError)
    assert Dataset.__module__ == "sightline.data.dataset"


@pytest.mark.parametrize("shards", [None, 100_000])
def test_whatever_bit_flips_in_the_files_of_a_folder_it_is_a_clear_error_or_the_same_records(
    tmp_path: Path, shards: int | None
) -> None:
    """Every byte of dataset.json and of the indices, one bit of each: no other error, and never other texts or splits."""
    put(
        tmp_path / "in/records.jsonl",
        [{"id": n, "images": [f"{n}.png"], "captions": [f"c {n}"], "split": "train" if n < 3 else "test"} for n in range(4)],
    )
    for number in range(4):
        put(tmp_path / f"in/{number}.png", picture(number))
    folder = tmp_path / "set"
    prepared("records", tmp_path / "in", folder, shards=shards)

    def told() -> list[tuple[str, tuple[str, ...]]]:
        dataset = open_dataset(folder)
        return [(record.id, record.captions) for split in ("train", "test") for record in dataset.records(split)]

    whole = told()
    for name in ("dataset.json", "index.npy", *([] if shards is None else ["images.npy"])):
        good = (folder / name).read_bytes()
        for place in range(len(good)):
            data = bytearray(good)
            data[place] ^= 1 << place % 7
            (folder / name).write_bytes(data)
            with contextlib.suppress(DataError):
                assert told() == whole, (name, place)
        (folder / name).write_bytes(good)

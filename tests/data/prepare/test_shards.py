"""Tar shards: the same records and images as a folder, readable by others, and never silently short."""

import gc
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset

from sightline.data.dataset import Dataset, open_dataset
from sightline.data.prepare.shards import parse_size
from sightline.data.records import record_to_json
from sightline.errors import DataError, UsageError
from tests.data.pictures import lines, picture, prepared, put, tree

RECORDS = 30


def source(folder: Path) -> Path:
    """Records with none, one or two images of some 2 KB; number 20 is larger than a shard."""
    rows = []
    for index in range(RECORDS):
        size = (200, 90) if index == 20 else (28, 24)
        put(folder / f"{index}.png", picture(index, size=size))
        names = [f"{index}.png", "0.png"][: index % 3]
        rows.append(
            {"id": f"r{index}", "images": names, "captions": [f"Überschrift {index}"], "split": ["train", "val"][index % 2]}
        )
    put(folder / "records.jsonl", rows)
    return folder


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same source as a folder of images, and as shards of 12 KB."""
    root = tmp_path_factory.mktemp("shards")
    prepared("records", source(root / "in"), root / "plain")
    prepared("records", root / "in", root / "sharded", shards=30_000)
    return root / "plain", root / "sharded"


def test_shards_hold_the_records_and_images_of_the_folder(folders: tuple[Path, Path]) -> None:
    plain, sharded = map(open_dataset, folders)
    assert sharded.is_sharded
    assert not plain.is_sharded
    assert plain.fingerprint == sharded.fingerprint
    assert plain.splits == sharded.splits
    assert plain.split_indices("val").tolist() == sharded.split_indices("val").tolist()
    for left, right in zip(plain.records(), sharded.records(), strict=True):
        assert {**record_to_json(left), "images": 0} == {**record_to_json(right), "images": 0}
        for k in range(len(left.images)):
            assert plain.image_bytes(left, k) == sharded.image_bytes(right, k)
    assert sharded.verify() == plain.verify()
    assert not (folders[1] / "images").exists()
    assert not (folders[1] / "records.jsonl").exists()


def test_sizes_counts_and_hashes_are_stated(folders: tuple[Path, Path]) -> None:
    shards = json.loads((folders[1] / "dataset.json").read_text())["shards"]
    assert sum(shard["records"] for shard in shards) == RECORDS
    assert len(shards) > 2
    for shard in shards:
        data = (folders[1] / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert len(data) <= 30_000 or shard["records"] == 1


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_tarfile_read_them(folders: tuple[Path, Path]) -> None:
    """Independent readers; keys are ours and sorted, one sample per record."""
    files = sorted(str(path) for path in (folders[1] / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    gc.collect()  # webdataset leaves its last file open
    dataset = open_dataset(folders[1])
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(RECORDS)]
    for number, sample in enumerate(samples):
        record = dataset.record(number)
        assert json.loads(sample["json"]) == record_to_json(record)
        for k in range(len(record.images)):
            assert sample[f"{k}.png"] == dataset.image_bytes(record, k)
    members = [member for file in files for member in members_of(Path(file).read_bytes())]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_writers_writes_the_same_bytes(folders: tuple[Path, Path], tmp_path: Path, workers: int) -> None:
    prepared("records", folders[0], tmp_path / "out", shards=30_000, workers=workers)
    first, second = tree(folders[1]), tree(tmp_path / "out")
    assert first.keys() == second.keys()
    assert all(second[name] == data for name, data in first.items() if name != "dataset.json")


def test_shards_are_a_source_like_any_other(folders: tuple[Path, Path], tmp_path: Path) -> None:
    summary = prepared("records", folders[1], tmp_path / "out")
    assert summary["fingerprint"] == open_dataset(folders[0]).fingerprint
    assert (tmp_path / "out/records.jsonl").read_bytes() == (folders[0] / "records.jsonl").read_bytes()


# Damage ---------------------------------------------------------------------------------------------------------------------


def copied(folder: Path, target: Path) -> Path:
    for name, data in tree(folder).items():
        put(target / name, data)
    return target


def whole_records(shard: bytes, cut: int) -> int:
    """Records of a shard all of whose members end before `cut`, by tarfile's account of the whole shard."""
    ends: dict[str, int] = {}
    for member in members_of(shard):
        key = member.name.partition(".")[0]
        ends[key] = max(ends.get(key, 0), member.offset_data + member.size)
    return sum(end <= cut for end in ends.values())


def test_a_shard_cut_anywhere_is_reported_with_expected_and_read_counts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Also at a header and within the end marker, where tarfile sees nothing wrong."""
    broken = copied(folders[1], tmp_path / "x")
    shard = broken / "shards/00001.tar"
    data = shard.read_bytes()
    expected = open_dataset(folders[1]).summary["shards"][1]["records"]
    silent = 0
    for cut in sorted({*range(0, len(data), 512), *range(1, len(data), 997), len(data) - 1}):
        shard.write_bytes(data[:cut])
        with pytest.raises(DataError) as caught:
            open_dataset(broken)
        assert f"{expected} records expected, {whole_records(data, cut)} can be read" in str(caught.value)
        assert "00001.tar" in str(caught.value)
        silent += _tarfile_sees_nothing(data[:cut])
    assert silent > 5


def _tarfile_sees_nothing(data: bytes) -> bool:
    try:
        return len(members_of(data)) > 0
    except tarfile.TarError:
        return False


def test_a_missing_shard_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    broken = copied(folders[1], tmp_path / "x")
    (broken / "shards/00002.tar").unlink()
    with pytest.raises(DataError, match=r"00002\.tar: No such file"):
        open_dataset(broken)


@pytest.mark.parametrize("at", [3, 148, 700, -1])
def test_a_flipped_bit_is_found_by_verify(folders: tuple[Path, Path], tmp_path: Path, at: int) -> None:
    """In a header, in a record, in the end marker."""
    broken = copied(folders[1], tmp_path / "x")
    data = bytearray((broken / "shards/00000.tar").read_bytes())
    data[at] ^= 1
    (broken / "shards/00000.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"00000\.tar differs from what was written"):
        open_dataset(broken).verify()


@pytest.mark.parametrize("name", ["../x", "000000001.png", "000000001.1.png", "000000099.0.png", "x.0.png"])
def test_image_names_of_elsewhere_are_refused(folders: tuple[Path, Path], name: str) -> None:
    dataset = open_dataset(folders[1])
    record = dataset.record(1)
    object.__setattr__(record, "images", (name,))
    with pytest.raises(DataError, match="does not belong to this dataset"):
        dataset.image_bytes(record)


# Interruption ---------------------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from pathlib import Path
from sightline.data.prepare.run import PrepareOptions, prepare
prepare(Path(sys.argv[1]), "records", PrepareOptions(out=Path(sys.argv[2]), workers=0, shards=int(sys.argv[3])))
"""


def killed(source: Path, out: Path, point: str, size: int = 30_000) -> None:
    command = [sys.executable, "-c", COMMAND, str(source), str(out), str(size)]
    child = subprocess.run(
        command, env={**os.environ, "SIGHTLINE_FAULTS": point}, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


@pytest.mark.parametrize("point", ["shards.written=kill@4", "file.before_rename=kill@9", "publish.before_rename=kill"])
def test_killed_while_writing_shards_it_goes_on_to_the_same_bytes(folders: tuple[Path, Path], tmp_path: Path, point: str) -> None:
    killed(folders[0], tmp_path / "out", point)
    assert not (tmp_path / "out").exists()
    done = {file.name: file.stat().st_ino for file in (tmp_path / "out.preparing/dataset/shards").glob("0*.tar")}
    assert len(done) >= 2
    prepared("records", folders[0], tmp_path / "out", shards=30_000)
    first, second = tree(folders[1]), tree(tmp_path / "out")
    assert all(second[name] == data for name, data in first.items() if name != "dataset.json")
    assert first.keys() == second.keys()
    assert all((tmp_path / "out/shards" / name).stat().st_ino == inode for name, inode in done.items()), "done again"


def test_shards_of_an_earlier_size_do_not_stay(folders: tuple[Path, Path], tmp_path: Path) -> None:
    killed(folders[0], tmp_path / "out", "publish.before_rename=kill", 20_000)
    prepared("records", folders[0], tmp_path / "out", shards=60_000)
    listed = {shard["file"] for shard in json.loads((tmp_path / "out/dataset.json").read_text())["shards"]}
    assert {f"shards/{file.name}" for file in (tmp_path / "out/shards").iterdir()} == listed
    assert open_dataset(tmp_path / "out").verify()


# Sizes and order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("500M", 500_000_000), ("1G", 10**9), ("1GiB", 2**30), ("100kb", 100_000), ("250000", 250_000), ("2mib", 2**21)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1T", "-5M", "1.5G", "10K", "100G", "5 M", "1e9", "٣M"])
def test_sizes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shards"):
        parse_size(text)


def test_text_alone_can_be_sharded(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": str(index), "captions": ["x" * 50]} for index in range(100)])
    prepared("records", tmp_path / "in", tmp_path / "out", shards=20_000)
    dataset = Dataset(tmp_path / "out")
    assert [record.id for record in dataset.records()] == [line["id"] for line in lines(tmp_path / "in/records.jsonl")]

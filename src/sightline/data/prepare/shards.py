"""Tar shards of a dataset folder: written in parallel from its records, byte for byte the same for any number of writers.

A shard is a plain tar that the webdataset library reads: for record number n the members `n.json` and `n.k.jpg`, n with nine
digits, names of our own making. Which records a shard holds follows from their sizes alone. `index.npy` and `images.npy` say
where each record and image begins, so that reading is one `pread`, and `dataset.json` has the size, hash and number of records
of every shard: one that was cut is found when the folder is opened, even where the cut leaves a tar that looks whole.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sightline.data.dataset import IMAGE_INDEX, IMAGE_ROW, INDEX, INDEX_ROW, RECORDS
from sightline.data.prepare.writer import RowWriter
from sightline.errors import StorageError, UsageError
from sightline.runtime import fault_injection
from sightline.runtime.logs import progress
from sightline.runtime.storage import atomic_file, dump_line, sha256_file, sweep, write_json
from sightline.runtime.workers import GuardedPool, TaskFailure

BLOCK = 512
END = bytes(2 * BLOCK)  # a tar ends with two empty blocks
MIN_SIZE, MAX_SIZE = 100_000, 64_000_000_000
KEY_DIGITS = 9
SHARD_SECONDS = 3600.0
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Shard(NamedTuple):
    """One shard to write: its number, and the records that it takes."""

    folder: Path
    work: Path
    number: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A written shard: its hash and size, and (offset, size) of each record and image in it, in order."""

    sha256: str
    bytes: int
    records: list[tuple[int, int]]
    images: list[tuple[int, int]]


def parse_size(text: str) -> int:
    """Returns `500M`, `1G` or `1GiB` as bytes.

    Raises:
        UsageError: not a size, or out of range.
    """
    number = text.rstrip("KMGiIBkmgb")
    unit = text[len(number) :].upper().removesuffix("B")
    if not (number.isascii() and number.isdecimal()) or unit not in UNITS or not MIN_SIZE <= int(number) * UNITS[unit] <= MAX_SIZE:
        raise UsageError(f"--shards {text!r} is not a size between 100K and 64G.", "For example: --shards 500M")
    return int(number) * UNITS[unit]


def shard_name(number: int) -> str:
    """Returns name of a shard in the dataset folder."""
    return f"shards/{number:05d}.tar"


def member_key(number: int) -> str:
    """Returns name, without what follows its first dot, of a record's members."""
    return f"{number:0{KEY_DIGITS}d}"


# Writing --------------------------------------------------------------------------------------------------------------------


def write_shards(
    folder: Path, work: Path, size: int, workers: int, poll: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Turns the records and images of a folder into shards; returns their entries of `dataset.json`.

    Shards that an earlier try has finished are taken over when their records are still the same.

    Args:
        folder: holds `records.jsonl`, `index.npy` and `images/`, which are removed.
        work: where it is noted which shards are done.
        size: bytes of a shard, at most; a single record may be larger.
        workers: processes that write.
        poll: is called for every shard; what it raises ends the work.

    Raises:
        StorageError: the disk refuses.
    """
    index = np.load(folder / INDEX, allow_pickle=False)
    plan = [Shard(folder, work, number, *span) for number, span in enumerate(_plan(folder, index, size))]
    (folder / "shards").mkdir(exist_ok=True)
    _remove_unplanned(folder, {shard_name(shard.number) for shard in plan})
    entries: list[dict[str, Any]] = []
    places = int(index["images"].sum())
    pool = GuardedPool(write_shard, workers, SHARD_SECONDS)
    with (
        atomic_file(work / INDEX, "wb") as index_file,
        atomic_file(work / IMAGE_INDEX, "wb") as image_file,
        pool,
        progress("writing shards", len(plan)) as bar,
    ):
        rows, images = RowWriter(INDEX_ROW, index_file, len(index)), RowWriter(IMAGE_ROW, image_file, places)
        for shard, placed in zip(plan, pool.map(plan), strict=True):
            fault_injection.hit("shards.written")
            poll()
            if isinstance(placed, TaskFailure):
                raise StorageError(f"{folder / shard_name(shard.number)}: {placed.reason}: {placed.detail}.")
            for number, (offset, length) in enumerate(placed.records, start=shard.first):
                old = index[number]
                rows.add((offset, old["first_image"], length, shard.number, old["images"], old["split"]))
            for place in placed.images:
                images.add(place)
            entries.append(
                {
                    "file": shard_name(shard.number),
                    "records": shard.count,
                    "images": len(placed.images),
                    "bytes": placed.bytes,
                    "sha256": placed.sha256,
                }
            )
            bar.step()
        rows.flush()
        images.flush()
    for name in (INDEX, IMAGE_INDEX):
        (work / name).replace(folder / name)
    return entries


def remove_unsharded(folder: Path) -> None:
    """Removes records and image files that the shards replace."""
    (folder / RECORDS).unlink()
    shutil.rmtree(folder / "images", ignore_errors=True)


def _remove_unplanned(folder: Path, wanted: set[str]) -> None:
    """Removes incomplete files, and shards of an earlier run with another shard size."""
    sweep(folder / "shards")
    for file in (folder / "shards").iterdir():
        if file.relative_to(folder).as_posix() not in wanted:
            file.unlink()


def _plan(folder: Path, index: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Yields first record and number of records of each shard: as many as surely fit."""
    first, used = 0, len(END)
    sizes: dict[str, int] = {}
    for number, line in enumerate(_lines(folder, index)):
        length = _padded(len(line))  # the names in a shard are shorter than those in the folder
        for name in json.loads(line).get("images", ()):
            if name not in sizes:
                sizes = {} if len(sizes) > 1 << 16 else sizes
                sizes[name] = (folder / name).stat().st_size
            length += _padded(sizes[name])
        if number > first and used + length > size:
            yield first, number - first
            first, used = number, len(END)
        used += length
    yield first, len(index) - first


def _padded(size: int) -> int:
    """Returns bytes that a member takes in a tar."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def _lines(folder: Path, index: np.ndarray, first: int = 0, count: int | None = None) -> Iterator[bytes]:
    """Lines of `records.jsonl`."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(int(index[first]["offset"]))
        for row in index[first : None if count is None else first + count]:
            yield file.read(int(row["size"]))


def write_shard(task: Shard) -> WrittenShard:
    """Writes one shard, or finds it written."""
    index = np.load(task.folder / INDEX, mmap_mode="r", allow_pickle=False)
    target, note = task.folder / shard_name(task.number), task.work / f"shard-{task.number:05d}.json"
    source = _source_hash(task, index)
    found = _finished(target, note, source)
    if found is not None:
        return found
    records: list[tuple[int, int]] = []
    images: list[tuple[int, int]] = []
    with atomic_file(target, "wb") as file:
        tar = _TarWriter(file)
        for number, line in enumerate(_lines(task.folder, index, task.first, task.count), start=task.first):
            key, record = member_key(number), json.loads(line)
            stored = record.get("images", [])
            names = [f"{key}.{k}.{name.rpartition('.')[2]}" for k, name in enumerate(stored)]
            records.append(tar.add(f"{key}.json", dump_line({**record, "images": names} if names else record)))
            for name, old in zip(names, stored, strict=True):
                images.append(tar.add(name, (task.folder / old).read_bytes()))
        tar.end()
    placed = WrittenShard(tar.hash.hexdigest(), tar.at, records, images)
    write_json(note, {"source": source, "sha256": placed.sha256, "bytes": placed.bytes, "records": records, "images": images})
    return placed


def _source_hash(task: Shard, index: np.ndarray) -> str:
    """Returns the hash of a shard's lines; they hold the hashes of its images."""
    digest = hashlib.sha256()
    for line in _lines(task.folder, index, task.first, task.count):
        digest.update(line)
    return digest.hexdigest()


def _finished(target: Path, note: Path, source: str) -> WrittenShard | None:
    if not note.exists() or not target.exists():
        return None
    done = json.loads(note.read_text("utf-8"))
    if done["source"] != source or sha256_file(target) != done["sha256"]:
        return None
    records, images = ([(int(offset), int(size)) for offset, size in done[name]] for name in ("records", "images"))
    return WrittenShard(done["sha256"], done["bytes"], records, images)


class _TarWriter:
    """Writes members with no date and no owner, and hashes what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.at = 0
        self.hash = hashlib.sha256()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Appends a member; returns offset and size of its data."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.at
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset, len(data)

    def end(self) -> None:
        self._write(END)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.hash.update(data)
        self.at += len(data)

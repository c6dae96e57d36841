"""Reads a dataset folder: records by index, image bytes, splits. Training and evaluation read all data through this module.

The folder holds `dataset.json` (counts, hashes, splits), `index.npy` (32 bytes a record), and either `records.jsonl` with
`images/` or tar shards. Records are read one at a time by byte offset and the index is memory-mapped, so a set of any size
opens at once and takes no memory. An open dataset may be shared by threads, survives a fork, and can be pickled.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.records import record_from_json
from sightline.errors import DataError, RecordError
from sightline.runtime.hub import nearest_hint
from sightline.runtime.storage import safe_join, sha256_file
from sightline.types import Record

SCHEMA = 1
DATASET, RECORDS, INDEX, IMAGE_INDEX, SKIPPED = "dataset.json", "records.jsonl", "index.npy", "images.npy", "skipped.jsonl"
DOWNLOADS = "downloads.jsonl"  # outcome of each URL, where images were downloaded
UNFINISHED = ".preparing"
MAX_OPEN_FILES = 256

# One row per record. `file` counts the shards; `first_image` counts the images of all records before it.
INDEX_ROW = np.dtype(
    [("offset", "<u8"), ("first_image", "<u8"), ("size", "<u4"), ("file", "<u4"), ("images", "<u4"), ("split", "<u4")]
)
IMAGE_ROW = np.dtype([("offset", "<u8"), ("size", "<u8")])  # one row per image of a record, within the record's shard

_PREPARE = "Make one: sightline data prepare SOURCE --format FORMAT --out"
_AGAIN = "Prepare it again (--format records reads a dataset folder)."


class Dataset:
    """A dataset folder.

    Args:
        path: the folder. Presence and size of files are checked; hashes only by `verify`.

    Attributes:
        path: the folder.
        summary: content of `dataset.json`.
        fingerprint: hash over all records and the sha256 of their images; equal for image files and shards.
        splits: number of records of each split.
        index: one row of `INDEX_ROW` per record, memory-mapped.

    Raises:
        DataError: the folder is missing, is no dataset folder, is incomplete, or a file has another size than was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.summary = _read_summary(self.path)
        self.fingerprint: str = self.summary["fingerprint"]
        self.splits: dict[str, int] = self.summary["splits"]
        self._split_names = list(self.splits)
        self._shards: list[dict[str, Any]] = self.summary.get("shards", [])
        for name, entry in self.summary["files"].items():
            _check_size(self._place(name), entry["bytes"])
        self.index = self._map(INDEX, INDEX_ROW, self.summary["ok"])
        self._image_index = self._map(IMAGE_INDEX, IMAGE_ROW, self.summary["image_places"]) if self._shards else None
        for number, shard in enumerate(self._shards):
            _check_size(self._place(shard["file"]), shard["bytes"], lambda size, number=number: self._readable_part(number, size))
        self._records = self.path / RECORDS if self._shards else self._place(RECORDS)
        self._files = _Files()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def is_sharded(self) -> bool:
        """Whether records and images lie in tar shards, which are best read sequentially."""
        return self._image_index is not None

    def __reduce__(self) -> tuple[type["Dataset"], tuple[Path]]:
        return Dataset, (self.path,)

    @property
    def is_without_images(self) -> bool:
        """Whether images are name-only (`data prepare --without-images`)."""
        return bool(self.summary.get("without_images"))

    @property
    def max_pixels(self) -> int:
        """Limit on the pixels of an image that `data prepare --max-pixels` set; 0 where it kept the default."""
        return self.summary.get("max_pixels", 0)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {len(self)} records)"

    def record(self, index: int) -> Record:
        """Returns the record with an index from 0.

        Raises:
            DataError: the record is damaged.
        """
        row = self.index[index]
        if self._shards and row["file"] >= len(self._shards):
            raise DataError(f"{self.path / INDEX} is damaged: record {index} would be in shard {row['file']}.", _AGAIN)
        file = self.path / self._shards[row["file"]]["file"] if self._shards else self._records
        data = self._files.read(file, int(row["offset"]), int(row["size"]))
        try:
            record = record_from_json(json.loads(data))
        except (ValueError, RecordError) as error:
            raise DataError(f"{file}: record {index} at byte {row['offset']} is damaged: {error}.", _AGAIN) from error
        if self._shards and record.images and not _is_image_of(record.images[0], index):
            raise DataError(f"{self.path / INDEX} is damaged: it leads to another record than number {index}.", _AGAIN)
        return record

    def records(self, split: str | None = None) -> Iterator[Record]:
        """Yields all records, or those of a split, in order."""
        for index in range(len(self)) if split is None else self.split_indices(split):
            yield self.record(int(index))

    def image_bytes(self, record: Record, k: int = 0) -> bytes:
        """Returns the bytes of image `k` of a record of this dataset.

        Raises:
            DataError: it is missing or cannot be read, or the folder was prepared without images.
        """
        name = record.images[k]
        if self.is_without_images:
            raise DataError(
                f"{self.path} was prepared without its images: it has no file of {name!r}.",
                "Read features instead (data.features=STORE, --features STORE), or prepare it with its images.",
            )
        if self._image_index is None:
            try:
                return safe_join(self.path, name).read_bytes()
            except OSError as error:
                raise DataError(f"{self.path / name}: {error.strerror}.", _AGAIN) from error
        number, _, rest = name.partition(".")
        if not number.isdecimal() or int(number) >= len(self) or not rest.startswith(f"{k}."):
            raise DataError(f"{self.path}: image {name!r} does not belong to this dataset.")
        row = self.index[int(number)]
        if row["file"] >= len(self._shards) or int(row["first_image"]) + k >= len(self._image_index):
            raise DataError(f"{self.path / INDEX} is damaged: it gives no place of image {name!r}.", _AGAIN)
        place = self._image_index[int(row["first_image"]) + k]
        return self._files.read(self.path / self._shards[row["file"]]["file"], int(place["offset"]), int(place["size"]))

    def split_indices(self, name: str) -> np.ndarray:
        """Returns the indices of the records of a split, ascending, as int64.

        Raises:
            DataError: there is no such split (the message lists the splits), or it has another number of records than was written.
        """
        if name not in self.splits:
            raise DataError(f"{self.path} has no split {name!r}; it has {', '.join(map(repr, self.splits)) or 'none'}.")
        found = np.flatnonzero(self.index["split"] == self._split_names.index(name))
        if len(found) != self.splits[name]:
            raise DataError(
                f"{self.path / INDEX} is damaged: {len(found)} records in split {name!r}, {self.splits[name]} expected.", _AGAIN
            )
        return found

    def verify(self) -> int:
        """Compares the sha256 of every file and image with the stored ones; returns the number of image files.

        Raises:
            DataError: lists the first ten that differ.
        """
        faults = self.damaged_files()
        seen: set[str] = set()
        for record in () if self._shards or self.is_without_images else self.records():
            for name, info in zip(record.images, record.image_info, strict=True):
                if name not in seen:
                    seen.add(name)
                    fault = self._hash_fault(name, info.sha256)
                    faults += [fault] if fault else []
        if faults:
            more = f", and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise DataError(f"{self.path} is damaged: {'; '.join(faults[:10])}{more}.", _AGAIN)
        return self.summary["images"]

    def damaged_files(self) -> list[str]:
        """Compares the sha256 of the files listed in `dataset.json` (records, index, shards); returns what is wrong with each."""
        return [fault for name, entry in _listed_files(self.summary) if (fault := self._hash_fault(name, entry["sha256"]))]

    def _place(self, name: str) -> Path:
        """Returns the path of a file of this folder; a DataError where it is not there, or leads out of the folder."""
        try:
            return safe_join(self.path, name)
        except DataError as error:
            raise DataError(error.message, _AGAIN) from error

    def _hash_fault(self, name: str, sha256: str) -> str:
        try:
            return "" if sha256_file(safe_join(self.path, name)) == sha256 else f"{Path(name).name} differs from what was written"
        except (DataError, OSError) as error:
            return f"{Path(name).name}: {getattr(error, 'strerror', None) or error}"

    def _readable_part(self, shard: int, size: int) -> str:
        """Says how many records of a shard lie within its first `size` bytes, for an error message."""
        assert self._image_index is not None
        rows = self.index[self.index["file"] == shard]
        ends = (rows["offset"] + rows["size"]).astype(np.int64)
        for place in np.flatnonzero(rows["images"]):
            last = self._image_index[int(rows["first_image"][place] + rows["images"][place]) - 1]
            ends[place] = last["offset"] + last["size"]
        return f" {len(rows)} records expected, {int((ends <= size).sum())} can be read."

    def _map(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        try:
            array = np.load(self._place(name), mmap_mode="r", allow_pickle=False)
        except DataError:
            raise
        except Exception as error:  # numpy may raise anything for a damaged header
            raise DataError(f"{self.path / name} is damaged: {error}.", _AGAIN) from error
        if array.dtype != dtype or array.shape != (count,):
            raise DataError(f"{self.path / name} has {array.shape} rows of {array.dtype}, {count} expected.", _AGAIN)
        return array


def open_dataset(path: str | Path) -> Dataset:
    """Opens a dataset folder; see `Dataset`."""
    return Dataset(path)


# Files ----------------------------------------------------------------------------------------------------------------------


class _OpenFile:
    """An open file that is closed when its last reference is dropped."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


class _Files:
    """Reads byte ranges of files; keeps up to `MAX_OPEN_FILES` files open."""

    def __init__(self) -> None:
        self._open: dict[Path, _OpenFile] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            with self._lock:
                file = self._open.get(path)
                if file is None:
                    if len(self._open) >= MAX_OPEN_FILES:
                        self._open.clear()
                    file = self._open[path] = _OpenFile(path)
            data = os.pread(file.descriptor, size, offset)
            while 0 < len(data) < size and (more := os.pread(file.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}.", _AGAIN) from error
        if len(data) < size:
            raise DataError(f"{path}: it ends at byte {offset + len(data)}, {offset + size} expected.", _AGAIN)
        return data


def _is_image_of(name: str, index: int) -> bool:
    """Returns whether an image in a shard is named after the record with this index."""
    number = name.partition(".")[0]
    return number.isdecimal() and int(number) == index


def _read_summary(path: Path) -> Mapping[str, Any]:
    if not (path / DATASET).is_file():
        unfinished = path.with_name(path.name + UNFINISHED)
        if not path.exists() and unfinished.is_dir():
            raise DataError(
                f"{path} is not finished; the work so far is in {unfinished}.", "Run the same command again to finish it."
            )
        state = "is not a dataset folder (it has no dataset.json)" if path.exists() else "does not exist"
        near = "" if path.exists() else nearest_hint(path)
        raise DataError(f"{path} {state}.", near if near.startswith("Did") else f"{_PREPARE} {path}.")
    try:
        summary = json.loads(safe_join(path, DATASET).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / DATASET} cannot be read: {error}.", _AGAIN) from error
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise DataError(f"{path / DATASET}: schema {SCHEMA} is expected.", "Prepare it again with this version.")
    try:
        _check_summary(summary)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / DATASET} is damaged ({type(error).__name__}: {error}).", _AGAIN) from error
    return summary


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raises an AttributeError, KeyError, TypeError or ValueError where a value that is read is missing or of another type."""
    numbers = [summary[name] for name in ("ok", "image_places", "images")]
    numbers += summary["splits"].values()
    numbers.append(summary.get("max_pixels", 0))
    for name, entry in _listed_files(summary):
        numbers.append(entry["bytes"])
        if not isinstance(entry["sha256"], str) or not isinstance(name, str):
            raise ValueError(f"{name!r} is no entry of a file")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number of records, images or bytes is not a whole number from 0")
    if sum(summary["splits"].values()) != summary["ok"]:
        raise ValueError("the splits do not add up to the number of records")
    if not isinstance(summary["fingerprint"], str):
        raise ValueError("the fingerprint is no text")


def _listed_files(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields name, and size and hash, of all files listed in `dataset.json`."""
    yield from summary["files"].items()
    for shard in summary.get("shards", []):
        yield shard["file"], shard


def _check_size(path: Path, size: int, what_is_left: Callable[[int], str] = lambda size: "") -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", _AGAIN) from error
    if found != size:
        left = what_is_left(found)
        raise DataError(f"{path}: {found} bytes, {size} expected; it was changed or truncated after it was written.{left}", _AGAIN)

"""Turns checked records into the files of a dataset folder: `records.jsonl`, `index.npy` and `dataset.json`.

A pure function of the checked records and the split rule: nothing depends on time, machine or number of workers, so the same
source gives the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from sightline.data.dataset import INDEX, INDEX_ROW, RECORDS
from sightline.data.prepare.image_store import name_number
from sightline.data.prepare.splitting import ImageGroups, SplitRule
from sightline.data.readers.base import DEFAULT_SPLIT
from sightline.data.records import record_from_json, record_to_json
from sightline.errors import DataError, UsageError
from sightline.runtime.storage import atomic_file, dump_line, sha256_file
from sightline.types import Record

MAX_SPLITS = 1000
_ROWS = 1 << 16  # rows of an index that are held before they are written


@dataclass(frozen=True, slots=True)
class WrittenRecords:
    """Counts and fingerprint of the records that `write_records` wrote."""

    splits: dict[str, int]
    image_places: int
    image_numbers: np.ndarray
    fingerprint: str


def read_lines(path: Path) -> Iterator[Record]:
    """Yields records of a file that `dump_line` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield record_from_json(json.loads(line))


def write_records(
    work: Path, checked: Path, count: int, rule: SplitRule, poll: Callable[[], None] = lambda: None
) -> WrittenRecords:
    """Writes `records.jsonl` and `index.npy` in `work`.

    Args:
        checked: lines of records with their images stored.
        count: number of these lines.
        poll: is called for every record; what it raises ends the work.

    Raises:
        UsageError: a split that is drawn has records of its own already.
        DataError: more than 1,000 splits.
    """
    split_of = _split_function(checked, rule)
    splits: Counter[str] = Counter()
    drawn: set[str] = set()
    codes: dict[str, int] = {}
    fingerprint = Fingerprint()
    numbers = RowWriter(np.dtype("<u8"))
    with atomic_file(work / RECORDS, "wb") as records, atomic_file(work / INDEX, "wb") as index_file:
        index = RowWriter(INDEX_ROW, index_file, count)
        offset = places = 0
        for record in read_lines(checked):
            poll()
            own = record.split
            record = replace(record, split=split_of(record))
            if record.split != own:
                drawn.add(record.split)
            elif record.split in rule.shares and own != DEFAULT_SPLIT:
                raise UsageError(
                    f"--split {own}=...: the source has records in split {own!r} already (record {record.id!r}).",
                    "Choose another name.",
                )
            code = codes.setdefault(record.split, len(codes))
            if code >= MAX_SPLITS:
                raise DataError(f"more than {MAX_SPLITS} splits, e.g. {record.split!r}.", "Is 'split' mapped to the right key?")
            splits[record.split] += 1
            json_record = record_to_json(record)
            line = dump_line(json_record)
            records.write(line)
            index.add((offset, places, len(line), 0, len(record.images), code))
            fingerprint.add(json_record)
            for info in record.image_info:
                numbers.add(name_number(info.sha256))
            offset += len(line)
            places += len(record.images)
        index.flush()
    ordered = {name: splits[name] for name in codes}
    return WrittenRecords(ordered, places, np.unique(numbers.rows()), fingerprint.value())


def _split_function(checked: Path, rule: SplitRule) -> Callable[[Record], str]:
    if not rule.shares:
        return lambda record: record.split
    groups = ImageGroups()
    if rule.by == "image":
        for record in read_lines(checked):
            groups.join(record.image_info)

    def split_of(record: Record) -> str:
        if record.split != DEFAULT_SPLIT:
            return record.split
        return rule.draw(groups.key(record.image_info[0].sha256) if rule.by == "image" and record.image_info else record.id)

    return split_of


class Fingerprint:
    """Hash over records as they are read, images by their hash and not by their place."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: dict[str, Any]) -> None:
        self._hash.update(dump_line({name: value for name, value in line.items() if name != "images"}))

    def value(self) -> str:
        return self._hash.hexdigest()


class RowWriter:
    """Writes an .npy file of a known number of rows as a stream; without a file it gathers them in memory.

    Args:
        dtype: of a row.
        file: where the header is written at once.
        count: number of rows to come.
    """

    def __init__(self, dtype: np.dtype, file: IO[bytes] | None = None, count: int = 0) -> None:
        self.dtype, self._file = dtype, file
        self._pending: list[Any] = []
        self._blocks: list[np.ndarray] = []
        if file is not None:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)

    def add(self, row: Any) -> None:
        self._pending.append(row)
        if len(self._pending) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        block = np.array(self._pending, dtype=self.dtype)
        self._pending.clear()
        if self._file is not None:
            self._file.write(block.tobytes())
        else:
            self._blocks.append(block)

    def rows(self) -> np.ndarray:
        """Returns all rows that were gathered."""
        self.flush()
        return np.concatenate(self._blocks)


def file_entry(path: Path) -> dict[str, Any]:
    """Returns size and hash of a file, as `dataset.json` states them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}

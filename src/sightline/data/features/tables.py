"""Imports tables of precomputed features (.npz, .npy, .h5) as feature stores of kind `external`.

Rows are matched to images by name: the full name, else its last path component, else that without suffix, provided that only one
row has it. Rows are read sequentially in chunks, so the store holds them in the table's order.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from sightline.data.dataset import Dataset
from sightline.data.features.store import FeatureDtype, RowFormat
from sightline.data.features.writer import ImageSelection, MissingImage, StoreOrigin, select_images, write_store
from sightline.data.skip_limit import check_skip_limit
from sightline.errors import DataError, UsageError
from sightline.runtime.arrays import read_npy, read_npy_header
from sightline.runtime.hdf5 import array_names, open_hdf5, plain_array, refuse_link
from sightline.runtime.inputs import ARCHIVE_ERRORS, check_member_size, open_zip, parse_json, read_input
from sightline.runtime.logs import logger
from sightline.runtime.storage import sha256_file
from sightline.types import Record

CHUNK_BYTES = 8 << 20
MAX_NAMES = 1 << 28  # size in bytes of a file of names


@dataclass(frozen=True)
class TableKeys:
    """Keys of a table's arrays.

    Attributes:
        names: key of the names; for .npy a file of names: .txt with one name per line, .npy, or .jsonl as `FILE:FIELD`.
        values: key of the features `[rows, E]` or `[rows, P, E]`; a .npy has no keys.
        scale: key of a factor: one number, one per row, or one per row and token.
        power: the features are `sign(v) |v|^power` of the scaled values `v` (2 for tables of square roots).
    """

    names: str | None = None
    values: str | None = None
    scale: str | None = None
    power: float = 1.0


class _Column(NamedTuple):
    """An array that is read in chunks, in ascending order of rows."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]


def import_table(
    datasets: Sequence[Dataset],
    splits: Sequence[str],
    path: Path,
    keys: TableKeys,
    out: Path,
    dtype: FeatureDtype,
    max_skipped: float,
) -> dict[str, Any]:
    """Writes a feature store with a table's rows for the images of data sets; returns its `store.json`.

    Args:
        datasets, splits: data sets and splits whose images are stored.
        path: the table.
        keys: keys of the table's arrays.
        out: the store.
        dtype: dtype of the stored features.
        max_skipped: share of the images that may have no row.

    Raises:
        UsageError: a key is missing or unknown.
        DataError: the table cannot be read, its arrays have different lengths, or a name occurs twice.
        SkipLimitError: too many images have no row.
        StorageError, NumericsError, Stopped: as in `write_store`.
    """
    if path.suffix not in OPENERS:
        raise UsageError(f"{path}: a table is one of {', '.join(OPENERS)}.")
    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Give the file of the table.")
    with _opened(path) as table:
        with _readable(path):
            values = table.column(keys.values, "--values")
            names = table.names(keys.names)
            scale = table.column(keys.scale, "--scale") if keys.scale else None
        shape = _checked_shape(path, values, scale, len(names))
        selection = select_images(datasets, splits, lambda info: 1)
        rows = _match(selection, datasets, names, path)
        found = np.flatnonzero(rows >= 0)
        _check_found(selection, rows, datasets, names, max_skipped)
        order = found[np.argsort(rows[found], kind="stable")]
        logger.info("%s: %d of %d rows belong to %d images", path, len(np.unique(rows[found])), len(names), len(found))
        row_format = RowFormat(dtype, *shape)
        parts = {"file": sha256_file(path), "values": keys.values, "scale": keys.scale, "power": keys.power}
        origin = StoreOrigin("external", parts, (1, shape[0]), {"table": path.name})
        supply = _Rows(path, values, scale, keys.power, rows[order])
        return write_store(out, row_format, origin, selection.subset(order), supply, max_skipped)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Converts the errors that libraries raise on damaged files to DataError.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        yield
    except (*ARCHIVE_ERRORS, TypeError) as error:  # h5py raises any of them
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}.", "Is the file complete?") from error


def _opened(path: Path) -> "_Hdf5 | _Npy | _Npz":
    with _readable(path):
        return OPENERS[path.suffix](path)


def _checked_shape(path: Path, values: _Column, scale: _Column | None, names: int) -> tuple[int, int]:
    """Returns the tokens and the width of a row, `(P, E)`."""
    if len(values.shape) not in (2, 3) or values.dtype.kind not in "fiu" or 0 in values.shape:
        raise DataError(f"{path}: features are [rows, E] or [rows, P, E] numbers, found {values.shape} of {values.dtype}.")
    if values.shape[0] != names:
        raise DataError(f"{path}: {values.shape[0]} rows of features and {names} names.")
    patches, width = (1, values.shape[1]) if len(values.shape) == 2 else (values.shape[1], values.shape[2])
    fits = scale is None or scale.shape in ((), (1,), (names,), (names, 1), (names, patches), (names, patches, 1))
    if scale is not None and (not fits or scale.dtype.kind not in "fiu"):
        raise DataError(f"{path}: a scale is one number, one per row, or one per row and token; found {scale.shape}.")
    return patches, width


# Names ----------------------------------------------------------------------------------------------------------------------


def _name_variants(name: str) -> tuple[str, str, str]:
    """Returns a name, its last path component, and that without suffix."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return name, last, last.rpartition(".")[0] or last


def _match(selection: ImageSelection, datasets: Sequence[Dataset], names: Sequence[str], path: Path) -> np.ndarray:
    """Returns the table's row of each image, -1 where it has none."""
    known: tuple[dict[str, int], ...] = ({}, {}, {})
    for row, name in enumerate(names):
        if known[0].setdefault(name, row) != row:
            raise DataError(
                f"{path}: rows {known[0][name]} and {row} have the same name {name!r}.", "Give each row a name of its own."
            )
        for variant, rows_of in zip(_name_variants(name)[1:], known[1:], strict=True):
            rows_of[variant] = row if variant not in rows_of else -1  # a name of several rows identifies none
    rows = np.full(len(selection), -1, dtype=np.int64)
    for index in range(len(selection)):
        record = datasets[int(selection.dataset[index])].record(int(selection.record[index]))
        rows[index] = _row_of(record, int(selection.image[index]), known)
    return rows


def _row_of(record: Record, k: int, known: tuple[dict[str, int], ...]) -> int:
    """Finds the row of a record's image by its sha256, by its name, or, where it is the record's only image, by the record's id."""
    row = known[0].get(record.image_info[k].sha256, -1)
    candidates = [record.images[k], record.id] if len(record.images) == 1 else [record.images[k]]
    for name in candidates:
        for variant, rows_of in zip(_name_variants(name), known, strict=True):
            row = rows_of.get(variant, -1) if row < 0 else row
    return row


def _check_found(
    selection: ImageSelection, rows: np.ndarray, datasets: Sequence[Dataset], names: Sequence[str], max_skipped: float
) -> None:
    lost = np.flatnonzero(rows < 0)
    if not len(lost):
        return
    record = datasets[int(selection.dataset[lost[0]])].record(int(selection.record[lost[0]]))
    name = record.images[int(selection.image[lost[0]])]
    what = f"images have no row in the table, for example {name!r} of record {record.id!r}"
    remedy = "Names must agree: prepare the data set with --without-images (keeps its image names), or with --map id=KEY."
    allowed = max_skipped if len(lost) < len(selection) else 0.0
    check_skip_limit(len(lost), len(selection), allowed, f"{what}; the table's first name is {names[0]!r}", remedy)
    logger.warning("%d of %d %s; training and evaluation skip the records that need them", len(lost), len(selection), what)


# Rows -----------------------------------------------------------------------------------------------------------------------


class _Rows:
    """Reads chosen rows of a table as features, in ascending order."""

    def __init__(self, path: Path, values: _Column, scale: _Column | None, power: float, rows: np.ndarray) -> None:
        self.path, self.values, self.scale, self.power, self.rows = path, values, scale, power, rows
        self.factor = np.float32(1)
        if scale is not None and scale.shape in ((), (1,)):
            with _readable(path):
                self.factor = np.float32(scale.read(0, 1).reshape(-1)[0])
            self.scale = None
        self.per_chunk = max(1, CHUNK_BYTES // max(1, int(np.prod(values.shape[1:])) * 4))

    def features(self, first: int, end: int) -> Iterator[tuple[np.ndarray, Sequence[MissingImage]]]:
        """Yields the features of images `first .. end - 1`, a chunk of the table at a time."""
        at = first
        while at < end:
            begin = int(self.rows[at])
            stop = int(np.searchsorted(self.rows[:end], begin + self.per_chunk, side="left"))
            chosen = self.rows[at:stop]
            with _readable(self.path):
                raw = self.values.read(begin, int(chosen[-1]) + 1).astype(np.float32)
                factors = self._factors(begin, int(chosen[-1]) + 1)
            features = raw.reshape(len(raw), -1, raw.shape[-1]) * factors
            if self.power != 1.0:
                features = np.sign(features) * np.abs(features) ** np.float32(self.power)
            yield features[chosen - begin], ()
            at = stop

    def _factors(self, begin: int, end: int) -> np.ndarray | np.float32:
        if self.scale is None:
            return self.factor
        factors = self.scale.read(begin, end).astype(np.float32)
        return factors.reshape(len(factors), -1, 1)


# Files ----------------------------------------------------------------------------------------------------------------------


class _Npz:
    """Arrays of a .npz file, each read as a stream, never loaded as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = open_zip(path)
        self._open: list[IO[bytes]] = []

    def __enter__(self) -> "_Npz":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._open:
            file.close()
        self._zip.close()

    def column(self, key: str | None, option: str) -> _Column:
        keys = [name.removesuffix(".npy") for name in self._zip.namelist()]
        info = self._zip.getinfo(f"{_known_key(key, keys, option, self.path)}.npy")
        check_member_size(info)
        stream = self._zip.open(info)
        self._open.append(stream)
        return _stream_column(stream, info.file_size)

    def names(self, key: str | None) -> list[str]:
        column = self.column(key, "--names")
        return _as_texts(column.read(0, column.shape[0] if column.shape else 1), self.path)


class _Npy:
    """One memory-mapped array; its names are in a separate file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_Npy":
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def column(self, key: str | None, option: str) -> _Column:
        if key is not None:
            raise UsageError(f"{option} {key}: {self.path.name} is one array and has no keys.", f"Leave {option} out.")
        array = read_npy(self.path, is_mapped=True)
        return _Column(array.dtype, array.shape, lambda begin, end: np.asarray(array[begin:end]))

    def names(self, key: str | None) -> list[str]:
        file, _, field = (key or "").partition(":")
        if not file:
            raise UsageError("--names must be given.", "For .npy it is a file: names.txt, names.npy, or rows.jsonl:FIELD.")
        path = Path(file) if Path(file).exists() else self.path.parent / file
        if not path.is_file() or path.stat().st_size > MAX_NAMES:
            raise UsageError(f"--names {file}: there is no such file (of at most {MAX_NAMES >> 20} MB).")
        if path.suffix == ".npy":
            return _as_texts(read_npy(path), path)
        lines = read_input(path, MAX_NAMES).decode("utf-8").splitlines()
        if path.suffix != ".jsonl":
            return lines
        rows = [parse_json(line) for line in lines]
        if not field or any(not isinstance(row, dict) or not isinstance(row.get(field), str) for row in rows):
            raise UsageError(
                f"--names {key}: name the field of each line that holds the name.", f"For example --names {file}:image"
            )
        return [row[field] for row in rows]


class _Hdf5:
    """Arrays of an HDF5 file, read in slices."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_hdf5(path, "reading .h5 tables")

    def __enter__(self) -> "_Hdf5":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def column(self, key: str | None, option: str) -> _Column:
        keys = array_names(self._file)
        if key is not None and key not in keys:
            refuse_link(self._file, key, self.path)
        data = plain_array(self._file, _known_key(key, keys, option, self.path), self.path)
        return _Column(data.dtype, data.shape, lambda begin, end: np.asarray(data[begin:end] if data.shape else data[()]))

    def names(self, key: str | None) -> list[str]:
        column = self.column(key, "--names")
        return _as_texts(column.read(0, column.shape[0] if column.shape else 1), self.path)


OPENERS: dict[str, Callable[[Path], _Hdf5 | _Npy | _Npz]] = {".h5": _Hdf5, ".hdf5": _Hdf5, ".npy": _Npy, ".npz": _Npz}


def _known_key(key: str | None, keys: Sequence[str], option: str, path: Path) -> str:
    if key is None:
        raise UsageError(f"{option} must be given.", f"{path.name} has {', '.join(keys)}.")
    if key not in keys:
        raise UsageError(f"{option} {key}: {path.name} has no such array.", f"It has {', '.join(keys)}.")
    return key


def _stream_column(stream: IO[bytes], length: int) -> _Column:
    shape, is_fortran, dtype = read_npy_header(stream, length)
    if is_fortran and len(shape) > 1:
        raise ValueError("the array is in Fortran order; save it in C order")
    row = math.prod(shape[1:]) * dtype.itemsize
    at = 0

    def read(begin: int, end: int) -> np.ndarray:
        nonlocal at
        assert begin >= at, "rows are read in ascending order"
        _skip(stream, (begin - at) * row)
        data = stream.read((end - begin) * row)
        at = end
        if len(data) < (end - begin) * row:
            raise EOFError(f"it ends in row {begin + len(data) // max(row, 1)}")
        return np.frombuffer(data, dtype=dtype).reshape(end - begin, *shape[1:])

    return _Column(dtype, shape, read)


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        data = stream.read(min(count, 1 << 20))
        if not data:
            return
        count -= len(data)


def _as_texts(array: np.ndarray, path: Path) -> list[str]:
    values = array.reshape(-1).tolist()
    texts = [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]
    if any(not isinstance(text, str) for text in texts):
        raise DataError(f"{path}: the names are {array.dtype}, texts are expected.")
    return texts

"""Reads a feature store: outputs of a frozen encoder, looked up by the sha256 of the image file.

A store is a folder with `store.json` (origin, row format, counts, hashes), `index.npy` (image -> rows, sorted by hash) and
`shards/` (one memory-mapped .npy each). A row holds one crop: `[P, E]` numbers in fp16, bf16, fp32, or int8 with one scale per
token. A look-up is a binary search and a view into a mapped file; only the index is kept in memory (44 bytes per image).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from sightline.data.dataset import MAX_HASHED, UNFINISHED, Dataset
from sightline.data.images.pixels import VisualInputs
from sightline.errors import DataError, NumericsError, RecordError
from sightline.runtime.arrays import read_npy
from sightline.runtime.inputs import read_json_input
from sightline.runtime.storage import safe_join, sha256_file
from sightline.types import Record

SCHEMA = 1
STORE, INDEX, SKIPPED = "store.json", "index.npy", "skipped.jsonl"
FeatureDtype = Literal["bf16", "fp16", "fp32", "int8"]
FEATURE_DTYPES: tuple[FeatureDtype, ...] = get_args(FeatureDtype)
FP16_MAX = 65504.0
MEAN_ROWS = 4096

# One row per image, sorted by hash: its first row in the store and how many it has.
INDEX_ROW = np.dtype([("sha256", "u1", (32,)), ("first", "<u8"), ("crops", "<u4")])

_AGAIN = "Make it again with `sightline data features`."


# Rows -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFormat:
    """Shape and dtype of one row of a store; converts features to stored rows and back.

    Attributes:
        dtype: fp32 is exact; fp16 has an 11-bit significand and a maximum of 65,504; bf16 has an 8-bit significand and the range
            of fp32; int8 has 255 levels, scaled per token by its largest magnitude.
        patches, width: a row is `[patches, width]`.
    """

    dtype: FeatureDtype
    patches: int
    width: int

    @property
    def row(self) -> np.dtype:
        """numpy dtype of a row in its shard."""
        shape = (self.patches, self.width)
        if self.dtype == "int8":
            return np.dtype([("values", "i1", shape), ("scale", "<f4", (self.patches,))])
        return np.dtype(({"bf16": "<u2", "fp16": "<f2", "fp32": "<f4"}[self.dtype], shape))

    @property
    def row_bytes(self) -> int:
        return self.row.itemsize

    @property
    def array(self) -> tuple[np.dtype, tuple[int, ...]]:
        """Base dtype and trailing axes of a shard's array (numpy moves the axes of a sub-array dtype there)."""
        return self.row.base, self.row.shape

    def pack(self, features: Float[np.ndarray, "N P E"]) -> np.ndarray:
        """Converts features to stored rows.

        Raises:
            NumericsError: a value is not finite, or too large for fp16.
        """
        features = np.ascontiguousarray(features, dtype=np.float32)
        largest = float(np.abs(features).max(initial=0.0))
        if not np.isfinite(largest):  # NaN and infinity both survive `max`
            raise NumericsError("the features hold NaN or infinity.", "Check the encoder's weights, or encode in fp32.")
        if self.dtype == "fp32":
            return features
        if self.dtype == "fp16":
            if largest > FP16_MAX:
                raise NumericsError(f"a feature of {largest:g} does not fit fp16.", "Use --dtype bf16 or --dtype fp32.")
            return features.astype("<f2")
        if self.dtype == "bf16":
            bits = features.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")  # to the nearest, ties to even
        rows = np.empty(len(features), dtype=self.row)
        rows["scale"] = np.abs(features).max(axis=2) / 127
        step = np.where(rows["scale"] > 0, rows["scale"], 1)[:, :, None]
        rows["values"] = np.clip(np.rint(features / step), -127, 127)
        return rows

    def unpack(self, rows: np.ndarray) -> Float[np.ndarray, "N P E"]:
        """Converts stored rows to features: fp16 and fp32 as a view of the file, bf16 and int8 as new float32 arrays."""
        if self.dtype == "bf16":
            return np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
        if self.dtype == "int8":
            return rows["values"] * rows["scale"][:, :, None]
        return rows

    def rounded(self, features: Float[np.ndarray, "N P E"]) -> Float[np.ndarray, "N P E"]:
        """Rounds features as storing and reading them would."""
        return self.unpack(self.pack(features))


def format_bytes(count: float) -> str:
    """Formats a number of bytes with a unit, such as `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


# Stores ---------------------------------------------------------------------------------------------------------------------


class FeatureStore:
    """An open feature store. It may be shared by threads, survives a fork, and can be pickled.

    Args:
        path: the folder. Presence and size of files and the hash of its index are checked; other hashes only by `verify`.

    Attributes:
        path: the folder.
        summary: content of `store.json`.
        kind: `encoder`, or `external` for an imported table.
        key: sha256 of everything that the features depend on.
        parts: what the key is computed from, by name.
        row_format: shape and dtype of a row.
        grid: rows and columns of the tokens of a crop.

    Raises:
        DataError: the folder is missing, is no feature store, is incomplete, or a file has another size, or its index another hash,
            than was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.summary = _read_summary(self.path)
        self.kind: Literal["encoder", "external"] = self.summary["kind"]
        self.key: str = self.summary["key"]
        self.parts: dict[str, Any] = self.summary["parts"]
        self.row_format = RowFormat(self.summary["dtype"], *self.summary["shape"])
        self.grid: tuple[int, int] = (self.summary["grid"][0], self.summary["grid"][1])
        self._shards: list[dict[str, Any]] = self.summary["shards"]
        self._first = [shard["first"] for shard in self._shards]
        for entry in (self.summary["index"], *self._shards):
            _check_size(self._place(entry["file"]), entry["bytes"])
        index = self.summary["index"]
        if index["bytes"] <= MAX_HASHED and sha256_file(self._place(index["file"])) != index["sha256"]:
            raise DataError(f"{self.path / index['file']} is damaged: it differs from what was written.", _AGAIN)
        self._index = self._load(index["file"], INDEX_ROW, (self.summary["ok"],))
        self._prefix = _prefixes(self._index["sha256"])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Returns number of images."""
        return len(self._index)

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        return FeatureStore, (self.path,)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} images)"

    def __contains__(self, sha256: str) -> bool:
        return self._row_span(sha256) is not None

    def features(self, sha256: str) -> Float[np.ndarray, "N P E"]:
        """Returns the features of an image's crops: float16 from an fp16 store, else float32; read-only where they are a view.

        Raises:
            RecordError: reason `features_missing`.
        """
        span = self._row_span(sha256)
        if span is None:
            raise RecordError("features_missing", f"{self.path} has no features of image {sha256[:16]}...")
        first, crops = span
        number = bisect_right(self._first, first) - 1
        begin = first - self._first[number]
        return self.row_format.unpack(self._shard(number)[begin : begin + crops])

    def mean(self) -> Float[np.ndarray, "P E"]:
        """Returns the mean of the rows, of 4,096 evenly spaced ones where there are more; float32."""
        total = np.zeros((self.row_format.patches, self.row_format.width), dtype=np.float64)
        rows = sum(shard["rows"] for shard in self._shards)
        chosen = range(0, rows, -(-rows // MEAN_ROWS))
        for row in chosen:
            number = bisect_right(self._first, row) - 1
            begin = row - self._first[number]
            total += self.row_format.unpack(self._shard(number)[begin : begin + 1])[0]
        return (total / len(chosen)).astype(np.float32)

    def knows(self, dataset: Dataset, split: str) -> bool:
        """Tells whether the store was made from this split of this data set, so that its images need no look-up one by one."""
        return any(
            source["fingerprint"] == dataset.fingerprint and (source["splits"] is None or split in source["splits"])
            for source in self.summary["sources"]
        )

    def verify(self) -> int:
        """Compares the sha256 of every file with `store.json`; returns the number of files.

        Raises:
            DataError: lists the first ten that differ.
        """
        entries = (self.summary["index"], *self._shards)
        faults = [entry["file"] for entry in entries if sha256_file(self._place(entry["file"])) != entry["sha256"]]
        if faults:
            more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise DataError(f"{self.path} is damaged: {', '.join(faults[:10])}{more} differ from what was written.", _AGAIN)
        return len(entries)

    def _row_span(self, sha256: str) -> tuple[int, int] | None:
        """Returns the first row and the number of rows of an image; None where the store lacks it."""
        try:
            digest = bytes.fromhex(sha256)
        except ValueError:
            return None
        prefix = int.from_bytes(digest[:8], "big")
        at = int(np.searchsorted(self._prefix, np.uint64(prefix)))
        while at < len(self._prefix) and int(self._prefix[at]) == prefix:
            row = self._index[at]
            if row["sha256"].tobytes() == digest:
                return int(row["first"]), int(row["crops"])
            at += 1
        return None

    def _shard(self, number: int) -> np.ndarray:
        array = self._maps.get(number)
        if array is None:
            base, axes = self.row_format.array
            shard = self._shards[number]
            array = self._maps[number] = self._load(shard["file"], base, (shard["rows"], *axes))
        return array

    def _place(self, name: str) -> Path:
        """Returns the path of a file of this folder; a DataError where it is not there, or leads out of the folder."""
        try:
            return safe_join(self.path, name)
        except DataError as error:
            raise DataError(error.message, _AGAIN) from error

    def _load(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = read_npy(self._place(name), is_mapped=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} is damaged: {error}.", _AGAIN) from error
        if array.dtype != dtype or array.shape != shape:
            raise DataError(f"{self.path / name} holds {array.shape} of {array.dtype}, {shape} of {dtype} expected.", _AGAIN)
        return np.asarray(array)  # slicing np.memmap itself takes ten times as long as slicing a plain view of it


ImageKey = Callable[[str, Record], str]
"""From the sha256 of an image and its record to the key of the image in a store."""


def plain_image_key(sha256: str, record: Record) -> str:
    """Returns the sha256 of the image: its crops do not depend on the record."""
    return sha256


class FeatureLoader:
    """Loads visual inputs from a feature store.

    Args:
        store: an open store that belongs to the model.
        key_of: key of an image in the store.
    """

    def __init__(self, store: FeatureStore, key_of: ImageKey = plain_image_key) -> None:
        self.store, self.key_of = store, key_of

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns the features of all images of a record; opens no image file.

        Raises:
            RecordError: reasons `features_missing`, `image_info_missing`.
        """
        if len(record.image_info) != len(record.images):
            raise RecordError("image_info_missing", "the record has no sha256 of its images; prepare the data set again")
        parts = [self.store.features(self.key_of(info.sha256, record)) for info in record.image_info]
        return VisualInputs(features=parts[0] if len(parts) == 1 else np.concatenate(parts))


def open_store(path: str | Path) -> FeatureStore:
    """Opens a feature store; see `FeatureStore`."""
    return FeatureStore(path)


def count_missing_images(store: FeatureStore, dataset: Dataset, split: str, key_of: ImageKey = plain_image_key) -> tuple[int, int]:
    """Returns how many images of a split's records the store lacks, and how many there are (repetitions counted)."""
    missing = total = 0
    for record in dataset.records(split):
        total += len(record.image_info)
        missing += sum(key_of(info.sha256, record) not in store for info in record.image_info)
    return missing, total


def _prefixes(digests: np.ndarray) -> np.ndarray:
    """Returns the first 8 bytes of each hash as an integer: the in-memory keys of the binary search."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def sorted_index(digests: np.ndarray, first: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Returns the rows of `index.npy`, sorted by hash.

    Args:
        digests: sha256 of each image as 32 bytes, without repetitions.
        first, crops: first row and number of rows of each.
    """
    index = np.empty(len(digests), dtype=INDEX_ROW)
    index["sha256"], index["first"], index["crops"] = digests, first, crops
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)
    return index[np.lexsort(words.T[::-1])]


def _read_summary(path: Path) -> Mapping[str, Any]:
    if not (path / STORE).is_file():
        unfinished = path.with_name(path.name + UNFINISHED)
        if not path.exists() and unfinished.is_dir():
            raise DataError(
                f"{path} is not finished; the work so far is in {unfinished}.", "Run the same command again to finish it."
            )
        state = f"is not a feature store (it has no {STORE})" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}.", f"Make one: sightline data features DATASET --config FILE --out {path}.")
    try:
        summary = read_json_input(safe_join(path, STORE))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / STORE} cannot be read: {error}.", _AGAIN) from error
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise DataError(f"{path / STORE}: schema {SCHEMA} is expected.", "Make it again with this version.")
    required = {"kind", "key", "parts", "dtype", "shape", "grid", "sources", "ok", "shards", "index"}
    if missing := required - summary.keys():
        raise DataError(f"{path / STORE}: {sorted(missing)[0]!r} is missing.", _AGAIN)
    if summary["dtype"] not in FEATURE_DTYPES:
        raise DataError(f"{path / STORE}: unknown dtype {summary['dtype']!r}.", _AGAIN)
    try:
        _check_summary(summary)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / STORE} is damaged ({type(error).__name__}: {error}).", _AGAIN) from error
    return summary


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raises an AttributeError, KeyError, TypeError or ValueError where a value that is read is missing or of another type."""
    (patches, width), (rows, columns) = summary["shape"], summary["grid"]
    numbers = [summary["ok"], patches, width, rows, columns]
    first = 0
    for shard in summary["shards"]:
        numbers += [shard["first"], shard["rows"]]
        if shard["first"] != first:
            raise ValueError(f"shard {shard['file']!r} does not begin at row {first}")
        first += shard["rows"]
    for entry in (summary["index"], *summary["shards"]):
        numbers.append(entry["bytes"])
        if not isinstance(entry["file"], str) or not isinstance(entry["sha256"], str):
            raise ValueError("'file' or 'sha256' of a file is no text")
    if not all(type(number) is int and number >= 0 for number in numbers) or patches * width == 0:
        raise ValueError("a number of images, rows, tokens or bytes is not a whole number from 0")
    if not all(isinstance(summary[name], str) for name in ("kind", "key")) or not isinstance(summary["parts"], dict):
        raise ValueError("'kind' or 'key' is no text, or 'parts' no object")
    for source in summary["sources"]:
        if not isinstance(source["fingerprint"], str) or not isinstance(source["splits"], list | None):
            raise ValueError("'sources' are not data sets with their splits")


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", _AGAIN) from error
    if found != size:
        raise DataError(f"{path}: {found} bytes, {size} expected; it was changed or cut after it was written.", _AGAIN)

"""A feature store, opened: the outputs of a frozen encoder by the hash of the picture they belong to, instead of pixels.

A store is a folder with `store.json` (what made it, what a row is, counts, hashes), `index.npy` (picture -> rows, sorted) and
`shards/` (one .npy each, memory-mapped). A row is one crop: `[P, E]` numbers in fp16, bf16, fp32, or int8 with one scale a token.
Reading one is a look into a sorted list and a view into a mapped file; nothing is kept in memory but the list, 44 bytes a picture.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from sightline.data.dataset import UNFINISHED, Dataset
from sightline.data.images.pixels import VisualInputs
from sightline.errors import DataError, NumericsError, RecordError
from sightline.runtime.storage import sha256_file
from sightline.types import Record

SCHEMA = 1
STORE, INDEX, SKIPPED = "store.json", "index.npy", "skipped.jsonl"
Number = Literal["bf16", "fp16", "fp32", "int8"]
NUMBERS: tuple[Number, ...] = get_args(Number)
FP16_MAX = 65504.0
MEAN_ROWS = 4096

# One row per picture, sorted by hash: its first row in the store and how many it has.
INDEX_ROW = np.dtype([("sha256", "u1", (32,)), ("first", "<u8"), ("crops", "<u4")])

_AGAIN = "Make it again with `sightline data features`."


# Rows -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureForm:
    """What one row of a store is, and how numbers get in and out of it.

    Attributes:
        number: fp32 is exact; fp16 keeps 11 bits and reaches 65,504; bf16 keeps 8 bits and every magnitude; int8 keeps 256 steps
            between the largest and smallest value that a token's own largest magnitude allows.
        patches, width: a row is `[patches, width]`.
    """

    number: Number
    patches: int
    width: int

    @property
    def row(self) -> np.dtype:
        """The type of a row in its shard."""
        shape = (self.patches, self.width)
        if self.number == "int8":
            return np.dtype([("values", "i1", shape), ("scale", "<f4", (self.patches,))])
        return np.dtype(({"bf16": "<u2", "fp16": "<f2", "fp32": "<f4"}[self.number], shape))

    @property
    def row_bytes(self) -> int:
        return self.row.itemsize

    @property
    def array(self) -> tuple[np.dtype, tuple[int, ...]]:
        """Type and further axes of a shard's array: numpy has the axes of a plain sub-array as axes of the array."""
        return self.row.base, self.row.shape

    def pack(self, features: Float[np.ndarray, "N P E"]) -> np.ndarray:
        """Rows of a shard.

        Raises:
            NumericsError: a value is not finite, or too large for fp16.
        """
        features = np.ascontiguousarray(features, dtype=np.float32)
        largest = float(np.abs(features).max(initial=0.0))
        if not np.isfinite(largest):  # NaN and infinity both survive `max`
            raise NumericsError("the features hold NaN or infinity.", "Check the encoder's weights, or encode in fp32.")
        if self.number == "fp32":
            return features
        if self.number == "fp16":
            if largest > FP16_MAX:
                raise NumericsError(f"a feature of {largest:g} does not fit fp16.", "Use --dtype bf16 or --dtype fp32.")
            return features.astype("<f2")
        if self.number == "bf16":
            bits = features.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")  # to the nearest, ties to even
        rows = np.empty(len(features), dtype=self.row)
        rows["scale"] = np.abs(features).max(axis=2) / 127
        step = np.where(rows["scale"] > 0, rows["scale"], 1)[:, :, None]
        rows["values"] = np.clip(np.rint(features / step), -127, 127)
        return rows

    def unpack(self, rows: np.ndarray) -> Float[np.ndarray, "N P E"]:
        """Features of rows: fp16 and fp32 as they lie in the file (a view), bf16 and int8 as new float32 arrays."""
        if self.number == "bf16":
            return np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
        if self.number == "int8":
            return rows["values"] * rows["scale"][:, :, None]
        return rows

    def rounded(self, features: Float[np.ndarray, "N P E"]) -> Float[np.ndarray, "N P E"]:
        """Features as they would come back from a store of this form."""
        return self.unpack(self.pack(features))


def bytes_told(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


# Stores ---------------------------------------------------------------------------------------------------------------------


class FeatureStore:
    """A feature store; may be shared by threads, survives a fork, and can be sent to workers.

    Args:
        path: the folder; files are checked for presence and size, hashes only by `verify`.

    Attributes:
        path: the folder.
        summary: `store.json` as it stands.
        kind: `encoder`, or `external` for an imported table.
        key: hash of everything that the numbers depend on.
        parts: what the key is made of, by name.
        form: of a row.
        grid: rows and columns of the tokens of a crop.

    Raises:
        DataError: the folder is missing, of another kind, incomplete, or a file has not the size that was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.summary = _read_summary(self.path)
        self.kind: Literal["encoder", "external"] = self.summary["kind"]
        self.key: str = self.summary["key"]
        self.parts: dict[str, Any] = self.summary["parts"]
        self.form = FeatureForm(self.summary["dtype"], *self.summary["shape"])
        self.grid: tuple[int, int] = (self.summary["grid"][0], self.summary["grid"][1])
        self._shards: list[dict[str, Any]] = self.summary["shards"]
        self._first = [shard["first"] for shard in self._shards]
        for entry in (self.summary["index"], *self._shards):
            _check_size(self.path / entry["file"], entry["bytes"])
        self._index = self._load(INDEX, INDEX_ROW, (self.summary["ok"],))
        self._prefix = _prefixes(self._index["sha256"])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._index)

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        return FeatureStore, (self.path,)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} pictures)"

    def __contains__(self, sha256: str) -> bool:
        return self._place(sha256) is not None

    def features(self, sha256: str) -> Float[np.ndarray, "N P E"]:
        """Features of a picture's crops; float16 from a store of fp16, else float32; read-only where they are a view.

        Raises:
            RecordError: reason `features_missing`.
        """
        place = self._place(sha256)
        if place is None:
            raise RecordError("features_missing", f"{self.path} has no features of picture {sha256[:16]}...")
        first, crops = place
        number = bisect_right(self._first, first) - 1
        begin = first - self._first[number]
        return self.form.unpack(self._shard(number)[begin : begin + crops])

    def mean(self) -> Float[np.ndarray, "P E"]:
        """Mean of the rows, of 4,096 evenly spaced ones where there are more; float32."""
        total = np.zeros((self.form.patches, self.form.width), dtype=np.float64)
        rows = sum(shard["rows"] for shard in self._shards)
        chosen = range(0, rows, -(-rows // MEAN_ROWS))
        for row in chosen:
            number = bisect_right(self._first, row) - 1
            begin = row - self._first[number]
            total += self.form.unpack(self._shard(number)[begin : begin + 1])[0]
        return (total / len(chosen)).astype(np.float32)

    def knows(self, dataset: Dataset, split: str) -> bool:
        """Whether the store was made from this split of this data set, so that nothing needs to be looked up one by one."""
        return any(
            source["fingerprint"] == dataset.fingerprint and (source["splits"] is None or split in source["splits"])
            for source in self.summary["sources"]
        )

    def verify(self) -> int:
        """Hashes every file and compares it with what was written; returns the number of files.

        Raises:
            DataError: lists the first ten that differ.
        """
        entries = (self.summary["index"], *self._shards)
        faults = [entry["file"] for entry in entries if sha256_file(self.path / entry["file"]) != entry["sha256"]]
        if faults:
            more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise DataError(f"{self.path} is damaged: {', '.join(faults[:10])}{more} not as written.", _AGAIN)
        return len(entries)

    def _place(self, sha256: str) -> tuple[int, int] | None:
        """First row and number of rows of a picture."""
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
            base, axes = self.form.array
            shard = self._shards[number]
            array = self._maps[number] = self._load(shard["file"], base, (shard["rows"], *axes))
        return array

    def _load(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.load(self.path / name, mmap_mode="r" if shape[0] else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} is damaged: {error}.", _AGAIN) from error
        if array.dtype != dtype or array.shape != shape:
            raise DataError(f"{self.path / name} holds {array.shape} of {array.dtype}, {shape} of {dtype} expected.", _AGAIN)
        return np.asarray(array)  # a plain view of the map: slices of np.memmap itself cost ten times as much


class FeatureLoader:
    """Fills visual slots from a feature store.

    Args:
        store: an open store that fits the model.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Features of all images of a record; no image file is opened.

        Raises:
            RecordError: reasons `features_missing`, `image_info_missing`.
        """
        if len(record.image_info) != len(record.images):
            raise RecordError("image_info_missing", "the hashes of the record's images are not known; prepare the data set again")
        parts = [self.store.features(info.sha256) for info in record.image_info]
        return VisualInputs(features=parts[0] if len(parts) == 1 else np.concatenate(parts))


def open_store(path: str | Path) -> FeatureStore:
    """Opens a feature store; see `FeatureStore`."""
    return FeatureStore(path)


def missing_pictures(store: FeatureStore, dataset: Dataset, split: str) -> tuple[int, int]:
    """How many pictures of a split the store lacks, and how many places for pictures the split has."""
    missing = places = 0
    for record in dataset.records(split):
        places += len(record.image_info)
        missing += sum(info.sha256 not in store for info in record.image_info)
    return missing, places


def _prefixes(digests: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each hash as a number, in memory: what is searched."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def sorted_index(digests: np.ndarray, first: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The rows of `index.npy`.

    Args:
        digests: sha256 of each picture as 32 bytes, each once.
        first, crops: its first row, and how many it has.
    """
    index = np.empty(len(digests), dtype=INDEX_ROW)
    index["sha256"], index["first"], index["crops"] = digests, first, crops
    words = np.ascontiguousarray(digests).view(">u8").reshape(len(digests), 4)
    return index[np.lexsort(words.T[::-1])]


def _read_summary(path: Path) -> Mapping[str, Any]:
    if not (path / STORE).is_file():
        unfinished = path.with_name(path.name + UNFINISHED)
        if not path.exists() and unfinished.is_dir():
            raise DataError(f"{path} is not finished: {unfinished} is what was done so far.", "Give the same command again.")
        state = f"is not a feature store (it has no {STORE})" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}.", f"Make one: sightline data features DATASET --config FILE --out {path}.")
    try:
        summary = json.loads((path / STORE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path / STORE} cannot be read: {error}.", _AGAIN) from error
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise DataError(f"{path / STORE}: schema {SCHEMA} is expected.", "Make it again with this version.")
    wanted = {"kind", "key", "parts", "dtype", "shape", "grid", "sources", "ok", "shards", "index"}
    if missing := wanted - summary.keys():
        raise DataError(f"{path / STORE}: {sorted(missing)[0]!r} is missing.", _AGAIN)
    if summary["dtype"] not in NUMBERS:
        raise DataError(f"{path / STORE}: dtype {summary['dtype']!r} is not known.", _AGAIN)
    return summary


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.", _AGAIN) from error
    if found != size:
        raise DataError(f"{path}: {found} bytes, {size} expected; it was changed or cut after it was written.", _AGAIN)

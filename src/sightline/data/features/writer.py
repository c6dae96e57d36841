"""Writes a feature store shard by shard. Resumable: an interrupted job continues at the next shard and produces identical bytes.

The content of a store is fixed before anything is encoded: each image once, in order, with its number of rows; the rows of each
shard follow from these numbers alone. A finished shard is written atomically and recorded; a resumed job starts at the first
shard without a record.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from sightline.data.dataset import UNFINISHED, Dataset
from sightline.data.features.store import (
    INDEX,
    SCHEMA,
    SKIPPED,
    STORE,
    FeatureStore,
    ImageKey,
    RowFormat,
    format_bytes,
    plain_image_key,
    sorted_index,
)
from sightline.data.skip_limit import check_skip_limit, reasons_text
from sightline.errors import DataError, NumericsError, Stopped, StorageError, UsageError
from sightline.runtime import fault_injection
from sightline.runtime.logs import Bar, logger, progress
from sightline.runtime.signals import watch_signals
from sightline.runtime.storage import Lock, atomic_file, publish_dir, read_json, sha256_file, sweep, write_json
from sightline.types import ImageInfo, Record

PLAN = "plan.json"
SHARD_BYTES = 256 << 20
MAX_SHARDS = 256  # each is an open file while it is mapped
SPARE = 1.02  # disk space beyond the shards: index, records of shards, overhead of the file system


# What to store ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageSelection:
    """The images that a store is to hold, each once.

    Attributes:
        sha256: sha256 of each image file.
        crops: number of rows (crops) of each.
        dataset, record, image: first occurrence of each: index of the data set, of the record in it, of the image in the record.
        sources: fingerprint and splits of the data sets, for `store.json`.
    """

    sha256: UInt8[np.ndarray, "images 32"]
    crops: Int[np.ndarray, " images"]
    dataset: Int[np.ndarray, " images"]
    record: Int[np.ndarray, " images"]
    image: Int[np.ndarray, " images"]
    sources: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.crops)

    def subset(self, order: Int[np.ndarray, " some"]) -> "ImageSelection":
        """Returns some of the images, in the given order."""
        crops, dataset, record, image = (column[order] for column in (self.crops, self.dataset, self.record, self.image))
        return ImageSelection(self.sha256[order], crops, dataset, record, image, self.sources)

    def fingerprint(self) -> str:
        """Returns a sha256 over images and numbers of rows, in order."""
        return hashlib.sha256(self.sha256.tobytes() + self.crops.astype("<i8").tobytes()).hexdigest()


def select_images(
    datasets: Sequence[Dataset],
    splits: Sequence[str],
    crops_of: Callable[[ImageInfo], int],
    key_of: ImageKey = plain_image_key,
) -> ImageSelection:
    """Selects the images of data sets, in order of first appearance.

    Args:
        datasets: one or several.
        splits: splits to read; all when empty. At least one data set must have each of them.
        crops_of: number of rows of an image.
        key_of: key of an image in the store.

    Raises:
        DataError: no data set has a split, or there is no image.
    """
    for split in splits:
        if not any(split in dataset.splits for dataset in datasets):
            datasets[0].split_indices(split)  # raises the error that lists the splits
    digests, table = bytearray(), array("q")
    sources = []
    for number, dataset in enumerate(datasets):
        present = [split for split in splits if split in dataset.splits]
        if splits and not present:
            continue
        sources.append({"fingerprint": dataset.fingerprint, "name": dataset.path.resolve().name, "splits": present or None})
        indices = np.concatenate([dataset.split_indices(split) for split in present]) if present else np.arange(len(dataset))
        with progress("looking up images", len(indices)) as bar:
            for index in indices.tolist():
                record = dataset.record(index)
                for k, info in enumerate(record.image_info):
                    digests += _digest(info, record, key_of, dataset, index)
                    table.extend((crops_of(info), number, index, k))
                bar.step()
    if not table:
        raise DataError(f"{datasets[0].path} has no images in {', '.join(splits) or 'any split'}.")
    sha256 = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    columns = np.frombuffer(table, dtype=np.int64).reshape(-1, 4)
    _, first = np.unique(sha256.view("V32")[:, 0], return_index=True)
    selection = ImageSelection(sha256, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], tuple(sources))
    return selection.subset(np.sort(first))


def _digest(info: ImageInfo, record: Record, key_of: ImageKey, dataset: Dataset, index: int) -> bytes:
    try:
        digest = bytes.fromhex(key_of(info.sha256, record))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise DataError(f"{dataset.path}: record {index} has no sha256 of its images.", "Prepare the data set again.")
    return digest


# Where features come from -----------------------------------------------------------------------------------------------------


class MissingImage(NamedTuple):
    """An image that has no features: its index in the selection, and the reason."""

    index: int
    reason: str
    detail: str


class Supply(Protocol):
    """Source of the features of a selection."""

    def features(self, first: int, end: int) -> Iterator[tuple[Float[np.ndarray, "N P E"], Sequence[MissingImage]]]:
        """Yields the features of images `first .. end - 1` in batches, in order, with one row per crop, and the missing images.

        A missing image still has its rows, with any content. Ranges are requested in ascending order without gaps.
        """
        ...


@dataclass(frozen=True)
class StoreOrigin:
    """What `store.json` states about the origin of the features.

    Attributes:
        kind: `encoder` or `external`.
        parts: everything that the features depend on, by name; the store's key is their sha256.
        description: the same in readable form, and further facts.
        grid: rows and columns of the tokens of a crop.
    """

    kind: str
    parts: Mapping[str, Any]
    grid: tuple[int, int]
    description: Mapping[str, Any] = field(default_factory=dict)


def key_of(kind: str, parts: Mapping[str, Any], row_format: RowFormat) -> str:
    """Returns the key of a store: the sha256 of everything that its features depend on."""
    content = {
        "schema": SCHEMA,
        "kind": kind,
        "dtype": row_format.dtype,
        "shape": [row_format.patches, row_format.width],
        "parts": dict(parts),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


# Writing --------------------------------------------------------------------------------------------------------------------


class _Shard(NamedTuple):
    """Images `first .. end - 1`, whose rows begin at `row`."""

    number: int
    first: int
    end: int
    row: int
    rows: int

    @property
    def name(self) -> str:
        return f"shards/{self.number:05d}.npy"


def plan_shards(crops: Int[np.ndarray, " images"], row_bytes: int, shard_bytes: int = SHARD_BYTES) -> list[tuple[int, int]]:
    """Returns the first and end image of each shard: as many images as fit; no image is split over two shards."""
    limit = max(1, shard_bytes // row_bytes)
    total, slack = int(crops.sum()), int(crops.max(initial=1)) - 1  # a shard may end that much early
    if total > MAX_SHARDS * max(limit - slack, 1):
        limit = -(-total // MAX_SHARDS) + slack
    ends = np.cumsum(crops)
    spans, first, before = [], 0, 0
    while first < len(crops):
        end = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        spans.append((first, end))
        first, before = end, int(ends[end - 1])
    return spans


def write_store(
    out: Path,
    row_format: RowFormat,
    origin: StoreOrigin,
    selection: ImageSelection,
    supply: Supply,
    max_skipped: float = 0.01,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes a store; returns `store.json`. A store that already holds the same features is left unchanged.

    Args:
        out: the folder; unfinished work is kept in `OUT.preparing`.
        row_format: shape and dtype of a row.
        origin: what the features depend on.
        selection: the images.
        supply: yields their features.
        max_skipped: share of the images that may lack features.
        shard_bytes: size of a shard in bytes; larger where there would be more than 256 shards.

    Raises:
        UsageError: `out` holds something else.
        StorageError: there is not enough space, or writing fails.
        SkipLimitError: too many images have no features.
        NumericsError: features are not finite, or too large for the dtype.
        Stopped: a signal arrived; finished shards are kept.
    """
    identity = {"key": key_of(origin.kind, origin.parts, row_format), "pictures": selection.fingerprint()}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _same_store(out, identity)
    work = out.with_name(out.name + UNFINISHED)
    writer = _Writer(out, work, row_format, origin, selection, supply, max_skipped, shard_bytes)
    writer.check_space()
    try:
        with Lock(work / "lock.json"), watch_signals() as stopped:
            summary = writer.run(identity, stopped)
        shutil.rmtree(work, ignore_errors=True)
        return summary
    except OSError as error:
        raise StorageError(
            f"{error.filename or work}: {error.strerror or error}.", "Free space or choose another folder."
        ) from error


def _same_store(out: Path, identity: Mapping[str, str]) -> dict[str, Any]:
    try:
        store = FeatureStore(out)
    except DataError as error:
        raise UsageError(f"{out} exists already and is not a complete store: {error.message}", "Choose another --out.") from error
    if {"key": store.key, "pictures": store.summary["pictures"]} != dict(identity):
        raise UsageError(
            f"{out} is a feature store of other images or of another encoder; nothing is overwritten.", "Choose another --out."
        )
    logger.info("%s holds these features already", out)
    return dict(store.summary)


class _Writer:
    """Writes one store."""

    def __init__(
        self,
        out: Path,
        work: Path,
        row_format: RowFormat,
        origin: StoreOrigin,
        selection: ImageSelection,
        supply: Supply,
        max_skipped: float,
        shard_bytes: int,
    ) -> None:
        self.out, self.work, self.folder = out, work, work / "store"
        self.row_format, self.origin, self.selection, self.supply, self.max_skipped = (
            row_format,
            origin,
            selection,
            supply,
            max_skipped,
        )
        self.first_row = np.concatenate([[0], np.cumsum(selection.crops)]).astype(np.int64)
        self.shards = [
            _Shard(number, first, end, int(self.first_row[first]), int(self.first_row[end] - self.first_row[first]))
            for number, (first, end) in enumerate(plan_shards(selection.crops, row_format.row_bytes, shard_bytes))
        ]

    def check_space(self) -> None:
        """Logs the size that the store will have.

        Raises:
            StorageError: the disk has not that much space.
        """
        rows = int(self.first_row[-1])
        size = rows * self.row_format.row_bytes
        done = sum(file.stat().st_size for file in self.folder.glob("shards/*.npy"))
        parent = next(folder for folder in (self.out, *self.out.resolve().parents) if folder.is_dir())
        free = shutil.disk_usage(parent).free
        crops = f" ({rows:,} crops)" if rows != len(self.selection) else ""
        logger.info(
            "%s: %s images%s x %d tokens x %d in %s: %s; %s free",
            self.out,
            f"{len(self.selection):,}",
            crops,
            self.row_format.patches,
            self.row_format.width,
            self.row_format.dtype,
            format_bytes(size),
            format_bytes(free),
        )
        if free < (size - done) * SPARE:
            raise StorageError(
                f"{self.out}: the store takes {format_bytes(size)}, {format_bytes(free)} are free.",
                "Free space, choose another --out, or a smaller --dtype (int8 takes a quarter of fp32).",
            )

    def run(self, identity: Mapping[str, str], stopped: Callable[[], str]) -> dict[str, Any]:
        self._begin(identity)
        entries = [self._finished_shard(shard) for shard in self.shards]
        done = next((number for number, entry in enumerate(entries) if entry is None), len(entries))
        lost = [MissingImage(*line) for entry in entries[:done] if entry for line in entry["lost"]]
        first = self.shards[done].first if done < len(self.shards) else len(self.selection)
        with progress("storing features", len(self.selection), first) as bar:
            for shard in self.shards[done:]:
                entries[shard.number] = entry = self._write(shard, bar, stopped)
                lost += [MissingImage(*line) for line in entry["lost"]]
                self._check_skip_limit(lost)
        summary = self._finish(identity, [entry for entry in entries if entry is not None], lost)
        publish_dir(self.folder, self.out)
        return summary

    def _begin(self, identity: Mapping[str, str]) -> None:
        """Makes the folders.

        Raises:
            UsageError: the unfinished work in them belongs to another store.
        """
        plan = {**identity, "shards": [list(shard) for shard in self.shards]}
        stored = self.work / PLAN
        if stored.exists() and read_json(stored) != plan:
            raise UsageError(
                f"{self.work} is the unfinished store of other images or another encoder.",
                "Remove it, or choose another --out.",
            )
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        for folder in (self.work, self.folder, self.folder / "shards"):
            sweep(folder)
        write_json(stored, plan)

    def _finished_shard(self, shard: _Shard) -> dict[str, Any] | None:
        """Returns the record of a shard that an earlier, interrupted job finished; None where it did not."""
        path, file = self.folder / shard.name, self._shard_entry_path(shard)
        if not file.exists() or not path.exists():
            return None
        entry = read_json(file)
        return entry if path.stat().st_size == entry["bytes"] else None

    def _shard_entry_path(self, shard: _Shard) -> Path:
        return self.work / f"shard-{shard.number:05d}.json"

    def _write(self, shard: _Shard, bar: Bar, stopped: Callable[[], str]) -> dict[str, Any]:
        """Writes one shard and its record."""
        path = self.folder / shard.name
        lost: list[MissingImage] = []
        rows = 0
        with atomic_file(path, "wb") as file:
            out = _Hashed(file)
            _write_header(out, self.row_format, shard.rows)
            for features, failed in self.supply.features(shard.first, shard.end):
                packed = self._packed(features, shard.first, failed, shard.row + rows)
                out.write(packed.tobytes())
                rows += len(features)
                lost.extend(failed)
                fault_injection.hit("features.batch")
                bar.step(self._images_before(shard.row + rows) - self._images_before(shard.row + rows - len(features)))
                if signal := stopped():
                    raise Stopped(
                        f"{signal} arrived; the work so far is in {self.work}.", "Run the same command again to continue."
                    )
            assert rows == shard.rows, f"{rows} rows supplied, {shard.rows} expected"
        fault_injection.hit("features.shard_written")
        entry = {"sha256": out.hash.hexdigest(), "bytes": out.bytes, "lost": [list(line) for line in lost]}
        write_json(self._shard_entry_path(shard), entry)
        return entry

    def _packed(self, features: np.ndarray, first: int, failed: Sequence[MissingImage], row: int) -> np.ndarray:
        """Converts features to stored rows; the rows of missing images become zeros."""
        if failed:
            features = np.array(features, dtype=np.float32)
            for lost in failed:
                begin, end = self.first_row[lost.index] - row, self.first_row[lost.index + 1] - row
                features[max(begin, 0) : max(end, 0)] = 0
        try:
            return self.row_format.pack(features)
        except NumericsError as error:
            where = f"{self._images_before(row)} to {self._images_before(row + len(features))}"
            raise NumericsError(f"images {where} of {len(self.selection)}: {error.message}", error.remedy) from error

    def _images_before(self, row: int) -> int:
        return int(np.searchsorted(self.first_row, row, side="right")) - 1

    def _check_skip_limit(self, lost: Sequence[MissingImage]) -> None:
        example = f"; for example: {lost[0].detail}" if lost else ""
        what = f"images have no features ({reasons_text(Counter(item.reason for item in lost))}){example}"
        kept = f" Finished shards are kept in {self.work}." if any(self.work.glob("shard-*.json")) else ""
        remedy = f"Repair the data set, or allow more with --max-skipped.{kept}"
        check_skip_limit(len(lost), len(self.selection), self.max_skipped, what, remedy)

    def _finish(
        self, identity: Mapping[str, str], entries: Sequence[dict[str, Any]], lost: Sequence[MissingImage]
    ) -> dict[str, Any]:
        """Writes the index, the list of skipped images, and `store.json` last."""
        kept = np.setdiff1d(np.arange(len(self.selection)), [item.index for item in lost])
        index = sorted_index(self.selection.sha256[kept], self.first_row[kept], self.selection.crops[kept])
        with atomic_file(self.folder / INDEX, "wb") as file:
            np.save(file, index, allow_pickle=False)
        with atomic_file(self.folder / SKIPPED) as file:
            for item in lost:
                sha256 = self.selection.sha256[item.index].tobytes().hex()
                file.write(json.dumps({"sha256": sha256, "reason": item.reason, "detail": item.detail}) + "\n")
        skipped = Counter(item.reason for item in lost)
        path = self.folder / INDEX
        summary: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.origin.kind,
            "key": identity["key"],
            "parts": dict(self.origin.parts),
            "told": dict(self.origin.description),
            "dtype": self.row_format.dtype,
            "shape": [self.row_format.patches, self.row_format.width],
            "grid": list(self.origin.grid),
            "sources": list(self.selection.sources),
            "pictures": identity["pictures"],
            "input": len(self.selection),
            "ok": len(kept),
            "skipped": dict(sorted(skipped.items())),
            "rows": int(self.first_row[-1]),
            "bytes": sum(entry["bytes"] for entry in entries),
            "index": {"file": INDEX, "bytes": path.stat().st_size, "sha256": sha256_file(path)},
            "shards": [
                {"file": shard.name, "first": shard.row, "rows": shard.rows, "bytes": entry["bytes"], "sha256": entry["sha256"]}
                for shard, entry in zip(self.shards, entries, strict=True)
            ],
        }
        write_json(self.folder / STORE, summary)
        return summary


class _Hashed:
    """A file wrapper that hashes and counts the bytes written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.hash.update(data)
        self.bytes += len(data)
        return len(data)


def _write_header(out: _Hashed, row_format: RowFormat, rows: int) -> None:
    base, axes = row_format.array
    header = {"descr": np.lib.format.dtype_to_descr(base), "fortran_order": False, "shape": (rows, *axes)}
    np.lib.format.write_array_header_1_0(out, header)  # pyrefly: ignore

"""Writes a feature store, shard by shard, so that a work of days goes on where a kill left it and gives the same bytes.

What a store will hold is decided before anything is computed: each picture once, in order, with its rows; which shard has which
rows follows from the sizes alone. A shard reaches the disk whole and is noted; the next try begins with the first that is not.
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
from sightline.data.features.store import INDEX, SCHEMA, SKIPPED, STORE, FeatureForm, FeatureStore, bytes_told, sorted_index
from sightline.errors import DataError, NumericsError, SkipLimitError, Stopped, StorageError, UsageError
from sightline.runtime import fault_injection as faults
from sightline.runtime.logs import Bar, logger, progress
from sightline.runtime.signals import watch_signals
from sightline.runtime.storage import Lock, atomic_file, publish_dir, read_json, sha256_file, sweep, write_json
from sightline.types import ImageInfo

PLAN = "plan.json"
SHARD_BYTES = 256 << 20
MAX_SHARDS = 256  # each is an open file while it is mapped
SPARE = 1.02  # of the disk: index, notes, and what file systems take


# What is wanted -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """The pictures that a store is to hold, each once.

    Attributes:
        sha256: hash of each.
        crops: rows of each.
        dataset, record, image: where each was met first: number of the data set, of the record in it, of the image in that.
        sources: fingerprint and splits of the data sets, for `store.json`.
    """

    sha256: UInt8[np.ndarray, "pictures 32"]
    crops: Int[np.ndarray, " pictures"]
    dataset: Int[np.ndarray, " pictures"]
    record: Int[np.ndarray, " pictures"]
    image: Int[np.ndarray, " pictures"]
    sources: tuple[dict[str, Any], ...] = ()

    def __len__(self) -> int:
        return len(self.crops)

    def chosen(self, order: Int[np.ndarray, " some"]) -> "Wanted":
        """Some of the pictures, in the given order."""
        crops, dataset, record, image = (column[order] for column in (self.crops, self.dataset, self.record, self.image))
        return Wanted(self.sha256[order], crops, dataset, record, image, self.sources)

    def fingerprint(self) -> str:
        """Hash over pictures and rows, in order."""
        return hashlib.sha256(self.sha256.tobytes() + self.crops.astype("<i8").tobytes()).hexdigest()


def gather(datasets: Sequence[Dataset], splits: Sequence[str], crops_of: Callable[[ImageInfo], int]) -> Wanted:
    """The pictures of data sets in order of first appearance.

    Args:
        datasets: one or several.
        splits: of each; all of them when empty. A data set need not have every one, but one of them must.
        crops_of: rows of a picture.

    Raises:
        DataError: a split exists nowhere, or there is no picture.
    """
    for split in splits:
        if not any(split in dataset.splits for dataset in datasets):
            datasets[0].split_indices(split)  # says which there are
    digests, table = bytearray(), array("q")
    sources = []
    for number, dataset in enumerate(datasets):
        own = [split for split in splits if split in dataset.splits]
        if splits and not own:
            continue
        sources.append({"fingerprint": dataset.fingerprint, "name": dataset.path.resolve().name, "splits": own or None})
        indices = np.concatenate([dataset.split_indices(split) for split in own]) if own else np.arange(len(dataset))
        with progress("looking up pictures", len(indices)) as bar:
            for index in indices.tolist():
                for k, info in enumerate(dataset.record(index).image_info):
                    digests += _digest(info, dataset, index)
                    table.extend((crops_of(info), number, index, k))
                bar.step()
    if not table:
        raise DataError(f"{datasets[0].path} has no pictures in {', '.join(splits) or 'any split'}.")
    sha256 = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32)
    columns = np.frombuffer(table, dtype=np.int64).reshape(-1, 4)
    _, first = np.unique(sha256.view("V32")[:, 0], return_index=True)
    wanted = Wanted(sha256, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], tuple(sources))
    return wanted.chosen(np.sort(first))


def _digest(info: ImageInfo, dataset: Dataset, index: int) -> bytes:
    try:
        digest = bytes.fromhex(info.sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise DataError(f"{dataset.path}: record {index} has no sha256 of its images.", "Prepare the data set again.")
    return digest


# What is given --------------------------------------------------------------------------------------------------------------


class MissingImage(NamedTuple):
    """A picture that has no features: its number among those wanted, and why."""

    picture: int
    reason: str
    detail: str


class Supply(Protocol):
    """Where features come from."""

    def features(self, first: int, end: int) -> Iterator[tuple[Float[np.ndarray, "N P E"], Sequence[MissingImage]]]:
        """Features of the pictures `first .. end - 1`, a stretch at a time, in order and with a row for every crop.

        A picture that is lost still has its rows; what they hold does not matter. Ranges are asked for in ascending order and
        without gaps.
        """
        ...


@dataclass(frozen=True)
class StoreNote:
    """What `store.json` says beside counts and files.

    Attributes:
        kind: `encoder` or `external`.
        parts: everything that the numbers depend on, by name; the key is their hash.
        told: the same for people, and anything else worth knowing.
        grid: rows and columns of the tokens of a crop.
    """

    kind: str
    parts: Mapping[str, Any]
    grid: tuple[int, int]
    told: Mapping[str, Any] = field(default_factory=dict)


def key_of(kind: str, parts: Mapping[str, Any], form: FeatureForm) -> str:
    """The key of a store: hash of everything that its numbers depend on."""
    content = {"schema": SCHEMA, "kind": kind, "dtype": form.number, "shape": [form.patches, form.width], "parts": dict(parts)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


# Writing --------------------------------------------------------------------------------------------------------------------


class _Shard(NamedTuple):
    """Pictures `first .. end - 1`, whose rows begin at `row`."""

    number: int
    first: int
    end: int
    row: int
    rows: int

    @property
    def name(self) -> str:
        return f"shards/{self.number:05d}.npy"


def plan_shards(crops: Int[np.ndarray, " pictures"], row_bytes: int, shard_bytes: int = SHARD_BYTES) -> list[tuple[int, int]]:
    """First and end picture of each shard: as many pictures as fit, so that no picture lies in two."""
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
    form: FeatureForm,
    note: StoreNote,
    wanted: Wanted,
    supply: Supply,
    max_lost: float = 0.01,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Makes a store; returns `store.json`. One that is there already and holds the same is left as it is.

    Args:
        out: the folder; the work goes on in `OUT.preparing`.
        form: of a row.
        note: what the numbers depend on.
        wanted: the pictures.
        supply: gives their features.
        max_lost: share of the pictures that may be lost.
        shard_bytes: size of a shard; larger where there would be more than 256.

    Raises:
        UsageError: `out` holds something else.
        StorageError: there is not enough space, or the disk refuses.
        BudgetError: too many pictures are lost.
        NumericsError: features are not finite, or do not fit the number type.
        Stopped: a signal arrived; what was done is kept.
    """
    identity = {"key": key_of(note.kind, note.parts, form), "pictures": wanted.fingerprint()}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _same_store(out, identity)
    work = out.with_name(out.name + UNFINISHED)
    writer = _Writer(out, work, form, note, wanted, supply, max_lost, shard_bytes)
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
        raise UsageError(f"{out} exists already and is not a whole store: {error.message}", "Choose another --out.") from error
    if {"key": store.key, "pictures": store.summary["pictures"]} != dict(identity):
        raise UsageError(f"{out} is a feature store of something else; nothing is overwritten.", "Choose another --out.")
    logger.info("%s holds these features already", out)
    return dict(store.summary)


class _Writer:
    """One try at a store."""

    def __init__(
        self,
        out: Path,
        work: Path,
        form: FeatureForm,
        note: StoreNote,
        wanted: Wanted,
        supply: Supply,
        max_lost: float,
        shard_bytes: int,
    ) -> None:
        self.out, self.work, self.folder = out, work, work / "store"
        self.form, self.note, self.wanted, self.supply, self.max_lost = form, note, wanted, supply, max_lost
        self.first_row = np.concatenate([[0], np.cumsum(wanted.crops)]).astype(np.int64)
        self.shards = [
            _Shard(number, first, end, int(self.first_row[first]), int(self.first_row[end] - self.first_row[first]))
            for number, (first, end) in enumerate(plan_shards(wanted.crops, form.row_bytes, shard_bytes))
        ]

    def check_space(self) -> None:
        """Says how large the store becomes, and refuses to begin what cannot end."""
        rows = int(self.first_row[-1])
        size = rows * self.form.row_bytes
        done = sum(file.stat().st_size for file in self.folder.glob("shards/*.npy"))
        parent = next(folder for folder in (self.out, *self.out.resolve().parents) if folder.is_dir())
        free = shutil.disk_usage(parent).free
        crops = f" ({rows:,} crops)" if rows != len(self.wanted) else ""
        logger.info(
            "%s: %s pictures%s x %d tokens x %d in %s: %s; %s free",
            self.out,
            f"{len(self.wanted):,}",
            crops,
            self.form.patches,
            self.form.width,
            self.form.number,
            bytes_told(size),
            bytes_told(free),
        )
        if free < (size - done) * SPARE:
            raise StorageError(
                f"{self.out}: the store takes {bytes_told(size)}, {bytes_told(free)} are free.",
                "Free space, choose another --out, or a smaller --dtype (int8 takes a quarter of fp32).",
            )

    def run(self, identity: Mapping[str, str], stopped: Callable[[], str]) -> dict[str, Any]:
        self._begin(identity)
        notes = [self._noted(shard) for shard in self.shards]
        done = next((number for number, noted in enumerate(notes) if noted is None), len(notes))
        lost = [MissingImage(*line) for noted in notes[:done] if noted for line in noted["lost"]]
        first = self.shards[done].first if done < len(self.shards) else len(self.wanted)
        with progress("storing features", len(self.wanted), first) as bar:
            for shard in self.shards[done:]:
                notes[shard.number] = noted = self._write(shard, bar, stopped)
                lost += [MissingImage(*line) for line in noted["lost"]]
                self._check_budget(lost)
        summary = self._finish(identity, [noted for noted in notes if noted is not None], lost)
        publish_dir(self.folder, self.out)
        return summary

    def _begin(self, identity: Mapping[str, str]) -> None:
        """Makes the folders; refuses to go on with the unfinished store of something else."""
        plan = {**identity, "shards": [list(shard) for shard in self.shards]}
        stored = self.work / PLAN
        if stored.exists() and read_json(stored) != plan:
            raise UsageError(
                f"{self.work} is the unfinished store of other pictures or another encoder.",
                "Remove it, or choose another --out.",
            )
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        for folder in (self.work, self.folder, self.folder / "shards"):
            sweep(folder)
        write_json(stored, plan)

    def _noted(self, shard: _Shard) -> dict[str, Any] | None:
        """The note of a shard that an earlier try has finished."""
        path, note = self.folder / shard.name, self._note_path(shard)
        if not note.exists() or not path.exists():
            return None
        noted = read_json(note)
        return noted if path.stat().st_size == noted["bytes"] else None

    def _note_path(self, shard: _Shard) -> Path:
        return self.work / f"shard-{shard.number:05d}.json"

    def _write(self, shard: _Shard, bar: Bar, stopped: Callable[[], str]) -> dict[str, Any]:
        """Writes one shard and notes it."""
        path = self.folder / shard.name
        lost: list[MissingImage] = []
        rows = 0
        with atomic_file(path, "wb") as file:
            out = _Hashed(file)
            _write_header(out, self.form, shard.rows)
            for features, failed in self.supply.features(shard.first, shard.end):
                packed = self._packed(features, shard.first, failed, shard.row + rows)
                out.write(packed.tobytes())
                rows += len(features)
                lost.extend(failed)
                faults.hit("features.batch")
                bar.step(self._pictures_before(shard.row + rows) - self._pictures_before(shard.row + rows - len(features)))
                if signal := stopped():
                    raise Stopped(f"{signal} arrived; the work so far is in {self.work}.", "The same command goes on from here.")
            assert rows == shard.rows, f"{rows} rows given, {shard.rows} wanted"
        faults.hit("features.shard_written")
        noted = {"sha256": out.hash.hexdigest(), "bytes": out.bytes, "lost": [list(line) for line in lost]}
        write_json(self._note_path(shard), noted)
        return noted

    def _packed(self, features: np.ndarray, first: int, failed: Sequence[MissingImage], row: int) -> np.ndarray:
        """Rows as they are stored; those of lost pictures are zeros."""
        if failed:
            features = np.array(features, dtype=np.float32)
            for lost in failed:
                begin, end = self.first_row[lost.picture] - row, self.first_row[lost.picture + 1] - row
                features[max(begin, 0) : max(end, 0)] = 0
        try:
            return self.form.pack(features)
        except NumericsError as error:
            where = f"{self._pictures_before(row)} to {self._pictures_before(row + len(features))}"
            raise NumericsError(f"pictures {where} of {len(self.wanted)}: {error.message}", error.remedy) from error

    def _pictures_before(self, row: int) -> int:
        return int(np.searchsorted(self.first_row, row, side="right")) - 1

    def _check_budget(self, lost: Sequence[MissingImage]) -> None:
        if len(lost) > self.max_lost * len(self.wanted):
            reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(item.reason for item in lost).most_common(5))
            raise SkipLimitError(
                f"{len(lost)} of {len(self.wanted)} pictures have no features ({reasons}), --max-skipped allows a share of "
                f"{self.max_lost:g}; for example: {lost[0].detail}.",
                f"Repair the data set, or allow more. What was done is kept in {self.work}.",
            )

    def _finish(self, identity: Mapping[str, str], notes: Sequence[dict[str, Any]], lost: Sequence[MissingImage]) -> dict[str, Any]:
        """Writes index, list of skips, and last `store.json`."""
        kept = np.setdiff1d(np.arange(len(self.wanted)), [item.picture for item in lost])
        index = sorted_index(self.wanted.sha256[kept], self.first_row[kept], self.wanted.crops[kept])
        with atomic_file(self.folder / INDEX, "wb") as file:
            np.save(file, index, allow_pickle=False)
        with atomic_file(self.folder / SKIPPED) as file:
            for item in lost:
                sha256 = self.wanted.sha256[item.picture].tobytes().hex()
                file.write(json.dumps({"sha256": sha256, "reason": item.reason, "detail": item.detail}) + "\n")
        skipped = Counter(item.reason for item in lost)
        path = self.folder / INDEX
        summary: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": self.note.kind,
            "key": identity["key"],
            "parts": dict(self.note.parts),
            "told": dict(self.note.told),
            "dtype": self.form.number,
            "shape": [self.form.patches, self.form.width],
            "grid": list(self.note.grid),
            "sources": list(self.wanted.sources),
            "pictures": identity["pictures"],
            "input": len(self.wanted),
            "ok": len(kept),
            "skipped": dict(sorted(skipped.items())),
            "rows": int(self.first_row[-1]),
            "bytes": sum(noted["bytes"] for noted in notes),
            "index": {"file": INDEX, "bytes": path.stat().st_size, "sha256": sha256_file(path)},
            "shards": [
                {"file": shard.name, "first": shard.row, "rows": shard.rows, "bytes": noted["bytes"], "sha256": noted["sha256"]}
                for shard, noted in zip(self.shards, notes, strict=True)
            ],
        }
        write_json(self.folder / STORE, summary)
        return summary


class _Hashed:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.hash.update(data)
        self.bytes += len(data)
        return len(data)


def _write_header(out: _Hashed, form: FeatureForm, rows: int) -> None:
    base, axes = form.array
    header = {"descr": np.lib.format.dtype_to_descr(base), "fortran_order": False, "shape": (rows, *axes)}
    np.lib.format.write_array_header_1_0(out, header)  # pyrefly: ignore

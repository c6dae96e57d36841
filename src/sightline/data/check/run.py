"""Reads every record of dataset folders again, decodes every image completely, and counts what is found.

`input = ok + sum(skipped)`: a record is skipped for the first thing that makes it useless. What is merely odd (tiny images,
strips, images of one colour) is counted beside that and stays ok, unless the limits on images are set.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.check.duplicates import Duplicates, FolderSplit, Occurrences, find_duplicates, leak_key, text_key
from sightline.data.check.examine import Examiner, ExamineTask, ImageTable, examine_all, short_key
from sightline.data.check.figures import ASPECTS, SIDES, Figures, RecordFigures, Spread, spread
from sightline.data.check.perceptual_hash import NEAR_BITS
from sightline.data.dataset import INDEX, Dataset
from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
from sightline.data.images.reader import ImageLocation
from sightline.errors import DataError, RecordError
from sightline.runtime.logs import progress
from sightline.types import Record

TINY = 16  # pixels of the shorter side
STRIP = 20.0  # longer side over shorter side
LISTED_PER_REASON = 25
DUPLICATE_ID = "duplicate_id"


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How to check.

    Attributes:
        workers: child processes that decode; 0 decodes here.
        check_hash: compare every file with the hash that was stored.
        min_side, max_aspect: images beyond are bad; None counts those beyond 16 pixels and 20 to 1 as odd.
        near_bits: how many of 64 bits of near images may differ; None looks for equal files alone.
        image_seconds, image_memory: limits of a child on one image.
    """

    workers: int = 1
    check_hash: bool = False
    min_side: int | None = None
    max_aspect: float | None = None
    near_bits: int | None = NEAR_BITS
    image_seconds: float = 60.0
    image_memory: int = 2 << 30

    @property
    def limits(self) -> ImageLimits:
        """What an image may claim."""
        side = DEFAULT_LIMITS.min_side if self.min_side is None else self.min_side
        aspect = DEFAULT_LIMITS.max_aspect if self.max_aspect is None else self.max_aspect
        return DEFAULT_LIMITS.model_copy(update={"min_side": side, "max_aspect": aspect})


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a record, or odd about an image.

    Attributes:
        location: where; the image's number is that of the first one at fault.
        id: of the record; empty when it cannot be read.
        has_image: whether the fault is an image's.
    """

    location: ImageLocation
    id: str
    split: str
    reason: str
    detail: str
    has_image: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of the list of faults; `image` is null where no image is at fault."""
        where = {"id": self.id, "split": self.split, "folder": self.location.folder, "record": self.location.record}
        return {**where, "image": self.location.image if self.has_image else None, "reason": self.reason, "detail": self.detail}


@dataclass
class Listed:
    """Counts faults by reason and keeps the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Counts a fault."""
        self.counts[fault.reason] += 1
        if self.counts[fault.reason] <= LISTED_PER_REASON:
            self.first.append(fault)

    @property
    def left_out(self) -> int:
        """How many are counted and not kept."""
        return self.counts.total() - len(self.first)


@dataclass(frozen=True)
class FolderFigures:
    """A folder that was checked; field names are JSON keys.

    Attributes:
        input, ok, skipped: its records.
        prepared: the counts of `data prepare`, where they are known.
    """

    path: str
    input: int
    ok: int
    skipped: dict[str, int]
    splits: dict[str, int]
    fingerprint: str
    licence: str
    prepared: dict[str, Any]

    @classmethod
    def of(cls, dataset: Dataset, bad: Counter[str]) -> "FolderFigures":
        """Returns the figures of a folder with `num_bad` bad records."""
        summary = dataset.summary
        return cls(
            path=str(dataset.path),
            input=len(dataset),
            ok=len(dataset) - bad.total(),
            skipped=dict(sorted(bad.items())),
            splits=dict(dataset.splits),
            fingerprint=dataset.fingerprint,
            licence=summary.get("licence", ""),
            prepared={name: summary[name] for name in ("input", "ok", "skipped") if name in summary},
        )


@dataclass(frozen=True)
class OtherFolder:
    """A folder that others were checked against; field names are JSON keys."""

    path: str
    records: int
    splits: dict[str, int]
    files: int
    unusable: int


@dataclass(frozen=True)
class ImageFigures:
    """Numbers about images; field names are JSON keys, what is None is left out.

    Attributes:
        named: places of images in records.
        files, distinct: files, and different ones by content.
        width, height, aspect, megapixels: of those that can be used.
    """

    named: int
    files: int
    distinct: int
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    megapixels: float | None


@dataclass(frozen=True)
class CheckReport:
    """The outcome of a check.

    Attributes:
        datasets: the folders, first those that were checked, then those they were checked against.
        num_checked: number of the former.
        bad, odd: records that cannot be used, and images to look at.
        bad_by_folder: the former by folder.
        damaged_files: files that are not what was written, where hashes were checked.
        figures: numbers about the records.
        image_table: what was examined.
        duplicates: what stands twice.
        unreadable: folder and number of each record that cannot be read.
    """

    datasets: tuple[Dataset, ...]
    num_checked: int
    options: CheckOptions
    bad: Listed
    odd: Listed
    bad_by_folder: tuple[Counter[str], ...]
    damaged_files: tuple[str, ...]
    figures: Figures
    image_table: ImageTable
    duplicates: Duplicates
    unreadable: frozenset[tuple[int, int]]

    @property
    def input(self) -> int:
        """Records of the folders that were checked."""
        return sum(len(dataset) for dataset in self.datasets[: self.num_checked])

    @property
    def num_bad(self) -> int:
        """Records that cannot be used."""
        return self.bad.counts.total()

    @cached_property
    def folders(self) -> list[FolderFigures]:
        """The folders that were checked."""
        checked = zip(self.datasets[: self.num_checked], self.bad_by_folder, strict=True)
        return [FolderFigures.of(dataset, bad) for dataset, bad in checked]

    @cached_property
    def against(self) -> list[OtherFolder]:
        """The folders that they were checked against."""
        return [self._other(number) for number in range(self.num_checked, len(self.datasets))]

    @cached_property
    def splits(self) -> dict[str, int]:
        """Records of each split, over all folders that were checked."""
        splits: Counter[str] = Counter()
        for dataset in self.datasets[: self.num_checked]:
            splits.update(dataset.splits)
        return dict(splits)

    @cached_property
    def images(self) -> ImageFigures:
        """Numbers about the images of the folders that were checked."""
        table = self.image_table
        own = np.array([location.folder < self.num_checked for location in table.locations], dtype=bool)
        good = own & (table.widths > 0)
        width, height = table.widths[good], table.heights[good]
        return ImageFigures(
            named=sum(dataset.summary["image_places"] for dataset in self.datasets[: self.num_checked]),
            files=int(own.sum()),
            distinct=len(np.unique(table.keys[own])),
            width=spread(width, SIDES),
            height=spread(height, SIDES),
            aspect=spread(width / height, ASPECTS),
            megapixels=float((width * height).mean() / 1e6) if len(width) else None,
        )

    @cached_property
    def records(self) -> RecordFigures:
        """Numbers about the records."""
        return self.figures.summary()

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data: what `--json` prints."""
        return {
            "input": self.input,
            "ok": self.input - self.num_bad,
            "skipped": dict(sorted(self.bad.counts.items())),
            "splits": self.splits,
            "folders": [asdict(folder) for folder in self.folders],
            "against": [asdict(other) for other in self.against],
            "hashes": "checked" if self.options.check_hash else "not checked",
            "damaged_files": list(self.damaged_files),
            "bad": [fault.to_json() for fault in self.bad.first],
            "bad_left_out": self.bad.left_out,
            "odd": dict(sorted(self.odd.counts.items())),
            "odd_images": [fault.to_json() for fault in self.odd.first],
            "odd_left_out": self.odd.left_out,
            "images": {key: value for key, value in asdict(self.images).items() if value is not None},
            "records": self.records.to_json(),
            "duplicates": self.duplicates.to_json(self.name),
        }

    def name(self, location: ImageLocation) -> str:
        """Returns the id of a location's record."""
        return self.datasets[location.folder].record(location.record).id

    def _other(self, number: int) -> OtherFolder:
        own = [row for row, location in enumerate(self.image_table.locations) if location.folder == number]
        dataset, unusable = self.datasets[number], sum(row in self.image_table.failures for row in own)
        return OtherFolder(str(dataset.path), len(dataset), dict(dataset.splits), len(own), unusable)


def check(
    folders: Sequence[Path],
    options: CheckOptions,
    against: Sequence[Path] = (),
    on_fault: Callable[[Fault], None] = lambda fault: None,
) -> CheckReport:
    """Checks dataset folders.

    Args:
        folders: to check.
        options: how.
        against: other folders that should share no image and no text with them (an evaluation set, say).
        on_fault: called with every fault, not only those that are kept.

    Raises:
        DataError: a folder cannot be opened.
    """
    datasets = tuple(Dataset(path) for path in (*folders, *against))
    reading = _Reading(datasets, len(folders))
    examiner = Examiner(datasets, options.limits, options.check_hash)
    image_table = examine_all(examiner, reading.tasks(), options.workers, options.image_seconds, options.image_memory)
    bad, odd = Listed(), Listed()
    by_folder = tuple(Counter[str]() for _ in folders)
    for fault in reading.bad_records(image_table):
        bad.add(fault)
        by_folder[fault.location.folder][fault.reason] += 1
        on_fault(fault)
    for fault in reading.odd_images(image_table):
        odd.add(fault)
        on_fault(fault)
    damaged = (
        tuple(fault for dataset in datasets[: len(folders)] for fault in dataset.damaged_files()) if options.check_hash else ()
    )
    found = {"images": reading.occurrences(image_table), "texts": reading.texts, "records": reading.wholes}
    duplicates = find_duplicates(reading.places, len(folders), image_table, found, options.near_bits)
    return CheckReport(
        datasets, len(folders), options, bad, odd, by_folder, damaged, reading.figures, image_table, duplicates, reading.unreadable
    )


class _Reading:
    """One pass over the records: numbers are gathered on the way, images that are met for the first time are handed out."""

    def __init__(self, datasets: tuple[Dataset, ...], num_checked: int) -> None:
        self.datasets, self.num_checked = datasets, num_checked
        self.places = _places(datasets, num_checked)
        self.figures = Figures()
        self.texts, self.wholes = Occurrences(), Occurrences()
        self._place = {(place.folder, place.split): number for number, place in enumerate(self.places)}
        self._damaged: list[Fault] = []
        self._rows: dict[tuple[int, str], int] = {}
        self._next_row = 0
        # For each image of each record: its place, its location, its row in the table of images.
        self._at, self._locations, self._row_of = array("I"), array("Q"), array("Q")

    def tasks(self) -> Iterator[ExamineTask]:
        """Yields images to examine."""
        with progress("checking", sum(map(len, self.datasets))) as bar:
            for folder, dataset in enumerate(self.datasets):
                names = list(dataset.splits)
                ids: set[int] = set()
                for index in range(len(dataset)):
                    code = int(dataset.index[index]["split"])
                    split = names[code] if code < len(names) else ""
                    record = self._read(folder, dataset, index, split, ids)
                    if record is not None:
                        yield from self._image_tasks(folder, dataset, index, split, record)
                    bar.step(1, f"{self._next_row} images")

    def _read(self, folder: int, dataset: Dataset, index: int, split: str, ids: set[int]) -> Record | None:
        location = ImageLocation(folder, index, 0)
        try:
            record = dataset.record(index)
        except DataError as error:
            reason = error.__cause__.reason if isinstance(error.__cause__, RecordError) else "record_damaged"
            self._damaged.append(Fault(location, "", split, reason, error.message))
            return None
        if record.split != split:
            detail = f"{INDEX} says split {split!r}, the record says {record.split!r}"
            self._damaged.append(Fault(location, record.id, record.split, "record_damaged", detail))
            return None
        key = short_key(record.id)
        if key in ids:
            self._damaged.append(Fault(location, record.id, split, DUPLICATE_ID, f"id {record.id!r} stands before already"))
            return None
        ids.add(key)
        if folder < self.num_checked:
            self.figures.add(record)
        place = self._place[folder, split]
        self.texts.add(leak_key(record), place, location)
        self.wholes.add(short_key("\0".join((str(text_key(record)), *record.image_keys))), place, location)
        return record

    def _image_tasks(self, folder: int, dataset: Dataset, index: int, split: str, record: Record) -> Iterator[ExamineTask]:
        needed = Record("", images=record.images, image_info=record.image_info)
        for k, name in enumerate(record.images):
            location = ImageLocation(folder, index, k)
            row = None if dataset.is_sharded else self._rows.get((folder, name))
            is_new = row is None
            if row is None:
                row = self._next_row
                self._next_row += 1
                if not dataset.is_sharded:  # in shards every image of every record is a file of its own
                    self._rows[folder, name] = row
            self._at.append(self._place[folder, split])
            self._locations.extend(location)
            self._row_of.append(row)
            if is_new:
                yield ExamineTask(location, needed)

    @property
    def unreadable(self) -> frozenset[tuple[int, int]]:
        """Records that cannot be read; those with a repeated id or a damaged image are trained on or skipped at their step."""
        return frozenset((fault.location.folder, fault.location.record) for fault in self._damaged if fault.reason != DUPLICATE_ID)

    def occurrences(self, image_table: ImageTable) -> Occurrences:
        """Returns the locations of each image, by its content."""
        keys = image_table.keys[np.asarray(self._row_of, dtype=np.int64)]
        return Occurrences(array("Q", keys.tobytes()), self._at, self._locations)

    def bad_records(self, image_table: ImageTable) -> Iterator[Fault]:
        """Yields every record of the checked folders that cannot be used, in order, with the first reason."""
        damaged = {(fault.location.folder, fault.location.record): fault for fault in self._damaged}
        for number in np.flatnonzero(np.isin(np.asarray(self._row_of), list(image_table.failures))) if image_table.failures else ():
            location = ImageLocation(*self._locations[3 * number : 3 * number + 3])
            if (location.folder, location.record) not in damaged:
                failure = image_table.failures[self._row_of[number]]
                record = self.datasets[location.folder].record(location.record)
                damaged[location.folder, location.record] = Fault(
                    location, record.id, record.split, failure.reason, failure.detail, True
                )
        for place in sorted(damaged):
            if place[0] < self.num_checked:
                yield damaged[place]

    def odd_images(self, image_table: ImageTable) -> Iterator[Fault]:
        """Yields every image of the checked folders that should be looked at."""
        widths, heights = image_table.widths, image_table.heights
        short, long = np.minimum(widths, heights), np.maximum(widths, heights)
        kinds = {
            "image_tiny": (short < TINY, f"the shorter side has less than {TINY} pixels"),
            "image_strip": (long > STRIP * short, f"the sides differ by more than a factor of {STRIP:g}"),
            "image_flat": (image_table.is_flat, "it is of one colour"),
        }
        for row in np.flatnonzero((widths > 0) & np.any([is_odd for is_odd, _ in kinds.values()], axis=0)).tolist():
            location = image_table.locations[row]
            if location.folder >= self.num_checked:
                continue
            record = self.datasets[location.folder].record(location.record)
            for reason, (is_odd, why) in kinds.items():
                if is_odd[row]:
                    detail = f"{widths[row]} x {heights[row]} pixels: {why}"
                    yield Fault(location, record.id, record.split, reason, detail, True)


def _places(datasets: Sequence[Dataset], num_checked: int) -> tuple[FolderSplit, ...]:
    """Returns the splits of all folders; their names say the folder where there is more than one."""
    short = [dataset.path.resolve().name for dataset in datasets]
    names = [name if short.count(name) == 1 else str(dataset.path) for name, dataset in zip(short, datasets, strict=True)]
    plain = num_checked == 1
    return tuple(
        FolderSplit(number, split, split if plain and number == 0 else f"{names[number]}:{split}")
        for number, dataset in enumerate(datasets)
        for split in dataset.splits
    )

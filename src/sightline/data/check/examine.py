"""Decodes every picture of dataset folders in child processes, and keeps what each looks like.

A picture that several records name is decoded once. What comes out is a table: size, hash, thumbnail, or why there is none.
"""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64

from sightline.data.check.perceptual_hash import THUMBNAIL, look
from sightline.data.dataset import Dataset
from sightline.data.images.opener import ImageLimits, open_image
from sightline.errors import DataError, RecordError
from sightline.runtime.workers import GuardedPool, TaskFailure
from sightline.types import ImageInfo, Record


class ImagePosition(NamedTuple):
    """Where a picture stands: number of the folder, of the record in it, and of the picture in the record."""

    folder: int
    record: int
    image: int


class ExamineTask(NamedTuple):
    """A picture to examine. The record's names travel along, so that a child need not read the record."""

    spot: ImagePosition
    names: tuple[str, ...]
    info: ImageInfo | None


class ExaminedImage(NamedTuple):
    """What a child found: sha256 of the file where it was asked for, size as shown, hash and thumbnail."""

    sha256: str
    width: int
    height: int
    hash: int
    thumbnail: bytes
    is_flat: bool


@dataclass(frozen=True)
class Examiner:
    """Examines one picture; goes to the children.

    Attributes:
        folders: the dataset folders, by number.
        limits: what a picture may claim.
        hashes: compare the file with the hash that was stored.
    """

    folders: tuple[Path, ...]
    limits: ImageLimits
    hashes: bool

    def __call__(self, task: ExamineTask) -> ExaminedImage:
        """Reads, decodes and shrinks a picture.

        Raises:
            RecordError: the reasons of `open_image`; `hash_mismatch`, the file is not what was stored; `image_changed`, its size
                is not the one that was stored.
        """
        data = image_file(self.folders[task.spot.folder], task.names, task.spot.image)
        sha256 = hashlib.sha256(data).hexdigest() if self.hashes or task.info is None else ""
        if self.hashes and task.info is not None and sha256 != task.info.sha256:
            raise RecordError("hash_mismatch", f"{task.names[task.spot.image]} is not the file that was stored")
        picture = open_image(data, self.limits)
        if task.info is not None and picture.size != (task.info.width, task.info.height):
            known = f"{task.info.width} x {task.info.height}"
            raise RecordError("image_changed", f"{picture.width} x {picture.height} pixels, {known} when it was stored")
        return ExaminedImage(sha256, *picture.size, *look(picture))


def image_file(folder: Path, names: tuple[str, ...], k: int) -> bytes:
    """The file of a record's picture number `k`.

    Raises:
        RecordError: reason `image_missing`.
    """
    try:
        return _opened(folder).image_bytes(Record("", images=names), k)
    except DataError as error:
        raise RecordError("image_missing", error.message) from error


@lru_cache(maxsize=8)
def _opened(folder: Path) -> Dataset:
    return Dataset(folder)


@dataclass
class ImageTable:
    """The table of examined pictures, in the order in which they were first named.

    Attributes:
        spots: where each stands first.
        failures: why a picture cannot be used, by row.
    """

    spots: list[ImagePosition] = field(default_factory=list)
    failures: dict[int, TaskFailure] = field(default_factory=dict)
    _keys: array = field(default_factory=lambda: array("Q"))
    _sizes: array = field(default_factory=lambda: array("I"))
    _hashes: array = field(default_factory=lambda: array("Q"))
    _flat: array = field(default_factory=lambda: array("B"))
    _thumbnails: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.spots)

    @property
    def keys(self) -> UInt64[np.ndarray, " n"]:
        """64 bits of each file's sha256: equal for equal files, and for two of a million others once in 10^7 sets."""
        return np.asarray(self._keys, dtype=np.uint64)

    @property
    def widths(self) -> Int[np.ndarray, " n"]:
        """Width of each picture as shown; 0 where it cannot be used."""
        return np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2)[:, 0]

    @property
    def heights(self) -> Int[np.ndarray, " n"]:
        return np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2)[:, 1]

    @property
    def hashes(self) -> UInt64[np.ndarray, " n"]:
        return np.asarray(self._hashes, dtype=np.uint64)

    @property
    def is_flat(self) -> Bool[np.ndarray, " n"]:
        """Pictures of one colour; those that cannot be used are counted as flat, so that they are compared with none."""
        return np.asarray(self._flat, dtype=bool)

    @property
    def thumbnails(self) -> UInt8[np.ndarray, "n 768"]:
        return np.frombuffer(self._thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL * THUMBNAIL * 3)

    def add(self, task: ExamineTask, outcome: "ExaminedImage | TaskFailure") -> None:
        """Adds a picture."""
        if isinstance(outcome, TaskFailure):
            self.failures[len(self.spots)] = outcome
            outcome = ExaminedImage("", 0, 0, 0, bytes(THUMBNAIL * THUMBNAIL * 3), True)
        self.spots.append(task.spot)
        sha256 = task.info.sha256 if task.info is not None else outcome.sha256
        self._keys.append(short_key(sha256 or repr(task.spot)))  # an unknown file is like no other
        self._sizes.extend((outcome.width, outcome.height))
        self._hashes.append(outcome.hash)
        self._flat.append(outcome.is_flat)
        self._thumbnails += outcome.thumbnail


def examine_all(examiner: Examiner, tasks: Iterable[ExamineTask], workers: int, seconds: float, memory: int) -> ImageTable:
    """Examines pictures in children that may crash, hang or run out of memory at the price of one picture each.

    Args:
        examiner: of one picture.
        tasks: taken as the children ask for them.
        workers: number of children; 0 works in this process.
        seconds, memory: limits of a child on one picture.
    """
    pictures = ImageTable()
    waiting: deque[ExamineTask] = deque()

    def sent() -> Iterator[ExamineTask]:
        for task in tasks:
            waiting.append(task)
            yield task

    with GuardedPool(examiner, workers, seconds, memory) as pool:
        for outcome in pool.map(sent()):
            pictures.add(waiting.popleft(), outcome)
    return pictures


def short_key(name: str) -> int:
    """64 bits that stand for a hash, or for any other text."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

"""Decodes every image of dataset folders in child processes, and keeps size, perceptual hash and thumbnail of each.

An image that several records name is decoded once. What comes out is a table: size, hash, thumbnail, or why there is none.
"""

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64

from sightline.data.check.perceptual_hash import THUMBNAIL, look
from sightline.data.dataset import Dataset
from sightline.data.images.opener import ImageLimits
from sightline.data.images.reader import ImageLocation, read_image
from sightline.runtime.workers import GuardedPool, TaskFailure
from sightline.types import Record


class ExamineTask(NamedTuple):
    """An image to examine. What `read_image` needs of the record travels along, so that a child need not read the record."""

    location: ImageLocation
    record: Record


class ExaminedImage(NamedTuple):
    """What a child found: size as shown, hash and thumbnail."""

    width: int
    height: int
    hash: int
    thumbnail: bytes
    is_flat: bool


@dataclass(frozen=True)
class Examiner:
    """Examines one image; goes to the children.

    Attributes:
        datasets: the data sets that `ImageLocation.folder` indexes.
        limits: what an image may claim.
        check_hash: compare the file with the hash that was stored.
    """

    datasets: tuple[Dataset, ...]
    limits: ImageLimits
    check_hash: bool

    def __call__(self, task: ExamineTask) -> ExaminedImage:
        """Reads, decodes and shrinks an image.

        Raises:
            RecordError: the reasons of `read_image`.
        """
        image = read_image(
            self.datasets[task.location.folder], task.record, task.location.image, self.limits, check_hash=self.check_hash
        )
        return ExaminedImage(*image.size, *look(image))


@dataclass
class ImageTable:
    """The table of examined images, in the order in which they were first named.

    Attributes:
        locations: where each stands first.
        failures: why an image cannot be used, by row.
    """

    locations: list[ImageLocation] = field(default_factory=list)
    failures: dict[int, TaskFailure] = field(default_factory=dict)
    _keys: array = field(default_factory=lambda: array("Q"))
    _sizes: array = field(default_factory=lambda: array("I"))
    _hashes: array = field(default_factory=lambda: array("Q"))
    _flat: array = field(default_factory=lambda: array("B"))
    _thumbnails: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def keys(self) -> UInt64[np.ndarray, " n"]:
        """64 bits of each file's sha256: equal for equal files, and for two of a million others once in 10^7 sets."""
        return np.asarray(self._keys, dtype=np.uint64)

    @property
    def widths(self) -> Int[np.ndarray, " n"]:
        """Width of each image as shown; 0 where it cannot be used."""
        return np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2)[:, 0]

    @property
    def heights(self) -> Int[np.ndarray, " n"]:
        return np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2)[:, 1]

    @property
    def hashes(self) -> UInt64[np.ndarray, " n"]:
        return np.asarray(self._hashes, dtype=np.uint64)

    @property
    def is_flat(self) -> Bool[np.ndarray, " n"]:
        """Images of one colour; those that cannot be used are counted as flat, so that they are compared with none."""
        return np.asarray(self._flat, dtype=bool)

    @property
    def thumbnails(self) -> UInt8[np.ndarray, "n 768"]:
        return np.frombuffer(self._thumbnails, dtype=np.uint8).reshape(-1, THUMBNAIL * THUMBNAIL * 3)

    def add(self, task: ExamineTask, outcome: "ExaminedImage | TaskFailure") -> None:
        """Adds an image."""
        if isinstance(outcome, TaskFailure):
            self.failures[len(self.locations)] = outcome
            outcome = ExaminedImage(0, 0, 0, bytes(THUMBNAIL * THUMBNAIL * 3), True)
        self.locations.append(task.location)
        infos = task.record.image_info
        self._keys.append(
            short_key(infos[task.location.image].sha256 if infos else repr(task.location))
        )  # an unknown file is like no other
        self._sizes.extend((outcome.width, outcome.height))
        self._hashes.append(outcome.hash)
        self._flat.append(outcome.is_flat)
        self._thumbnails += outcome.thumbnail


def examine_all(examiner: Examiner, tasks: Iterable[ExamineTask], workers: int, seconds: float, memory: int) -> ImageTable:
    """Examines images in children that may crash, hang or run out of memory at the price of one image each.

    Args:
        examiner: of one image.
        tasks: taken as the children ask for them.
        workers: number of children; 0 works in this process.
        seconds, memory: limits of a child on one image.
    """
    table = ImageTable()
    waiting: deque[ExamineTask] = deque()

    def sent() -> Iterator[ExamineTask]:
        for task in tasks:
            waiting.append(task)
            yield task

    with GuardedPool(examiner, workers, seconds, memory) as pool:
        for outcome in pool.map(sent()):
            table.add(waiting.popleft(), outcome)
    return table


def short_key(name: str) -> int:
    """Returns 64 bits that stand for a hash, or for any other text."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

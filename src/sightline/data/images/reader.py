"""Reads one image of a data set as prepared pixels, in a child process that it may take down with it.

What training does for a whole record, for jobs that go through images one by one and must not trust them.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from sightline.data.dataset import Dataset
from sightline.data.images.opener import DEFAULT_LIMITS, open_image
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import TilingConfig
from sightline.errors import DataError, RecordError


class ImageLocation(NamedTuple):
    """An image by number: of the data set, of the record in it, of the image in that."""

    dataset: int
    record: int
    image: int


@dataclass(frozen=True)
class CropReader:
    """A function of a place, for a `GuardedPool`.

    Attributes:
        datasets: what places count.
        preparation, tiling: how an image becomes crops.
    """

    datasets: tuple[Dataset, ...]
    preparation: ImagePreparation
    tiling: TilingConfig

    def __call__(self, place: ImageLocation) -> UInt8[np.ndarray, "crops h w 3"]:
        """Prepared crops.

        Raises:
            RecordError: the reasons of `open_image`, `image_missing`, and `hash_mismatch`: the file is not the one that was
                prepared.
        """
        dataset = self.datasets[place.dataset]
        record = dataset.record(place.record)
        try:
            data = dataset.image_bytes(record, place.image)
        except DataError as error:
            raise RecordError("image_missing", error.message) from error
        if hashlib.sha256(data).hexdigest() != record.image_info[place.image].sha256:
            raise RecordError("hash_mismatch", f"{dataset.path}: {record.images[place.image]} is not what was prepared")
        return self.tiling.crops(open_image(data, DEFAULT_LIMITS, self.tiling.draft_side(self.preparation)), self.preparation)

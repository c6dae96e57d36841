"""Reads single images of data sets as prepared crops, in child processes that may crash.

For jobs that process untrusted images one by one; training loads whole records (`PixelLoader`).
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
    """Location of an image: index of the data set, of the record in it, and of the image in the record."""

    dataset: int
    record: int
    image: int


@dataclass(frozen=True)
class CropReader:
    """Reads the crops of an image; a picklable function for a `GuardedPool`.

    Attributes:
        datasets: the data sets that `ImageLocation.dataset` indexes.
        preparation, tiling: how an image becomes crops.
    """

    datasets: tuple[Dataset, ...]
    preparation: ImagePreparation
    tiling: TilingConfig

    def __call__(self, location: ImageLocation) -> UInt8[np.ndarray, "crops h w 3"]:
        """Returns the prepared crops of an image.

        Raises:
            RecordError: the reasons of `open_image`, `image_missing`, and `hash_mismatch`: the file is not the one that was
                prepared.
        """
        dataset = self.datasets[location.dataset]
        record = dataset.record(location.record)
        try:
            data = dataset.image_bytes(record, location.image)
        except DataError as error:
            raise RecordError("image_missing", error.message) from error
        if hashlib.sha256(data).hexdigest() != record.image_info[location.image].sha256:
            raise RecordError("hash_mismatch", f"{dataset.path}: {record.images[location.image]} is not the file that was prepared")
        return self.tiling.crops(open_image(data, DEFAULT_LIMITS, self.tiling.draft_side(self.preparation)), self.preparation)

"""Reads single images: those of records with `read_image`, those of a source that is being prepared with `check_image`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sightline.data.dataset import Dataset
from sightline.data.images.opener import (
    DEFAULT_LIMITS,
    PILLOW_MAX_PIXELS,
    ImageLimits,
    inspect_image,
    open_image,
    open_with_orientation,
    read_image_file,
)
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings import TilingConfig
from sightline.errors import DataError, RecordError
from sightline.types import Record

SUFFIXES = {"BMP": "bmp", "GIF": "gif", "JPEG": "jpg", "PNG": "png", "TIFF": "tif", "WEBP": "webp"}


class ImageLocation(NamedTuple):
    """Location of an image: index of the dataset folder, of the record in it, and of the image in the record."""

    folder: int
    record: int
    image: int


def read_image(
    dataset: Dataset,
    record: Record,
    k: int = 0,
    limits: ImageLimits = DEFAULT_LIMITS,
    draft_side: int | None = None,
    check_hash: bool = False,
) -> Image.Image:
    """Opens image `k` of a record as an RGB image.

    Where the record has `image_info`, the size is compared with it, unless `draft_side` lets the image be decoded smaller.

    Args:
        dataset: the data set of the record.
        record: of which `images` and `image_info` are read.
        k: index of the image in the record.
        limits, draft_side: as in `open_image`; a dataset that was prepared with more pixels (`--max-pixels`) keeps its own limit.
        check_hash: also compare the sha256 of the file with that of `image_info`.

    Raises:
        RecordError: the reasons of `open_image`; `image_missing`: the dataset has no such file; `hash_mismatch`, `image_changed`:
            the file has another sha256, or another size in pixels, than `image_info` says.
    """
    try:
        data = dataset.image_bytes(record, k)
    except DataError as error:
        raise RecordError("image_missing", error.message) from error
    name, info = f"{dataset.path}: {record.images[k]}", record.image_info[k] if record.image_info else None
    if check_hash and info is not None and hashlib.sha256(data).hexdigest() != info.sha256:
        raise RecordError("hash_mismatch", f"{name} is not the file that was prepared")
    if dataset.max_pixels > limits.max_pixels:
        limits = limits.model_copy(update={"max_pixels": min(dataset.max_pixels, PILLOW_MAX_PIXELS)})
    image = open_image(data, limits, draft_side)
    if draft_side is None and info is not None and image.size != (info.width, info.height):
        known = f"{info.width} x {info.height} when it was prepared"
        raise RecordError("image_changed", f"{name} has {image.width} x {image.height} pixels, {known}")
    return image


class ImageFacts(NamedTuple):
    """Facts about a valid image; width and height after EXIF rotation by `orientation` (1 to 8)."""

    sha256: str
    width: int
    height: int
    suffix: str
    orientation: int


def check_image(source: Path | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFacts:
    """Decodes an image of a source format completely and returns what a record stores about it.

    Args:
        source: a file, or its bytes.
        limits: as in `open_image`.

    Raises:
        RecordError: the reasons of `open_image`.
    """
    data = read_image_file(source, limits) if isinstance(source, Path) else source
    kind = inspect_image(data, limits).format
    image, orientation = open_with_orientation(data, limits)
    return ImageFacts(hashlib.sha256(data).hexdigest(), image.width, image.height, SUFFIXES[kind], orientation)


@dataclass(frozen=True)
class CropReader:
    """Reads the crops of an image; a picklable function for a `GuardedPool`.

    For jobs that process untrusted images one by one; training loads whole records (`PixelLoader`).

    Attributes:
        datasets: the data sets that `ImageLocation.folder` indexes.
        preparation, tiling: how an image becomes crops.
    """

    datasets: tuple[Dataset, ...]
    preparation: ImagePreparation
    tiling: TilingConfig

    def __call__(self, location: ImageLocation) -> UInt8[np.ndarray, "crops h w 3"]:
        """Returns the prepared crops of an image.

        Raises:
            RecordError: the reasons of `read_image`.
        """
        dataset, draft = self.datasets[location.folder], self.tiling.draft_side(self.preparation)
        record = dataset.record(location.record)
        image = read_image(dataset, record, location.image, draft_side=draft, check_hash=True)
        return self.tiling.for_record(record).crops(image, self.preparation)

"""Visual inputs of records: pixels of opened, tiled and prepared images, or stored features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from sightline.data.dataset import Dataset
from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.reader import read_image
from sightline.data.images.tilings import TilingConfig
from sightline.types import Record


@dataclass(frozen=True, slots=True)
class VisualInputs:
    """Visual inputs of a record: prepared pixels of its crops, or their features.

    Attributes:
        pixels: crops as prepared for the encoder.
        features: outputs of the encoder, or rows of an external table; float16 or float32.
    """

    pixels: UInt8[np.ndarray, "N h w 3"] | None = None
    features: Float[np.ndarray, "N P E"] | None = None

    @staticmethod
    def joined(parts: "Sequence[VisualInputs]") -> "VisualInputs":
        """Concatenates the crops of several visual inputs."""
        pixels = [part.pixels for part in parts if part.pixels is not None]
        features = [part.features for part in parts if part.features is not None]
        return VisualInputs(np.concatenate(pixels) if pixels else None, np.concatenate(features) if features else None)


class PixelLoader:
    """Loads pixels: opens, tiles and prepares images.

    Args:
        preparation: how a crop is prepared for the encoder.
        tiling: how an image becomes crops.
        keep_bytes: size in bytes of the in-memory cache of prepared pixels.
        limits: limits on image files.
    """

    def __init__(
        self, preparation: ImagePreparation, tiling: TilingConfig, keep_bytes: int = 0, limits: ImageLimits = DEFAULT_LIMITS
    ) -> None:
        self.preparation, self.tiling, self.limits = preparation, tiling, limits
        self.left = keep_bytes
        self._kept: dict[tuple[Path, tuple[str, ...]], np.ndarray] = {}

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns the prepared pixels of all images of a record.

        Raises:
            RecordError: an image is missing, cannot be opened, or has another size than its tokens were counted for.
        """
        key = (dataset.path, record.images)
        kept = self._kept.get(key)
        if kept is not None:
            return VisualInputs(kept)
        pixels = self._prepared(dataset, record)
        if pixels.nbytes <= self.left:
            self.left -= pixels.nbytes
            self._kept[key] = pixels
        return VisualInputs(pixels)

    def _prepared(self, dataset: Dataset, record: Record) -> np.ndarray:
        draft = self.tiling.draft_side(self.preparation)
        images = (read_image(dataset, record, k, self.limits, draft) for k in range(len(record.images)))
        tiling = self.tiling.for_record(record)
        crops = [tiling.crops(image, self.preparation) for image in images]
        can_return = len(crops) == 1 and crops[0].flags.writeable  # torch needs writable arrays; views of Pillow images are not
        return crops[0] if can_return else np.concatenate(crops)


class VisualInputLoader(Protocol):
    """Loads the visual inputs of records."""

    def load(self, dataset: Dataset, record: Record) -> VisualInputs:
        """Returns pixels or features of all images of a record.

        Raises:
            RecordError: an image cannot be opened, or its features are not stored.
        """
        ...

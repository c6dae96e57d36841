"""Reading and normalising as transformers' processors do, to compare with them."""

from pathlib import Path

import numpy as np

from sightline.data.images.opener import open_image
from sightline.data.images.preparation import ImagePreparation, read_processor_file


def from_folder(path: str | Path) -> ImagePreparation:
    return ImagePreparation.from_processor(*read_processor_file(str(path)))


def opened(preparation: ImagePreparation, source: bytes | Path) -> np.ndarray:
    """Prepared pixels of a file."""
    return preparation.prepare(open_image(source, draft_side=preparation.draft_side))


def normalised(preparation: ImagePreparation, pixels: np.ndarray) -> np.ndarray:
    """`(pixels * rescale - mean) / std` in float32 with the roundings of transformers."""
    rescaled = (pixels.astype(np.float64) * preparation.rescale).astype(np.float32)
    return (rescaled - np.asarray(preparation.mean, np.float32)) / np.asarray(preparation.std, np.float32)

"""`whole`: one crop per image."""

from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings.base import Layout, TilingConfig, read_only
from sightline.types import IMAGE


class WholeConfig(TilingConfig):
    """One crop: the whole image, as the encoder's own processor prepares it."""

    kind: Literal["whole"] = "whole"

    def draft_side(self, preparation: ImagePreparation) -> int | None:
        return preparation.draft_side

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        return _layout(grid[0] * grid[1])

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        return preparation.prepare(image)[None]


@lru_cache(maxsize=16)
def _layout(count: int) -> Layout:
    return Layout(IMAGE, (count,), read_only(np.arange(count)), 1)

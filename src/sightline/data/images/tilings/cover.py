"""`cover`: AlignVLM's tiling: the grid of tiles that the image covers best."""

from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings.base import CACHED_LAYOUTS, Layout, TiledConfig, cut, read_only, resized
from sightline.types import IMAGE


class CoverConfig(TiledConfig):
    """AlignVLM (Masry et al. 2025, section 3.1): at most 9 tiles, the aspect chosen by coverage ratio, `F = concat_t F_t`.

    The paper leaves the rest open. Here the coverage of a grid is the share of it that the image fills when it is scaled into the
    grid with its aspect ratio kept. Of grids with equal coverage (1x1, 2x2 and 3x3, say) the smallest that does not shrink the
    image is used, else the largest. The image is then stretched to the whole grid, so that no token holds padding, and the tiles'
    tokens follow each other in raster order without separators.
    """

    kind: Literal["cover"] = "cover"
    max_tiles: int = Field(default=9, ge=1, le=64)
    """Maximum number of tiles."""
    with_global: bool = False
    """Add the image squashed to one tile, at the end, where there is more than one tile; the paper has tiles alone."""

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        return _layout(self, width, height, grid[0] * grid[1])

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        side = self.side
        rows, columns = best_cover(image.width, image.height, self.max_tiles, side)
        tiles = cut(resized(image, columns * side, rows * side, preparation), side)
        if not self.with_global or rows * columns == 1:
            return np.ascontiguousarray(tiles)
        return np.concatenate([tiles, np.asarray(resized(image, side, side, preparation))[None]])


@lru_cache(maxsize=CACHED_LAYOUTS)
def _layout(config: CoverConfig, width: int, height: int, per_crop: int) -> Layout:
    rows, columns = best_cover(width, height, config.max_tiles, config.side)
    crops = rows * columns
    crops += config.with_global and crops > 1
    return Layout(IMAGE, (crops * per_crop,), read_only(np.arange(crops * per_crop)), crops)


def best_cover(width: int, height: int, max_tiles: int, side: int) -> tuple[int, int]:
    """Returns rows and columns of the grid of at most `max_tiles` tiles that the image covers best."""

    def rank(grid: tuple[int, int]) -> tuple[Fraction, bool, int]:
        holds = grid[0] * side >= height and grid[1] * side >= width
        tiles = grid[0] * grid[1]
        return coverage(width, height, *grid), holds, -tiles if holds else tiles

    grids = [(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1)]
    return max(grids, key=rank)


def coverage(width: int, height: int, rows: int, columns: int) -> Fraction:
    """Returns the share of a grid that an image fills when it is scaled into it; exact, so that ties are detected."""
    across, down = columns * height, rows * width
    return Fraction(min(across, down), max(across, down))

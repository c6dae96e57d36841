"""`split`: image splitting of Idefics3 and SmolVLM, with text tokens for row and column, and the whole image last."""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from sightline.data.images.preparation import MAX_SIDE, ImagePreparation
from sightline.data.images.tilings.base import CACHED_LAYOUTS, Layout, TiledConfig, cut, read_only, resized
from sightline.types import IMAGE

AROUND, GLOBAL = "<fake_token_around_image>", "<global-img>"
LONGEST_OF_ALL = 4096  # pixels; neither model scales an image beyond it


class SplitConfig(TiledConfig):
    """Idefics3 (Laurencon et al. 2024), SmolVLM (Marafioti et al. 2025).

    The longer side is scaled to `longest_edge`, both sides are then stretched to multiples of the tile, and the tiles follow each
    other in raster order, each after its `<row_R_col_C>`; the image squashed to one tile comes last, after `<global-img>`. Texts,
    token counts and pixels are those of transformers' Idefics3Processor (SmolVLMProcessor does the same).
    """

    kind: Literal["split"] = "split"
    longest_edge: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """Length in pixels of the longer side before tiling; four tiles by default, as in Idefics3 and SmolVLM2-500M."""
    splits: bool = True
    """Tile images; False makes each image one crop between the same text tokens."""

    @property
    def longest(self) -> int:
        return self.longest_edge or 4 * self.side

    @property
    def tokens(self) -> tuple[str, ...]:
        most = math.ceil(scaled_size(1, 1, self.longest)[1] / self.side) if self.splits else 1
        places = tuple(tile_token(row, column) for row in range(most) for column in range(most)) if most > 1 else ()
        return (AROUND, GLOBAL, *places)

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        return _layout(self, width, height, grid[0] * grid[1])

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        side = self.side
        scaled = resized(image, *scaled_size(image.width, image.height, self.longest), preparation)
        rows, columns = self.grid(image.width, image.height)
        if not rows:
            return np.asarray(resized(scaled, side, side, preparation))[None]
        stretched = resized(scaled, columns * side, rows * side, preparation)
        return np.concatenate([cut(stretched, side), np.asarray(resized(stretched, side, side, preparation))[None]])

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Returns rows and columns of tiles; (0, 0) for an image that is a single crop."""
        if not self.splits:
            return 0, 0
        side = self.side
        width, height = scaled_size(width, height, self.longest)
        aspect = width / height
        if width >= height:
            columns = math.ceil(width / side)
            rows = max(math.ceil(int(columns * side / aspect) / side), 1)
        else:
            rows = math.ceil(height / side)
            columns = max(math.ceil(int(rows * side * aspect) / side), 1)
        return (rows, columns) if rows > 1 or columns > 1 else (0, 0)


@lru_cache(maxsize=CACHED_LAYOUTS)
def _layout(config: SplitConfig, width: int, height: int, per_crop: int) -> Layout:
    rows, columns = config.grid(width, height)
    lines = ["".join(f"{AROUND}{tile_token(row, column)}{IMAGE}" for column in range(columns)) + "\n" for row in range(rows)]
    text = "".join(lines) + ("\n" if rows else "") + f"{AROUND}{GLOBAL}{IMAGE}{AROUND}"
    crops = rows * columns + 1
    return Layout(text, (per_crop,) * crops, read_only(np.arange(crops * per_crop)), crops)


def tile_token(row: int, column: int) -> str:
    """Returns the text token before a tile; rows and columns count from 1."""
    return f"<row_{row + 1}_col_{column + 1}>"


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Returns width and height with the longer side at `longest`, the shorter side even, and neither above 4096.

    Rounds as transformers' Idefics3 does: floats, rounded down.
    """
    aspect = width / height
    if width >= height:
        width, height = longest, _even(int(longest / aspect))
    else:
        width, height = _even(int(longest * aspect)), longest
    aspect = width / height
    if width >= height and width > LONGEST_OF_ALL:
        width, height = LONGEST_OF_ALL, max(int(LONGEST_OF_ALL / aspect), 1)
    elif height > width and height > LONGEST_OF_ALL:
        width, height = max(int(LONGEST_OF_ALL * aspect), 1), LONGEST_OF_ALL
    return width, height


def _even(side: int) -> int:
    return max(side + side % 2, 1)

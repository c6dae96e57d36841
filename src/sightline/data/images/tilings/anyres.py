"""`anyres`: LLaVA-NeXT's any resolution with spatial unpad.

The encoder gets the image twice: squashed to one tile, and as a grid of tiles. The tiles' visual tokens are joined to one map, rows
or columns that hold only padding are removed, and a learned separator ends each row of the map.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from sightline.data.images.preparation import ImagePreparation
from sightline.data.images.tilings.base import CACHED_LAYOUTS, Layout, TiledConfig, cut, read_only, resized
from sightline.errors import ConfigError
from sightline.types import IMAGE

Grid = tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]]

GRIDS: dict[str, tuple[tuple[int, int], ...]] = {
    "llava_next": ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    "up_to_6x6": tuple((rows, columns) for rows in range(1, 7) for columns in range(1, 7)),
}
SEPARATOR = -1


class AnyResConfig(TiledConfig):
    """LLaVA-NeXT (Liu et al. 2024): a base image and the tiles of the grid that keeps most of the image's pixels.

    Token counts and their order are those of transformers' LlavaNextProcessor and LlavaNextModel. AlignVLM's low-resource runs
    used `up_to_6x6` with at most 9 tiles (`anyres_max_9`).

    Differs: `anyres_max_9` shrinks a map of more than 9 tiles' tokens by interpolation; here such grids are left out
    (`max_tiles: 9`), so that every visual token is one of the encoder's.
    """

    kind: Literal["anyres"] = "anyres"
    grids: Literal["llava_next", "up_to_6x6"] | tuple[Grid, ...] = "llava_next"
    """Grids of tiles to choose from, as `[rows, columns]`, or a named list; among equally good ones the first is used."""
    max_tiles: int | None = Field(default=None, ge=1)
    """Exclude grids with more tiles."""

    @property
    def num_separators(self) -> int:
        return 1

    @property
    def choices(self) -> tuple[tuple[int, int], ...]:
        """The grids to choose from.

        Raises:
            ConfigError: no grid is left.
        """
        named = GRIDS[self.grids] if isinstance(self.grids, str) else self.grids
        found = tuple(grid for grid in named if self.max_tiles is None or grid[0] * grid[1] <= self.max_tiles)
        if not found:
            raise ConfigError(f"model.tiling.max_tiles={self.max_tiles} leaves no grid of {self.grids}.", "Raise it.")
        return found

    def fitted(self, height: int, width: int) -> "AnyResConfig":
        self.choices  # noqa: B018 (raises where there is none)
        return super().fitted(height, width)

    def check_grid(self, grid: tuple[int, int]) -> None:
        if grid[0] == 1 and grid[1] > 1:
            raise ConfigError(
                f"model.tiling 'anyres' joins the tokens of tiles to a map, but this connector gives {grid[1]} tokens without "
                "rows and columns.",
                "Use another tiling, or a connector that keeps the grid.",
            )

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        return _layout(self, width, height, grid)

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        side = self.side
        rows, columns = best_grid(image.width, image.height, self.choices, side)
        base = np.asarray(resized(image, side, side, preparation))
        width, height = fitted_size(image.width, image.height, columns * side, rows * side)
        canvas = Image.new("RGB", (columns * side, rows * side))  # black, as in transformers
        canvas.paste(resized(image, width, height, preparation), ((canvas.width - width) // 2, (canvas.height - height) // 2))
        return np.concatenate([base[None], cut(canvas, side)])


@lru_cache(maxsize=CACHED_LAYOUTS)
def _layout(config: AnyResConfig, width: int, height: int, grid: tuple[int, int]) -> Layout:
    rows, columns = best_grid(width, height, config.choices, config.side)
    per_crop = grid[0] * grid[1]
    crops = 1 + np.arange(rows * columns).reshape(rows, 1, columns, 1)
    token = np.arange(per_crop).reshape(1, grid[0], 1, grid[1])
    whole_map = (crops * per_crop + token).reshape(rows * grid[0], columns * grid[1])
    seen = unpadded(whole_map, width, height)
    lines = np.concatenate([seen, np.full((seen.shape[0], 1), SEPARATOR)], axis=1)
    visual_index = np.concatenate([np.arange(per_crop), lines.reshape(-1)])
    return Layout(IMAGE, (len(visual_index),), read_only(visual_index), 1 + rows * columns)


def best_grid(width: int, height: int, choices: tuple[tuple[int, int], ...], side: int) -> tuple[int, int]:
    """Returns the grid that keeps most of the image's pixels and, among those, wastes the fewest of its own.

    Uses floats and the roundings of transformers' `select_best_resolution`, because one pixel can decide between similar grids.
    """

    def kept_and_unwasted(grid: tuple[int, int]) -> tuple[int, int]:
        full_height, full_width = grid[0] * side, grid[1] * side
        scale = min(full_width / width, full_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - full_width * full_height

    return max(choices, key=kept_and_unwasted)


def fitted_size(width: int, height: int, full_width: int, full_height: int) -> tuple[int, int]:
    """Returns width and height of the image scaled into a canvas, rounded up (as transformers' `get_patch_output_size`)."""
    by_width, by_height = full_width / width, full_height / height
    if by_width < by_height:
        return full_width, min(math.ceil(height * by_width), full_height)
    return min(math.ceil(width * by_height), full_width), full_height


def unpadded(token_map: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns the part of a token map that an image of `width x height` covers when it is scaled and centred in the map."""
    rows, columns = token_map.shape
    if width * rows > columns * height:
        padding = (rows - height * columns // width) // 2
        return token_map[padding : rows - padding]
    padding = (columns - width * rows // height) // 2
    return token_map[:, padding : columns - padding]

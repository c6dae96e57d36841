"""What every tiling states: crops, slots and which visual token fills each slot, all from the image's size alone.

A tiling is a pure function of the image's size, so token counts are known before any pixel is read; training, the length
table, evaluation and `generate` all ask here. One visual token of a crop is `crop * K + k`; learned separators count from -1 down.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from pydantic import Field

from sightline.config import Config
from sightline.data.images.preparation import FILTERS, MAX_SIDE, ImagePreparation
from sightline.errors import ConfigError
from sightline.registry import HasKind

CACHED_LAYOUTS = 512  # the largest takes about 170 kB


@dataclass(frozen=True)
class Layout:
    """What one image takes.

    Attributes:
        text: what replaces the image's marker in the conversation: markers, and tokens of rows and columns around them.
        slots: for each marker in `text` the number of slots it expands to.
        visual_index: for each slot, in order, the index of its visual token among this image's crops (`crop * K + k`); below 0 a
            learned separator.
        num_crops: crops that the encoder sees.
    """

    text: str
    slots: tuple[int, ...]
    visual_index: "Int[np.ndarray, ' M']"
    num_crops: int

    @property
    def num_tokens(self) -> int:
        """Visual slots of the image, the tokens of `text` around them not counted."""
        return len(self.visual_index)


class TilingConfig(HasKind, Config):
    """What every way of tiling has to say."""

    @property
    def num_separators(self) -> int:
        """Learned visual tokens that the layout uses between tiles."""
        return 0

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text tokens that the layout uses, to be added to the tokenizer."""
        return ()

    def fitted(self, height: int, width: int) -> Self:
        """The tiling for an encoder that takes images of `height x width` pixels.

        Raises:
            ConfigError: it cannot work with that size.
        """
        return self

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Refuses a connector whose tokens the layout cannot place.

        Args:
            grid: rows and columns of visual tokens of a crop.

        Raises:
            ConfigError: the layout needs a grid and the connector keeps none.
        """

    def draft_side(self, preparation: ImagePreparation) -> int | None:
        """The reduced size at which a JPEG may be decoded; None where the crops need every pixel."""
        return None

    @abstractmethod
    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        """The layout of an image of this size (as shown), with `grid` rows and columns of visual tokens per crop."""

    @abstractmethod
    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        """The crops of an image, prepared for the encoder, in the order of the layout."""

    def key(self) -> str:
        """Identifies the tiling in caches and feature stores."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class TiledConfig(TilingConfig):
    """A tiling that cuts images into squares of the encoder's input size."""

    tile: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """Side of a tile in pixels; by default the encoder's input, which is the only size that works."""

    def fitted(self, height: int, width: int) -> Self:
        if height != width:
            raise ConfigError(
                f"model.tiling {self.kind!r} cuts squares, this encoder takes {height} x {width} pixels.", "Use whole."
            )
        if self.tile not in (None, height):
            raise ConfigError(f"model.tiling.tile={self.tile}, but the encoder takes {height} x {width} pixels.", "Leave it out.")
        return self.model_copy(update={"tile": height})

    @property
    def side(self) -> int:
        """The tile's side, known once the tiling is fitted to an encoder."""
        if self.tile is None:
            raise ConfigError("the side of the tiles is not known yet.", "Give model.tiling.tile.")
        return self.tile


def resized(image: Image.Image, width: int, height: int, preparation: ImagePreparation) -> Image.Image:
    """The image at another size, with the encoder's own filter."""
    return image.resize((width, height), Image.Resampling(FILTERS.index(preparation.resample)))


def cut(image: Image.Image, side: int) -> UInt8[np.ndarray, "N side side 3"]:
    """The squares of an image whose sides are multiples of `side`, in raster order."""
    rows, columns = image.height // side, image.width // side
    squares = np.asarray(image).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(rows * columns, side, side, 3)


def read_only(visual_index: np.ndarray) -> "Int[np.ndarray, ' M']":
    """Returns the array as read-only int64: layouts are cached and shared."""
    visual_index = np.ascontiguousarray(visual_index, dtype=np.int64)
    visual_index.flags.writeable = False
    return visual_index

"""Base of tilings: crops, visual slots, and the visual token of each slot, as a function of the image's size.

Token counts are therefore known before any pixel is read; training, the length table, evaluation and `generate` all use them.
Visual token `k` of a crop has the index `crop * K + k`; learned separators have indices from -1 downwards.
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
from sightline.types import Record

CACHED_LAYOUTS = 512  # the largest takes about 170 kB


@dataclass(frozen=True)
class Layout:
    """Layout of one image in a conversation.

    Attributes:
        text: text that replaces the image's marker: markers, and text tokens (of rows and columns) around them.
        slots: number of visual slots of each marker in `text`.
        visual_index: for each slot, in order, the index of its visual token among this image's crops (`crop * K + k`); below 0 a
            learned separator.
        num_crops: number of crops.
    """

    text: str
    slots: tuple[int, ...]
    visual_index: "Int[np.ndarray, ' M']"
    num_crops: int

    @property
    def num_tokens(self) -> int:
        """Number of visual slots, without text tokens around them."""
        return len(self.visual_index)


class TilingConfig(HasKind, Config):
    """Interface of tilings."""

    @property
    def num_separators(self) -> int:
        """Number of learned separators that the layout uses."""
        return 0

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text tokens of the layout, which are added to the tokenizer."""
        return ()

    def fitted(self, height: int, width: int) -> Self:
        """Returns the tiling for an encoder with an input of `height x width` pixels.

        Raises:
            ConfigError: the tiling does not support that size.
        """
        return self

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Checks that the layout supports a connector's token grid.

        Args:
            grid: rows and columns of visual tokens of a crop.

        Raises:
            ConfigError: the layout needs a grid and the connector keeps none.
        """

    def draft_side(self, preparation: ImagePreparation) -> int | None:
        """Returns the `draft_side` for decoding JPEGs; None where the crops need full resolution."""
        return None

    def for_record(self, record: Record) -> Self:
        """Returns the tiling with what it needs to know of a record before its images are cut into crops."""
        return self

    def image_key(self, sha256: str, record: Record) -> str:
        """Returns the key of an image in a feature store: its sha256, or a hash of it and of where the record has it cut."""
        return sha256

    @abstractmethod
    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        """Returns the layout of an image.

        Args:
            width, height: size in pixels after EXIF rotation.
            grid: rows and columns of visual tokens per crop.
        """

    @abstractmethod
    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        """Returns the prepared crops of an image, in the order of the layout."""

    def key(self) -> str:
        """Returns a hash of the settings, for caches and feature stores."""
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
        """Side of a tile in pixels, known once the tiling is fitted to an encoder."""
        if self.tile is None:
            raise ConfigError("the tile size is not known before the tiling is fitted to an encoder.", "Give model.tiling.tile.")
        return self.tile


def resized(image: Image.Image, width: int, height: int, preparation: ImagePreparation) -> Image.Image:
    """Resizes an image with the encoder's filter."""
    return image.resize((width, height), Image.Resampling(FILTERS.index(preparation.resample)))


def cut(image: Image.Image, side: int) -> UInt8[np.ndarray, "N side side 3"]:
    """Cuts an image, whose sides are multiples of `side`, into squares in raster order."""
    rows, columns = image.height // side, image.width // side
    squares = np.asarray(image).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(rows * columns, side, side, 3)


def read_only(visual_index: np.ndarray) -> "Int[np.ndarray, ' M']":
    """Returns the array as read-only int64: layouts are cached and shared."""
    visual_index = np.ascontiguousarray(visual_index, dtype=np.int64)
    visual_index.flags.writeable = False
    return visual_index

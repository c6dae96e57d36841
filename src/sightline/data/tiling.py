"""How a picture becomes crops for the encoder and slots in the row: the one truth of the visual-token count.

A tiling is a pure function of the picture's size. It states how many crops there are, what text stands around their slots, and
which visual token fills each slot, before any pixel is read; training, the length table, evaluation and `generate` all ask here.
"""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from pydantic import Field

from sightline.config import Config
from sightline.data.preparation import ImagePreparation
from sightline.data.templates import IMAGE


@dataclass(frozen=True)
class Layout:
    """What one picture takes.

    Attributes:
        text: what replaces the picture's marker in the conversation: markers, and tokens of rows and columns around them.
        slots: for each marker in `text` the number of slots it expands to.
        source: for each slot, in order, the index of its visual token among this picture's crops (`crop * K + k`); below 0 a
            learned separator.
        num_crops: crops that the encoder sees.
    """

    text: str
    slots: tuple[int, ...]
    source: "Int[np.ndarray, ' M']"
    num_crops: int


class TilingConfig(Config):
    """What every way of tiling has to say."""

    @property
    def num_separators(self) -> int:
        """Learned visual tokens that the layout uses between tiles."""
        return 0

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text tokens that the layout uses, to be added to the tokenizer."""
        return ()

    @abstractmethod
    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        """The layout of a picture of this size (as shown), with `grid` rows and columns of visual tokens per crop."""

    @abstractmethod
    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        """The crops of a picture, prepared for the encoder, in the order of the layout."""

    def key(self) -> str:
        """Identifies the tiling in caches and feature stores."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class WholeConfig(TilingConfig):
    """One crop: the whole picture, as the encoder's own processor prepares it."""

    kind: Literal["whole"] = "whole"

    def layout(self, width: int, height: int, grid: tuple[int, int]) -> Layout:
        count = grid[0] * grid[1]
        return Layout(IMAGE, (count,), np.arange(count), 1)

    def crops(self, image: Image.Image, preparation: ImagePreparation) -> UInt8[np.ndarray, "N h w 3"]:
        return preparation.prepare(image)[None]


TILINGS: dict[str, type[TilingConfig]] = {
    "whole": WholeConfig,
}

AnyTiling = Annotated[WholeConfig, Field(discriminator="kind")]

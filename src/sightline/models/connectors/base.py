"""What every connector shares: its place between encoder and decoder, and the folding of patches before it.

A connector is `project(merge(features))`. `merge` makes fewer, wider tokens without parameters; `project` is the kind's own
module and the only thing that a file of this folder defines.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.ops.splice import pixel_shuffle, raster_merge

Words = Callable[[], Float[Tensor, "V D"]]


@dataclass(frozen=True)
class ConnectorShape:
    """Where a connector stands: it takes a grid of `rows x columns` tokens of `width_in`, the decoder takes `width_out`.

    Attributes:
        num_words: entries of the decoder's vocabulary, added tokens left out.
    """

    rows: int
    columns: int
    width_in: int
    width_out: int
    num_words: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


class ConnectorConfig(Config):
    """Fields that every connector has."""

    shuffle: int = Field(default=1, ge=1, le=8)
    """Fold blocks of `shuffle x shuffle` patches into one token before the connector (pixel shuffle); 1 keeps every patch."""
    merge: Literal["blocks", "raster"] = "blocks"
    """`blocks`: neighbours in the picture. `raster`: `shuffle^2` consecutive patches of the raster scan, as in TinyVLM's
    reported run, where strips wrap around rows."""

    @abstractmethod
    def build(self, shape: ConnectorShape) -> nn.Module:
        """The projection with fresh weights: takes features `[N, K, width_in]` and `words`, gives `[N, K', width_out]`."""

    def tokens_out(self, shape: ConnectorShape) -> int:
        """Visual tokens per crop that the projection gives."""
        return shape.num_tokens


class Connector(nn.Module):
    """`project(merge(features))`.

    Args:
        config: the connector's kind and sizes.
        shape: the encoder's grid and width, the decoder's width and vocabulary.

    Raises:
        ConfigError: the grid does not divide into blocks.
    """

    def __init__(self, config: ConnectorConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.project = config.build(merged_shape(config, shape))

    @property
    def tokens_per_crop(self) -> int:
        return self.config.tokens_out(merged_shape(self.config, self.shape))

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop; one row where the connector keeps no grid."""
        merged = merged_shape(self.config, self.shape)
        count = self.tokens_per_crop
        return (merged.rows, merged.columns) if count == merged.num_tokens else (1, count)

    def forward(self, features_NPE: Float[Tensor, "N P E"], words: Words) -> Float[Tensor, "N K D"]:
        """Visual tokens of each crop.

        Args:
            features_NPE: outputs of the encoder in raster order.
            words: gives the decoder's input embeddings of all words; called only by connectors that mix them.
        """
        if self.config.merge == "raster":
            merged = raster_merge(features_NPE, self.config.shuffle**2)
        else:
            merged = pixel_shuffle(features_NPE, (self.shape.rows, self.shape.columns), self.config.shuffle)
        return self.project(merged, words)


def merged_shape(config: ConnectorConfig, shape: ConnectorShape) -> ConnectorShape:
    """The shape after folding.

    Raises:
        ConfigError: the grid does not divide into blocks.
    """
    factor = config.shuffle
    width = shape.width_in * factor**2
    if config.merge == "raster":
        # 14 x 14 patches in strips of 4 give 49 tokens whose grid is only nominal.
        if shape.num_tokens % factor**2:
            raise ConfigError(f"model.connector.shuffle={factor}: {shape.num_tokens} patches do not divide by {factor**2}.")
        side = shape.num_tokens // factor**2
        return ConnectorShape(1, side, width, shape.width_out, shape.num_words)
    if shape.rows % factor or shape.columns % factor:
        near = [f for f in range(1, 9) if shape.rows % f == 0 and shape.columns % f == 0]
        raise ConfigError(
            f"model.connector.shuffle={factor} does not divide the encoder's grid of {shape.rows} x {shape.columns} patches.",
            f"Possible here: {', '.join(map(str, near))}.",
        )
    return ConnectorShape(shape.rows // factor, shape.columns // factor, width, shape.width_out, shape.num_words)

"""What every connector shares: its place between encoder and decoder, and the folding of patches before it.

A connector is `project(merge(features))`. `merge` makes fewer, wider tokens without parameters; `project` is the kind's own
module and the only thing that a file of this folder defines. What only some kinds can do (begin as a copy of the head, mix words,
balance experts) is an abstract class here that the projection also inherits from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.ops.splice import pixel_shuffle, raster_merge
from sightline.ops.vocabulary_attention import WordDistribution

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

    width_field: ClassVar[str] = ""
    """Name of the field that parameters grow with, for comparisons at equal size; empty where a connector has none."""
    width_step: ClassVar[str] = ""
    """Name of a field that divides that width."""
    shuffle: int = Field(default=1, ge=1, le=8)
    """Fold blocks of `shuffle x shuffle` patches into one token before the connector (pixel shuffle); 1 keeps every patch."""
    merge: Literal["blocks", "raster"] = "blocks"
    """`blocks`: neighbours in the picture. `raster`: `shuffle^2` consecutive patches of the raster scan, as in TinyVLM's
    reported run, where strips wrap around rows."""

    @abstractmethod
    def build(self, shape: ConnectorShape) -> nn.Module:
        """The projection with fresh weights: takes features `[N, K, width_in]` and `words`, gives `[N, K', width_out]`."""

    def grid_out(self, shape: ConnectorShape) -> tuple[int, int]:
        """Rows and columns of the visual tokens that the projection gives of a crop; one row where they are no grid.

        Raises:
            ConfigError: this connector cannot stand on such a grid.
        """
        return shape.rows, shape.columns

    def tokens_out(self, shape: ConnectorShape) -> int:
        """Visual tokens per crop that the projection gives."""
        rows, columns = self.grid_out(shape)
        return rows * columns


# What only some projections can do ----------------------------------------------------------------------------------------------


class InitialisesFromHead(ABC):
    """A projection that begins as a copy of the decoder's head."""

    @abstractmethod
    def adopt_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Copies what it needs of the head; what it copied is its own from then on."""


class MixesVocabulary(ABC):
    """A projection whose visual tokens are mixtures of the decoder's words."""

    @abstractmethod
    def restrict(self, word_ids: Sequence[int] | None) -> None:
        """Allows only some words outside of training; None allows all again."""

    @abstractmethod
    def distribution(self, features_NKF: Float[Tensor, "N K F"], top: int, threshold: float) -> WordDistribution:
        """The mixture of each visual token."""


class HasAuxiliaryLoss(ABC):
    """A projection that adds auxiliary losses to the objective."""

    @abstractmethod
    def tokens_and_losses(
        self, features_NKF: Float[Tensor, "N K F"], words: Words
    ) -> tuple[Float[Tensor, "N K D"], dict[str, Tensor]]:
        """Visual tokens as `forward` gives them, and scalar losses by name, coefficients included; no losses in eval mode."""


class HasLogValues(ABC):
    """A projection with values worth a line in the log."""

    @abstractmethod
    def log_values(self) -> dict[str, float]:
        """Values by name."""


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
        merged = merged_shape(config, shape)
        config.grid_out(merged)  # refuses a grid that does not suit before weights are made
        self.project = config.build(merged)

    @property
    def tokens_per_crop(self) -> int:
        return self.config.tokens_out(merged_shape(self.config, self.shape))

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop; one row where the connector keeps no grid."""
        return self.config.grid_out(merged_shape(self.config, self.shape))

    def forward(self, features_NPE: Float[Tensor, "N P E"], words: Words) -> Float[Tensor, "N K D"]:
        """Visual tokens of each crop.

        Args:
            features_NPE: outputs of the encoder in raster order.
            words: gives the decoder's input embeddings of all words; called only by connectors that mix them.
        """
        return self.project(self.merged(features_NPE), words)

    def tokens_and_losses(
        self, features_NPE: Float[Tensor, "N P E"], words: Words
    ) -> tuple[Float[Tensor, "N K D"], dict[str, Tensor]]:
        """Visual tokens as `forward` gives them, and the connector's auxiliary losses by name, coefficients included."""
        if isinstance(self.project, HasAuxiliaryLoss):
            return self.project.tokens_and_losses(self.merged(features_NPE), words)
        return self(features_NPE, words), {}

    def merged(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "N K F"]:
        """Features after folding, as the projection takes them."""
        if self.config.merge == "raster":
            return raster_merge(features_NPE, self.config.shuffle**2)
        return pixel_shuffle(features_NPE, (self.shape.rows, self.shape.columns), self.config.shuffle)

    def adopt_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Hands the decoder's head to a projection that begins as a copy of it; called once, when a new model is put together."""
        if isinstance(self.project, InitialisesFromHead):
            self.project.adopt_head(head_VD)

    @property
    def mixes_words(self) -> bool:
        """Whether visual tokens are mixtures of the decoder's word embeddings."""
        return isinstance(self.project, MixesVocabulary)

    @property
    def word_mixer(self) -> MixesVocabulary:
        """The projection, if its visual tokens are mixtures of words.

        Raises:
            ConfigError: they are not.
        """
        if not isinstance(self.project, MixesVocabulary):
            kind = type(self.config).model_fields["kind"].default
            raise ConfigError(f"connector {kind!r} mixes no words.", "Only a model with the connector 'align' has words per patch.")
        return self.project

    def log_values(self) -> dict[str, float]:
        """Values of the connector for the log."""
        return self.project.log_values() if isinstance(self.project, HasLogValues) else {}


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


def need_grid(kind: str, shape: ConnectorShape) -> None:
    """Refuses a row of tokens that only looks like a grid of one row.

    Raises:
        ConfigError: patches were merged in raster order, or a class token stands among them.
    """
    if shape.rows == 1 and shape.columns > 1:
        raise ConfigError(
            f"model.connector.kind={kind} needs a grid of patches, here they are a row of {shape.columns}.",
            "Set model.connector.merge=blocks and model.vision.drop_class_token=true.",
        )

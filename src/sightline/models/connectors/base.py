"""What all connectors share: their shape, and the merging of patches before the projection.

A connector is `project(merge(features))`. `merge` makes fewer, wider tokens without parameters; `project` is the only module that
a connector's own file defines. Optional abilities (initialise from the decoder's head, mix vocabulary entries, add an auxiliary
loss, log values) are abstract classes below, from which a projection also inherits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.config import Config
from sightline.errors import ConfigError
from sightline.ops.precision import read_at_once
from sightline.ops.splice import pixel_shuffle, raster_merge
from sightline.ops.vocabulary_attention import WordDistribution
from sightline.registry import HasKind

Words = Callable[[], Float[Tensor, "V D"]]


@dataclass(frozen=True)
class ConnectorShape:
    """Shapes around a connector: a grid of `rows x columns` tokens of `width_in` in, tokens of `width_out` out.

    Attributes:
        num_words: number of vocabulary entries of the decoder before image and tile tokens were added.
    """

    rows: int
    columns: int
    width_in: int
    width_out: int
    num_words: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


class ConnectorConfig(HasKind, Config):
    """Fields that every connector has."""

    width_field: ClassVar[str] = ""
    """Name of the field that sets the number of parameters, for comparisons at equal size; empty if there is none."""
    width_step: ClassVar[str] = ""
    """Name of a field whose value must divide that width."""
    shuffle: int = Field(default=1, ge=1, le=8)
    """Merge blocks of `shuffle x shuffle` patches into one token before the projection (pixel shuffle); 1 keeps every patch."""
    merge: Literal["blocks", "raster"] = "blocks"
    """`blocks`: neighbours in the image. `raster`: `shuffle^2` consecutive patches in raster order, as in TinyVLM's reported run;
    these strips wrap around rows."""

    @abstractmethod
    def build(self, shape: ConnectorShape) -> nn.Module:
        """Builds the projection with initial weights; it maps features `[N, K, width_in]` and `words` to `[N, K', width_out]`."""

    def grid_out(self, shape: ConnectorShape) -> tuple[int, int]:
        """Returns rows and columns of the visual tokens of a crop; one row if they form no grid.

        Raises:
            ConfigError: the connector does not support this grid.
        """
        return shape.rows, shape.columns

    def tokens_out(self, shape: ConnectorShape) -> int:
        """Returns the number of visual tokens per crop."""
        rows, columns = self.grid_out(shape)
        return rows * columns


# Optional abilities of a projection ---------------------------------------------------------------------------------------------


class InitialisesFromHead(ABC):
    """A projection that is initialised from the decoder's head."""

    @abstractmethod
    def initialise_from_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Copies weights from the head; the copies train apart from it."""


class MixesVocabulary(ABC):
    """A projection whose visual tokens are mixtures of the decoder's input embeddings."""

    @abstractmethod
    def restrict_vocabulary(self, word_ids: Sequence[int] | None) -> None:
        """Restricts the mixture to some vocabulary entries in evaluation; None removes the restriction."""

    @abstractmethod
    def distribution(self, features_NKF: Float[Tensor, "N K F"], top: int, threshold: float) -> WordDistribution:
        """Returns the mixture weights of each visual token."""


class HasAuxiliaryLoss(ABC):
    """A projection that adds auxiliary losses to the objective."""

    @abstractmethod
    def tokens_and_losses(
        self, features_NKF: Float[Tensor, "N K F"], words: Words
    ) -> tuple[Float[Tensor, "N K D"], dict[str, Tensor]]:
        """Returns visual tokens like `forward`, and scalar losses by name, times their coefficients; no losses in eval mode."""


class HasLogValues(ABC):
    """A projection with values to log at each step."""

    @abstractmethod
    def log_values(self) -> Mapping[str, float | Tensor]:
        """Returns the values by name; scalar tensors are copied to the host together."""


class Connector(nn.Module):
    """A connector: `project(merge(features))`.

    Args:
        config: the connector's kind and sizes.
        shape: the encoder's grid and width, the decoder's width and vocabulary size.

    Raises:
        ConfigError: the grid does not divide into blocks, or the projection does not support it.
    """

    def __init__(self, config: ConnectorConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        merged = merged_shape(config, shape)
        config.grid_out(merged)  # raises for an unsupported grid before weights are allocated
        self.project = config.build(merged)

    @property
    def tokens_per_crop(self) -> int:
        return self.config.tokens_out(merged_shape(self.config, self.shape))

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of a crop; one row if they form no grid."""
        return self.config.grid_out(merged_shape(self.config, self.shape))

    def forward(self, features_NPE: Float[Tensor, "N P E"], words: Words) -> Float[Tensor, "N K D"]:
        """Returns the visual tokens of each crop.

        Args:
            features_NPE: encoder outputs in raster order.
            words: returns the decoder's input embeddings of its original vocabulary; called only by connectors that mix them.
        """
        return self.project(self.merged(features_NPE), words)

    def tokens_and_losses(
        self, features_NPE: Float[Tensor, "N P E"], words: Words
    ) -> tuple[Float[Tensor, "N K D"], dict[str, Tensor]]:
        """Returns visual tokens like `forward`, and the connector's auxiliary losses by name, times their coefficients."""
        if isinstance(self.project, HasAuxiliaryLoss):
            return self.project.tokens_and_losses(self.merged(features_NPE), words)
        return self(features_NPE, words), {}

    def merged(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "N K F"]:
        """Returns the features after merging, as the projection takes them."""
        if self.config.merge == "raster":
            return raster_merge(features_NPE, self.config.shuffle**2)
        return pixel_shuffle(features_NPE, (self.shape.rows, self.shape.columns), self.config.shuffle)

    def initialise_from_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Initialises the projection from the decoder's head, if it does so; called once, when a new model is built."""
        if isinstance(self.project, InitialisesFromHead):
            self.project.initialise_from_head(head_VD)

    @property
    def mixes_vocabulary(self) -> bool:
        """Whether visual tokens are mixtures of the decoder's input embeddings."""
        return isinstance(self.project, MixesVocabulary)

    @property
    def vocabulary_mixer(self) -> MixesVocabulary:
        """Returns the projection if its visual tokens are mixtures of vocabulary entries.

        Raises:
            ConfigError: the connector is of another kind.
        """
        if not isinstance(self.project, MixesVocabulary):
            raise ConfigError(
                f"`--what words` and `--words` work only for the `align` connector; this run uses {self.config.kind!r}.",
                "Choose a run with model.connector.kind=align.",
            )
        return self.project

    def log_values(self) -> dict[str, float]:
        """Returns the connector's values for the log."""
        return read_at_once(self.project.log_values()) if isinstance(self.project, HasLogValues) else {}


def merged_shape(config: ConnectorConfig, shape: ConnectorShape) -> ConnectorShape:
    """Returns the shapes around the projection, after merging.

    Raises:
        ConfigError: the grid does not divide into blocks.
    """
    factor = config.shuffle
    width = shape.width_in * factor**2
    if config.merge == "raster":
        # 14 x 14 patches in strips of 4 give 49 tokens, which form no real grid.
        if shape.num_tokens % factor**2:
            raise ConfigError(
                f"model.connector.shuffle={factor}: the encoder's {shape.num_tokens} patches are not divisible by {factor**2}."
            )
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
    """Refuses tokens that form no grid of patches.

    Raises:
        ConfigError: patches were merged in raster order, or a class token is among them.
    """
    if shape.rows == 1 and shape.columns > 1:
        raise ConfigError(
            f"model.connector.kind={kind} needs a grid of patches; this model gives one row of {shape.columns} tokens.",
            "Set model.connector.merge=blocks and model.vision.drop_class_token=true.",
        )

"""The surface that all models share: a vision-language model of ours, a decoder alone, a stock model of transformers.

Everything outside `sightline.models` uses these members and asks a model what it can do, never which class it is.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from sightline.models.connectors import Connector
from sightline.models.vision import EncoderOutputs
from sightline.types import Batch, Hidden, Visual


class SightModel(Protocol):
    """A model that can be trained, evaluated and probed; every implementation is also a `torch.nn.Module`."""

    @property
    def inner(self) -> PreTrainedModel:
        """The transformers model that is saved, and that hooks of transformers go to."""
        ...

    @property
    def language(self) -> PreTrainedModel:
        """The causal language model that rows of embeddings run through."""
        ...

    def parts(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """Parameters of each part by their full names; every parameter belongs to one part."""
        ...

    @property
    def takes_images(self) -> bool:
        """Whether `features` and `visual_tokens` can be called, and batches may hold images."""
        ...

    @property
    def tokens_per_crop(self) -> int:
        """Visual tokens of a crop; 0 where the model takes no images."""
        ...

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop; one row where they form no grid."""
        ...

    @property
    def connector(self) -> Connector | None:
        """The connector, where it is one of Sightline's."""
        ...

    @property
    def encoder_outputs(self) -> EncoderOutputs | None:
        """The encoder and which of its outputs the connector takes, where they can be stored and read back."""
        ...

    def features(self, visual: Visual) -> Float[Tensor, "N P E"]:
        """Encoder outputs of a batch's crops, before the connector: computed from pixels, or stored ones.

        Raises:
            RecordError: the model takes no images.
            ConfigError: it reads no stored features.
        """
        ...

    def visual_tokens(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "X D"]:
        """Outputs of the connector: the tokens of all crops one after the other, then the learned separators between tiles."""
        ...

    def hidden(self, batch: Batch) -> Hidden:
        """Hidden states of packed rows at the supervised slots.

        Raises:
            RecordError: the batch holds images and the model takes none.
        """
        ...

    def generate(self, **arguments: Any) -> Any:
        """`generate` of transformers."""
        ...

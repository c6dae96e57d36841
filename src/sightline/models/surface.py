"""Interface of all models: a Sightline vision-language model, a decoder alone, a vision-language model of transformers.

Code outside of `sightline.models` uses these members and tests what a model supports, never its class.
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
        """The transformers model that is saved and that transformers' hooks apply to."""
        ...

    @property
    def language(self) -> PreTrainedModel:
        """The causal language model that runs on rows of embeddings."""
        ...

    def parts(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """Returns the parameters of each part by their full names; every parameter belongs to exactly one part."""
        ...

    @property
    def takes_images(self) -> bool:
        """Whether batches may hold images, so that `features` and `visual_tokens` can be called."""
        ...

    @property
    def tokens_per_crop(self) -> int:
        """Number of visual tokens of a crop; 0 if the model takes no images."""
        ...

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of a crop; one row if they form no grid."""
        ...

    @property
    def connector(self) -> Connector | None:
        """The connector, if it is one of Sightline's; else None."""
        ...

    @property
    def encoder_outputs(self) -> EncoderOutputs | None:
        """The encoder and which of its outputs the connector takes; None if they cannot be stored."""
        ...

    def features(self, visual: Visual) -> Float[Tensor, "N P E"]:
        """Returns the encoder outputs of a batch's crops, before the connector: computed from pixels, or stored ones.

        Raises:
            RecordError: the model takes no images.
            ConfigError: the batch holds stored features and the model cannot use them.
        """
        ...

    def visual_tokens(self, features_NPE: Float[Tensor, "N P E"]) -> Float[Tensor, "X D"]:
        """Returns the connector's outputs: the tokens of all crops in order, then the learned separators between tiles."""
        ...

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states of packed rows at the supervised slots.

        Raises:
            RecordError: the batch holds images and the model takes none.
        """
        ...

    def generate(self, **arguments: Any) -> Any:
        """Calls transformers' `generate`."""
        ...

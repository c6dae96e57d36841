"""A decoder alone, to pre-train and evaluate a language model on text records."""

from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import PreTrainedModel

from sightline.errors import RecordError
from sightline.models.language import hidden_states
from sightline.types import Batch, Hidden, Visual


class TextModel(nn.Module):
    """A causal language model as a `SightModel` that takes no images.

    Args:
        language: the decoder; it is saved as an ordinary transformers folder.
    """

    takes_images = False
    tokens_per_crop = 0
    token_grid = (1, 1)
    connector = encoder_outputs = None

    def __init__(self, language: PreTrainedModel) -> None:
        super().__init__()
        self.language = language

    @property
    def inner(self) -> PreTrainedModel:
        return self.language

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Returns all parameters as the part `language`."""
        return {"language": dict(self.named_parameters())}

    def features(self, visual: Visual) -> NoReturn:
        raise RecordError("image_in_text_model", "this is a text-only model; it cannot take images")

    def visual_tokens(self, features_NPE: Tensor) -> NoReturn:
        raise RecordError("image_in_text_model", "this is a text-only model; it cannot take image features")

    def generate(self, **arguments: Any) -> Any:
        """Calls the decoder's `generate`."""
        return self.language.generate(**arguments)  # pyrefly: ignore

    def hidden(self, batch: Batch) -> Hidden:
        """Returns the hidden states of packed text rows at the supervised slots.

        Raises:
            RecordError: the batch holds images.
        """
        if batch.visual is not None:
            self.features(batch.visual)
        return hidden_states(self.language, self.language.get_input_embeddings()(batch.tokens.ids_BT), batch)

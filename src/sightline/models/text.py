"""A decoder alone, with the surface that the training loop uses: how a language model is pre-trained on text records."""

import torch
from torch import nn
from transformers import PreTrainedModel

from sightline.errors import RecordError
from sightline.models.language import decode, head_of
from sightline.types import Batch, Hidden


class TextModel(nn.Module):
    """`hidden` for a causal language model.

    Args:
        language: the decoder; it saves itself as an ordinary transformers folder.
    """

    def __init__(self, language: PreTrainedModel) -> None:
        super().__init__()
        self.language = language

    def hidden(self, batch: Batch) -> Hidden:
        """Hidden states of packed rows of text at the supervised slots.

        Raises:
            RecordError: the batch holds pictures.
        """
        if batch.visual is not None:
            raise RecordError("image_in_text_model", "a text model was given pictures")
        return hidden_states(self.language, self.language.get_input_embeddings()(batch.tokens.ids_BT), batch)


def hidden_states(decoder: PreTrainedModel, embeddings_BTD: torch.Tensor, batch: Batch) -> Hidden:
    """Runs the decoder on rows of embeddings and picks the supervised slots; a slot of -1 gives zeros."""
    states_BTD, losses = decode(decoder, embeddings_BTD, batch.tokens)
    slot_S = batch.supervision.slot_S
    states_SD = states_BTD.flatten(0, 1).index_select(0, slot_S.clamp(min=0))  # see `splice` for why not [...]
    states_SD = torch.where(slot_S[:, None] >= 0, states_SD, torch.zeros_like(states_SD))
    return Hidden(states_SD, head_of(decoder), losses)

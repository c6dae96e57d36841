"""`ModelBundle`: a model with everything needed to use it. The model is ours, a decoder alone, or a stock one of transformers."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sightline.assembly.model.inputs import ModelInputs
from sightline.data.samples.processing import Processing
from sightline.models.dual import DualModel, pair_model
from sightline.models.surface import SightModel


@dataclass(frozen=True)
class ModelBundle(ModelInputs):
    """A model with its weights, its tokenizer, and how records become its inputs.

    Attributes:
        model: a vision-language model of ours, a stock one, or a decoder alone.
        tokenizer: knows `<image>` and the tokens of the tiling.
        processing: how records become inputs.
    """

    model: SightModel
    tokenizer: PreTrainedTokenizerBase
    processing: Processing

    @property
    def module(self) -> nn.Module:
        """The model as a torch module: what is moved, trained and saved."""
        assert isinstance(self.model, nn.Module)  # every implementation of the surface is one
        return self.model

    @property
    def inner(self) -> PreTrainedModel:
        """The transformers model that is saved, and that hooks of transformers go to."""
        return self.model.inner

    @property
    def pairs(self) -> DualModel | None:
        """The model as one that compares images with texts; None where it is no dual encoder."""
        return pair_model(self.model)

    @property
    def takes_images(self) -> bool:
        """False for a decoder alone."""
        return self.model.takes_images

    @property
    def tokens_per_crop(self) -> int:
        return self.model.tokens_per_crop

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop."""
        return self.model.token_grid

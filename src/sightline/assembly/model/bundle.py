"""A model with all that it takes to use it, whether it is ours, a decoder alone, or a stock model of transformers."""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sightline.data.samples.encoding import ConversationEncoder, Policy, TextRules
from sightline.data.samples.processing import Processing
from sightline.data.samples.templates import Template
from sightline.models.surface import SightModel


@dataclass(frozen=True)
class ModelBundle:
    """A model with all that it takes to use it.

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
    def template(self) -> Template:
        return Template(self.tokenizer, self.processing.template)

    @property
    def tokens_per_crop(self) -> int:
        return self.model.tokens_per_crop

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop."""
        return self.model.token_grid

    @property
    def pad_id(self) -> int:
        return self.builder().pad_id

    def builder(
        self,
        prompt: str | None = None,
        max_tokens: int | None = None,
        too_long: Literal["skip", "truncate"] = "skip",
        supervise: Policy | None = None,
        captions: Literal["all", "first"] = "all",
        drop_images: bool = False,
    ) -> ConversationEncoder:
        """Makes rows for this model; what is not given is as it was trained."""
        rules = TextRules(
            prompt=self.processing.prompt if prompt is None else prompt,
            supervise=supervise or self.processing.supervise,
            max_tokens=max_tokens or self.processing.max_tokens,
            too_long=too_long,
            captions=captions,
            drop_images=drop_images,
            grid=self.token_grid,
            tiling=self.processing.tiling if self.model.takes_images else None,
        )
        return ConversationEncoder(self.tokenizer, self.template, rules)

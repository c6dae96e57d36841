"""A model with all that it takes to use it, whether it is ours, a decoder alone, or a stock model of transformers."""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sightline.data.samples.encoding import ConversationEncoder, Policy, TextRules
from sightline.data.samples.processing import Processing
from sightline.data.samples.templates import Template
from sightline.models.stock import StockModel
from sightline.models.text import TextModel
from sightline.models.vlm import SightlineForConditionalGeneration


@dataclass(frozen=True)
class ModelBundle:
    """A model with all that it takes to use it.

    Attributes:
        model: the vision-language model, a stock one, or a `TextModel`.
        tokenizer: knows `<image>` and the tokens of the tiling.
        processing: how records become inputs.
    """

    model: SightlineForConditionalGeneration | StockModel | TextModel
    tokenizer: PreTrainedTokenizerBase
    processing: Processing

    @property
    def inner(self) -> PreTrainedModel:
        """The transformers model that is saved, and that hooks of transformers go to."""
        if isinstance(self.model, TextModel):
            return self.model.language
        return self.model.inner if isinstance(self.model, StockModel) else self.model

    @property
    def speaker(self) -> PreTrainedModel | StockModel:
        """What `sightline.generation.decode.generate` is called with."""
        return self.model if isinstance(self.model, StockModel) else self.inner

    @property
    def template(self) -> Template:
        return Template(self.tokenizer, self.processing.template)

    @property
    def tokens_per_crop(self) -> int:
        if isinstance(self.model, TextModel):
            return 0
        return self.model.tokens_per_crop if isinstance(self.model, StockModel) else self.model.connector.tokens_per_crop

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens of a crop."""
        if isinstance(self.model, TextModel):
            return 1, 1
        return self.model.token_grid if isinstance(self.model, StockModel) else self.model.connector.token_grid

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
            tiling=None if isinstance(self.model, TextModel) else self.processing.tiling,
        )
        return ConversationEncoder(self.tokenizer, self.template, rules)

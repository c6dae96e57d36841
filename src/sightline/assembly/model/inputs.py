"""How records become inputs of a model, whether its weights are loaded (`ModelBundle`) or not (`Blueprint`).

Both inherit `ModelInputs`, so `data check` and `data preview` encode records with the code that trains.
"""

from dataclasses import replace
from typing import Literal, Self

from transformers import PreTrainedTokenizerBase

from sightline.assembly.config.schema import DataConfig
from sightline.data.samples.encoding import ConversationEncoder, Policy, TextRules, pad_id_of
from sightline.data.samples.processing import Processing
from sightline.data.samples.templates import Template
from sightline.types import Message, Part


class ModelInputs:
    """Makes the encoder of conversations for a model. Inherited by dataclasses that have these fields.

    Attributes:
        tokenizer: knows `<image>` and the tokens of the tiling.
        processing: prompt, template, supervision, tiling and image preparation.
        takes_images: False for a decoder alone.
        token_grid: rows and columns of visual tokens of a crop; `(1, 1)` for a decoder alone.
    """

    tokenizer: PreTrainedTokenizerBase
    processing: Processing

    @property
    def takes_images(self) -> bool:
        raise NotImplementedError

    @property
    def token_grid(self) -> tuple[int, int]:
        raise NotImplementedError

    @property
    def template(self) -> Template:
        """Compiles the chat template (about a millisecond)."""
        return Template(self.tokenizer, self.processing.template)

    @property
    def pad_id(self) -> int:
        return pad_id_of(self.tokenizer)

    def conversation_encoder(
        self,
        prompt: str | None = None,
        max_tokens: int | None = None,
        too_long: Literal["skip", "truncate"] = "skip",
        supervise: Policy | None = None,
        captions: Literal["all", "first"] = "all",
        drop_images: bool = False,
    ) -> ConversationEncoder:
        """Returns the encoder of conversations for this model.

        Args:
            prompt, max_tokens, supervise: as in `TextRules`; by default as the model was trained.
            too_long, captions, drop_images: as in `TextRules`.
        """
        rules = TextRules(
            prompt=self.processing.prompt if prompt is None else prompt,
            supervise=supervise or self.processing.supervise,
            max_tokens=max_tokens or self.processing.max_tokens,
            too_long=too_long,
            captions=captions,
            drop_images=drop_images,
            grid=self.token_grid,
            tiling=self.processing.tiling if self.takes_images else None,
        )
        return ConversationEncoder(self.tokenizer, self.template, rules)

    def stage_builder(self, data: DataConfig, prompt: str | None = None) -> ConversationEncoder:
        """Returns the encoder of conversations of a training stage.

        Args:
            data: the stage's data section; all of it that concerns text holds.
            prompt: of one source of a mixture, instead of `data.prompt`.
        """
        captions = "all" if data.captions == "one" else data.captions  # `one` is refused for decoders
        return self.for_stage(data).conversation_encoder(
            prompt, too_long=data.too_long, captions=captions, drop_images=data.drop_images
        )

    def for_stage(self, data: DataConfig) -> Self:
        """Returns the same model with the prompt, template, supervision and row length of a stage, which evaluation uses later."""
        changes = {"prompt": data.prompt, "supervise": data.supervise, "max_tokens": data.max_tokens}
        if data.template != "auto":
            changes["template"] = data.template
        return replace(self, processing=self.processing.model_copy(update=changes))  # pyrefly: ignore[bad-specialization]

    def closing_token(self) -> int | None:
        """Returns the special token that ends an assistant's turn in the chat template; None for a template without one.

        A model that is trained on a template without one never learns to stop.
        """
        conversation_encoder = self.conversation_encoder(
            max_tokens=1 << 16, supervise="assistant"
        )  # whatever the data's limit and policy
        turn = (Message("user", (Part("a"),)), Message("assistant", (Part("a"),)))
        row = conversation_encoder.encode_conversation(turn, [])
        last = int(row.ids[row.spans[-1].end - 1])
        return last if last in conversation_encoder.special_ids else None

    def data_section(self) -> DataConfig:
        """Returns a data section with the rules that the model was trained with, for a model without a run's configuration."""
        trained = self.processing
        return DataConfig(
            prompt=trained.prompt,
            template=trained.template,
            supervise=trained.supervise,
            max_tokens=max(8, trained.max_tokens),
        )

"""A model as something that answers records."""

from collections.abc import Mapping, Sequence

import torch

from sightline.assembly.model.build import ModelBundle
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation
from sightline.data.samples.prompts import FewShotExample, Prompt, make_prompt, prompt_row
from sightline.errors import RecordError
from sightline.generation.decode import DecodingConfig, Text, generate
from sightline.models.language import position_limit
from sightline.types import Record


class ModelAnswers:
    """Answers records by batched generation.

    Args:
        bundle: the model, on its device and in `eval` mode.
        dataset: holds the pictures.
        pictures: fills visual slots; a control replaces them.
        decoding: greedy by default.
        builder: makes prompts.
        examples: what stands before the questions, by record id.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        dataset: Dataset,
        pictures: VisualInputLoader | None,
        decoding: DecodingConfig,
        builder: ConversationEncoder,
        bf16: bool,
        examples: Mapping[str, Sequence[FewShotExample]] | None = None,
    ) -> None:
        self.bundle, self.dataset, self.pictures = bundle, dataset, pictures
        self.decoding, self.builder, self.bf16 = decoding, builder, bf16
        self.examples: Mapping[str, Sequence[FewShotExample]] = examples or {}
        self.positions = position_limit(bundle.inner.config.get_text_config(decoder=True))

    def width(self, records: Sequence[Record]) -> int:
        """The longest prompt in tokens."""
        longest = 0
        for record in records:
            try:
                row, _ = prompt_row(record, self.builder, self.examples.get(record.id, ()))
                self._check_length(row)
                longest = max(longest, len(row.ids))
            except RecordError:
                continue
        return longest

    def answer(self, records: Sequence[Record], width: int) -> list[Text | RecordError]:
        """One text per record, or why there is none."""
        made: dict[str, Prompt | RecordError] = {}
        for record in records:
            if record.id not in made:
                made[record.id] = self._prompt(record)
        prompts = [prompt for record in records if isinstance(prompt := made[record.id], Prompt)]
        prompts += prompts[-1:] * (len(records) - len(prompts))  # one shape, whatever had to be skipped
        device = self.bundle.inner.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            texts = iter(generate(self.bundle.model, self.bundle.tokenizer, prompts, self.decoding, width) if prompts else [])
        return [next(texts) if isinstance(made[record.id], Prompt) else made[record.id] for record in records]  # type: ignore[misc]

    def _prompt(self, record: Record) -> Prompt | RecordError:
        examples, per_crop = self.examples.get(record.id, ()), self.bundle.tokens_per_crop
        try:
            self._check_length(prompt_row(record, self.builder, examples)[0])
            return make_prompt(self.dataset, record, self.builder, self.pictures, per_crop, examples)
        except RecordError as error:
            return error

    def _check_length(self, row: EncodedConversation) -> None:
        """Refuses a prompt behind which the decoder could not place an answer."""
        if len(row.ids) + self.decoding.max_new_tokens > self.positions:
            raise RecordError("too_long", f"{len(row.ids)} tokens and an answer, but the decoder has {self.positions} positions")

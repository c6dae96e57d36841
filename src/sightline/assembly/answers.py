"""A model of ours as something that answers records."""

from collections.abc import Sequence

import torch

from sightline.assembly.model import Assembled
from sightline.data.corpus import Pictures
from sightline.data.dataset import Dataset
from sightline.data.prompts import Prompt, make_prompt
from sightline.data.samples import RowBuilder
from sightline.errors import RecordError
from sightline.generation.decode import DecodingConfig, Text, generate
from sightline.types import Record


class ModelAnswers:
    """Answers records by batched generation.

    Args:
        made: the model, on its device and in `eval` mode.
        dataset: holds the pictures.
        pictures: fills visual slots; a control replaces them.
        decoding: greedy by default.
        builder: makes prompts.
    """

    def __init__(
        self,
        made: Assembled,
        dataset: Dataset,
        pictures: Pictures | None,
        decoding: DecodingConfig,
        builder: RowBuilder,
        bf16: bool,
    ) -> None:
        self.made, self.dataset, self.pictures = made, dataset, pictures
        self.decoding, self.builder, self.bf16 = decoding, builder, bf16

    def width(self, records: Sequence[Record]) -> int:
        """The longest prompt in tokens."""
        longest = 0
        for record in records:
            try:
                layouts = self.builder.layouts(record)
                longest = max(longest, len(self.builder.prompt_row(self.builder.prompt_messages(record), layouts).ids))
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
        device = self.made.inner.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            texts = iter(generate(self.made.speaker, self.made.tokenizer, prompts, self.decoding, width) if prompts else [])
        return [next(texts) if isinstance(made[record.id], Prompt) else made[record.id] for record in records]  # type: ignore[misc]

    def _prompt(self, record: Record) -> Prompt | RecordError:
        try:
            return make_prompt(self.dataset, record, self.builder, self.pictures, self.made.tokens_per_crop)
        except RecordError as error:
            return error

"""One or several data sets as one list of samples, numbered over the data sets one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from sightline.data.batches.plan import BatchRules, EpochPlan
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.encoding import ConversationEncoder, text_sample
from sightline.data.samples.length_table import LengthTable
from sightline.errors import RecordError
from sightline.types import Record, Sample

Built = TypeVar("Built")


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name: for the log.
        dataset: the records.
        table: length table of the samples that may be drawn.
        conversation_encoder: encodes this data set's conversations.
        samples_per_epoch: samples drawn per epoch; more or fewer than the table has repeat or leave out some.
        windowed: shuffle within windows over shards instead of permuting all samples.
    """

    name: str
    dataset: Dataset
    table: LengthTable
    conversation_encoder: ConversationEncoder
    samples_per_epoch: int
    windowed: bool = False


@dataclass(frozen=True)
class Corpus:
    """All samples of a stage.

    Args:
        sources: the data sets.
        visual_inputs: loads pixels or features; None for a decoder alone.
        tokens_per_crop: visual tokens of a crop.
        blind_logits: stored image-free logits of the supervised tokens of all samples, sample after sample; NaN where only an
            image precedes the token. None where they are not stored.
    """

    sources: tuple[Source, ...]
    visual_inputs: VisualInputLoader | None
    tokens_per_crop: int
    blind_logits: Float[np.ndarray, " supervised"] | None = None

    @cached_property
    def first_sample(self) -> Int[np.ndarray, " sources_and_end"]:
        """Index of the first sample of each source, and the number of samples."""
        return np.concatenate([[0], np.cumsum([len(source.table) for source in self.sources])]).astype(np.int64)

    @cached_property
    def tokens(self) -> Int[np.ndarray, " samples"]:
        """Tokens of each sample."""
        return np.concatenate([source.table.tokens for source in self.sources])

    @cached_property
    def supervised(self) -> Int[np.ndarray, " samples"]:
        """Supervised tokens of each sample."""
        return np.concatenate([source.table.supervised for source in self.sources])

    @cached_property
    def first_target(self) -> Int[np.ndarray, " samples_and_end"]:
        """Index of each sample's first supervised token in `blind_logits`."""
        return np.concatenate([[0], np.cumsum(self.supervised)]).astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Unique names of the sources: a repeated name gets the index of its source as a suffix."""
        names = [source.name for source in self.sources]
        return tuple(f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names))

    def plan(self, rules: BatchRules) -> EpochPlan:
        """Returns the epoch plan: which samples share a row, and which rows each step sees."""
        sources = self.sources
        draws, windowed = [source.samples_per_epoch for source in sources], [source.windowed for source in sources]
        return EpochPlan.of_tables([source.table for source in sources], draws, windowed, rules)

    def sample(self, index: int) -> Sample:
        """Builds a sample: reads its records and tokens, and loads its images.

        Raises:
            RecordError: an image that was readable when the data set was prepared no longer is.
        """
        return self._with_visual_inputs(index, *self._text(index))

    def samples(self, indices: Sequence[int]) -> list[Sample | RecordError]:
        """Builds several samples; where `sample` would raise a RecordError, the error takes the sample's place.

        The text of all samples is read before the first image is decoded. Alternating the two would take twice as long for the
        text, because decoded pixels evict it from the processor's caches.
        """
        texts: list[tuple[Sample, Source, Record] | RecordError] = [_attempt(self._text, index) for index in indices]
        return [
            text if isinstance(text, RecordError) else _attempt(self._with_visual_inputs, index, *text)
            for index, text in zip(indices, texts, strict=True)
        ]

    def text(self, index: int) -> Sample:
        """Builds a sample with its visual slots but without pixels or features."""
        return self._text(index)[0]

    def first_member(self, index: int) -> tuple[Source, Record]:
        """Returns the source of a sample and the record of its first branch."""
        number, position = self._locate(index)
        source = self.sources[number]
        return source, source.dataset.record(source.table.members(position)[0][0])

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the index of a sample's source, and the sample's index in that source."""
        number = int(np.searchsorted(self.first_sample, index, side="right")) - 1
        return number, index - int(self.first_sample[number])

    def _with_visual_inputs(self, index: int, text: Sample, source: Source, record: Record) -> Sample:
        """Adds pixels or features, and stored blind logits, to a sample that `_text` built."""
        if self.blind_logits is not None:
            text = replace(text, blind_logits=self.blind_logits[self.first_target[index] : self.first_target[index + 1]])
        if not len(text.image_slots):
            return text
        if self.visual_inputs is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        inputs = self.visual_inputs.load(source.dataset, record)
        return replace(text, images=inputs.pixels, features=inputs.features)

    def _text(self, index: int) -> tuple[Sample, Source, Record]:
        """Builds a sample without visual inputs; returns it with its source and the record of its first branch.

        All branches have the images of that record.
        """
        number, position = self._locate(index)
        source = self.sources[number]
        members, encodings = source.table.members(position), source.table.encoded(position)
        records = {record: source.dataset.record(record) for record in dict(members)}  # several captions may be of one record
        first = records[members[0][0]]
        layouts = source.conversation_encoder.layouts(first)
        if encodings is None:
            conversations = {key: source.conversation_encoder.conversations(record) for key, record in records.items()}
            encodings = [source.conversation_encoder.encode(conversations[key][branch], layouts) for key, branch in members]
        encoded = [source.conversation_encoder.with_layouts(encoding, layouts) for encoding in encodings]
        ids = [records[key].id for key, _ in members]
        return text_sample(encoded, ids, layouts, self.tokens_per_crop, number), source, first


def _attempt(work: Callable[..., Built], *arguments: Any) -> Built | RecordError:
    """Calls a function; returns the RecordError that it raises instead of raising it."""
    try:
        return work(*arguments)
    except RecordError as error:
        return error

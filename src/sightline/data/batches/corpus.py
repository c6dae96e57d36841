"""One or several data sets as one list of units, numbered over the sources one after the other."""

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
        dataset, units: the records and their length table.
        builder: makes rows of this source's records.
        draws: units that an epoch takes; the whole table once by default.
        windowed: draw in windows over shards instead of a permutation of everything.
    """

    name: str
    dataset: Dataset
    units: LengthTable
    builder: ConversationEncoder
    draws: int
    windowed: bool = False


@dataclass(frozen=True)
class Corpus:
    """All units of a stage.

    Args:
        sources: the data sets.
        pictures: fills visual slots; None for text.
        tokens_per_crop: visual tokens of a crop.
        blind_logits: stored image-free logits of all units' supervised tokens, unit after unit; NaN where nothing but an image
            precedes the token. None where they are not stored.
    """

    sources: tuple[Source, ...]
    pictures: VisualInputLoader | None
    tokens_per_crop: int
    blind_logits: Float[np.ndarray, " supervised"] | None = None

    @cached_property
    def first(self) -> Int[np.ndarray, " sources_and_end"]:
        """The first unit number of each source, and the number of units."""
        return np.concatenate([[0], np.cumsum([len(source.units) for source in self.sources])]).astype(np.int64)

    @cached_property
    def tokens(self) -> Int[np.ndarray, " units"]:
        return np.concatenate([source.units.tokens for source in self.sources])

    @cached_property
    def supervised(self) -> Int[np.ndarray, " units"]:
        return np.concatenate([source.units.supervised for source in self.sources])

    @cached_property
    def first_target(self) -> Int[np.ndarray, " units_and_end"]:
        """Where each unit's supervised tokens begin in `blind_logits`."""
        return np.concatenate([[0], np.cumsum(self.supervised)]).astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, each another one: the number of a source is added where two have the same."""
        names = [source.name for source in self.sources]
        return tuple(f"{name}_{number}" if names.count(name) > 1 else name for number, name in enumerate(names))

    def plan(self, rules: BatchRules) -> EpochPlan:
        """The rows of every step."""
        sources = self.sources
        draws, windowed = [source.draws for source in sources], [source.windowed for source in sources]
        return EpochPlan.of_tables([source.units for source in sources], draws, windowed, rules)

    def sample(self, unit: int) -> Sample:
        """Builds a unit: reads its records and tokens, opens its pictures.

        Raises:
            RecordError: a picture that was readable when the data set was prepared no longer is.
        """
        return self._filled(unit, *self._text(unit))

    def samples(self, units: Sequence[int]) -> list[Sample | RecordError]:
        """Builds several units; where `sample` raises a RecordError it stands in the place of the sample.

        All are read before the first picture is opened: by turns with decoding, which fills the processor's caches with pixels, the
        many small steps of reading take twice as long.
        """
        read: list[tuple[Sample, Source, Record] | RecordError] = [_attempt(self._text, unit) for unit in units]
        return [
            text if isinstance(text, RecordError) else _attempt(self._filled, unit, *text)
            for unit, text in zip(units, read, strict=True)
        ]

    def text(self, unit: int) -> Sample:
        """A unit as a sample whose pictures are not filled in; its visual slots are there."""
        return self._text(unit)[0]

    def first_member(self, unit: int) -> tuple[Source, Record]:
        """The source of a unit and the record of its first branch."""
        number, place = self._place(unit)
        source = self.sources[number]
        return source, source.dataset.record(source.units.members(place)[0][0])

    def _place(self, unit: int) -> tuple[int, int]:
        """The number of a unit's source, and the unit's number there."""
        number = int(np.searchsorted(self.first, unit, side="right")) - 1
        return number, unit - int(self.first[number])

    def _filled(self, unit: int, text: Sample, source: Source, record: Record) -> Sample:
        """A unit that was read, with its pictures and its stored logits."""
        if self.blind_logits is not None:
            text = replace(text, blind_logits=self.blind_logits[self.first_target[unit] : self.first_target[unit + 1]])
        if not len(text.image_slots):
            return text
        if self.pictures is None:
            raise RecordError("image_in_text_model", "the record has images, the model takes text only")
        inputs = self.pictures.load(source.dataset, record)
        return replace(text, images=inputs.pixels, features=inputs.features)

    def _text(self, unit: int) -> tuple[Sample, Source, Record]:
        """A unit without its pictures, its source, and the record of its first branch, whose pictures are those of all."""
        number, place = self._place(unit)
        source = self.sources[number]
        members, encoded = source.units.members(place), source.units.encoded(place)
        records = {index: source.dataset.record(index) for index in dict(members)}  # five captions of a picture are one record
        first = records[members[0][0]]
        layouts = source.builder.layouts(first)
        if encoded is None:
            conversations = {index: source.builder.conversations(record) for index, record in records.items()}
            encoded = [source.builder.encode(conversations[index][branch], layouts) for index, branch in members]
        rows = [source.builder.laid_out(text, layouts) for text in encoded]
        ids = [records[index].id for index, _ in members]
        return text_sample(rows, ids, layouts, self.tokens_per_crop, number), source, first


def _attempt(work: Callable[..., Built], *arguments: Any) -> Built | RecordError:
    try:
        return work(*arguments)
    except RecordError as error:
        return error

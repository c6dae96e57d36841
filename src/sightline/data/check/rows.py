"""Measures a data set under a configuration: lengths in tokens, supervised tokens, skipped conversations, fill of rows.

Everything is counted by the code that trains: the same conversation_encoder, the same length table, the same epoch plan.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int

from sightline.data.batches.packing import by_length
from sightline.data.batches.plan import EpochPlan
from sightline.data.check.figures import Spread, spread
from sightline.data.dataset import Dataset
from sightline.data.images.tilings import Layout
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation
from sightline.data.samples.length_table import LengthTable, LengthTableRules, make_length_table
from sightline.data.samples.token_table import starts
from sightline.errors import RecordError
from sightline.runtime.keyed import keyed_generator
from sightline.types import Record

LISTED_PER_REASON = 25
UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Left:
    """A conversation that is left out: its record, its number there, and why."""

    id: str
    conversation: int
    reason: str
    detail: str


@dataclass(frozen=True)
class LongestConversation:
    """Length and record of the longest conversation, one that is too long included."""

    tokens: int = 0
    id: str = ""


@dataclass(frozen=True)
class RowSummary:
    """Numbers about the conversations of a split as training makes rows of them; field names are JSON keys.

    Attributes:
        conversations, kept: all, and those that can be trained on.
        skipped, left_out: the others by reason, and some of them.
        tokens, too_long: lengths of all, and of those beyond `max_tokens`.
        supervised, supervised_share: supervised tokens of a conversation, and their share of all tokens.
        visual_tokens_per_image, crops_per_image: of each image.
        samples, sample_tokens: training samples, and their lengths.
        tokens_alone, tokens_shared: tokens of all conversations as rows of their own, and with prefixes shared.
        saved_by_sharing: share of the tokens that sharing saves.
    """

    conversations: int
    kept: int
    skipped: dict[str, int]
    left_out: list[Left]
    tokens: Spread | None
    too_long: Spread | None
    max_tokens: int
    longest: LongestConversation
    supervised: Spread | None
    supervised_share: float
    visual_tokens_per_image: Spread | None
    crops_per_image: Spread | None
    samples: int
    sample_tokens: Spread | None
    tokens_alone: int
    tokens_shared: int
    saved_by_sharing: float


@dataclass(frozen=True)
class PaddedFigures:
    """Token places of padded batches of `batch` conversations, drawn at random and sorted by length, and the tokens in them."""

    batch: int
    capacity: int
    capacity_sorted: int
    tokens: int


@dataclass(frozen=True)
class EpochFigures:
    """Rows, fill rate and steps of an epoch; field names are JSON keys.

    Attributes:
        rows_full_of_images: rows that hold as many images as a row may.
        capacity: token places of the rows; `fill` is the share that holds a token.
        padded: what padded batches of single conversations would take; `padded_over_packed` is that over `capacity`.
    """

    samples: int
    conversations: int
    tokens: int
    rows: int
    rows_full_of_images: int
    capacity: int
    fill: float
    rows_per_step: int
    steps_per_epoch: int
    padded: PaddedFigures
    padded_over_packed: float


@dataclass
class RowFigures:
    """Numbers about the rows of one split; shown every conversation while the length table is made.

    Attributes:
        conversation_encoder: makes the rows.
        on_skip: called with each conversation that is left out.
        table: the length table, once it is made.
    """

    conversation_encoder: ConversationEncoder
    on_skip: Callable[[Left], None] = lambda left: None
    table: LengthTable | None = None
    longest: LongestConversation = LongestConversation()
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: list[Left] = field(default_factory=list)
    _lengths: array = field(default_factory=lambda: array("I"))  # too long ones included
    _kept: array = field(default_factory=lambda: array("I"))
    _supervised: array = field(default_factory=lambda: array("I"))
    _visual: array = field(default_factory=lambda: array("I"))
    _crops: array = field(default_factory=lambda: array("I"))
    _too_long: array = field(default_factory=lambda: array("I"))

    def row(self, record: Record, branch: int, row: EncodedConversation, layouts: Sequence[Layout]) -> None:
        """Counts a conversation that can be trained on."""
        self._measure(len(row.ids), record.id)
        self._kept.append(len(row.ids))
        self._supervised.append(row.num_supervised)
        if branch == 0:
            self._visual.extend(sum(layout.slots) for layout in layouts)
            self._crops.extend(layout.num_crops for layout in layouts)

    def skip(self, record: Record, branch: int, error: RecordError) -> None:
        """Counts one that cannot; of one that is too long the length is measured all the same."""
        left = Left(record.id, branch, error.reason, error.message)
        self.skipped[error.reason] += 1
        if self.skipped[error.reason] <= LISTED_PER_REASON:
            self.first_skipped.append(left)
        self.on_skip(left)
        if error.reason == "too_long":
            rules = replace(self.conversation_encoder.rules, max_tokens=UNLIMITED, supervise="assistant")
            endless = ConversationEncoder(self.conversation_encoder.tokenizer, self.conversation_encoder.template, rules)
            length = len(
                endless.encode_conversation(
                    self.conversation_encoder.conversations(record)[branch], self.conversation_encoder.layouts(record)
                ).ids
            )
            self._too_long.append(length)
            self._measure(length, record.id)

    @property
    def kept_lengths(self) -> Sequence[int]:
        """Length of each conversation that is kept, alone in a row, in the order of the length table."""
        return self._kept

    def _measure(self, length: int, record_id: str) -> None:
        self._lengths.append(length)
        if length > self.longest.tokens:
            self.longest = LongestConversation(length, record_id)

    def summary(self) -> RowSummary:
        """Returns the figures after the length table was made."""
        assert self.table is not None
        kept, left = len(self._supervised), self.skipped.total()
        alone, shared = int(self.table.tokens_unshared.sum()), int(self.table.tokens.sum())
        return RowSummary(
            conversations=kept + left,
            kept=kept,
            skipped=dict(sorted(self.skipped.items())),
            left_out=self.first_skipped,
            tokens=spread(self._lengths),
            too_long=spread(self._too_long),
            max_tokens=self.conversation_encoder.rules.max_tokens,
            longest=self.longest,
            supervised=spread(self._supervised),
            supervised_share=sum(self._supervised) / alone if alone else 0.0,
            visual_tokens_per_image=spread(self._visual),
            crops_per_image=spread(self._crops),
            samples=len(self.table),
            sample_tokens=spread(self.table.tokens),
            tokens_alone=alone,
            tokens_shared=shared,
            saved_by_sharing=1 - shared / alone if alone else 0.0,
        )


def measure_rows(
    dataset: Dataset,
    indices: Iterable[int],
    conversation_encoder: ConversationEncoder,
    rules: LengthTableRules,
    on_skip: Callable[[Left], None] = lambda left: None,
) -> RowFigures:
    """Tokenises records as training does, and counts.

    Args:
        dataset: holds the records.
        indices: of the records, in order.
        conversation_encoder: makes rows.
        rules: how conversations of one image are grouped.
        on_skip: called with each conversation that is left out.
    """
    figures = RowFigures(conversation_encoder, on_skip)
    figures.table = make_length_table(dataset, indices, conversation_encoder, rules, figures)
    return figures


@dataclass(frozen=True)
class ConversationLengths:
    """Length of every conversation as a row of its own, by sample.

    Attributes:
        alone: of each conversation.
        begin: where each sample's conversations begin; one entry more than samples.
    """

    alone: Int[np.ndarray, " conversations"]
    begin: Int[np.ndarray, " samples_and_end"]

    @classmethod
    def of(cls, tables: Sequence[LengthTable], kept_lengths: Sequence[Sequence[int]]) -> "ConversationLengths":
        """Joins the lengths of several data sets, in order.

        Args:
            tables: the samples of each data set.
            kept_lengths: of all its conversations that can be trained on.
        """
        alone = [np.asarray(lengths, dtype=np.int64)[table.text] for table, lengths in zip(tables, kept_lengths, strict=True)]
        return cls(np.concatenate(alone), starts(np.concatenate([np.diff(table.begin) for table in tables]).tolist()))

    def of_samples(self, order: Int[np.ndarray, " draws"]) -> Int[np.ndarray, " conversations"]:
        """Returns length of every conversation of some samples."""
        spans = [self.alone[self.begin[sample] : self.begin[sample + 1]] for sample in order.tolist()]
        return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)


def epoch_figures(plan: EpochPlan, conversations: ConversationLengths) -> EpochFigures:
    """Returns rows, fill rate and steps of the first epoch, beside what padded batches of single conversations would take.

    Args:
        plan: the rows of an epoch.
        conversations: lengths of the conversations of its samples.
    """
    rules, order, rows = plan.rules, plan.order(0), plan.rows(0)
    tokens, batch = int(plan.lengths[order].sum()), max(1, rules.rows_per_step // rules.accumulate)
    if rules.pack:
        capacity = len(rows) * rules.row_tokens
    else:
        capacity = padded(plan.lengths[[sample for row in rows for sample in row]], batch)
    single = keyed_generator("padded", 0).permutation(conversations.of_samples(order))
    size = max(1, round(len(single) / max(len(rows), 1) * batch))  # as many conversations a batch as the rows above hold
    as_padded = padded(single, size)
    sorted_padded = padded(single[by_length(np.arange(len(single)), single, size)], size)
    return EpochFigures(
        samples=len(order),
        conversations=len(single),
        tokens=tokens,
        rows=len(rows),
        rows_full_of_images=sum(int(plan.crops[list(row)].sum()) == rules.row_images for row in rows) if rules.pack else 0,
        capacity=capacity,
        fill=tokens / capacity if capacity else 0.0,
        rows_per_step=rules.rows_per_step,
        steps_per_epoch=plan.steps(0),
        padded=PaddedFigures(size, as_padded, sorted_padded, int(single.sum())),
        padded_over_packed=as_padded / capacity if capacity else 0.0,
    )


def padded(lengths: Int[np.ndarray, " n"], batch: int) -> int:
    """Returns token places of batches that are padded to their longest row."""
    return sum(int(part.max()) * len(part) for at in range(0, len(lengths), batch) if len(part := lengths[at : at + batch]))

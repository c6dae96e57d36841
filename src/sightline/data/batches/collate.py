"""Collates samples into packed rows: positions of tokens, visual slots and targets.

Works in numpy, so that loader workers return plain arrays; the training process makes the tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sightline.types import PADDING, Batch, Sample, Supervision, Tokens, Visual


@dataclass(frozen=True)
class Arrays:
    """A batch as numpy arrays; `to_batch` converts it to tensors.

    Attributes:
        tokens, visual, supervision: fields of `Tokens`, `Visual` and `Supervision`, without the suffixes of their shapes.
        is_plain, record_ids, text_width: as in these classes.
        blind_logits: stored image-free logits of the targets, or None.
        skipped: `(sample index, reason)` of samples that could not be loaded.
    """

    tokens: dict[str, np.ndarray]
    is_plain: bool
    visual: dict[str, np.ndarray]
    supervision: dict[str, np.ndarray]
    blind_logits: np.ndarray | None
    record_ids: tuple[tuple[str, ...], ...]
    text_width: int = 1
    skipped: tuple[tuple[str, str], ...] = ()

    def values(self) -> list[Any]:
        """Returns all arrays, or their locations in shared memory, in the order that `with_values` takes."""
        blind_logits = [] if self.blind_logits is None else [self.blind_logits]
        return [*self.tokens.values(), *self.visual.values(), *self.supervision.values(), *blind_logits]

    def with_values(self, values: Iterable[Any]) -> "Arrays":
        """Returns a copy with other values in place of the arrays."""
        rest = iter(values)
        tokens, visual, supervision = ({name: next(rest) for name in part} for part in (self.tokens, self.visual, self.supervision))
        blind_logits = None if self.blind_logits is None else next(rest)
        return replace(self, tokens=tokens, visual=visual, supervision=supervision, blind_logits=blind_logits)

    def to_batch(self) -> Batch:
        """Converts the arrays to a batch on the CPU."""
        tensor = torch.from_numpy
        visual = None
        if self.visual:
            pixels, features = self.visual.get("pixels"), self.visual.get("features")
            visual = Visual(
                pixels_NHWC=None if pixels is None else tensor(pixels),
                features_NPE=None if features is None else tensor(features),
                slot_M=tensor(self.visual["slot"]),
                visual_index_M=tensor(self.visual["visual_index"]),
                text_width=self.text_width,
            )
        return Batch(
            tokens=Tokens(**{f"{name}_BT": tensor(value) for name, value in self.tokens.items()}, is_plain=self.is_plain),
            visual=visual,
            supervision=Supervision(
                **{f"{name}_S": tensor(value) for name, value in self.supervision.items()},
                num_sources=1 + int(self.supervision["source"].max(initial=-1)),
            ),
            blind_logits_S=None if self.blind_logits is None else tensor(self.blind_logits),
            record_ids=self.record_ids,
        )


def collate(rows: Sequence[Sequence[Sample]], pad_id: int, min_width: int = 1) -> Arrays:
    """Collates samples into rows.

    Args:
        rows: samples of each row; an empty row is all padding.
        pad_id: token id of padding.
        min_width: minimum length of the rows in tokens.
    """
    width = max([min_width, *(sum(sample.num_tokens for sample in row) for row in rows)])
    shape = (len(rows), width)
    tokens = {
        "ids": np.full(shape, pad_id, dtype=np.int64),
        "position": np.tile(np.arange(width, dtype=np.int64), (len(rows), 1)),
        "sample": np.full(shape, PADDING, dtype=np.int64),
        "branch": np.full(shape, 0, dtype=np.int64),
    }
    targets = _TargetCollector()
    visual = _VisualCollector()
    number = 0
    for row, samples in enumerate(rows):
        column = 0
        for sample in samples:
            first = row * width + column
            targets.add(sample, first, number)
            visual.add(sample, first)
            size = sample.num_tokens
            tokens["sample"][row, column : column + size] = number
            _lay_out(sample, {name: values[row, column : column + size] for name, values in tokens.items()})
            column += size
            number += 1
    is_plain = all(len(row) <= 1 and all(len(sample.branches) == 1 for sample in row) for row in rows)
    if not is_plain:  # else the positions of padding continue: see `attention_masks`
        tokens["position"][tokens["sample"] == PADDING] = 0  # a packed row may be longer than a decoder has positions
    num_text = [sum(sample.num_tokens - len(sample.image_slots) for sample in row) for row in rows]
    return Arrays(
        tokens=tokens,
        is_plain=is_plain,
        visual=visual.columns(),
        supervision=targets.columns(),
        blind_logits=_blind_logits(rows),
        text_width=max([1, *num_text]),
        record_ids=tuple(tuple(branch.record_id for branch in sample.branches) for row in rows for sample in row),
    )


def _lay_out(sample: Sample, cells: dict[str, np.ndarray]) -> None:
    """Writes ids, positions and branch numbers of a sample: the prefix once, then the rest of each branch."""
    ids, position, branch = cells["ids"], cells["position"], cells["branch"]
    prefix, count = sample.prefix, np.arange(max(len(part.ids) for part in sample.branches))
    ids[:prefix], position[:prefix], branch[:prefix] = sample.branches[0].ids[:prefix], count[:prefix], PADDING
    begin = prefix
    for number, part in enumerate(sample.branches):
        end = begin + len(part.ids) - prefix
        ids[begin:end], position[begin:end], branch[begin:end] = part.ids[prefix:], count[prefix : len(part.ids)], number
        begin = end


class _TargetCollector:
    """Collects supervised tokens span by span."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.spans: list[tuple[int, ...]] = []

    def add(self, sample: Sample, first: int, number: int) -> None:
        """Adds the spans of sample `number`, whose first token has index `first` in the flattened rows."""
        prefix = sample.prefix
        begin = prefix  # offset in the sample of a branch's first token after the prefix
        for branch_number, branch in enumerate(sample.branches):
            shift = first + begin - prefix  # position p of the branch, after the prefix, has index shift + p in the flattened rows
            for span in branch.spans:
                self.tokens.append(branch.ids[span.start : span.end])
                self.spans.append(
                    (span.end - span.start, span.start, prefix, first, shift, number, branch_number, span.turn, sample.source)
                )
            begin += len(branch.ids) - prefix

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the fields of `Supervision`; the slot of a target is the index of the token before it in its branch."""
        table = np.array(self.spans, dtype=np.int64).reshape(-1, 9).T
        lengths, start = table[:2]
        span = np.arange(len(lengths)).repeat(lengths)
        prefix, first, shift, sample, branch, turn, source = table[2:].repeat(lengths, axis=1)
        before = np.arange(len(span)) + (start - 1 - lengths.cumsum() + lengths)[span]
        return {
            "slot": np.where(before < prefix, first, shift) + before,
            "target": _joined(self.tokens),
            "sample": sample,
            "branch": branch,
            "turn": turn,
            "span": span,
            "source": source,
        }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64, copy=False) if parts else np.zeros(0, dtype=np.int64)


class _VisualCollector:
    """Collects visual slots and visual inputs sample by sample."""

    def __init__(self) -> None:
        self.slots: list[np.ndarray] = []
        self.indices: list[np.ndarray] = []
        self.moves: list[tuple[int, int, int]] = []  # slots of a sample, index of its first token, visual tokens before it
        self.pixels: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.crops = 0

    def add(self, sample: Sample, first: int) -> None:
        """Adds the visual inputs of a sample whose first token has index `first` in the flattened rows."""
        if not len(sample.image_slots):
            return
        self.slots.append(sample.image_slots)
        self.indices.append(sample.visual_index)
        self.moves.append((len(sample.image_slots), first, self.crops * sample.tokens_per_crop))
        self.crops += sample.num_crops
        if sample.images is not None:
            self.pixels.append(sample.images)
        if sample.features is not None:
            self.features.append(sample.features)

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the fields of `Visual`; an index below 0 names a learned separator and is not shifted."""
        if not self.slots:
            return {}
        lengths, firsts, before = np.array(self.moves, dtype=np.int64).T
        indices = _joined(self.indices)
        out = {
            "slot": _joined(self.slots) + firsts.repeat(lengths),
            "visual_index": np.where(indices >= 0, indices + before.repeat(lengths), indices),
        }
        if self.pixels:
            out["pixels"] = np.concatenate(self.pixels)
        if self.features:
            out["features"] = np.concatenate(self.features)
        return out


def _blind_logits(rows: Sequence[Sequence[Sample]]) -> np.ndarray | None:
    """Returns stored image-free logits in the order of the targets; None unless every sample has them."""
    samples = [sample for row in rows for sample in row]
    if not samples or any(sample.blind_logits is None for sample in samples):
        return None
    return np.concatenate([sample.blind_logits for sample in samples if sample.blind_logits is not None]).astype(np.float32)

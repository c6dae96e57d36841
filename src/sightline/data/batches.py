"""From samples to a batch: where every token, visual slot and target of packed rows goes.

Work is done in numpy, so that a loader worker hands plain arrays over; tensors are made in the process that trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sightline.types import PADDING, Batch, Sample, Supervision, Tokens, Visual


@dataclass
class _Columns:
    """Supervision as it is collected, one list per field."""

    slot: list[np.ndarray]
    target: list[np.ndarray]
    sample: list[np.ndarray]
    branch: list[np.ndarray]
    turn: list[np.ndarray]
    span: list[np.ndarray]
    source: list[np.ndarray]


@dataclass(frozen=True)
class Arrays:
    """A batch as numpy arrays; `to_batch` makes the tensors."""

    tokens: dict[str, np.ndarray]
    is_plain: bool
    visual: dict[str, np.ndarray]
    supervision: dict[str, np.ndarray]
    contrast: np.ndarray | None
    record_ids: tuple[tuple[str, ...], ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def to_batch(self) -> Batch:
        """The batch on the CPU."""
        tensor = torch.from_numpy
        visual = None
        if self.visual:
            pixels, features = self.visual.get("pixels"), self.visual.get("features")
            visual = Visual(
                pixels_NHWC=None if pixels is None else tensor(pixels),
                features_NPE=None if features is None else tensor(features),
                slot_M=tensor(self.visual["slot"]),
                source_M=tensor(self.visual["source"]),
            )
        return Batch(
            tokens=Tokens(**{f"{name}_BT": tensor(value) for name, value in self.tokens.items()}, is_plain=self.is_plain),
            visual=visual,
            supervision=Supervision(**{f"{name}_S": tensor(value) for name, value in self.supervision.items()}),
            contrast_S=None if self.contrast is None else tensor(self.contrast),
            record_ids=self.record_ids,
        )


def collate(rows: Sequence[Sequence[Sample]], pad_id: int, min_width: int = 1) -> Arrays:
    """Lays samples out in rows.

    Args:
        rows: samples of each row; a row may be empty (then it is padding and has no weight).
        pad_id: token id of padding.
        min_width: least number of slots per row.
    """
    width = max([min_width, *(sum(sample.num_tokens for sample in row) for row in rows)])
    shape = (len(rows), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    position = np.tile(np.arange(width, dtype=np.int64), (len(rows), 1))  # padding counts on: see `masks` of plain rows
    sample_of = np.full(shape, PADDING, dtype=np.int64)
    branch_of = np.full(shape, 0, dtype=np.int64)
    found = _Columns([], [], [], [], [], [], [])
    slots, sources, pixels, features = [], [], [], []
    crops_before = 0
    number = 0
    for row, samples in enumerate(rows):
        column = 0
        for sample in samples:
            size = sample.num_tokens
            cells = slice(column, column + size)
            own_ids, own_position, own_branch = _lay_out(sample)
            ids[row, cells], position[row, cells], branch_of[row, cells] = own_ids, own_position, own_branch
            sample_of[row, cells] = number
            first = row * width + column
            _supervise(sample, first, number, found)
            if len(sample.image_slots):
                slots.append(first + sample.image_slots)
                per_crop = sample.tokens_per_crop
                sources.append(
                    np.where(sample.image_source >= 0, sample.image_source + crops_before * per_crop, sample.image_source)
                )
                crops_before += sample.num_crops
                if sample.images is not None:
                    pixels.append(sample.images)
                if sample.features is not None:
                    features.append(sample.features)
            column += size
            number += 1
    return Arrays(
        tokens={"ids": ids, "position": position, "sample": sample_of, "branch": branch_of},
        is_plain=all(len(row) <= 1 and all(len(sample.branches) == 1 for sample in row) for row in rows),
        visual=_visual(slots, sources, pixels, features),
        supervision={name: _joined(getattr(found, name)) for name in vars(found)},
        contrast=_contrast(rows),
        record_ids=tuple(tuple(branch.record_id for branch in sample.branches) for row in rows for sample in row),
    )


def _lay_out(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, positions and branch numbers of a sample's slots: the prefix once, then each branch's own tokens."""
    if len(sample.branches) == 1:
        ids = sample.branches[0].ids
        return ids, np.arange(len(ids)), np.zeros(len(ids), dtype=np.int64)
    prefix = sample.prefix
    ids, position, branch = [sample.branches[0].ids[:prefix]], [np.arange(prefix)], [np.full(prefix, PADDING)]
    for number, part in enumerate(sample.branches):
        ids.append(part.ids[prefix:])
        position.append(np.arange(prefix, len(part.ids)))
        branch.append(np.full(len(part.ids) - prefix, number))
    return np.concatenate(ids), np.concatenate(position), np.concatenate(branch)


def _supervise(sample: Sample, first: int, number: int, found: _Columns) -> None:
    """Adds a sample's targets; the slot of a target is the one that holds the token before it in its branch."""
    begin = sample.prefix  # where a branch's own tokens begin in the sample
    next_span = int(found.span[-1][-1]) + 1 if found.span else 0
    for branch_number, branch in enumerate(sample.branches):
        own = begin - sample.prefix  # slot of an own token at place p of the branch: own + p
        for span in branch.spans:
            places = np.arange(span.start, span.end)
            before = places - 1
            length = len(places)
            found.slot.append(first + np.where(before < sample.prefix, before, own + before))
            found.target.append(branch.ids[span.start : span.end])
            for column, value in (
                (found.sample, number),
                (found.branch, branch_number),
                (found.turn, span.turn),
                (found.span, next_span),
                (found.source, sample.source),
            ):
                column.append(np.full(length, value))
            next_span += 1
        begin += len(branch.ids) - sample.prefix


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def _visual(
    slots: list[np.ndarray], sources: list[np.ndarray], pixels: list[np.ndarray], features: list[np.ndarray]
) -> dict[str, np.ndarray]:
    if not slots:
        return {}
    out = {"slot": _joined(slots), "source": _joined(sources)}
    if pixels:
        out["pixels"] = np.concatenate(pixels)
    if features:
        out["features"] = np.concatenate(features)
    return out


def _contrast(rows: Sequence[Sequence[Sample]]) -> np.ndarray | None:
    """Stored image-free logits in the order of the targets; None unless every sample has them."""
    samples = [sample for row in rows for sample in row]
    if not samples or any(sample.contrast is None for sample in samples):
        return None
    return np.concatenate([sample.contrast for sample in samples if sample.contrast is not None]).astype(np.float32)

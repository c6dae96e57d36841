"""Packs samples into rows under two limits: tokens and crops.

A row begins with the first sample that is not packed yet; a subset sum over the next samples finds those that fill it best. The
result is a pure function of the order, so every rank and worker computes the same rows, and no sample moves far in the order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sightline.errors import ConfigError

LOOK_AHEAD = 128
STEPS = 8192  # resolution of the subset sum: with more free tokens, sizes are rounded up to a multiple of free / STEPS


@dataclass(frozen=True)
class Packed:
    """Rows of sample indices, and how full they are.

    Attributes:
        rows: sample indices of each row.
        tokens: tokens of all samples.
        capacity: token places of all rows.
    """

    rows: tuple[tuple[int, ...], ...]
    tokens: int
    capacity: int

    @property
    def fill(self) -> float:
        """Share of the token places that hold tokens."""
        return self.tokens / self.capacity if self.capacity else 0.0


def pack(
    order: Int[np.ndarray, " U"],
    tokens: Int[np.ndarray, " samples"],
    crops: Int[np.ndarray, " samples"],
    row_tokens: int,
    row_images: int,
    look_ahead: int = LOOK_AHEAD,
) -> Packed:
    """Packs samples into rows.

    Args:
        order: sample indices in the order of the epoch.
        tokens: length of each sample in tokens.
        crops: crops of each sample.
        row_tokens: maximum tokens per row.
        row_images: maximum crops per row.
        look_ahead: number of samples that a row is chosen from; 1 fills rows in order.

    Returns:
        Rows in the order of their first samples; samples keep their order within a row.

    Raises:
        ConfigError: a single sample exceeds a limit.
    """
    ordered_tokens, ordered_crops = tokens[order].tolist(), crops[order].tolist()
    for size, num_crops in zip(ordered_tokens, ordered_crops, strict=True):
        if size > row_tokens or num_crops > row_images:
            raise ConfigError(
                f"a sample of {size} tokens and {num_crops} crops exceeds a row of {row_tokens} tokens and {row_images} crops.",
                "Raise data.row_tokens or data.row_images.",
            )
    samples = order.tolist()
    unpacked = _UnpackedSamples(ordered_tokens, ordered_crops, look_ahead)
    rows = []
    while unpacked:
        positions = sorted(unpacked.take_row(row_tokens, row_images))
        rows.append(tuple(samples[position] for position in positions))
    return Packed(tuple(rows), sum(ordered_tokens), len(rows) * row_tokens)


class _UnpackedSamples:
    """The next samples that are in no row yet, by their position in the order."""

    def __init__(self, tokens: Sequence[int], crops: Sequence[int], look_ahead: int) -> None:
        self.tokens, self.crops, self.look_ahead = tokens, crops, look_ahead
        self.positions: deque[int] = deque()
        self.sum = 0  # tokens of `positions`
        self.next = 0
        self._refill()

    def __bool__(self) -> bool:
        return bool(self.positions)

    def _refill(self) -> None:
        while len(self.positions) < self.look_ahead and self.next < len(self.tokens):
            self.positions.append(self.next)
            self.sum += self.tokens[self.next]
            self.next += 1

    def take_row(self, free_tokens: int, free_crops: int) -> list[int]:
        """Removes and returns the samples of one row.

        Samples are taken in order until the remaining ones hold at least twice the free tokens; a subset sum then fills the rest.
        """
        row: list[int] = []
        while self.positions:
            size, crops = self.tokens[self.positions[0]], self.crops[self.positions[0]]
            if size > free_tokens or crops > free_crops or (row and 2 * free_tokens <= self.sum):
                break
            row.append(self.positions.popleft())
            self.sum -= size
            free_tokens, free_crops = free_tokens - size, free_crops - crops
            self._refill()
        candidates = [
            position for position in self.positions if self.tokens[position] <= free_tokens and self.crops[position] <= free_crops
        ]
        sizes = [(self.tokens[position], self.crops[position]) for position in candidates]
        chosen = {candidates[number] for number in fullest(sizes, free_tokens, free_crops)}
        if chosen:
            self.positions = deque(position for position in self.positions if position not in chosen)
            self.sum -= sum(self.tokens[position] for position in chosen)
            self._refill()
        return [*row, *chosen]


def fullest(sizes: Sequence[tuple[int, int]], free_tokens: int, free_crops: int) -> list[int]:
    """Returns the indices of the sizes `(tokens, crops)` that leave the fewest tokens free within both limits.

    Of equally good choices the first samples are taken. Exact up to `STEPS` free tokens; beyond, sizes are rounded up to
    `free_tokens / STEPS`. The limit on crops is searched only where the best choice for tokens exceeds it.
    """
    step = -(-free_tokens // STEPS) or 1
    space = free_tokens // step
    rounded = [(-(-tokens // step), crops) for tokens, crops in sizes]
    chosen = _subset_sum(rounded, space, None)
    if sum(sizes[number][1] for number in chosen) <= free_crops:
        return chosen
    return _subset_sum(rounded, space, free_crops)


def _subset_sum(sizes: Sequence[tuple[int, int]], space: int, max_crops: int | None) -> list[int]:
    """Returns the indices of the sizes with the largest sum of tokens up to `space`.

    Reachable sums are the set bits of one integer, with a block of bits for each number of crops up to `max_crops`; adding a
    sample shifts it. With `max_crops=None` crops are not counted.
    """
    blocks = 1 if max_crops is None else max_crops + 1
    width = 2 * space + 2  # a shifted sum does not reach the next block before it is masked
    block = (1 << (space + 1)) - 1
    within = sum(block << (number * width) for number in range(blocks))
    full = sum(1 << (number * width + space) for number in range(blocks))
    shifts = [tokens + (0 if max_crops is None else crops * width) for tokens, crops in sizes]
    reached = [1]
    for (tokens, _), shift in zip(sizes, shifts, strict=True):
        before = reached[-1]
        reached.append(before | (before << shift) & within if tokens <= space else before)
        if reached[-1] & full:
            break
    sums = [(reached[-1] >> (number * width) & block).bit_length() - 1 for number in range(blocks)]
    best = max(range(blocks), key=sums.__getitem__)
    at = best * width + sums[best]
    chosen = []
    for number in reversed(range(len(reached) - 1)):
        if not reached[number] >> at & 1:
            chosen.append(number)
            at -= shifts[number]
    return chosen[::-1]


def by_length(
    order: Int[np.ndarray, " U"], tokens: Int[np.ndarray, " samples"], batch: int, window: int = 16
) -> Int[np.ndarray, " U"]:
    """Reorders samples so that neighbours have similar lengths, for rows that are padded instead of packed.

    Samples are sorted by length within windows of `window` batches. The batches of a window are then put in the order of their
    first sample in the original order, so that lengths do not rise and fall along the epoch.
    """
    out = []
    for begin in range(0, len(order), batch * window):
        part = order[begin : begin + batch * window]
        position = np.argsort(tokens[part], kind="stable")
        batches = [position[at : at + batch] for at in range(0, len(part), batch)]
        out.extend(part[positions] for positions in sorted(batches, key=lambda positions: int(positions.min())))
    return np.concatenate(out) if out else order

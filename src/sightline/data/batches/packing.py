"""Packing: which units share a row, under two limits, tokens and images.

A row begins with the oldest unit that waits; what best fills the rest is found among the units that wait behind it, by a subset
sum. The result is a pure function of the order, so any rank and any worker finds the same rows, and no unit moves far from its
place in the order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sightline.errors import ConfigError

LOOK_AHEAD = 128
STEPS = 8192  # free tokens are told apart to a part in so many; above it sizes are rounded up


@dataclass(frozen=True)
class Packed:
    """Rows of unit numbers, and how full they are."""

    rows: tuple[tuple[int, ...], ...]
    tokens: int
    capacity: int

    @property
    def fill(self) -> float:
        """Share of token places that are taken."""
        return self.tokens / self.capacity if self.capacity else 0.0


def pack(
    order: Int[np.ndarray, " U"],
    tokens: Int[np.ndarray, " units"],
    images: Int[np.ndarray, " units"],
    row_tokens: int,
    row_images: int,
    look_ahead: int = LOOK_AHEAD,
) -> Packed:
    """Packs units in `order` into rows.

    Args:
        order: unit numbers in the order in which they are to be seen.
        tokens: length of each unit.
        images: crops of each unit.
        row_tokens: most tokens in a row.
        row_images: most crops in a row.
        look_ahead: units that a row is chosen from; 1 fills rows in order.

    Returns:
        Rows in the order of their first units; within a row units keep the order.

    Raises:
        ConfigError: a unit alone is over a limit.
    """
    ordered_tokens, ordered_images = tokens[order].tolist(), images[order].tolist()
    for size, crops in zip(ordered_tokens, ordered_images, strict=True):
        if size > row_tokens or crops > row_images:
            raise ConfigError(
                f"a sample of {size} tokens and {crops} images does not fit a row of {row_tokens} tokens and {row_images} images.",
                "Raise data.row_tokens or data.row_images.",
            )
    units = order.tolist()
    waiting = _UnpackedSamples(ordered_tokens, ordered_images, look_ahead)
    rows = []
    while waiting:
        places = sorted(waiting.take_row(row_tokens, row_images))
        rows.append(tuple(units[place] for place in places))
    return Packed(tuple(rows), sum(ordered_tokens), len(rows) * row_tokens)


class _UnpackedSamples:
    """The next units in order, by place, that are in no row yet."""

    def __init__(self, tokens: Sequence[int], images: Sequence[int], look_ahead: int) -> None:
        self.tokens, self.images, self.look_ahead = tokens, images, look_ahead
        self.places: deque[int] = deque()
        self.sum = 0  # of the tokens of `places`
        self.next = 0
        self._refill()

    def __bool__(self) -> bool:
        return bool(self.places)

    def _refill(self) -> None:
        while len(self.places) < self.look_ahead and self.next < len(self.tokens):
            self.places.append(self.next)
            self.sum += self.tokens[self.next]
            self.next += 1

    def take_row(self, free_tokens: int, free_images: int) -> list[int]:
        """Takes units for a row: in order as long as those that wait could not fill it twice, then the best that there is."""
        row: list[int] = []
        while self.places:
            size, crops = self.tokens[self.places[0]], self.images[self.places[0]]
            if size > free_tokens or crops > free_images or (row and 2 * free_tokens <= self.sum):
                break
            row.append(self.places.popleft())
            self.sum -= size
            free_tokens, free_images = free_tokens - size, free_images - crops
            self._refill()
        candidates = [place for place in self.places if self.tokens[place] <= free_tokens and self.images[place] <= free_images]
        sizes = [(self.tokens[place], self.images[place]) for place in candidates]
        chosen = {candidates[number] for number in fullest(sizes, free_tokens, free_images)}
        if chosen:
            self.places = deque(place for place in self.places if place not in chosen)
            self.sum -= sum(self.tokens[place] for place in chosen)
            self._refill()
        return [*row, *chosen]


def fullest(sizes: Sequence[tuple[int, int]], free_tokens: int, free_images: int) -> list[int]:
    """Which of some (tokens, images) leave the fewest tokens free and keep both limits; where several do, the first units.

    Exact up to `STEPS` free tokens; beyond, sizes are rounded up to `free_tokens / STEPS`. Images are looked at only where the
    best choice for tokens alone has too many.
    """
    step = -(-free_tokens // STEPS) or 1
    space = free_tokens // step
    rounded = [(-(-tokens // step), images) for tokens, images in sizes]
    chosen = _subset_sum(rounded, space, None)
    if sum(sizes[number][1] for number in chosen) <= free_images:
        return chosen
    return _subset_sum(rounded, space, free_images)


def _subset_sum(sizes: Sequence[tuple[int, int]], space: int, most_images: int | None) -> list[int]:
    """The numbers of the sizes with the largest sum up to `space`.

    Sums that can be reached are bits of one integer, a block of them for each number of images up to `most_images`; to add a
    unit is to shift it. With None images are not counted.
    """
    blocks = 1 if most_images is None else most_images + 1
    width = 2 * space + 2  # a shifted sum does not reach the next block before it is masked
    block = (1 << (space + 1)) - 1
    within = sum(block << (number * width) for number in range(blocks))
    full = sum(1 << (number * width + space) for number in range(blocks))
    shifts = [tokens + (0 if most_images is None else images * width) for tokens, images in sizes]
    reached = [1]
    for (tokens, _), shift in zip(sizes, shifts, strict=True):
        before = reached[-1]
        reached.append(before | (before << shift) & within if tokens <= space else before)
        if reached[-1] & full:
            break
    sums = [(reached[-1] >> (number * width) & block).bit_length() - 1 for number in range(blocks)]
    images = max(range(blocks), key=sums.__getitem__)
    at = images * width + sums[images]
    chosen = []
    for number in reversed(range(len(reached) - 1)):
        if not reached[number] >> at & 1:
            chosen.append(number)
            at -= shifts[number]
    return chosen[::-1]


def by_length(
    order: Int[np.ndarray, " U"], tokens: Int[np.ndarray, " units"], batch: int, window: int = 16
) -> Int[np.ndarray, " U"]:
    """The order with neighbours of like length, for rows that are padded and not packed.

    Within windows of `window` batches units are sorted by length; the batches of a window then stand in the order of their first
    unit in the original order, so that lengths do not rise and fall along the epoch.
    """
    out = []
    for begin in range(0, len(order), batch * window):
        part = order[begin : begin + batch * window]
        place = np.argsort(tokens[part], kind="stable")
        batches = [place[at : at + batch] for at in range(0, len(part), batch)]
        out.extend(part[places] for places in sorted(batches, key=lambda places: int(places.min())))
    return np.concatenate(out) if out else order

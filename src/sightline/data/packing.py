"""Packing: which units share a row, under two limits, tokens and images.

Best fit with a bounded number of open rows: a unit goes where it leaves the least space; when too many rows are open the fullest
is closed. The result is a pure function of the order, so any rank and any worker finds the same rows, and a unit never moves far
from its place in the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sightline.errors import ConfigError

DEFAULT_OPEN_ROWS = 256


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
    open_rows: int = DEFAULT_OPEN_ROWS,
) -> Packed:
    """Packs units in `order` into rows.

    Args:
        order: unit numbers in the order in which they are to be seen.
        tokens: length of each unit.
        images: crops of each unit.
        row_tokens: most tokens in a row.
        row_images: most crops in a row.
        open_rows: rows that may wait for more; the look-ahead of the packer.

    Returns:
        Rows in the order in which they were closed; within a row units keep the order.

    Raises:
        ConfigError: a unit alone is over a limit.
    """
    sizes, counts = tokens.tolist(), images.tolist()
    by_space: list[list[int]] = [[] for _ in range(row_tokens + 1)]  # open rows by free tokens
    with_space = 0  # bit s is set where by_space[s] is not empty
    members: list[list[int]] = []
    free_images: list[int] = []
    closed: list[int] = []
    num_open = 0

    for unit in order.tolist():
        size, crops = sizes[unit], counts[unit]
        if size > row_tokens or crops > row_images:
            raise ConfigError(
                f"a sample of {size} tokens and {crops} images does not fit a row of {row_tokens} tokens and {row_images} images.",
                "Raise data.row_tokens or data.row_images.",
            )
        space, row = _best_fit(by_space, with_space, free_images, size, crops)
        if row < 0:
            row, space = len(members), row_tokens
            members.append([])
            free_images.append(row_images)
            num_open += 1
        else:
            by_space[space].remove(row)
            if not by_space[space]:
                with_space &= ~(1 << space)
        members[row].append(unit)
        free_images[row] -= crops
        left = space - size
        if left == 0:
            closed.append(row)
            num_open -= 1
        else:
            by_space[left].append(row)
            with_space |= 1 << left
        if num_open > open_rows:
            fullest = (with_space & -with_space).bit_length() - 1
            closed.append(by_space[fullest].pop(0))
            if not by_space[fullest]:
                with_space &= ~(1 << fullest)
            num_open -= 1
    rest = sorted(row for rows in by_space for row in rows)
    rows = tuple(tuple(members[row]) for row in [*closed, *rest])
    return Packed(rows, int(tokens[order].sum()), len(rows) * row_tokens)


def _best_fit(
    by_space: Sequence[Sequence[int]], with_space: int, free_images: Sequence[int], size: int, crops: int
) -> tuple[int, int]:
    """The free space and number of the open row that the unit fills best; (0, -1) when none takes it."""
    candidates = with_space >> size
    space = size
    while candidates:
        step = (candidates & -candidates).bit_length() - 1
        space += step
        for row in by_space[space]:
            if free_images[row] >= crops:
                return space, row
        candidates >>= step + 1
        space += 1
    return 0, -1


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

"""The epoch plan: which samples share a row, and which rows each step, micro-batch and rank sees, before anything is read.

It is a pure function of integer arrays (lengths, crops and order of the samples), so it needs neither records nor images, and every
rank, worker, restart and `data check` computes the same rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np
from jaxtyping import Int

from sightline.data.batches.order import mixture_order
from sightline.data.batches.packing import by_length, pack
from sightline.data.samples.length_table import LengthTable

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class BatchRules:
    """How samples become rows and rows become steps.

    Attributes:
        pack: put several samples in a row; else one.
        row_tokens, row_images: maximum tokens and crops of a packed row.
        rows_per_step: rows of one optimiser step over all ranks and micro-batches.
        accumulate: micro-batches per step and rank.
        sort_by_length: give neighbouring rows similar lengths where rows are not packed.
        seed: seed of the order.
    """

    pack: bool
    row_tokens: int
    row_images: int
    rows_per_step: int
    accumulate: int
    sort_by_length: bool
    seed: int = 0


class EpochPlan:
    """The rows of every step of every epoch.

    Args:
        lengths: tokens of each sample.
        crops: crops of each sample.
        order: returns the sample indices of an epoch, in order.
        rules: how samples become rows and steps.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " samples"],
        crops: Int[np.ndarray, " samples"],
        order: Callable[[int], Int[np.ndarray, " draws"]],
        rules: BatchRules,
    ) -> None:
        self.lengths, self.crops, self.order, self.rules = lengths, crops, order, rules
        self.rows = lru_cache(maxsize=2)(self._rows)
        self.steps = cache(self._steps)

    @classmethod
    def of_tables(
        cls, tables: Sequence[LengthTable], draws: Sequence[int], windowed: Sequence[bool], rules: BatchRules
    ) -> "EpochPlan":
        """Returns the plan of a mixture; sample indices run over its data sets one after the other.

        Args:
            tables: length table of each data set.
            draws: samples that an epoch takes from each.
            windowed: whether each data set is shuffled within windows over shards.
            rules: how samples become rows and steps.
        """
        return cls(
            np.concatenate([table.tokens for table in tables]),
            np.concatenate([table.crops for table in tables]),
            partial(mixture_order, [len(table) for table in tables], draws, rules.seed, windowed=windowed),
            rules,
        )

    def _rows(self, epoch: int) -> Rows:
        """Returns the sample indices of each row of an epoch.

        Raises:
            ConfigError: a sample does not fit into a packed row.
        """
        order, rules = self.order(epoch), self.rules
        if rules.pack:
            return pack(order, self.lengths, self.crops, rules.row_tokens, rules.row_images).rows
        if rules.sort_by_length:
            order = by_length(order, self.lengths, rules.rows_per_step)
        return tuple((sample,) for sample in order.tolist())

    def _steps(self, epoch: int) -> int:
        """Returns the number of optimiser steps of an epoch; the last step may have fewer rows."""
        return -(-len(self.rows(epoch)) // self.rules.rows_per_step)

    def steps_of(self, epochs: float) -> int:
        """Returns the optimiser steps of the first `epochs` epochs; a fraction of an epoch is rounded to whole steps."""
        whole = int(epochs)
        steps = sum(self.steps(epoch) for epoch in range(whole))
        return steps + (round((epochs - whole) * self.steps(whole)) if epochs > whole else 0)

    def step(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> list[Rows]:
        """Returns the rows of a rank in a step, one entry per micro-batch. Rank `r` of `world` takes rows `r, r + world, ...`.

        The last step of an epoch is filled up with empty rows.
        """
        count = self.rules.rows_per_step
        rows = list(self.rows(epoch)[step * count : (step + 1) * count])
        rows += [()] * (count - len(rows))
        of_rank = rows[rank::world]
        size = len(of_rank) // self.rules.accumulate
        return [tuple(of_rank[at : at + size]) for at in range(0, len(of_rank), size)]

    def next_steps(self, epoch: int, step: int, count: int, rank: int = 0, world: int = 1) -> Iterator[list[Rows]]:
        """Yields `self.step` for each of the next `count` steps, starting at `(epoch, step)`, across epochs."""
        for _ in range(count):
            if step >= self.steps(epoch):
                epoch, step = epoch + 1, 0
            yield self.step(epoch, step, rank, world)
            step += 1

"""Scores of many runs, averaged over seeds and compared on the same records.

With several seeds an interval says how far the mean would move with other images and other seeds. With one seed it is a bootstrap
over images and says nothing of other seeds. `method` names which (docs/statistics.md). Records of one image are drawn together.
Differences are paired: the same records, and the same seeds where both arms have at least two in common.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sightline.evaluation.looking import stored_items
from sightline.metrics.statistics import (
    Difference,
    Interval,
    Statistic,
    difference_over_seeds,
    interval_json,
    interval_over_seeds,
    mean_by_cluster,
    ratio_over_seeds,
)

RESAMPLES = 2000


@dataclass(frozen=True)
class Items:
    """Scores of one run, record by record.

    Attributes:
        records: ids.
        images: of each record; equal ones are drawn together.
        scores: values by metric, in the order of the records.
    """

    records: tuple[str, ...]
    images: tuple[str, ...]
    scores: Mapping[str, Sequence[float]]


def read_items(path: Path) -> Items | None:
    """Returns what an evaluation's `items.json` holds; None where it is not there or damaged."""
    stored = stored_items(path)
    return None if stored is None else Items(tuple(stored["records"]), tuple(stored["image"]), stored["items"])


@dataclass(frozen=True)
class Scored:
    """One arm in one cell on one evaluation: scores `[seeds, records]` of one metric over common records.

    Attributes:
        seeds: which ones.
        values_SN: one row per seed.
        cluster_N: number of each record's image.
        is_fixed: this is a given model, whose only entry stands for no training seed.
    """

    seeds: tuple[int, ...]
    values_SN: Float[np.ndarray, "S N"]
    cluster_N: Int[np.ndarray, " N"]
    is_fixed: bool = False

    def of(self, seeds: Sequence[int]) -> "Scored":
        """Returns the same arm with some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Scored(tuple(seeds), self.values_SN[rows], self.cluster_N)

    def repeated(self, seeds: Sequence[int]) -> "Scored":
        """Returns a fixed model as an arm that has the same scores with each seed."""
        return Scored(tuple(seeds), np.repeat(self.values_SN, len(seeds), axis=0), self.cluster_N)

    def averaged(self) -> "Scored":
        """Returns the mean over the seeds as if it were one seed: its intervals are over items alone."""
        return Scored((0,), self.values_SN.mean(axis=0, keepdims=True), self.cluster_N)

    @property
    def per_seed(self) -> dict[int, float]:
        """The mean of each seed."""
        return dict(zip(self.seeds, self.values_SN.mean(axis=1).tolist(), strict=True))

    def minus(self, other: "Scored") -> "Scored":
        """Returns the differences to another's scores with the same seeds, record by record."""
        return Scored(self.seeds, self.values_SN - other.values_SN, self.cluster_N)

    @property
    def statistics(self) -> list[Statistic]:
        """The mean of each seed as a statistic of the images."""
        return [mean_by_cluster(values_N, self.cluster_N)[0] for values_N in self.values_SN]

    @property
    def num_records(self) -> int:
        return self.values_SN.shape[1]

    def interval(self, resamples: int = RESAMPLES) -> Interval:
        """Returns the mean over seeds and records with a 95 % interval."""
        return replace(interval_over_seeds(self.statistics, resamples=resamples), n=self.num_records)


def common_records(runs: Sequence[Items]) -> tuple[tuple[str, ...], Int[np.ndarray, " N"]]:
    """Returns ids of the records that all runs have a score for, in the order of the first, and the number of each one's image."""
    first = runs[0]
    shared = set(first.records).intersection(*[run.records for run in runs[1:]])
    kept = [(record, image) for record, image in zip(first.records, first.images, strict=True) if record in shared]
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(image, len(numbers)) for _, image in kept], dtype=np.int64)
    return tuple(record for record, _ in kept), cluster


def scored(by_seed: Mapping[int, Items], metric: str, records: Sequence[str], cluster_N: Int[np.ndarray, " N"]) -> Scored | None:
    """Returns the seeds of an arm side by side; None where none has the metric."""
    seeds = tuple(seed for seed in sorted(by_seed) if metric in by_seed[seed].scores)
    if not seeds or not len(records):
        return None
    rows = []
    for seed in seeds:
        items = by_seed[seed]
        value = dict(zip(items.records, items.scores[metric], strict=True))
        rows.append([value[record] for record in records])
    return Scored(seeds, np.array(rows, dtype=float), cluster_N)


def difference(first: Scored, second: Scored, resamples: int = RESAMPLES) -> Difference | None:
    """Returns first minus second, paired by the seeds that both have.

    Where they share fewer than two seeds but each has at least two, all seeds count and are not paired. A fixed model is compared
    with each seed of the other. Returns None where they share no seed and one of them has a single one, since nothing then says how
    much of the difference is that seed.
    """
    if first.is_fixed != second.is_fixed:
        one_side, other_side = (first.repeated(second.seeds), second) if first.is_fixed else (first, second.repeated(first.seeds))
        return difference(one_side, other_side, resamples)
    shared = [seed for seed in first.seeds if seed in second.seeds]
    is_paired = len(shared) > 1 or min(len(first.seeds), len(second.seeds)) == 1
    if is_paired and not shared:
        return None
    one, other = (first.of(shared), second.of(shared)) if is_paired else (first, second)
    found = difference_over_seeds(one.statistics, other.statistics, same_seeds=is_paired, resamples=resamples)
    return replace(found, n=first.num_records)


@dataclass(frozen=True)
class ShareLost:
    """What an arm loses from a reference cell to another, and how that compares with what the baseline loses.

    Attributes:
        lost: reference minus cell.
        ratio: the arm's loss over the baseline's; None where the baseline's loss is not clearly above 0.
        less: the baseline's loss minus the arm's.
    """

    lost: Difference
    ratio: Interval | None
    less: Difference | None

    def to_json(self) -> dict[str, Any]:
        return {
            "lost": interval_json(self.lost),
            "ratio": None if self.ratio is None else interval_json(self.ratio),
            "less_than_baseline": None if self.less is None else interval_json(self.less),
        }


def lost(reference: Scored, cell: Scored, base: tuple[Scored, Scored] | None, resamples: int = RESAMPLES) -> ShareLost | None:
    """Compares losses on the seeds that all have.

    Args:
        reference, cell: of the arm.
        base: reference and cell of the baseline; None where the arm is the baseline.
    """
    parts = [reference, cell, *(base or ())]
    seeds = [seed for seed in reference.seeds if all(seed in part.seeds for part in parts)]
    if not seeds:
        return None
    chosen = [part.of(seeds) for part in parts]
    mine = chosen[0].minus(chosen[1])
    own = difference(chosen[0], chosen[1], resamples)
    assert own is not None  # the seeds are the same
    if base is None:
        return ShareLost(own, None, None)
    theirs = chosen[2].minus(chosen[3])
    less = difference(theirs, mine, resamples)
    is_clear = theirs.interval(resamples).low > 0
    ratio = ratio_over_seeds(mine.statistics, theirs.statistics, resamples=resamples) if is_clear else None
    return ShareLost(own, None if ratio is None else replace(ratio, n=mine.num_records), less)

"""Scores of many runs, averaged over seeds and compared on the same records.

A run's score on a record is first averaged over its seeds; the bootstrap then draws pictures, with all records of each, so that its
interval says how far the result would move with other pictures. It does not say how far it would move with other seeds: the lowest
and highest seed stand beside it for that. Differences are paired: the same records, the same seeds, the same draws for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sightline.metrics.statistics import Difference, Interval, bootstrap, mean_by_cluster, paired_bootstrap

RESAMPLES = 2000


@dataclass(frozen=True)
class Items:
    """Scores of one run, record by record.

    Attributes:
        records: ids.
        pictures: of each record; equal ones are drawn together.
        scores: values by metric, in the order of the records.
    """

    records: tuple[str, ...]
    pictures: tuple[str, ...]
    scores: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Scored:
    """One arm in one cell on one evaluation: scores `[seeds, records]` of one metric over common records.

    Attributes:
        seeds: which ones.
        values_SN: one row per seed.
        cluster_N: number of each record's picture.
    """

    seeds: tuple[int, ...]
    values_SN: Float[np.ndarray, "S N"]
    cluster_N: Int[np.ndarray, " N"]

    def of(self, seeds: Sequence[int]) -> "Scored":
        """The same with some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Scored(tuple(seeds), self.values_SN[rows], self.cluster_N)

    @property
    def per_seed(self) -> dict[int, float]:
        """The mean of each seed."""
        return dict(zip(self.seeds, self.values_SN.mean(axis=1).tolist(), strict=True))

    @property
    def mean_N(self) -> Float[np.ndarray, " N"]:
        """Each record's score, averaged over seeds."""
        return self.values_SN.mean(axis=0)

    def interval(self, resamples: int = RESAMPLES) -> Interval:
        """The mean over seeds and records with a 95 % interval."""
        statistic, num = mean_by_cluster(self.mean_N, self.cluster_N)
        return bootstrap(statistic, num, resamples=resamples)


def common_records(runs: Sequence[Items]) -> tuple[tuple[str, ...], Int[np.ndarray, " N"]]:
    """Ids of the records that all runs have a score for, in the order of the first, and the number of each one's picture."""
    first = runs[0]
    shared = set(first.records).intersection(*[run.records for run in runs[1:]])
    kept = [(record, picture) for record, picture in zip(first.records, first.pictures, strict=True) if record in shared]
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(picture, len(numbers)) for _, picture in kept], dtype=np.int64)
    return tuple(record for record, _ in kept), cluster


def scored(by_seed: Mapping[int, Items], metric: str, records: Sequence[str], cluster_N: Int[np.ndarray, " N"]) -> Scored | None:
    """The seeds of an arm side by side; None where none has the metric."""
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
    """First minus second on the seeds that both have; None where they have none in common."""
    seeds = [seed for seed in first.seeds if seed in second.seeds]
    if not seeds:
        return None
    one, num = mean_by_cluster(first.of(seeds).mean_N, first.cluster_N)
    other, _ = mean_by_cluster(second.of(seeds).mean_N, second.cluster_N)
    return paired_bootstrap(one, other, num, resamples=resamples)


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
    means = [part.of(seeds).mean_N for part in parts]
    mine, num = mean_by_cluster(means[0] - means[1], reference.cluster_N)
    nothing, _ = mean_by_cluster(np.zeros_like(means[0]), reference.cluster_N)
    own = paired_bootstrap(mine, nothing, num, resamples=resamples)
    if base is None:
        return ShareLost(own, None, None)
    theirs, _ = mean_by_cluster(means[2] - means[3], reference.cluster_N)
    less = paired_bootstrap(theirs, mine, num, resamples=resamples)
    clear = paired_bootstrap(theirs, nothing, num, resamples=resamples).low > 0
    ratio = bootstrap(lambda draws: mine(draws) / theirs(draws), num, resamples=resamples) if clear else None
    return ShareLost(own, ratio, less)


def interval_json(interval: Interval | Difference) -> dict[str, float]:
    """A value with its interval, and its p-value if it is a difference."""
    out = {"value": interval.value, "low": interval.low, "high": interval.high}
    return out | ({"p": interval.p} if isinstance(interval, Difference) else {})

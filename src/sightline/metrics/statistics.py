"""Uncertainty of scores: bootstrap intervals, paired differences of two systems, and McNemar's exact test.

All resampling draws items with replacement. A statistic is a function of how often each item was drawn: it maps counts `[R, N]` to
values `[R]`, so that a mean and a corpus-level ratio such as BLEU are both one matrix product.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Statistic = Callable[[Int[np.ndarray, "R N"]], Float[np.ndarray, " R"]]

_CHUNK = 4_000_000  # draws in memory at once: 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its percentile bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two systems on the same items (first minus second), its interval, and a two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Numbers of items that only the first or only the second system gets right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def mean_of(values: Sequence[float] | Float[np.ndarray, " N"]) -> Statistic:
    """Returns the statistic "mean over the drawn items"."""
    values_N = np.asarray(values, dtype=float)

    def statistic(draws_RN: Int[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        return draws_RN @ values_N / draws_RN.sum(axis=1)

    return statistic


def mean_by_cluster(
    values: Sequence[float] | Float[np.ndarray, " N"], cluster: Sequence[int] | Int[np.ndarray, " N"]
) -> tuple[Statistic, int]:
    """Returns the mean over all values of the drawn clusters (such as records of one image), and the number of clusters.

    Args:
        values: one per record.
        cluster: number of each record's cluster, from 0 without gaps.
    """
    values_N, cluster_N = np.asarray(values, dtype=float), np.asarray(cluster)
    sum_C, size_C = np.bincount(cluster_N, values_N), np.bincount(cluster_N)

    def statistic(draws_RC: Int[np.ndarray, "R C"]) -> Float[np.ndarray, " R"]:
        return draws_RC @ sum_C / (draws_RC @ size_C)

    return statistic, len(size_C)


def bootstrap(statistic: Statistic, num_items: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Computes a percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Args:
        statistic: function of how often each item is drawn.
        num_items: number of items, at least 1.
        resamples: number of resamples.
        seed: equal seeds draw the same items, whatever the statistic.
        level: share of the distribution inside the interval.

    Raises:
        ValueError: no items, no resamples, or a level outside 0 to 1.
    """
    values = np.concatenate([statistic(draws) for draws in _draws(num_items, resamples, seed)])
    low, high = _percentiles(values, level)
    return Interval(_all_items(statistic, num_items), low, high)


def paired_bootstrap(
    first: Statistic, second: Statistic, num_items: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Computes the difference of two systems on the same items; every resample draws the same items for both.

    The p-value is twice the smaller share of resamples on one side of zero, with zero counted on both sides and one added to
    numerator and denominator, so it is never 0.

    Raises:
        ValueError: as `bootstrap`.
    """
    parts = [first(draws) - second(draws) for draws in _draws(num_items, resamples, seed)]
    differences = np.concatenate(parts)
    low, high = _percentiles(differences, level)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    value = _all_items(first, num_items) - _all_items(second, num_items)
    return Difference(value, low, high, min(1.0, 2 * (smaller + 1) / (resamples + 1)))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Computes the exact McNemar test (binomial with probability 1/2 on the items where the two systems disagree).

    Raises:
        ValueError: the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"McNemar's test is paired, but there are {len(first)} and {len(second)} items")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    trials, fewer = only_first + only_second, min(only_first, only_second)
    # logarithms, because 2^-trials underflows beyond 1,074 trials
    steps = [0.0] + [math.log((trials - k + 1) / k) for k in range(1, fewer + 1)]
    logs = np.cumsum(steps) - trials * math.log(2)
    return McNemar(only_first, only_second, min(1.0, 2 * float(np.exp(logs).sum())))


def _draws(num_items: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "R N"]]:
    """Yields how often each item is drawn, for a few resamples at a time."""
    if num_items < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs at least one item and one resample, not {num_items} items and {resamples} resamples")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_items)
    for done in range(0, resamples, rows):
        count = min(rows, resamples - done)
        items = generator.integers(num_items, size=(count, num_items)) + np.arange(count)[:, None] * num_items
        yield np.bincount(items.ravel(), minlength=count * num_items).reshape(count, num_items)


def _all_items(statistic: Statistic, num_items: int) -> float:
    return float(statistic(np.ones((1, num_items), dtype=np.int64))[0])


def _percentiles(values: Float[np.ndarray, " R"], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval must be between 0 and 1, not {level}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

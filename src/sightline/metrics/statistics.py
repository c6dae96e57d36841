"""Uncertainty of scores: intervals over items and over training seeds, and paired differences of two systems.

With one seed an interval is a bootstrap over items. With several it also covers what other seeds would have changed. The mean over
seeds and items then has three sources of variance: seeds, items, and what a seed does to single items. A few seeds say little about
the first one, so the interval uses Student's t with few degrees of freedom for that part (`VarianceParts`).

A statistic is made of sums over items. A mean and a corpus-level ratio such as BLEU are then resampled by the same matrix product,
and leaving out one item is one subtraction. docs/statistics.md says which interval is shown when, with measured coverage.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sightline.metrics.student_t import root, two_sided_p, two_sided_quantile

ITEMS_BOOTSTRAP = "items_bootstrap"
SEEDS_AND_ITEMS_T = "seeds_and_items_t"

_CHUNK = 4_000_000  # draws in memory at once: 32 MB
_SMALLEST_P = 1e-300


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its interval.

    Attributes:
        n: number of items (clusters where items are drawn by cluster).
        seeds: number of training seeds that the value is a mean of.
        method: `items_bootstrap` (over items only: other seeds may lie outside) or `seeds_and_items_t`.
    """

    value: float
    low: float
    high: float
    n: int = 0
    seeds: int = 1
    method: str = ITEMS_BOOTSTRAP


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two systems on the same items (first minus second), its interval, and the two-sided p-value of "no difference".

    Attributes:
        n, seeds, method: as in `Interval`; of arms with different seeds, `seeds` is the smaller number.
    """

    value: float
    low: float
    high: float
    p: float
    n: int = 0
    seeds: int = 1
    method: str = ITEMS_BOOTSTRAP


def interval_json(interval: Interval | Difference) -> dict[str, Any]:
    """Returns a value with its interval, and its p-value if it is a difference."""
    out = asdict(interval)
    return {name: out[name] for name in ("value", "low", "high", "p", "n", "seeds", "method") if name in out}


@dataclass(frozen=True, slots=True)
class Statistic:
    """A score as a function of sums over items.

    Attributes:
        terms_KN: what each item adds to each of K sums.
        of_sums: score of sums `[R, K]`, as `[R]`.
    """

    terms_KN: Float[np.ndarray, "K N"]
    of_sums: Callable[[Float[np.ndarray, "R K"]], Float[np.ndarray, " R"]]

    def __call__(self, draws_RN: Int[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        """Returns the score of each resample, given how often each item was drawn."""
        draws = draws_RN.astype(float)
        return self.of_sums(np.column_stack([draws @ terms for terms in self.terms_KN]))

    @property
    def num_items(self) -> int:
        return self.terms_KN.shape[1]

    @property
    def value(self) -> float:
        """The score of all items."""
        return _all_items(self, self.num_items)

    @property
    def influence_N(self) -> Float[np.ndarray, " N"]:
        """Returns by how much each item moves the score, times N, with mean 0.

        These are the jackknife's pseudo-values less their mean (Efron & Tibshirani 1993, ch. 11); for a mean, the values less their
        mean. With a single item they are 0.
        """
        if self.num_items == 1:
            return np.zeros(1)
        without = self.of_sums((self.terms_KN.sum(axis=1, keepdims=True) - self.terms_KN).T)
        return (self.num_items - 1) * (without.mean() - without)


def mean_of(values: Sequence[float] | Float[np.ndarray, " N"]) -> Statistic:
    """Returns the statistic "mean over the drawn items"."""
    values_N = np.asarray(values, dtype=float)
    return Statistic(np.stack([values_N, np.ones_like(values_N)]), _quotient)


def mean_by_cluster(
    values: Sequence[float] | Float[np.ndarray, " N"], cluster: Sequence[int] | Int[np.ndarray, " N"]
) -> tuple[Statistic, int]:
    """Returns the mean over all values of the drawn clusters (such as records of one image), and the number of clusters.

    Args:
        values: one per record.
        cluster: cluster index of each record, from 0 without gaps.
    """
    sum_C, size_C = np.bincount(cluster, np.asarray(values, dtype=float)), np.bincount(cluster)
    return Statistic(np.stack([sum_C, size_C.astype(float)]), _quotient), len(size_C)


def difference_of(first: Statistic, second: Statistic) -> Statistic:
    """Returns the statistic "first minus second" on the same items."""
    return _combined(first, second, np.subtract)


def ratio_of(first: Statistic, second: Statistic) -> Statistic:
    """Returns the statistic "first over second" on the same items."""
    return _combined(first, second, np.divide)


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
    return Interval(_all_items(statistic, num_items), low, high, num_items)


def paired_bootstrap(
    first: Statistic, second: Statistic, num_items: int, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Computes the difference of two systems on the same items; every resample draws the same items for both.

    The p-value is twice the smaller share of resamples on one side of zero, with zero counted on both sides and one added to
    numerator and denominator, so it is never 0.

    Raises:
        ValueError: as `bootstrap`.
    """
    differences = np.concatenate([first(draws) - second(draws) for draws in _draws(num_items, resamples, seed)])
    low, high = _percentiles(differences, level)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    value = _all_items(first, num_items) - _all_items(second, num_items)
    return Difference(value, low, high, min(1.0, 2 * (smaller + 1) / (resamples + 1)), num_items)


# Several seeds -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VarianceParts:
    """Variance of a value as a sum of independent parts, each estimated with its own degrees of freedom.

    With `v_k` the parts and `t_k` the quantiles of Student's t with their degrees of freedom, the interval is
    `value ± sum_k v_k t_k / sum_k v_k * sqrt(sum_k v_k)` (Cochran & Cox 1957, sec. 4.14). Satterthwaite's degrees of freedom would
    cover 88 % with two seeds that make up 90 % of the variance of a score; this covers at least 93.9 % of normal values.

    Attributes:
        variances: of each part; arrays where many values are treated at once.
        degrees: of freedom, of each part.
    """

    variances: tuple[Float[np.ndarray, "..."], ...]
    degrees: tuple[int, ...]

    @property
    def total(self) -> Float[np.ndarray, "..."]:
        return np.add.reduce(self.variances)

    def half_width(self, level: float = 0.95) -> Float[np.ndarray, "..."]:
        """Returns half the width of the interval.

        Raises:
            ValueError: the level does not lie between 0 and 1.
        """
        _check_level(level)
        weighted = [v * two_sided_quantile(1 - level, df) for v, df in zip(self.variances, self.degrees, strict=True)]
        total = self.total
        return np.divide(np.add.reduce(weighted), np.sqrt(total), out=np.zeros_like(total), where=total > 0)

    def p_value(self, value: float) -> float:
        """Returns the two-sided p-value of "the true value is 0": the p at whose level the interval ends at 0."""
        total = float(self.total)
        if value == 0 or total == 0:
            return float(value == 0)
        t = abs(value) / math.sqrt(total)
        ends = sorted(max(two_sided_p(t, df), _SMALLEST_P) for df in self.degrees)
        if ends[-1] / ends[0] - 1 < 1e-12:
            return ends[0]

        def excess(log_p: float) -> float:
            quantiles = [two_sided_quantile(math.exp(log_p), df) for df in self.degrees]
            return float(np.dot(np.asarray(self.variances, dtype=float), quantiles)) / total - t

        if excess(math.log(ends[0])) <= 0:
            return ends[0]  # below the smallest p that is computed
        return math.exp(root(excess, math.log(ends[0]), math.log(ends[-1]) + 1e-9))


def variance_of_mean(
    scores: Float[np.ndarray, "... S"], influence: Float[np.ndarray, "... S N"], groups: Sequence[int] | None = None
) -> VarianceParts:
    """Estimates the variance of a mean over seeds and items, both drawn at random (two-way random effects).

    With MS the mean squares of the analysis of variance over S seeds and N items, the part of the seeds is `MS_seeds / (S N)` with
    S - 1 degrees of freedom; it holds the interaction. That of the items is `(MS_items - MS_interaction) / (S N)`, at least 0, with
    N - 1.

    Args:
        scores: of each seed.
        influence: of each item on each seed's score, with mean 0 over items: value less mean where the score is a mean.
        groups: numbers of seeds of a first and a second arm, where these have different seeds and follow each other in `scores`.
            The value is then the difference of the arms' means, and each arm has a part for its seeds.

    Raises:
        ValueError: a group has fewer than two seeds.
    """
    num_items = influence.shape[-1]
    sizes = [scores.shape[-1]] if groups is None else list(groups)
    if min(sizes) < 2:
        raise ValueError(f"the variance between seeds needs at least two seeds, got {min(sizes)}")
    seed_parts, means, interaction, begin = [], [], 0.0, 0
    for size in sizes:
        seeds = slice(begin, begin + size)
        mean = influence[..., seeds, :].mean(axis=-2)
        squares = np.square(influence[..., seeds, :] - mean[..., None, :]).sum(axis=(-2, -1))
        interaction = interaction + squares / (max(num_items - 1, 1) * (size - 1) * size * num_items)
        seed_parts.append(scores[..., seeds].var(axis=-1, ddof=1) / size)
        means.append(mean)
        begin += size
    mean = means[0] if groups is None else means[0] - means[1]
    items = np.square(mean).sum(axis=-1) / (max(num_items - 1, 1) * num_items)
    degrees = [size - 1 for size in sizes] + [max(num_items - 1, 1)]
    return VarianceParts((*seed_parts, np.maximum(items - interaction, 0.0)), tuple(degrees))


def interval_over_seeds(per_seed: Sequence[Statistic], *, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Returns the mean over training seeds with its interval: over items with one seed, over seeds and items with several.

    Args:
        per_seed: the statistic of each training seed, over the same items.
        resamples, seed: of the bootstrap, which one seed is treated with.
        level: coverage of the interval, between 0 and 1.

    Raises:
        ValueError: no seed, no items, different items, or a level outside 0 to 1.
    """
    num_items = _shared_items(per_seed)
    if len(per_seed) == 1:
        return bootstrap(per_seed[0], num_items, resamples=resamples, seed=seed, level=level)
    scores, influence = _scores_and_influence(per_seed)
    return _t_interval(scores, influence, level)


def ratio_over_seeds(
    first: Sequence[Statistic], second: Sequence[Statistic], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Returns the ratio of two means over training seeds with its interval; with several seeds, by the delta method.

    Args:
        first, second: statistics of the same seeds in the same order, over the same items. The mean of the second is not near 0.
        resamples, seed, level: as `interval_over_seeds`.

    Raises:
        ValueError: as `interval_over_seeds`, or the numbers of seeds differ.
    """
    num_items = _shared_items([*first, *second])
    if len(first) == 1 and len(second) == 1:
        return bootstrap(ratio_of(first[0], second[0]), num_items, resamples=resamples, seed=seed, level=level)
    _check_paired(first, second)
    (above, moves_above), (below, moves_below) = _scores_and_influence(first), _scores_and_influence(second)
    ratio = above.mean() / below.mean()
    linear = (above - ratio * below) / below.mean()
    return _t_interval(linear + ratio, (moves_above - ratio * moves_below) / below.mean(), level)


def difference_over_seeds(
    first: Sequence[Statistic],
    second: Sequence[Statistic],
    *,
    same_seeds: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Returns the difference of two arms' means over training seeds (first minus second) on the same items.

    Args:
        first, second: the statistic of each training seed.
        same_seeds: the statistics of both arms are of the same seeds in the same order; else each arm has at least two other seeds.
        resamples, seed, level: as `interval_over_seeds`.

    Raises:
        ValueError: as `interval_over_seeds`; same seeds of different number; or different seeds with only one in an arm.
    """
    num_items = _shared_items([*first, *second])
    if not same_seeds:
        scores, influence = _scores_and_influence([*first, *second])
        parts = variance_of_mean(scores, influence, (len(first), len(second)))
        value = float(scores[: len(first)].mean() - scores[len(first) :].mean())
        return _t_difference(value, parts, num_items, min(len(first), len(second)), level)
    _check_paired(first, second)
    if len(first) == 1:
        return paired_bootstrap(first[0], second[0], num_items, resamples=resamples, seed=seed, level=level)
    scores, influence = _scores_and_influence([difference_of(one, other) for one, other in zip(first, second, strict=True)])
    return _t_difference(float(scores.mean()), variance_of_mean(scores, influence), num_items, len(first), level)


def _scores_and_influence(per_seed: Sequence[Statistic]) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, "S N"]]:
    return np.array([each.value for each in per_seed]), np.stack([each.influence_N for each in per_seed])


def _t_interval(scores: Float[np.ndarray, " S"], influence: Float[np.ndarray, "S N"], level: float) -> Interval:
    value = float(scores.mean())
    half = float(variance_of_mean(scores, influence).half_width(level))
    return Interval(value, value - half, value + half, influence.shape[1], len(scores), SEEDS_AND_ITEMS_T)


def _t_difference(value: float, parts: VarianceParts, num_items: int, num_seeds: int, level: float) -> Difference:
    half = float(parts.half_width(level))
    return Difference(value, value - half, value + half, parts.p_value(value), num_items, num_seeds, SEEDS_AND_ITEMS_T)


def _shared_items(per_seed: Sequence[Statistic]) -> int:
    numbers = {each.num_items for each in per_seed}
    if len(numbers) != 1:
        raise ValueError(f"an interval needs at least one seed, and the same items for all, got numbers of items {sorted(numbers)}")
    return numbers.pop()


def _check_paired(first: Sequence[Statistic], second: Sequence[Statistic]) -> None:
    if len(first) != len(second):
        raise ValueError(f"arms with the same seeds have equally many, got {len(first)} and {len(second)}")


def _quotient(sums_RK: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
    return sums_RK[:, 0] / sums_RK[:, 1]


def _combined(first: Statistic, second: Statistic, combine: Callable[..., Float[np.ndarray, " R"]]) -> Statistic:
    split = len(first.terms_KN)

    def of_sums(sums_RK: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
        return combine(first.of_sums(sums_RK[:, :split]), second.of_sums(sums_RK[:, split:]))

    return Statistic(np.concatenate([first.terms_KN, second.terms_KN]), of_sums)


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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval lies between 0 and 1, got {level}")

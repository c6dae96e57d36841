"""Makes a `Score` of values per item: its value, its bootstrap interval, its scorer and its share of unparsed answers."""

from collections.abc import Sequence

from sightline.metrics.statistics import Statistic, bootstrap, mean_of
from sightline.types import Score


def score_of_ratio(
    name: str, statistic: Statistic, scorer: str, unparsed: float | None = None, resamples: int = 1000, seed: int = 0
) -> Score:
    """Computes a score that has no value per item; arguments as in `score_of`."""
    interval = bootstrap(statistic, statistic.num_items, resamples=resamples, seed=seed)
    return Score(name, interval.value, interval.low, interval.high, (), scorer, unparsed, statistic.num_items)


def score_of(
    name: str,
    items: Sequence[float],
    scorer: str,
    unparsed: float | None = None,
    statistic: Statistic | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Score:
    """Computes a score with a 95 % bootstrap interval over its items.

    Args:
        name: of the score.
        items: one value per item.
        scorer: name and version of the scorer, such as "answers 1".
        unparsed: share of the answers that the scorer could not read.
        statistic: the score as a function of the items; their mean by default.
        resamples, seed: of the bootstrap.
    """
    statistic = mean_of(items) if statistic is None else statistic
    interval = bootstrap(statistic, len(items), resamples=resamples, seed=seed)
    return Score(name, interval.value, interval.low, interval.high, tuple(map(float, items)), scorer, unparsed)

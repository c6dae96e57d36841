"""Intervals and tests against enumeration, exact fractions and known coverage."""

from fractions import Fraction
from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.metrics.statistics import bootstrap, mcnemar, mean_of, paired_bootstrap


def test_resampled_means_have_the_distribution_of_all_resamples() -> None:
    values = [0.0, 1.0, 4.0]
    means = sorted(sum(drawn) / 3 for drawn in product(values, repeat=3))
    exact_low, exact_high = np.quantile(means, [0.1, 0.9])
    interval = bootstrap(mean_of(values), 3, resamples=20000, seed=1, level=0.8)
    # the 27 means step by a third, so a quantile of 20,000 draws falls on the same step
    assert (interval.low, interval.high) == (pytest.approx(exact_low), pytest.approx(exact_high))
    assert interval.value == pytest.approx(5 / 3)


def test_the_width_of_an_interval_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    interval = bootstrap(mean_of(values), 2000, resamples=4000, seed=2)
    expected = 2 * 1.959964 * values.std() / sqrt(2000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.06)  # quantiles of 4,000 draws: 3 % (1 sigma)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values = np.arange(50.0)
    first, again, other = (bootstrap(mean_of(values), 50, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_drawing_in_parts_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(20.0)
    whole = bootstrap(mean_of(values), 20, resamples=101)
    monkeypatch.setattr("sightline.metrics.statistics._CHUNK", 60)
    assert bootstrap(mean_of(values), 20, resamples=101) == whole


def test_one_item_has_no_width() -> None:
    interval = bootstrap(mean_of([0.3]), 1)
    assert interval.low == interval.high == interval.value == pytest.approx(0.3)


@pytest.mark.parametrize(("num_items", "resamples", "level"), [(0, 10, 0.95), (3, 0, 0.95), (3, 10, 1.0), (3, 10, 0.0)])
def test_an_impossible_bootstrap_is_refused(num_items: int, resamples: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"bootstrap needs|level of an interval"):
        bootstrap(mean_of([1.0] * num_items), num_items, resamples=resamples, level=level)


def test_a_pair_is_narrower_than_its_parts_when_items_move_together() -> None:
    generator = np.random.default_rng(3)
    difficulty = generator.normal(size=300)
    first, second = difficulty + 0.1 + 0.05 * generator.normal(size=300), difficulty + 0.05 * generator.normal(size=300)
    difference = paired_bootstrap(mean_of(first), mean_of(second), 300, seed=1)
    assert difference.value == pytest.approx(first.mean() - second.mean())
    assert 0.08 < difference.low < difference.value < difference.high < 0.12
    assert difference.p == pytest.approx(2 / 1001)  # no resample reaches zero
    assert bootstrap(mean_of(first), 300, seed=1).high - bootstrap(mean_of(first), 300, seed=1).low > 0.2


def test_a_system_does_not_differ_from_itself() -> None:
    values = [0.0, 0.5, 1.0]
    difference = paired_bootstrap(mean_of(values), mean_of(values), 3)
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_exact_binomial(outcomes: list[tuple[bool, bool]]) -> None:
    result = mcnemar([a for a, _ in outcomes], [b for _, b in outcomes])
    only_first, only_second = outcomes.count((True, False)), outcomes.count((False, True))
    trials = only_first + only_second
    tail = sum(Fraction(comb(trials, k), 2**trials) for k in range(min(only_first, only_second) + 1))
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_mcnemar_stays_finite_for_many_items() -> None:
    result = mcnemar([True] * 5200 + [False] * 4800, [False] * 5200 + [True] * 4800)
    # normal approximation with continuity correction: z = 399 / 100, two-sided 6.6e-5
    assert result.p == pytest.approx(6.6e-5, rel=0.02)


def test_mcnemar_refuses_unpaired_items() -> None:
    with pytest.raises(ValueError, match="2 and 1 items"):
        mcnemar([True, False], [True])

"""Intervals and tests against enumeration, exact fractions and known coverage."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
from benchmarks.statistics import Cell, simulate
from jaxtyping import Float
from scipy import stats

from sightline.metrics.caption import bleu
from sightline.metrics.statistics import (
    ITEMS_BOOTSTRAP,
    SEEDS_AND_ITEMS_T,
    Statistic,
    bootstrap,
    difference_of,
    difference_over_seeds,
    interval_over_seeds,
    mean_by_cluster,
    mean_of,
    paired_bootstrap,
    ratio_of,
    ratio_over_seeds,
    variance_of_mean,
)
from sightline.metrics.student_t import two_sided_p, two_sided_quantile


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


# Student's t ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30.5, 199, 999, 39_999])
def test_student_t_is_that_of_scipy(df: float) -> None:
    for t in (0.0, 1e-3, 0.5, 1.0, 2.0, 5.0, 40.0, 1e6):
        assert two_sided_p(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-7, abs=1e-300)
    for p in (1.0, 0.99, 0.5, 0.05, 1e-3, 1e-12, 1e-50):
        assert two_sided_quantile(p, df) == pytest.approx(stats.t.isf(p / 2, df), rel=1e-8)


# Influence of items ---------------------------------------------------------------------------------------------------------------


def test_the_influence_on_a_mean_is_the_value_less_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=40)
    np.testing.assert_allclose(mean_of(values).influence_N, values - values.mean(), atol=1e-13)
    assert mean_of([3.0]).influence_N.tolist() == [0.0]


def test_the_influence_on_a_clustered_mean_gives_its_linearised_variance() -> None:
    generator = np.random.default_rng(1)
    cluster = np.concatenate([np.arange(300), generator.integers(300, size=900)])
    values = generator.normal(size=1200) + generator.normal(size=300)[cluster]
    statistic, count = mean_by_cluster(values, cluster)
    sums, sizes = np.bincount(cluster, values), np.bincount(cluster)
    linear = (sums - values.mean() * sizes) / sizes.mean()  # Cochran 1977, sec. 2.11
    assert count == 300
    assert statistic.influence_N.var() == pytest.approx(linear.var(), rel=0.02)


def test_the_influence_on_corpus_bleu_gives_the_variance_of_its_bootstrap() -> None:
    generator = np.random.default_rng(2)
    words = [f"w{number}" for number in range(30)]
    texts = [[words[index] for index in generator.integers(30, size=generator.integers(5, 12))] for _ in range(250)]
    references = [[[word if generator.random() < 0.8 else "other" for word in text] + ["end"]] for text in texts]
    statistic = bleu(texts, references).corpus(4)
    draws = generator.multinomial(250, np.full(250, 1 / 250), size=4000)
    expected = statistic(draws).std()
    assert sqrt(statistic.influence_N.var() / 250) == pytest.approx(expected, rel=0.05)
    # and not that of the mean over captions, which is another number
    assert abs(bleu(texts, references).per_item()[:, 3].mean() - statistic.value) > 0.02


def test_combined_statistics_are_those_of_their_parts() -> None:
    generator = np.random.default_rng(3)
    first, second = mean_of(generator.normal(size=9)), mean_of(generator.normal(size=9) + 5)
    draws = generator.multinomial(9, np.full(9, 1 / 9), size=20)
    np.testing.assert_array_equal(difference_of(first, second)(draws), first(draws) - second(draws))
    np.testing.assert_array_equal(ratio_of(first, second)(draws), first(draws) / second(draws))


# Several seeds --------------------------------------------------------------------------------------------------------------------


def over(values: Float[np.ndarray, "S N"]) -> list[Statistic]:
    return [mean_of(values_N) for values_N in values]


def test_the_variance_over_seeds_and_items_is_that_of_the_analysis_of_variance() -> None:
    values = np.array([[1.0, 2.0, 6.0], [2.0, 5.0, 8.0]])
    # seed means 3 and 5, item means 1.5, 3.5, 7, grand mean 4; residuals +-(0.5, -0.5, 0)
    ms_seeds, ms_items, ms_interaction = 3 * 2 / 1, 2 * (6.25 + 0.25 + 9) / 2, 2 * (0.25 + 0.25) / 2
    parts = variance_of_mean(values.mean(axis=1), values - values.mean(axis=1, keepdims=True))
    assert [float(part) for part in parts.variances] == pytest.approx([ms_seeds / 6, (ms_items - ms_interaction) / 6])
    assert parts.degrees == (1, 2)
    by_seeds, by_items = 1.0, 2.5
    assert float(parts.total) == pytest.approx(by_seeds + by_items)
    critical = (by_seeds * stats.t.ppf(0.975, 1) + by_items * stats.t.ppf(0.975, 2)) / 3.5
    found = interval_over_seeds(over(values))
    assert [found.value, found.low, found.high] == pytest.approx([4.0, 4 - critical * sqrt(3.5), 4 + critical * sqrt(3.5)])
    assert (found.n, found.seeds, found.method) == (3, 2, SEEDS_AND_ITEMS_T)


def test_seeds_without_items_of_their_own_make_a_t_interval_over_seeds() -> None:
    scores = np.array([0.1, 0.4, 0.2, 0.6])
    found = interval_over_seeds(over(np.repeat(scores[:, None], 50, axis=1)))
    expected = stats.ttest_1samp(scores, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    equal = difference_over_seeds(over(np.repeat(scores[:, None], 50, axis=1)), over(np.zeros((4, 50))))
    assert equal.p == pytest.approx(stats.ttest_1samp(scores, 0.0).pvalue)


def test_one_seed_is_a_bootstrap_over_items_and_says_so() -> None:
    values = np.random.default_rng(4).normal(size=(2, 60))
    found = interval_over_seeds(over(values[:1]), resamples=300, seed=3)
    assert found == bootstrap(mean_of(values[0]), 60, resamples=300, seed=3)
    assert (found.n, found.seeds, found.method) == (60, 1, ITEMS_BOOTSTRAP)
    paired = difference_over_seeds(over(values[:1]), over(values[1:]), resamples=300, seed=3)
    assert paired == paired_bootstrap(mean_of(values[0]), mean_of(values[1]), 60, resamples=300, seed=3)
    assert (paired.seeds, paired.method) == (1, ITEMS_BOOTSTRAP)


def test_a_difference_with_the_same_seeds_is_the_interval_of_the_differences() -> None:
    first, second = np.random.default_rng(5).normal(size=(2, 3, 40))
    found, single = difference_over_seeds(over(first), over(second)), interval_over_seeds(over(first - second))
    assert [found.value, found.low, found.high] == pytest.approx([single.value, single.low, single.high])
    assert (found.n, found.seeds, found.method) == (40, 3, SEEDS_AND_ITEMS_T)


def test_a_difference_with_other_seeds_has_a_part_for_each_arm() -> None:
    generator = np.random.default_rng(6)
    first, second = generator.normal(size=(2, 40)), generator.normal(size=(4, 40)) + 1
    values = np.concatenate([first, second])
    parts = variance_of_mean(values.mean(axis=1), values - values.mean(axis=1, keepdims=True), (2, 4))
    single = [variance_of_mean(each.mean(axis=1), each - each.mean(axis=1, keepdims=True)) for each in (first, second)]
    assert parts.degrees == (1, 3, 39)
    assert parts.variances[0] == pytest.approx(single[0].variances[0])
    assert parts.variances[1] == pytest.approx(single[1].variances[0])
    items = (first.mean(axis=0) - second.mean(axis=0)).var(ddof=1) / 40
    interactions = [
        (each - each.mean(axis=1, keepdims=True) - each.mean(axis=0) + each.mean()).ravel() @ each.ravel() / ((len(each) - 1) * 39)
        for each in (first, second)
    ]
    assert parts.variances[2] == pytest.approx(max(items - interactions[0] / 80 - interactions[1] / 160, 0), abs=1e-12)
    found = difference_over_seeds(over(first), over(second), same_seeds=False)
    half = float(parts.half_width())
    assert [found.value, found.low, found.high] == pytest.approx(
        [first.mean() - second.mean(), first.mean() - second.mean() - half, first.mean() - second.mean() + half]
    )
    assert found.seeds == 2


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99, 1 - 1e-9])
def test_the_p_value_is_that_of_the_interval_which_ends_at_zero(level: float) -> None:
    values = np.random.default_rng(7).normal(size=(3, 25)) + np.array([[0.1], [0.3], [0.2]])
    parts = variance_of_mean(values.mean(axis=1), values - values.mean(axis=1, keepdims=True))
    assert parts.p_value(float(parts.half_width(level))) == pytest.approx(1 - level, rel=1e-6)
    assert parts.p_value(0.0) == 1.0


def test_values_without_any_variance_have_no_width() -> None:
    found = difference_over_seeds(over(np.ones((2, 5))), over(np.ones((2, 5))))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_ratio_moves_with_both_of_its_parts() -> None:
    base = np.random.default_rng(8).normal(size=(3, 50)) + 4
    same = ratio_over_seeds(over(base / 2), over(base))
    assert [same.value, same.low, same.high] == pytest.approx([0.5, 0.5, 0.5])
    other = np.random.default_rng(9).normal(size=(3, 50)) + 8
    found = ratio_over_seeds(over(other), over(base))
    assert found.value == pytest.approx(other.mean() / base.mean())
    linear = interval_over_seeds(over((other - found.value * base) / base.mean()))
    assert found.high - found.value == pytest.approx(linear.high - linear.value)
    single = ratio_over_seeds(over(other[:1]), over(base[:1]), resamples=200)
    assert single == bootstrap(ratio_of(mean_of(other[0]), mean_of(base[0])), 50, resamples=200)


def test_impossible_seeds_are_refused() -> None:
    values = np.ones((3, 5))
    with pytest.raises(ValueError, match="at least one seed"):
        interval_over_seeds([])
    with pytest.raises(ValueError, match=r"numbers of items \[5, 6\]"):
        difference_over_seeds(over(values), over(np.ones((3, 6))))
    with pytest.raises(ValueError, match="3 and 2"):
        difference_over_seeds(over(values), over(values[:2]))
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        difference_over_seeds(over(values), over(values[:1]), same_seeds=False)
    with pytest.raises(ValueError, match="level of an interval"):
        interval_over_seeds(over(values), level=1.0)


@pytest.mark.parametrize("cell", [Cell(200, 2, 0.8), Cell(200, 3, 0.0), Cell(200, 3, 0.8)], ids=lambda cell: cell.name)
def test_intervals_hold_the_truth_as_often_as_they_say(cell: Cell) -> None:
    findings = {found.name.removesuffix(f"_{cell.name}"): found for found in simulate(cell, 2000, np.random.default_rng(10))}
    assert all(found.is_met for found in findings.values())
    assert findings["coverage"].ratio.median < 0.99  # no wider than it must be
    if cell.share:
        assert findings["items_only"].ratio.median < 0.8

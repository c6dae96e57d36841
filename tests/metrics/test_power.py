"""Minimum detectable differences against the noncentral t distribution, the normal formula, and simulated experiments."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from sightline.metrics.power import DifferenceSpread, minimum_detectable_difference
from sightline.metrics.statistics import variance_of_mean


def test_with_one_seed_it_is_the_formula_of_the_z_test() -> None:
    found = minimum_detectable_difference(400, 1, DifferenceSpread(items=0.8, seeds=5.0, interaction=0.6))
    assert found == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / sqrt(400), rel=1e-5)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_where_only_seeds_vary_it_is_the_power_of_the_t_test(num_seeds: int) -> None:
    found = minimum_detectable_difference(100, num_seeds, DifferenceSpread(items=0.0, seeds=0.3), power=0.9)
    critical = stats.t.ppf(0.975, num_seeds - 1)
    shift = found / (0.3 / sqrt(num_seeds))
    assert stats.nct.sf(critical, num_seeds - 1, shift) + stats.nct.sf(critical, num_seeds - 1, -shift) == pytest.approx(
        0.9, abs=1e-4
    )


@pytest.mark.parametrize(("num_items", "num_seeds"), [(200, 2), (200, 3), (1000, 5)])
def test_simulated_experiments_detect_it_four_times_in_five(num_items: int, num_seeds: int) -> None:
    spread, count = DifferenceSpread(items=1.0, seeds=0.06, interaction=0.8), 2000
    size = minimum_detectable_difference(num_items, num_seeds, spread)
    generator = np.random.default_rng(num_items + num_seeds)
    detected = 0
    for _ in range(count // 100):
        values = size + generator.normal(size=(100, num_seeds, num_items)) * spread.interaction
        values += generator.normal(size=(100, 1, num_items)) * spread.items
        values += generator.normal(size=(100, num_seeds, 1)) * spread.seeds
        means = values.mean(axis=-1)
        half_width = variance_of_mean(means, values - means[..., None]).half_width()
        detected += int((np.abs(means.mean(axis=-1)) > half_width).sum())
    assert detected / count == pytest.approx(0.8, abs=0.03)  # 3 standard errors


def test_it_falls_with_items_and_seeds_and_is_zero_without_variance() -> None:
    spread = DifferenceSpread(items=1.0, seeds=0.05, interaction=0.5)
    by_seeds = [minimum_detectable_difference(500, num_seeds, spread) for num_seeds in (2, 3, 5, 10)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    assert minimum_detectable_difference(2000, 3, spread) < minimum_detectable_difference(500, 3, spread)
    assert minimum_detectable_difference(500, 3, DifferenceSpread(items=0.0)) == 0.0


@pytest.mark.parametrize(("num_items", "num_seeds", "power"), [(1, 2, 0.8), (100, 0, 0.8), (100, 2, 1.0), (100, 2, 0.04)])
def test_impossible_plans_are_refused(num_items: int, num_seeds: int, power: float) -> None:
    with pytest.raises(ValueError, match=r"at least 2 items|power lies between"):
        minimum_detectable_difference(num_items, num_seeds, DifferenceSpread(items=1.0), power=power)

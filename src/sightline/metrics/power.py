"""How small a difference an experiment can detect, before it is run."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from sightline.metrics.student_t import root, two_sided_quantile

_POINTS = 4001


@dataclass(frozen=True, slots=True)
class DifferenceSpread:
    """Standard deviations of paired differences between two arms, by source.

    Attributes:
        items: of single items, the same with every seed.
        seeds: of whole seeds, the same on every item.
        interaction: of single items with single seeds.
    """

    items: float
    seeds: float = 0.0
    interaction: float = 0.0


def minimum_detectable_difference(
    num_items: int, num_seeds: int, spread: DifferenceSpread, *, power: float = 0.8, level: float = 0.95
) -> float:
    """Returns the true difference that the interval of `difference_over_seeds` excludes 0 for with the given probability.

    With n items, k seeds, `a = (seeds^2 + interaction^2 / n) / k`, `b = items^2 / n` and q = level, it is the d that solves

        power = E_u[ F((d - h(u)) / s) + F((-d - h(u)) / s) ],   s = sqrt(a + b)
        h(u)  = (a x t_{k-1} + b t_{n-1}) / sqrt(a x + b),   x = u^2 / (k - 1),  u ~ chi with k - 1 degrees of freedom

    F is the normal distribution and t_m the two-sided quantile of Student's t at q with m degrees of freedom. The difference is
    taken as normal, the variance between seeds as estimated from k seeds, and that of items as known. With one seed only items are
    drawn: `d = (z_q + z_power) sqrt((items^2 + interaction^2) / n)`, up to the far tail.

    Args:
        num_items: at least 2.
        num_seeds: seeds of both arms, the same for both.
        spread: of the paired differences.
        power: probability to detect the difference.
        level: coverage of the interval; 0.95 tests at 5 %.

    Raises:
        ValueError: too few items or seeds, or `power` not between 1 - level and 1.
    """
    if num_items < 2 or num_seeds < 1:
        raise ValueError(f"a difference needs at least 2 items and 1 seed, got {num_items} and {num_seeds}")
    if not 1 - level < power < 1:
        raise ValueError(f"the power lies between {1 - level:g} and 1, got {power}")
    detect = _detection(num_items, num_seeds, spread, level)
    if detect is None:
        return 0.0
    scale, probability = detect
    high = scale
    while probability(high) < power:
        high *= 2
    return root(lambda size: probability(size) - power, 0.0, high)


def _detection(
    num_items: int, num_seeds: int, spread: DifferenceSpread, level: float
) -> tuple[float, Callable[[float], float]] | None:
    """Returns standard error, and the probability to detect a difference; None where nothing varies."""
    by_items = spread.items**2 / num_items
    by_seeds = (spread.seeds**2 + spread.interaction**2 / num_items) / num_seeds
    error = math.sqrt(by_items + by_seeds)
    if error == 0:
        return None
    if num_seeds == 1:
        error = math.sqrt(by_items + spread.interaction**2 / num_items)
        weights, half_width = np.ones(1), np.array([NormalDist().inv_cdf((1 + level) / 2) * error])
    else:
        weights, squares = _chi_square_over_df(num_seeds - 1)
        t_seeds, t_items = two_sided_quantile(1 - level, num_seeds - 1), two_sided_quantile(1 - level, num_items - 1)
        half_width = (by_seeds * squares * t_seeds + by_items * t_items) / np.sqrt(
            np.maximum(by_seeds * squares + by_items, 1e-300)
        )

    def probability(size: float) -> float:
        return float(weights @ (_normal((size - half_width) / error) + _normal((-size - half_width) / error)))

    return error, probability


def _chi_square_over_df(df: int) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Weights and values of chi^2 / df, by the trapezoidal rule over chi."""
    chi = np.linspace(0, math.sqrt(df) + 9, _POINTS)
    with np.errstate(divide="ignore"):
        log_density = (df - 1) * np.log(chi) if df > 1 else np.zeros(_POINTS)
    density = np.exp(log_density - chi**2 / 2 - ((df - 1) / 2 * math.log(max(df - 1, 1)) - (df - 1) / 2))
    density[[0, -1]] /= 2
    return density / density.sum(), chi**2 / df


def _normal(z: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    return 0.5 * np.vectorize(math.erfc)(-z / math.sqrt(2))

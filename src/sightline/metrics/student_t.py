"""Student's t distribution: tail probability and quantile, in plain Python so that no scipy is needed to draw an interval."""

import math
from collections.abc import Callable
from functools import lru_cache

_SMALLEST_P = 1e-300
_CLOSE = 1e-13  # relative; a double holds 2e-16


def two_sided_p(t: float, df: float) -> float:
    """Returns P(|T| > |t|) for T with `df` degrees of freedom.

    It is the regularised incomplete beta function I_x(df / 2, 1 / 2) at x = df / (df + t^2) (Abramowitz & Stegun 26.7.1).
    """
    if math.isinf(t):
        return 0.0
    square = t * t
    return _incomplete_beta(df / 2, 0.5, df / (df + square), square / (df + square))


@lru_cache(maxsize=1024)
def two_sided_quantile(p: float, df: float) -> float:
    """Returns the t >= 0 with P(|T| > t) = p.

    Args:
        p: above 0 and at most 1.
        df: degrees of freedom, above 0.
    """
    if p >= 1:
        return 0.0
    if df == 1:
        return 1 / math.tan(math.pi * p / 2)
    low = high = 0.0  # log t
    while two_sided_p(math.exp(low), df) < p:
        low -= 1
    while two_sided_p(math.exp(high), df) > p:
        high += 1
    return math.exp(root(lambda log_t: math.log(max(two_sided_p(math.exp(log_t), df), _SMALLEST_P) / p), low, high))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns a zero of a function that has opposite signs at `low` and `high` (Ridders 1979)."""
    at_low, at_high = function(low), function(high)
    for end, value in ((low, at_low), (high, at_high)):
        if value == 0:
            return end
    found = low
    for _ in range(200):
        middle = (low + high) / 2
        at_middle = function(middle)
        scale = math.sqrt(at_middle * at_middle - at_low * at_high)
        if scale == 0:
            return middle
        before, found = found, middle + (middle - low) * math.copysign(1, at_low - at_high) * at_middle / scale
        value = function(found)
        if value == 0 or abs(found - before) <= _CLOSE * max(1.0, abs(found)):
            return found
        if (at_middle > 0) != (value > 0):
            low, at_low, high, at_high = middle, at_middle, found, value
        elif (at_low > 0) != (value > 0):
            high, at_high = found, value
        else:
            low, at_low = found, value
    return found


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Computes I_x(a, b) by its continued fraction (Abramowitz & Stegun 26.5.8); `rest` is 1 - x, which x may have lost."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, the other tail's converges fast
        return 1 - _incomplete_beta(b, a, rest, x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Returns the continued fraction of `_incomplete_beta`, evaluated from the front (modified Lentz)."""
    tiny = 1e-300
    numerator, denominator = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = denominator
    for m in range(1, 100_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / (1 + term * denominator or tiny)
            numerator = 1 + term / numerator or tiny
            value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return value

"""Axes of charts: round ticks, linear and logarithmic scales, numbers for people, and the thinning of long curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: what it measures, with the unit.
        is_log: logarithmic; values of 0 and below are left out.
        low, high: its ends; by default those of the data, rounded to ticks.
    """

    label: str = ""
    is_log: bool = False
    low: float | None = None
    high: float | None = None


PLAIN = Axis()


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Returns round numbers between two ends: steps of 1, 2 or 5 times a power of ten, about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, math.floor(high / step + 1e-9) + 1)]


def decimate(x: Sequence[float], y: Sequence[float], buckets: int) -> list[int]:
    """Places of a curve to keep: of each bucket of neighbours its first, lowest, highest and last, so that peaks stay.

    Args:
        x, y: the curve.
        buckets: about one for each column of pixels.
    """
    if len(x) <= 4 * buckets:
        return list(range(len(x)))
    keep: set[int] = set()
    for number in range(buckets):
        places = range(number * len(x) // buckets, (number + 1) * len(x) // buckets)
        finite = [place for place in places if math.isfinite(y[place])]
        odd = next((place for place in places if not math.isfinite(y[place])), None)
        keep |= {places[0], places[-1], *(() if odd is None else (odd,))}
        if finite:
            keep |= {min(finite, key=lambda place: y[place]), max(finite, key=lambda place: y[place])}
    return sorted(keep)


@dataclass(frozen=True)
class Scale:
    """From values to 0..1, linear or logarithmic, with the values where ticks stand."""

    low: float
    high: float
    is_log: bool
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        if self.is_log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def make_scale(values: Sequence[float], axis: Axis) -> Scale:
    """Returns the scale of an axis for these values."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not axis.is_log)]
    low = axis.low if axis.low is not None else min(found, default=1.0 if axis.is_log else 0.0)
    high = axis.high if axis.high is not None else max(found, default=1.0)
    if axis.is_log:
        return _log_scale(low, high, axis)
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = (low - room if axis.low is None else low), low + room
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    if axis.low is None:
        low = math.floor(low / step + 1e-9) * step
    if axis.high is None:
        high = math.ceil(high / step - 1e-9) * step
    return Scale(low, high, False, ticks(low, high))


def _log_scale(low: float, high: float, axis: Axis) -> Scale:
    low = max(low, 1e-300)
    high = high if high > low else low * 10
    below, above = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    low = 10.0**below if axis.low is None and above - below > 1 else low
    high = 10.0**above if axis.high is None and above - below > 1 else high
    factors = (1,) if above - below > 5 else (1, 3) if above - below > 2 else (1, 2, 5)
    step = max(1, (above - below) // 6)
    marks = [factor * 10.0**power for power in range(below, above + 1, step) for factor in factors]
    return Scale(low, high, True, [mark for mark in marks if low * 0.999 <= mark <= high * 1.001])


def between(edges: Sequence[float], value: float) -> float:
    """Returns the position of a value among edges that are drawn at equal distances."""
    if value <= edges[0]:
        return 0.0
    for place, (low, high) in enumerate(pairwise(edges)):
        if value < high:
            return place + (value - low) / (high - low)
    return float(len(edges) - 1)


def short(value: float) -> str:
    """Returns a value for people: 0.25, 1,200, 30k, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e15 or abs(value) < 1e-4:
        return f"{value:.2g}"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{value / size:.4g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

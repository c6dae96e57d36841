"""Tests of two systems on the same items, and corrections for several comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_CHUNK = 4_000_000  # signs in memory at once: 32 MB
_MOST_EXACT = 14  # items whose 2^N signs are all tried


@dataclass(frozen=True, slots=True)
class McNemar:
    """Numbers of items that only the first or only the second system gets right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p: float


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


def sign_flip_test(differences: Sequence[float] | Float[np.ndarray, " N"], *, resamples: int = 10_000, seed: int = 0) -> float:
    """Returns the two-sided p-value of a paired permutation test, which gives each difference a random sign.

    Without an effect each difference is as likely with the other sign. The p-value is the share of sign patterns whose mean
    difference lies at least as far from 0 as the observed one. Up to 14 items all patterns are tried; beyond, `resamples` random
    ones, with one added to numerator and denominator.

    Args:
        differences: first minus second system, one per item. Of items that belong together (one image), pass their sum.
        resamples: number of random sign patterns.
        seed: of the random signs.

    Raises:
        ValueError: no items, or no resamples.
    """
    values_N = np.asarray(differences, dtype=float)
    num_items = len(values_N)
    if num_items < 1 or resamples < 1:
        raise ValueError(f"a permutation test needs items and resamples, got {num_items} items and {resamples} resamples")
    # sums in another order differ in their last bits, which must not tell equal ones apart
    reached = abs(values_N.sum()) - 1e-12 * np.abs(values_N).sum()
    if num_items <= _MOST_EXACT:
        bits = np.arange(2**num_items)[:, None] >> np.arange(num_items) & 1
        return float((np.abs((1 - 2 * bits) @ values_N) >= reached).mean())
    generator = np.random.default_rng(seed)
    rows, as_far = max(1, _CHUNK // num_items), 0
    for done in range(0, resamples, rows):
        signs = 1.0 - 2.0 * generator.integers(2, size=(min(rows, resamples - done), num_items))
        as_far += int((np.abs(signs @ values_N) >= reached).sum())
    return (as_far + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected so that the chance of any false alarm stays below the level, in the order given (Holm 1979).

    Raises:
        ValueError: a p-value outside 0 to 1.
    """
    p_M, order = _sorted(p_values)
    corrected = np.maximum.accumulate(p_M[order] * np.arange(len(p_M), 0, -1))
    return _unsorted(corrected, order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for the false discovery rate, in the order given.

    The expected share of false alarms among what is found then stays below the level. Valid for independent or positively dependent
    tests (Benjamini & Hochberg 1995).

    Raises:
        ValueError: a p-value outside 0 to 1.
    """
    p_M, order = _sorted(p_values)
    scaled = p_M[order] * len(p_M) / np.arange(1, len(p_M) + 1)
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _sorted(p_values: Sequence[float]) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    p_M = np.asarray(p_values, dtype=float)
    wrong = p_M[~((p_M >= 0) & (p_M <= 1))]
    if len(wrong):
        raise ValueError(f"a p-value lies between 0 and 1, got {wrong[0]}")
    return p_M, np.argsort(p_M, kind="stable")


def _unsorted(corrected: Float[np.ndarray, " M"], order: Float[np.ndarray, " M"]) -> list[float]:
    out = np.empty_like(corrected)
    out[order] = np.minimum(corrected, 1.0)
    return out.tolist()

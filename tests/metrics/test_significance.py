"""Tests of two systems and corrections for several comparisons, against scipy and hand-computed cases."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sightline.metrics.significance import benjamini_hochberg, holm, mcnemar, sign_flip_test


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


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 9), (40, 61), (700, 640)])
def test_mcnemar_is_the_binomial_test_of_scipy(only_first: int, only_second: int) -> None:
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    expected = stats.binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert mcnemar(first, second).p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_items", [2, 6, 12])
def test_sign_flips_are_the_exact_permutation_test_of_scipy(num_items: int) -> None:
    generator = np.random.default_rng(num_items)
    for values in (generator.normal(size=num_items) + 0.5, generator.integers(-2, 4, size=num_items) / 10):
        expected = stats.permutation_test(
            (np.round(values * 1e6),),  # whole numbers, whose sums are exact in every order
            lambda x, axis: np.mean(x, axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert sign_flip_test(values) == pytest.approx(expected.pvalue)


def test_random_sign_flips_come_close_to_the_permutation_test_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).exponential(size=80) - 0.8
    expected = stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    )
    found = sign_flip_test(values, resamples=20_000)
    assert 0.02 < expected.pvalue < 0.5
    assert found == pytest.approx(expected.pvalue, abs=0.015)  # 3 standard errors of both
    monkeypatch.setattr("sightline.metrics.significance._CHUNK", 800)
    assert sign_flip_test(values, resamples=20_000) == found


def test_random_sign_flips_never_give_zero() -> None:
    assert sign_flip_test([1.0] * 50, resamples=99) == pytest.approx(1 / 100)
    assert sign_flip_test([0.0] * 50, resamples=99) == 1.0


@pytest.mark.parametrize(("values", "resamples"), [([], 10), ([1.0], 0)])
def test_an_impossible_permutation_test_is_refused(values: list[float], resamples: int) -> None:
    with pytest.raises(ValueError, match="needs items and resamples"):
        sign_flip_test(values, resamples=resamples)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04 kept above 0.06
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),  # 3 x 0.5 and 2 x 0.6 are cut at 1
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_on_cases_computed_by_hand(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_is_that_of_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values, method="bh").tolist())


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_what_is_no_p_value_is_refused(correct: object) -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            correct([0.5, wrong])  # type: ignore[operator]

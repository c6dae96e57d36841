"""Weights of several scores: the best recall wins, ties go to higher recall at 5, then to even weights."""

import numpy as np
import pytest

from sightline.metrics.score_weights import choose_weights

RIGHT = np.eye(8, dtype=bool)


def test_the_score_that_finds_more_gets_the_weight() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2, 8, 8))
    weights, recall = choose_weights(np.stack([noise[0], RIGHT + 0.0, noise[1] * 50]), RIGHT)
    assert (weights[2], recall) == (0, 1)
    assert weights[1] >= 0.4


def test_equal_scores_are_weighted_evenly() -> None:
    perfect = RIGHT + 0.0
    weights, recall = choose_weights(np.stack([perfect] * 5), RIGHT)
    assert weights == [0.2] * 5
    assert recall == 1
    constant = np.zeros((4, 8, 8))
    weights, recall = choose_weights(constant, RIGHT)
    assert recall == pytest.approx(1 / 8)
    assert sorted(weights) == [0.2, 0.2, 0.2, 0.4]
    assert weights[0] == 0.4  # more on the earlier one


def test_two_halves_of_the_truth_are_better_together() -> None:
    """One score knows rows, the other columns of a 4 x 2 arrangement: only their sum finds the item."""
    items = [(row, column) for row in range(4) for column in range(2)]
    of_rows = np.array([[float(a[0] == b[0]) for b in items] for a in items])
    of_columns = np.array([[float(a[1] == b[1]) for b in items] for a in items])
    weights, recall = choose_weights(np.stack([of_rows, of_columns]), RIGHT)
    assert recall == 1
    assert sorted(weights) == [0.4, 0.6]

"""Measures of alignment: right values on small cases, and a good, an untrained and a broken connector told apart by intervals.

The three connectors get the same encoder: it knows what the texts say (8 directions) among much that they do not (32 louder ones).
"""

import math

import numpy as np
import pytest

from sightline.evaluation.probes.aligned import Representations, effective_rank, measure, modality_gap, nearest
from sightline.reporting.aligned_page import aligned_page

COUNT, WIDTH = 120, 24


def made(kind: str) -> Representations:
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(COUNT, 8))
    words = rng.normal(size=(8, WIDTH))
    text = meaning @ words + 4.0  # texts share much, such as their articles
    encoder = np.concatenate([meaning, 2 * rng.normal(size=(COUNT, 32))], axis=1)
    per_token = encoder[:, None] + 0.5 * rng.normal(size=(COUNT, 4, 40))
    if kind == "good":
        tokens = per_token[..., :8] @ words + 3.0 + 0.5 * rng.normal(size=(COUNT, 4, WIDTH))
    elif kind == "untrained":
        tokens = per_token @ rng.normal(size=(40, WIDTH)) / np.sqrt(40)
    else:  # broken: one direction, whatever is seen
        tokens = np.ones((COUNT, 4, 1)) * rng.normal(size=WIDTH) * (1 + 1e-3 * rng.normal(size=(COUNT, 4, 1)))
    gain = {"good": 2.0, "untrained": 0.0, "broken": 0.0}[kind]
    own = rng.normal(size=COUNT) if kind != "broken" else np.zeros(COUNT)
    other = own - gain + (rng.normal(size=COUNT) if kind != "broken" else 0.0)
    return Representations(encoder, tokens.mean(axis=1), text, tokens, own, other)


def test_every_measure_orders_the_three_connectors_with_intervals_apart() -> None:
    good, untrained, broken = (measure(made(kind)) for kind in ("good", "untrained", "broken"))
    assert [found.verdict for found in (good, untrained, broken)] == ["aligned", "not enough items to say", "not aligned"]
    assert good.own_image is not None
    assert untrained.own_image is not None
    assert good.own_image.low > untrained.own_image.high
    assert untrained.own_image.low < 0.5 < untrained.own_image.high  # 120 records do not decide within 5 points
    assert good.text_after.low > untrained.text_after.high
    assert untrained.text_after.low > broken.text_after.high
    assert good.text_gained.low > 0 > broken.text_gained.high
    assert untrained.kept.low > good.kept.high  # an untrained connector keeps the loud directions, a good one drops them
    assert good.kept.low > broken.kept.high
    assert broken.chance == pytest.approx(10 / 119)
    assert good.gap.high < untrained.gap.low
    assert good.gap.high < broken.gap.low
    assert broken.rank.high < 2 < good.rank.low
    assert good.rank.high < untrained.rank.low


def test_the_words_say_what_the_numbers_do() -> None:
    told = {kind: measure(made(kind)).to_json()["sentence"] for kind in ("good", "untrained", "broken")}
    assert told["good"].startswith("Aligned: a text is likelier with its own image than with another record's for ")
    assert "brings images together whose texts are alike" in told["good"]
    assert "point the same way" in told["broken"]
    assert "no longer tell images apart" in told["broken"]
    assert "no longer" not in told["untrained"]
    page = aligned_page("aligned", measure(made("good")))
    assert page.index("Aligned: a text is") < page.index("modality gap")


def test_nearest_neighbours_are_those_of_the_smallest_angle() -> None:
    values = np.array([[1.0, 0.0], [5.0, 0.5], [0.0, 1.0], [0.1, 3.0]])
    assert nearest(values, 1).tolist() == [[1], [0], [3], [2]]


def test_the_gap_is_the_distance_of_the_centres_of_unit_vectors() -> None:
    images, texts = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([[-1.0, 0.0], [-4.0, 0.0]])
    found = modality_gap(images, texts)
    assert found.value == pytest.approx(math.hypot(0.5 + 1, 0.5))
    assert modality_gap(images, images).value == 0


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    signs = np.array([[1.0, 1.0], [1.0, -1.0]])
    walsh = signs
    for _ in range(3):
        walsh = np.kron(walsh, signs)
    rows = walsh[:, 1 : rank + 1]  # orthogonal columns with mean 0
    assert effective_rank(rows) == pytest.approx(rank)
    values = np.array([3.0, 1.0])
    share = values / values.sum()
    assert effective_rank(walsh[:, 1:3] * values) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert effective_rank(np.ones((5, 4))) == 0

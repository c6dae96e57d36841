"""The verdict at each of its edges, computed by hand."""

import math

import pytest

from sightline.metrics.statistics import Difference
from sightline.metrics.verdict import verdict_of


@pytest.mark.parametrize(
    ("low", "high", "score", "expected"),
    [
        (0.001, 0.2, 1.0, "looks"),
        (0.001, 0.02, 1.0, "looks"),  # small, but surely above 0
        (0.0, 0.2, 1.0, "not enough items to say"),  # touches 0
        (-0.01, 0.2, 1.0, "not enough items to say"),
        (0.0, 0.05, 1.0, "does not look"),  # touches 0 and 5 %
        (-0.05, 0.05, 1.0, "does not look"),  # both ends on the limit
        (-0.03, 0.04, 1.0, "does not look"),
        (-0.03, 0.0501, 1.0, "not enough items to say"),
        (-0.0501, 0.03, 1.0, "not enough items to say"),
        (-0.04, -0.02, 1.0, "does not look"),  # a little worse with the image
        (-0.4, -0.2, 1.0, "not enough items to say"),  # much worse with the image
        (-0.01, 0.01, 0.1, "not enough items to say"),  # 5 % of 0.1 is 0.005
        (-0.004, 0.004, 0.1, "does not look"),
        (0.0, 0.0, 0.0, "does not look"),  # a score of 0, equal to the control
        (-0.001, 0.001, 0.0, "not enough items to say"),
        (0.5, 0.9, 0.0, "looks"),  # scores may be negative, such as log-probabilities
        (-0.04, 0.04, -1.0, "does not look"),
        (math.nan, math.nan, 1.0, "not enough items to say"),
    ],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, score: float, expected: str) -> None:
    found = verdict_of(Difference((low + high) / 2, low, high, 0.5, n=20), score, "blind", "never shown")
    assert found.verdict == expected
    assert found.control == "blind"
    assert found.command == ""


def test_json_and_words_of_a_verdict() -> None:
    found = verdict_of(Difference(0.1, 0.05, 0.15, 0.001, n=500), 0.2, "shuffled")
    assert found.to_json() == {"verdict": "looks", "control": "shuffled", "difference": 0.1, "low": 0.05, "high": 0.15}
    assert str(found) == "looks: +0.100 [+0.050, +0.150] with the image minus shuffled"


def test_without_a_control_the_verdict_names_the_command() -> None:
    found = verdict_of(None, 0.2, command="sightline eval RUN --control blind")
    assert found.to_json() == {
        "verdict": "not checked",
        "control": None,
        "difference": None,
        "low": None,
        "high": None,
        "command": "sightline eval RUN --control blind",
    }
    assert str(found) == "not checked; check it with: sightline eval RUN --control blind"
    assert str(verdict_of(None, 0.2)) == "not checked"


@pytest.mark.parametrize("count", [0, 1, 2, 19])
def test_a_handful_of_items_decides_nothing(count: int) -> None:
    found = verdict_of(Difference(0.5, 0.5, 0.5, 0.01, n=count), 1.0, "shuffled")
    assert found.verdict == "not enough items to say"
    assert found.note == f"{count} items; a verdict needs at least 20"
    assert found.to_json()["note"] == found.note
    assert verdict_of(Difference(0.5, 0.5, 0.5, 0.01, n=20), 1.0, "shuffled").verdict == "looks"


def test_a_score_of_zero_says_that_nothing_could_be_lost() -> None:
    found = verdict_of(Difference(0.0, 0.0, 0.0, 1.0, n=500), 0.0, "shuffled")
    assert (found.verdict, found.note) == ("does not look", "the score with the image is 0, so it could not be lower without")
    assert verdict_of(Difference(0.0, 0.0, 0.0, 1.0, n=500), 0.1, "shuffled").note == ""


def test_a_model_that_is_clearly_worse_with_the_image_is_told_so() -> None:
    found = verdict_of(Difference(-0.3, -0.4, -0.2, 0.001, n=500), 1.0, "blind")
    assert str(found) == "worse with the image than without: -0.300 [-0.400, -0.200] with the image minus blind"
    assert found.to_json()["note"] == "worse with the image than without"


@pytest.mark.parametrize(
    ("over_items", "said", "note"),
    [
        ((0.1, 0.3), "not enough seeds to say", "more training seeds are needed; there are enough items"),
        ((-0.01, 0.02), "not enough seeds to say", "more training seeds are needed; there are enough items"),
        ((-0.4, -0.2), "not enough seeds to say", "more training seeds are needed; there are enough items"),
        ((-0.1, 0.3), "not enough items to say", "more items are needed; more training seeds alone would not decide it"),
    ],
)
def test_of_several_seeds_it_says_what_is_missing(over_items: tuple[float, float], said: str, note: str) -> None:
    wide = Difference(0.1, -0.3, 0.5, 0.5, n=100, seeds=3)
    low, high = over_items
    found = verdict_of(wide, 1.0, "shuffled", over_items=Difference((low + high) / 2, low, high, 0.5, n=100))
    assert (found.verdict, found.text, found.note) == ("not enough items to say", said, note)
    assert str(found).startswith(f"{said}: +0.100")
    decided = verdict_of(Difference(0.1, 0.05, 0.5, 0.01, n=100, seeds=3), 1.0, "shuffled", over_items=wide)
    assert (decided.verdict, decided.note) == ("looks", "")


def test_why_nothing_was_checked_is_said() -> None:
    found = verdict_of(None, 0.2, command="sightline eval RUN", note="the control shuffled in X has another prompt")
    assert str(found) == "not checked (the control shuffled in X has another prompt); check it with: sightline eval RUN"
    assert found.to_json()["note"] == "the control shuffled in X has another prompt"

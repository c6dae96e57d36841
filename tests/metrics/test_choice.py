"""Which option, and which of yes and no, an answer means; scores against hand-computed values."""

import math

import pytest

from sightline.metrics.choice import highest, parse_choice, parse_yes_no, score_choices, score_yes_no

ANIMALS = ("a dog", "two cats", "the hot dog", "none")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A dog.", 0),  # an option's text goes before the letter that it begins with
        ("2 CATS", 1),
        ("C", 2),
        ("(d)", 3),
        ("b.", 1),
        ("B. two cats", 1),
        ("(C) the hot dog", 2),
        ("The answer is C.", 2),
        ("Answer: B", 1),
        ("I think it is a dog", 0),
        ("I see a hot dog here", 2),  # "dog" is part of it and does not count
        ("two cats and a dog", None),
        ("E", None),
        ("E. a dog", None),
        ("a bird", None),
        ("", None),
        ("Dogs", None),
    ],
)
def test_an_answer_names_an_option_or_none(text: str, index: int | None) -> None:
    assert parse_choice(text, ANIMALS) == index


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Yes", True),
        ("yes, there is no doubt", True),
        ("No.", False),
        ("TRUE", True),
        ("The sentence is false", False),
        ("There is no dog", False),
        ("it could be yes or no", None),
        ("not sure", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_an_answer_says_yes_or_no_or_neither(text: str, says: bool | None) -> None:
    assert parse_yes_no(text) is says


def test_ties_choose_nothing() -> None:
    assert highest((-2.0, -1.0, -3.0)) == 1
    assert highest((-1.0, -1.0)) is None
    assert highest((math.nan, -1.0)) is None


def test_choices_are_counted_with_those_that_could_not_be_read() -> None:
    score = score_choices([0, 1, None, 2], [0, 2, 1, 2], resamples=50)["accuracy"]
    assert (score.value, score.unparsed, score.items, score.scorer) == (0.5, 0.25, (1.0, 0.0, 0.0, 1.0), "choice 1")


def test_yes_no_ratios_are_those_of_a_table_of_counts() -> None:
    """3 yes said, 2 of them right; 4 true yes: precision 2/3, recall 2/4, F1 4/7; a false answer and an unparsed one are wrong."""
    said = [True, True, True, False, None, False]
    right = [True, True, False, True, True, False]
    scores = score_yes_no(said, right, resamples=50)
    values = {name: score.value for name, score in scores.items()}
    assert values == pytest.approx({"accuracy": 3 / 6, "precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "yes_share": 3 / 6})
    assert [score.unparsed for score in scores.values()] == pytest.approx([1 / 6] * 5)
    assert {score.n for score in scores.values()} == {6}
    assert all(score.low <= score.value <= score.high for score in scores.values())
    never = score_yes_no([None, False], [True, False], resamples=10)
    assert (never["precision"].value, never["f1"].value, never["accuracy"].value) == (0.0, 0.0, 0.5)

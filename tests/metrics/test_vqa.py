"""Answer metrics against hand-worked cases and plain formulas."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.metrics.vqa import (
    anls,
    edit_distance,
    exact_match,
    normalize_answer,
    relaxed_accuracy,
    score_answers,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The  two\tcats", "2 cats"),
        ("none", "0"),
        ("an apple a day", "apple day"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("Tom's hat", "tom 's hat"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("(red)", "red"),
        ("t-shirt", "t shirt"),
        ("left -right-hand", "left righthand"),  # one sign at a space decides for all of its kind
        ("what?", "what"),
        ("U.S.", "us"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_the_server_does(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


def test_vqa_accuracy_with_ten_answers() -> None:
    # m matches: m of the ten sets hold m - 1 of them, the others m. m = 2: (2 * 1/3 + 8 * 2/3) / 10 = 0.6, and so on.
    for matches, expected in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]:
        assert vqa_accuracy("a Cat.", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["yes", "no", "Yes.", "2", "two"]), min_size=4, max_size=12), st.sampled_from(["yes", "two"]))
def test_vqa_accuracy_is_the_mean_over_leaving_one_out(answers: list[str], prediction: str) -> None:
    total = 0.0
    for index in range(len(answers)):
        others = answers[:index] + answers[index + 1 :]
        total += min(1, sum(normalize_answer(other) == normalize_answer(prediction) for other in others) / 3)
    assert vqa_accuracy(prediction, answers) == pytest.approx(total / len(answers))


def test_vqa_accuracy_refuses_too_few_answers() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        vqa_accuracy("yes", ["yes"])


def test_exact_match_forgives_case_spaces_and_a_full_stop() -> None:
    assert exact_match(" A  Red DOG. ", ["blue", "a red dog"]) == 1
    assert exact_match("a red dogs", ["a red dog"]) == 0


def plain_distance(first: str, second: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        substitution = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, substitution)

    return distance(len(first), len(second))


@settings(deadline=None)
@given(st.text(alphabet="abc", max_size=8), st.text(alphabet="abc", max_size=8))
def test_edit_distance_equals_its_recursion(first: str, second: str) -> None:
    assert edit_distance(first, second) == plain_distance(first, second)


def test_anls_takes_the_best_answer_above_one_half() -> None:
    assert anls("Hello  World", ["hello world"]) == 1 - 0 / 12
    assert anls("hallo", ["hello", "x"]) == pytest.approx(0.8)
    assert anls("help", ["hello"]) == pytest.approx(1 - 2 / 5)
    assert anls("ab", ["ac"]) == 0.5
    assert anls("abcdefghi", ["abcdvwxyz"]) == 0.0  # 4 of 9 is below the threshold
    assert anls("", ["x"]) == 0.0
    assert anls("", [""]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-100", "100", 0),
        ("52%", "0.5", 1),
        ("50", "50%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is within 5 % of zero, so it is compared as text
        ("Yes ", "yes", 1),
        ("nan", "NaN", 1),
        ("inf", "5", 0),
        ("1,000", "1000", 0),
        ("5%%", "5%", 1),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, expected: int) -> None:
    assert relaxed_accuracy(prediction, ["something else", answer]) == expected


def test_scores_of_answers_carry_items_and_intervals() -> None:
    scores = score_answers(["red", "blu", "7"], [["red"], ["blue"], ["8"]], ["anls", "exact", "relaxed"], resamples=200)
    assert scores["exact_match"].items == (1.0, 0.0, 0.0)
    assert scores["anls"].items == pytest.approx((1.0, 0.75, 0.0))
    assert scores["relaxed_accuracy"].value == pytest.approx(1 / 3)
    assert all(score.low <= score.value <= score.high for score in scores.values())


@pytest.mark.parametrize(
    ("predictions", "answers", "metrics"),
    [([], [], ["exact"]), (["a"], [[]], ["exact"]), (["a"], [["a"], ["b"]], ["exact"]), (["a"], [["a"]], ["bleu"])],
)
def test_unusable_input_is_refused(predictions: list[str], answers: list[list[str]], metrics: list[str]) -> None:
    with pytest.raises(ValueError, match=r"each item needs both|known are anls"):
        score_answers(predictions, answers, metrics)

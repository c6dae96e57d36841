"""The ladder on answerers whose looking is known: one that reads the image, one that does not, one that guesses worse with it."""

from collections.abc import Callable

import numpy as np
import pytest

from sightline.evaluation.probes.looking import Condition, answers_of, looking, preference
from sightline.evaluation.tasks import Query, ScoreInfo
from sightline.metrics.statistics import bootstrap, mean_of
from sightline.reporting.looking_page import looking_page
from sightline.types import Prediction, Record, Score

COUNT = 200
INFO = ScoreInfo("exact", "exact answers", is_share=True)
COLOURS = np.random.default_rng(0).integers(0, 5, COUNT)  # the right answer of each item, which only its image shows


def condition(answer: Callable[[int], object]) -> Condition:
    said = {f"r{item}": str(answer(item)) for item in range(COUNT)}
    hits = [float(said[f"r{item}"] == str(COLOURS[item])) for item in range(COUNT)]
    interval = bootstrap(mean_of(hits), COUNT)
    score = Score("exact", interval.value, interval.low, interval.high, tuple(hits))
    ids = [f"r{item}" for item in range(COUNT)]
    return Condition(score, {"records": ids, "image": ids, "items": {"exact": hits}}, said)


def seer(item: int) -> int:
    return int(COLOURS[item])


def blurred_seer(item: int) -> int:
    """Sees every second colour, and says 0 of the others."""
    return int(COLOURS[item]) if item % 2 else 0


def prior(item: int) -> int:
    return 0


def test_the_ladder_of_one_that_sees() -> None:
    controls = {
        "blur:8": condition(blurred_seer),
        "shuffled": condition(lambda item: int(COLOURS[item - 1])),
        "text": condition(prior),
    }
    found = looking("vqa", INFO, condition(seer), controls, {"grey": "no encoder"})
    zeros = float((COLOURS == 0).mean())
    assert found.seen.value == 1.0
    assert [step.control for step in found.ladder] == ["blur:8", "grey", "shuffled", "text"]
    blur, grey, shuffled, text = found.ladder
    assert (grey.score, grey.missing) == (None, "no encoder")
    share = float(np.mean([blurred_seer(item) == COLOURS[item] for item in range(COUNT)]))
    assert blur.score is not None
    assert blur.score.value == pytest.approx(share)
    for step, value in ((blur, share), (shuffled, float(np.mean(np.roll(COLOURS, 1) == COLOURS))), (text, zeros)):
        assert step.difference is not None
        assert step.unchanged is not None
        assert step.difference.value == pytest.approx(1 - value)
        assert step.unchanged.value == pytest.approx(value)  # of one that is always right with the image
        assert step.difference.low < step.difference.value < step.difference.high
    assert found.never_changes is not None
    never = np.mean([item_ok and (COLOURS[n] == 0) for n, item_ok in enumerate(np.roll(COLOURS, 1) == COLOURS)])
    assert found.never_changes.value == pytest.approx(never)
    assert (found.verdict.verdict, found.verdict.control) == ("looks", "shuffled")
    assert found.sentence().startswith("It looks: exact answers +0.")
    assert shuffled.difference is not None
    assert (found.half_blur == 8.0) == (1 - share >= shuffled.difference.value / 2)


def test_the_ladder_of_one_that_does_not_look() -> None:
    found = looking("vqa", INFO, condition(prior), {"grey": condition(prior), "shuffled": condition(prior)}, {})
    assert found.verdict.verdict == "does not look"
    assert found.never_changes is not None
    assert found.never_changes.value == 1.0
    assert found.half_blur is None
    assert found.sentence() == (
        "It does not look: exact answers +0.000 [+0.000, +0.000] with the image minus another record's image; "
        "100% [100%, 100%] of the answers never change."
    )


def test_one_that_is_worse_with_its_image_is_told_so_and_the_floor_stands_beside_it() -> None:
    wrong, floor = condition(lambda item: (seer(item) + 1) % 5), condition(prior)
    found = looking("vqa", INFO, wrong, {"shuffled": floor, "floor": floor}, {})
    zeros = float((COLOURS == 0).mean())
    assert found.sentence().startswith("It is worse with the image than without: exact answers -0.")
    assert f"{-zeros:+.3f}" in found.sentence()
    assert found.sentence().endswith("against a model that was trained without its images.")
    assert [step.control for step in found.ladder] == ["shuffled", "floor"]


def test_without_a_control_nothing_is_claimed() -> None:
    found = looking("vqa", INFO, condition(seer), {"blur:2": condition(seer)}, {"shuffled": "no partner"})
    assert found.verdict.verdict == "not checked"
    assert found.sentence() == "not checked."


def test_preferences_are_shares_with_the_image_minus_without() -> None:
    images = [f"i{n // 2}" for n in range(8)]
    found = preference("colour", [1, 2, 3, -1, 1, 0, 1, 1], [-1, 1, -1, -1, 1, 1, -2, 0], images)
    assert found.with_image.value == pytest.approx((6 + 0.5) / 8)
    assert found.without_image.value == pytest.approx((3 + 0.5) / 8)
    assert found.difference.value == pytest.approx(3 / 8)
    assert (found.texts, found.difference.n) == (8, 4)
    assert found.difference.low <= 3 / 8 <= found.difference.high


def test_answers_are_compared_without_case_and_by_the_likeliest_candidate() -> None:
    record = Record("r")
    queries = [Query("a", record, ()), Query("b", record, (), "likelihood", ("yes", "no"))]
    predictions = [Prediction("a", "A  Red\nball", 3), Prediction("b", scores=(-2.0, -1.0))]
    assert answers_of(queries, predictions) == {"a": "a red ball", "b": "no"}


def test_the_page_begins_with_the_verdict() -> None:
    found = looking("vqa", INFO, condition(seer), {"blur:8": condition(blurred_seer), "shuffled": condition(prior)}, {"text": "no"})
    page = looking_page("a & b", found)
    assert page.index(found.sentence()[:9]) < page.index("Score under each control")
    assert "blur 8" in page

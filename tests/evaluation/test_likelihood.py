"""Scores of candidates from log-probabilities that are known, and the alpha that is chosen."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from sightline.data.readers.turns import question_messages
from sightline.errors import UsageError
from sightline.evaluation.controls import without_images
from sightline.evaluation.likelihood import ALPHAS, LikelihoodAnswers, check_candidates, choose_alpha, gain
from sightline.evaluation.tasks import Query, task_by_name
from sightline.metrics.choice import highest
from sightline.types import Message, Part, Prediction, Record

RECORD = Record("q", ("a.png",), messages=question_messages("Which?", "blue", 1), meta={"choices": ["red", "blue"]})
TEMPLATE = task_by_name("choice").confirm_prompt


class Known:
    """Log-probabilities by (text of the question, whether it has an image, candidate)."""

    def __init__(self, table: dict[tuple[str, bool, str], float], skipped: str = "") -> None:
        self.table, self.skipped = table, skipped

    def width(self, queries: Sequence[Query]) -> int:
        raise AssertionError("nothing is generated")

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        out = []
        for query in queries:
            assert query.form == "likelihood"
            turn = query.messages[-1]
            seen = bool(turn.num_images)
            assert seen == bool(query.record.images)
            if not seen and self.skipped:
                out.append(Prediction(query.id, skipped=self.skipped))
                continue
            out.append(Prediction(query.id, scores=tuple(self.table[turn.text, seen, text] for text in query.candidates)))
        return out


def query() -> Query:
    (found,) = task_by_name("choice").queries(RECORD, "{question}")
    return found


BOTH = {
    ("Which?", True, "red"): -2.0,
    ("Which?", True, "blue"): -3.0,
    ("Which?", False, "red"): -1.0,
    ("Which?", False, "blue"): -4.0,
}


@pytest.mark.parametrize(("alpha", "scores"), [(0.0, (-2.0, -3.0)), (0.5, (-1.5, -1.0)), (1.0, (-1.0, 1.0))])
def test_gain_subtracts_what_the_text_has_without_the_image(alpha: float, scores: tuple[float, float]) -> None:
    (prediction,) = LikelihoodAnswers(Known(BOTH), "gain", alpha).answer([query()], 0)
    assert (prediction.id, prediction.scores) == ("q", scores)
    table = gain(np.array([[-2.0, -3.0], [-1.0, -1.0]]), np.array([-1.0, -4.0]), alpha)  # images x texts against texts
    assert table[0].tolist() == list(scores)


def test_plain_is_per_byte_and_yes_no_asks_about_each_candidate() -> None:
    (prediction,) = LikelihoodAnswers(Known(BOTH), "plain").answer([query()], 0)
    assert prediction.scores == (-2.0 / 3, -3.0 / 4)
    asked = {name: f'Which?\nIs "{name}" the correct answer? Please answer yes or no.' for name in ("red", "blue")}
    table = {
        (asked["red"], True, "Yes"): -1.0,
        (asked["red"], True, "No"): -0.5,
        (asked["blue"], True, "Yes"): -0.1,
        (asked["blue"], True, "No"): -2.0,
    }
    batch = LikelihoodAnswers(Known(table), "yes_no", template=TEMPLATE).answer([query(), query()], 0)  # a batch filled up
    assert [prediction.scores for prediction in batch] == [pytest.approx((-0.5, 1.9))] * 2


def test_a_part_that_is_skipped_skips_the_query() -> None:
    (prediction,) = LikelihoodAnswers(Known(BOTH, "too_long"), "gain").answer([query()], 0)
    assert (prediction.skipped, prediction.scores) == ("too_long", None)


def test_without_images_keeps_every_text() -> None:
    before = (Message("user", (Part(), Part("Look."))), Message("assistant", (Part("Yes."),)))
    (blind,) = without_images([Query("q", RECORD, (*before, Message("user", (Part("And?"),))))])
    assert blind.record.images == ()
    assert [(turn.text, turn.num_images) for turn in blind.messages] == [("Look.", 0), ("Yes.", 0), ("And?", 0)]


def test_alpha_undoes_a_preference_for_words_and_is_the_middle_of_the_best() -> None:
    """Right is image evidence 1 against a prior of 2: alpha above 0.5 chooses by evidence, below by the prior."""
    prior = np.array([-1.0, -3.0])
    evidence = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]

    def accuracy(right: Sequence[int]) -> Callable[[Sequence[np.ndarray]], float]:
        return lambda gains: float(np.mean([highest(own.tolist()) == answer for own, answer in zip(gains, right, strict=True)]))

    choice = choose_alpha([prior + own for own in evidence], [prior, prior], accuracy([0, 1]))
    assert choice.scores == tuple(0.5 if alpha <= 0.5 else 1.0 for alpha in ALPHAS)  # at 0.5 the second is a tie
    assert (choice.alpha, choice.items) == (0.75, 2)
    useless = choose_alpha([[-1.0, -2.0]], [[0.0, 0.0]], accuracy([0]))
    assert useless.alpha == 0.5
    tied = choose_alpha([[-1.0, -1.0]], [[-1.0, -2.0]], accuracy([1]))
    assert tied.scores[0] == 0.0
    assert tied.alpha == 0.5


def test_tasks_without_candidates_are_refused() -> None:
    vqa = task_by_name("vqa").queries(RECORD, "{question}")
    with pytest.raises(UsageError, match="task 'vqa' has no candidates to score"):
        check_candidates(vqa, "vqa", "gain")
    yes_no = task_by_name("yes_no").queries(Record("y", ("a",), messages=question_messages("Is it?", "no", 1)), "{question}")
    check_candidates(yes_no, "yes_no", "gain")
    with pytest.raises(UsageError, match="is a yes/no question already"):
        check_candidates(yes_no, "yes_no", "yes_no")

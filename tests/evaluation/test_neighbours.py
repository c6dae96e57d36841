"""The baseline `neighbours` on vectors whose distances are known, and its consensus against the caption metric itself."""

import numpy as np
import pytest

from sightline.data.readers.turns import question_messages
from sightline.errors import RecordError
from sightline.evaluation.neighbours import NeighbourAnswers
from sightline.evaluation.tasks import Query, task_by_name
from sightline.metrics.caption import PairwiseCider, cider_d
from sightline.types import Record

# angle of each image; the nearest of an image is the one with the closest angle
ANGLES = {"a": 0.0, "b": 10.0, "c": 25.0, "d": 45.0, "e": 90.0}
CAPTIONS = {
    "a": ("a red ball on grass", "the lawn"),
    "b": ("a dog runs on the beach", "sand and sea"),
    "c": ("a dog runs on the wet beach", "a dog behind a dog"),
    "d": ("a brown dog runs on the beach", "a pet"),
    "e": ("a plate of food", "the lunch"),
}


def vector_of(record: Record) -> np.ndarray:
    name = record.images[0]
    if name == "lost":
        raise RecordError("features_missing", "no features")
    angle = np.deg2rad(ANGLES[name])
    return 3 * np.array([np.cos(angle), np.sin(angle)])


def captioned(name: str, image: str | None = None) -> Record:
    return Record(name, (image or name,), captions=CAPTIONS[name])


def asked(name: str, image: str, text: str, *answers: str) -> Record:
    return Record(name, (image,), messages=question_messages(text, answers[0], 1), answers=answers)


def queries(task: str, *records: Record) -> list[Query]:
    found = task_by_name(task)
    return [query for record in records for query in found.queries(record, found.bare_prompt)]


def answer(task: str, pool: list[Query], query: Query, count: int) -> str:
    answers = NeighbourAnswers(task_by_name(task), pool, vector_of, vector_of, count)
    assert answers.width([query]) == 0
    return answers.answer([query, query], 0)[0].text


def test_an_image_is_never_its_own_neighbour() -> None:
    pool = queries("caption", *map(captioned, "bcde"))
    (query,) = queries("caption", captioned("a"))
    assert answer("caption", pool, query, 1) == "a dog runs on the beach"
    (query,) = queries("caption", captioned("b"))  # in the pool
    assert answer("caption", pool, query, 1) == "a dog runs on the wet beach"


def test_the_consensus_is_the_caption_most_like_the_other_captions_of_the_neighbours() -> None:
    pool = queries("caption", *map(captioned, "bcde"))
    (query,) = queries("caption", captioned("a"))
    near = [text for name in "bcd" for text in CAPTIONS[name]]
    corpus = [[text.split() for text in CAPTIONS[name]] for name in "bcde"]
    expected = {}
    for text in near:
        others = [other.split() for other in near if other != text]
        expected[text] = float(cider_d([text.split()], [others], corpus)[0])
    assert answer("caption", pool, query, 3) == max(expected, key=lambda text: expected[text]) == "a dog runs on the beach"


def test_pairwise_cider_is_cider_d_of_each_pair() -> None:
    corpus = [[text.split() for text in CAPTIONS[name]] for name in "abcde"]
    flat = [sentence for group in corpus for sentence in group]
    chosen = np.array([2, 4, 5, 7, 6, 0])
    values = PairwiseCider(corpus).among(chosen)
    for row, first in enumerate(chosen):
        for column, second in enumerate(chosen):
            expected = cider_d([flat[first]], [[flat[second]]], corpus)[0]
            assert values[row, column] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_questions_take_the_answer_that_neighbours_give_to_the_same_question() -> None:
    pool = queries(
        "vqa",
        asked("1", "a", "What color?", "red"),
        asked("2", "b", "what  COLOR?", "tan", "brown", "brown"),
        asked("3", "d", "What color?", "red"),
        asked("4", "a", "How many?", "2"),
        asked("5", "e", "Where?", "red"),
        asked("6", "lost", "What color?", "never"),
    )

    def said(text: str, image: str, count: int) -> str:
        (query,) = queries("vqa", asked("q", image, text, "?"))
        return answer("vqa", pool, query, count)

    assert said("What color?", "c", 1) == "brown"  # b is nearest, and most of its people say brown
    assert said("What color?", "e", 1) == "red"
    assert said("What color?", "c", 3) == "red"  # d, b and a: red twice
    assert said("How many?", "e", 30) == "2"
    assert said("Who?", "a", 1) == "red"  # asked nowhere: the most frequent answer of all
    answers = NeighbourAnswers(task_by_name("vqa"), pool, vector_of, vector_of, 1)
    assert answers.skipped == {"features_missing": 1}
    (query,) = queries("vqa", asked("q", "lost", "What color?", "?"))
    assert answers.answer([query], 0)[0].skipped == "features_missing"

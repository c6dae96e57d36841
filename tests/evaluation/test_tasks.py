"""What the caption task asks and what it calls its scores."""

import pytest

from sightline.errors import UsageError
from sightline.evaluation.tasks import task_by_name
from sightline.types import Message, Part, Prediction, Record

CAPTIONS = Record("c", images=("a.png",), captions=("A red star.", "A star."))
SCENE = Record("s", images=("b.png",), captions=("A red star.", "A star."), meta={"canonical": "a red star"})
TURNS = (Message("user", (Part(), Part("What is it?"))), Message("assistant", (Part("A dog."),)))


def test_a_caption_is_asked_with_the_prompt_and_a_conversation_with_its_own_question() -> None:
    task = task_by_name("caption")
    (query,) = task.queries(CAPTIONS, "Describe.")
    assert (query.id, query.record, query.form, query.candidates) == ("c", CAPTIONS, "generate", ())
    assert query.messages == (Message("user", (Part(), Part("Describe."))),)
    assert task.references(query) == ("A red star.", "A star.")
    conversation = Record("q", images=("a.png",), messages=TURNS)
    (query,) = task.queries(conversation, "Describe.")
    assert query.messages == TURNS[:1]
    assert task.references(query) == ("A dog.",)
    assert not task.asks(Record("t", captions=("no image",)))
    assert not task.asks(Record("t", images=("a.png",), messages=TURNS[:1]))


def test_the_headline_comes_first_and_every_score_is_described() -> None:
    task = task_by_name("caption", resamples=10)
    assert task.headline.name == "cider_d"
    assert [info.name for info in task.highlights] == ["cider_d", "exact"]
    queries = [query for record in (CAPTIONS, SCENE) for query in task.queries(record, "")]
    predictions = [Prediction("s", "A star"), Prediction("c", "a  star.")]
    scores = task.score(queries, predictions)
    assert set(scores) == {info.name for info in task.scores}
    assert scores["exact"].items == (1.0, 0.0)  # in the order of the queries; a scene has one canonical caption
    for info in task.scores:
        assert 0 <= scores[info.name].value <= info.top


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"no task 'captions'.*did you mean 'caption'"):
        task_by_name("captions")

"""What the question tasks ask, and what trivial answerers score: values that are known beforehand."""

from collections.abc import Callable

import numpy as np
import pytest

from sightline.data.readers.turns import question_messages, question_text
from sightline.data.records import listed_choices
from sightline.errors import UsageError
from sightline.evaluation.tasks import Query, Task, task_by_name
from sightline.types import Box, Message, Part, Prediction, Record

COLORS = ("red", "green", "blue", "white")


def question(name: str, text: str, *answers: str, **more: object) -> Record:
    return Record(name, images=("a.png",), messages=question_messages(text, answers[0], 1), answers=answers, **more)  # type: ignore


def answered_by(task: Task, records: list[Record], answer: Callable[[Query], Prediction]) -> dict[str, tuple[float, float | None]]:
    """Value and share of unparsed answers of each score, with the task's own prompt."""
    queries = [query for record in records for query in task.queries(record, task.prompt or "")]
    scores = task.score(queries, [answer(query) for query in queries])
    assert set(scores) == {info.name for info in task.scores}
    assert all(score.scorer and score.n == len(queries) for score in scores.values())
    return {name: (score.value, score.unparsed) for name, score in scores.items()}


def says(text: str) -> Callable[[Query], Prediction]:
    return lambda query: Prediction(query.id, text)


def is_right(query: Query) -> Prediction:
    return Prediction(query.id, query.answers[0])


# Queries --------------------------------------------------------------------------------------------------------------------


def text_of(query: Query) -> str:
    assert [part.is_image for part in query.messages[-1].content] == [True, False]
    return query.messages[-1].text


def test_each_task_has_its_prompt_around_the_question() -> None:
    (query,) = task_by_name("vqa").queries(question("q", "What is it?", "a dog"), task_by_name("vqa").prompt or "")
    assert text_of(query) == "What is it?\nAnswer the question using a single word or phrase."
    (query,) = task_by_name("vqa").queries(question("q", "What is it?", "a dog"), "Question: {question} Short answer:")
    assert text_of(query) == "Question: What is it? Short answer:"
    (query,) = task_by_name("yes_no").queries(question("q", "Is it?", "Yes"), task_by_name("yes_no").prompt or "")
    assert (text_of(query), query.candidates) == ("Is it?\nPlease answer yes or no.", ("Yes", "No"))
    (query,) = task_by_name("yes_no").queries(question("q", "It is.", "false"), task_by_name("yes_no").prompt or "")
    assert (text_of(query), query.candidates) == ("It is.\nPlease answer true or false.", ("true", "false"))
    boxed = Record(
        "b", ("a.png",), captions=("x",), boxes=(Box("the dog", (0, 0, 1, 0.5)), Box("cat", (0, 0, 1, 1)), Box("cat", (0, 0, 1, 1)))
    )
    (query,) = task_by_name("grounding").queries(boxed, "Where is {question}?")
    assert (query.id, text_of(query)) == ("b#0", "Where is the dog?")
    assert query.answers == ("[0.000000, 0.000000, 1.000000, 0.500000]",)
    with pytest.raises(UsageError, match=r"'Where\?' has no place for the question"):
        task_by_name("grounding").queries(boxed, "Where?")


def test_options_are_listed_once_whether_the_question_lists_them_or_not() -> None:
    task = task_by_name("choice")
    bare = question("c", "Which color?", "blue", meta={"choices": list(COLORS)})
    read = question_text("Which color?", list(COLORS), 2, None, 1)
    listed = Record("c", ("a.png",), messages=read.messages, answers=read.answers, meta=read.meta)
    assert listed.messages[0].text.endswith(listed_choices(COLORS))
    for record in (bare, listed):
        (query,) = task.queries(record, task.prompt or "")
        assert text_of(query) == (
            "Which color?\nA. red\nB. green\nC. blue\nD. white\nAnswer with the option's letter from the given choices directly."
        )
        assert (query.candidates, query.answers) == (COLORS, ("blue",))
        (query,) = task.queries(record, task.likelihood_prompt or "")
        assert text_of(query) == "Which color?"
    for choices in (["red"], ["red", "green"], ["blue", "blue"], "blue", [1, 2]):
        assert not task.asks(question("c", "Which color?", "blue", meta={"choices": choices}))


def test_each_question_of_a_conversation_is_asked_after_the_true_turns_before_it() -> None:
    turns = (*question_messages("Company?", "ABC", 1), *question_messages("Open?", "yes", 0), *question_messages("Total?", "3", 0))
    record = Record("r", ("a.png",), messages=turns, answers=("3", "3.0"))
    queries = task_by_name("vqa").queries(record, "{question}")
    assert [(query.id, query.answers) for query in queries] == [("r#0", ("ABC",)), ("r#1", ("yes",)), ("r#2", ("3", "3.0"))]
    assert [query.messages for query in queries] == [turns[:1], turns[:3], turns[:5]]
    assert [query.id for query in task_by_name("yes_no").queries(record, "{question}")] == ["r#1"]
    assert not task_by_name("yes_no").asks(question("q", "Who?", "ann"))
    assert not task_by_name("vqa").asks(Record("t", messages=turns[2:4]))


def test_a_few_shot_example_has_the_form_of_the_questions() -> None:
    task = task_by_name("choice")
    example = task.example(question("c", "Which?", "blue", meta={"choices": list(COLORS)}), task.prompt or "")
    assert example.messages[-1].text == "C"
    assert example.messages[0].text.startswith("Which?\nA. red")
    example = task.example(question("c", "Which?", "blue", meta={"choices": list(COLORS)}), "{question}")
    assert (example.messages[0].text, example.messages[-1].text) == ("Which?", "blue")
    caption = Record("c", ("a.png",), captions=("a dog",))
    assert task_by_name("caption").example(caption, "Look.") is caption


# Scores of trivial answerers ------------------------------------------------------------------------------------------------


def test_vqa_of_answers_that_are_known_beforehand() -> None:
    task = task_by_name("vqa", resamples=20)
    people = question("ten", "How many?", *["two"] * 3, *["3"] * 7)  # 3 of 10: 0.3 x 2/3 + 0.7 x 1 for "two"
    one = question("one", "What?", "100")
    assert answered_by(task, [people, one], says("")) == dict.fromkeys(
        ("vqa_accuracy", "exact_match", "anls", "relaxed_accuracy"), (0.0, 1.0)
    )
    assert answered_by(task, [people, one], says("two"))["vqa_accuracy"] == (pytest.approx(0.9 / 2), 0.0)
    assert answered_by(task, [people, one], says("The 100.")) == {
        "vqa_accuracy": (0.5, 0.0), "exact_match": (0.0, 0.0), "anls": (0.0, 0.0), "relaxed_accuracy": (0.0, 0.0)
    }  # fmt: skip
    assert answered_by(task, [people, one], says("104"))["relaxed_accuracy"] == (0.5, 0.0)
    assert answered_by(task, [one, question("two", "What?", "a dog")], is_right) == dict.fromkeys(
        ("vqa_accuracy", "exact_match", "anls", "relaxed_accuracy"), (1.0, 0.0)
    )


def choices(count: int) -> list[Record]:
    return [question(f"c{n}", "Which?", COLORS[n % 4], meta={"choices": list(np.roll(COLORS, n // 4 % 4))}) for n in range(count)]


def test_choice_of_answers_that_are_known_beforehand() -> None:
    task, records = task_by_name("choice", resamples=20), choices(400)
    assert answered_by(task, records, says(""))["accuracy"] == (0.0, 1.0)
    assert answered_by(task, records, says("I cannot tell."))["accuracy"] == (0.0, 1.0)
    assert answered_by(task, records, says("A"))["accuracy"] == (0.25, 0.0)
    assert answered_by(task, records, says("blue"))["accuracy"] == (0.25, 0.0)
    assert answered_by(task, records, says("Z"))["accuracy"] == (0.0, 1.0)
    assert answered_by(task, records, is_right)["accuracy"] == (1.0, 0.0)
    draws = np.random.default_rng(0)
    share, unparsed = answered_by(task, records, lambda query: Prediction(query.id, "ABCD"[draws.integers(4)]))["accuracy"]
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    assert unparsed == 0.0
    equal = answered_by(task, records, lambda query: Prediction(query.id, scores=(-1.0,) * 4))["accuracy"]
    assert equal == (0.0, 1.0)
    first = answered_by(task, records, lambda query: Prediction(query.id, scores=(-1.0, -2.0, -3.0, -4.0)))["accuracy"]
    assert first == (0.25, 0.0)


def test_yes_no_of_answers_that_are_known_beforehand() -> None:
    task = task_by_name("yes_no", resamples=20)
    records = [question(f"y{n}", "Is it?", "yes" if n % 4 == 0 else "no") for n in range(400)]
    assert answered_by(task, records, says("Yes.")) == {
        "accuracy": (0.25, 0.0), "f1": (0.4, 0.0), "precision": (0.25, 0.0), "recall": (1.0, 0.0), "yes_share": (1.0, 0.0)
    }  # fmt: skip
    assert answered_by(task, records, says("no"))["accuracy"] == (0.75, 0.0)
    assert answered_by(task, records, says(""))["accuracy"] == (0.0, 1.0)
    assert answered_by(task, records, is_right)["f1"] == (1.0, 0.0)
    draws = np.random.default_rng(0)
    share, _ = answered_by(task, records, lambda query: Prediction(query.id, ("yes", "no")[draws.integers(2)]))["accuracy"]
    assert abs(share - 0.5) < 4 * (0.25 / 400) ** 0.5
    by_likelihood = answered_by(task, records, lambda query: Prediction(query.id, scores=(-3.0, -1.0)))
    assert by_likelihood["accuracy"] == (0.75, 0.0)


def test_grounding_of_answers_that_are_known_beforehand() -> None:
    task = task_by_name("grounding", resamples=20)
    quarters = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]
    records = [Record(f"g{n}", ("a.png",), captions=("x",), boxes=(Box("it", box),)) for n, box in enumerate(quarters)]
    assert answered_by(task, records, says("[0, 0, 1, 1]")) == {"acc_50": (0.0, 0.0), "iou": (0.25, 0.0)}
    assert answered_by(task, records, says("[0, 0, 0.5, 0.5]")) == {"acc_50": (0.25, 0.0), "iou": (0.25, 0.0)}
    assert answered_by(task, records, says("top left")) == {"acc_50": (0.0, 1.0), "iou": (0.0, 1.0)}
    assert answered_by(task, records, is_right) == {"acc_50": (1.0, 0.0), "iou": (1.0, 0.0)}


def test_caption_of_answers_that_are_known_beforehand() -> None:
    task = task_by_name("caption", resamples=20)
    records = [Record(f"c{n}", ("a.png",), captions=(f"the dog number {n} runs in the sun",)) for n in range(3)]
    assert set(answered_by(task, records, says("")).values()) == {(0.0, 1.0)}
    same = answered_by(task, records, lambda query: Prediction(query.id, query.record.captions[0]))
    assert same["exact"] == (1.0, 0.0)
    assert same["bleu_4"] == (pytest.approx(1.0), 0.0)
    assert same["rouge_l"] == (pytest.approx(1.0), 0.0)
    assert Message("user", (Part(), Part("Look."))) == task.queries(records[0], "Look.")[0].messages[0]

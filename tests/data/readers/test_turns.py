"""The shapes in which published sets put text, against hand-made conversations."""

import pytest

from sightline.data.readers.turns import RowText, answer_texts, marked_parts, most_frequent, row_text
from sightline.errors import RecordError
from sightline.types import Message, Part

IMAGE = Part()


def told(num_images: int = 1, **fields: object) -> RowText:
    return row_text(fields.get, num_images)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<image>\nWhat is it?", (IMAGE, Part("What is it?"))),
        ("What is it?\n<image>", (Part("What is it?"), IMAGE)),
        ("Look at <image> and <image>: compare.", (Part("Look at "), IMAGE, Part(" and "), IMAGE, Part(": compare."))),
        ("<image><image>", (IMAGE, IMAGE)),
        ("<image>\n\nTwo breaks", (IMAGE, Part("\nTwo breaks"))),
        ("no mark", (Part("no mark"),)),
        ("", (Part(""),)),
        ("<Image> and <images>", (Part("<Image> and <images>"),)),
    ],
)
def test_marks_become_parts_and_take_one_line_break_with_them(text: str, parts: tuple[Part, ...]) -> None:
    assert marked_parts(text) == parts


def test_the_cauldron_shows_all_images_before_the_first_question() -> None:
    turns = [{"user": "Q1", "assistant": "A1", "source": "s"}, {"user": "Q2", "assistant": "A2", "source": "s"}]
    assert told(2, texts=turns).messages == (
        Message("user", (IMAGE, IMAGE, Part("Q1"))),
        Message("assistant", (Part("A1"),)),
        Message("user", (Part("Q2"),)),
        Message("assistant", (Part("A2"),)),
    )


def test_the_most_frequent_of_ten_answers_is_trained_on_and_all_are_kept() -> None:
    answers = [{"answer": answer, "answer_id": i} for i, answer in enumerate(["red", "blue", "blue", "red", "green"])]
    got = told(question="What color?", answer=answers)
    assert got.answers == ("red", "blue", "blue", "red", "green")
    assert got.messages[1].text == "red"  # two each: the first


def test_choices_are_lettered_and_the_letter_is_the_answer() -> None:
    got = told(question="Which is a fruit?", choices=["stone", "pear"], answer=1, hint="Think.")
    assert got.messages == (
        Message("user", (IMAGE, Part("Think.\nWhich is a fruit?\nA. stone\nB. pear"))),
        Message("assistant", (Part("B"),)),
    )
    assert got.answers == ("B",)
    assert got.meta == {"choices": ["stone", "pear"], "answer_index": 1}


@pytest.mark.parametrize(
    ("value", "texts"),
    [(True, ("true",)), (3, ("3",)), (0.5, ("0.5",)), (" a ", ("a",)), (["a", None, "b"], ("a", "b")), ({"answer": "x"}, ("x",))],
)
def test_answers_of_any_kind_become_texts(value: object, texts: tuple[str, ...]) -> None:
    assert answer_texts(value) == texts


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no_text"),
        ({"caption": 3}, "bad_caption"),
        ({"captions": ["a", 3]}, "bad_captions"),
        ({"question": "Q", "answer": None}, "no_answer"),
        ({"question": "Q", "answer": []}, "no_answer"),
        ({"question": "Q", "answer": {"text": 1}}, "no_answer"),
        ({"question": "Q", "answer": [[1]]}, "bad_answer"),
        ({"question": " ", "answer": "a"}, "bad_question"),
        ({"question": "Q", "choices": ["a"], "answer": 0}, "bad_choices"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 2}, "bad_answer"),
        ({"question": "Q", "choices": ["a", "b"], "answer": True}, "bad_answer"),
        ({"conversations": []}, "bad_conversations"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "bad_conversations"),
        ({"conversations": [{"from": "gpt", "value": 1}]}, "bad_conversations"),
        ({"texts": []}, "bad_texts"),
        ({"texts": [{"user": "x"}]}, "bad_texts"),
        ({"messages": [{"role": "user", "content": 3}]}, "bad_messages"),
    ],
)
def test_text_of_another_form_is_refused_with_its_reason(fields: dict, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        told(**fields)
    assert caught.value.reason == reason


def test_the_chat_schema_is_taken_as_it_is() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    assert told(1, messages=messages).messages == (Message("user", (IMAGE, Part("Q"))), Message("assistant", (Part("A"),)))


def test_a_tie_goes_to_the_first() -> None:
    assert most_frequent(["b", "a", "a", "b"]) == "b"

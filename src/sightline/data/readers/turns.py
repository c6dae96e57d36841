"""Reads the text of a row as captions or a conversation, in the formats of published data sets.

LLaVA's turns with `<image>` marks, The Cauldron's `{user, assistant}` pairs, the chat schema, question with answers or with
choices, captions. Each shape is known by our name of its field; `row_text` converts a row to text.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.data.readers.base import shown
from sightline.data.records import LETTERS, listed_choices, record_from_json
from sightline.errors import RecordError
from sightline.types import Message, Part

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "assistant": "assistant",
    "gpt": "assistant",
    "human": "user",
    "system": "system",
    "user": "user",
}
TEXT_FIELDS = ("caption", "captions", "conversations", "fields", "messages", "question", "texts")
_MARK = re.compile(r"\n?<image>\n?")


@dataclass(frozen=True, slots=True)
class RowText:
    """Text of a row: captions or messages, all accepted answers, and the choices.

    Attributes:
        has_images_first: the conversation had no image markers, so the images were put before its first question.
    """

    captions: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    answers: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    has_images_first: bool = False


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Returns a text or a list of texts, without the white space around them.

    Raises:
        RecordError: reason `bad_{name}`.
    """
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise RecordError(f"bad_{name}", f"{name!r} must be a text or a list of texts, got {shown(value)}")
    return tuple(item.strip() for item in values)


def row_text(get: Callable[[str], Any], num_images: int) -> RowText:
    """Reads the text of a row.

    Args:
        get: the value of one of our fields, None where the row has none.
        num_images: images of the row; formats without markers put them all before the first question.

    Raises:
        RecordError: the row has no text (`no_text`), or a field is of the wrong form (`bad_{field}`).
    """
    for name, read in (("conversations", conversation), ("messages", chat), ("texts", pairs), ("fields", named_fields)):
        value = get(name)
        if value is not None:
            messages = read(value, num_images)
            if name in ("conversations", "messages") and num_images and not any(message.num_images for message in messages):
                return RowText(messages=_with_images_first(messages, num_images), has_images_first=True)
            return RowText(messages=messages)
    question = get("question")
    if question is not None:
        return question_text(question, get("choices"), get("answer"), get("hint"), num_images)
    for name in ("captions", "caption"):
        value = get(name)
        if value is not None:
            return RowText(captions=texts(value, name))
    raise RecordError("no_text", "the row has no caption, question or conversation")


# Conversations --------------------------------------------------------------------------------------------------------------


def conversation(turns: Any, num_images: int) -> tuple[Message, ...]:
    """Returns LLaVA's turns, with `<image>` anywhere in any of them; its line break belongs to the mark.

    Raises:
        RecordError: reason `bad_conversations`.
    """
    if not isinstance(turns, list | tuple) or not turns:
        raise RecordError("bad_conversations", f"'conversations' must be a list of turns, got {shown(turns)}")
    return tuple(_turn(turn) for turn in turns)


def _turn(turn: Any) -> Message:
    match turn:
        case {"from": str(speaker), "value": str(text)} | {"role": str(speaker), "content": str(text)} if speaker in ROLES:
            return Message(ROLES[speaker], marked_parts(text))
    raise RecordError("bad_conversations", f"a turn is {{'from': 'human'|'gpt'|'system', 'value': text}}, got {shown(turn)}")


def marked_parts(text: str) -> tuple[Part, ...]:
    """Returns a text with `<image>` marks as parts."""
    parts: list[Part] = []
    for index, piece in enumerate(_MARK.split(text)):
        if index:
            parts.append(Part())
        if piece:
            parts.append(Part(piece))
    return tuple(parts) or (Part(""),)


def chat(messages: Any, num_images: int) -> tuple[Message, ...]:
    """Returns the chat schema of transformers, as in our records; texts may hold `<image>` marks where no part is an image.

    Raises:
        RecordError: reason `bad_messages`, or `places_without_image` and the like.
    """
    if num_images and isinstance(messages, list | tuple) and not any(map(_has_image_part, messages)):
        record = record_from_json({"id": "row", "messages": list(messages)})
        return tuple(
            Message(message.role, tuple(part for text in message.content for part in marked_parts(text.text or "")))
            for message in record.messages
        )
    line = {"id": "row", "images": [str(index) for index in range(num_images)], "messages": messages}
    return record_from_json(line).messages


def _has_image_part(message: Any) -> bool:
    parts = message.get("content") if isinstance(message, dict) else None
    return isinstance(parts, list) and any(isinstance(part, dict) and part.get("type") == "image" for part in parts)


def _with_images_first(messages: tuple[Message, ...], num_images: int) -> tuple[Message, ...]:
    """Puts all images before the first turn of the user, as loaders of LLaVA's data do for rows without marks."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise RecordError("images_without_place", f"{num_images} images, and no turn of the user to show them in")
    shown_first = Message("user", (*(Part(),) * num_images, *messages[first].content))
    return (*messages[:first], shown_first, *messages[first + 1 :])


def pairs(turns: Any, num_images: int) -> tuple[Message, ...]:
    """Returns the Cauldron's list of `{"user", "assistant", "source"}`, the images before the first question.

    Raises:
        RecordError: reason `bad_texts`.
    """
    messages: list[Message] = []
    for turn in turns if isinstance(turns, list | tuple) else ():
        match turn:
            case {"user": str(question), "assistant": str(answer)}:
                messages += question_messages(question, answer, 0 if messages else num_images)
            case _:
                raise RecordError("bad_texts", f"a turn is {{'user': text, 'assistant': text}}, got {shown(turn)}")
    if not messages:
        raise RecordError("bad_texts", f"'texts' must be a list of turns, got {shown(turns)}")
    return tuple(messages)


def named_fields(fields: Any, num_images: int) -> tuple[Message, ...]:
    """Returns named values that can be read in an image (a receipt's total), each asked for: "What is the total?".

    Raises:
        RecordError: reason `bad_fields`.
    """
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise RecordError("bad_fields", f"'fields' must be texts by name, got {shown(fields)}")
    messages: list[Message] = []
    for name, value in fields.items():
        if value.strip():
            question = f"What is the {name.replace('_', ' ')}?"
            messages += question_messages(question, value, 0 if messages else num_images)
    if not messages:
        raise RecordError("no_answer", "every field is empty")
    return tuple(messages)


# Questions ------------------------------------------------------------------------------------------------------------------


def question_messages(question: str, answer: str, num_images: int) -> tuple[Message, Message]:
    """Returns a question about images and its answer as a conversation: the images first."""
    places = (Part(),) * num_images
    return Message("user", (*places, Part(question.strip()))), Message("assistant", (Part(answer.strip()),))


def question_text(question: Any, choices: Any, answer: Any, hint: Any, num_images: int) -> RowText:
    """Returns a question with its answers, or with choices and the index of the right one.

    The answer that is trained on is the most frequent one, the first of them in a tie.

    Raises:
        RecordError: reasons `bad_question`, `bad_choices`, `bad_answer`, `no_answer`.
    """
    if not isinstance(question, str) or not question.strip():
        raise RecordError("bad_question", f"'question' must be a text, got {shown(question)}")
    if isinstance(hint, str) and hint.strip():
        question = f"{hint.strip()}\n{question.strip()}"
    if choices is not None:
        return _chosen(question, choices, answer, num_images)
    answers = answer_texts(answer)
    return RowText(messages=question_messages(question, most_frequent(answers), num_images), answers=answers)


def _chosen(question: str, choices: Any, answer: Any, num_images: int) -> RowText:
    options = texts(choices, "choices")
    if not 2 <= len(options) <= len(LETTERS):
        raise RecordError("bad_choices", f"between 2 and {len(LETTERS)} choices are expected, got {len(options)}")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise RecordError("bad_answer", f"the answer must be the index of one of {len(options)} choices, got {shown(answer)}")
    letter = LETTERS[answer]
    return RowText(
        messages=question_messages(f"{question.strip()}\n{listed_choices(options)}", letter, num_images),
        answers=(letter,),
        meta={"choices": list(options), "answer_index": answer},
    )


def answer_texts(value: Any) -> tuple[str, ...]:
    """Answers as texts: a text, number or truth value, or a list of them, or of `{"answer": text}` as VQA has them.

    Raises:
        RecordError: reasons `bad_answer`, `no_answer`.
    """
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    answers = tuple(_answer_text(item.get("answer") if isinstance(item, dict) else item) for item in values)
    answers = tuple(answer for answer in answers if answer)
    if not answers:
        raise RecordError("no_answer", "the question has no answer")
    return answers


def _answer_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str() | int() | float():
            return str(value).strip()
    raise RecordError("bad_answer", f"an answer is a text or a number, got {shown(value)}")


def most_frequent(answers: Sequence[str]) -> str:
    """Returns the answer given most often, the first of them in a tie."""
    return Counter(answers).most_common(1)[0][0]

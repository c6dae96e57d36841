"""Questions of conversations, and the templates that put them before a model."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sightline.errors import UsageError
from sightline.evaluation.tasks.base import Query, Task
from sightline.types import Message, Part, Prediction, Record

QUESTION, OPTIONS, CANDIDATE = "{question}", "{options}", "{candidate}"


@dataclass(frozen=True)
class QuestionTurn:
    """A turn of the user that the record answers.

    Attributes:
        id: of the record, with `#k` where the record has several questions.
        before: the turns before it, answers included.
        turn: the question.
        answers: accepted answers.
    """

    id: str
    before: tuple[Message, ...]
    turn: Message
    answers: tuple[str, ...]


def questions_of(record: Record) -> list[QuestionTurn]:
    """Returns the questions of a conversation that have an answer; `record.answers` belong to the last turn of the user."""
    turns = record.messages
    places = [place for place, turn in enumerate(turns) if turn.role == "user"]
    found = []
    for number, place in enumerate(places):
        following = turns[place + 1] if place + 1 < len(turns) else None
        answers = (following.text,) if following is not None and following.role == "assistant" else ()
        if place == places[-1] and record.answers:
            answers = record.answers
        if answers:
            name = record.id if len(places) == 1 else f"{record.id}#{number}"
            found.append(QuestionTurn(name, turns[:place], turns[place], answers))
    return found


def fill(template: str, parts: Sequence[Part], texts: Mapping[str, str] | None = None) -> Message:
    """Puts a question into a template; images that stand before its first word stay in front of everything.

    Args:
        template: has `{question}` once.
        parts: content of the question.
        texts: further placeholders with their texts.

    Raises:
        UsageError: the template has no `{question}`.
    """
    if QUESTION not in template:
        raise UsageError(f"the prompt {template!r} has no place for the question.", f"Write {QUESTION} in it.")
    before, after = template.split(QUESTION, 1)
    for name, text in (texts or {}).items():
        before, after = before.replace(name, text), after.replace(name, text)
    first_text = next((place for place, part in enumerate(parts) if not part.is_image), len(parts))
    content: list[Part] = []
    for part in (*parts[:first_text], Part(before), *parts[first_text:], Part(after)):
        if part.text is not None and content and content[-1].text is not None:
            content[-1] = Part(content[-1].text + part.text)
        elif part.text != "":
            content.append(part)
    return Message("user", tuple(content))


class QuestionTask(Task):
    """A task about records that bring their own questions."""

    bare_prompt = QUESTION

    def asks(self, record: Record) -> bool:
        return bool(record.images) and bool(self.queries(record, QUESTION))

    def references(self, query: Query) -> tuple[str, ...]:
        return query.answers

    def example(self, record: Record, prompt: str) -> Record:
        query = self.queries(record, prompt)[-1]
        answer = Message("assistant", (Part(self.written_answer(query, prompt)),))
        return replace(record, captions=(), messages=(*query.messages, answer))

    def written_answer(self, query: Query, prompt: str) -> str:
        """Returns the right answer as a model should write it."""
        return query.answers[0]

    @abstractmethod
    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]: ...


def answered(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[tuple[Query, Prediction]]:
    """Pairs queries with their predictions, in the order of the queries; those without one are left out."""
    found = {prediction.id: prediction for prediction in predictions}
    return [(query, found[query.id]) for query in queries if query.id in found]

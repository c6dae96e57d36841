"""What a task is: which queries it makes of a record, and how it scores the answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from sightline.errors import UsageError
from sightline.types import Message, Prediction, Record, Score

# What a model does with a query: continue it, give the log-probability of each candidate, or embed it.
Form = Literal["generate", "likelihood", "embed"]
# How candidates are scored, see sightline.evaluation.likelihood.
Likelihood = Literal["gain", "plain", "yes_no"]


@dataclass(frozen=True)
class Query:
    """What a model is asked.

    Attributes:
        id: unique in an evaluation; the id of the record where each record is asked once.
        record: whose images fill the visual slots of `messages`, in order.
        messages: the conversation up to the answer.
        form: what the model does with it.
        candidates: the answers to choose from; with the form `likelihood` the log-probability of each is asked for.
        answers: the right answers, where they are not those of the record.
    """

    id: str
    record: Record
    messages: tuple[Message, ...]
    form: Form = "generate"
    candidates: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreInfo:
    """How a score is called and shown.

    Attributes:
        name: key of the score.
        label: for people.
        top: its largest possible value.
        is_share: each item is right (1) or wrong (0) and the value is the share of right ones.
        is_detail: shown in the table of all scores only.
        higher_is_better: whether a larger value is better.
        times: what people read is the score times this, as papers print it; files hold the score itself.
    """

    name: str
    label: str
    top: float = 1.0
    is_share: bool = False
    is_detail: bool = False
    higher_is_better: bool = True
    times: float = 100.0


class Task(ABC):
    """Makes queries of records and scores the answers.

    Args:
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    name: ClassVar[str]
    scores: ClassVar[tuple[ScoreInfo, ...]]
    """What `score` can give; the first is the headline."""
    prompt: ClassVar[str | None] = None
    """Text beside the image; None takes the one that the model was trained with."""
    likelihood_prompt: ClassVar[str | None] = None
    """The same where candidates are scored instead of an answer generated; None takes `prompt`."""
    confirm_prompt: ClassVar[str] = '{question}\nIs "{candidate}" the correct answer? Please answer yes or no.'
    """The question about one candidate, where candidates are scored by a yes/no question."""
    bare_prompt: ClassVar[str] = ""
    """The prompt that adds nothing to a record's own question."""
    likelihood: ClassVar[Likelihood | None] = None
    """How candidates are scored where nothing else is asked for; None generates the answer."""
    has_captions: ClassVar[bool] = False
    """The answers are sentences, so that answers which agree are seldom equal."""
    max_new_tokens: ClassVar[int] = 64

    def __init__(self, resamples: int = 1000, seed: int = 0) -> None:
        self.resamples, self.seed = resamples, seed

    @property
    def headline(self) -> ScoreInfo:
        """The main score."""
        return self.scores[0]

    @property
    def highlights(self) -> tuple[ScoreInfo, ...]:
        """The headline and every share of right answers: what a summary shows."""
        return tuple(info for info in self.scores if info is self.headline or info.is_share)

    def default_prompt(self, likelihood: Likelihood | None) -> str | None:
        """Returns the prompt that is used where none is given; None takes the one that the model was trained with."""
        if likelihood == "yes_no":
            return self.confirm_prompt
        return self.prompt if likelihood is None or self.likelihood_prompt is None else self.likelihood_prompt

    @abstractmethod
    def asks(self, record: Record) -> bool:
        """Whether a record has what the task needs."""

    def survey(self, records: Sequence[Record]) -> None:  # noqa: B027 (most tasks need nothing)
        """Gets all records that will be queried, before the first query."""

    @abstractmethod
    def queries(self, record: Record, prompt: str) -> Sequence[Query]:
        """Returns the queries of a record, one for each question.

        Args:
            record: one that `asks` accepts.
            prompt: text beside the image. A task whose records bring questions of their own has a template with `{question}`.
        """

    def drawn(self, records: list[Record], images: int | None, captions: int | None, seed: int) -> list[Record]:
        """Returns fewer records with fewer captions, for a task that ranks all images against all captions.

        Raises:
            UsageError: the task does not, and a number is given.
        """
        if images is not None or captions is not None:
            raise UsageError(f"--images and --captions belong to task 'retrieval', not {self.name!r}.", "Use --limit for records.")
        return records

    def example(self, record: Record, prompt: str) -> Record:
        """Returns a record as a few-shot example: its conversation in the form in which the task asks and expects answers."""
        return record

    @abstractmethod
    def references(self, query: Query) -> tuple[str, ...]:
        """The right answers."""

    def shown(self, query: Query, prediction: Prediction) -> str:
        """Returns an answer as people read it: the text, or the candidate with the largest score."""
        scores = prediction.scores
        if scores is None or len(scores) != len(query.candidates):
            return prediction.text
        return query.candidates[max(range(len(scores)), key=lambda number: scores[number])]

    @abstractmethod
    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        """Scores the answers.

        Args:
            queries: what was asked.
            predictions: answers, paired with the queries by id; a query without one is left out.

        Returns:
            Scores by name, those of `scores` that apply; items in the order of the answered queries.
        """

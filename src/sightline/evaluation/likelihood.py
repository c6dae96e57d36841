"""Scores candidate texts by their likelihood: `gain`, `plain`, or a yes/no question about each.

A language model prefers some candidates whatever it sees. `gain` subtracts that preference:

    gain    log p(text | image) - alpha log p(text | no image)      (VisualGPTScore, Lin et al. 2024, as logarithms)
    plain   log p(text | image) / bytes of the text                 (the normalisation of `acc_norm` in lm-evaluation-harness)
    yes_no  log p(Yes | image, question about the text) - log p(No | ...)      (VQAScore, Lin et al. 2024)

A log-probability is the sum over the text's tokens and its end token. "No image" is the same conversation without the image tokens
of the question; few-shot examples keep theirs. `alpha` is chosen on training data (`choose_alpha`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from sightline.errors import UsageError
from sightline.evaluation.controls import without_images
from sightline.evaluation.predict import Answers
from sightline.evaluation.tasks import Query
from sightline.evaluation.tasks.base import Likelihood
from sightline.evaluation.tasks.questions import CANDIDATE, fill
from sightline.types import Message, Prediction

ALPHAS = tuple(step / 20 for step in range(21))  # 0 is the plain sum, 1 the pointwise mutual information of text and image
YES_OR_NO = ("Yes", "No")


def gain(with_image: Float[np.ndarray, "..."], without_image: Float[np.ndarray, "..."], alpha: float) -> Float[np.ndarray, "..."]:
    """Computes `log p(text | image) - alpha log p(text | no image)`.

    Args:
        with_image, without_image: log-probabilities of the same texts; any shapes that broadcast, such as images x texts and texts.
    """
    return np.asarray(with_image) - alpha * np.asarray(without_image)


def per_byte(log_probabilities: Float[np.ndarray, "*N C"], texts: Sequence[str]) -> Float[np.ndarray, "*N C"]:
    """Divides the log-probability of each text by its number of bytes."""
    return log_probabilities / np.array([len(text.encode()) or 1 for text in texts])


def yes_minus_no(log_probabilities: Float[np.ndarray, "*N 2C"]) -> Float[np.ndarray, "*N C"]:
    """Subtracts from the log-probability of each "Yes" that of the "No" after it."""
    return log_probabilities[..., ::2] - log_probabilities[..., 1::2]


def confirm_messages(template: str, messages: Sequence[Message], candidate: str) -> tuple[Message, ...]:
    """Returns a conversation whose last turn asks about one candidate.

    Args:
        template: the question; has `{question}` and `{candidate}`.
        messages: the conversation whose last turn has the candidate as an answer.
        candidate: the answer.
    """
    return (*messages[:-1], fill(template, messages[-1].content, {CANDIDATE: candidate}))


@dataclass(frozen=True)
class AlphaChoice:
    """The alpha that was chosen on training data.

    Attributes:
        alpha: the choice.
        items: number of training items.
        scores: the score with each alpha of `ALPHAS`.
    """

    alpha: float
    items: int
    scores: tuple[float, ...]


def choose_alpha(
    with_image: Sequence[Sequence[float]],
    without_image: Sequence[Sequence[float]],
    score_of: Callable[[Sequence[Float[np.ndarray, " C"]]], float],
) -> AlphaChoice:
    """Chooses the alpha from 0 to 1, in steps of 0.05, with the highest score; of several, the middle one (the lower of two).

    Args:
        with_image, without_image: log-probability of each candidate, item by item.
        score_of: the score to maximise, such as the share of right choices, of the gains of all items.
    """
    pairs = [(np.array(seen), np.array(blind)) for seen, blind in zip(with_image, without_image, strict=True)]
    scores = [score_of([gain(*pair, alpha) for pair in pairs]) for alpha in ALPHAS]
    best = [alpha for alpha, value in zip(ALPHAS, scores, strict=True) if value == max(scores)]
    return AlphaChoice(best[(len(best) - 1) // 2], len(pairs), tuple(scores))


class LikelihoodAnswers:
    """Answers queries that have candidates with a score for each.

    Args:
        answers: gives log-probabilities.
        kind: how the score is made of them.
        alpha: of `gain`.
        template: the question about one candidate, of `yes_no`; has `{question}` and `{candidate}`.
    """

    def __init__(self, answers: Answers, kind: Likelihood, alpha: float = 1.0, template: str = "") -> None:
        self.answers, self.kind, self.alpha, self.template = answers, kind, alpha, template

    def width(self, queries: Sequence[Query]) -> int:
        """Nothing is generated."""
        return 0

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """Returns one prediction per query with the scores of its candidates, or why there is none."""
        parts = {query.id: self._parts(query) for query in queries}
        found = self.answers.answer([part for own in parts.values() for part in own], width)
        by_id = {prediction.id: prediction for prediction in found}
        return [self._combined(query, [by_id[part.id] for part in parts[query.id]]) for query in queries]

    def _parts(self, query: Query) -> list[Query]:
        plain = replace(query, form="likelihood")
        match self.kind:
            case "plain":
                return [plain]
            case "gain":
                return [plain, replace(without_images([plain])[0], id=f"{query.id}/no_image")]
            case "yes_no":
                return [
                    replace(
                        plain,
                        id=f"{query.id}/{number}",
                        messages=confirm_messages(self.template, query.messages, candidate),
                        candidates=YES_OR_NO,
                    )
                    for number, candidate in enumerate(query.candidates)
                ]

    def _combined(self, query: Query, found: Sequence[Prediction]) -> Prediction:
        skipped = next((part.skipped for part in found if part.skipped), "")
        if skipped:
            return Prediction(query.id, skipped=skipped)
        values = [np.array(part.scores) for part in found]
        match self.kind:
            case "plain":
                scores = per_byte(values[0], query.candidates)
            case "gain":
                scores = gain(values[0], values[1], self.alpha)
            case "yes_no":
                scores = yes_minus_no(np.concatenate(values))
        return Prediction(query.id, scores=tuple(scores.tolist()))


def check_candidates(queries: Sequence[Query], task: str, kind: Likelihood) -> None:
    """Refuses likelihood scores of a task that has nothing to score.

    Raises:
        UsageError: a query has no candidates, or the candidates are yes and no already.
    """
    if not all(query.candidates for query in queries):
        raise UsageError(f"task {task!r} has no candidates to score.", "Leave out --likelihood, or use the task choice or yes_no.")
    if kind == "yes_no" and task == "yes_no":
        raise UsageError("task 'yes_no' is a yes/no question already.", "Use --likelihood plain or --likelihood gain.")

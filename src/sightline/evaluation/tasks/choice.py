"""`choice`: choose one of the listed options; accuracy, with the share of answers that name none."""

from collections.abc import Sequence

from sightline.data.records import LETTERS, listed_choices
from sightline.evaluation.tasks.base import Query, ScoreInfo
from sightline.evaluation.tasks.questions import OPTIONS, QUESTION, QuestionTask, answered, fill, questions_of
from sightline.metrics.choice import highest, parse_choice, score_choices
from sightline.types import Part, Prediction, Record, Score


class Choice(QuestionTask):
    """Records whose `meta.choices` lists the options of their last question.

    The right one is `meta.answer_index`, else the first of `answers`, as the option's text or its letter. Options that the
    question's text already lists at its end are taken off, so that they stand in the prompt once.
    """

    name = "choice"
    scores = (ScoreInfo("accuracy", "accuracy", is_share=True),)
    prompt = f"{QUESTION}\n{OPTIONS}\nAnswer with the option's letter from the given choices directly."
    likelihood_prompt = QUESTION
    max_new_tokens = 16

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        choices = record.meta.get("choices")
        asked = questions_of(record)[-1:]
        if not asked or not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
            return ()
        right = _right_index(record, choices, asked[0].answers)
        if right is None:
            return ()
        parts = _without_list(asked[0].turn.content, choices)
        turn = fill(prompt, parts, {OPTIONS: listed_choices(choices)})
        return (Query(asked[0].id, record, (*asked[0].before, turn), candidates=tuple(choices), answers=(choices[right],)),)

    def written_answer(self, query: Query, prompt: str) -> str:
        right = query.candidates.index(query.answers[0])
        return LETTERS[right] if OPTIONS in prompt else query.answers[0]

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        pairs = answered(queries, predictions)
        chosen = [
            parse_choice(prediction.text, query.candidates) if prediction.scores is None else highest(prediction.scores)
            for query, prediction in pairs
        ]
        right = [query.candidates.index(query.answers[0]) for query, _ in pairs]
        return score_choices(chosen, right, resamples=self.resamples, seed=self.seed)


def _right_index(record: Record, choices: Sequence[str], answers: Sequence[str]) -> int | None:
    """Returns the index of the right choice; None where the record names none, or has choices that cannot be distinguished."""
    if not 2 <= len(choices) <= len(LETTERS) or len(set(choices)) < len(choices):
        return None
    index = record.meta.get("answer_index")
    if isinstance(index, int) and not isinstance(index, bool):
        return index if 0 <= index < len(choices) else None
    return parse_choice(answers[0], choices)


def _without_list(parts: Sequence[Part], choices: Sequence[str]) -> tuple[Part, ...]:
    last = parts[-1]
    if last.text is None:
        return tuple(parts)
    return (*parts[:-1], Part(last.text.removesuffix(listed_choices(choices)).rstrip("\n")))

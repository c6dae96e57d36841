"""`yes_no`: confirm or deny; accuracy, precision, recall and F1 of "yes", with the share of answers that say neither."""

from collections import Counter
from collections.abc import Sequence

from sightline.evaluation.tasks.base import Query, ScoreInfo
from sightline.evaluation.tasks.questions import OPTIONS, QUESTION, QuestionTask, answered, fill, questions_of
from sightline.metrics.choice import highest, parse_yes_no, score_yes_no
from sightline.types import Prediction, Record, Score

_PAIRS = (("yes", "no"), ("true", "false"))


class YesNo(QuestionTask):
    """Questions whose most frequent answer is yes or no, or true or false; the other questions of a record are left aside."""

    name = "yes_no"
    scores = (
        ScoreInfo("accuracy", "accuracy", is_share=True),
        ScoreInfo("f1", "F1 of yes", is_detail=True),
        ScoreInfo("precision", "precision of yes", is_detail=True),
        ScoreInfo("recall", "recall of yes", is_detail=True),
        ScoreInfo("yes_share", "share of yes", is_detail=True),
    )
    prompt = f"{QUESTION}\nPlease answer {OPTIONS}."
    max_new_tokens = 16

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        found = []
        for asked in questions_of(record):
            answer = Counter(asked.answers).most_common(1)[0][0].strip()
            pair = _pair_of(answer)
            if pair is not None:
                turn = fill(prompt, asked.turn.content, {OPTIONS: " or ".join(word.lower() for word in pair)})
                found.append(Query(asked.id, record, (*asked.before, turn), candidates=pair, answers=(answer,)))
        return tuple(found)

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        pairs = answered(queries, predictions)
        said = [
            parse_yes_no(prediction.text) if prediction.scores is None else _said_of(highest(prediction.scores))
            for _, prediction in pairs
        ]
        right = [bool(parse_yes_no(query.answers[0])) for query, _ in pairs]
        return score_yes_no(said, right, resamples=self.resamples, seed=self.seed)


def _pair_of(answer: str) -> tuple[str, str] | None:
    """Returns the two words to choose from, capitalised as the answer is; None where it is none of them."""
    pair = next((pair for pair in _PAIRS if answer.rstrip(".").lower() in pair), None)
    return (pair[0].capitalize(), pair[1].capitalize()) if pair is not None and answer[0].isupper() else pair


def _said_of(index: int | None) -> bool | None:
    return None if index is None else index == 0

"""`vqa`: answer a question about the image in a word or phrase; VQA accuracy, exact match, ANLS and relaxed accuracy."""

from collections.abc import Sequence

from sightline.evaluation.tasks.base import Query, ScoreInfo
from sightline.evaluation.tasks.questions import QUESTION, QuestionTask, answered, fill, questions_of
from sightline.metrics.scores import score_of
from sightline.metrics.vqa import SCORER, score_answers, vqa_accuracy_or_match
from sightline.types import Prediction, Record, Score


class VQA(QuestionTask):
    """Records with questions; of a conversation each question is asked after the true turns before it.

    VQA accuracy needs the answers of at least four people. A question with fewer counts 1 if the normalised answer is one of them.
    """

    name = "vqa"
    scores = (
        ScoreInfo("vqa_accuracy", "VQA accuracy"),
        ScoreInfo("exact_match", "exact match", is_share=True),
        ScoreInfo("anls", "ANLS"),
        ScoreInfo("relaxed_accuracy", "relaxed accuracy (5 %)", is_share=True),
    )
    prompt = f"{QUESTION}\nAnswer the question using a single word or phrase."
    max_new_tokens = 32

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        return tuple(
            Query(asked.id, record, (*asked.before, fill(prompt, asked.turn.content)), answers=asked.answers)
            for asked in questions_of(record)
        )

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        pairs = answered(queries, predictions)
        texts, answers = [prediction.text for _, prediction in pairs], [query.answers for query, _ in pairs]
        others = score_answers(texts, answers, ("exact", "anls", "relaxed"), resamples=self.resamples, seed=self.seed)
        items = [vqa_accuracy_or_match(text, own) for text, own in zip(texts, answers, strict=True)]
        unparsed = others["exact_match"].unparsed
        first = score_of("vqa_accuracy", items, SCORER, unparsed, resamples=self.resamples, seed=self.seed)
        return {first.name: first} | others

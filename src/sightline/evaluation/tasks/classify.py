"""`classify`: name the class of an image among those of a split, from prompts alone (zero-shot); top-1 and top-5."""

from collections.abc import Sequence

import numpy as np

from sightline.data.records import prompt_messages
from sightline.errors import UsageError
from sightline.evaluation.tasks.base import Query, ScoreInfo, Task
from sightline.evaluation.tasks.questions import answered
from sightline.metrics.retrieval import recall_at
from sightline.metrics.scores import score_of
from sightline.types import Prediction, Record, Score

SCORER = "classify 1"
LABEL = "{label}"


class Classify(Task):
    """Records whose class is `meta.label`, else their only caption (as `imagefolder` reads the name of a folder).

    The prompt is a template with `{label}`, or several of them separated by `|`, over whose scores a class has the mean.
    """

    name = "classify"
    scores = (ScoreInfo("accuracy", "top-1 accuracy", is_share=True), ScoreInfo("top5", "top-5 accuracy"))
    prompt = f"a photo of a {LABEL}."

    def __init__(self, resamples: int = 1000, seed: int = 0) -> None:
        super().__init__(resamples, seed)
        self.labels: tuple[str, ...] = ()

    def asks(self, record: Record) -> bool:
        return bool(record.images) and label_of(record) is not None

    def survey(self, records: Sequence[Record]) -> None:
        found = {label for record in records if (label := label_of(record)) is not None}
        self.labels = tuple(sorted(found))

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        templates = [template.strip() for template in prompt.split("|")]
        if any(LABEL not in template for template in templates):
            raise UsageError(f"--prompt {prompt!r}: each template of task 'classify' needs {LABEL}.", f"For example: {self.prompt}")
        texts = {label: [template.replace(LABEL, label) for template in templates] for label in self.labels}
        label = label_of(record)
        assert label is not None  # `asks` has looked
        candidates = tuple(text for label in self.labels for text in texts[label])
        return (Query(record.id, record, prompt_messages(record, ""), "likelihood", candidates, tuple(texts[label])),)

    def references(self, query: Query) -> tuple[str, ...]:
        return query.answers

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        top: dict[str, list[float]] = {"accuracy": [], "top5": []}
        for query, prediction in answered(queries, predictions):
            templates = len(query.answers)
            scores = np.array(prediction.scores).reshape(-1, templates).mean(1)[None]
            is_right = np.arange(scores.shape[1])[None] == query.candidates.index(query.answers[0]) // templates
            for name, k in (("accuracy", 1), ("top5", 5)):
                top[name].append(float(recall_at(scores, is_right, min(k, scores.shape[1]))[0]))
        return {name: score_of(name, items, SCORER, resamples=self.resamples, seed=self.seed) for name, items in top.items()}


def label_of(record: Record) -> str | None:
    """Returns the class of a record; None where it has none."""
    label = record.meta.get("label")
    if isinstance(label, str):
        return label
    return record.captions[0] if len(record.captions) == 1 else None

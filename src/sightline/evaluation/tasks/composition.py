"""`composition`: prefer a caption to a false version of it (SugarCrepe, ARO, Winoground, the hard negatives of scenes)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sightline.data.records import prompt_messages
from sightline.evaluation.tasks.base import Query, ScoreInfo, Task
from sightline.evaluation.tasks.questions import answered
from sightline.metrics.scores import score_of, score_of_ratio
from sightline.metrics.statistics import mean_by_cluster, mean_of
from sightline.types import Prediction, Record, Score

SCORER = "composition 1"


class Composition(Task):
    """Records with an image, a caption and `negatives`; a case is right if the caption scores strictly higher than the negative.

    `meta.negative_of` may name, for each negative, the number of the caption that it falsifies (by default the first), and
    `meta.negative_kinds` its kind, of which each gets a score of its own, by its name; `meta.subset` does so for all negatives of a
    record.
    Two records with the same `meta.group` are an item of Winoground: each has the other's caption as its negative.
    """

    name = "composition"
    scores = (
        ScoreInfo("accuracy", "accuracy", is_share=True),
        ScoreInfo("macro", "mean over kinds", is_detail=True),
        ScoreInfo("text", "Winoground text", is_detail=True),
        ScoreInfo("image", "Winoground image", is_detail=True),
        ScoreInfo("group", "Winoground group", is_detail=True),
    )
    prompt = ""
    confirm_prompt = '{question}Does this figure show "{candidate}"? Please answer yes or no.'
    likelihood = "gain"

    def asks(self, record: Record) -> bool:
        return len(record.images) == 1 and bool(record.captions) and bool(record.negatives)

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        candidates = (*record.captions, *record.negatives)
        return (Query(record.id, record, prompt_messages(record, prompt), "likelihood", candidates, record.captions),)

    def references(self, query: Query) -> tuple[str, ...]:
        return query.record.captions

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        pairs = [(query.record, prediction.scores or ()) for query, prediction in answered(queries, predictions)]
        cases = [(row, kind, right) for row, (record, scores) in enumerate(pairs) for kind, right in _cases(record, scores)]
        cluster = np.array([row for row, _, _ in cases])
        right = np.array([float(is_right) for _, _, is_right in cases])
        items = np.bincount(cluster, right) / np.bincount(cluster)
        statistic, _ = mean_by_cluster(right, cluster)
        out = {"accuracy": self._score("accuracy", items, statistic)}
        kinds = sorted({kind for _, kind, _ in cases if kind})
        for kind in kinds:
            chosen = np.array([found == kind for _, found, _ in cases])
            _, renumbered = np.unique(cluster[chosen], return_inverse=True)
            own, _ = mean_by_cluster(right[chosen], renumbered)
            name = self._name_of(kind)
            out[name] = score_of_ratio(name, own, SCORER, resamples=self.resamples, seed=self.seed)
        if len(kinds) > 1:
            value = float(np.mean([out[self._name_of(kind)].value for kind in kinds]))
            out["macro"] = Score("macro", value, value, value, (), SCORER, None, len(kinds))
        groups = list(_groups(pairs))
        for name, column in zip(("text", "image", "group"), zip(*groups, strict=True), strict=False):
            out[name] = self._score(name, column, mean_of(column))
        return out

    def _name_of(self, kind: str) -> str:
        """Returns the score of a kind of negatives: the kind's own name, unless a score of the task has it."""
        return f"accuracy_{kind}" if kind in {info.name for info in self.scores} else kind

    def _score(self, name: str, items: Sequence[float] | np.ndarray, statistic: Any) -> Score:
        return score_of(name, list(map(float, items)), SCORER, statistic=statistic, resamples=self.resamples, seed=self.seed)


def _cases(record: Record, scores: Sequence[float]) -> Iterator[tuple[str, bool]]:
    """Yields the kind of each negative of a record, and whether its caption scores higher."""
    count = len(record.captions)
    of = record.meta.get("negative_of") or [0] * len(record.negatives)
    kinds = record.meta.get("negative_kinds") or [record.meta.get("subset", "")] * len(record.negatives)
    for number, (true, kind) in enumerate(zip(of, kinds, strict=True)):
        yield str(kind), scores[true] > scores[count + number]


def _groups(pairs: Sequence[tuple[Record, Sequence[float]]]) -> Iterator[tuple[float, float, float]]:
    """Yields Winoground's text, image and group score of each item (Thrush et al. 2022, equations 1 to 3)."""
    first: dict[Any, Sequence[float]] = {}
    for record, scores in pairs:
        group = record.meta.get("group")
        if group is None:
            continue
        if group not in first:
            first[group] = scores
            continue
        c0_i0, c1_i0 = first[group][:2]
        c1_i1, c0_i1 = scores[:2]
        text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        yield float(text), float(image), float(text and image)

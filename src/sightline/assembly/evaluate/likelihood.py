"""Likelihood scores of an evaluation: chooses alpha on training data and wraps the model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.gallery import RankedGallery, score_gallery
from sightline.assembly.evaluate.opened import OpenedModel, chosen_records
from sightline.data.dataset import Dataset
from sightline.errors import UsageError
from sightline.evaluation.controls import without_images
from sightline.evaluation.likelihood import AlphaChoice, LikelihoodAnswers, choose_alpha
from sightline.evaluation.predict import Answers, predict
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query, Task, task_by_name
from sightline.evaluation.tasks.base import Likelihood
from sightline.generation.decode import DecodingConfig
from sightline.runtime.logs import logger
from sightline.types import Prediction

ALPHA_RECORDS = 200  # records that alpha is chosen on
ALPHA_IMAGES = 50  # the same for retrieval, where every image meets every caption
_OF_THE_QUESTIONS = ("control", "decoding", "noise", "shots")  # settings that the training records do not depend on


@dataclass(frozen=True)
class LikelihoodScoring:
    """How the candidates of an evaluation are scored.

    Attributes:
        kind: `gain`, `plain` or `yes_no`.
        alpha: of `gain`, as given or chosen.
        chosen_on: split that alpha was chosen on, where it was not given.
        choice: the scores that it was chosen by.
    """

    kind: Likelihood
    alpha: float | None = None
    chosen_on: str | None = None
    choice: AlphaChoice | None = None

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the scores depend on."""
        return {"kind": self.kind, **({} if self.alpha is None else {"alpha": self.alpha})}

    def to_json(self) -> dict[str, Any]:
        if self.choice is None:
            return self.settings()
        chosen = {"split": self.chosen_on, "items": self.choice.items, "score": max(self.choice.scores)}
        return self.settings() | {"chosen_on": chosen}

    def of(self, answers: ModelAnswers, queries: Sequence[Query], template: str, folder: Path, settings: dict[str, Any]) -> Answers:
        """Returns what scores the candidates of the queries with a model.

        For retrieval all likelihoods are computed here, or read from `folder / "likelihoods"`.
        """
        alpha = 1.0 if self.alpha is None else self.alpha
        if not any(query.form == "embed" for query in queries):
            return LikelihoodAnswers(answers, self.kind, alpha, template)
        gallery = score_gallery(answers, queries, self.kind, template, folder / "likelihoods", settings)
        return RankedGallery(gallery, self.kind, alpha)


def likelihood_scoring(
    kind: Likelihood,
    spec: EvalSpec,
    task: Task,
    prompt: str,
    opened: OpenedModel,
    dataset: Dataset,
    decoding: DecodingConfig,
    folder: Path,
    settings: dict[str, Any],
) -> LikelihoodScoring:
    """Returns how candidates are scored; for `gain` without a given alpha it is chosen on `spec.alpha_from`.

    The choice takes up to 200 records of that split (50 images for retrieval), with their true images and without few-shot
    examples, so that it is the same under every control, and maximises the headline score of the task.

    Args:
        prompt: of the queries.
        folder: of the evaluation; the log-probabilities of the training records are kept below it.
        settings: of the evaluation.

    Raises:
        UsageError: the split does not exist, is the evaluated one, or has no record for the task.
    """
    if kind != "gain" or spec.alpha is not None:
        return LikelihoodScoring(kind, spec.alpha if kind == "gain" else None)
    split = spec.alpha_from
    if split not in dataset.splits or split == spec.split:
        problem = "is evaluated" if split == spec.split else "does not exist"
        raise UsageError(
            f"alpha of --likelihood gain is chosen on split {split!r}, which {problem}.",
            "Name another with --alpha-from, or give --alpha.",
        )
    records = chosen_records(list(dataset.records(split)), task.asks, ALPHA_RECORDS)
    queries = [query for record in records for query in task.queries(record, prompt)]
    is_gallery = any(query.form == "embed" for query in queries)
    if is_gallery:
        records = task.drawn(records, ALPHA_IMAGES, spec.captions, spec.gallery_seed)
        queries = [query for record in records for query in task.queries(record, prompt)]
    if not queries:
        raise UsageError(f"split {split!r} has no record for task {spec.task!r} to choose alpha on.", "Give --alpha.")
    bundle = opened.bundle
    loader = opened.visual_loader([(dataset, split)])
    answers = ModelAnswers(bundle, dataset, loader, decoding, bundle.conversation_encoder(prompt), opened.runtime.bf16)
    own = {key: value for key, value in settings.items() if key not in _OF_THE_QUESTIONS} | {
        "split": split,
        "records": [query.id for query in queries],
    }
    choose = _of_gallery if is_gallery else _of_candidates
    choice = choose(answers, queries, folder / "alpha", own, spec)
    if choice is None:
        raise UsageError(f"no record of split {split!r} could be answered to choose alpha on.", "Give --alpha.")
    logger.info("alpha %.2f, chosen on %d items of split %r", choice.alpha, choice.items, split)
    return LikelihoodScoring(kind, choice.alpha, split, choice)


def _of_candidates(
    answers: ModelAnswers, queries: Sequence[Query], folder: Path, settings: dict[str, Any], spec: EvalSpec
) -> AlphaChoice | None:
    """Chooses alpha by the candidates of each query; None where none was answered."""
    asked = [replace(query, form="likelihood") for query in queries]
    found = []
    for name, own in (("with_image", asked), ("without_image", without_images(asked))):
        predicted = predict(answers, own, folder / name, settings, spec.batch_size, f"choosing alpha, {name}")
        found.append({prediction.id: prediction.scores or () for prediction in predicted.predictions})
    common = [query for query in asked if query.id in found[0] and query.id in found[1]]
    if not common:
        return None
    once = task_by_name(spec.task, resamples=1)

    def score_of(gains: Sequence[np.ndarray]) -> float:
        predictions = [Prediction(query.id, scores=tuple(own)) for query, own in zip(common, gains, strict=True)]
        return once.score(common, predictions)[once.headline.name].value

    return choose_alpha([found[0][query.id] for query in common], [found[1][query.id] for query in common], score_of)


def _of_gallery(
    answers: ModelAnswers, queries: Sequence[Query], folder: Path, settings: dict[str, Any], spec: EvalSpec
) -> AlphaChoice | None:
    """Chooses alpha by the ranks of all images and captions of the queries; None where no image could be read."""
    gallery = score_gallery(answers, queries, "gain", "", folder, settings)
    if gallery.without_image_T is None:
        return None
    once = task_by_name(spec.task, resamples=1)

    def score_of(gains: Sequence[np.ndarray]) -> float:
        predictions = gallery.ranking(np.stack(gains)).answer(gallery.queries, 0)
        return once.score(gallery.queries, predictions)[once.headline.name].value

    without = [gallery.without_image_T.tolist()] * len(gallery.queries)
    return choose_alpha(gallery.with_image_NT.tolist(), without, score_of)

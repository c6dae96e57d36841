"""The baseline `neighbours` of an evaluation: from a feature store or a model's encoder to answers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sightline.assembly.evaluate.few_shot import origin_of
from sightline.assembly.evaluate.opened import OpenedModel
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.features.store import FeatureLoader, open_store
from sightline.data.images.pixels import VisualInputs
from sightline.errors import UsageError
from sightline.evaluation.controls import SHUFFLED, TEXT, Control
from sightline.evaluation.neighbours import NeighbourAnswers, Vector
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Task
from sightline.runtime.logs import logger
from sightline.types import Record


def neighbour_answers(
    spec: EvalSpec, task: Task, dataset: Dataset, opened: OpenedModel | None
) -> tuple[NeighbourAnswers, dict[str, Any]]:
    """Returns the baseline's answers, and the settings that they depend on.

    An image's vector is the mean of its features over all crops and tokens.

    Args:
        spec: the evaluation; its feature store is read where no model is given.
        task: whose queries are answered.
        dataset: of the questions.
        opened: a model whose encoder gives the features.

    Raises:
        UsageError: neither a store nor a model is given, or the training split has no record for the task.
        DataError: the data set or split that neighbours come from does not exist.
    """
    folder, split = origin_of(spec.neighbours_from, spec.data)
    pool_data = open_dataset(folder)
    queries = [
        query for record in pool_data.records(split) if task.asks(record) for query in task.queries(record, task.bare_prompt)
    ]
    if not queries:
        raise UsageError(f"split {split!r} of {folder} has no record for task {spec.task!r}.", "Name another --neighbours-from.")
    own = _vectors(_loader(spec, opened, spec.control), dataset)
    is_same = pool_data.fingerprint == dataset.fingerprint and spec.control in (None, SHUFFLED)
    pool = own if is_same else _vectors(_loader(spec, opened), pool_data)
    answers = NeighbourAnswers(task, queries, pool, own, spec.neighbours)
    if answers.skipped:
        logger.warning("neighbours: left out %s", ", ".join(f"{reason} {count}" for reason, count in answers.skipped.items()))
    return answers, {"count": spec.neighbours, "data": pool_data.fingerprint, "split": split}


Load = Callable[[Dataset, Record], np.ndarray]


def _loader(spec: EvalSpec, opened: OpenedModel | None, control: Control | None = None) -> Load:
    """Returns the loader of the features of a record's images, `[N, P, E]`, under a control."""
    if control == TEXT or (opened is None and control not in (None, SHUFFLED)):
        raise UsageError(
            f"the baseline neighbours cannot answer under the control {control!r}.",
            "Use --control shuffled, or name a model whose encoder sees the changed image.",
        )
    if opened is None:
        if spec.features is None:
            raise UsageError(
                "the baseline neighbours needs features of the images.",
                "Give --features STORE, or a model whose encoder makes them.",
            )
        stored = FeatureLoader(open_store(spec.features))
        return lambda dataset, record: _features(stored.load(dataset, record))
    loader = opened.visual_loader((), control)
    if loader is None:
        raise UsageError("the model takes text only; it has no features to find neighbours by.", "Give --features STORE.")
    return lambda dataset, record: opened.features_of(loader.load(dataset, record)).float().cpu().numpy()


def _features(inputs: VisualInputs) -> np.ndarray:
    assert inputs.features is not None
    return inputs.features


def _vectors(load: Load, dataset: Dataset) -> Callable[[Record], Vector]:
    """Returns the mean features of the records of a dataset; images that several records share are read once."""
    known: dict[tuple[str, ...], Vector] = {}

    def vector_of(record: Record) -> Vector:
        if record.image_keys not in known:
            known[record.image_keys] = np.asarray(load(dataset, record), dtype=np.float32).mean(axis=(0, 1))
        return known[record.image_keys]

    return vector_of

"""Predictions of a split, written one by one, so that an evaluation that is killed goes on where it stopped.

All batches of a set have one shape (the same number of rows, padded to the longest prompt), so that a text does not depend on
which neighbours it had. Each line of `predictions.jsonl` has a checksum; torn and damaged lines are
made again.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sightline.errors import Stopped, StorageError
from sightline.evaluation.tasks import Query
from sightline.runtime import storage
from sightline.runtime.logs import logger, progress
from sightline.runtime.signals import watch_signals
from sightline.types import Prediction

PREDICTIONS, SETTINGS, LOCK = "predictions.jsonl", "settings.json", "lock.json"
SCORES, ITEMS = "scores.json", "items.json"  # made of the predictions


class Answers(Protocol):
    """Answers queries in batches; what evaluation sees of a model."""

    def width(self, queries: Sequence[Query]) -> int:
        """The longest prompt of these queries in tokens; queries that have none are left to `answer`."""
        ...

    def answer(self, queries: Sequence[Query], width: int) -> list[Prediction]:
        """One prediction per query, or why there is none."""
        ...


@dataclass(frozen=True)
class Predicted:
    """Predictions of a split in the order of its queries, and what was skipped by reason."""

    predictions: list[Prediction]
    skipped: dict[str, int]


def predict(
    answers: Answers, queries: Sequence[Query], folder: Path, settings: dict[str, Any], batch_size: int, title: str = "predicting"
) -> Predicted:
    """Answers every query, going on from what `folder` holds of the same settings.

    Args:
        answers: the model.
        queries: in order.
        folder: gets `predictions.jsonl` and `settings.json`.
        settings: everything that the answers depend on; with other settings all predictions are made again.
        batch_size: rows per batch; the last one is filled up with repeats.

    Raises:
        StorageError: another evaluation writes into this folder.
        Stopped: a signal arrived; what is done is kept.
    """
    with storage.Lock(folder / LOCK):
        _begin(folder, settings)
        with closing(storage.JsonLines(folder / PREDICTIONS, checksum=True, check=Prediction.from_json)) as log:
            done = _answer_rest(answers, queries, log, batch_size, title)
    found = [done[query.id] for query in queries]
    skipped = Counter(prediction.skipped for prediction in found if prediction.skipped)
    return Predicted([prediction for prediction in found if not prediction.skipped], dict(skipped))


def _answer_rest(
    answers: Answers, queries: Sequence[Query], log: storage.JsonLines, batch_size: int, title: str
) -> dict[str, Prediction]:
    """All predictions by query; those that the log lacks are made and added to it."""
    done = {line["id"]: Prediction.from_json(line) for line in storage.read_json_lines(log.path, Prediction.from_json)}
    rest = [query for query in queries if query.id not in done]
    width = answers.width(queries) if rest else 0
    with watch_signals() as stopped, progress(title, len(queries), len(queries) - len(rest)) as bar:
        for batch in _batches(rest, batch_size):
            filled = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            for prediction in answers.answer(filled, width)[: len(batch)]:
                done[prediction.id] = prediction
                log.write(prediction.to_json())
            bar.step(len(batch))
            if stopped():
                raise Stopped(f"{stopped()} after {len(done)} predictions, which are kept.", "The same command goes on from here.")
    return done


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    stored = folder / SETTINGS
    if stored.exists():
        try:
            if storage.read_json(stored) == json.loads(json.dumps(settings)):
                return
        except StorageError as error:
            logger.warning("%s The predictions beside it are made again.", error.message)
    for name in (PREDICTIONS, SCORES, ITEMS):
        (folder / name).unlink(missing_ok=True)
    storage.write_json(stored, settings)


def _batches(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
    for begin in range(0, len(queries), size):
        yield queries[begin : begin + size]

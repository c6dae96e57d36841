"""Predictions of a split, written one by one, so that an evaluation that is killed goes on where it stopped.

All batches of a set have one shape (the same number of rows, padded to the longest prompt), so that a text does not depend on
which neighbours it had. Each line of `predictions.jsonl` has a checksum; torn and damaged lines are
made again. Several processes share the batches of one: process r of W takes every W-th batch from the r-th and writes a file of its
own, and the first process joins the files, so that the result is that of one process, byte for byte.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sightline.errors import Stopped, StorageError
from sightline.evaluation.tasks import Query
from sightline.runtime import storage
from sightline.runtime.logs import logger, progress
from sightline.runtime.process_group import gathered, process_count, process_number
from sightline.runtime.signals import watch_signals
from sightline.types import Prediction

PREDICTIONS, SETTINGS, LOCK = "predictions.jsonl", "settings.json", "lock.json"
SHARES = "predictions-*.jsonl"  # of several processes, until they are joined
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
    """Predictions of a split in the order of its queries.

    Attributes:
        predictions: the answers.
        skipped: how many queries have none, by reason.
        reasons: the reason of each of them, by id.
    """

    predictions: list[Prediction]
    skipped: dict[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)


def predict(
    answers: Answers,
    queries: Sequence[Query],
    folder: Path,
    settings: dict[str, Any],
    batch_size: int,
    title: str = "predicting",
    before: Callable[[Sequence[Query]], None] | None = None,
) -> Predicted:
    """Answers every query, going on from what `folder` holds of the same settings.

    Args:
        answers: the model.
        queries: in order.
        folder: gets `predictions.jsonl` and `settings.json`.
        settings: everything that the answers depend on; with other settings all predictions are made again.
        batch_size: rows per batch; the last one is filled up with repeats.
        title: of the progress bar.
        before: gets the queries that this process has still to answer, before it does.

    Raises:
        StorageError: another evaluation writes into this folder.
        Stopped: a signal arrived; what is done is kept.
    """
    is_first = process_number() == 0
    with storage.Lock(folder / LOCK) if is_first else nullcontext():
        if is_first:
            _begin(folder, settings)
        gathered(None)  # the others read only what belongs to these settings
        done = _stored(folder)
        gathered(None)  # all have read the same before one writes
        mine = _answer_rest(answers, queries, done, folder, batch_size, title, before)
        for others in gathered([prediction.to_json() for prediction in mine]):
            done |= {line["id"]: Prediction.from_json(line) for line in others}
        if is_first:
            _join(folder, [done[query.id] for query in queries])
    found = [done[query.id] for query in queries]
    reasons = {prediction.id: prediction.skipped for prediction in found if prediction.skipped}
    answered = [prediction for prediction in found if not prediction.skipped]
    return Predicted(answered, dict(Counter(reasons.values())), reasons)


def _answer_rest(
    answers: Answers,
    queries: Sequence[Query],
    done: dict[str, Prediction],
    folder: Path,
    batch_size: int,
    title: str,
    before: Callable[[Sequence[Query]], None] | None,
) -> list[Prediction]:
    """Answers this process's share of the queries that are not done, and writes each answer."""
    rest = [query for query in queries if query.id not in done]
    width = answers.width(queries) if rest else 0
    batches = list(_batches(rest, batch_size))[process_number() :: process_count()]
    if before is not None:
        before([query for batch in batches for query in batch])
    made: list[Prediction] = []
    name = PREDICTIONS if process_count() == 1 else SHARES.replace("*", str(process_number()))
    with (
        closing(storage.JsonLines(folder / name, checksum=True, check=Prediction.from_json)) as log,
        watch_signals() as stopped,
        progress(title, len(done) + sum(map(len, batches)), len(done), show=process_number() == 0) as bar,
    ):
        for batch in batches:
            filled = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            for prediction in answers.answer(filled, width)[: len(batch)]:
                made.append(prediction)
                log.write(prediction.to_json())
            bar.step(len(batch))
            if stopped():
                count = len(done) + len(made)
                raise Stopped(f"{stopped()} after {count} predictions, which are kept.", "The same command goes on from here.")
    return made


def _stored(folder: Path) -> dict[str, Prediction]:
    """Returns all predictions that the folder holds, by query."""
    files = [file for file in (folder / PREDICTIONS, *sorted(folder.glob(SHARES))) if file.exists()]
    return {
        line["id"]: Prediction.from_json(line) for file in files for line in storage.read_json_lines(file, Prediction.from_json)
    }


def _join(folder: Path, predictions: Sequence[Prediction]) -> None:
    """Puts the predictions of several processes into one file; leaves that of one process as it is."""
    shares = sorted(folder.glob(SHARES))
    if not shares:
        return
    joined = folder / SHARES.replace("*", "joined")  # found again if this process dies before the rename
    joined.unlink(missing_ok=True)
    with closing(storage.JsonLines(joined, checksum=True, check=Prediction.from_json)) as log:
        for prediction in predictions:
            log.write(prediction.to_json())
        log.sync()
    joined.replace(folder / PREDICTIONS)
    for share in shares:
        share.unlink(missing_ok=True)


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    stored = folder / SETTINGS
    if stored.exists():
        try:
            if storage.read_json(stored) == json.loads(json.dumps(settings)):
                return
        except StorageError as error:
            logger.warning("%s The predictions beside it are made again.", error.message)
    for file in (*(folder / name for name in (PREDICTIONS, SCORES, ITEMS)), *folder.glob(SHARES)):
        file.unlink(missing_ok=True)
    storage.write_json(stored, settings)


def _batches(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
    for begin in range(0, len(queries), size):
        yield queries[begin : begin + size]

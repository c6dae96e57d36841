"""Predictions of a split, written one by one, so that an evaluation that is killed goes on where it stopped.

All batches of a set have one shape (the same number of rows, padded to the longest prompt), so that a text does not depend on
which neighbours it had. A torn last line of `predictions.jsonl` is made again.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sightline.errors import RecordError, Stopped
from sightline.generation.decode import Text
from sightline.runtime import storage
from sightline.runtime.logs import progress
from sightline.runtime.signals import watch_signals
from sightline.types import Prediction, Record

PREDICTIONS, SETTINGS, LOCK = "predictions.jsonl", "settings.json", "lock.json"


class Answers(Protocol):
    """Answers records in batches; what evaluation sees of a model."""

    def width(self, records: Sequence[Record]) -> int:
        """The longest prompt of these records in tokens; records that have none are left to `answer`."""
        ...

    def answer(self, records: Sequence[Record], width: int) -> list[Text | RecordError]:
        """One text per record, or why there is none."""
        ...


@dataclass(frozen=True)
class Predicted:
    """Predictions of a split in the order of its records, and what was skipped by reason."""

    predictions: list[Prediction]
    skipped: dict[str, int]


def predict(
    answers: Answers, records: Sequence[Record], folder: Path, settings: dict[str, Any], batch_size: int, title: str = "predicting"
) -> Predicted:
    """Answers every record, going on from what `folder` holds of the same settings.

    Args:
        answers: the model.
        records: in order.
        folder: gets `predictions.jsonl` and `settings.json`.
        settings: everything that the texts depend on; another value begins anew.
        batch_size: rows per batch; the last one is filled up with repeats.

    Raises:
        StorageError: another evaluation writes into this folder.
        Stopped: a signal arrived; what is done is kept.
    """
    with storage.Lock(folder / LOCK):
        _begin(folder, settings)
        with closing(storage.JsonLines(folder / PREDICTIONS)) as log:
            done = _answer_rest(answers, records, log, batch_size, title)
    return _collected(records, done)


def _answer_rest(
    answers: Answers, records: Sequence[Record], log: storage.JsonLines, batch_size: int, title: str
) -> dict[str, dict[str, Any]]:
    """All lines by record; those that the log lacks are made and added to it."""
    done = {line["id"]: line for line in storage.read_json_lines(log.path)}
    rest = [record for record in records if record.id not in done]
    width = answers.width(records) if rest else 0
    with watch_signals() as stopped, progress(title, len(records), len(records) - len(rest)) as bar:
        for batch in _batches(rest, batch_size):
            filled = [*batch, *[batch[-1]] * (batch_size - len(batch))]
            for record, said in zip(batch, answers.answer(filled, width)[: len(batch)], strict=True):
                line = _line(record, said)
                done[record.id] = line
                log.write(line)
            bar.step(len(batch))
            if stopped():
                raise Stopped(f"{stopped()} after {len(done)} predictions, which are kept.", "The same command goes on from here.")
    return done


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    stored = folder / SETTINGS
    if stored.exists() and storage.read_json(stored) == json.loads(json.dumps(settings)):
        return
    (folder / PREDICTIONS).unlink(missing_ok=True)
    storage.write_json(stored, settings)


def _batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    for begin in range(0, len(records), size):
        yield records[begin : begin + size]


def _line(record: Record, said: Text | RecordError) -> dict[str, Any]:
    if isinstance(said, RecordError):
        return {"id": record.id, "skipped": said.reason}
    return {"id": record.id, "text": said.text, "tokens": said.num_tokens}


def _collected(records: Sequence[Record], done: dict[str, dict[str, Any]]) -> Predicted:
    lines = [done[record.id] for record in records]
    skipped = Counter(line["skipped"] for line in lines if "skipped" in line)
    texts = [Prediction(line["id"], line["text"], line["tokens"]) for line in lines if "text" in line]
    return Predicted(texts, dict(skipped))

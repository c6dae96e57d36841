"""The records on which the models of a comparison differ most, with their images and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sightline.data.check.thumbnails import shrunk
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.reader import read_image
from sightline.errors import DataError, RecordError, StorageError
from sightline.evaluation.predict import PREDICTIONS
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Task
from sightline.reporting.comparison import ItemCard, Table
from sightline.runtime import storage
from sightline.runtime.logs import logger
from sightline.types import Prediction, Record

SHOWN = 24  # about so many cards
LEAST = 2  # cards of each pair and direction
MOST = 48
SIDE, QUALITY = 400, 80  # of an image on the page


def with_items(table: Table, spec: EvalSpec, task: Task, folders: Mapping[str, Path]) -> Table:
    """Returns the table with its cards; without, where the data set is no longer there.

    Args:
        table: the scores of each record.
        spec, task: what was asked.
        folders: the evaluations, by the rows that are shown.
    """
    try:
        dataset = open_dataset(spec.data)
    except DataError as error:
        logger.warning("no images are shown: %s", error)
        return table
    chosen = differing_records(table, list(folders))
    answers = {name: _answers(folder) for name, folder in folders.items()}
    queries = {
        query.id: query
        for record in dataset.records(spec.split)
        if task.asks(record)
        for query in task.queries(record, task.bare_prompt)
        if query.id in chosen
    }
    place = {record: number for number, record in enumerate(table.records)}
    items = []
    for record in chosen:
        if record in queries:
            query = queries[record]
            texts = {name: task.shown(query, found[record]) for name, found in answers.items() if record in found}
            scores = {name: table.values[name][place[record]] for name in folders}
            items.append(ItemCard(record, _image(dataset, query.record), task.references(query)[:3], texts, scores))
    return replace(table, items=tuple(items))


def differing_records(table: Table, rows: Sequence[str]) -> list[str]:
    """Returns ids of records whose scores lie far apart: the first few of each pair in each direction, the furthest first."""
    names = [(pair.first, pair.second) for pair in table.pairs if pair.first in rows and pair.second in rows]
    count = max(LEAST, SHOWN // (2 * max(len(names), 1)))
    chosen: dict[str, float] = {}
    for first, second in names:
        change = [a - b for a, b in zip(table.values[first], table.values[second], strict=True)]
        order = sorted(range(len(change)), key=lambda number: change[number])
        for number in [*order[:count], *order[-count:]]:
            if change[number]:
                record = table.records[number]
                chosen[record] = max(chosen.get(record, 0.0), abs(change[number]))
    return sorted(chosen, key=lambda record: -chosen[record])[:MOST]


def _answers(folder: Path) -> dict[str, Prediction]:
    try:
        return {line["id"]: Prediction.from_json(line) for line in storage.read_json_lines(folder / PREDICTIONS)}
    except (StorageError, KeyError):
        return {}


def _image(dataset: Dataset, record: Record) -> bytes | None:
    try:
        return shrunk(read_image(dataset, record, draft_side=SIDE), SIDE, QUALITY) if record.images else None
    except RecordError:
        return None

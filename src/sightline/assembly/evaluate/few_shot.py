"""The examples that stand before the questions of an evaluation: from what the user names to records with their images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputLoader
from sightline.data.samples.prompts import FewShotExample
from sightline.evaluation.few_shot import draw_shots
from sightline.types import Record


@dataclass(frozen=True)
class Shots:
    """Examples of every record of an evaluation.

    Attributes:
        pool, split: where they come from.
        count, seed: number of examples and seed for choosing them.
        of: examples by record id, in the order in which they stand.
    """

    pool: Dataset
    split: str
    count: int
    seed: int
    of: dict[str, tuple[FewShotExample, ...]]

    def settings(self) -> dict[str, Any]:
        """What the answers depend on."""
        return {"count": self.count, "seed": self.seed, "data": self.pool.fingerprint, "split": self.split}

    def to_json(self) -> dict[str, list[str]]:
        """Ids of the examples by record."""
        return {record_id: [example.record.id for example in examples] for record_id, examples in self.of.items()}


def origin_of(text: str, data: str) -> tuple[str, str]:
    """A dataset folder and a split from `DATA:SPLIT`, `DATA` (its split `train`), or a split of the same data."""
    folder, colon, split = text.rpartition(":")
    if colon and Path(folder).is_dir():
        return folder, split
    return (text, "train") if Path(text).is_dir() else (data, text)


def draw_all(
    records: Sequence[Record],
    dataset: Dataset,
    pool: Dataset,
    split: str,
    count: int,
    seed: int,
    suits: Callable[[Record], bool],
    visual_loader: VisualInputLoader | None,
    as_example: Callable[[Record], Record] = lambda record: record,
) -> Shots:
    """Examples of all records.

    Args:
        records, dataset: the questions.
        pool, split: where examples come from.
        count, seed: number of examples for each record, and seed for choosing them.
        suits: whether a record can be an example.
        visual_loader: fills the examples' visual slots; a control of the questions' images leaves them alone.
        as_example: gives a record the form in which the task asks and expects answers.

    Raises:
        UsageError: there are too few records for it.
        DataError: there is no such split.
    """
    drawn = {record.id: draw_shots(record, dataset, pool, split, count, seed, suits) for record in records}
    of = {key: tuple(FewShotExample(pool, as_example(record), visual_loader) for record in found) for key, found in drawn.items()}
    return Shots(pool, split, count, seed, of)

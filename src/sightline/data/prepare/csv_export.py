"""Writes a dataset folder as a CSV table with base64 images, the form of seemore's `inputs.csv`; the format `csv` reads it back."""

import base64
import csv
from collections import Counter
from pathlib import Path
from typing import Any

from sightline.data.dataset import Dataset
from sightline.errors import DataError
from sightline.runtime.storage import atomic_file
from sightline.types import Record

HEADER = ("b64string_images", "caption", "split", "id")


def export_csv(dataset: Dataset, out: Path, split: str | None = None) -> dict[str, Any]:
    """Writes one row for each caption of each image.

    Args:
        dataset: the folder.
        out: the file.
        split: only this one; all by default.

    Returns:
        Numbers of `records` and `rows` written, and of records left out by reason in `skipped`: `no_image`, `several_images`,
        `conversation`.

    Raises:
        DataError: no record could be written, there is no such split, or an image cannot be read.
        StorageError: the file cannot be written.
    """
    records = rows = 0
    skipped = Counter[str]()
    with atomic_file(out) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for record in dataset.records(split):
            if reason := _unfit(record):
                skipped[reason] += 1
                continue
            image = base64.b64encode(dataset.image_bytes(record)).decode("ascii")
            for number, caption in enumerate(record.captions):
                name = f"{record.id}#{number}" if number else record.id  # a table has no id twice; its reader keeps the first
                table.writerow((image, caption, record.split, name))
            records, rows = records + 1, rows + len(record.captions)
        if not records:
            raise DataError(f"{dataset.path} has no record of one image with captions{f' in split {split!r}' if split else ''}.")
    return {"records": records, "rows": rows, "skipped": dict(skipped)}


def _unfit(record: Record) -> str:
    """Returns why a record has no place in the table; empty if it has."""
    if record.messages:
        return "conversation"
    return {0: "no_image", 1: ""}.get(len(record.images), "several_images")

"""Records of the same image become one record with all their captions, so that a caption is scored against all references.

Tables such as Kaggle's `captions.txt` of Flickr8k have a row for each caption. Works on the checked records of a run, where images
are known by their content, and before splits are drawn. Holds about 60 bytes a record and no text: records that belong together are
read again from where they stand.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.prepare.writer import RowWriter
from sightline.data.readers.base import Tally
from sightline.runtime.storage import atomic_file, dump_line

MAX_RECORDS = 100  # that become one; further ones of the image become another
_MAY_DIFFER = ("captions", "components", "id", "images", "meta")
_ROW = np.dtype([("key", "<u8"), ("offset", "<u8"), ("image", "<u8"), ("split", "<u8")])


def group_by_image(checked: Path, tally: Tally, poll: Callable[[], None] = lambda: None) -> int:
    """Joins records of captions that have the same images, split, boxes and negatives, in the place of the first of them.

    The joint record has the id of the first, the captions (and their components) of all in their order, and the keys of all `meta`,
    of which the first that has a key decides. Records with a conversation, with answers or without images stay as they are.

    Args:
        checked: lines of records with their images stored; rewritten where records are joined.
        tally: counts `rows_merged`, `image_in_several_splits` (records of one image that stay apart), and values of `meta` that
            were given up.
        poll: is called for every record; what it raises ends the work.

    Returns:
        The number of records that went into others.
    """
    writer, offset = RowWriter(_ROW), 0
    with checked.open("rb") as file:
        for number, line in enumerate(file):
            writer.add(_row(json.loads(line), number, offset))
            offset += len(line)
            poll()
    rows = writer.rows()
    if in_splits := _num_in_several_splits(rows):
        tally.notes["image_in_several_splits"] += in_splits
    order = np.argsort(rows["key"], kind="stable")  # records of a key follow each other, in the order of the file
    numbers = np.arange(len(rows))
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = rows["key"][order[1:]] != rows["key"][order[:-1]]
    rank = numbers - np.maximum.accumulate(np.where(is_first, numbers, 0))
    is_first |= rank % MAX_RECORDS == 0
    if is_first.all():
        return 0
    ends = np.append(np.flatnonzero(is_first)[1:], len(rows))
    place = np.empty_like(order)
    place[order] = numbers
    with checked.open("rb") as file, checked.open("rb") as beside, atomic_file(checked, "wb") as out:
        for number, line in enumerate(file):
            poll()
            at = int(place[number])
            if not is_first[at]:
                continue
            end = int(ends[np.searchsorted(ends, at, side="right")])
            record = json.loads(line) if end > at + 1 else None
            for offset in rows["offset"][order[at + 1 : end]].tolist():
                beside.seek(offset)
                _join(record, json.loads(beside.readline()), tally)
            out.write(line if record is None else dump_line(record))
    merged = int((~is_first).sum())
    tally.notes["rows_merged"] += merged
    return merged


def _row(record: dict[str, Any], number: int, offset: int) -> tuple[int, int, int, int]:
    """Returns the key of the records to join with this one (its own if none), place in the file, image and split."""
    if not record.get("captions") or not record.get("image_info") or record.get("answers"):
        return number, offset, number, 0
    identity = {name: value for name, value in record.items() if name not in _MAY_DIFFER}
    return _hash(identity), offset, _hash(record["image_info"]), _hash(record["split"])


def _hash(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(dump_line(value), digest_size=8).digest(), "little")


def _num_in_several_splits(rows: np.ndarray) -> int:
    order = np.lexsort((rows["split"], rows["image"]))
    image, split = rows["image"][order], rows["split"][order]
    return len(np.unique(image[1:][(image[1:] == image[:-1]) & (split[1:] != split[:-1])]))


def _join(record: dict[str, Any] | None, other: dict[str, Any], tally: Tally) -> None:
    assert record is not None
    assert record["image_info"] == other["image_info"]
    record["captions"] += other["captions"]
    if "components" in other:
        known = {item["text"] for item in record.setdefault("components", [])}
        record["components"] += [item for item in other["components"] if item["text"] not in known]
    for name, value in other.get("meta", {}).items():
        if record.setdefault("meta", {}).setdefault(name, value) != value:
            tally.ignored[f"meta.{name}"] += 1

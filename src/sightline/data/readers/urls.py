"""Tables whose images are URLs: csv, tsv, jsonl, json or parquet, as PixMo-Cap, CC3M, CC12M and LAION are published.

Where a row states the sha256 of its image, one that is another by now is skipped. The URL is kept in `meta`, for it says where a
image is from.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally, shown
from sightline.data.readers.rows import Keys, TableRow, items
from sightline.data.readers.tables import GENERAL, Preset, split_of_file, table_files, table_rows
from sightline.data.readers.web import WEB
from sightline.errors import RecordError

KEYS: Keys = {
    **GENERAL,
    "caption": ("caption", "text", "TEXT"),
    "image": ("url", "image_url", "URL"),
    "sha256": ("sha256", "image_sha256"),
}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
PRESET = Preset(KEYS, ("**/*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv"))


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a file, or of all files of one kind in a folder."""
    number = 0
    for file in table_files(path, PRESET.files, tally):
        split = split_of_file(file, path)

        def build(values: dict[str, Any], place: int, where: str, first: int = number, split: str = split) -> Item:
            return _item(TableRow(values, KEYS, options), first + place, where, split, options, tally)

        for entry in items(table_rows(file, PRESET, options, tally), build):
            yield entry
            number += 1


def _item(row: TableRow, number: int, where: str, split: str, options: SourceOptions, tally: Tally) -> Item:
    urls, hashes = row.get("image"), _hashes(row.get("sha256"))
    if options.text_only:
        return row.item(number, where, WEB, tally, split=split)
    if urls in (None, "", []):
        raise RecordError("bad_url", "the row has no URL")
    item = row.item(number, where, WEB, tally, split=split)
    record = replace(item.record, meta={**item.record.meta, "url": urls})
    return replace(item, record=record, hashes=hashes)


def _hashes(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str) or not _SHA256.match(value):
        raise RecordError("bad_image_info", f"a sha256 is 64 hexadecimal digits, got {shown(value)}")
    return (value.lower(),)

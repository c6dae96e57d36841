"""A folder of images with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, as the `datasets` library reads it.

`file_name` is relative to the metadata file; `text` (or `caption`) is the caption. Folders named after a split give the split.
Without metadata, the name of the folder that an image lies in is its caption.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.readers.archives import is_picture
from sightline.data.readers.base import ImageInRoot, Item, Skip, SourceOptions, Tally, split_name
from sightline.data.readers.roots import Folder
from sightline.data.readers.rows import Keys, TableRow, image_root, items
from sightline.data.readers.tables import GENERAL, SPLIT_WORD, Preset, split_of_file, table_rows
from sightline.errors import DataError
from sightline.types import Record

KEYS: Keys = {
    **GENERAL,
    "caption": ("text", "caption"),
    "image": ("file_name", "file_names", "image_file_name", "images_file_names"),
}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of every metadata file under a folder, or of its images where there is none."""
    files = [path] if path.is_file() else sorted(file for name in METADATA for file in path.glob(f"**/{name}"))
    number = 0
    for file in files:
        for entry in _with_metadata(file, path, options, tally, number):
            yield entry
            number += 1
    if not files:
        yield from _by_folder(path)


def _with_metadata(file: Path, path: Path, options: SourceOptions, tally: Tally, first: int) -> Iterator[Item | Skip]:
    root = image_root(options, file.parent)
    split = split_of_file(file, path)
    folder = file.parent.relative_to(path) if path.is_dir() else Path()

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        row = TableRow(values, KEYS, options)
        name = row.get("image")
        fallback_id = (folder / name).as_posix() if isinstance(name, str) else None
        return row.item(first + number, where, root, tally, fallback_id=fallback_id, split=split)

    return items(table_rows(file, Preset(KEYS), options, tally), build)


def _by_folder(path: Path) -> Iterator[Item | Skip]:
    """Images in folders that are named after what they show."""
    root, found = Folder(path), False
    for file in sorted(path.glob("**/*")):
        name = file.relative_to(path).as_posix()
        if not is_picture(name) or not file.is_file():
            continue
        folder = file.parent.name
        if file.parent == path or SPLIT_WORD.fullmatch(folder):
            raise DataError(f"{path}: {name} has no caption: there is no metadata.jsonl and no folder that names what it shows.")
        found = True
        record = Record(
            id=name,
            captions=(folder,),
            split=split_name(split_of_file(file.parent / "-", path)),
            meta={"caption_from": "folder"},
        )
        yield Item(record, (ImageInRoot(root, name),), name)
    if not found:
        raise DataError(f"{path}: no images in it.")

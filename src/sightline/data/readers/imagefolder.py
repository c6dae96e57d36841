"""A folder of images with `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, as the `datasets` library reads it.

`file_name` is relative to the metadata file; `text` (or `caption`) is the caption. Folders named after a split give the split.
Without metadata, a `.txt` or `.json` of the same name beside an image says what it shows, as in a WebDataset sample (img2dataset's
output format `files`). Where no image has one, the name of the folder that an image lies in is its caption.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.readers.base import ImageInRoot, Item, Skip, SourceOptions, Tally, split_name
from sightline.data.readers.roots import Folder, has_image_suffix, is_hidden
from sightline.data.readers.rows import Keys, Numbered, TableRow, add_side_file, image_root, items
from sightline.data.readers.strict_json import MAX_LINE
from sightline.data.readers.tables import GENERAL, SPLIT_WORD, Preset, split_of_file, table_rows
from sightline.errors import DataError, RecordError
from sightline.runtime.inputs import read_input
from sightline.types import Record

KEYS: Keys = {
    **GENERAL,
    "caption": ("text", "caption"),
    "image": ("file_name", "file_names", "image_file_name", "images_file_names"),
}
SIDE_KEYS: Keys = {**GENERAL, "caption": (".txt", "caption", "text"), "image": "__image__"}
SIDE_SUFFIXES = (".txt", ".json")
# Folders that hold images of anything: shards (`00000`), and words for "images".
NO_CLASS = re.compile(r"0\d+|images?|imgs?|photos?|pics?|pictures?|data|files|jpe?gs?|pngs?|all", re.IGNORECASE)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of every metadata file under a folder, or of its images where there is none."""
    files = [path] if path.is_file() else _metadata_files(path)
    number = 0
    tally.use(*files)
    for file in files:
        for entry in _with_metadata(file, path, options, tally, number):
            yield entry
            number += 1
    if not files:
        yield from _without_metadata(path, options, tally)


def _metadata_files(path: Path) -> list[Path]:
    found = (file for name in METADATA for file in path.glob(f"**/{name}"))
    return sorted(file for file in found if not is_hidden(file.relative_to(path).as_posix()))


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


def _without_metadata(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    names = sorted(
        file.relative_to(path).as_posix() for file in path.glob("**/*") if has_image_suffix(file.name) and file.is_file()
    )
    names = [name for name in names if not is_hidden(name)]
    if not names:
        raise DataError(f"{path}: no images in it.")
    has_side_files = any(_side_files(path / name) for name in names)
    if has_side_files:
        yield from _by_side_file(path, names, options, tally)
        return
    classless = [name for name in names if not _class_of(path, name)]
    if len(classless) == len(names):
        raise DataError(
            f"{path}: {names[0]} has no caption: there is no metadata.jsonl, no .txt or .json of its name beside it, and no folder "
            "that names what it shows."
        )
    root = Folder(path)
    for name in names:
        folder = _class_of(path, name)
        if folder:
            split = split_name(split_of_file((path / name).parent / "-", path))
            record = Record(id=name, captions=(folder,), split=split, meta={"caption_from": "folder"})
            yield Item(record, (ImageInRoot(root, name),), name)
        else:
            tally.use(path / name)
            yield Skip(name, name, "no_text", "no folder names what it shows")


def _class_of(path: Path, name: str) -> str:
    """Returns the folder that names an image's class; empty for folders named after a split, a shard or images."""
    file = path / name
    folder = file.parent.name
    return "" if file.parent == path or SPLIT_WORD.fullmatch(folder) or NO_CLASS.fullmatch(folder) else folder


def _side_files(file: Path) -> list[Path]:
    """Returns the `.txt` and the `.json` beside an image, those there are; the suffix may be in capital letters."""
    pairs = [(file.with_suffix(suffix), file.with_suffix(suffix.upper())) for suffix in SIDE_SUFFIXES]
    return [next(beside for beside in pair if beside.is_file()) for pair in pairs if any(beside.is_file() for beside in pair)]


def _by_side_file(path: Path, names: list[str], options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    root = Folder(path)

    def rows() -> Iterator[Numbered]:
        for number, name in enumerate(names):
            values: dict[str, Any] = {"__image__": name}
            fault = None
            tally.use(path / name)
            for beside in _side_files(path / name):
                tally.use(beside)
                try:
                    add_side_file(values, beside.name, read_input(beside, MAX_LINE))
                except RecordError as error:
                    fault = error
                except OSError as error:
                    fault = RecordError("side_file_unreadable", f"{beside.name}: {error.strerror}")
            yield number, name, fault or values

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        split = split_of_file((path / where).parent / "-", path)
        return TableRow(values, SIDE_KEYS, options).item(number, where, root, tally, fallback_id=where, split=split)

    return items(rows(), build)

"""Any data set that the `datasets` library opens: a name on the Hub, a folder that it saved, or a folder of data files.

Rows are streamed and images are left as they are stored; `--map` says which column is what. Splits are those of the data set.
Nothing is fetched unless the name is no local folder.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally, unused_reason
from sightline.data.readers.labels import named_labels
from sightline.data.readers.rows import Keys, Numbered, TableRow, image_root, items, require_columns
from sightline.data.readers.tables import GENERAL
from sightline.errors import DataError, RecordError, SightlineError
from sightline.runtime import hub
from sightline.runtime.optional import require

KEYS: Keys = {**GENERAL, "caption": ("caption", "text")}
REMOTE = "hf://"
SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of all splits, or of the one part that `--subset` and `--revision` name."""
    root = image_root(options, path if path.is_dir() else path.parent)
    number = 0
    for split, rows in _splits(path, options, tally):

        def build(values: dict[str, Any], row_number: int, where: str, split: str = split) -> Item:
            return TableRow(values, KEYS, options).item(row_number, where, root, tally, split=split)

        labels = named_labels(rows.features.to_dict() if rows.features else {})
        for entry in items(_numbered(rows, split, number, path, options, labels), build):
            yield entry
            number += 1


def _numbered(
    rows: Any,
    split: str,
    first: int,
    path: Path,
    options: SourceOptions,
    labels: "Callable[[dict[str, Any]], dict[str, Any] | RecordError]",
) -> Iterator[Numbered]:
    place = 0
    try:
        for row in rows:
            if place == 0:
                require_columns(row, KEYS, options, f"{path}: split {split!r}")
            yield first + place, f"{split}[{place}]", labels(row)
            place += 1
    except SightlineError:
        raise
    except Exception as error:  # `datasets` and pyarrow may raise anything for damaged files
        raise DataError(f"{path}: split {split!r}, row {place}: {_error_text(error)}.") from error


def _splits(path: Path, options: SourceOptions, tally: Tally) -> Iterator[tuple[str, Any]]:
    datasets = require("datasets", "data", "Format hf")
    is_local = hub.find_local(str(path), "data set", DataError) is not None
    if not is_local and hub.check_reachable():
        raise DataError(*hub.not_found(str(path), "data set", ""))
    if is_local:
        _check_files(path)
    try:
        if any((path / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(path))
            tally.use(*path.rglob("*"))
        else:
            conversation_encoder = datasets.load_dataset_builder(
                str(path), options.subset or None, revision=options.revision or None
            )
            used = {str(file) for files in (conversation_encoder.config.data_files or {}).values() for file in files}
            tally.use(*map(Path, used))
            _count_remote_files(conversation_encoder.base_path or "", used, datasets.config.HF_ENDPOINT, tally)
            found = conversation_encoder.as_streaming_dataset()
        splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
        streams = {
            str(name): (rows.to_iterable_dataset() if isinstance(rows, datasets.Dataset) else rows).decode(False)
            for name, rows in splits.items()
        }
    except SightlineError:
        raise
    except Exception as error:  # `datasets` and pyarrow may raise anything for damaged files
        if not is_local:
            raise DataError(*hub.not_found(str(path), "data set", _error_text(error))) from error
        raise DataError(f"{path}: {_error_text(error)}.", "Is it a folder of data files?") from error
    yield from streams.items()


def _check_files(path: Path) -> None:
    """Raises a DataError where a file is a pipe or device, which would block the library that reads it or never end."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.exists() and not file.is_file() and not file.is_dir():
            raise DataError(f"{file} is not a regular file.", "Remove it.")


def _count_remote_files(base: str, used: Collection[str], endpoint: str, tally: Tally) -> None:
    """Counts the files of a data set on the Hub that no split is made of.

    Args:
        base: `hf://datasets/NAME@REVISION`; local folders are counted by `Tally.close`.
        used: files of all splits, named like `base`.
        endpoint: address of the Hub.
    """
    if not base.startswith(REMOTE):
        return
    library = require("huggingface_hub", "data", "Format hf")
    for file in sorted(library.HfFileSystem(endpoint=endpoint).find(base)):
        if REMOTE + file not in used:
            name = (REMOTE + file).removeprefix(base).lstrip("/")
            tally.ignore(unused_reason(name), name)


def _error_text(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

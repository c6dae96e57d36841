"""Sets that are one table of rows with published column names: a reader for json, jsonl, csv and parquet, and a preset for each.

Where rows say no split, the file's name does (`train-00000-of-00005.parquet`, `val_v1.0.json`), or the name of its folder.
Parquet needs the extra `data`; it is read a few rows at a time and its page checksums are checked where it has them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from sightline.data.readers.base import Item, Reader, Skip, SourceOptions, Tally, make_id
from sightline.data.readers.csv_table import CsvRows
from sightline.data.readers.labels import named_labels
from sightline.data.readers.roots import is_hidden
from sightline.data.readers.rows import Keys, Numbered, TableRow, all_keys, image_root, items, json_rows, require_columns
from sightline.data.readers.turns import texts
from sightline.errors import DataError, RecordError, SightlineError
from sightline.runtime.inputs import open_input, parse_json
from sightline.runtime.optional import require

FREE_BYTES = 64_000_000  # of a row group, below which its compression is not looked at
PARQUET_RATIO = 100  # of uncompressed to compressed bytes, above
PARQUET_BYTES = 1 << 30  # of the rows held at a time
PARQUET_ROWS = 16  # held at a time; a row of The Cauldron may have a dozen large images
CAPTIONS_OF_ROWS = ("caption_str", "reference_strs")
SPLIT_WORD = re.compile(r"(?<![a-zA-Z])(train|validation|valid|val|dev|test)(?![a-zA-Z])", re.IGNORECASE)
_TAKEN: dict[str, None] = {}


@dataclass(frozen=True, slots=True)
class Preset:
    """How a set is laid out.

    Attributes:
        keys: our field -> the set's column, or columns of which the first that is there is taken.
        files: patterns of its files in a folder; the first that finds any is used.
        places: folders or archives, relative to a file, where images are looked for after the file's own folder.
        member: name of the list of rows in a json object, or `*`.
        templates: our field -> text with `{column}`s.
        group: column by which rows are one record, whose captions are those of all its rows.
    """

    keys: Keys
    files: tuple[str, ...] = ("*.parquet", "*.jsonl", "*.json", "*.csv")
    places: tuple[str, ...] = ("images", "images.zip", "images.tar")
    member: str = "data"
    templates: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    def reader(self) -> Reader:
        """Returns the reader of the preset."""

        def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
            return read_table(path, self, options, tally)

        return read


GENERAL: Keys = {
    "answer": ("answer", "answers"),
    "caption": "caption",
    "captions": "captions",
    "choices": "choices",
    "conversations": "conversations",
    "hint": "hint",
    "id": "id",
    "image": ("image", "images"),
    "messages": "messages",
    "question": "question",
    "split": "split",
    "texts": "texts",
}
PRESETS = {
    "cauldron": Preset({"id": "id", "image": "images", "split": "split", "texts": "texts"}, ("**/*.parquet",)),
    "chartqa": Preset(
        {"answer": ("answer", "label"), "id": "id", "image": ("image", "imgname"), "question": ("question", "query")},
        ("qa.jsonl", "**/*_human.json", "**/*.parquet"),
        ("png", "images"),
    ),
    "docvqa": Preset(
        {
            "answer": "answers",
            "id": ("questionId", "question_id"),
            "image": "image",
            "question": "question",
            "split": "data_split",
        },
        ("*_v*.json", "**/*.parquet", "*.json"),
    ),
    "easy_vqa": Preset({"answer": "answer", "id": "id", "image": "image", "question": "question"}, ("qa.jsonl",)),
    "localized_narratives": Preset(
        {"caption": "caption", "image": "image", "meta.annotator": "annotator_id"},
        ("*_captions.jsonl", "*_localized_narratives*.jsonl"),
        ("images", "train2017", "val2017", "train2017.zip", "val2017.zip"),
        templates={"image": "{image_id:0>12}.jpg"},  # as COCO names its photos
    ),
    "nlvr": Preset(
        {"answer": "label", "id": "id", "image": "image", "question": "sentence"},
        ("nlvr.jsonl",),
        templates={"question": "{sentence}\nTrue or false?"},
    ),
    "parquet": Preset(GENERAL, ("**/*.parquet",)),
    "refcocog": Preset(
        {"captions": "answer", "id": "question_id", "image": "image", "pixel_box": "bbox"}, ("**/*.parquet", "*.json", "*.jsonl")
    ),
    "scienceqa": Preset(
        {
            "answer": "answer",
            "choices": "choices",
            "hint": "hint",
            "id": "id",
            "image": "image",
            "question": "question",
            "split": "split",
        },
        ("problems.json", "**/*.parquet"),
        ("images", "..", "../images"),
        member="*",
        templates={"image": "{split}/{id}/{image}"},
    ),
    "sroie": Preset({"boxes": "lines", "fields": "fields", "id": "id", "image": "image"}, ("receipts.jsonl",)),
    "textcaps": Preset(
        {"captions": "captions", "id": "image_id", "image": "image", "split": "set_name"},
        ("TextCaps_*.json", "**/*.parquet"),
        ("train_images", "test_images", "images"),
        templates={"image": "{image_id}.jpg"},
        group="image_id",
    ),
    "textvqa": Preset(
        {"answer": "answers", "id": "question_id", "image": "image", "question": "question", "split": "set_name"},
        ("TextVQA_*.json", "**/*.parquet"),
        ("train_images", "test_images", "images"),
        templates={"image": "{image_id}.jpg"},
    ),
    "trl": Preset(
        {"id": "id", "image": ("images", "image"), "messages": "messages", "split": "split"},
        ("**/*.parquet", "*.jsonl", "*.json"),
    ),
}


def read_table(path: Path, preset: Preset, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a file, or of all files of a folder that the preset names."""
    number = 0
    for file in table_files(path, preset.files, tally):
        for entry in _file_items(file, preset, options, tally, number, split_of_file(file, path)):
            yield entry
            number += 1


def _file_items(file: Path, preset: Preset, options: SourceOptions, tally: Tally, first: int, split: str) -> Iterator[Item | Skip]:
    root = image_root(options, file.parent, *preset.places)
    keys = {"split": "split", **preset.keys}

    def rows() -> Iterator[Numbered]:
        return table_rows(file, preset, options, tally)

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        row = TableRow(values, keys, options, preset.templates)
        return row.item(first + number, where, root, tally, is_base64=True, split=split)

    return items(_grouped(rows, preset.group, tally) if preset.group else rows(), build)


def _columns(preset: Preset, options: SourceOptions) -> set[str]:
    """Returns every column that may be read."""
    named: Keys = {"split": "split", **preset.keys, **options.mapping}
    wanted = {key for keys in named.values() for key in all_keys(keys)}
    for template in preset.templates.values():
        wanted |= {key for _, key, _, _ in Formatter().parse(template) if key}
    return (wanted | {preset.group, *CAPTIONS_OF_ROWS} if preset.group else wanted) - {""}


def _grouped(rows: Callable[[], Iterator[Numbered]], group: str, tally: Tally) -> Iterator[Numbered]:
    """Yields the first row of each group, with the captions of all its rows; read twice, so that only captions are held."""
    captions: dict[str, dict[str, None]] = {}
    for _, _, row in rows():
        found = _captions_of_row(row, group)
        if not isinstance(found, RecordError):
            captions.setdefault(found[0], {}).update(dict.fromkeys(found[1]))
    for number, where, row in rows():
        found = _captions_of_row(row, group)
        if isinstance(found, RecordError):
            yield number, where, found
        elif captions[found[0]] is not _TAKEN:
            assert isinstance(row, dict)
            yield number, where, {**row, "captions": list(captions[found[0]])}
            captions[found[0]] = _TAKEN
        else:
            tally.notes["rows_merged"] += 1


def _captions_of_row(row: dict[str, Any] | RecordError, group: str) -> tuple[str, tuple[str, ...]] | RecordError:
    """Returns the group of a row and its captions, or what is wrong with it."""
    if isinstance(row, RecordError):
        return row
    try:
        values = [row[name] for name in CAPTIONS_OF_ROWS if row.get(name) is not None]
        return make_id(row.get(group, ""), 0), tuple(text for value in values for text in texts(value, "captions"))
    except RecordError as error:
        return error


# Files ----------------------------------------------------------------------------------------------------------------------


def table_files(path: Path, patterns: Iterable[str], tally: Tally) -> list[Path]:
    """Returns the file itself, or those of a folder that the first fruitful pattern finds, sorted; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        tally.use(path)
        return [path]
    for pattern in patterns:
        found = sorted(file for file in path.glob(pattern) if file.is_file() and not is_hidden(file.relative_to(path).as_posix()))
        if found:
            tally.use(*found)
            return found
    raise DataError(f"{path}: none of {', '.join(patterns)} is in it.", "Give the file itself.")


def split_of_file(file: Path, root: Path) -> str:
    """Returns the split that a file's name says, or that of a folder between `root` and the file; empty when none does."""
    folders = file.relative_to(root).parts[:-1]
    if (match := SPLIT_WORD.search(file.stem)) is not None:
        return match[1].lower()
    return next((name.lower() for name in reversed(folders) if SPLIT_WORD.fullmatch(name)), "")


def table_rows(file: Path, preset: Preset, options: SourceOptions, tally: Tally) -> Iterator[Numbered]:
    """Yields rows of a json, jsonl, csv, tsv or parquet file; unused columns of parquet are counted, not read.

    Raises:
        DataError: the file is damaged as a whole, or its columns are not those of the preset.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(file, preset, options, tally)
    if suffix in (".csv", ".tsv"):
        rows = CsvRows(file, all_keys({**preset.keys, **options.mapping}["image"]))
        require_columns(rows.header, preset.keys, options, f"{file}:1")
        return iter(rows)
    return json_rows(file, tally, preset.member)


def parquet_rows(file: Path, preset: Preset, options: SourceOptions, tally: Tally) -> Iterator[Numbered]:
    """Yields rows of a parquet file, a few at a time.

    Raises:
        DataError: it is cut or damaged (with the number of the row), or its columns are not those of the preset.
    """
    parquet = require("pyarrow.parquet", "data", "Reading parquet")
    wanted = _columns(preset, options)
    number = 0
    try:
        with (
            open_input(file) as stream,
            parquet.ParquetFile(stream, page_checksum_verification=True, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            if not preset.group:
                require_columns(names, preset.keys, options, str(file))
            for name in set(names) - wanted:
                tally.ignored[name] += table.metadata.num_rows
            labels = named_labels(_features(table.schema_arrow.metadata))
            largest = _largest_group(table.metadata, file)
            rows = max(1, min(PARQUET_ROWS, PARQUET_BYTES // max(1, largest)))
            for batch in table.iter_batches(rows, columns=[name for name in names if name in wanted]):
                if batch.nbytes > PARQUET_BYTES:
                    raise DataError(
                        f"{file}: {len(batch)} rows from row {number} on are {batch.nbytes} bytes.", "Make smaller rows."
                    )
                for row in batch.to_pylist():
                    yield number, f"{file.name}[{number}]", labels(row)
                    number += 1
    except SightlineError:
        raise
    except Exception as error:  # damaged bytes raise anything, MemoryError too
        message = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: damaged at row {number}: {message}.", "Is the download complete?") from error


def _largest_group(metadata: Any, file: Path) -> int:
    """Returns the uncompressed bytes of the largest row group.

    Only the totals of groups are looked at: pyarrow ends the process where the notes of a single column are damaged.

    Raises:
        DataError: a group claims more bytes than the whole file can hold.
    """
    length = file.stat().st_size
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    largest = max(sizes, default=0)
    if largest > FREE_BYTES and largest > PARQUET_RATIO * length:
        raise DataError(
            f"{file}: row group {sizes.index(largest)} claims {largest} bytes in a file of {length}.",
            f"Above {FREE_BYTES} bytes a file may be compressed to one part in {PARQUET_RATIO}.",
        )
    return largest


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """Returns column types as the `datasets` library writes them into a parquet file; empty without."""
    try:
        found = parse_json((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}

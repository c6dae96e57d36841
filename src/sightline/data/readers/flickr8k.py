"""Flickr8k, as published, as Kaggle has it, and as jsonl; Flickr30k, as published and as Kaggle has it.

Published: `Flickr8k.token.txt` (lines `name.jpg#k<TAB>caption`) beside the split files `Flickr_8k.trainImages.txt`,
`.devImages.txt` and `.testImages.txt`; a photo in none of them gets the split "other". Kaggle's: `captions.txt`, a csv with a row
`image,caption` for each caption. As jsonl: `captions.jsonl` with `image`, `split` and `captions`. With `--text-only` or
`--without-images`, `captions_without_images.jsonl` is read as well.

Flickr30k: `results_20130124.token` has the lines of Flickr8k's token file; Kaggle's `results.csv` has the header
`image_name| comment_number| comment`, fields separated by a pipe and blanks, and no quotes. One line of it lacks its second pipe.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sightline.data.readers.base import ImageInRoot, Item, Skip, SourceOptions, Tally, refuse_mapping
from sightline.data.readers.csv_table import CsvRows
from sightline.data.readers.roots import ImageRoot
from sightline.data.readers.rows import image_root, row_files
from sightline.data.readers.strict_json import text_lines
from sightline.errors import DataError, RecordError
from sightline.types import Record

KEYS = {"captions": "captions", "id": "id", "image": "image", "split": "split"}
TOKENS = "Flickr8k.token.txt"
KAGGLE = "captions.txt"
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
PLACES = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "../Flicker8k_Dataset", "../Flickr8k_Dataset")
WITHOUT_IMAGES = "captions_without_images.jsonl"
TOKENS_30K = ("results_20130124.token", "results.token")
KAGGLE_30K = "results.csv"
PLACES_30K = ("images", "flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images", "../flickr30k-images")
_PIPED = re.compile(r"\s*(?P<name>[^|]+?)\s*\|\s*(?P<number>\d+)\s*(?P<pipe>\|?)\s*(?P<caption>.*?)\s*\Z")
_PIPED_HEADER = re.compile(r"\s*image_name\s*\|\s*comment_number\s*\|\s*comment\s*\Z")


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of either form; `path` is the folder, the token file, or a jsonl file."""
    for tokens in (path, path / TOKENS, path / "Flickr8k_text" / TOKENS):
        if tokens.name == TOKENS and tokens.is_file():
            return _by_photo(tokens, _token_lines(tokens), PLACES, options, tally)
    for table in (path, path / KAGGLE):
        if table.name == KAGGLE and table.is_file():
            return _by_photo(table, _kaggle_rows(table), PLACES, options, tally)
    if path.suffix == ".jsonl" and path.is_file():
        return row_files(path, KEYS, options, tally)
    if (path / "captions.jsonl").is_file():
        return _folder(path, options, tally)
    raise DataError(f"{path}: neither {TOKENS} nor captions.jsonl is there.", "Give the folder that holds one of them.")


def read_30k(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of Flickr30k; `path` is the folder, the token file, or Kaggle's table."""
    for file in (path, *(path / name for name in TOKENS_30K)):
        if file.suffix == ".token" and file.is_file():
            return _by_photo(file, _token_lines(file), PLACES_30K, options, tally)
    for file in (path, path / KAGGLE_30K, path / "flickr30k_images" / KAGGLE_30K):
        if file.suffix == ".csv" and file.is_file():
            return _by_photo(file, _piped_rows(file, tally), PLACES_30K, options, tally)
    raise DataError(f"{path}: neither {TOKENS_30K[0]} nor {KAGGLE_30K} is there.", "Give the folder that holds one of them.")


def _folder(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    yield from row_files(path / "captions.jsonl", KEYS, options, tally)
    extra = path / WITHOUT_IMAGES
    tally.use(extra)
    if extra.is_file() and (options.text_only or options.without_images):
        yield from row_files(extra, KEYS, options, tally)
    elif extra.is_file():
        tally.ignored[WITHOUT_IMAGES] += 1


# As published ---------------------------------------------------------------------------------------------------------------


Caption = tuple[str, int, str]  # name of the photo, number of the caption, caption


def _by_photo(
    file: Path,
    rows: "Iterator[tuple[int, Caption | RecordError]]",
    places: tuple[str, ...],
    options: SourceOptions,
    tally: Tally,
) -> Iterator[Item | Skip]:
    """Yields one item per photo, in the order of the file; its captions may lie anywhere in it."""
    refuse_mapping(options, f"{file.name} and its split files")
    root = image_root(options, file.parent, *places)
    tally.use(file, *(file.parent / name for name in SPLIT_FILES.values()))
    splits = _read_splits(file.parent)
    captions: dict[str, list[tuple[int, str]]] = {}
    first_line: dict[str, int] = {}
    for line, row in rows:
        if isinstance(row, RecordError):
            yield Skip(f"{file.name}:{line}", None, row.reason, row.message)
            continue
        name, index, caption = row
        captions.setdefault(name, []).append((index, caption.strip()))
        first_line.setdefault(name, line)
    for name in sorted(splits.keys() - captions.keys()):
        tally.ignore("photo_without_captions", name)
    for name, numbered in captions.items():
        yield _photo(name, [text for _, text in sorted(numbered)], splits, root, f"{file.name}:{first_line[name]}")


def _token_lines(file: Path) -> "Iterator[tuple[int, Caption | RecordError]]":
    for line in text_lines(file):
        head, tab, caption = line.text.partition("\t")
        name, mark, index = head.rpartition("#")
        if line.fault is None and tab and mark and index.isdecimal():
            yield line.number, (name, int(index), caption)
        elif line.text.strip() or line.fault is not None:
            yield line.number, line.fault or RecordError("bad_line", "a line is 'name.jpg#k<TAB>caption'")


def _kaggle_rows(file: Path) -> "Iterator[tuple[int, Caption | RecordError]]":
    rows = CsvRows(file, "image")
    if rows.header != ["image", "caption"]:
        raise DataError(f"{file}:1: the columns are {', '.join(rows.header)}, not image,caption.", "Read it with --format csv.")
    for number, where, row in rows:
        line = int(where.rpartition(":")[2])
        if isinstance(row, RecordError):
            yield line, row
        else:
            yield line, (row["image"], number, row["caption"])


def _piped_rows(file: Path, tally: Tally) -> "Iterator[tuple[int, Caption | RecordError]]":
    lines = iter(text_lines(file))
    header = next(lines, None)
    if header is None or not _PIPED_HEADER.match(header.text):
        raise DataError(f"{file}:1: the header is not image_name| comment_number| comment.", "Read it with --format csv.")
    for line in lines:
        found = None if line.fault is not None else _PIPED.match(line.text)
        if found is not None:
            if not found["pipe"]:
                tally.notes["separator_repaired"] += 1
            yield line.number, (found["name"], int(found["number"]), found["caption"])
        elif line.text.strip() or line.fault is not None:
            yield line.number, line.fault or RecordError("bad_line", "a line is 'name.jpg| k| caption'")


def _photo(name: str, captions: list[str], splits: dict[str, str], root: ImageRoot, where: str) -> Item:
    split = splits.get(name, "other" if splits else "train")
    record = Record(id=name.removesuffix(".jpg"), captions=tuple(captions), split=split)
    return Item(record, (ImageInRoot(root, name),), where)


def _read_splits(folder: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, file_name in SPLIT_FILES.items():
        if (folder / file_name).is_file():
            for line in text_lines(folder / file_name):
                name = line.text.strip()
                if name and splits.setdefault(name, split) != split:
                    raise DataError(f"{folder / file_name}:{line.number}: {name} is in split {splits[name]!r} already.")
    return splits

"""Flickr8k, as published and as jsonl.

Published: `Flickr8k.token.txt` (lines `name.jpg#k<TAB>caption`) beside the split files `Flickr_8k.trainImages.txt`,
`.devImages.txt` and `.testImages.txt`; a photo in none of them gets the split "other". As jsonl: `captions.jsonl` with `image`,
`split` and `captions`. With `--text-only` or `--without-images`, `captions_without_images.jsonl` is read as well.
"""

from collections.abc import Iterator
from pathlib import Path

from sightline.data.readers.base import ImageInRoot, Item, Skip, SourceOptions, Tally, refuse_mapping
from sightline.data.readers.roots import ImageRoot
from sightline.data.readers.rows import image_root, row_files
from sightline.data.readers.strict_json import text_lines
from sightline.errors import DataError, RecordError
from sightline.types import Record

KEYS = {"captions": "captions", "id": "id", "image": "image", "split": "split"}
TOKENS = "Flickr8k.token.txt"
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
PLACES = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "../Flicker8k_Dataset", "../Flickr8k_Dataset")
WITHOUT_IMAGES = "captions_without_images.jsonl"


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of either form; `path` is the folder, the token file, or a jsonl file."""
    for tokens in (path, path / TOKENS, path / "Flickr8k_text" / TOKENS):
        if tokens.name == TOKENS and tokens.is_file():
            return _published(tokens, options)
    if path.suffix == ".jsonl" and path.is_file():
        return row_files(path, KEYS, options, tally)
    if (path / "captions.jsonl").is_file():
        return _folder(path, options, tally)
    raise DataError(f"{path}: neither {TOKENS} nor captions.jsonl is there.", "Give the folder that holds one of them.")


def _folder(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    yield from row_files(path / "captions.jsonl", KEYS, options, tally)
    extra = path / WITHOUT_IMAGES
    if extra.is_file() and (options.text_only or options.without_images):
        yield from row_files(extra, KEYS, options, tally)
    elif extra.is_file():
        tally.ignored[WITHOUT_IMAGES] += 1


# As published ---------------------------------------------------------------------------------------------------------------


def _published(tokens: Path, options: SourceOptions) -> Iterator[Item | Skip]:
    """One item per photo, in the order of the token file; its captions may lie anywhere in the file."""
    refuse_mapping(options, f"{TOKENS} and its split files")
    root = image_root(options, tokens.parent, *PLACES)
    splits = _read_splits(tokens.parent)
    captions: dict[str, list[tuple[int, str]]] = {}
    first_line: dict[str, int] = {}
    for line in text_lines(tokens):
        head, tab, caption = line.text.partition("\t")
        name, mark, index = head.rpartition("#")
        if line.fault is not None or not tab or not mark or not index.isdecimal():
            fault = line.fault or RecordError("bad_line", "a line is 'name.jpg#k<TAB>caption'")
            if line.text.strip() or line.fault is not None:
                yield Skip(f"{tokens.name}:{line.number}", None, fault.reason, fault.message)
            continue
        captions.setdefault(name, []).append((int(index), caption.strip()))
        first_line.setdefault(name, line.number)
    for name, numbered in captions.items():
        yield _photo(name, [text for _, text in sorted(numbered)], splits, root, f"{tokens.name}:{first_line[name]}")


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

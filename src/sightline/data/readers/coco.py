"""COCO: captions json, instances json, Karpathy's split file, and captions as jsonl with objects.

The annotations of an image lie anywhere in the file, so captions and boxes are gathered by image first, as a stream: masks and
whatever else is large are dropped as they pass. Boxes become fractions of the image; the places of crowd boxes in
`record.boxes` are listed in `meta["crowd"]`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.data.readers.base import (
    ImageInRoot,
    Item,
    Skip,
    SourceOptions,
    Tally,
    count_ignored,
    make_id,
    refuse_mapping,
    shown,
    split_name,
)
from sightline.data.readers.boxes import kept_boxes, pixel_fractions
from sightline.data.readers.roots import ImageRoot
from sightline.data.readers.rows import image_root, items, json_rows, row_files
from sightline.data.readers.strict_json import JsonStream
from sightline.data.readers.turns import texts
from sightline.errors import DataError, RecordError
from sightline.types import Record

KEYS = {
    "boxes": "objects",
    "captions": "captions",
    "id": "coco_id",
    "image": "image",
    "meta.license": "license",
    "split": "split",
}
KARPATHY_SPLITS = {"restval": "train"}  # 113,287 / 5,000 / 5,000, as every published number uses them
_SPLIT = re.compile(r"(train|val|test)[0-9]{4}")
_ANNOTATIONS = re.compile(r"(captions|instances)_(.+)\.json\Z")


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a file, or of every captions and instances file in a folder (or in its `annotations/`)."""
    if path.suffix in (".jsonl", ".ndjson"):
        yield from row_files(path, KEYS, options, tally)
    elif path.is_file():
        tally.use(path)
        yield from _json(path, options, tally)
    elif (path / "captions.jsonl").is_file():
        yield from row_files(path / "captions.jsonl", KEYS, options, tally)
    else:
        for file in _annotation_files(path):
            tally.use(file)
            yield from _json(file, options, tally)


def _annotation_files(path: Path) -> list[Path]:
    """Captions files, and instances files that have no captions file of the same name."""
    for folder in (path, path / "annotations"):
        found = sorted(folder.glob("*.json")) if folder.is_dir() else []
        matches = {match.groups(): file for file in found if (match := _ANNOTATIONS.match(file.name))}
        chosen = [file for (kind, name), file in matches.items() if kind == "captions" or ("captions", name) not in matches]
        karpathy = [file for file in found if file.name.startswith("dataset_")]
        if chosen or karpathy:
            return karpathy or chosen
    raise DataError(f"{path}: no captions_*.json, instances_*.json, dataset_*.json or captions.jsonl in it.", "Give the file.")


# Captions and instances -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Annotations:
    """What one or two annotation files say, by image id."""

    images: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    captions: dict[int | str, list[str]] = field(default_factory=dict)
    boxes: dict[int | str, list[tuple[object, object, object]]] = field(default_factory=dict)  # category, bbox, crowd
    categories: dict[object, str] = field(default_factory=dict)
    licences: dict[object, str] = field(default_factory=dict)


def _json(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    refuse_mapping(options, "COCO's annotation files")
    if _is_karpathy(path):
        yield from _karpathy(path, options, tally)
        return
    match = _ANNOTATIONS.match(path.name)
    name = match[2] if match else ""
    found = _Annotations()
    yield from _gather(path, found, tally)
    beside = path.with_name(f"instances_{name}.json")
    if match and match[1] == "captions" and beside.is_file():
        tally.use(beside)
        yield from _gather(beside, found, tally)
    known = _SPLIT.match(name)
    split = known[1] if known else split_name(name)
    root = image_root(options, path.parent, name or ".", f"../{name}" if name else ".", "images", "../images")
    for index, (image_id, image) in enumerate(found.images.items()):
        where = f"{path.name} images[{index}]"
        try:
            yield _image_item(image_id, image, found, split, root, where, tally)
        except RecordError as error:
            yield Skip(where, str(image_id), error.reason, error.message)
    for image_id in sorted((found.captions.keys() | found.boxes.keys()) - found.images.keys(), key=str):
        yield Skip(path.name, str(image_id), "unknown_image", "annotations name an image that is not in 'images'")


def _is_karpathy(path: Path) -> bool:
    """Returns whether images come with their sentences (Karpathy's files) instead of a list of annotations."""
    with JsonStream(path) as stream:
        if stream.peek() != "{":
            raise DataError(f"{path}: an object with 'images' is expected, as in COCO's annotation files.")
        for key in stream.members():
            if key == "images" and stream.peek() == "[":
                for _ in stream.array():
                    first = stream.value()
                    return isinstance(first, dict) and "sentences" in first
                continue
            if key == "annotations":
                return False
            stream.value()
    return False


def _gather(path: Path, found: _Annotations, tally: Tally) -> Iterator[Skip]:
    """Fills `found` from a file; yields what cannot be attributed to an image."""
    seen: set[str] = set()
    with JsonStream(path) as stream:
        if stream.peek() != "{":
            raise DataError(f"{path}: an object with 'images' and 'annotations' is expected.")
        for key in stream.members():
            seen.add(key)
            if key not in ("images", "annotations") or stream.peek() != "[":
                _small_member(key, stream.value(), found, tally)
                continue
            for index in stream.array():
                row, where = stream.value(), f"{path.name} {key}[{index}]"
                try:
                    if key == "images":
                        _add_image(row, found, tally)
                    else:
                        _add_annotation(row, found, tally, where)
                except RecordError as error:
                    yield Skip(where, None, error.reason, error.message)
        stream.end()
    if not {"images", "annotations"} <= seen:
        raise DataError(f"{path}: 'images' or 'annotations' is missing; it has {', '.join(sorted(seen))}.")


def _small_member(key: str, value: Any, found: _Annotations, tally: Tally) -> None:
    names = {"categories": found.categories, "licenses": found.licences}.get(key)
    if names is None:
        tally.ignored[key] += 1
        return
    for row in value if isinstance(value, list) else ():
        if isinstance(row, dict) and isinstance(row.get("id"), int | str):
            names[row["id"]] = str(row.get("name"))
            count_ignored(row, ("id", "name"), tally, f"{key}.")
        else:
            tally.ignored[key] += 1


def _key(row: Any, name: str) -> int | str:
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise RecordError("bad_id", f"{name!r} must be a whole number or a text in {shown(row)}")
    return value


def _add_image(row: Any, found: _Annotations, tally: Tally) -> None:
    image_id = _key(row, "id")
    kept = {name: row.get(name) for name in ("file_name", "width", "height", "license")}
    if image_id in found.images and found.images[image_id] != kept:
        raise RecordError("duplicate_id", f"image {image_id} stands twice in 'images'")
    if image_id not in found.images:
        count_ignored(row, ("id", *kept), tally, "images.")
    found.images[image_id] = kept


def _add_annotation(row: Any, found: _Annotations, tally: Tally, where: str) -> None:
    image_id = _key(row, "image_id")
    if "caption" in row:
        if not isinstance(row["caption"], str):
            raise RecordError("bad_caption", f"'caption' must be a text, got {shown(row['caption'])}")
        found.captions.setdefault(image_id, []).append(row["caption"].strip())
    if "bbox" in row:
        found.boxes.setdefault(image_id, []).append((row.get("category_id"), row["bbox"], row.get("iscrowd", 0)))
    if "caption" not in row and "bbox" not in row:
        tally.ignore("annotation_not_used", where)
    count_ignored(row, ("id", "image_id", "caption", "bbox", "category_id", "iscrowd"), tally, "annotations.")


def _image_item(
    image_id: int | str, image: dict[str, Any], found: _Annotations, split: str, root: ImageRoot, where: str, tally: Tally
) -> Item:
    if not isinstance(image["file_name"], str):
        raise RecordError("bad_image", f"'file_name' must be a text, got {shown(image['file_name'])}")
    size = _size(image)
    pairs = []
    for category, bbox, crowd in found.boxes.get(image_id, []):
        if not isinstance(category, int | str) or category not in found.categories:
            raise RecordError("unknown_category", f"category {shown(category)} is not in 'categories'")
        pairs.append((found.categories[category], pixel_fractions(bbox, size), bool(crowd)))
    boxes, crowd = kept_boxes(pairs, tally)
    meta: dict[str, Any] = dict(crowd)
    captions = found.captions.get(image_id, [])
    if not found.captions and boxes:  # an instances file alone: the names of what is there are all the text there is
        captions, meta["caption_from"] = [", ".join(sorted({box.label for box in boxes}))], "labels"
    if isinstance(image["license"], int | str) and image["license"] in found.licences:
        meta["license"] = found.licences[image["license"]]
    record = Record(id=str(image_id), captions=tuple(captions), boxes=boxes, split=split, meta=meta)
    return Item(record, (ImageInRoot(root, image["file_name"]),), where, sizes=(size,) if size else ())


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    match image.get("width"), image.get("height"):
        case int(width), int(height) if 0 < width < 10**9 and 0 < height < 10**9:
            return width, height
    return None


# Karpathy's split file ------------------------------------------------------------------------------------------------------


def _karpathy(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    root = image_root(options, path.parent, "images", "..", "../images")

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        name, folder, sentences = values.get("filename"), values.get("filepath"), values.get("sentences")
        if not isinstance(name, str) or not isinstance(sentences, list):
            raise RecordError("bad_row", "a row has 'filename' and 'sentences'")
        captions = texts([row.get("raw") if isinstance(row, dict) else None for row in sentences], "sentences")
        split = split_name(values.get("split"))
        meta = {"karpathy_split": split} if split in KARPATHY_SPLITS else {}
        record = Record(
            id=make_id(values.get("cocoid", values.get("imgid")), number),
            captions=captions,
            split=KARPATHY_SPLITS.get(split, split),
            meta=meta,
        )
        used = ("filename", "filepath", "sentences", "split", "cocoid", "imgid", "sentids")
        count_ignored(values, used, tally)
        for sentence in sentences:
            count_ignored(sentence, ("raw", "imgid", "sentid"), tally, "sentences.")
        return Item(record, (ImageInRoot(root, f"{folder}/{name}" if isinstance(folder, str) and folder else name),), where)

    return items(json_rows(path, tally, "images"), build)

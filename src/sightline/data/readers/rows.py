"""Sources that are rows of named values: where the file is, its rows, and what each of our fields is called in them.

`TableRow` is the one truth of field mapping: a format states its keys once, `--map` overrides them, and what nobody asked for is
counted as ignored. A row that cannot be used becomes a Skip; the rows after it are read.
"""

import base64
import binascii
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any

from sightline.data.readers.archives import open_root
from sightline.data.readers.base import (
    ImageInRoot,
    ImageRef,
    Item,
    Skip,
    SourceOptions,
    Tally,
    count_ignored,
    make_id,
    shown,
    split_name,
)
from sightline.data.readers.boxes import kept_boxes, labelled_box
from sightline.data.readers.roots import FirstOf, ImageRoot
from sightline.data.readers.strict_json import JsonStream, json_lines, parse_json
from sightline.data.readers.turns import TEXT_FIELDS, row_text
from sightline.errors import DataError, RecordError
from sightline.types import Box, Record

_NONE: Mapping[str, str] = MappingProxyType({})
USED_BELOW: Mapping[str, tuple[str, ...]] = {  # our field -> what is read of each object in its list
    "answer": ("answer",),
    "boxes": ("category", "bbox_xywh_frac", "crowd", "text", "box_xyxy_frac"),
    "conversations": ("from", "value", "role", "content"),
    "messages": ("role", "content"),
    "texts": ("user", "assistant"),
}
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
Keys = Mapping[str, str | tuple[str, ...]]
Numbered = tuple[int, str, dict[str, Any] | RecordError]  # row number, where, the row or what is wrong with it


class TableRow:
    """One row, read through our field names.

    Args:
        values: the row as the source has it.
        keys: our field -> the source's key, or the keys of which the first that is there is taken.
        options: whose `mapping` overrides `keys`.
        templates: our field -> a text with `{key}`s of the row, used where all of them are there; for paths that the row only
            implies and for questions that it leaves unsaid. A key that is mapped switches its template off.
    """

    def __init__(self, values: Mapping[str, Any], keys: Keys, options: SourceOptions, templates: Mapping[str, str] = _NONE) -> None:
        self.values = values
        self.keys: Keys = {**keys, **options.mapping}
        self._templates = {name: text for name, text in templates.items() if name not in options.mapping}
        self._used: set[str] = set()

    def get(self, name: str) -> Any:
        """Returns the value of our field; None when the row lacks it or it is switched off."""
        keys = self.keys.get(name, "")
        value = None
        for key in all_keys(keys):
            found = self.values.get(key) if key else None
            if value is None or found is None or found == value:  # another value under a second name is not used, and counted
                self._used.add(key)
                value = found if value is None else value
        return self._filled(name, value)

    def _filled(self, name: str, value: Any) -> Any:
        template = self._templates.get(name)
        if template is None or not (value is None or isinstance(value, str)):
            return value
        keys = [key for _, key, _, _ in Formatter().parse(template) if key]
        self._used.update(keys)
        found = {key: self.values.get(key) for key in keys}
        return value if None in found.values() else template.format_map(found)

    def id(self, number: int, fallback: str | None = None) -> str:
        """Returns the row's id, or else `fallback`, or else its number; `--map id=` numbers all rows.

        Raises:
            RecordError: reason `bad_id`.
        """
        value = self.get("id")
        return make_id(fallback if value is None and self.keys.get("id") else value, number)

    def item(
        self,
        number: int,
        where: str,
        root: ImageRoot,
        tally: Tally,
        *,
        is_base64: bool = False,
        fallback_id: str | None = None,
        split: str = "",
    ) -> Item:
        """Returns the row as an item; keys that nothing asked for are counted as ignored.

        Args:
            number: place of the row in the source.
            where: the same for people.
            root: where image names lead.
            is_base64: an image may be base64 text.
            fallback_id: the id of a row that has none.
            split: the split of a row that names none.

        Raises:
            RecordError: a field is missing or of the wrong form.
        """
        images = image_refs(self.get("image"), root, is_base64)
        text = row_text(self.get, len(images))
        boxes, crowd = self._boxes(tally)
        pixel_box = self.get("pixel_box")
        record = Record(
            id=self.id(number, fallback_id),
            captions=text.captions,
            messages=text.messages,
            answers=text.answers,
            boxes=boxes,
            split=split_name(self.get("split") or split),
            meta={**text.meta, **crowd, **self._meta()},
        )
        count_ignored(self.values, self._used, tally)
        self._count_ignored_below(tally)
        if text.has_images_first:
            tally.notes["images_put_first"] += 1
        label = (*text.captions, *text.answers, "")[0]
        return Item(record, images, where, pixel_boxes=() if pixel_box is None else ((label, pixel_box),))

    def _count_ignored_below(self, tally: Tally) -> None:
        """Counts the fields of turns, answers and objects that are not used, as `KEY.FIELD`."""
        for name, used in USED_BELOW.items():
            for key in all_keys(self.keys.get(name, "")):
                entries = self.values.get(key) if key in self._used else None
                for entry in entries if isinstance(entries, list | tuple) else ():
                    if isinstance(entry, dict):
                        count_ignored(entry, used, tally, f"{key}.")

    def _boxes(self, tally: Tally) -> tuple[tuple[Box, ...], dict[str, list[int]]]:
        value = self.get("boxes")
        if value is None:
            return (), {}
        if not isinstance(value, list):
            raise RecordError("bad_boxes", f"objects are a list, got {shown(value)}")
        return kept_boxes([labelled_box(item) for item in value], tally)

    def _meta(self) -> dict[str, Any]:
        """Keys that the format keeps though training does not read them."""
        kept = {name.removeprefix("meta."): self.get(name) for name in self.keys if name.startswith("meta.")}
        return {name: value for name, value in kept.items() if value is not None}


def items(rows: Iterable[Numbered], build: Callable[[dict[str, Any], int, str], Item]) -> Iterator[Item | Skip]:
    """Builds the item of each row; a RecordError becomes a Skip."""
    for number, where, row in rows:
        try:
            if isinstance(row, RecordError):
                raise row
            yield build(row, number, where)
        except RecordError as error:
            yield Skip(where, _known_id(row), error.reason, error.message)


def _known_id(row: object) -> str | None:
    value = row.get("id") if isinstance(row, dict) else None
    return str(value)[:200] if isinstance(value, str | int) else None


def require_columns(names: Collection[str], keys: Keys, options: SourceOptions, place: str) -> None:
    """Refuses a table that has no column for images or none for text, which would else be read as text, or not at all.

    Args:
        names: columns of the table.
        keys: of the format, before `--map`.
        place: the file, for the message.

    Raises:
        DataError: names the columns there are and the option to use.
    """
    named = {**keys, **options.mapping}
    has = f"it has {', '.join(map(repr, names))}."
    for name, key in options.mapping.items():
        if key and key not in names:
            raise DataError(f"{place}: no column {key!r}, which --map {name}={key} names; {has}")
    for name, fields in (("image", ("image",)), ("caption", TEXT_FIELDS)):
        wanted = [key for field in fields for key in all_keys(named.get(field, "")) if key]
        if not set(wanted) & set(names) and not (name == "image" and (options.text_only or not wanted)):
            alone = ", or --map image= if it is text alone" if name == "image" else ""
            missing = " or ".join(map(repr, wanted))
            raise DataError(f"{place}: no column {missing}; {has}", f"Name the column: --map {name}=COLUMN{alone}.")


def all_keys(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the keys that a field may have."""
    return (keys,) if isinstance(keys, str) else keys


# Files ----------------------------------------------------------------------------------------------------------------------


def find_file(path: Path, names: Sequence[str], suffixes: Sequence[str], tally: Tally) -> Path:
    """Returns the file that `path` means: itself, or in a folder the first of `names`, or else the only one with such a suffix.

    Raises:
        DataError: there is none, or more than one.
    """
    file = _found_file(path, names, suffixes)
    tally.use(file)
    return file


def _found_file(path: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist.", "Give the file or folder to read.")
    for name in names:
        if (path / name).is_file():
            return path / name
    found = sorted(file.name for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    if len(found) == 1:
        return path / found[0]
    kinds = ", ".join(names) or " or ".join(f"*{suffix}" for suffix in suffixes)
    what = f"several files could be meant: {', '.join(found[:10])}" if found else f"no {kinds} in it"
    raise DataError(f"{path}: {what}.", "Give the file itself.")


def json_rows(path: Path, tally: Tally, member: str = "") -> Iterator[Numbered]:
    """Yields the rows of a JSON array, of a member of a JSON object that is an array, or of JSON lines (by the suffix).

    Args:
        path: the file.
        tally: where other members of the object are counted.
        member: name of the list in an object; `*` when the object's members are the rows, each with its key as `id`.

    Raises:
        DataError: the file is damaged or has another form.
    """
    if path.suffix.lower() != ".json":
        for count, (number, row) in enumerate(json_lines(path)):
            yield count, f"{path.name}:{number}", row
        return
    with JsonStream(path) as stream:
        if stream.peek() == "[":
            yield from _array_rows(stream)
        elif member == "*" and stream.peek() == "{":
            yield from _member_rows(stream)
        elif member and stream.peek() == "{":
            found = False
            for key in stream.members():
                if key == member and stream.peek() == "[":
                    found = True
                    yield from _array_rows(stream)
                else:
                    stream.value()
                    tally.ignored[key] += 1
            if not found:
                raise DataError(f"{path}: the object has no list {member!r}.")
        else:
            raise DataError(f"{path}: a list of rows is expected.", "A file with one object per line must be named *.jsonl.")
        stream.end()


def _array_rows(stream: JsonStream) -> Iterator[Numbered]:
    for index in stream.array():
        where = f"{stream.path.name}[{index}]"
        row = stream.value()
        if isinstance(row, dict):
            yield index, where, row
        else:
            yield index, where, RecordError("not_an_object", f"the row is {shown(row)}, not an object")


def row_files(file: Path, keys: Keys, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a JSON file whose rows need nothing but their keys; a row without id is called after its image."""
    root = image_root(options, file.parent)
    tally.use(file)

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        row = TableRow(values, keys, options)
        name = row.get("image")
        return row.item(number, where, root, tally, fallback_id=Path(name).stem if isinstance(name, str) else None)

    return items(json_rows(file, tally), build)


def _member_rows(stream: JsonStream) -> Iterator[Numbered]:
    for index, key in enumerate(stream.members()):
        where = f"{stream.path.name}[{key!r}]"
        row = stream.value()
        if isinstance(row, dict):
            yield index, where, {"id": key, **row}
        else:
            yield index, where, RecordError("not_an_object", f"the row is {shown(row)}, not an object")


# Files beside an image ------------------------------------------------------------------------------------------------------


def add_side_file(values: dict[str, Any], name: str, data: bytes) -> None:
    """Adds what a `.txt` (under that key) or `.json` (its fields) beside an image says of it to the values of its row.

    Raises:
        RecordError: reasons `bad_utf8`, `bad_json`, `not_an_object`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("bad_utf8", f"byte {error.start} of {name} is not UTF-8") from error
    if not name.lower().endswith(".json"):
        values[".txt"] = text
        return
    fields = parse_json(text)
    if not isinstance(fields, dict):
        raise RecordError("not_an_object", f"{name} is no JSON object")
    for key, value in fields.items():
        values.setdefault(key, value)


# Images ---------------------------------------------------------------------------------------------------------------------


def image_root(options: SourceOptions, folder: Path, *others: str) -> ImageRoot:
    """Returns `--images`, or else `folder` and then those of `others` (relative to it) that exist."""
    if options.images is not None:
        return open_root(options.images)
    places = [folder, *(folder / name for name in others)]
    return FirstOf([open_root(place) for place in places if place.exists()])


def image_refs(value: Any, root: ImageRoot, is_base64: bool = False) -> tuple[ImageRef, ...]:
    """Returns the images of a row: a path, bytes, `{"bytes", "path"}` as in the `datasets` library, or a list of them.

    Raises:
        RecordError: reasons `image_empty` (empty), `bad_image` (another type), `bad_base64`.
    """
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(ref for item in value for ref in _one_image(item, root, is_base64))
    return _one_image(value, root, is_base64)


def _one_image(value: Any, root: ImageRoot, is_base64: bool) -> tuple[ImageRef, ...]:
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if value is None or value in ("", b""):
        raise RecordError("image_empty", "the image is empty")
    if isinstance(value, bytes):
        return (value,)
    if not isinstance(value, str):
        raise RecordError("bad_image", f"an image is a path or bytes, got {shown(value)}")
    if is_base64 and "." not in value:  # the alphabet of base64 has no dot, a path to an image has one before its suffix
        return (_from_base64(value),)
    return (ImageInRoot(root, value),)


def _from_base64(text: str) -> bytes:
    head, comma, data = text.partition(",")
    if comma and head.startswith("data:image/") and head.endswith(";base64"):
        text = data
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError("bad_base64", f"not base64: {error}") from error

"""Shared by all readers of source formats: items, skips, options, and common conversions.

A reader is a function `read(path, options, tally)` that yields an `Item` for each record and a `Skip` for each record that it
cannot use; it raises DataError where a file as a whole is damaged. It opens no images but names their locations. Fields that a
format does not use are counted in `tally.ignored` under their name. Files, archive members and rows that no record uses are
counted there under a reason, with their first names (`Tally.ignore`, `Tally.close`).
"""

import hashlib
import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline.data.readers.roots import ImageRoot, has_image_suffix, is_hidden
from sightline.errors import RecordError, UsageError
from sightline.types import Record

DEFAULT_SPLIT = "train"
LISTED_NAMES = 20  # names kept for each reason of `Tally.ignored`
SPLIT_NAMES = {"dev": "val", "valid": "val", "validation": "val"}  # other names of the validation split


@dataclass(frozen=True, slots=True)
class ImageInRoot:
    """An image by its name under a root (a folder or an archive)."""

    root: ImageRoot
    name: str


ImageRef = ImageInRoot | bytes


@dataclass(frozen=True, slots=True)
class Item:
    """A record before its images are checked and stored.

    Attributes:
        record: the record without `images` and `image_info`.
        images: locations or bytes of the images, in the order of the record's image parts.
        where: `file:line` or `file[row]`, for messages.
        sizes: width and height that the source states for each image; empty where it states none.
        hashes: sha256 that the source states for each image; empty where it states none.
        pixel_boxes: label and `[x, y, width, height]` in pixels of the first image, for sources that do not know its size.
        has_shown_boxes: boxes refer to the image as shown; otherwise to its stored pixels, before the turn that EXIF asks for.
    """

    record: Record
    images: tuple[ImageRef, ...]
    where: str
    sizes: tuple[tuple[int, int], ...] = ()
    hashes: tuple[str, ...] = ()
    pixel_boxes: tuple[tuple[str, Any], ...] = ()
    has_shown_boxes: bool = False


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that cannot be used: one line of `skipped.jsonl`."""

    where: str
    id: str | None
    reason: str
    detail: str


@dataclass(slots=True)
class Tally:
    """Counts what a reader does not use: fields, files, archive members and rows.

    A reader registers the files that it reads with `use`; the caller registers the images of its items with `use_images`, and
    calls `close` at the end, which counts every unregistered file and archive member. Uses 8 bytes per name.

    Attributes:
        ignored: fields that nothing reads by name; files, members and rows that no record used by reason.
        ignored_names: the first names of each such reason.
        notes: repairs inside records that were kept.
    """

    ignored: Counter[str] = field(default_factory=Counter)
    ignored_names: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    _used: array = field(default_factory=lambda: array("q"))
    _roots: dict[int, ImageRoot] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)  # that hold an image in use

    def ignore(self, reason: str, name: str) -> None:
        """Counts a file, member or row that no record uses."""
        self.ignored[reason] += 1
        names = self.ignored_names.setdefault(reason, [])
        if len(names) < LISTED_NAMES:
            names.append(name.encode("utf-8", "replace").decode())

    def use(self, *files: Path) -> None:
        """Registers files that are read, by their own names and by those of the files that links lead to."""
        for file in files:
            self._used.extend({hash(os.path.realpath(file)), hash(os.path.join(os.path.realpath(file.parent), file.name))})

    def use_images(self, refs: Iterable[ImageRef]) -> None:
        """Registers the images of an item."""
        for ref in refs:
            if isinstance(ref, ImageInRoot):
                self._roots.setdefault(id(ref.root), ref.root)
                for place in ref.root.locations(ref.name):
                    self._used.append(hash(place))
                    self._folders.add(os.path.dirname(place))

    def close(self, source: Path, images: Path | None, leave_out: Path, *, with_images: bool = True) -> None:
        """Counts what is not registered: every file in folders, every member of archives, in other folders with a used image the
        other files, and beside a source that is a single file the other files that are no images.

        Args:
            source, images: the source and `--images`; folders are looked through with all that lies below.
            leave_out: a folder below them that is not looked into (where this run writes).
            with_images: count images; False where they were left out on purpose.
        """
        used = np.unique(np.array(self._used, dtype=np.int64))

        def ignore(place: str, name: str, reason: str) -> None:
            at = bisect_left(used, hash(place))
            if (at == len(used) or used[at] != hash(place)) and (with_images or not has_image_suffix(name)):
                self.ignore(unused_reason(name, reason), name)

        walked: set[str] = set()
        for base in dict.fromkeys(os.path.realpath(path) for path in (source, images) if path is not None and path.is_dir()):
            for folder, below, files in os.walk(base):
                if folder in walked:
                    below.clear()
                    continue
                walked.add(folder)
                for name in [name for name in below if is_hidden(name)]:
                    self.ignore("hidden", os.path.relpath(os.path.join(folder, name), base) + "/")
                below[:] = sorted(
                    name for name in below if not is_hidden(name) and os.path.join(folder, name) != os.path.realpath(leave_out)
                )
                for name in sorted(files):
                    place = os.path.join(folder, name)
                    ignore(place, os.path.relpath(place, base), "file_not_used")
        beside = os.path.dirname(os.path.realpath(source)) if source.is_file() else ""
        rest: set[str] = {*self._folders, beside} - walked - {""}
        for folder in sorted(rest):
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                place = os.path.join(folder, name)
                if os.path.isfile(place) and (folder in self._folders or not has_image_suffix(name)):
                    ignore(place, name, "file_beside_source" if folder == beside else "file_not_used")
        for root in {id(root): root for top in self._roots.values() for root in top.parts()}.values():
            for place, name in root.members():
                ignore(place, name, "member_not_used")


def unused_reason(name: str, of_others: str = "file_not_used") -> str:
    """Returns the reason under which an unused file or member is counted, by its name; `of_others` if it is no image."""
    return "hidden" if is_hidden(name) else "image_not_named" if has_image_suffix(name) else of_others


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of a source format.

    Attributes:
        images: folder, zip or tar that image names are relative to; None uses the default of the format.
        mapping: Sightline's field -> the source's key, as in `--map caption=text`; an empty key disables the field.
        subset, revision: of a data set of the Hub.
        text_only: leave images out and keep the text of captions.
        without_images: keep the names of images and look for no file.
        seed, count, level, size, questions, novel: for generators.
        characters: maximum length of a piece of a text file.
    """

    images: Path | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    subset: str = ""
    revision: str = ""
    text_only: bool = False
    without_images: bool = False
    seed: int = 0
    count: int = 1000
    level: int = 1
    size: int = 64
    questions: bool = False
    novel: bool = False
    characters: int = 256


Reader = Callable[[Path, SourceOptions, Tally], Iterator[Item | Skip]]


@dataclass(frozen=True, slots=True)
class Format:
    """A source format.

    Attributes:
        read: its reader.
        fields: Sightline's fields that `--map` may map to another key.
        licence: what is known of the licence of the published set.
        takes: a path that exists, a name (or path) that the reader looks up itself, or `-` for a generator.
        is_remote: images are URLs.
        groups_by_image: records of captions that have the same image become one, unless `--group none` is given.
    """

    read: Reader
    fields: tuple[str, ...] = ("id",)
    licence: str = ""
    takes: Literal["path", "name", "-"] = "path"
    is_remote: bool = False
    groups_by_image: bool = False

    def check_mapping(self, mapping: Mapping[str, str], name: str) -> None:
        """Checks that this format has the fields of `--map`.

        Raises:
            UsageError: names the fields there are.
        """
        for key in mapping:
            if key not in self.fields:
                raise UsageError(f"--map {key}=...: format {name!r} has no field {key!r}.", f"It has {', '.join(self.fields)}.")


# Common conversions ---------------------------------------------------------------------------------------------------------


def parse_mapping(arguments: Iterable[str]) -> dict[str, str]:
    """Returns `field=key` arguments as our field -> the source's key.

    Raises:
        UsageError: one is not of this form, or a field comes twice.
    """
    mapping: dict[str, str] = {}
    for argument in arguments:
        name, equals, key = argument.partition("=")
        if not equals or not name or name in mapping:
            raise UsageError(f"--map {argument!r} is not FIELD=KEY, or names a field twice.", "For example: --map caption=text")
        mapping[name] = key
    return mapping


def refuse_mapping(options: SourceOptions, what: str) -> None:
    """Refuses `--map` for formats whose file names are fixed.

    Raises:
        UsageError: `--map` was given.
    """
    if options.mapping:
        name, key = next(iter(options.mapping.items()))
        raise UsageError(f"--map {name}={key}: the names in {what} are fixed.", "Leave --map out.")


def make_id(value: Any, row: int) -> str:
    """Returns a record's id: the source's own when it is a text or a whole number, else its place in the source.

    Raises:
        RecordError: reason `bad_id`.
    """
    if value is None:
        return f"row-{row}"
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RecordError("bad_id", f"an id is a text or a whole number, got {value!r}")
    return str(value)


def split_name(value: Any) -> str:
    """Returns the split a source names; "dev", "valid" and "validation" are called "val", none at all "train".

    Raises:
        RecordError: reason `bad_split`.
    """
    if value is None or value == "":
        return DEFAULT_SPLIT
    if not isinstance(value, str):
        raise RecordError("bad_split", f"a split is a text, got {value!r}")
    return SPLIT_NAMES.get(value, value)


def count_ignored(row: Mapping[str, Any], used: Iterable[str], tally: Tally, prefix: str = "") -> None:
    """Counts the fields of a row that are not used."""
    for name in row.keys() - set(used):
        tally.ignored[f"{prefix}{name}"] += 1


def uniform(seed: int, *keys: object) -> float:
    """Returns a number in [0, 1) that depends only on the seed and the keys."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *keys))).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def shown(value: Any) -> str:
    """Formats a value for a message, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

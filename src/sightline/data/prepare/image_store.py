"""Checks images in child processes and stores the good ones under the name of their content.

`check_images` runs in a child that may crash, hang or eat its memory; its result goes into an `ImageState`, which all records
of the same file share. `ImageStore` puts the unchanged bytes under `images/ab/<sha256>.<suffix>` (a hard link where it can),
each content once, and keeps a journal, so that a resumed run does not decode stored images again.
"""

import filecmp
import hashlib
import os
import shutil
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sightline.data.images.opener import DEFAULT_LIMITS, ImageLimits
from sightline.data.images.reader import ImageFacts, check_image
from sightline.errors import RecordError
from sightline.runtime.storage import JsonLines, has_keys, sha256_file, whole_lines
from sightline.runtime.workers import TaskFailure
from sightline.types import ImageInfo

NAME_DIGITS = 16  # of sha256; two different images of one name are distinguished by their whole hash
REMEMBERED = 1 << 16  # files whose outcome is kept for the next record that names them
JOURNAL, JOURNAL_KEYS = "journal.jsonl", ("key", "checked", "name")
AHEAD = 1024  # journal lines within which an image is looked for


def check_images(sources: tuple[Path | bytes, ...], limits: ImageLimits = DEFAULT_LIMITS) -> tuple[ImageFacts | TaskFailure, ...]:
    """Checks several images per task: sending one small image to a child costs as much as decoding it."""
    found: list[ImageFacts | TaskFailure] = []
    for source in sources:
        try:
            found.append(check_image(source, limits))
        except RecordError as error:
            found.append(TaskFailure(error.reason, error.message))
    return tuple(found)


@dataclass(slots=True)
class ImageState:
    """State of one image: unchecked, valid, or failed; and the name under which it is stored."""

    key: str
    checked: ImageFacts | None = None
    failure: TaskFailure | None = None
    stored: str = ""
    is_sent: bool = False

    @property
    def is_known(self) -> bool:
        return self.checked is not None or self.failure is not None


def image_key(source: Path | bytes) -> str:
    """Returns a key that identifies an image file or bytes: path, size and modification time, or the sha256 of the bytes.

    Raises:
        RecordError: reason `image_missing`.
    """
    if isinstance(source, bytes):
        return f"sha256:{hashlib.sha256(source).hexdigest()}"
    try:
        status = source.stat()
    except OSError as error:
        raise RecordError("image_missing", f"{source}: {error.strerror}") from error
    return f"{source}|{status.st_size}|{status.st_mtime_ns}"


class RecentImages:
    """States of recently seen images, by key."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, ImageState] = OrderedDict()

    def get(self, key: str) -> ImageState:
        """Returns the state of an image; a new one for an unknown key."""
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = ImageState(key)
            if len(self._states) > REMEMBERED:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(key)
        return state


class ImageStore:
    """The `images/` folder of an unfinished dataset, with a journal of its images; a context manager.

    Args:
        folder: the dataset folder to be.
        work: where the journal lies.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self._incoming = work / "landing"
        self._incoming.unlink(missing_ok=True)
        self._journal = JsonLines(work / JOURNAL, checksum=True, check=has_keys(*JOURNAL_KEYS))
        self._earlier = _Journal(work / JOURNAL)

    def __enter__(self) -> "ImageStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()
        self._earlier.close()

    def recall(self, state: ImageState) -> bool:
        """Fills the state of an image from the journal of an earlier run; returns False where the image must be checked."""
        entry = self._earlier.find(state.key)
        if entry is None or len(entry["checked"]) != len(ImageFacts._fields):  # of a version that noted less
            return False
        checked, name = ImageFacts(*entry["checked"]), entry["name"]
        try:
            if sha256_file(self.folder / name) != checked.sha256:
                return False
        except OSError:
            return False
        state.checked, state.stored = checked, name
        return True

    def store(self, state: ImageState, source: Path | bytes) -> tuple[str, ImageInfo]:
        """Stores a valid image; returns its name in the dataset folder, and its sha256 and size.

        Raises:
            RecordError: reason `image_changed`: the file is not the one that was checked.
        """
        assert state.checked is not None
        checked = state.checked
        if not state.stored:
            state.stored = self._store(source, state)
            self._journal.write({"key": state.key, "checked": list(checked), "name": state.stored})
        return state.stored, ImageInfo(checked.sha256, checked.width, checked.height)

    def keep_only(self, used: np.ndarray) -> int:
        """Removes images that no record uses (left from an earlier run); returns the number of the others.

        Args:
            used: sorted `name_number` of every image in use.
        """
        count = 0
        for file in (self.folder / "images").glob("*/*"):
            number = name_number(file.name)
            place = int(np.searchsorted(used, number))
            if place < len(used) and used[place] == number:
                count += 1
            else:
                file.unlink()
        return count

    def _store(self, source: Path | bytes, state: ImageState) -> str:
        assert state.checked is not None
        sha256, suffix = state.checked.sha256, state.checked.suffix
        try:
            _link_or_copy(source, self._incoming)
            if isinstance(source, Path) and not _is_unchanged(source, self._incoming, state.key):
                raise RecordError("image_changed", f"{source} changed while it was read")
            for digits in (NAME_DIGITS, 64):
                name = f"images/{sha256[:2]}/{sha256[:digits]}.{suffix}"
                target = self.folder / name
                if not target.exists() or sha256_file(target)[:digits] != sha256[:digits]:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._incoming.replace(target)  # also replaces a truncated file of an earlier run
                    return name
                if filecmp.cmp(self._incoming, target, shallow=False):
                    self._incoming.unlink()
                    return name
            raise AssertionError("two files of one sha256")
        except BaseException:
            self._incoming.unlink(missing_ok=True)
            raise


def _link_or_copy(source: Path | bytes, target: Path) -> None:
    """Writes bytes, or hard-links a file, or copies it where links are not possible.

    The target must not exist: copying onto a hard link would overwrite the linked original.
    """
    if isinstance(source, Path):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links
    with target.open("xb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file, 1 << 20)


def _is_unchanged(source: Path, incoming: Path, key: str) -> bool:
    return image_key(source) == key and incoming.stat().st_size == int(key.split("|")[-2])


def name_number(name: str) -> np.uint64:
    """Returns the first 16 digits of a sha256 (or a file name made of it) as an integer: 8 bytes per image instead of 100."""
    return np.uint64(int(name[:NAME_DIGITS], 16))


class _Journal:
    """The journal of an earlier run, read sequentially in a window: images come in the same order again."""

    def __init__(self, path: Path) -> None:
        # What lies behind the present end is written in this try.
        self._lines = whole_lines(path, has_keys(*JOURNAL_KEYS), path.stat().st_size)
        self._window: deque[dict[str, Any]] = deque()

    def find(self, key: str) -> dict[str, Any] | None:
        self._window.extend(line for _, line in islice(self._lines, AHEAD - len(self._window)))
        for place, entry in enumerate(self._window):
            if entry["key"] == key:
                for _ in range(place + 1):
                    self._window.popleft()
                return entry
        return None

    def close(self) -> None:
        self._lines.close()

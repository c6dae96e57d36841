"""Roots of image names: a folder, a zip or a tar. A name cannot lead outside of its root.

A root returns the path of a regular file inside the folder, with links resolved, or the bytes of an archive member. Absolute names,
names with `..`, and links that lead outside are refused before any file is opened, unless they lead into a folder that the user
trusts (`--root`).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from sightline.errors import DataError, RecordError
from sightline.runtime.storage import safe_join, trusted_folders

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def has_image_suffix(name: str) -> bool:
    """Returns whether a name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Returns whether a part of a path begins with a dot or is macOS's `__MACOSX`: system files, not data."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


class ImageRoot(Protocol):
    """Finds images by name."""

    def fetch(self, name: str) -> Path | bytes:
        """Returns the path of an image's file, or its bytes.

        Raises:
            RecordError: reasons `path_outside_root`, `image_missing`, `image_not_a_file`.
        """
        ...

    def locations(self, name: str) -> tuple[str, ...]:
        """Returns where an image of that name would lie: paths of files, or `archive/member`. Nothing is opened."""
        ...

    def parts(self) -> Sequence["ImageRoot"]:
        """Returns the roots that this one looks into: itself, unless it is made of others."""
        ...

    def members(self) -> Iterator[tuple[str, str]]:
        """Returns location and name of each member of an archive; nothing for a folder."""
        ...


def with_slashes(name: str) -> str:
    """Returns a path of a file with slashes in place of backslashes, which tables made on Windows have. Never for a URL."""
    return name.replace("\\", "/")


def check_name(name: str) -> PurePosixPath:
    """Checks that a path is relative and stays within its root.

    Raises:
        RecordError: reason `path_outside_root`.
    """
    pure = PurePosixPath(name)
    is_unsafe = not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts
    if is_unsafe or not pure.parts or ":" in pure.parts[0]:
        message = f"image path {name!r} must be relative and stay inside the images folder, or lead into a folder of --root"
        raise RecordError("path_outside_root", message)
    return pure


class Folder:
    """Images in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._real = os.path.realpath(path)

    def locations(self, name: str) -> tuple[str, ...]:
        place = os.path.normpath(os.path.join(self._real, with_slashes(name)))
        return (place,) if place.startswith(os.path.join(self._real, "")) or trusted_folders() else ()

    def parts(self) -> Sequence[ImageRoot]:
        return (self,)

    def members(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def fetch(self, name: str) -> Path:
        name = with_slashes(name)
        if not trusted_folders():
            check_name(name)
        try:
            return safe_join(self.path, name).resolve(strict=True)
        except (DataError, OSError, RuntimeError, ValueError) as error:
            reason = _why(self.path, self.path / name)
            raise RecordError(reason, f"image {name!r}: {error}") from error


def _why(root: Path, path: Path) -> str:
    try:
        if not path.exists():
            return "image_missing"
        return "image_not_a_file" if path.resolve().is_relative_to(root.resolve()) else "path_outside_root"
    except (OSError, RuntimeError, ValueError):
        return "image_missing"  # a null character, a name too long for the file system, a loop of links


class FirstOf:
    """Several places; an image is taken from the first that has it."""

    def __init__(self, roots: Sequence[ImageRoot]) -> None:
        self.roots = roots

    def locations(self, name: str) -> tuple[str, ...]:
        return tuple(place for root in self.roots for place in root.locations(name))

    def parts(self) -> Sequence[ImageRoot]:
        return [part for root in self.roots for part in root.parts()]

    def members(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def fetch(self, name: str) -> Path | bytes:
        fault = RecordError("image_missing", f"image {name!r}: there is no images folder")
        for root in self.roots:
            try:
                return root.fetch(name)
            except RecordError as error:
                if error.reason != "image_missing":
                    raise
                fault = error
        raise fault

"""Images in a zip or tar, read in place: nothing is ever unpacked, so no name in an archive can write anything anywhere.

Only regular members with the suffix of an image are handed out, one at a time, with a cap on their size; links, devices and
folders are not there. A tar is read by a parser of our own, because Python's ends without a word at a header that is cut or
damaged: here the end marker must be found, and nothing but zeros after it, else the archive is refused with the number of members
before the damage. Tars or zips that were concatenated are refused too: reading on (`tar -i`) would also pass over members whose
bytes were lost.
"""

import contextlib
import os
import stat
import weakref
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sightline.data.readers.roots import Folder, ImageRoot, check_name, with_slashes
from sightline.data.readers.roots import has_image_suffix as has_image_suffix
from sightline.errors import DataError, RecordError, UsageError
from sightline.runtime.inputs import ARCHIVE_ERRORS, check_member_size, open_input, open_zip

MAX_MEMBER = 20_000_000  # bytes, as the image opener allows
MAX_EXTENDED = 1_000_000  # bytes of an extended header: long names and numbers
MAX_NAME = 4096
MAX_SIZE_DIGITS = 20  # of a size in an extended header
_BLOCK = 512
_SCAN = 1 << 20  # bytes read at a time behind the end marker
_DIRECTORY = b"5"
_REGULAR, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"0", b"L", b"K", b"x", b"g"


class Member(NamedTuple):
    """A regular member of a tar."""

    name: str
    offset: int
    size: int


class _Archive:
    """What zip and tar roots share: names, as the archive has them or without the one folder that all lie in."""

    def __init__(self, path: Path, names: Iterator[str], irregular: Sequence[str]) -> None:
        self.path = path
        self._real = os.path.realpath(path)
        self._irregular = irregular
        self._count: dict[str, int] = {}
        for name in names:
            self._count[name] = self._count.get(name, 0) + 1
        tops = {name.partition("/")[0] + "/" for name in self._count}
        self._top = tops.pop() if len(tops) == 1 and all("/" in name for name in self._count) else ""

    def find(self, name: str) -> str | None:
        """Returns the archive's own name of a member, None when it has none."""
        plain = os.path.normpath(with_slashes(name))
        return next((known for known in (name, plain, self._top + plain) if known in self._count), None)

    def locations(self, name: str) -> tuple[str, ...]:
        found = self.find(name)
        return (self._real,) if found is None else (self._real, f"{self._real}/{found}")

    def members(self) -> Iterator[tuple[str, str]]:
        for name in (*self._count, *self._irregular):
            yield f"{self._real}/{name}", f"{self.path.name}/{name}"

    def locate(self, name: str) -> str:
        """Returns the archive's own name of a member.

        Raises:
            RecordError: reasons `path_outside_root`, `image_missing`, `image_suffix`, `image_ambiguous`.
        """
        check_name(with_slashes(name))
        found = self.find(name)
        if found is None:
            raise RecordError("image_missing", f"{self.path.name} has no member {name!r}")
        if not has_image_suffix(found):
            raise RecordError("image_suffix", f"member {name!r} is not named like an image")
        if self._count[found] > 1:
            raise RecordError("image_ambiguous", f"{self.path.name} has {self._count[found]} members {found!r}")
        return found


class _ArchiveRoot(ImageRoot):
    """What zip and tar roots tell of their members."""

    _archive: _Archive

    def locations(self, name: str) -> tuple[str, ...]:
        return self._archive.locations(name)

    def parts(self) -> Sequence[ImageRoot]:
        return (self,)

    def members(self) -> Iterator[tuple[str, str]]:
        return self._archive.members()


# Zip ------------------------------------------------------------------------------------------------------------------------


class ZipRoot(_ArchiveRoot):
    """Images in a zip.

    Raises:
        DataError: it is no whole zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = open_zip(path)
        except ARCHIVE_ERRORS as error:
            raise DataError(f"{path} is not a whole zip: {error}.", "Is the download complete?") from error
        infos = [info for info in self._zip.infolist() if not info.is_dir()]
        if before := min((info.header_offset for info in self._zip.infolist()), default=0):
            raise DataError(
                f"{path}: {before} bytes stand before the first member that the zip's directory names.",
                "Is it two zips in one file? Split them; only the last one would be read.",
            )
        plain = (info.filename for info in infos if _is_plain_zip_entry(info))
        self._archive = _Archive(path, plain, [info.filename for info in infos if not _is_plain_zip_entry(info)])

    def fetch(self, name: str) -> bytes:
        member = self._archive.locate(name)
        try:
            info = self._zip.getinfo(member)
            if info.file_size > MAX_MEMBER:
                raise RecordError("image_too_large", f"member {name!r} has more than {MAX_MEMBER} bytes")
            check_member_size(info)
            with self._zip.open(member) as file:
                data = file.read(MAX_MEMBER + 1)
        except ARCHIVE_ERRORS as error:
            raise RecordError("image_unreadable", f"member {name!r} of {self.path.name}: {error}") from error
        if len(data) > MAX_MEMBER:  # the directory of the zip lied
            raise RecordError("image_too_large", f"member {name!r} has more than {MAX_MEMBER} bytes")
        return data


def _is_plain_zip_entry(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return stat.S_IFMT(mode) in (0, stat.S_IFREG)


# Tar ------------------------------------------------------------------------------------------------------------------------


class TarRoot(_ArchiveRoot):
    """Images in an uncompressed tar.

    Raises:
        DataError: it is compressed, cut or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        irregular: list[str] = []
        members = list(tar_members(path, irregular.append))
        self._members = {member.name: member for member in members}
        self._archive = _Archive(path, (member.name for member in members), irregular)
        self._descriptor = _descriptor_of(path)
        weakref.finalize(self, os.close, self._descriptor)

    def fetch(self, name: str) -> bytes:
        member = self._members[self._archive.locate(name)]
        try:
            return read_member(self._descriptor, member)
        except OSError as error:
            raise RecordError("image_unreadable", f"member {name!r} of {self.path.name}: {error.strerror}") from error


def _descriptor_of(path: Path) -> int:
    with open_input(path) as file:
        return os.dup(file.fileno())


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[int]:
    """Opens a tar for `read_member` and returns its descriptor."""
    descriptor = _descriptor_of(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_member(descriptor: int, member: Member) -> bytes:
    """Reads the content of a member of an open tar.

    Raises:
        RecordError: reason `image_too_large`.
        OSError: it cannot be read.
    """
    if member.size > MAX_MEMBER:
        raise RecordError("image_too_large", f"member {member.name!r} has {member.size} bytes, at most {MAX_MEMBER} are allowed")
    return os.pread(descriptor, member.size, member.offset)


def tar_members(path: Path, on_irregular: Callable[[str], None] = lambda name: None) -> Iterator[Member]:
    """Yields the regular members of an uncompressed tar (ustar, pax or GNU), in order.

    Folders are left out; links and devices too, and are named to `on_irregular`.

    Raises:
        DataError: the tar is compressed, a header is damaged, it ends before its end marker, or data follows the marker; names the
            byte and the number of members before it.
    """
    try:
        with open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
            yield from _Headers(path, size, file, on_irregular).members()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error


class _Headers:
    def __init__(self, path: Path, size: int, file: BinaryIO, on_irregular: Callable[[str], None]) -> None:
        self.path, self.size, self.file, self.on_irregular = path, size, file, on_irregular
        self.at = 0
        self.count = 0

    def members(self) -> Iterator[Member]:
        name = ""
        length: int | None = None
        while (header := self._block()) is not None:
            kind = header[156:157]
            size = self._number(header[124:136])
            if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                extended = self._extended(size)
                if kind == _LONG_NAME:
                    name = self._text(extended.rstrip(b"\0"))
                elif kind == _PAX:
                    fields = self._pax(extended)
                    name = self._text(fields[b"path"]) if b"path" in fields else name
                    length = self._pax_size(fields[b"size"]) if b"size" in fields else length
                continue
            size = size if length is None else length
            self.count += 1
            if self.at + size > self.size:
                raise self._damaged(f"member number {self.count} needs {size} bytes, {self.size - self.at} are left")
            if kind in (_REGULAR, b"\0", b"7"):
                yield Member(name or self._plain_name(header), self.at, size)
            elif kind != _DIRECTORY:
                self.on_irregular(name or self._plain_name(header))
            self.at += -(-size // _BLOCK) * _BLOCK
            name, length = "", None

    def _block(self) -> bytes | None:
        """Reads the next header; returns None at the end marker."""
        header = self._read(_BLOCK)
        if header == bytes(_BLOCK):
            self._check_end()
            return None
        if len(header) < _BLOCK:
            what = "it ends without the end marker" if not header else "a header is cut"
            raise self._damaged(what, self.at - len(header))
        # the checksum counts its own field as blanks; some old writers summed signed bytes
        body = header[:148] + b" " * 8 + header[156:]
        checksum = self._number(header[148:156])
        if checksum not in (sum(body), sum(byte - 256 if byte > 127 else byte for byte in body)):
            raise self._damaged("a header is damaged" if self.at > _BLOCK else "this is not a tar", self.at - _BLOCK)
        return header

    def _check_end(self) -> None:
        """Checks that the archive ends with zeros to the end of the file."""
        zeros = self.at - _BLOCK
        while data := self._read(_SCAN):
            if rest := data.lstrip(b"\0"):
                at = self.at - len(rest)
                what = f"data follows at byte {at}, after {at - zeros} zero bytes that look like the end of the archive"
                raise DataError(
                    f"{self.path}: {what}, at byte {zeros} after {self.count} whole members.",
                    "Is the file damaged there? Tars that were concatenated must be files of their own.",
                )

    def _read(self, size: int) -> bytes:
        self.file.seek(self.at)
        data = self.file.read(size)
        self.at += len(data)
        return data

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise self._damaged(f"an extended header has {size} bytes")
        data = self._read(size)
        if len(data) < size:
            raise self._damaged("an extended header is cut")
        self.at += -size % _BLOCK
        return data

    def _pax(self, data: bytes) -> dict[bytes, bytes]:
        """Parses records `LENGTH KEY=VALUE\\n`, where LENGTH counts the whole record."""
        fields: dict[bytes, bytes] = {}
        at = 0
        while at < len(data) and data[at : at + 1] != b"\0":
            digits = data[at : at + 20].partition(b" ")[0]
            end = at + int(digits) if digits.isdigit() and int(digits) > len(digits) + 2 else len(data) + 1
            key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
            if end > len(data) or not equals or data[end - 1 : end] != b"\n":
                raise self._damaged("an extended header is damaged")
            fields[key] = value
            at = end
        return fields

    def _pax_size(self, digits: bytes) -> int:
        if not digits.isdigit() or len(digits) > MAX_SIZE_DIGITS:
            raise self._damaged(f"an extended header gives the size {digits[:40]!r}")
        return int(digits)

    def _plain_name(self, header: bytes) -> str:
        name = header[:100].partition(b"\0")[0]
        prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        return self._text(prefix + b"/" + name if prefix else name)

    def _text(self, name: bytes) -> str:
        return name[:MAX_NAME].decode("utf-8", "surrogateescape")

    def _number(self, field: bytes) -> int:
        """Parses octal digits, or (GNU) a large number in base 256."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if digits and not all(byte in b"01234567" for byte in digits):
            raise self._damaged("a header is damaged" if self.at > _BLOCK else "this is not a tar", max(0, self.at - _BLOCK))
        return int(digits or b"0", 8)

    def _damaged(self, what: str, at: int | None = None) -> DataError:
        place = self.at if at is None else at
        return DataError(
            f"{self.path}: {what}, at byte {place} after {self.count} whole members.",
            "Is the download complete? A compressed tar must be unpacked first (gunzip).",
        )


def open_root(path: Path) -> ImageRoot:
    """Returns the images under `path`: a folder, a zip, or an uncompressed tar.

    Raises:
        UsageError: it is neither.
        DataError: the archive is damaged.
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return ZipRoot(path)
    if path.is_file() and path.suffix.lower() == ".tar":
        return TarRoot(path)
    raise UsageError(f"{path} is not a folder, zip or tar of images.", "Give what image names are relative to with --images.")

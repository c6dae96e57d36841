"""Opens files that a user or a stranger gives: only regular files, of a bounded size. Parses JSON with one kind of error.

A pipe or a device could block its reader or never end, a number in a file could ask for all memory: what a file says of its own
size is compared with its length before memory is asked for.
"""

import errno
import io
import json
import lzma
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

MAX_JSON = 256_000_000  # bytes of a JSON file that is held in memory as a whole
MAX_RATIO = 1100  # of the bytes of an archive's member to its compressed bytes; deflate reaches 1,032
# What a damaged zip and the decompressors raise. MemoryError: a damaged LZMA header asks for a dictionary of 4 GB.
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def open_input(path: str | Path, max_bytes: int | None = None) -> io.BufferedReader:
    """Opens a regular file for reading.

    Args:
        path: the file, or a link to it.
        max_bytes: refuse a longer file.

    Raises:
        OSError: it cannot be opened, is no regular file, or is too long; `strerror` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have such a name", repr(str(path))) from error
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and state.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"{state.st_size} bytes; at most {max_bytes} are read", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path: str | Path, max_bytes: int = MAX_JSON) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: as in `open_input`.
    """
    with open_input(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # a limit of its own would ask for that much memory


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; bytes are UTF-8.

    Raises:
        ValueError: it is not JSON, is nested too deep, holds a number of thousands of digits, or half of a surrogate pair, which no
            file can hold.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text or not _is_encodable(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("a text holds an invalid character, half of a surrogate pair") from error
    return value


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_json_input(path: str | Path, max_bytes: int = MAX_JSON) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: as in `open_input`.
        ValueError: as in `parse_json`.
    """
    return parse_json(read_input(path, max_bytes))


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Opens a zip that is a regular file.

    Raises:
        ARCHIVE_ERRORS: it is none.
    """
    open_input(path).close()  # refuses what is no regular file; a ZipFile closes only what it opened itself
    return zipfile.ZipFile(path)


def check_member_size(info: zipfile.ZipInfo) -> None:
    """Compares the size that a member of a zip claims with its compressed bytes.

    Raises:
        ValueError: no compression shrinks so far.
    """
    if info.file_size > MAX_RATIO * info.compress_size + MAX_RATIO:
        raise ValueError(f"member {info.filename!r} claims {info.file_size} bytes in {info.compress_size} compressed ones")

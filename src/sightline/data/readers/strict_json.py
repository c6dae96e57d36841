"""Reads strict JSON (no NaN or infinity, no duplicate keys, UTF-8) as a stream, so that a file may be larger than memory.

`JsonStream` walks one document: arrays and objects are entered and their members come one at a time. `json_lines` reads a file
of one object per line. An error names the file, line, column and position.
"""

import codecs
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sightline.errors import DataError, RecordError
from sightline.runtime.inputs import open_input

MAX_LINE = 64_000_000  # bytes; a line of base64 images fits
MAX_DIGITS = 30  # of a whole number; longer ones would overflow the floats that they are compared with
_CHUNK = 1 << 20
_TAIL = 16  # characters at the end of the buffer that may be the beginning of something longer
_DELIMITERS = ",]}: \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


class _NotStrict(ValueError):
    """JSON that Python's parser would let pass."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _NotStrict(f"key {next(name for name in counts if counts[name] > 1)!r} stands twice in one object")
    return out


def _refuse_constant(name: str) -> Any:
    raise _NotStrict(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotStrict(f"number {text} is too large")
    return value


def _sized(text: str) -> int:
    if len(text) > MAX_DIGITS + text.startswith("-"):
        raise _NotStrict(f"number {text[:20]}... has {len(text)} digits")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_sized)


def parse_json(text: str) -> Any:
    """Parses one JSON value.

    Raises:
        RecordError: reasons `bad_json`, with what is wrong and the column where that is known.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RecordError("bad_json", f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RecordError("bad_json", "nested too deep") from error
    except ValueError as error:  # _NotStrict
        raise RecordError("bad_json", str(error)) from error


def check_encoding(path: Path) -> None:
    """Refuses what is clearly not UTF-8.

    Raises:
        DataError: the file cannot be read, is empty, or is UTF-16 or UTF-32.
    """
    try:
        with open_input(path) as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"{path} is empty.")
    if head.startswith(_UTF16) or b"\0" in head:
        raise DataError(f"{path} is not UTF-8 (it looks like UTF-16 or UTF-32).", "Convert it: iconv -f UTF-16 -t UTF-8.")


# One value per line ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of a file: its number (from 1), and its text or what is wrong with it."""

    number: int
    text: str
    fault: RecordError | None = None


def text_lines(path: Path) -> Iterator[TextLine]:
    """Yields the lines of a UTF-8 file without their ends; a byte order mark is dropped.

    A line that is longer than 64 MB or not UTF-8 comes with a fault (`line_too_long`, `bad_utf8`) and no text.

    Raises:
        DataError: the file cannot be read, is empty, or is UTF-16.
    """
    check_encoding(path)
    try:
        with open_input(path) as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    _finish_line(file)
                    yield TextLine(number, "", RecordError("line_too_long", f"longer than {MAX_LINE} bytes"))
                    continue
                yield _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, number)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error


def _finish_line(file: IO[bytes]) -> None:
    while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
        pass


def _decoded(line: bytes, number: int) -> TextLine:
    try:
        return TextLine(number, line.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return TextLine(number, "", RecordError("bad_utf8", f"byte {error.start} of the line is not UTF-8"))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
    """Yields line numbers and objects of a JSONL file; for a line that is no object, the RecordError that says why.

    Empty lines are passed over.

    Raises:
        DataError: the file cannot be read, is empty, or is UTF-16.
    """
    for line in text_lines(path):
        if line.fault is not None:
            yield line.number, line.fault
        elif line.text.strip():
            try:
                value = parse_json(line.text)
            except RecordError as error:
                yield line.number, error
                continue
            if isinstance(value, dict):
                yield line.number, value
            else:
                yield line.number, RecordError("not_an_object", f"the line is a {type(value).__name__}, not an object")


# One document ---------------------------------------------------------------------------------------------------------------


class JsonStream:
    """Walks one JSON document; only the value at hand is in memory.

    Use as a context: `with JsonStream(path) as stream`, then `peek()`, `array()`, `members()` and `value()`. Whoever enters a
    member must consume its value before the next one.

    Raises:
        DataError: the text is not strict JSON; names line, column and position.
    """

    def __init__(self, path: Path) -> None:
        check_encoding(path)
        self.path = path
        try:
            self._file = io.TextIOWrapper(open_input(path), encoding="utf-8-sig", newline="")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}.") from error
        self._buffer = ""
        self._at = 0  # next character in the buffer
        self._dropped = 0  # characters before the buffer
        self._line = 1  # line of the buffer's first character
        self._column = 1  # column of the buffer's first character
        self._ended = False

    def __enter__(self) -> "JsonStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def peek(self) -> str:
        """Returns the next character that is not white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Returns the next value as a whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - _TAIL
                if incomplete and self._more():
                    continue
                raise self._error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._error("nested too deep", self._at) from error
            except ValueError as error:
                raise self._error(f"{error}, in the value that begins", self._at) from error
            is_whole = self._buffer[end : end + 1] in _DELIMITERS if end < len(self._buffer) else False
            if not is_whole and end >= len(self._buffer) - _TAIL and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def array(self) -> Iterator[int]:
        """Enters an array; yields the index of each element, which the caller consumes."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        index = 0
        while True:
            yield index
            index += 1
            if self._separator("]"):
                return

    def members(self) -> Iterator[str]:
        """Enters an object; yields each key, whose value the caller consumes."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        seen: set[str] = set()
        while True:
            if self.peek() != '"':
                raise self._error("Expecting a key in double quotes", self._at)
            key = self.value()
            if key in seen:
                raise self._error(f"key {key!r} stands twice in one object, before", self._at)
            seen.add(key)
            self._expect(":")
            yield key
            if self._separator("}"):
                return

    def end(self) -> None:
        """Checks that nothing follows the document."""
        if self.peek():
            raise self._error("something follows the end of the document", self._at)

    def _separator(self, close: str) -> bool:
        character = self.peek()
        if character not in (",", close) or not character:
            raise self._error(f"Expecting ',' or '{close}'", self._at)
        self._at += 1
        return character == close

    def _expect(self, character: str) -> None:
        if self.peek() != character:
            raise self._error(f"Expecting '{character}'", self._at)
        self._at += 1

    def _more(self) -> bool:
        if self._ended:
            return False
        try:
            chunk = self._file.read(max(_CHUNK, len(self._buffer) - self._at))  # doubling keeps long values linear
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8 ({error.reason}) after line {self._place(self._at)[0]}.") from error
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}.") from error
        if not chunk:
            self._ended = True
            return False
        self._line, self._column = self._place(self._at)
        self._dropped += self._at
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return True

    def _place(self, position: int) -> tuple[int, int]:
        before = self._buffer[:position]
        newline = before.rfind("\n")
        column = self._column + position if newline < 0 else position - newline
        return self._line + before.count("\n"), column

    def _error(self, message: str, position: int) -> DataError:
        line, column = self._place(position)
        torn = " The file ends there: it is torn." if self._ended and position >= len(self._buffer.rstrip()) else ""
        return DataError(
            f"{self.path}:{line}: {message} at line {line} column {column} (position {self._dropped + position}).{torn}"
        )

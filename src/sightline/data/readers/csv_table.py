"""CSV with images inside: a base64 column (`b64string_images`) or a column of paths, and captions or questions.

Python's csv reader swallows the rows after a quote that is never closed. Here a row that spans several lines must end within
1,000 lines, must have as many fields as the header, and must not contain a line that is itself a row; else its first line is
skipped as `unbalanced_quote` and reading goes on with the next line, so no row is lost unseen.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.readers.rows import Numbered, TableRow, all_keys, find_file, image_root, items, require_columns
from sightline.data.readers.strict_json import MAX_LINE, TextLine, text_lines
from sightline.errors import DataError, RecordError

KEYS = {
    "answer": "answer",
    "caption": "caption",
    "id": "id",
    "image": "b64string_images",
    "question": "question",
    "split": "split",
}
MAX_ROW_LINES = 1000
_IMAGE = re.compile(r"[A-Za-z0-9+/]{64,}={0,2}\Z|.+\.(jpe?g|png|webp|gif|bmp|tiff?)\Z|https?://\S+\Z", re.IGNORECASE)


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Items of a csv (or tsv) file."""
    file = find_file(path, ("inputs.csv",), (".csv", ".tsv"), tally)
    root = image_root(options, file.parent, "images", "Images")
    rows = CsvRows(file, options.mapping.get("image", KEYS["image"]))
    require_columns(rows.header, KEYS, options, f"{file}:1")

    def build(values: dict[str, Any], number: int, where: str) -> Item:
        return TableRow(values, KEYS, options).item(number, where, root, tally, is_base64=True)

    return items(rows, build)


class CsvRows:
    """The rows of a csv file as dicts, an empty field left out unless it is the image or the last one asked for.

    Args:
        path: the file; `.tsv` means tabs. Else fields are separated by a comma, tab or semicolon, whichever makes the header have
            the column `image`, or several columns.
        image: name of the column that tells a row from the inside of a text, or names of which the first that is there does.

    Raises:
        DataError: the header is missing, broken, or names a column twice.
    """

    def __init__(self, path: Path, image: str | tuple[str, ...]) -> None:
        csv.field_size_limit(MAX_LINE)
        self.path = path
        self._lines = iter(text_lines(path))
        self._pushed: deque[TextLine] = deque()
        self.header: list[str] = []
        self._image = -1
        first = next(self._lines)
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(first.text, image)
        header, fault = self._row(first)
        if fault is not None or len(set(header)) < len(header):
            raise DataError(f"{path}:1: the header cannot be read: {fault or 'a column is named twice'}.")
        self.header = [name.strip() for name in header]
        names = all_keys(image)
        self._image = next((self.header.index(name) for name in names if name in self.header), -1)

    def __iter__(self) -> Iterator[Numbered]:
        number = 0
        while (line := self._next()) is not None:
            if line.fault is None and not line.text.strip():
                continue
            fields, fault = self._row(line)
            where = f"{self.path.name}:{line.number}"
            yield number, where, fault or self._values(fields)
            number += 1

    def _values(self, fields: Sequence[str]) -> dict[str, Any]:
        """Drops empty cells; an empty image or caption is kept, so that its record is skipped with a reason."""
        named = zip(self.header, fields, strict=True)
        return {name: value for name, value in named if value or name in (self.header[self._image], "caption")}

    def _next(self) -> TextLine | None:
        return self._pushed.popleft() if self._pushed else next(self._lines, None)

    def _row(self, first: TextLine) -> tuple[list[str], RecordError | None]:
        """Returns the fields of the row that begins with a line, or what is wrong and the lines after the first."""
        if first.fault is not None:
            return [], first.fault
        taken = [first]
        try:
            fields = next(csv.reader(self._feed(taken), delimiter=self._delimiter, strict=True))
            if len(taken) > 1 and any(self._is_row(line.text) for line in taken[1:]):
                raise csv.Error("a quote is not closed: a line inside the field is a row itself")
            if self.header and len(fields) != len(self.header):
                if len(taken) > 1:
                    raise csv.Error(f"{len(fields)} fields over {len(taken)} lines, {len(self.header)} expected")
                return [], RecordError("bad_columns", f"{len(fields)} fields, {len(self.header)} expected")
            return fields, None
        except csv.Error as error:
            self._pushed.extendleft(reversed(taken[1:]))
            return [], RecordError("unbalanced_quote", f"the row that begins here: {error}")

    def _feed(self, taken: list[TextLine]) -> Iterator[str]:
        """Lines for the csv reader, kept in `taken`."""
        size = len(taken[0].text)
        yield taken[0].text + "\n"
        while (line := self._next()) is not None:
            taken.append(line)
            size += len(line.text)
            if line.fault is not None or len(taken) > MAX_ROW_LINES or size > MAX_LINE:
                raise csv.Error(f"a quote is not closed within {len(taken) - 1} lines")
            yield line.text + "\n"

    def _is_row(self, text: str) -> bool:
        """Returns whether a line within a quoted field is a whole row: as many fields as the header, and an image in its place."""
        try:
            fields = next(csv.reader([text], delimiter=self._delimiter, strict=True), [])
        except csv.Error:
            return False
        return len(fields) == len(self.header) and (self._image < 0 or bool(_IMAGE.match(fields[self._image])))


def _delimiter(header: str, image: str | tuple[str, ...]) -> str:
    """Returns the separator of a header: the one that makes a column of the image's name, or else the first that makes several."""
    fields = {mark: [name.strip(' "') for name in header.split(mark)] for mark in (",", "\t", ";")}
    named = (mark for mark, names in fields.items() if len(names) > 1 and set(all_keys(image)) & set(names))
    several = (mark for mark, names in fields.items() if len(names) > 1)
    return next(named, next(several, ","))

"""A plain text file as text records, to train a decoder on: consecutive lines form a piece of at most `characters` characters.

A longer line is cut. Lines of white space alone stay inside a piece, but no piece begins or ends with one.
"""

from collections.abc import Iterator
from pathlib import Path

from sightline.data.readers.base import Item, Skip, SourceOptions, Tally
from sightline.data.readers.rows import find_file
from sightline.data.readers.strict_json import text_lines
from sightline.types import Record


def read(path: Path, options: SourceOptions, tally: Tally) -> Iterator[Item | Skip]:
    """Yields the pieces of a UTF-8 file."""
    file = find_file(path, ("input.txt",), (".txt", ".text", ".md"), tally)
    lines: list[str] = []
    first, number = 1, 0

    def piece() -> Iterator[Item]:
        nonlocal number
        text = "\n".join(lines).strip("\n")
        if text.strip():
            yield Item(Record(id=f"piece-{number}", captions=(text,)), (), f"{file.name}:{first}")
            number += 1
        lines.clear()

    for line in text_lines(file):
        if line.fault is not None:
            yield Skip(f"{file.name}:{line.number}", None, line.fault.reason, line.fault.message)
            continue
        for at in range(0, max(len(line.text), 1), options.characters):
            part = line.text[at : at + options.characters]
            if lines and sum(map(len, lines)) + len(lines) + len(part) > options.characters:
                yield from piece()
            if not lines:
                first = line.number
            lines.append(part)
    yield from piece()

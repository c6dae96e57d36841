"""Conversations as they were tokenised, one after the other in a file: nothing is rendered or tokenised twice.

The pass over the records that finds the lengths writes it (6 bytes a token, an image token counting once); training, in whatever
process and epoch, maps it and reads what it needs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int

from sightline.data.samples.encoding import TextEncoding
from sightline.errors import DataError

_TOKEN = np.dtype([("id", "<i4"), ("turn", "<i2")])


class TokenTable:
    """Tokenised conversations by number.

    Args:
        source: the file, or its bytes.
        begin: where each conversation begins, in tokens; one entry more than conversations.

    Raises:
        DataError: the file has not the size that `begin` promises.
    """

    def __init__(self, source: Path | bytes, begin: Int[np.ndarray, " conversations_and_end"]) -> None:
        self.source, self.begin = source, begin
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size != int(begin[-1]) * _TOKEN.itemsize:
            raise DataError(f"{source if isinstance(source, Path) else 'tokens'}: {size} bytes, {begin[-1]} tokens expected.")
        if isinstance(source, Path) and size:  # an empty file cannot be mapped
            self._tokens = np.memmap(source, dtype=_TOKEN, mode="r").view(np.ndarray)
        else:
            self._tokens = np.frombuffer(b"" if isinstance(source, Path) else source, dtype=_TOKEN)

    def __len__(self) -> int:
        return len(self.begin) - 1

    def __reduce__(self) -> tuple[type["TokenTable"], tuple[Path | bytes, np.ndarray]]:
        return TokenTable, (self.source, self.begin)  # by name: a mapped array would be sent as its contents

    def __getitem__(self, number: int) -> TextEncoding:
        tokens = self._tokens[int(self.begin[number]) : int(self.begin[number + 1])]
        return TextEncoding(tokens["id"].astype(np.int64), tokens["turn"].astype(np.int64))


class TokenWriter:
    """Writes tokenised conversations one after the other.

    Args:
        file: open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sizes: list[int] = []

    def write(self, encoded: TextEncoding) -> None:
        """Adds one."""
        tokens = np.empty(len(encoded.ids), dtype=_TOKEN)
        tokens["id"], tokens["turn"] = encoded.ids, encoded.turn_of
        self._file.write(tokens.tobytes())
        self._sizes.append(len(tokens))

    @property
    def begin(self) -> Int[np.ndarray, " conversations_and_end"]:
        """Where each of those that were written begins, and where the last one ends."""
        return starts(self._sizes)


def starts(sizes: Iterable[int]) -> Int[np.ndarray, " sizes_and_end"]:
    """Where each of a row of things begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(list(sizes), dtype=np.int64)]).astype(np.int64)

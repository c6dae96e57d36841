"""A file of tokenised conversations, so that no conversation is rendered or tokenised twice.

It is written while the length table is made (6 bytes per token; a run of visual slots counts as one token). Training maps it in
every process and epoch and reads what it needs.
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
    """Tokenised conversations by index.

    Args:
        content: the file, or its bytes.
        begin: index of each conversation's first token; one entry more than conversations.

    Raises:
        DataError: the file has another size than `begin` says.
    """

    def __init__(self, content: Path | bytes, begin: Int[np.ndarray, " conversations_and_end"]) -> None:
        self.content, self.begin = content, begin
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != int(begin[-1]) * _TOKEN.itemsize:
            raise DataError(f"{content if isinstance(content, Path) else 'tokens'}: {size} bytes, {begin[-1]} tokens expected.")
        if isinstance(content, Path) and size:  # an empty file cannot be mapped
            self._tokens = np.memmap(content, dtype=_TOKEN, mode="r").view(np.ndarray)
        else:
            self._tokens = np.frombuffer(b"" if isinstance(content, Path) else content, dtype=_TOKEN)

    def __len__(self) -> int:
        return len(self.begin) - 1

    def __reduce__(self) -> tuple[type["TokenTable"], tuple[Path | bytes, np.ndarray]]:
        return TokenTable, (self.content, self.begin)  # pickles the path: a mapped array would be pickled with its content

    def __getitem__(self, number: int) -> TextEncoding:
        tokens = self._tokens[int(self.begin[number]) : int(self.begin[number + 1])]
        return TextEncoding(tokens["id"].astype(np.int64), tokens["turn"].astype(np.int64))


class TokenWriter:
    """Appends tokenised conversations to a file.

    Args:
        file: open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sizes: list[int] = []

    def write(self, encoded: TextEncoding) -> None:
        """Appends a conversation."""
        tokens = np.empty(len(encoded.ids), dtype=_TOKEN)
        tokens["id"], tokens["turn"] = encoded.ids, encoded.turn_of
        self._file.write(tokens.tobytes())
        self._sizes.append(len(tokens))

    @property
    def begin(self) -> Int[np.ndarray, " conversations_and_end"]:
        """Index of the first token of each written conversation, and the number of all tokens."""
        return starts(self._sizes)


def starts(sizes: Iterable[int]) -> Int[np.ndarray, " sizes_and_end"]:
    """Returns the offset of each of consecutive blocks of the given sizes, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(list(sizes), dtype=np.int64)]).astype(np.int64)

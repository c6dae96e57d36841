"""What was fetched so far: a file for each URL, and a journal of what became of each, so that a stopped work goes on.

A file counts only if it still has the hash that the journal states; one that a crash tore is fetched again. Of the failures of an
earlier try only those are believed that a server has said itself and will say again (404 and its like).
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from sightline.data.download.fetch import Got
from sightline.runtime.storage import JsonLines, sha256_file, whole_lines

JOURNAL = "journal.jsonl"
KEYS = ("url", "reason", "detail", "may_pass", "bytes", "sha256")  # of its lines
_PART = "part-"


class Cache:
    """The folder of fetched files.

    Args:
        folder: is made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(f"{_PART}*"):
            part.unlink()
        self.folder = folder
        self._journal = JsonLines(folder / JOURNAL, checksum=True, required=KEYS)
        self._places = self._read_places()  # about 130 bytes a URL
        self._earlier = self._end = (folder / JOURNAL).stat().st_size
        self._reading = (folder / JOURNAL).open("rb")
        self._numbers = itertools.count()

    def close(self) -> None:
        self._journal.close()
        self._reading.close()

    def part(self) -> Path:
        """A name for a file that is being written."""
        return self.folder / f"{_PART}{next(self._numbers)}"

    def name(self, url: str) -> str:
        """Where the content of a URL lies in the folder."""
        digest = hashlib.sha256(url.encode()).hexdigest()
        return f"{digest[:2]}/{digest[2:34]}"

    def find(self, url: str) -> Got | None:
        """What became of a URL; None when it must be asked for."""
        place = self._places.get(_key(url))
        if place is None:
            return None
        self._reading.seek(place)
        line = json.loads(self._reading.readline())
        if line["url"] != url:
            return None
        got = Got(line["sha256"], line["bytes"], line["reason"], line["detail"], line["may_pass"])
        if place >= self._earlier:
            return got
        if (got.reason and got.may_pass) or (not got.reason and not self._is_whole(url, got.sha256)):
            return None
        self._write(url, got)  # so that the hash is not looked at again
        return got

    def add(self, url: str, got: Got, part: Path) -> None:
        """Keeps what became of a URL, and the file if there is one."""
        if not got.reason:
            file = self.folder / self.name(url)
            file.parent.mkdir(exist_ok=True)
            part.replace(file)
        self._write(url, got)

    def _write(self, url: str, got: Got) -> None:
        self._places[_key(url)] = self._end
        line: dict[str, Any] = {"url": url, "reason": got.reason, "detail": got.detail, "may_pass": got.may_pass}
        self._journal.write({**line, "bytes": got.size, "sha256": got.sha256})
        self._end = self._journal.path.stat().st_size

    def _is_whole(self, url: str, sha256: str) -> bool:
        try:
            return sha256_file(self.folder / self.name(url)) == sha256
        except OSError:
            return False

    def _read_places(self) -> dict[int, int]:
        return {_key(line["url"]): at for at, line in whole_lines(self._journal.path, KEYS)}


def _key(url: str) -> int:
    """Eight bytes of a hash; the journal has the whole URL."""
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:8], "big")

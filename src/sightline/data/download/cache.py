"""Cache of downloads: a file per URL and a journal of outcomes, so that an interrupted download can be resumed.

A file is used only if its sha256 equals that of the journal; a truncated one is downloaded again. Of the failures of an earlier
run only permanent HTTP errors (such as 404) are reused.
"""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from sightline.data.download.fetch import FetchResult
from sightline.runtime.storage import JsonLines, has_keys, sha256_file, whole_lines

JOURNAL = "journal.jsonl"
KEYS = ("url", "reason", "detail", "may_pass", "bytes", "sha256")  # of its lines
_PART = "part-"


class Cache:
    """The folder of fetched files.

    Args:
        folder: created where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(f"{_PART}*"):
            part.unlink()
        self.folder = folder
        self._journal = JsonLines(folder / JOURNAL, checksum=True, check=has_keys(*KEYS))
        self._places = self._read_places()  # about 130 bytes a URL
        self._earlier = self._end = (folder / JOURNAL).stat().st_size
        self._reading = (folder / JOURNAL).open("rb")
        self._numbers = itertools.count()

    def close(self) -> None:
        self._journal.close()
        self._reading.close()

    def part(self) -> Path:
        """Returns a new path for a file that is being written."""
        return self.folder / f"{_PART}{next(self._numbers)}"

    def name(self, url: str) -> str:
        """Returns the name of the file with the content of a URL."""
        digest = hashlib.sha256(url.encode()).hexdigest()
        return f"{digest[:2]}/{digest[2:34]}"

    def find(self, url: str) -> FetchResult | None:
        """Returns the outcome of a URL; None where it must be downloaded."""
        place = self._places.get(_key(url))
        if place is None:
            return None
        self._reading.seek(place)
        line = json.loads(self._reading.readline())
        if line["url"] != url:
            return None
        got = FetchResult(line["sha256"], line["bytes"], line["reason"], line["detail"], line["may_pass"])
        if place >= self._earlier:
            return got
        if (got.reason and got.is_temporary) or (not got.reason and not self._is_whole(url, got.sha256)):
            return None
        self._write(url, got)  # so that the file is not hashed again
        return got

    def add(self, url: str, got: FetchResult, part: Path) -> None:
        """Stores the outcome of a URL, and its file after a success."""
        if not got.reason:
            file = self.folder / self.name(url)
            file.parent.mkdir(exist_ok=True)
            part.replace(file)
        self._write(url, got)

    def _write(self, url: str, got: FetchResult) -> None:
        self._places[_key(url)] = self._end
        line: dict[str, Any] = {"url": url, "reason": got.reason, "detail": got.detail, "may_pass": got.is_temporary}
        self._journal.write({**line, "bytes": got.size, "sha256": got.sha256})
        self._end = self._journal.path.stat().st_size

    def _is_whole(self, url: str, sha256: str) -> bool:
        try:
            return sha256_file(self.folder / self.name(url)) == sha256
        except OSError:
            return False

    def _read_places(self) -> dict[int, int]:
        return {_key(line["url"]): at for at, line in whole_lines(self._journal.path, has_keys(*KEYS))}


def _key(url: str) -> int:
    """Returns 8 bytes of a hash of the URL; the journal has the full URL."""
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:8], "big")

"""Downloads the images of records: replaces URLs by files and keeps the order of the records.

An event loop in its own thread prefetches; the consumer waits for the oldest record and polls for signals meanwhile. Each URL is
downloaded once, however many records name it. `downloads.jsonl` has the outcome of each URL, record by record; it depends only on
the responses of the servers, not on time, retries or the number of connections.
"""

import asyncio
import concurrent.futures
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Self

from sightline.data.download.cache import Cache
from sightline.data.download.fetch import Fetcher, FetchResult
from sightline.data.download.gate import Gate, LookUp, look_up, parse_url
from sightline.data.download.options import MAX_URL, DownloadOptions
from sightline.data.readers.base import ImageInRoot, ImageRef, Item, Skip
from sightline.data.readers.roots import Folder
from sightline.data.readers.web import Web
from sightline.errors import RecordError
from sightline.runtime import fault_injection
from sightline.runtime.storage import dump_line

MAX_PENDING = 8192  # records that wait for their images at a time
POLL_SECONDS = 0.2
CLOSE_SECONDS = 10.0
_USER = re.compile(r"//[^/?#@\\]*(@|\\@)")

Answer = concurrent.futures.Future[FetchResult]


class Downloads:
    """Downloads the images of records; a context manager.

    Args:
        folder: folder of files and journal, kept between runs.
        options: limits.
        poll: called while waiting; may raise to stop the work.
        log: receives the lines of `downloads.jsonl`.
        look_up: finds the addresses of a host.
    """

    def __init__(
        self, folder: Path, options: DownloadOptions, poll: Callable[[], None], log: IO[bytes], look_up: LookUp = look_up
    ) -> None:
        self._poll, self._log = poll, log
        self._cache = Cache(folder)
        self._files = Folder(folder)
        self._options, self._look_up = options, look_up
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        self._fetcher: Fetcher | None = None
        self._flying: dict[str, asyncio.Task[FetchResult]] = {}
        self._looking = asyncio.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop.close()
        self._cache.close()

    def fetch_images(self, entries: Iterator[Item | Skip]) -> Iterator[Item | Skip]:
        """Yields each entry with its images as files, or a Skip with the reason why an image could not be downloaded.

        Raises:
            StorageError: a file cannot be written.
        """
        waiting: deque[tuple[Item | Skip, list[Answer]]] = deque()
        for entry in entries:
            waiting.append((entry, self._ask(entry)))
            while waiting and (len(waiting) > MAX_PENDING or all(answer.done() for answer in waiting[0][1])):
                yield self._with_files(*waiting.popleft())
        while waiting:
            yield self._with_files(*waiting.popleft())

    def _ask(self, entry: Item | Skip) -> list[Answer]:
        if isinstance(entry, Skip):
            return []
        urls = [ref.name for ref in entry.images if isinstance(ref, ImageInRoot) and isinstance(ref.root, Web)]
        return [asyncio.run_coroutine_threadsafe(self._get(url), self._loop) for url in urls]

    def _with_files(self, entry: Item | Skip, answers: list[Answer]) -> Item | Skip:
        if isinstance(entry, Skip):
            return entry
        found = iter([self._wait_for(answer) for answer in answers])
        images: list[ImageRef] = []
        fault: FetchResult | None = None
        for ref in entry.images:
            if not isinstance(ref, ImageInRoot) or not isinstance(ref.root, Web):
                images.append(ref)
                continue
            got = next(found)
            self._log.write(dump_line(_log_line(entry, ref.name, got)))
            if not got.reason:
                images.append(ImageInRoot(self._files, self._cache.name(ref.name.strip())))
            else:
                fault = fault or got
        fault_injection.hit("download.landed")
        if fault is not None:
            return Skip(entry.where, entry.record.id, fault.reason, fault.detail)
        return replace(entry, images=tuple(images))

    def _wait_for(self, answer: Answer) -> FetchResult:
        while True:
            self._poll()
            try:
                return answer.result(POLL_SECONDS)
            except TimeoutError:
                if answer.done():
                    raise

    # In the loop ------------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._fetcher = Fetcher(self._options, Gate(self._options, self._look_up))

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()

    async def _get(self, text: str) -> FetchResult:
        try:
            parse_url(text)
        except RecordError as error:
            return FetchResult(reason=error.reason, detail=error.message)
        url = text.strip()
        task = self._flying.get(url)
        if task is None:
            task = self._flying[url] = asyncio.create_task(self._fetched(url))
            task.add_done_callback(lambda _: self._flying.pop(url, None))
        return await asyncio.shield(task)

    async def _fetched(self, url: str) -> FetchResult:
        async with self._looking:
            got = self._cache.find(url)
            await asyncio.sleep(0)  # requests are served before the next file is hashed, or their time limits pass unseen
        if got is None:
            assert self._fetcher is not None
            part = self._cache.part()
            got = await self._fetcher.fetch(url, part)
            self._cache.add(url, got, part)
            fault_injection.hit("download.fetched")
        return got


def _log_line(entry: Item, url: str, got: FetchResult) -> dict[str, str | int]:
    """Returns a line of `downloads.jsonl`; credentials in a URL are masked."""
    shown = _USER.sub("//***@", url[:MAX_URL])
    texts = {"id": entry.record.id, "where": entry.where, "url": shown, "outcome": got.reason or "ok", "detail": got.detail}
    clean = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
    return {**clean, "bytes": got.size, "sha256": got.sha256}

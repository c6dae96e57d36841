"""A web server on this host that behaves well or badly, by the path that is asked for, and counts what it is asked.

It speaks HTTP by hand, for most of what it does no server library would do. A path may have `?anything` behind it: the same
behaviour under another URL.
"""

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from tests.data.pictures import picture

OK = "HTTP/1.1 200 OK\r\n"
PNG = OK + "Content-Type: image/png\r\n"
PICTURE = picture(7)


class Visit:
    """One request, and the ways to answer it."""

    def __init__(self, server: "WebServer", path: str, host: str, writer: asyncio.StreamWriter) -> None:
        self.server, self.path, self.host, self.writer = server, path, host, writer
        self.stays_open = False
        self.times = server.visits[path]  # this one included

    async def raw(self, data: str | bytes) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)
        await self.writer.drain()

    async def send(self, body: bytes, head: str = PNG) -> None:
        await self.raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self.stays_open = True

    async def status(self, status: str, *fields: str, body: bytes = b"<html>sorry</html>") -> None:
        await self.send(body, "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *fields)))

    async def to(self, where: str) -> None:
        await self.status("302 Found", f"Location: {where}")


Behaviour = Callable[[Visit], Awaitable[None]]


async def _number(visit: Visit) -> None:
    """/ok/17: an image of its own for each number."""
    await visit.send(picture(int(visit.path.partition("?")[0].rpartition("/")[2])))


async def _slow_picture(visit: Visit) -> None:
    await asyncio.sleep(0.05)
    await _number(visit)


async def _busy_once(visit: Visit) -> None:
    await (visit.status("429 Too Many Requests", "Retry-After: 0") if visit.times == 1 else visit.send(PICTURE))


async def _busy_date(visit: Visit) -> None:
    past = "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"
    await (visit.status("503 Service Unavailable", past) if visit.times == 1 else visit.send(PICTURE))


async def _shaky(visit: Visit) -> None:
    await (visit.status("500 Oops") if visit.times <= 2 else visit.send(PICTURE))


async def _drip(visit: Visit) -> None:
    """Slow-loris: a byte now and then, for ever."""
    await visit.raw(PNG + "Content-Length: 100000\r\n\r\n")
    while True:
        await visit.raw(b"x")
        await asyncio.sleep(0.05)


async def _drip_head(visit: Visit) -> None:
    await visit.raw(OK)
    while True:
        await visit.raw("X-Y: z\r\n")
        await asyncio.sleep(0.05)


async def _endless(visit: Visit) -> None:
    await visit.raw(PNG + "\r\n")
    while True:
        await visit.raw(bytes(1 << 18))


async def _hang(visit: Visit) -> None:
    await asyncio.sleep(3600)


async def _reset(visit: Visit) -> None:
    raw = visit.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST
    visit.writer.transport.abort()


async def _reset_once(visit: Visit) -> None:
    await (_reset(visit) if visit.times == 1 else visit.send(PICTURE))


async def _cut(visit: Visit) -> None:
    await visit.raw(PNG + f"Content-Length: {len(PICTURE)}\r\n\r\n")
    await visit.raw(PICTURE[: len(PICTURE) // 2])


async def _cut_once(visit: Visit) -> None:
    await (_cut(visit) if visit.times == 1 else visit.send(PICTURE))


async def _too_short(visit: Visit) -> None:
    """States fewer bytes than it has: the image that arrives is torn."""
    await visit.raw((PNG + f"Content-Length: {len(PICTURE) // 2}\r\n\r\n").encode() + PICTURE)


async def _chunked(visit: Visit) -> None:
    await visit.raw(PNG + "Transfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(PICTURE), 50):
        part = PICTURE[at : at + 50]
        await visit.raw(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    await visit.raw("0\r\n\r\n")
    visit.stays_open = True


async def _bad_chunk(visit: Visit) -> None:
    await visit.raw(PNG + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello")


async def _no_length(visit: Visit) -> None:
    await visit.raw((OK + "\r\n").encode() + PICTURE)


async def _gzip_bomb(visit: Visit) -> None:
    await visit.send(visit.server.bomb, OK + "Content-Encoding: gzip\r\n")


async def _hop(visit: Visit) -> None:
    """/hop/3 leads to /hop/2, ..., /hop/0 is an image."""
    left = int(visit.path.rpartition("/")[2])
    await (visit.to(f"/hop/{left - 1}") if left else visit.send(PICTURE))


async def _continue(visit: Visit) -> None:
    for _ in range(10_000):
        await visit.raw("HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.001)


BEHAVIOURS: dict[str, Behaviour] = {
    "bad-chunk": _bad_chunk,
    "big-header": lambda visit: visit.raw(OK + "X-Big: " + "x" * 1_000_000 + "\r\n\r\n"),
    "brotli": lambda visit: visit.send(PICTURE, OK + "Content-Encoding: br\r\n"),
    "busy-always": lambda visit: visit.status("429 Too Many Requests", "Retry-After: 0"),
    "busy-date": _busy_date,
    "busy-long": lambda visit: visit.status("429 Too Many Requests", "Retry-After: 86400"),
    "busy-once": _busy_once,
    "chunked": _chunked,
    "continue": _continue,
    "cut": _cut,
    "cut-once": _cut_once,
    "declared-huge": lambda visit: visit.raw(PNG + "Content-Length: 999999999999\r\n\r\n"),
    "drip": _drip,
    "drip-head": _drip_head,
    "empty": lambda visit: visit.send(b""),
    "endless": _endless,
    "forbidden": lambda visit: visit.status("403 Forbidden"),
    "garbage": lambda visit: visit.raw(b"\x00\xff\x13 what?\r\n\r\n"),
    "gone": lambda visit: visit.status("410 Gone"),
    "gzip": lambda visit: visit.send(gzip.compress(PICTURE), PNG + "Content-Encoding: gzip\r\n"),
    "gzip-bomb": _gzip_bomb,
    "gzip-torn": lambda visit: visit.send(gzip.compress(PICTURE)[:-9], PNG + "Content-Encoding: gzip\r\n"),
    "hang": _hang,
    "hop": _hop,
    "html": lambda visit: visit.send(b"<html><body>Please log in</body></html>", OK + "Content-Type: text/html\r\n"),
    "loop": lambda visit: visit.to("/loop"),
    "missing": lambda visit: visit.status("404 Not Found"),
    "moved": lambda visit: visit.to("/ok/7"),
    "no-content": lambda visit: visit.raw("HTTP/1.1 204 No Content\r\n\r\n"),
    "no-length": _no_length,
    "no-type": lambda visit: visit.send(PICTURE, OK),
    "ok": _number,
    "opted-out": lambda visit: visit.send(PICTURE, PNG + "X-Robots-Tag: nofollow, noai\r\n"),
    "partial": lambda visit: visit.status("206 Partial Content", body=PICTURE),
    "reset": _reset,
    "reset-once": _reset_once,
    "shaky": _shaky,
    "sick": lambda visit: visit.status("500 Oops"),
    "slow": _slow_picture,
    "too-short": _too_short,
    "torn": lambda visit: visit.send(PICTURE[:-40]),
    "to-file": lambda visit: visit.to("file:///etc/passwd"),
    "to-inner": lambda visit: visit.to(f"http://127.0.0.2:{visit.server.port}/ok/7"),
    "to-metadata": lambda visit: visit.to("http://169.254.169.254/latest/meta-data/"),
    "to-nowhere": lambda visit: visit.status("302 Found"),
    "to-password": lambda visit: visit.to(f"http://me:secret@127.0.0.1:{visit.server.port}/ok/7"),
    "wrong-type": lambda visit: visit.send(PICTURE, OK + "Content-Type: text/plain\r\n"),
}


class WebServer:
    """Listens on 127.0.0.1 (and answers nothing on 127.0.0.2, but counts who knocks).

    Attributes:
        visits: requests by path.
        peak: the most requests that were under way at a time, by the Host header, and "" for all of them.
        knocks: connections to the forbidden address.
    """

    def __init__(self) -> None:
        self.visits: Counter[str] = Counter()
        self.active: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.knocks = 0
        self.port = 0
        self.heads: list[bytes] = []
        self.bomb = gzip.compress(bytes(1 << 25), 1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def __enter__(self) -> "WebServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._forbidden = await asyncio.start_server(self._knock, "127.0.0.2", self.port)

    async def _close(self) -> None:
        self._server.close()
        self._forbidden.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _knock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.knocks += 1
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        lines = head.decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1].lstrip("/")
        host = next(line[6:] for line in lines if line.lower().startswith("host: "))
        self.visits[path] += 1
        for name in (host, ""):
            self.active[name] += 1
            self.peak[name] = max(self.peak[name], self.active[name])
        try:
            visit = Visit(self, path, host, writer)
            await BEHAVIOURS[path.partition("?")[0].partition("/")[0]](visit)
            return visit.stays_open
        finally:
            for name in (host, ""):
                self.active[name] -= 1


@contextlib.contextmanager
def serving() -> Iterator[WebServer]:
    """A running server."""
    with WebServer() as server:
        yield server


def write_list(path: Path, urls: list[str]) -> Path:
    """A list of URLs with a caption each, as csv or jsonl."""
    if path.suffix == ".csv":
        path.write_text("url,caption\n" + "".join(f'"{url}",caption {n}\n' for n, url in enumerate(urls)), "utf-8")
    else:
        rows = ({"url": url, "caption": f"caption {n}"} for n, url in enumerate(urls))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


if __name__ == "__main__":  # for trying things by hand: python -m tests.data.download.server
    with serving() as running:
        sys.stdout.write(f"{running.url('ok/1')}\n")
        sys.stdout.flush()
        sys.stdin.read()

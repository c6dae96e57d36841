"""Fetches one URL into a file, or says why not: tries, redirects, limits on bytes and time.

The engine is httpcore, the lower half of httpx: it has no cookies, no proxies, no passwords from the environment, and follows and
unpacks nothing by itself. Whatever a server does, a URL costs at most `tries * seconds` of asking and `MAX_BYTES` of disk.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import httpcore
import httpx

from sightline import __version__
from sightline.data.download.gate import Gate, Target, parse_url
from sightline.data.download.hosts import Host, Hosts
from sightline.data.download.options import MAX_BYTES, MAX_REDIRECTS, DownloadOptions
from sightline.errors import RecordError, StorageError
from sightline.runtime import fault_injection

BUSY = frozenset({408, 425, 429, 503})  # the host as a whole wants less
PASSING = BUSY | {500, 502, 504}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NOT_FOR_TRAINING = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
AGENT = f"sightline/{__version__}"
DRAINED = 1 << 16  # bytes of an answer that nobody wants, read so that the connection can be used again
CUT = ("peer closed connection", "server disconnected")  # how the words of h11 and httpcore begin


class Got(NamedTuple):
    """What became of a URL.

    Attributes:
        sha256, size: of the content; empty and 0 where there is none.
        reason, detail: why there is none; empty where there is.
        may_pass: whether the trouble may be over when it is asked for another time.
    """

    sha256: str = ""
    size: int = 0
    reason: str = ""
    detail: str = ""
    may_pass: bool = False


class _Passing(Exception):
    """A fault that another try may not meet."""

    def __init__(self, reason: str, detail: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.wait = reason, detail, wait


class Fetcher:
    """Fetches URLs; belongs to one event loop.

    Args:
        options: limits.
        gate: makes the connections.
    """

    def __init__(self, options: DownloadOptions, gate: Gate) -> None:
        self.options = options
        self.hosts = Hosts(options, self._new_pool)
        self._gate = gate
        self._context = httpx.create_ssl_context()

    def _new_pool(self) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            ssl_context=self._context,
            max_connections=None,  # `hosts` counts
            max_keepalive_connections=self.options.per_host,
            keepalive_expiry=5.0,
            network_backend=self._gate,
        )

    async def fetch(self, url: str, path: Path) -> Got:
        """Fetches a URL into a new file; where it fails no file is left.

        Raises:
            StorageError: the disk refuses.
        """
        options = self.options
        fault = _Passing("download_error", "")
        for number in range(options.tries):
            try:
                return await self._try(url, path)
            except RecordError as error:
                return Got(reason=error.reason, detail=error.message, may_pass=not _is_lasting(error.reason))
            except _Passing as error:
                fault = error
            wait = options.pause_seconds * 2**number if fault.wait is None else fault.wait
            if number + 1 == options.tries or wait > options.max_pause_seconds:
                break
            await asyncio.sleep(wait)
        return Got(reason=fault.reason, detail=fault.detail, may_pass=True)

    async def _try(self, url: str, path: Path) -> Got:
        """One try: the request and those to which it is redirected."""
        loop = asyncio.get_running_loop()
        target = parse_url(url)
        left = self.options.seconds
        for _ in range(MAX_REDIRECTS + 1):
            async with self.hosts.slot(target.host) as (host, pool):
                if host.verdict is not None:
                    raise RecordError(*host.verdict)
                begin = loop.time()
                answer = await self._request(target, host, pool, path, left)
                left -= loop.time() - begin
            if isinstance(answer, Got):
                return answer
            target = answer
        raise RecordError("download_redirects", f"more than {MAX_REDIRECTS} redirects")

    async def _request(
        self, target: Target, host: Host, pool: httpcore.AsyncConnectionPool, path: Path, seconds: float
    ) -> Got | Target:
        """One request; what goes wrong with it becomes a RecordError or a _Passing."""
        name = target.host
        try:
            async with asyncio.timeout(seconds):
                return await self._get(target, host, pool, path)
        except (RecordError, _Passing, StorageError):
            raise
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                raise RecordError("download_tls", f"{name} has no certificate that can be trusted, or speaks no TLS") from error
            fault = "download_no_connection", f"{name} cannot be reached"
            host.refused(*fault)
            if isinstance(error, httpcore.ConnectTimeout):
                raise RecordError(*fault) from error
            raise _Passing(*fault) from error
        except (TimeoutError, httpcore.TimeoutException) as error:
            host.refused("download_timeout", f"{name} did not answer in time")
            raise RecordError("download_timeout", f"{name} did not answer in time") from error
        except httpcore.NetworkError as error:
            raise _Passing("download_cut", f"{name} closed the connection before the end") from error
        except httpcore.ProtocolError as error:
            if str(error).lower().startswith(CUT):
                raise _Passing("download_cut", f"{name} closed the connection before the end") from error
            raise RecordError("download_protocol", f"the answer of {name} is not HTTP as it should be") from error
        except Exception as error:  # a strange end that httpcore has no name for costs this URL alone, and is counted
            raise _Passing("download_error", f"{type(error).__name__} while asking {name}") from error

    async def _get(self, target: Target, host: Host, pool: httpcore.AsyncConnectionPool, path: Path) -> Got | Target:
        options = self.options
        headers = [
            (b"Host", target.url.netloc),
            (b"User-Agent", AGENT.encode("ascii")),
            (b"Accept", b"image/*, */*;q=0.5"),
            (b"Accept-Encoding", b"identity"),
        ]
        limits = {
            "connect": options.connect_seconds,
            "read": options.silence_seconds,
            "write": options.silence_seconds,
            "pool": options.seconds,
        }
        async with pool.stream("GET", target.parts, headers=headers, extensions={"timeout": limits}) as response:
            fields = _fields(response)
            status = response.status
            if status in BUSY:
                wait = _retry_after(fields.get("retry-after"))
                host.refused(f"http_{status}", f"HTTP {status}")
                if wait is not None and wait <= options.max_pause_seconds:
                    host.pause(wait)
                raise _Passing(f"http_{status}", f"HTTP {status}", wait)
            host.answered()
            if status in PASSING:
                raise _Passing(f"http_{status}", f"HTTP {status}")
            if status in REDIRECTS:
                await _drain(response, fields)
                return _redirected(target, fields)
            if status != 200:
                await _drain(response, fields)
                raise RecordError(f"http_{status}", f"HTTP {status}")
            _check_wish(fields.get("x-robots-tag", ""))
            _check_length(fields)
            async with contextlib.aclosing(_decoded(response, fields)) as content:
                return await _save(content, path)


# An answer ------------------------------------------------------------------------------------------------------------------


def _fields(response: httpcore.Response) -> dict[str, str]:
    """Headers by name in lower case; those of one name are joined by commas, as HTTP has it."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: a number, or a date (RFC 9110, 10.2.3); None where the server says nothing that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value) if len(value) < 9 else float("inf")
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _redirected(target: Target, fields: dict[str, str]) -> Target:
    where = fields.get("location")
    if where is None:
        raise RecordError("download_redirects", "a redirect that does not say where to")
    try:
        return parse_url(where.encode("latin-1").decode("utf-8", "replace"), target.url)
    except RecordError as error:
        raise RecordError(error.reason, f"redirected by {target.host}: {error.message}") from error


def _check_wish(tag: str) -> None:
    """Whether the owner lets the image be used (X-Robots-Tag); a wish may name the robot that it is for."""
    for wish in tag.lower().split(","):
        robot, colon, directive = wish.rpartition(":")
        if directive.strip() in NOT_FOR_TRAINING and (not colon or robot.strip() == "sightline"):
            raise RecordError("download_opted_out", f"the server says {directive.strip()!r}")


def _check_length(fields: dict[str, str]) -> None:
    length = fields.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BYTES:
        raise RecordError("download_too_large", f"more than {MAX_BYTES} bytes")


async def _drain(response: httpcore.Response, fields: dict[str, str]) -> None:
    length = fields.get("content-length", "")
    if length.isdecimal() and int(length[:20]) <= DRAINED:
        async for _ in response.aiter_stream():
            pass


async def _decoded(response: httpcore.Response, fields: dict[str, str]) -> AsyncGenerator[bytes, None]:
    """The content; what a server compressed though it was asked not to is unpacked piece by piece, never beyond the limit."""
    encoding = fields.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_stream():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RecordError("download_encoding", f"compressed in a way that was not asked for: {encoding[:40]!r}")
    inflater = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    try:
        async for chunk in response.aiter_stream():
            pending = chunk
            while pending and not inflater.eof:
                yield inflater.decompress(pending, 1 << 16)
                pending = inflater.unconsumed_tail
    except zlib.error as error:
        raise RecordError("download_encoding", "the compressed content is damaged") from error
    if not inflater.eof:
        raise RecordError("download_encoding", "the compressed content is cut")


async def _save(content: AsyncIterator[bytes], path: Path) -> Got:
    """Writes content into a new file while it comes."""
    digest, size = hashlib.sha256(), 0
    with _disk(path):
        file = path.open("xb")
    try:
        async for chunk in content:
            size += len(chunk)
            if size > MAX_BYTES:
                raise RecordError("download_too_large", f"more than {MAX_BYTES} bytes")
            digest.update(chunk)
            with _disk(path):
                fault_injection.hit("download.write")
                file.write(chunk)
        with _disk(path):
            file.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):  # what `flush` could not write, and has told
            file.close()
    return Got(digest.hexdigest(), size)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tells the disk's refusals from those of the network."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}.", "Free space or choose another folder.") from error


def _is_lasting(reason: str) -> bool:
    """Whether a server has said what it will say again."""
    return reason.startswith("http_") and int(reason.removeprefix("http_")) not in PASSING

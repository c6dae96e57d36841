"""Downloads one URL into a file, with retries, redirects, and limits on bytes and time.

Uses httpcore, the transport of httpx: it has no cookies, no proxies, no credentials from the environment, and neither follows
redirects nor decompresses by itself. A URL costs at most `tries * seconds` of requests and `MAX_BYTES` of disk.
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

BUSY = frozenset({408, 425, 429, 503})  # the host asks for fewer requests
TEMPORARY_STATUS = BUSY | {500, 502, 504}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NOT_FOR_TRAINING = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
AGENT = f"sightline/{__version__}"
DRAINED = 1 << 16  # maximum bytes of an unused response body that are read so that the connection can be reused
CUT = ("peer closed connection", "server disconnected")  # beginnings of error messages of h11 and httpcore for a broken connection


class FetchResult(NamedTuple):
    """Outcome of downloading a URL.

    Attributes:
        sha256, size: of the content; empty and 0 after a failure.
        reason, detail: why it failed; empty after success.
        is_temporary: whether a later attempt may succeed.
    """

    sha256: str = ""
    size: int = 0
    reason: str = ""
    detail: str = ""
    is_temporary: bool = False


class _TemporaryError(Exception):
    """A failure that a retry may not have."""

    def __init__(self, reason: str, detail: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.wait = reason, detail, wait


class Fetcher:
    """Downloads URLs within one event loop.

    Args:
        options: limits.
        gate: opens checked connections.
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

    async def fetch(self, url: str, path: Path) -> FetchResult:
        """Downloads a URL into a new file; leaves no file after a failure.

        Raises:
            StorageError: the file cannot be written.
        """
        options = self.options
        fault = _TemporaryError("download_error", "")
        for number in range(options.tries):
            try:
                return await self._try(url, path)
            except RecordError as error:
                return FetchResult(reason=error.reason, detail=error.message, is_temporary=not _is_lasting(error.reason))
            except _TemporaryError as error:
                fault = error
            wait = options.pause_seconds * 2**number if fault.wait is None else fault.wait
            if number + 1 == options.tries or wait > options.max_pause_seconds:
                break
            await asyncio.sleep(wait)
        return FetchResult(reason=fault.reason, detail=fault.detail, is_temporary=True)

    async def _try(self, url: str, path: Path) -> FetchResult:
        """Makes one attempt: the request and its redirects."""
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
            if isinstance(answer, FetchResult):
                return answer
            target = answer
        raise RecordError("download_redirects", f"more than {MAX_REDIRECTS} redirects")

    async def _request(
        self, target: Target, host: Host, pool: httpcore.AsyncConnectionPool, path: Path, seconds: float
    ) -> FetchResult | Target:
        """Makes one request; converts failures to RecordError or _TemporaryError."""
        name = target.host
        try:
            async with asyncio.timeout(seconds):
                return await self._get(target, host, pool, path)
        except (RecordError, _TemporaryError, StorageError):
            raise
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                raise RecordError("download_tls", f"{name} has no trusted certificate, or does not support TLS") from error
            fault = "download_no_connection", f"{name} cannot be reached"
            host.refused(*fault)
            if isinstance(error, httpcore.ConnectTimeout):
                raise RecordError(*fault) from error
            raise _TemporaryError(*fault) from error
        except (TimeoutError, httpcore.TimeoutException) as error:
            host.refused("download_timeout", f"{name} did not answer in time")
            raise RecordError("download_timeout", f"{name} did not answer in time") from error
        except httpcore.NetworkError as error:
            raise _TemporaryError("download_cut", f"{name} closed the connection before the end") from error
        except httpcore.ProtocolError as error:
            if str(error).lower().startswith(CUT):
                raise _TemporaryError("download_cut", f"{name} closed the connection before the end") from error
            raise RecordError("download_protocol", f"the response of {name} is not valid HTTP") from error
        except Exception as error:  # any other failure affects this URL only
            raise _TemporaryError("download_error", f"{type(error).__name__} while asking {name}") from error

    async def _get(self, target: Target, host: Host, pool: httpcore.AsyncConnectionPool, path: Path) -> FetchResult | Target:
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
                raise _TemporaryError(f"http_{status}", f"HTTP {status}", wait)
            host.answered()
            if status in TEMPORARY_STATUS:
                raise _TemporaryError(f"http_{status}", f"HTTP {status}")
            if status in REDIRECTS:
                await _drain(response, fields)
                return _redirected(target, fields)
            if status != 200:
                await _drain(response, fields)
                raise RecordError(f"http_{status}", f"HTTP {status}")
            _check_robots_tag(fields.get("x-robots-tag", ""))
            _check_length(fields)
            async with contextlib.aclosing(_decoded(response, fields)) as content:
                return await _save(content, path)


# An answer ------------------------------------------------------------------------------------------------------------------


def _fields(response: httpcore.Response) -> dict[str, str]:
    """Returns headers by lower-case name; repeated headers are joined by commas, as HTTP defines."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _retry_after(value: str | None) -> float | None:
    """Parses Retry-After, a number of seconds or a date (RFC 9110, 10.2.3); returns None where it cannot be parsed."""
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
        raise RecordError("download_redirects", "a redirect without a location")
    try:
        return parse_url(where.encode("latin-1").decode("utf-8", "replace"), target.url)
    except RecordError as error:
        raise RecordError(error.reason, f"redirected by {target.host}: {error.message}") from error


def _check_robots_tag(tag: str) -> None:
    """Respects X-Robots-Tag, whose directives may name a robot.

    Raises:
        RecordError: `download_opted_out`, the owner does not allow this use.
    """
    for entry in tag.lower().split(","):
        robot, colon, directive = entry.rpartition(":")
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
    """Yields the content, decompressed in pieces where the server compressed it although `identity` was requested."""
    encoding = fields.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_stream():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RecordError("download_encoding", f"compressed with an unsupported encoding: {encoding[:40]!r}")
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
        raise RecordError("download_encoding", "the compressed content is truncated")


async def _save(content: AsyncIterator[bytes], path: Path) -> FetchResult:
    """Streams content into a new file."""
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
        with contextlib.suppress(OSError):  # already reported by `flush`
            file.close()
    return FetchResult(digest.hexdigest(), size)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Converts OSError of the disk to StorageError, so that it is not taken for a network failure."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}.", "Free space or choose another folder.") from error


def _is_lasting(reason: str) -> bool:
    """Tells whether a failure is permanent: an HTTP status that a retry would give again."""
    return reason.startswith("http_") and int(reason.removeprefix("http_")) not in TEMPORARY_STATUS

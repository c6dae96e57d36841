"""Parses URLs, and opens connections only to resolved and checked addresses.

The address is checked where the connection is opened, so no second DNS look-up can give another address (DNS rebinding); redirects
are checked like the first URL. TLS still verifies the host name.
"""

import asyncio
import contextlib
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpcore
import httpx

from sightline.data.download.addresses import Address, is_allowed, refusal
from sightline.data.download.options import MAX_URL, OPEN_PORTS, DownloadOptions
from sightline.errors import RecordError

LOOKUPS = 32  # names at a time
REMEMBERED = 1 << 14  # hosts whose addresses are kept
REMEMBER_SECONDS = 300.0
MAX_ADDRESSES = 4  # of a host that are tried
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?\Z")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\Z")  # a host whose last part looks so is an address, says the URL standard
_AUTHORITY_END = re.compile(r"[/?#]")
_BAD = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL."""

    url: httpx.URL
    host: str
    port: int

    @property
    def parts(self) -> httpcore.URL:
        return httpcore.URL(
            scheme=self.url.raw_scheme, host=self.host.encode("ascii"), port=self.url.port, target=self.url.raw_path
        )


def parse_url(text: object, base: httpx.URL | None = None) -> Target:
    """Parses a URL and checks that its text allows a request.

    Args:
        text: the URL.
        base: the URL that a redirect is relative to.

    Raises:
        RecordError: `bad_url` for an invalid URL; `url_refused` for another scheme, credentials, or a disguised address.
    """
    if not isinstance(text, str) or not text.strip(" \t\r\n"):
        raise RecordError("bad_url", "the URL is empty" if isinstance(text, str) or text is None else "a URL is a text")
    text = text.strip(" \t\r\n")
    if len(text) > MAX_URL:
        raise RecordError("bad_url", f"the URL has {len(text)} characters, at most {MAX_URL} are allowed")
    if _BAD.search(text):
        raise RecordError("bad_url", "the URL has a backslash or a control character")
    try:
        url = httpx.URL(text) if base is None else base.join(text)
        host, port = url.raw_host.decode("ascii").lower(), url.port
    except (httpx.InvalidURL, ValueError) as error:  # UnicodeError and the errors of idna are ValueErrors
        raise RecordError("bad_url", "it cannot be read as a URL") from error
    if url.scheme not in ("http", "https"):
        raise RecordError("url_refused", f"only http and https are fetched, not {url.scheme[:20]!r}")
    if url.userinfo or "@" in _AUTHORITY_END.split(text.partition("://")[2])[0]:
        raise RecordError("url_refused", "a URL with a user name or a password is not fetched")
    port = (443 if url.scheme == "https" else 80) if port is None else port
    if not 0 < port < 1 << 16:
        raise RecordError("bad_url", f"there is no port {port}")
    return Target(url, _checked_host(host), port)


def _checked_host(host: str) -> str:
    try:
        if ":" in host:
            return str(IPv6Address(host)) if "%" not in host else _refuse_host("an address with a zone")
        if _NUMBER.match(host.rstrip(".").rpartition(".")[2]):
            return str(IPv4Address(host))
    except ValueError:
        return _refuse_host("a number that is no plain address")
    if len(host) > 253 or not _HOST.match(host):
        raise RecordError("bad_url", "the URL names no host, or one that cannot be")
    return host


def _refuse_host(what: str) -> str:
    raise RecordError("url_refused", f"the host is {what}")


# Addresses ------------------------------------------------------------------------------------------------------------------

LookUp = Callable[[str, int], list[str]]


def look_up(host: str, port: int) -> list[str]:
    """Resolves a host with the system's resolver; returns its addresses, IPv4 first.

    Raises:
        OSError: the host is unknown, or the resolver does not answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = dict.fromkeys(str(info[4][0]) for info in found)
    return sorted(addresses, key=lambda address: ":" in address)


class Gate(httpcore.AsyncNetworkBackend):
    """Network backend of httpcore that connects only to checked addresses.

    Args:
        options: allowed networks and the connection timeout.
        look_up: resolves a host.
    """

    def __init__(self, options: DownloadOptions, look_up: LookUp = look_up) -> None:
        self.options = options
        self._look_up = look_up
        plain = httpcore.AnyIOBackend()
        assert isinstance(plain, httpcore.AsyncNetworkBackend)  # httpcore has a stand-in of that name where anyio is missing
        self._plain = plain
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._known: OrderedDict[str, tuple[float, list[Address]]] = OrderedDict()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to the first address of a host that answers, provided that all of its addresses are allowed.

        Raises:
            RecordError: `url_refused`, `download_no_host`.
            httpcore.ConnectError, httpcore.ConnectTimeout: none of them answers.
        """
        addresses = await self.addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._plain.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._plain.connect_tcp(str(addresses[-1]), port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise RecordError("url_refused", "a socket of this host")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Resolves a host and checks its addresses.

        Raises:
            RecordError: `url_refused` if an address is not allowed; `download_no_host` if there is none.
        """
        allowed = self.options.allowed
        found = await self._found(host, port)
        for address in found:
            if why := refusal(address, allowed):
                raise RecordError("url_refused", f"{host}: {why}" if str(address) != host else why)
        if port not in OPEN_PORTS and not all(is_allowed(address, allowed) for address in found):
            raise RecordError("url_refused", f"port {port} is neither 80 nor 443")
        return found[:MAX_ADDRESSES]

    async def _found(self, host: str, port: int) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            pass  # a name
        now = asyncio.get_running_loop().time()
        known = self._known.get(host)
        if known is not None and known[0] > now:
            return known[1]
        async with self._lookups:
            try:
                async with asyncio.timeout(self.options.connect_seconds):
                    found = await _in_thread(lambda: self._look_up(host, port))
                addresses = [ip_address(text) for text in found]
            except (OSError, ValueError) as error:  # TimeoutError and gaierror are OSErrors, a name that cannot be a ValueError
                raise RecordError("download_no_host", f"no address of {host} is known") from error
        if not addresses:
            raise RecordError("download_no_host", f"no address of {host} is known")
        self._known[host] = (now + REMEMBER_SECONDS, addresses)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return addresses


async def _in_thread(work: Callable[[], list[str]]) -> list[str]:
    """Runs a function in a daemon thread and awaits its result: a resolver may hang for minutes and must not delay the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str] | OSError | ValueError) -> None:
        if future.done():  # given up
            return
        if isinstance(found, list):
            future.set_result(found)
        else:
            future.set_exception(found)

    def run() -> None:
        try:
            found: list[str] | OSError | ValueError = work()
        except (OSError, ValueError) as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the answer is late
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=run, name="look-up", daemon=True).start()
    return await future

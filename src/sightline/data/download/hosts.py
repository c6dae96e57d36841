"""Rate limits per host: concurrent requests, pauses, and giving up hosts that keep failing.

A host that answers 429 or 503 with Retry-After gets no request before that time. A host that fails many times in a row is given up:
its remaining URLs fail at once with the same reason instead of timing out one by one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpcore

from sightline.data.download.options import DownloadOptions

GIVE_UP = 20  # requests in a row


@dataclass(slots=True)
class Host:
    """State of a host.

    Attributes:
        slots: limits its concurrent requests.
        not_before: event-loop time before which no request is sent.
        failed: consecutive failed requests.
        verdict: reason and detail for which it was given up; None while it is in use.
        users: running and waiting requests.
        pool: its connections while it has users; one pool for all hosts would look through all connections for every request.
    """

    slots: asyncio.Semaphore
    not_before: float = 0.0
    failed: int = 0
    verdict: tuple[str, str] | None = None
    users: int = 0
    pool: httpcore.AsyncConnectionPool | None = None

    def pause(self, seconds: float) -> None:
        """Sends no request to the host for some seconds."""
        self.not_before = max(self.not_before, asyncio.get_running_loop().time() + seconds)

    def answered(self) -> None:
        """Resets the count of failures after a response."""
        self.failed = 0

    def refused(self, reason: str, detail: str) -> None:
        """Counts a failure; gives the host up after `GIVE_UP` failures in a row."""
        self.failed += 1
        if self.failed >= GIVE_UP:
            self.verdict = (reason, detail)


class Hosts:
    """The hosts with running requests or past failures.

    Args:
        options: how many requests at a time.
        new_pool: makes the connections of a host.
    """

    def __init__(self, options: DownloadOptions, new_pool: Callable[[], httpcore.AsyncConnectionPool]) -> None:
        self._new_pool = new_pool
        self._all = asyncio.Semaphore(options.connections)
        self._per_host = options.per_host
        self._hosts: dict[str, Host] = {}

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[tuple[Host, httpcore.AsyncConnectionPool]]:
        """Waits until a request to a host may be sent; waiting for one host does not block the others."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(asyncio.Semaphore(self._per_host))
        if host.pool is None:
            host.pool = self._new_pool()
        pool = host.pool
        host.users += 1
        try:
            async with host.slots:
                while host.verdict is None and (wait := host.not_before - asyncio.get_running_loop().time()) > 0:
                    await asyncio.sleep(wait)
                async with self._all:
                    yield host, pool
        finally:
            host.users -= 1
            if not host.users:
                host.pool = None
                if not host.failed:
                    del self._hosts[name]
                await pool.aclose()

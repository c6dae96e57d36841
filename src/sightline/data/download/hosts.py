"""Being a good guest: how many requests run at once, in all and to each host, and when a host wants to be left alone.

A host that says when to come back (429, 503 with Retry-After) is not asked before that by anybody. A host that refuses, or gives
no sign of life, many times in a row is given up: its other URLs fail at once for the same reason, instead of one after another
for days.
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
    """What is known of a host.

    Attributes:
        slots: requests that may run.
        not_before: time of the loop until which it is left alone.
        failed: requests in a row that it refused or did not answer.
        verdict: reason and detail for which it was given up.
        users: requests that run or wait.
        pool: its connections, while it has users; one pool for all hosts would look through all connections for every request.
    """

    slots: asyncio.Semaphore
    not_before: float = 0.0
    failed: int = 0
    verdict: tuple[str, str] | None = None
    users: int = 0
    pool: httpcore.AsyncConnectionPool | None = None

    def pause(self, seconds: float) -> None:
        """Lets the host alone for a while."""
        self.not_before = max(self.not_before, asyncio.get_running_loop().time() + seconds)

    def answered(self) -> None:
        """It is alive and willing."""
        self.failed = 0

    def refused(self, reason: str, detail: str) -> None:
        """It is not; too often in a row, and that is the verdict."""
        self.failed += 1
        if self.failed >= GIVE_UP:
            self.verdict = (reason, detail)


class Hosts:
    """All hosts that are asked at present, or with which there was trouble.

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
        """Waits for the right to ask a host; the wait for a busy host takes nothing from the others."""
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

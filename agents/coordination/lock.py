"""A lock that one agent holds at a time, wherever it runs: a lease, for as long as a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from ...bus.leases import Lease, Leases

TTL_S = 10


class Locks:
    """The locks of one process.

    Args:
        leases: those of the bus's agents, opened.
    """

    def __init__(self, leases: Callable[[], Awaitable[Leases]]) -> None:
        self._leases = leases
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, name: str, *, ttl_s: int = TTL_S) -> AsyncIterator[Lease]:
        """Wait for the lock, hold it for the block, then let it go.

        Of those that wait in one process who came first is first. Between processes chance decides; the server tells
        all of them at once. Nobody waits for the dead: a lock outlives its holder by `ttl_s` at most.

        Args:
            name: dot-separated tokens, `report.daily`.
            ttl_s: how long the lock outlives its holder's last renewal, whole s, 1 or more; renewed every third of it.

        Returns:
            The lock. `token` is larger than that of every holder before: give it to what you write to (`Shared.put`).
            `await lock.lost()` returns when it is lost; `lock.check()` raises LeaseLost if it is, and a block that goes
            on long should call it. Losing the lock ends nothing by itself.

        Raises:
            BadParameter: the server has no such time to live.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        leases = await self._leases()
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            lease = await leases.acquire(f"lock.{name}", ttl_s=ttl_s)
            try:
                yield lease
            finally:
                await lease.release()

    @asynccontextmanager
    async def attempt(self, name: str, *, ttl_s: int = TTL_S) -> AsyncIterator[Lease | None]:
        """Hold the lock for the block if nobody else does; None if somebody does.

        Raises:
            NoAnswer, Unavailable, Disconnected: it is not known who holds it.
            Others as `hold`.
        """
        lease = await (await self._leases()).try_acquire(f"lock.{name}", ttl_s=ttl_s)
        try:
            yield lease
        finally:
            if lease is not None:
                await lease.release()

"""A leader among candidates: one at a time, each term with a number larger than those before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import NamedTuple

from ...bus.leases import Lease, Leases

TTL_S = 5


class Leader(NamedTuple):
    """Who leads: the candidate's name, and the number of its term."""

    name: str
    number: int


class Term:
    """A candidate's time as leader.

    Attributes:
        number: larger than that of every term before; give it as `token` to what the leader writes to, so that a
            leader of the past is refused.
    """

    def __init__(self, lease: Lease) -> None:
        self.number = lease.token
        self._lease = lease

    @property
    def leading(self) -> bool:
        """Whether this candidate may still act, by its own clock as it is now."""
        return self._lease.held

    def check(self) -> None:
        """Raise LeaseLost unless the term goes on."""
        self._lease.check()

    async def lost(self) -> str:
        """Wait until the term is over; returns why."""
        return await self._lease.lost()

    async def resign(self) -> None:
        """Let another lead; out of the server's reach, the term ends with its time to live. Idempotent."""
        await self._lease.release()


class Election:
    """Candidates for one office; `async with` it to campaign, lead for the block, and resign.

    Tasks that enter the same object come one after the other: each resigns its own term.

    Args:
        leases: those of the bus's agents under this candidate's name, opened.
        name: of the office, dot-separated tokens.
        ttl_s: how long a term outlives its leader's last renewal, whole s, 1 or more.
    """

    def __init__(self, leases: Callable[[], Awaitable[Leases]], name: str, ttl_s: int = TTL_S) -> None:
        self._leases = leases
        self._lease_name = f"election.{name}"
        self._ttl_s = ttl_s
        self._turn = asyncio.Lock()
        self._term: Term | None = None

    async def __aenter__(self) -> Term:
        await self._turn.acquire()
        try:
            self._term = await self.campaign()
        except BaseException:
            self._turn.release()
            raise
        return self._term

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._term is not None
        try:
            await self._term.resign()
        finally:
            self._turn.release()

    async def campaign(self) -> Term:
        """Wait until nobody leads, and lead. Of several candidates chance decides.

        Raises:
            BadParameter: the server has no such time to live.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        return Term(await (await self._leases()).acquire(self._lease_name, ttl_s=self._ttl_s))

    async def watch(self) -> AsyncGenerator[Leader | None, None]:
        """Who leads, now and whenever that changes (None: nobody); close the iterator (`aclosing`).

        It tells states, not events: of changes in quick succession, or while the connection was lost, only the last.
        """
        async with aclosing((await self._leases()).watch(self._lease_name)) as states:
            async for held in states:
                yield None if held is None else Leader(held.holder, held.token)

"""Calling an agent with state: to whichever process owns the key, until it has been applied once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from ..bus.client import Client
from ..bus.deadline import inherited_s
from ..bus.errors import Busy, Moved, NoWorker, WrongKind
from .asking import Asking, row_of
from .handler import Handler, Priority
from .saved import CallNumber

PATIENCE_S = 15.0  # that a key may be without an owner, as long as a subject that was served before
SOONEST_S = 0.02  # between two tries
LATEST_S = 0.25


class Numbers:
    """The numbers of one client's calls, and which of them are open.

    Args:
        client: by which agents tell clients apart.
    """

    def __init__(self, client: int) -> None:
        self._client = client
        self._count = itertools.count(1)
        self._open: dict[tuple[str, str], dict[int, None]] = {}

    @contextmanager
    def open(self, agent: str, key: str) -> Iterator[CallNumber]:
        """The number of a call, for as long as it may be sent."""
        number = next(self._count)
        calls = self._open.setdefault((agent, key), {})
        calls[number] = None
        try:
            yield CallNumber(self._client, number, next(iter(calls)))
        finally:
            del calls[number]
            if not calls:
                self._open.pop((agent, key), None)


class AskingKey(Asking):
    """A handler of an agent with state, to be called for one key.

    Args:
        client, name, declared: as of `Asking`; the name ends in the key's partition.
        key: whose state it is.
        numbers: of this client's calls.
    """

    __slots__ = ("_agent", "_key", "_numbers")

    def __init__(
        self, client: Client, name: str, declared: Handler | None, agent: str, key: str, numbers: Numbers
    ) -> None:
        super().__init__(client, name, declared)
        self._agent = agent
        self._key = key
        self._numbers = numbers

    async def __call__(
        self,
        message: Any = None,
        *,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Ask for one reply; as `Asking`, but always sent again when it, or its answer, may be lost: it counts once.

        Raises:
            Expired: no answer came in time: it was applied once, or not at all.
            NoWorker: nobody has owned the key for 15 s.
            BusError: what the handler raised: it was not applied.
        """
        limit_s = self._timeout_s(timeout_s)
        left_s = inherited_s(self._client.timeout_s if limit_s is None else limit_s)
        loop = asyncio.get_running_loop()
        end = loop.time() + left_s
        gone: float | None = None  # since when nobody serves the key
        tries = 0
        with self._numbers.open(self._agent, self._key) as number:
            row = {**row_of(message), "key": self._key, "call": number.encode()}
            while True:
                try:
                    answer = await self._client.call(
                        self._name, row, timeout_s=left_s, priority=self._priority(priority), idempotent=True
                    )
                    return self._read(answer.get("reply"))
                except NoWorker:
                    gone = loop.time() if gone is None else gone
                    if loop.time() - gone >= PATIENCE_S:
                        raise
                except Busy as busy:
                    # That it has not run is true of the last try only.
                    if not isinstance(busy, Moved) and not tries:
                        raise
                    gone = None
                tries += 1
                await asyncio.sleep(min(SOONEST_S * 2 ** min(tries, 8), LATEST_S) * (0.5 + random.random()))
                left_s = max(end - loop.time(), 0.001)

    def stream(
        self, message: Any = None, *, timeout_s: float | None = None, priority: Priority | None = None
    ) -> AsyncGenerator[Any, None]:
        """Agents with state do not stream.

        Raises:
            WrongKind: always.
        """
        raise WrongKind(f"{self._agent} has state, and answers once: call it, await peer.{self._name.split('.')[2]}(…)")

    async def all(self, message: Any = None, *, timeout_s: float = 0.0, most: int | None = None) -> dict[str, Any]:
        """A key has one owner.

        Raises:
            WrongKind: always.
        """
        raise WrongKind(f"{self._agent} {self._key!r} has one owner: call it, await peer.{self._name.split('.')[2]}(…)")

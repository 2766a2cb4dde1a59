"""Streams, serving side: a generator's items, handed out as their caller asks for more.

Each part of the stream is one row that asks for what has been produced since the last; those under way are the
generator's credit. It runs ahead of them by one answer's worth of items, and then waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from math import inf
from time import monotonic
from typing import Any

import numpy as np

from ..bus.columns import pack_array, pack_strings
from ..bus.deadline import until
from ..bus.errors import BadFrame, BusError, Cancelled
from ..bus.frames import row_error
from ..bus.service import Held, Service
from .agent import Resident
from .handler import Handler
from .message import Encoded, encode, join
from .run import Run

MOST_ITEMS = 128  # of one answer
MOST_BYTES = 64 * 1024  # beyond which an answer takes no further item


class Producer(Run):
    """A stream that runs, or waits in the mailbox."""

    __slots__ = ("_bytes", "_delivering", "_end", "_items", "_pulls", "_room", "_sent", "_service", "_waited_until")

    def __init__(
        self, resident: Resident, handler: Handler, held: Held, message: Encoded, chain: bytes, service: Service
    ) -> None:
        super().__init__(resident, handler, held, message, chain)
        self._service = service
        self._pulls: deque[Held] = deque()
        self._items: list[Encoded] = []
        self._bytes = 0
        self._sent = 0
        self._end: BusError | bool = False  # true, or the error that ends it
        self._room = asyncio.Event()
        self._delivering = False
        self._waited_until = 0.0
        self.pull(held)

    def pull(self, held: Held) -> None:
        """One more answer is wanted."""
        held.ticket = self
        self._pulls.append(held)
        self._waited_until = max(self._waited_until, held.deadline)
        if self._items or self._end:
            self._deliver_soon()

    def withdraw(self, held: Held) -> None:
        """An answer is not wanted any more."""
        if held in self._pulls:
            self._pulls.remove(held)
            self._service.drop(held, 1)

    async def work(self, bus: Any) -> None:
        """Run the generator to its end; cancelled, it is closed: its `finally` runs."""
        try:
            async with aclosing(self.handler.function(*self.enter(bus))) as items:
                self._extend_deadline()
                async for item in items:
                    encoded = encode(item, text=self.text)
                    self._items.append(encoded)
                    self._bytes += len(encoded)
                    self._deliver_soon()
                    if len(self._items) >= MOST_ITEMS or self._bytes >= MOST_BYTES:
                        self._room.clear()
                        await self._room.wait()
                    self._extend_deadline()
        except Exception as error:
            self.refuse(self.failed(error))
        else:
            self._end = True
            self._deliver_soon()

    def refuse(self, error: BusError) -> None:
        if self.left is Cancelled:
            while self._pulls:
                self._service.drop(self._pulls.popleft(), 1)
        elif not self._end:
            self._end = error
            self._deliver_soon()

    def ended_early(self) -> BusError:
        if self.left is BadFrame:
            return BadFrame("too many streams are open here, most of this client: this one was closed, open fewer")
        return super().ended_early()

    def _extend_deadline(self) -> None:
        """What is asked for the next item is waited for as long as that is."""
        limit_s = self.handler.deadline_s
        until.set(min(self._waited_until, monotonic() + (inf if limit_s is None else limit_s)))

    def _deliver_soon(self) -> None:
        """Answer at the end of this tick: items that came together leave together."""
        if not self._delivering:
            self._delivering = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False
        if self._items and self._pulls:
            self._answer()
        if self._end and not self._items:
            while self._pulls:
                self._answer()

    def _answer(self) -> None:
        held = self._pulls.popleft()
        if isinstance(self._end, BusError) and not self._items:
            self._service.answer(held, [], {}, [row_error(self._end, 0, 1)])
            return
        columns = {
            "items": pack_strings([join(self._items, text=self.text)]),
            "seq": pack_array(np.array([self._sent], np.uint32)),
            "end": pack_array(np.array([self._end is True])),
        }
        self._service.answer(held, [(0, 1)], columns, [])
        self._sent += len(self._items)
        self._items, self._bytes = [], 0
        self._room.set()

"""The load: one process that calls at a steady rate until it is asked to end, and checks every answer.

Lone calls and `call_many` take turns, in rows about as many of each. A row's numbers are its own, so that the answer of
another row is a wrong one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

import msgspec
import numpy as np

from ...agents import Bus, connect
from ...bus.columns import Array
from ...bus.errors import BusError
from ...bus.pending import RowsFailed
from ...config import Settings, configure_logging
from ..demo_process import be_child, tell
from .ledger import Account, Ledger

OPERATION = "matrix.multiply"
WIDTH = 4
FACTOR = 3.0
MANY = 32
"""Rows of a `call_many`; as many lone calls are made beside it."""
OPEN_CALLS = 4096
"""Most calls of a process without an answer: a worker's queue must not be what refuses them."""
TICK_S = 0.004
TELL_S = 0.25


class LoadTask(msgspec.Struct):
    """What one process of the load does.

    Attributes:
        settings: how to reach the bus.
        rate: calls a second; 0 for as many as are answered.
        timeout_s: deadline of each call, s.
        began_s: the start of the timeline, monotonic time, s.
        offset: number of the first call; no other process has those that follow.
    """

    settings: Settings
    rate: float
    timeout_s: float
    began_s: float
    offset: int


class Told(msgspec.Struct):
    """What it says now and then, and at its end."""

    account: Account


class Load:
    """Calls of one process."""

    def __init__(self, task: LoadTask, bus: Bus, asked: asyncio.Event) -> None:
        self.ledger = Ledger(task.began_s)
        self._task = task
        self._bus = bus
        self._asked = asked
        self._open = 0
        self._settled = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._factors = np.full((MANY, WIDTH), FACTOR)

    async def run(self) -> None:
        """Call until asked to end, then await what is open."""
        task, started = self._task, time.monotonic()
        told = started
        while not self._asked.is_set():
            now = time.monotonic()
            due = int(task.rate * (now - started)) - self.ledger.calls if task.rate else OPEN_CALLS
            for _ in range(min(due, OPEN_CALLS - self._open) // (2 * MANY)):
                self._call()
                self._call_many()
            if now - told > TELL_S:
                told = now
                tell(Told(self.ledger.account()))
            await asyncio.sleep(TICK_S)
        while self._open:
            self._settled.clear()
            await self._settled.wait()

    def _call(self) -> None:
        """Make lone calls."""
        first, sent = self.ledger.open(MANY), time.monotonic()
        self._open += MANY
        for number, row in enumerate(self._rows(first, MANY), first):
            answer = self._bus.call(
                OPERATION,
                {"a": row, "b": self._factors[0]},
                timeout_s=self._task.timeout_s,
                idempotent=True,
            )
            answer.add_done_callback(partial(self._on_answer, number, sent))

    def _on_answer(self, number: int, sent: float, answer: asyncio.Future[dict[str, Array]]) -> None:
        self._settle(1)
        error = answer.exception()
        if isinstance(error, BusError):
            self.ledger.failed(1, error.code)
        elif error is not None:
            self.ledger.failed(1, type(error).__name__)
        else:
            self._check(number, answer.result()["c"][np.newaxis], sent)

    def _call_many(self) -> None:
        first, sent = self.ledger.open(MANY), time.monotonic()
        self._open += MANY
        task = asyncio.create_task(self._many(first, sent))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _many(self, first: int, sent: float) -> None:
        columns = {"a": self._rows(first, MANY), "b": self._factors}
        try:
            answer = await self._bus.call_many(OPERATION, columns, timeout_s=self._task.timeout_s, idempotent=True)
        except RowsFailed as failed:
            for error in failed.errors.values():
                self.ledger.failed(1, error.code)
            for row in set(range(MANY)) - set(failed.errors):
                self._check(first + row, failed.columns["c"][row : row + 1], sent)
        except BusError as error:
            self.ledger.failed(MANY, error.code)
        else:
            self._check(first, answer["c"], sent)
        finally:
            self._settle(MANY)

    def _settle(self, calls: int) -> None:
        """Calls are no longer under way."""
        self._open -= calls
        self._settled.set()

    def _check(self, first: int, rows: Array, sent: float) -> None:
        """Compare answers with what they must be, exactly: float64 holds these products."""
        expected = self._rows(first, len(rows)) * FACTOR
        self.ledger.answered(first, (rows == expected).all(axis=1), sent, time.monotonic())

    def _rows(self, first: int, count: int) -> Array:
        """The numbers of consecutive calls, (count, WIDTH) float64: no two calls have one in common."""
        first += self._task.offset
        numbers = np.arange(WIDTH * first, WIDTH * (first + count), dtype=np.float64)
        rows: Array = numbers.reshape(count, WIDTH)
        return rows


async def call(task: LoadTask, asked: asyncio.Event) -> None:
    """Make the calls, and tell what became of them."""
    configure_logging(task.settings.log)
    try:
        async with connect(settings=task.settings) as bus:
            load = Load(task, bus, asked)
            await load.run()
            tell(Told(load.ledger.account()))
    except BusError as error:
        sys.exit(f"load: {error}")


def main() -> None:
    """Be the process."""
    be_child(LoadTask, call)

"""What an agent of this process hears of its own context: each time that it has moved, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from contextvars import Context
from typing import Any

import structlog

from ..bus.errors import BusError, Closed
from .agent import Resident
from .call import Call
from .context_graph import backoff_s
from .context_watch import Change
from .handler import ContextHandler

LATEST_S = 2.0  # between two looks for a graph that is not there yet

_log = structlog.get_logger(__name__)


class ContextEar:
    """Watches the context of one agent, and runs one of its methods.

    While the method runs nothing is asked: what happens meanwhile is told as one change. A graph that is not there yet,
    or that nobody keeps, is waited for.

    Args:
        resident, handler: who hears.
        bus: what the method asks through.
        context: in which it runs.
    """

    def __init__(self, resident: Resident, handler: ContextHandler, bus: Any, context: Context) -> None:
        self._resident = resident
        self._handler = handler
        self._bus = bus
        self._context = context
        self._cursor = 0
        self._failures = 0
        self._watching: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch."""
        self._watching = asyncio.get_running_loop().create_task(self._watch(), context=self._context.copy())

    async def stop(self, timeout_s: float) -> bool:
        """Watch no more, and return when the method has ended; false if it took too long and was cancelled."""
        if self._watching is None:
            return True
        self._watching.cancel()
        await asyncio.wait({self._watching})
        running = self._running
        if running is None:
            return True
        done, _ = await asyncio.wait({running}, timeout=timeout_s)
        if not done:
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return bool(done)

    async def _watch(self) -> None:
        while True:
            try:
                await self._hear()
            except Closed:
                return
            except (BusError, ValueError) as error:
                self._failures += 1
                if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th
                    _log.warning("context not heard", agent=self._name, count=self._failures, error=str(error))
            await asyncio.sleep(backoff_s(self._failures, LATEST_S))

    async def _hear(self) -> None:
        handler, resident = self._handler, self._resident
        graph = self._bus.context(resident.kind.context)
        changes = graph.watch(
            resident.name, handler.threshold, min_interval_s=handler.min_interval_s, cursor=self._cursor
        )
        async with aclosing(changes):
            async for change in changes:
                self._cursor = change.epoch
                self._failures = 0
                await self._run(change)

    async def _run(self, change: Change) -> None:
        handler, resident = self._handler, self._resident
        call = Call(self._bus, None, agent=resident.name, graph=resident.kind.context)
        run = handler.function(resident.agent, *handler.arguments(change, call))
        # A task of its own for its context, and so that a stop can end the watching alone.
        self._running = asyncio.get_running_loop().create_task(run, context=self._context.copy())
        own = asyncio.current_task()
        assert own is not None
        try:
            await asyncio.shield(self._running)
        except (Exception, asyncio.CancelledError):
            if own.cancelling():
                raise
            _log.exception("handler of a context failed", agent=self._name)
        self._running = None

    @property
    def _name(self) -> str:
        return f"{self._resident.name}.{self._handler.function.__name__}"

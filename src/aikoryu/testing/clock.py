"""Time that stands still until a test lets it pass."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_TURNS = 1000  # of the loop, after which somebody polls, and is not waited for


class Clock:
    """The time of the running loop, and of all that keeps deadlines here.

    Attributes:
        now: monotonic time, s.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time()
        self._loop: Any = loop

    async def advance(self, seconds: float) -> None:
        """Let time pass: timers that come due run in their order, each at its time, with all that follows from it.

        What threads and sockets do is not waited for.
        """
        end = self.now + seconds
        await self._settle()
        while (at := self._next()) <= end:
            self.now = max(self.now, at)
            await self._settle()
        self.now = end

    def _next(self) -> float:
        """When the next timer is due; infinite if there is none."""
        return min((timer.when() for timer in self._loop._scheduled if not timer.cancelled()), default=float("inf"))

    async def _settle(self) -> None:
        """Let the others run until none can go on."""
        for _ in range(MOST_TURNS):
            await asyncio.sleep(0)
            if not self._loop._ready:
                return


@contextmanager
def clock() -> Iterator[Clock]:
    """Stop the time of the running loop, until the block is left; begin it before the apps whose time it is.

    Nothing times out by itself then, `asyncio.timeout` neither: what is awaited must be let happen by `Clock.advance`.

    Raises:
        RuntimeError: the loop is not asyncio's own; uvloop's time cannot be stopped.
    """
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled"):
        raise RuntimeError(f"the time of {type(loop).__module__} cannot be stopped: run the test on asyncio's own loop")
    stopped = Clock(loop)
    readers = [
        vars(module)
        for name, module in list(sys.modules.items())
        if name.startswith("aikoryu.") and vars(module).get("monotonic") is time.monotonic
    ]
    for names in readers:
        names["monotonic"] = lambda: stopped.now
    loop.time = lambda: stopped.now
    try:
        yield stopped
    finally:
        del loop.time
        for names in readers:
            names["monotonic"] = time.monotonic

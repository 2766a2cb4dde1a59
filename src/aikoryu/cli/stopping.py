"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from . import systemd
from .progress import say


class Stop:
    """What the signals asked for.

    Attributes:
        asked: set by the first signal.
        drains: while false there is nothing to drain, and already the first signal ends the task.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.drains = False
        self._task = asyncio.current_task()

    def on_signal(self) -> None:
        """Ask for the end; where that was done before, cancel the task."""
        again = self.asked.is_set()
        self.asked.set()
        if self._task is not None and (again or not self.drains):
            self._task.cancel()
        else:
            systemd.tell("STOPPING=1")
            say("\nStopping when what was accepted is answered; Ctrl-C again stops at once.")


@contextmanager
def stopping() -> Iterator[Stop]:
    """Take the signals over, for the task that enters."""
    loop = asyncio.get_running_loop()
    stop = Stop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.on_signal)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)

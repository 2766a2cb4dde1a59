"""The threads in which a process uses its device, and what becomes of them if the device is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ..device import Device, DeviceLost, OutOfMemory

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function in a thread of the device's, and gives what it returns."""


class DeviceThreads:
    """Two threads: one uses the graphs, the other makes those that are being opened, which may take seconds.

    Each claims the device for itself: torch keeps which one it is, and that nothing is differentiated, by thread.

    Args:
        device: claimed by each thread with the first that it runs.
        limit_s: longest that `use` may take, s; None for as long as it takes.
        on_lost: called when the device cannot be used any more, perhaps more than once.
        on_loaded: called in a thread when what computes is loaded, and nothing made with it yet.
    """

    def __init__(
        self,
        device: Device,
        limit_s: float | None,
        on_lost: Callable[[DeviceLost], None],
        on_loaded: Callable[[], object],
    ) -> None:
        self._device = device
        self._limit_s = limit_s
        self._on_lost = on_lost
        self._on_loaded = on_loaded
        self._serving = ThreadPoolExecutor(1, "aikoryu-context")
        self._opening = ThreadPoolExecutor(1, "aikoryu-context-opening")
        self._claimed: set[ThreadPoolExecutor] = set()
        self._turn = asyncio.Lock()

    async def use(self, work: Callable[[], Any]) -> Any:
        """Run a function in the thread that uses the graphs.

        Raises:
            DeviceLost: it takes longer than it may, or the device cannot be claimed.
        """
        async with self._turn:  # the time of what waits has not begun
            return await self._run(self._serving, work, self._limit_s)

    async def make(self, work: Callable[[], Any]) -> Any:
        """Run a function in the thread that makes graphs.

        Raises:
            DeviceLost: the device cannot be claimed.
        """
        return await self._run(self._opening, work, None)

    def stop(self, *, wait: bool) -> None:
        """Run no more; `wait` for what runs."""
        self._serving.shutdown(wait=wait)
        self._opening.shutdown(wait=wait)

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[], Any], limit_s: float | None) -> Any:
        running = asyncio.get_running_loop().run_in_executor(thread, partial(self._with_device, thread, work))
        running.add_done_callback(self._look_at)
        await asyncio.wait({running}, timeout=limit_s)  # cancelled, it goes on
        if not running.done():
            lost = DeviceLost(f"{self._device.name} has not answered for {limit_s:g} s")
            self._on_lost(lost)
            raise lost
        return running.result()

    def _with_device(self, thread: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        if thread not in self._claimed:
            try:
                self._device.open()
            except Exception as error:  # whatever it is, another device may do better
                raise DeviceLost(f"{self._device.name} cannot be used: {error}") from error
            if not self._claimed:
                self._on_loaded()
            self._claimed.add(thread)
        return work()

    def _look_at(self, ran: asyncio.Future[Any]) -> None:
        """See if what a thread ran has failed because of the device."""
        error = None if ran.cancelled() else ran.exception()
        lost = None if error is None else lost_by(self._device, error)
        if lost is not None:
            self._on_lost(lost)


def lost_by(device: Device, error: BaseException) -> DeviceLost | None:
    """Why a device cannot be used any more, if an error of what ran on it says so."""
    if isinstance(error, (RuntimeError, MemoryError)):
        explained = device.explain(error)
        if isinstance(explained, (DeviceLost, OutOfMemory, MemoryError)):
            return DeviceLost(str(explained))
    return None

"""The context host: keeps the process that keeps context graphs, on the CPU while their device fails.

What a process had is in the graphs' logs. Whichever comes next takes a graph up when it is asked for, or has it handed
over when the one before is told to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from ..bus.discovery import instance_name
from ..config import Settings
from .child_process import RESTART_DELAYS_S, STEADY_S, ChildProcess
from .context_figures import HostFigures, KeeperFigures
from .device import threads_of

MODULE = "aikoryu.gpu.context_process"
CPU = "cpu"
EXIT_DEVICE_LOST = 75
START_TIMEOUT_S = 30.0  # connecting to the bus
TRY_TIMEOUT_S = 120.0  # loading torch from a cold disk, and computing
STOP_SLACK_S = 10.0  # beyond `worker.drain_s`

_log = structlog.get_logger(__name__)


class KeeperSpec(msgspec.Struct, frozen=True):
    """What a keeper process must know to start.

    Attributes:
        settings: all groups.
        device: where it computes, `cpu` or `cuda:0`.
        worker: what it is called on the bus.
        tries_device: whether it computes something there before it serves; the device has failed.
    """

    settings: Settings
    device: str
    worker: str
    tries_device: bool = False


class ContextHost:
    """Keeps one keeper process, and a second while graphs go from the CPU back to the device.

    Args:
        settings: all groups.
        device: where graphs are kept, `cpu` or `cuda:0`; after it was lost on the CPU, until it computes again.

    Attributes:
        device: where graphs are kept now, or will be by the next process.
    """

    def __init__(self, settings: Settings, device: str) -> None:
        self.device = device
        self._settings = settings
        self._own_device = device
        self._name = instance_name(settings.worker.name)
        self._started = 0
        self._attempt = 0
        self._serving: ChildProcess | None = None
        self._leaving: dict[asyncio.Task[int], ChildProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int:
        """The process that keeps graphs; 0 while there is none."""
        return self._serving.pid if self._serving is not None else 0

    @property
    def figures(self) -> HostFigures:
        """Whether a process serves, and what each has told of its graphs last; for any thread."""
        serving = self._serving
        up = {self._own_device: False} | {self.device: serving is not None}
        processes = [*self._leaving.values()] + ([serving] if serving is not None else [])
        told = [process.told for process in processes]
        return HostFigures(up, [msgspec.json.decode(line, type=KeeperFigures) for line in told if line])

    async def start(self) -> None:
        """Return when the process serves, or could not be started: then it is tried again.

        Cancelled, it leaves no process.
        """
        try:
            self._serve(await self._launch(self.device))
        except RuntimeError as error:
            _log.error("context keeper not started", device=self.device, error=str(error))
            self._spawn(self._fill())

    async def stop(self) -> bool:
        """End the process: it answers what it has accepted, and hands its graphs over or lets go of them. Idempotent.

        Returns:
            False if it could not within `worker.drain_s`.
        """
        for task in self._tasks:
            task.cancel()
        ending = [self._serving.end()] if self._serving is not None else []
        try:
            codes = await asyncio.gather(*ending, *self._leaving)
        finally:  # also when whoever waits gives up, perhaps before it has begun
            await self.kill()
        return not any(codes)

    async def kill(self) -> None:
        """End what there is, without waiting for what it has accepted. Idempotent."""
        tasks = [*self._tasks, *self._leaving]
        for task in tasks:
            if not task.cancelling():  # cancelled twice, it would not see a process to its end
                task.cancel()
        if self._serving is not None:
            await self._serving.kill()
            self._serving = None
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _launch(self, device: str, tries_device: bool = False) -> ChildProcess:
        """A process that serves. Raises RuntimeError as `ChildProcess.start`."""
        self._started += 1
        worker = f"{self._name}-context-{self._started}"
        return await ChildProcess.start(
            MODULE,
            KeeperSpec(self._settings, device, worker, tries_device),
            f"the context keeper on {device}",
            start_within_s=TRY_TIMEOUT_S if tries_device else START_TIMEOUT_S,
            end_within_s=self._settings.worker.drain_s + STOP_SLACK_S,
            # As for engines: devices are numbered as the driver counts, and libraries size their pools as they load.
            environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": str(threads_of(self._settings.cpu))},
        )

    def _serve(self, process: ChildProcess) -> None:
        self._serving = process
        self._spawn(self._watch(process))

    async def _watch(self, process: ChildProcess) -> None:
        """See to it that another follows when a process dies, on the CPU if its device is lost."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        code = await process.ended()
        if process is not self._serving:
            return  # it was told to
        self._serving = None
        _log.error("context keeper lost", device=self.device, pid=process.pid, exit_code=code)
        if loop.time() - began > STEADY_S:
            self._attempt = 0
        if code == EXIT_DEVICE_LOST and self.device != CPU:
            self.device = CPU
            self._spawn(self._return())
        await self._fill()

    async def _fill(self) -> None:
        """Start a process until one serves."""
        while self._serving is None:
            await asyncio.sleep(RESTART_DELAYS_S[min(self._attempt, len(RESTART_DELAYS_S) - 1)])
            self._attempt += 1
            try:
                process = await self._launch(self.device)
            except RuntimeError as error:
                # The 1st, 2nd, 4th, 8th time: on a server without JetStream it never starts.
                if self._attempt & (self._attempt - 1) == 0:
                    _log.error("context keeper not restarted", attempt=self._attempt, error=str(error))
                continue
            if self._serving is not None:  # that of the device, meanwhile
                await process.end()
                return
            _log.info("context keeper restarted", device=self.device, attempt=self._attempt)
            self._serve(process)

    async def _return(self) -> None:
        """Have the device keep the graphs again once it computes; until then the CPU does."""
        while True:
            await asyncio.sleep(self._settings.context.retry_device_s)
            try:
                process = await self._launch(self._own_device, tries_device=True)
            except RuntimeError as error:
                _log.warning("device still lost", device=self._own_device, error=str(error))
                continue
            _log.info("context keeper back on its device", device=self._own_device)
            left, self.device = self._serving, self._own_device
            self._serve(process)
            if left is not None:
                leaving = asyncio.create_task(left.end())
                self._leaving[leaving] = left
                leaving.add_done_callback(self._leaving.pop)
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

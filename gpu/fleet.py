"""A fleet: engines, one a device, and fronts that share them, each a process.

A front is bounded by Python's cost for each message, an engine is not. Queue groups spread messages over the fronts; an
engine runs together what its fronts hand over for one lane. Any of the processes may die and come back alone.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from itertools import count

import msgspec
import structlog

from ..config import Settings
from .directory import WorkerDirectory
from .host import RESTART_DELAYS_S, EngineHost
from .operation import Operation
from .registry import load
from .worker import catalogue_of, devices_of, engine_spec

FRONT_TIMEOUT_S = 60.0  # connecting to the bus, and registering slabs
STOP_SLACK_S = 10.0  # beyond `worker.drain_s`, for a front to end
STEADY_S = 30.0  # a front that lived so long is started again at once

_log = structlog.get_logger(__name__)


class FrontSpec(msgspec.Struct, frozen=True):
    """What a front process must know to start.

    Attributes:
        settings: all groups.
        address: of its engine.
        device: its engine's.
    """

    settings: Settings
    address: str
    device: str


class Fleet:
    """A worker of several processes.

    Attributes:
        id: what it is called in logs; each front has an id of its own on the bus.
        operations: by name.
    """

    def __init__(self, settings: Settings) -> None:
        devices = devices_of(settings)
        fronts = max(settings.worker.fronts, len(devices))
        self.operations: dict[str, Operation] = load(catalogue_of(settings))
        self.id = f"of {fronts} fronts on {', '.join(devices)}"
        self._settings = settings
        self._directory = WorkerDirectory(settings.residents.directory)
        self._hosts = [EngineHost(engine_spec(settings, device, self._directory)) for device in devices]
        self._specs = [self._front(number, devices) for number in range(fronts)]
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the engines, then the fronts.

        Raises:
            RuntimeError: a process did not start; its own log says why.
        """
        try:
            self._directory.open()
            await asyncio.gather(*(host.start() for host in self._hosts))
            await asyncio.gather(*(self._launch(number) for number in range(len(self._specs))))
        except BaseException:
            await self.stop()
            raise
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(len(self._specs))]

    async def stop(self) -> bool:
        """Let every front answer what it has accepted, then end the engines.

        Returns:
            False if some were still unanswered when `worker.drain_s` had passed.
        """
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        codes = await asyncio.gather(*(self._end(process) for process in self._processes.values()))
        for host in self._hosts:
            await host.stop()
        self._directory.close()
        return not any(codes)

    def _front(self, number: int, devices: list[str]) -> FrontSpec:
        worker = self._settings.worker
        own = replace(
            worker,
            name=f"{worker.name}-{number}" if worker.name else "",
            metrics_port=worker.metrics_port + number if worker.metrics_port else 0,
        )
        index = number % len(devices)
        return FrontSpec(replace(self._settings, worker=own), self._hosts[index].address, devices[index])

    async def _launch(self, number: int) -> None:
        """Start a front, and wait until it serves."""
        # What it must know goes through a pipe: the command line, which every user can read, would show passwords.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "aikoryu.gpu.front_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._processes[number] = process
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        process.stdin.write(msgspec.json.encode(self._specs[number]) + b"\n")
        try:
            async with asyncio.timeout(FRONT_TIMEOUT_S):
                ready = await process.stdout.readline()
        except TimeoutError:
            process.kill()
            raise RuntimeError(f"front {number} did not serve within {FRONT_TIMEOUT_S:.0f} s") from None
        if not ready:
            raise RuntimeError(f"front {number} ended while starting, exit code {await process.wait()}")

    async def _keep(self, number: int) -> None:
        """Start a front again whenever it ends."""
        loop = asyncio.get_running_loop()
        for attempt in count():
            began = loop.time()
            code = await self._processes[number].wait()
            _log.error("front lost", front=number, exit_code=code)
            if loop.time() - began < STEADY_S:
                await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            try:
                await self._launch(number)
            except (RuntimeError, OSError) as error:
                _log.error("front not restarted", front=number, error=str(error))
            else:
                _log.info("front restarted", front=number)

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Ask a front to drain and end; its exit code."""
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(self._settings.worker.drain_s + STOP_SLACK_S):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

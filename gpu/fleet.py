"""A fleet: engines, one a device, and fronts that share them, each a process.

A front is bounded by Python's cost for each message, an engine is not. Queue groups spread messages over the fronts; an
engine runs together what its fronts hand over for one lane. Any of the processes may die and come back alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import cycle
from typing import NoReturn

import msgspec
import structlog

from ..config import Settings
from .child_process import RESTART_DELAYS_S, STEADY_S, ChildProcess
from .context_figures import TELL_S, HostFigures
from .directory import WorkerDirectory
from .engines import catalogue_of, context_hosts, devices_of, engine_spec, slots_of, spare_specs
from .host import EngineHost
from .operation import Operation
from .registry import load
from .tasks import together

FRONT_TIMEOUT_S = 60.0  # connecting to the bus, and registering slabs
STOP_SLACK_S = 10.0  # beyond `worker.drain_s`, for a front to end

_log = structlog.get_logger(__name__)


class EngineAddress(msgspec.Struct, frozen=True):
    """What a front must know of an engine.

    Attributes:
        address: of its host.
        name: what replies and metrics call it.
        slots: batches to hand over at once.
    """

    address: str
    name: str
    slots: int


class FrontSpec(msgspec.Struct, frozen=True):
    """What a front process must know to start.

    Attributes:
        settings: all groups.
        engines: its engine, and the spare behind it.
    """

    settings: Settings
    engines: tuple[EngineAddress, ...]


class Fleet:
    """A worker of several processes: fronts, engines, and one that keeps context graphs.

    Attributes:
        id: what it is called in logs; each front has an id of its own on the bus.
        operations: by name.
    """

    def __init__(self, settings: Settings) -> None:
        devices = devices_of(settings)
        fronts = [_front(settings, number) for number in range(max(settings.worker.fronts, len(devices)))]
        self.operations: dict[str, Operation] = load(catalogue_of(settings))
        self.id = f"of {len(fronts)} fronts on {', '.join(devices)}"
        self._drain_s = settings.worker.drain_s
        self._tells = settings.worker.metrics_port > 0
        self._directory = WorkerDirectory(settings.residents.directory)
        specs = [engine_spec(settings, device, self._directory) for device in devices]
        specs += spare_specs(settings, self._directory)
        self._contexts = context_hosts(settings)
        self._hosts = [
            EngineHost(spec, settings.worker.reserve and number < len(devices)) for number, spec in enumerate(specs)
        ]
        addresses = [
            EngineAddress(host.address, spec.called, slots_of(settings, spec.device))
            for host, spec in zip(self._hosts, specs, strict=True)
        ]
        spare = addresses[len(devices) :]
        self._specs = [
            FrontSpec(front, (address, *spare)) for front, address in zip(fronts, cycle(addresses[: len(devices)]))
        ]
        self._processes: dict[int, ChildProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the engines, then the fronts; raised or cancelled, it leaves no process.

        Raises:
            RuntimeError: a process did not start; its own log says why.
        """
        try:
            self._directory.open()
            starting = [host.start() for host in self._hosts]
            await together([*starting, *(context.start() for context in self._contexts)])
            await together(self._launch(number) for number in range(len(self._specs)))
        except BaseException:
            await self.stop()
            raise
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(len(self._specs))]
        if self._contexts and self._tells:
            self._keepers.append(asyncio.create_task(self._tell()))

    async def stop(self) -> bool:
        """Let every front answer what it has accepted, then end the engines.

        Returns:
            False if some were still unanswered when `worker.drain_s` had passed.
        """
        for keeper in self._keepers:
            keeper.cancel()
        try:
            ended = [process.end() for process in self._processes.values()]
            codes, kept, _ = await asyncio.gather(
                asyncio.gather(*ended),
                asyncio.gather(*(context.stop() for context in self._contexts)),
                asyncio.gather(*self._keepers, return_exceptions=True),
            )
        finally:  # also when whoever waits for the drain gives up, perhaps before it has begun
            await asyncio.gather(
                *(process.kill() for process in self._processes.values()),
                *(context.kill() for context in self._contexts),
                *(host.stop() for host in self._hosts),
            )
            self._directory.close()
        return not any(codes) and all(kept)

    async def _launch(self, number: int) -> None:
        """Start a front, and wait until it serves; raised or cancelled, it leaves no process.

        Raises:
            RuntimeError: the system gave no process, or it ended, or did not serve within `FRONT_TIMEOUT_S`.
        """
        self._processes[number] = await ChildProcess.start(
            "aikoryu.gpu.front_process",
            self._specs[number],
            f"front {number}",
            start_within_s=FRONT_TIMEOUT_S,
            end_within_s=self._drain_s + STOP_SLACK_S,
        )

    async def _keep(self, number: int) -> None:
        """Start a front again whenever it ends."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            if number in self._processes:
                began = loop.time()
                code = await self._processes[number].ended()
                del self._processes[number]
                _log.error("front lost", front=number, exit_code=code)
                if loop.time() - began > STEADY_S:
                    attempt = 0
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            try:
                await self._launch(number)
            except RuntimeError as error:
                _log.error("front not restarted", front=number, attempt=attempt, error=str(error))
            else:
                _log.info("front restarted", front=number, attempt=attempt)

    async def _tell(self) -> NoReturn:
        """Tell the fronts, which are asked for metrics, of context graphs."""
        while True:
            line = msgspec.json.encode([context.figures for context in self._contexts]) + b"\n"
            for process in self._processes.values():
                process.tell(line)
            await asyncio.sleep(TELL_S)


def contexts_of(line: bytes) -> list[HostFigures]:
    """What a fleet told a front of context graphs; nothing of an empty line."""
    return msgspec.json.decode(line, type=list[HostFigures]) if line else []


def _front(settings: Settings, number: int) -> Settings:
    """The settings of one front: its name and port are its own."""
    worker = settings.worker
    name = f"{worker.name}-{number}" if worker.name else ""
    port = worker.metrics_port + number if worker.metrics_port else 0
    return replace(settings, worker=replace(worker, name=name, metrics_port=port))

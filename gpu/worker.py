"""A worker: one connection, one front, its engines, and what tells the world about them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog

from ..bus.connection import NatsConnection
from ..bus.discovery import Discovery, instance_name
from ..bus.fault_control import FaultControl
from ..bus.faults import ENGINE_KINDS, Faults, Rule, bus_rules, engine_rules
from ..bus.faulty import FaultyTransport
from ..bus.job_worker import JobWorker
from ..bus.loopback import Loopback
from ..bus.service import Service
from ..bus.subjects import Subjects, endings
from ..bus.transport import Transport
from ..config import VERSION, Settings
from .breaker import BreakerLimits
from .directory import WorkerDirectory
from .engine import Engine
from .engines import catalogue_of, context_hosts, own_engines
from .front import Front
from .job import Inject
from .operation import Operation
from .plan import Limits
from .probes import Probes, Readiness, readiness
from .registry import load
from .tasks import together
from .telemetry import Telemetry

_log = structlog.get_logger(__name__)


class Worker:
    """Serves every operation it has over one connection, until it is stopped.

    Args:
        transport: the connection; it stays open when the worker stops.
        settings: all groups.
        engines: where batches run, and the spare; by default processes of its own, for the settings' first device, and
            one that keeps context graphs.

    Attributes:
        id: one subject token, unique on the bus.
        operations: by name.
        telemetry: its measurements.
    """

    def __init__(self, transport: Transport, settings: Settings, engines: Sequence[Engine] = ()) -> None:
        self.id = instance_name(settings.worker.name)
        self.operations: dict[str, Operation] = load(catalogue_of(settings))
        self.telemetry = Telemetry()
        self._settings = settings
        self._directory = None if engines else WorkerDirectory(settings.residents.directory)
        self._engines = engines or own_engines(settings, transport.max_payload, self._directory)
        self._contexts = [] if engines else context_hosts(settings)
        subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        self._faulty = FaultyTransport(transport, Faults()) if settings.faults.enabled else None
        bus = self._faulty or transport
        loopback = Loopback(bus, settings.bus.reply_prefixes[0])
        self._service = Service(loopback, subjects, self.id, reply_prefixes=settings.bus.reply_prefixes)
        self._jobs = JobWorker(bus, loopback, subjects, settings.jobs, self._service.may_answer)
        self._front = Front(
            self._service, self._engines, self.operations, limits_of(settings), self.telemetry, breaker_of(settings)
        )
        self.telemetry.watch_jobs(self._jobs.runs)
        if isinstance(transport, NatsConnection):
            self.telemetry.watch_connection(lambda: transport.statistics()._asdict())
        if self._contexts:
            self.telemetry.watch_contexts(lambda: [context.figures for context in self._contexts])
        self._discovery = Discovery(transport, self._service, self.id, VERSION, self._details)
        may_answer = self._service.may_answer
        self._fault_control = FaultControl(
            transport, subjects, self.id, settings.faults, may_answer, self._inject, self._injected
        )
        self._transport = transport
        self._state = "starting"
        worker = settings.worker
        self._probes = Probes(worker.metrics_host, worker.metrics_port, self.telemetry.registry, self._ready)

    async def start(self) -> None:
        """Start the engine, then listen: the first request finds it ready.

        Raises:
            RuntimeError: the engine did not start; its own log says why.
            BusError: the connection failed, or may not subscribe what the worker serves.
            OSError: the probes' port or host cannot be had.
        """
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._probes.stop)
            self._probes.start()  # first: a model may take a minute to load, and is no reason to end the process
            if self._directory is not None:
                undo.callback(self._directory.close)
                self._directory.open()
            for engine in self._engines:
                undo.push_async_callback(engine.stop)
            for context in self._contexts:
                undo.push_async_callback(context.kill)
            starting = [engine.start() for engine in self._engines]
            await together([*starting, *(context.start() for context in self._contexts)])
            undo.push_async_callback(self._service.drain, 0.0)
            await self._service.start()
            for name, operation in sorted(self.operations.items()):
                served = _endings(operation, self._settings)
                if served:
                    await self._service.serve(name, self._front.accept, _metadata(operation), served)
            await self._discovery.start()
            await self._fault_control.start()
            undo.push_async_callback(self._jobs.stop)
            if self._settings.jobs.in_flight:
                await self._jobs.start([name for name, each in sorted(self.operations.items()) if "" in each.endings])
            await self._transport.flush()
            self._state = "serving"
            undo.pop_all()
        _log.info("worker ready", worker=self.id, engine=self._engines[0].name, operations=sorted(self.operations))

    async def stop(self) -> bool:
        """Stop taking requests, answer every one accepted, end the engine.

        Returns:
            False if some were still unanswered when `worker.drain_s` had passed.
        """
        self._state = "stopping"
        try:
            await asyncio.gather(self._service.leave(), self._jobs.pause())
            await self._discovery.stop()
            await self._fault_control.stop()
            drained, *kept = await asyncio.gather(
                self._service.drain(self._settings.worker.drain_s), *(context.stop() for context in self._contexts)
            )
        finally:  # also when whoever waits for the drain gives up
            for context in self._contexts:
                await context.kill()
            await self._jobs.stop()
            if self._faulty is not None:
                self._faulty.release()
            self._front.stop()
            for engine in self._engines:
                await engine.stop()
            if self._directory is not None:
                self._directory.close()
            await self._probes.stop()
        drained = drained and all(kept)
        _log.info("worker stopped", worker=self.id, drained=drained)
        return drained

    def _ready(self, age_s: float) -> Readiness:
        """Whether requests should come here; called in the probes' thread."""
        return readiness(self._state, age_s, not self._transport.lost, self._front.planner.places)

    def _inject(self, order: str, rules: list[Rule]) -> None:
        """Put faults in force: on the connection, and on the device, never on what stands behind it."""
        assert self._faulty is not None, "rules are refused unless faults are on"
        self._faulty.faults = Faults(bus_rules(rules))
        self._engines[0].inject(Inject(order, engine_rules(rules)))

    def _injected(self) -> dict[str, int]:
        """What faults have come to here, by kind."""
        told = self._engines[0].figures
        engine = {kind: int(told[f"faults_{kind}"]) for kind in ENGINE_KINDS if f"faults_{kind}" in told}
        return engine | (self._faulty.injected if self._faulty is not None else {})

    def _details(self, operation: str) -> dict[str, Any]:
        """An operation's own figures in the service's statistics."""
        telemetry = self.telemetry
        return {
            "engine": self._engines[0].name,
            "batches": telemetry.batches.get(operation, 0),
            "rows": telemetry.rows.get(operation, 0),
            "spare_rows": telemetry.spare_rows.get(operation, 0),
            "largest_batch": telemetry.largest.get(operation, 0),
            "breaker": self._front.fallback.state(operation).name.lower(),
        }


def limits_of(settings: Settings) -> Limits:
    """The planner's bounds: the settings' group of the same names."""
    return msgspec.convert(settings.batch, Limits, from_attributes=True)


def breaker_of(settings: Settings) -> BreakerLimits:
    """When an operation is kept from the device: the settings' group `breaker`."""
    return msgspec.convert(settings.breaker, BreakerLimits, from_attributes=True)


def _endings(operation: Operation, settings: Settings) -> list[str]:
    """What follows an operation's name in the subjects that this worker serves."""
    kept = endings(settings.residents.partitions)
    return [one for ending in operation.endings for one in (kept if ending == ".*" else [ending])]


def _metadata(operation: Operation) -> dict[str, str]:
    """What discovery tells of an operation: enough to call it."""
    signature = operation.signature
    names = [field.name for field in msgspec.structs.fields(operation.parameters)]
    return {
        "inputs": ", ".join(f"{name}: {spec}" for name, spec in signature.inputs.items()),
        "outputs": ", ".join(f"{name}: {spec}" for name, spec in signature.outputs.items()),
        "types": ", ".join(f"{letter}: {choice}" for letter, choice in signature.types.items()),
        "parameters": ", ".join(names),
        "pure": str(operation.pure).lower(),
        "help": operation.help or (operation.__doc__ or "").strip().partition("\n")[0],
    }

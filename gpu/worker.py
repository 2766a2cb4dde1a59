"""A worker: one connection, one front, one engine, and what tells the world about them."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import AsyncExitStack
from typing import Any
from wsgiref.simple_server import WSGIServer

import msgspec
import structlog
from prometheus_client import start_http_server

from ..bus.connection import NatsConnection
from ..bus.discovery import Discovery
from ..bus.job_worker import JobWorker
from ..bus.loopback import Loopback
from ..bus.service import Service
from ..bus.subjects import Subjects, endings
from ..bus.transport import Transport
from ..config import VERSION, Settings
from .directory import WorkerDirectory
from .engine import Engine, EngineSpec
from .front import Front
from .host import ChildEngine
from .nvml import visible
from .operation import Operation
from .planner import Limits
from .registry import Catalogue, load
from .residents import ResidentsSpec
from .telemetry import Telemetry

SLAB_SLACK_BYTES = 1 << 20  # alignment

_log = structlog.get_logger(__name__)


class Worker:
    """Serves every operation it has over one connection, until it is stopped.

    Args:
        transport: the connection; it stays open when the worker stops.
        settings: all groups.
        engine: where batches run; by default a process of its own, for the first device of the settings.

    Attributes:
        id: one subject token, unique on the bus.
        operations: by name.
        telemetry: its measurements.
    """

    def __init__(self, transport: Transport, settings: Settings, engine: Engine | None = None) -> None:
        catalogue = catalogue_of(settings)
        self.id = (
            settings.worker.name or f"{socket.gethostname().replace('.', '-')}-{os.getpid()}-{secrets.token_hex(2)}"
        )
        self.operations: dict[str, Operation] = load(catalogue)
        self.telemetry = Telemetry()
        self._settings = settings
        self._directory = None if engine else WorkerDirectory(settings.residents.directory)
        self._engine = engine or own_engine(settings, transport.max_payload, self._directory)
        subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        loopback = Loopback(transport)
        self._service = Service(loopback, subjects, self.id, reply_prefixes=settings.bus.reply_prefixes)
        self._jobs = JobWorker(transport, loopback, subjects, settings.jobs, self._service.may_answer)
        self._front = Front(self._service, self._engine, self.operations, limits_of(settings), self.telemetry)
        if isinstance(transport, NatsConnection):
            self.telemetry.watch_connection(lambda: transport.statistics()._asdict())
        self._discovery = Discovery(transport, self._service, self.id, VERSION, self._details)
        self._transport = transport
        self._metrics: tuple[WSGIServer, threading.Thread] | None = None

    async def start(self) -> None:
        """Start the engine, then listen: the first request finds it ready.

        Raises:
            RuntimeError: the engine did not start; its own log says why.
            BusError: the connection failed, or may not subscribe what the worker serves.
        """
        async with AsyncExitStack() as undo:
            if self._directory is not None:
                undo.callback(self._directory.close)
                self._directory.open()
            undo.push_async_callback(self._engine.stop)
            await self._engine.start()
            undo.push_async_callback(self._service.drain, 0.0)
            await self._service.start()
            for name, operation in sorted(self.operations.items()):
                served = _endings(operation, self._settings)
                if served:
                    await self._service.serve(name, self._front.accept, _metadata(operation), served)
            await self._discovery.start()
            undo.push_async_callback(self._jobs.stop)
            if self._settings.jobs.in_flight:
                await self._jobs.start([name for name, each in sorted(self.operations.items()) if "" in each.endings])
            await self._transport.flush()
            if self._settings.worker.metrics_port:
                self._metrics = start_http_server(
                    self._settings.worker.metrics_port, addr="127.0.0.1", registry=self.telemetry.registry
                )
            undo.pop_all()
        _log.info("worker ready", worker=self.id, engine=self._engine.name, operations=sorted(self.operations))

    async def stop(self) -> bool:
        """Stop taking requests, answer every one accepted, end the engine.

        Returns:
            False if some were still unanswered when `worker.drain_s` had passed.
        """
        try:
            self._jobs.pause()
            await self._discovery.stop()
            drained = await self._service.drain(self._settings.worker.drain_s)
        finally:  # also when whoever waits for the drain gives up
            await self._jobs.stop()
            self._front.stop()
            await self._engine.stop()
            if self._directory is not None:
                self._directory.close()
            if self._metrics is not None:
                server, thread = self._metrics
                server.shutdown()
                server.server_close()
                thread.join()
        _log.info("worker stopped", worker=self.id, drained=drained)
        return drained

    def _details(self, operation: str) -> dict[str, Any]:
        """An operation's own figures in the service's statistics."""
        telemetry = self.telemetry
        return {
            "engine": self._engine.name,
            "batches": telemetry.batches.get(operation, 0),
            "rows": telemetry.rows.get(operation, 0),
            "largest_batch": telemetry.largest.get(operation, 0),
        }


def catalogue_of(settings: Settings, directory: WorkerDirectory | None = None) -> Catalogue:
    """What the settings say to load.

    Args:
        settings: all groups.
        directory: the worker's own, which its engines share; without one each keeps tensors for itself.
    """
    kept = settings.residents
    path = str(directory.path) if directory is not None else ""
    residents = ResidentsSpec(path, kept.device_bytes, kept.host_bytes, kept.ttl_s)
    return Catalogue(settings.models.embed, settings.models.directory, settings.worker.operations, residents)


def limits_of(settings: Settings) -> Limits:
    """The planner's bounds: the settings' group of the same names."""
    return msgspec.convert(settings.batch, Limits, from_attributes=True)


def own_engine(settings: Settings, max_payload: int, directory: WorkerDirectory | None) -> Engine:
    """An engine for one front alone, on the first device of the settings."""
    device = devices_of(settings)[0]
    return ChildEngine(
        engine_spec(settings, device, directory), slots_of(settings, device), slab_bytes(settings, max_payload)
    )


def devices_of(settings: Settings) -> list[str]:
    """The devices the settings ask for, at least one."""
    if settings.worker.device == "auto":
        return [gpu.device for gpu in visible()] or ["cpu"]
    return settings.worker.device.split(",")


def engine_spec(settings: Settings, device: str, directory: WorkerDirectory | None = None) -> EngineSpec:
    """The engine of a device as the settings say. Its threads stay below the cores, so a front always finds one."""
    threads = settings.cpu.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    streams = 1 if device == "cpu" else settings.cuda.streams
    return EngineSpec(device, threads, streams, catalogue_of(settings, directory), settings.log)


def slots_of(settings: Settings, device: str) -> int:
    """Batches that a front hands over to an engine of the device at once."""
    return settings.cpu.slots if device == "cpu" else settings.cuda.slots


def slab_bytes(settings: Settings, max_payload: int) -> int:
    """Size of a slab that holds any batch the settings allow, and its answer.

    Args:
        settings: all groups.
        max_payload: largest message, bytes.
    """
    batch = settings.batch
    # Rows of variable width count as their frame's mean, so the frames cut at a batch's two ends may weigh more.
    cut_bytes = 2 * min(batch.max_bytes, max_payload)
    return 2 * batch.max_bytes + cut_bytes + batch.max_rows + SLAB_SLACK_BYTES


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

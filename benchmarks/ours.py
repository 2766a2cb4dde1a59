"""Aikoryu itself: a NATS server, `aikoryu worker` as a process of its own, and clients over `aikoryu.connect`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aikoryu
from benchmarks.contestant import Connect, Served
from benchmarks.processes import START_S, child, children_of, free_ports, nats_server, wait_line

NAME = "aikoryu"
NEEDS = ("aikoryu", "msgspec", "prometheus-client", "torch")
DEVICE_NEEDS = NEEDS[1:]  # the source tree itself may be run without being installed


@contextlib.asynccontextmanager
async def serving(settings: Mapping[str, object] = {}, *, measured: bool = False) -> AsyncIterator[Served]:
    """A NATS server and a worker with these settings, by dotted key; all others are as they come.

    Where it is `measured`, its fronts tell what each stage took.

    Roles: "service" is the front and its children, "engine" the engine alone, where psutil can tell it.

    Raises:
        RuntimeError: the worker did not start; what it said is on stderr.
        TimeoutError: it was not ready in time; likewise.
    """
    async with nats_server() as (url, nats_pid):
        flags = {"nats.url": url, "log.level": "warning", **settings}
        ports = free_ports(int(str(settings.get("worker.fronts", 1)))) if measured else range(0)
        if ports:
            flags["worker.metrics_port"] = ports[0]
        command = ("-m", "aikoryu.cli", "worker", *(f"--set={key}={value}" for key, value in flags.items()))
        with tempfile.TemporaryFile() as said:
            async with child(sys.executable, *command, stderr=said) as worker:
                try:
                    await wait_line(worker, "Worker ", START_S)
                except (RuntimeError, TimeoutError):
                    said.seek(0)
                    sys.stderr.write(said.read().decode(errors="replace"))
                    raise
                engine = dict(zip(["engine"], children_of(worker.pid), strict=False))
                metrics = tuple(f"http://127.0.0.1:{port}/metrics" for port in ports)
                yield Served(url, {"nats": nats_pid, "service": worker.pid, **engine}, metrics)


def fronts_name(fronts: int) -> str:
    """What a worker of so many fronts is called as a contestant."""
    return f"{NAME}, {fronts} front{'s' if fronts > 1 else ''}"


def connecting(client: Callable[[aikoryu.Bus], Any]) -> Connect:
    """The `connect` that gives such a client a connection of its own."""

    @contextlib.asynccontextmanager
    async def connect(url: str) -> AsyncIterator[Any]:
        async with aikoryu.connect(url) as bus:
            yield client(bus)

    return connect

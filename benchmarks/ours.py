"""Aikoryu itself: a NATS server, `aikoryu worker` as a process of its own, and clients over `aikoryu.connect`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aikoryu
from benchmarks.contestant import Connect, Served
from benchmarks.processes import START_S, child, children_of, nats_server, wait_line

NAME = "aikoryu"
NEEDS = ("aikoryu", "msgspec", "prometheus-client", "torch")


@contextlib.asynccontextmanager
async def serving(settings: Mapping[str, object] = {}) -> AsyncIterator[Served]:
    """A NATS server and a worker with these settings, by dotted key; all others are as they come.

    Roles: "service" is the front and its children, "engine" the engine alone, where psutil can tell it.

    Raises:
        RuntimeError: the worker did not start; what it said is on stderr.
        TimeoutError: it was not ready in time; likewise.
    """
    async with nats_server() as (url, nats_pid):
        flags = {"nats.url": url, "log.level": "warning", **settings}
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
                yield Served(url, {"nats": nats_pid, "service": worker.pid, **engine})


def connecting(client: Callable[[aikoryu.Bus], Any]) -> Connect:
    """The `connect` that gives such a client a connection of its own."""

    @contextlib.asynccontextmanager
    async def connect(url: str) -> AsyncIterator[Any]:
        async with aikoryu.connect(url) as bus:
            yield client(bus)

    return connect

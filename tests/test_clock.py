"""The machine's clock jumps by hours, forth and back: what waits goes on waiting, and what has a deadline keeps it."""

from __future__ import annotations

import ast
import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aikoryu
from aikoryu.agents import Bus, open_transport
from aikoryu.bus.errors import Expired
from aikoryu.bus.jetstream import JetStream
from aikoryu.bus.leases import Leases
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.config import JobSettings, ModelSettings, NatsSettings, ServerSettings, Settings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

HOUR_S = 3600.0
ROOT = Path(__file__).parents[1]
# When something was, for people.
TOLD = {"bus/discovery.py", "bus/recorder.py", "bus/tracing.py", "netio/conn_log.py", "src/aikoryu/cli/ls.py"}
# Times of files: docs/residents.md says what a jump does there.
FILES = {"gpu/origins.py", "gpu/packets/rule_store.py", "gpu/residents.py"}
# Versions of contexts and when they end: docs/context.md says what a jump does there.
CONTEXTS = {"agents/context_graph.py", "gpu/context/keeper.py", "gpu/context/keepers.py"}


class WallClock:
    """The machine's clock as this process sees it, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        seconds, nanoseconds = time.time, time.time_ns

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Any:
                return cls.fromtimestamp(time.time(), tz)

        monkeypatch.setattr(time, "time", lambda: seconds() + self.ahead_s)
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(1e9 * self.ahead_s))
        monkeypatch.setattr(datetime, "datetime", Jumping)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


class Bench:
    """A worker with an engine of this process, and a bus, on a server of its own."""

    def __init__(self, worker: Worker, engine: InlineEngine, bus: Bus, jetstream: JetStream) -> None:
        self.planner = worker._front.planner
        self.engine = engine
        self.bus = bus
        self.jetstream = jetstream


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))
        settings = Settings(
            nats=NatsSettings(url=server.url), models=ModelSettings(embed=()), jobs=JobSettings(ack_wait_s=0.5)
        )
        transport = await open_transport(settings)
        stack.push_async_callback(transport.close)
        engine = InlineEngine(load(catalogue_of(settings)))
        worker = Worker(transport, settings, [engine])
        await worker.start()
        stack.push_async_callback(worker.stop)
        bus = await stack.enter_async_context(aikoryu.connect(settings=settings))
        yield Bench(worker, engine, bus, await stack.enter_async_context(JetStream(transport)))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it looks at comes over a socket
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_calls_and_jobs_outlive_a_jump(bench: Bench, wall: WallClock, jump_s: float) -> None:
    bus, engine = bench.bus, bench.engine
    engine.hold = True
    call = bus.call("echo", {"x": 1}, timeout_s=60)
    await until(lambda: len(engine.jobs) == 1)
    job = await bus.submit("echo", {"x": np.arange(3)}, id="before")
    await until(lambda: len(engine.jobs) == 2)
    queued = bus.call("echo", {"x": 2.0}, timeout_s=60, idempotent=True)
    await until(lambda: bench.planner.waiting_rows == 1)
    wall.ahead_s = jump_s
    later = await bus.submit("echo", {"x": np.arange(4)}, id="after")
    with pytest.raises(Expired):  # in time, though the clock may say that an hour is left
        async with asyncio.timeout(5):
            await bus.call("echo", {"x": 3}, timeout_s=0.2)
    engine.release()
    async with asyncio.timeout(10):
        assert (await call)["x"] == 1
        assert (await queued)["x"] == 2.0
        assert [(await each)["x"].tolist() for each in (job, later)] == [[0, 1, 2], [0, 1, 2, 3]]
        assert (await bus.result("before"))["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_lease_is_kept_through_a_jump(bench: Bench, wall: WallClock, jump_s: float) -> None:
    leases = await Leases.open(bench.jetstream, Subjects(), "w1")
    async with leases.hold("p7", ttl_s=1) as lease:
        wall.ahead_s = jump_s
        first = lease._sequence
        await until(lambda: lease._sequence > first + 3)  # each a renewal
        lease.check()
        assert await leases.try_acquire("p7", ttl_s=1) is None
    assert await leases.try_acquire("p7", ttl_s=1) is not None


def test_nothing_else_looks_at_the_clock_of_the_machine() -> None:
    folders = ("bus", "gpu", "agents", "netio", "config", "src/aikoryu/cli")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if looks_at_wall_clock(path)}
    assert found <= TOLD | FILES | CONTEXTS
    assert found >= FILES | CONTEXTS  # it is seen where it is done


def looks_at_wall_clock(path: Path) -> bool:
    """Whether a module uses `time.time`, `time.time_ns` or `datetime.now`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            if {name.name for name in node.names} & {"time", "time_ns"}:
                return True
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"time.time", "time.time_ns", "datetime.now"}:
            return True
    return False

"""What a worker's HTTP port answers to an orchestrator: pure decisions first, then a worker over the in-memory bus."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.config import ModelSettings, Settings, WorkerSettings
from aikoryu.gpu import probes
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.plan import Place
from aikoryu.gpu.probes import STUCK_S, readiness, why_not
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

DEVICE, SPARE, DOWN = Place("cuda:0", slots=3), Place("cpu", slots=2), Place("cuda:0")


@pytest.mark.parametrize(
    ("worker", "age_s", "connected", "places", "ready"),
    [
        ("serving", 0.0, True, [DEVICE], True),
        ("serving", STUCK_S - 0.1, True, [DEVICE, SPARE], True),
        ("serving", 0.0, True, [DOWN, SPARE], True),
        ("serving", 0.0, True, [DOWN], False),
        ("serving", 0.0, True, [DOWN, Place("cpu")], False),
        ("serving", 0.0, False, [DEVICE], False),
        ("serving", STUCK_S, True, [DEVICE], False),
        ("starting", 0.0, True, [DEVICE], False),
        ("stopping", 0.0, True, [DEVICE], False),
    ],
)
def test_ready_is_who_serves_over_a_connection_with_an_engine(
    worker: str, age_s: float, connected: bool, places: list[Place], ready: bool
) -> None:
    assert readiness(worker, age_s, connected, places).ready is ready


def test_reasons_are_told_by_name() -> None:
    told = readiness("stopping", STUCK_S, False, [DOWN, SPARE])
    assert msgspec.json.decode(msgspec.json.encode(told)) == {
        "ready": False,
        "worker": "stopping",
        "loop": "stuck",
        "bus": "lost",
        "engines": {"cuda:0": "down", "cpu": "up"},
    }


@pytest.mark.parametrize("places", [[DEVICE, DOWN], [DOWN, DEVICE]])
def test_of_two_engines_of_one_device_one_is_enough(places: list[Place]) -> None:
    assert readiness("serving", 0.0, True, places).engines == {"cuda:0": "up"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "worker.metrics_port 9100: Address already in use"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign"), "worker.metrics_host 192.0.2.1: Cannot assign"),
    ],
)
def test_what_to_change_is_told(error: OSError, told: str) -> None:
    assert why_not(WorkerSettings(metrics_port=9100, metrics_host="192.0.2.1"), error) == f"{told}: set another one"


class Served:
    """A worker with its port, and what the port says."""

    def __init__(self, **worker: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        given = WorkerSettings(name="w1", metrics_port=self.port, **worker)
        settings = Settings(models=ModelSettings(embed=()), worker=given)
        self.bus = MemoryBus()
        self.transport = self.bus.connect("_WORKER")
        self.engine = InlineEngine(load(catalogue_of(settings)), slots=1, slab_bytes=1 << 20)
        self.worker = Worker(self.transport, settings, [self.engine])

    def get(self, path: str) -> tuple[int, bytes]:
        """Ask, from a thread that is not the loop's or while the loop hangs."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    async def ask(self, path: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self.get, path)

    async def ready(self) -> dict[str, Any]:
        """What `/readyz` says; its status says the same."""
        status, body = await self.ask("/readyz")
        told: dict[str, Any] = msgspec.json.decode(body)
        assert status == (200 if told["ready"] else 503)
        return told


Start = Callable[..., Awaitable[Served]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(**worker: Any) -> Served:
            served = Served(**worker)
            stack.push_async_callback(served.worker.stop)
            await served.worker.start()
            return served

        yield started


async def test_worker_that_serves_is_healthy_and_ready(start: Start) -> None:
    served = await start()
    status, body = await served.ask("/healthz")
    assert (status, list(msgspec.json.decode(body))) == (200, ["turned_s"])
    assert await served.ready() == {
        "ready": True,
        "worker": "serving",
        "loop": "turning",
        "bus": "connected",
        "engines": {"cpu": "up"},
    }
    assert b"aikoryu_held_frames" in (await served.ask("/metrics"))[1]
    assert (await served.ask("/"))[0] == 404


async def test_worker_that_starts_is_healthy_and_not_ready() -> None:
    served = Served()
    loading, loaded = asyncio.Event(), asyncio.Event()
    load_inline = served.engine.start

    async def start_slowly() -> None:
        loading.set()
        await loaded.wait()
        await load_inline()

    served.engine.start = start_slowly  # type: ignore[method-assign]
    starting = asyncio.create_task(served.worker.start())
    await loading.wait()
    assert (await served.ask("/healthz"))[0] == 200
    assert (await served.ready())["worker"] == "starting"
    loaded.set()
    await starting
    assert (await served.ready())["ready"]
    await served.worker.stop()


async def test_worker_that_drains_is_healthy_and_not_ready_at_once(start: Start) -> None:
    served = await start()
    served.engine.hold = True
    client = Client(served.bus.connect(), Subjects(), timeout_s=30, frame_bytes=1 << 16)
    await client.start()
    call = client.call("echo", {"x": np.ones(3)})
    while not served.engine.jobs:  # noqa: ASYNC110 - of this loop's own turns
        await asyncio.sleep(0)
    stopping = asyncio.create_task(served.worker.stop())
    await asyncio.sleep(0)
    told = await served.ready()
    assert (told["ready"], told["worker"]) == (False, "stopping")
    assert (await served.ask("/healthz"))[0] == 200
    served.engine.release()
    assert await stopping
    await call
    await client.close()
    with pytest.raises(urllib.error.URLError):
        await served.ask("/healthz")


async def test_lost_connection_is_told(start: Start) -> None:
    served = await start()
    served.bus.drop_connection(served.transport)
    told = await served.ready()
    assert (told["ready"], told["bus"]) == (False, "lost")
    served.bus.restore(served.transport)
    assert (await served.ready())["ready"]


async def test_lost_engine_is_told(start: Start) -> None:
    served = await start()
    served.engine.on_lost()
    told = await served.ready()
    assert (told["ready"], told["engines"]) == (False, {"cpu": "down"})
    served.engine.on_ready()
    assert (await served.ready())["ready"]


async def test_loop_that_hangs_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await start()
    monkeypatch.setattr(probes, "STUCK_S", 0.0)  # as if it had turned that long ago
    assert served.get("/healthz")[0] == 503  # asked in the loop's own thread: it does hang
    told = msgspec.json.decode(served.get("/readyz")[1])
    assert (told["ready"], told["loop"]) == (False, "stuck")


async def test_loop_that_turns_is_seen_to(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    monkeypatch.setattr(probes, "BEAT_S", 0.005)
    served = await start()
    time.sleep(0.05)  # noqa: ASYNC251 - the loop hangs
    before: float = msgspec.json.decode(served.get("/healthz")[1])["turned_s"]
    async with asyncio.timeout(5):
        while msgspec.json.decode((await served.ask("/healthz"))[1])["turned_s"] >= before:
            pass
    assert before >= 0.05


async def test_metrics_are_served_on_the_address_of_the_settings(start: Start) -> None:
    served = await start(metrics_host="127.0.0.2")
    with pytest.raises(urllib.error.URLError):
        await served.ask("/metrics")

    def elsewhere() -> int:
        with urllib.request.urlopen(f"http://127.0.0.2:{served.port}/metrics") as response:
            return int(response.status)

    assert await asyncio.to_thread(elsewhere) == 200


async def test_port_that_is_taken_fails_the_start_and_leaves_nothing() -> None:
    served = Served()
    with socket.create_server(("127.0.0.1", served.port)), pytest.raises(OSError, match="in use"):
        await served.worker.start()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_caller_that_says_nothing_holds_up_neither_others_nor_the_end(start: Start) -> None:
    served = await start()
    with socket.create_connection(("127.0.0.1", served.port)):
        assert (await served.ask("/healthz"))[0] == 200
        async with asyncio.timeout(5):
            await served.worker.stop()

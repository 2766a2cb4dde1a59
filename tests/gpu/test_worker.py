"""A whole worker over the in-memory bus: start, discovery, metrics, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.errors import NoWorker
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.config import BatchSettings, ContextSettings, CpuSettings, ModelSettings, Settings, WorkerSettings
from aikoryu.gpu import context_host
from aikoryu.gpu import worker as workers
from aikoryu.gpu.engines import catalogue_of, engine_spec, slab_bytes
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.plan import Limits
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker, limits_of

Start = Callable[..., Awaitable["Served"]]
X = np.arange(6, dtype=np.float32)
KEEPER = """
import pathlib, sys
sys.stdin.readline()
print("ready", flush=True)
sys.stdin.read()
sys.exit(int(pathlib.Path({file!r}).read_text()))
"""


class Served:
    """A worker, its engine, and a client."""

    def __init__(self, settings: Settings) -> None:
        self.bus = MemoryBus()
        self.engine = InlineEngine(load(catalogue_of(settings)), slots=1, slab_bytes=1 << 20)
        self.worker = Worker(self.bus.connect("_WORKER"), settings, [self.engine])
        self.client = Client(self.bus.connect(), Subjects(), timeout_s=30, frame_bytes=1 << 16)

    async def handed_over(self) -> None:
        """Return when the engine has a batch."""
        while not self.engine.jobs:  # noqa: ASYNC110 - of this loop's own turns
            await asyncio.sleep(0)

    async def ask(self, subject: str) -> dict[str, Any]:
        """One answer of the discovery subjects."""
        connection = self.bus.connect()
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        await connection.subscribe("_INBOX.discovery", answered.set_result)
        await connection.publish(subject, b"", "_INBOX.discovery")
        body: dict[str, Any] = msgspec.json.decode((await answered).data)
        await connection.close()
        return body


def settings(**worker: Any) -> Settings:
    return Settings(models=ModelSettings(embed=()), worker=WorkerSettings(name="w1", **worker))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(given: Settings | None = None) -> Served:
            served = Served(given or settings())
            await served.worker.start()
            stack.push_async_callback(served.worker.stop)
            await served.client.start()
            stack.push_async_callback(served.client.close)
            return served

        yield started


async def test_worker_answers_calls(start: Start) -> None:
    served = await start()
    answer = await served.client.call("echo", {"x": X})
    np.testing.assert_array_equal(answer["x"], X)


async def test_trap_05_stop_answers_everything_accepted(start: Start) -> None:
    served = await start()
    served.engine.hold = True
    calls = [served.client.call("echo", {"x": X + n}) for n in range(20)]
    many = asyncio.create_task(served.client.call_many("matrix.add", {"a": np.ones((50, 2)), "b": np.ones((50, 2))}))
    await served.handed_over()
    stopping = asyncio.create_task(served.worker.stop())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not stopping.done()
    served.engine.release()
    assert await stopping
    for n, call in enumerate(calls):
        np.testing.assert_array_equal((await call)["x"], X + n)
    np.testing.assert_array_equal((await many)["c"], np.full((50, 2), 2.0))


async def test_stopped_worker_takes_no_more(start: Start) -> None:
    served = await start()
    await served.worker.stop()
    with pytest.raises(NoWorker):
        await served.client.call("echo", {"x": X})


async def test_stop_says_so_if_rows_are_left_unanswered(start: Start) -> None:
    served = await start(settings(drain_s=0.0))
    served.engine.hold = True
    call = served.client.call("echo", {"x": X})
    await served.handed_over()
    assert not await served.worker.stop()
    call.cancel()


async def test_engine_that_does_not_start_leaves_nothing_behind() -> None:
    served = Served(settings())

    async def fails() -> None:
        raise RuntimeError("no device")

    served.engine.start = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no device"):
        await served.worker.start()
    assert all(slab.fd < 0 for slab in served.engine.slabs)
    await served.client.start()
    with pytest.raises(NoWorker):
        await served.client.call("echo", {"x": X})
    await served.client.close()


async def test_discovery_tells_the_batches(start: Start) -> None:
    served = await start()
    await asyncio.gather(*(served.client.call("echo", {"x": X}) for _ in range(7)))
    stats = await served.ask("$SRV.STATS.aikoryu.w1")
    echo = next(endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "echo")
    assert (echo["num_requests"], echo["num_errors"]) == (1, 0)
    assert echo["data"] == {
        "engine": "cpu",
        "batches": 1,
        "rows": 7,
        "spare_rows": 0,
        "largest_batch": 7,
        "breaker": "closed",
    }


async def test_discovery_tells_how_to_call_an_operation(start: Start) -> None:
    served = await start()
    info = await served.ask("$SRV.INFO")
    matmul = next(endpoint for endpoint in info["endpoints"] if endpoint["name"] == "matrix-matmul")
    metadata = matmul["metadata"]
    assert (metadata["inputs"], metadata["outputs"]) == ("a: T[*,i?,k], b: T[*,k,j?]", "c: T[*,i?,j?]")
    assert metadata["types"].startswith("T: f2|")
    assert (metadata["parameters"], metadata["pure"]) == ("precision", "true")
    assert metadata["help"].startswith("The matrix product")


async def test_metrics_are_served_on_loopback(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = await start(settings(metrics_port=port))
    await served.client.call("echo", {"x": X})

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            return str(response.read().decode())

    assert 'aikoryu_batch_rows_count{operation="echo"} 1.0' in await asyncio.to_thread(fetch)


def test_limits_are_those_of_the_settings() -> None:
    batch = BatchSettings(
        window_s=0.5, max_rows=7, max_bytes=2048, target_s=2.0, queue_rows=9, queue_bytes=4096, lanes=3
    )
    assert limits_of(Settings(batch=batch)) == Limits(0.5, 7, 2048, 2.0, 9, 4096, 3)


def test_planner_and_settings_agree_on_their_defaults() -> None:
    assert limits_of(Settings()) == Limits()


def test_cpu_engine_leaves_the_front_a_core() -> None:
    spec = engine_spec(Settings(), "cpu")
    assert spec.threads == max(1, len(os.sched_getaffinity(0)) - 1)
    assert engine_spec(Settings(cpu=CpuSettings(threads=5)), "cpu").threads == 5


@pytest.mark.parametrize("max_payload", [1 << 10, 1 << 20, 1 << 26])
def test_slab_holds_the_heaviest_batch_of_texts(max_payload: int) -> None:
    """Rows count as their frame's mean; the frames cut at both ends of a batch may have put their weight into it."""
    batch = BatchSettings(max_bytes=1 << 20, max_rows=1 << 20)
    heaviest = batch.max_bytes + 2 * min(batch.max_bytes, max_payload) + batch.max_rows
    assert slab_bytes(Settings(batch=batch), max_payload) >= heaviest + batch.max_bytes, (
        "the batch, and as much again for its answer"
    )


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers have an engine of their own in this process, and a keeper of graphs that ends with the code in a file."""
    file = tmp_path / "code"
    file.write_text("0")
    (tmp_path / "test_keeper.py").write_text(KEEPER.format(file=str(file)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(context_host, "MODULE", "test_keeper")
    monkeypatch.setattr(
        workers, "own_engines", lambda given, *_: [InlineEngine(load(catalogue_of(given)), slab_bytes=1 << 20)]
    )
    return file


async def test_worker_keeps_graphs_in_a_process_of_their_own(keeper: Path) -> None:
    worker = Worker(MemoryBus().connect("_WORKER"), settings(device="cpu"))
    await worker.start()
    (context,) = worker._contexts
    os.kill(context.pid, signal.SIGKILL)
    first = context.pid
    async with asyncio.timeout(30):
        while context.pid in (0, first):  # noqa: ASYNC110 - it is another process that changes it
            await asyncio.sleep(0.005)
    assert await worker.stop()
    assert context.pid == 0


async def test_worker_whose_keeper_leaves_something_undone_says_so(keeper: Path) -> None:
    keeper.write_text("1")
    worker = Worker(MemoryBus().connect("_WORKER"), settings(device="cpu"))
    await worker.start()
    assert not await worker.stop()


async def test_stop_that_is_given_up_leaves_no_keeper(keeper: Path) -> None:
    worker = Worker(MemoryBus().connect("_WORKER"), settings(device="cpu"))
    await worker.start()
    pid = worker._contexts[0].pid
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_start_that_fails_leaves_no_keeper(keeper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(MemoryBus().connect("_WORKER"), settings(device="cpu"))
    kept = worker._contexts[0]

    async def fails() -> None:
        async with asyncio.timeout(30):
            while not kept.pid:  # noqa: ASYNC110 - it is another process that changes it
                await asyncio.sleep(0.005)
        raise RuntimeError("no device")

    monkeypatch.setattr(worker._engines[0], "start", fails)
    with pytest.raises(RuntimeError, match="no device"):
        await worker.start()
    assert kept.pid == 0


async def test_no_keeper_where_it_is_not_wanted(keeper: Path) -> None:
    given = replace(settings(device="cpu"), context=ContextSettings(enabled=False))
    worker = Worker(MemoryBus().connect("_WORKER"), given)
    assert worker._contexts == []
    assert Served(settings()).worker._contexts == [], "a front's is its fleet's"
    await worker.start()
    await worker.stop()

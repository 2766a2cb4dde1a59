"""Durable work as an agent sees it, with whole workers; those that are killed are processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aikoryu
from aikoryu.agents import Bus, jobs, open_transport, session
from aikoryu.bus.errors import BadColumn, BadParameter, Busy, Closed, EngineLost, NoWorker
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import JobSettings, ModelSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

A = np.arange(4, dtype=np.float32).reshape(2, 2)


class Bench:
    """A server on a store that stays, and what is started on it."""

    def __init__(self, store: Path, stack: AsyncExitStack) -> None:
        self.url = ""
        self._store = store
        self._stack = stack
        self._server: EmbeddedServer

    async def serve(self) -> None:
        port = int(self.url.rpartition(":")[2] or 0)
        self._server = EmbeddedServer(ServerSettings(port=port, store_dir=str(self._store)))
        await self._server.start()
        self.url = self._server.url

    async def kill_server(self) -> None:
        process = self._server._process
        assert process is not None
        process.kill()
        await process.wait()
        await self._server.stop()

    async def stop_server(self) -> None:
        await self._server.stop()

    async def worker(self, **given: Any) -> InlineEngine:
        """A worker in this process; its engine."""
        settings = Settings(
            nats=NatsSettings(url=self.url),
            models=ModelSettings(embed=()),
            worker=WorkerSettings(drain_s=1),
            jobs=JobSettings(**{"retry_s": 0.01, "max_bytes": 1 << 20, **given}),
        )
        transport = await open_transport(settings)
        self._stack.push_async_callback(transport.close)
        engine = InlineEngine(load(catalogue_of(settings)))
        worker = Worker(transport, settings, [engine])
        await worker.start()
        self._stack.push_async_callback(worker.stop)
        return engine

    async def process(self) -> Process:
        """A worker as a process, which serves."""
        given = {"models.embed": "", "worker.device": "cpu", "jobs.ack_wait_s": 1, "log.level": "error"}
        flags = [f"--set={key}={value}" for key, value in given.items()]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aikoryu.cli", "worker", "--nats", self.url, *flags),
            stdout=PIPE,
            start_new_session=True,
        )
        self._stack.push_async_callback(ended, process)
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"Worker ")
        return process

    async def connect(self) -> Bus:
        return await self._stack.enter_async_context(aikoryu.connect(self.url))


async def ended(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made = Bench(tmp_path / "store", stack)
        await made.serve()
        stack.push_async_callback(made.stop_server)
        yield made


async def test_job_is_awaited_and_fetched_later(bench: Bench) -> None:
    await bench.worker()
    bus = await bench.connect()
    job = await bus.submit("matrix.matmul", {"a": A, "b": A}, id="order-17")
    assert job.id == "order-17"
    np.testing.assert_array_equal((await job)["c"], A @ A)
    np.testing.assert_array_equal((await job)["c"], A @ A)
    np.testing.assert_array_equal((await bus.result("order-17"))["c"], A @ A)


async def test_parameters_text_and_numbers_travel_as_in_a_call(bench: Bench) -> None:
    await bench.worker()
    bus = await bench.connect()
    job = await bus.submit("matrix.reduce", {"a": A}, {"function": "sum", "axis": [0]})
    np.testing.assert_array_equal(next(iter((await job).values())), A.sum(0))
    assert (await (await bus.submit("echo", {"x": 7})))["x"] == 7


async def test_jobs_share_a_batch_with_calls(bench: Bench) -> None:
    engine = await bench.worker()
    bus = await bench.connect()
    engine.hold = True
    blocking = []
    for n in range(engine.slots):
        blocking.append(bus.call("echo", {"x": n}))
        await until(lambda: len(engine.jobs) > n)  # noqa: B023 - awaited here
    submitted = [await bus.submit("matrix.add", {"a": A + n, "b": A}) for n in range(3)]
    calls = [bus.call("matrix.add", {"a": A - n, "b": A}) for n in range(3)]
    await asyncio.sleep(0.1)  # for both to have come: nothing tells of a row that waits
    engine.release()
    answers = [*await asyncio.gather(*submitted), *await asyncio.gather(*calls)]
    np.testing.assert_array_equal(
        [row["c"] for row in answers], [2 * A + n for n in range(3)] + [2 * A - n for n in range(3)]
    )
    await asyncio.gather(*blocking)
    assert engine.jobs[-1].rows == 6


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it looks at comes over a socket
            await asyncio.sleep(0.005)


async def test_caller_goes_and_another_process_waits(bench: Bench) -> None:
    async with aikoryu.connect(bench.url) as bus:
        with pytest.raises(NoWorker):
            await bus.submit("matrix.add", {"a": A, "b": A}, id="early")
    engine = await bench.worker()
    engine.hold = True
    async with aikoryu.connect(bench.url) as bus:
        await bus.submit("matrix.add", {"a": A, "b": A}, id="one")
    async with aikoryu.connect(bench.url) as bus:
        with pytest.raises(jobs.NoResult):
            await bus.result("one")
        waiting = asyncio.ensure_future(_await(bus, "one"))
        await until(lambda: engine.jobs)
        engine.release()
        np.testing.assert_array_equal((await waiting)["c"], 2 * A)


async def _await(bus: Bus, id_: str) -> dict[str, Any]:
    return await (await bus.job(id_))


async def test_error_of_a_job_is_typed_and_kept(bench: Bench) -> None:
    engine = await bench.worker(max_deliver=2)
    bus = await bench.connect()
    with pytest.raises(BadColumn, match="'b' is missing"):
        await (await bus.submit("matrix.add", {"a": A}, id="bad"))
    with pytest.raises(BadColumn, match="'b' is missing"):
        await bus.result("bad")
    engine.hold = True
    job = await bus.submit("matrix.add", {"a": A, "b": A}, id="lost")
    waiting = asyncio.ensure_future(_await(bus, "lost"))
    lost = 0
    while not waiting.done():
        await until(lambda: len(engine.jobs) > lost or waiting.done())  # noqa: B023 - awaited here
        if len(engine.jobs) > lost:
            lost = len(engine.jobs)
            engine.lose()
    with pytest.raises(EngineLost, match="given up after 2 deliveries"):
        await waiting
    with pytest.raises(EngineLost):
        await job


async def test_what_is_not_there_is_not_waited_for(bench: Bench) -> None:
    await bench.worker()
    bus = await bench.connect()
    with pytest.raises(jobs.NoResult, match="was never submitted"):
        await bus.result("nothing")
    async with asyncio.timeout(2):
        with pytest.raises(jobs.NoResult, match="submit it again"):
            await (await bus.job("nothing"))


async def test_full_stream_refuses_and_keeps_what_it_has(bench: Bench) -> None:
    engine = await bench.worker(in_flight=1)
    engine.hold = True
    bus = await bench.connect()
    large = np.zeros(100_000)
    accepted = [await bus.submit("echo", {"x": large})]
    with pytest.raises(Busy, match="full"):
        await bus.submit("echo", {"x": large})
    engine.release()
    assert [(await job)["x"].shape for job in accepted] == [large.shape]


@pytest.mark.parametrize("wrong", [{"id": "a.b"}, {"id": "ü"}, {"operation": "a b"}, {"operation": "ctl.x"}])
async def test_names_are_checked(wrong: dict[str, str]) -> None:
    async with session(MemoryBus().connect(), Settings()) as bus:
        with pytest.raises(BadParameter):
            await bus.submit(wrong.get("operation", "echo"), {"x": 1}, id=wrong.get("id", "one"))


async def test_closed_bus_ends_the_wait_and_not_the_job(bench: Bench) -> None:
    engine = await bench.worker()
    engine.hold = True
    async with aikoryu.connect(bench.url) as bus:
        job = await bus.submit("echo", {"x": 1}, id="one")
        waiting = asyncio.ensure_future(_await(bus, "one"))
        await until(lambda: engine.jobs)
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await bus.submit("echo", {"x": 1})
    del job
    engine.release()
    async with aikoryu.connect(bench.url) as bus:
        assert (await (await bus.job("one")))["x"] == 1


async def test_a_waiter_that_gives_up_leaves_the_others(bench: Bench) -> None:
    engine = await bench.worker()
    engine.hold = True
    bus = await bench.connect()
    job = await bus.submit("echo", {"x": 1})
    waiters = [asyncio.ensure_future(_await(bus, job.id)) for _ in range(2)]
    await until(lambda: engine.jobs)
    waiters[0].cancel()
    engine.release()
    assert (await waiters[1])["x"] == (await job)["x"] == 1


async def test_worker_and_server_killed_with_jobs_in_flight_lose_none(bench: Bench) -> None:
    """At least once: every job that was accepted has the right result, whoever was killed with -9."""
    worker = await bench.process()
    bus = await bench.connect()
    results: dict[int, Any] = {}
    resubmitted = 0

    async def lane(first: int) -> None:
        nonlocal resubmitted
        for n in range(first, 600, 50):
            while True:
                try:
                    job = await bus.submit("matrix.add", {"a": A + n, "b": A}, id=f"job-{n}")
                    break
                except aikoryu.BusError:
                    resubmitted += 1
            results[n] = (await job)["c"]

    async with asyncio.timeout(20):
        running = asyncio.gather(*map(lane, range(50)))
        await until(lambda: len(results) > 100)
        os.killpg(worker.pid, 9)
        await worker.wait()
        await bench.process()
        await until(lambda: len(results) > 250)
        await bench.kill_server()
        await bench.serve()
        await running
    assert sorted(results) == list(range(600))
    np.testing.assert_array_equal([results[n] for n in range(600)], [2 * A + n for n in range(600)])

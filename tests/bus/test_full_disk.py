"""What a full disk under JetStream does to durable work: nothing accepted is lost, and plain calls go on."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

import aikoryu
from aikoryu.agents import Bus, open_transport
from aikoryu.bus import job_runs, jobs, pipeline
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BusError, Busy, Expired, NoWorker
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import (
    BusSettings,
    JobSettings,
    ModelSettings,
    NatsSettings,
    ServerSettings,
    Settings,
    WorkerSettings,
)
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

MIB = 2**20
ROW = np.zeros(MIB // 64)  # 128 KiB
STREAM_BYTES = 8 * MIB


class Server(EmbeddedServer):
    """A server whose streams may take so many bytes."""

    def __init__(self, store: Path, port: int = 0, most_bytes: int = 0) -> None:
        super().__init__(ServerSettings(port=port, store_dir=str(store)))
        self._most_bytes = most_bytes

    def _config(self, folder: Path) -> str:
        lines = super()._config(folder)
        return lines.replace(
            "jetstream: {", f'jetstream: {{"max_file_store": {self._most_bytes},', self._most_bytes > 0
        )


class Bench:
    """A worker with an engine of this process, and a bus, on a server."""

    def __init__(self, worker: Worker, engine: InlineEngine, bus: Bus) -> None:
        self.runs = worker._jobs.runs
        self.engine = engine
        self.bus = bus
        self.transport = cast(NatsConnection, bus._transport)

    async def submit(self, number: int) -> Any:
        """A job that echoes its number many times."""
        return await self.bus.submit("echo", {"x": ROW + number}, id=f"job-{number}")


Open = Callable[[EmbeddedServer], Awaitable[Bench]]


@pytest.fixture
async def on() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def on(server: EmbeddedServer) -> Bench:
            await server.start()
            stack.push_async_callback(server.stop)
            settings = Settings(
                nats=NatsSettings(url=server.url),
                bus=BusSettings(timeout_s=1.0),
                models=ModelSettings(embed=()),
                worker=WorkerSettings(drain_s=1.0),
                jobs=JobSettings(retry_s=0.01, max_bytes=STREAM_BYTES, results_bytes=STREAM_BYTES),
            )
            transport = await open_transport(settings)
            stack.push_async_callback(transport.close)
            engine = InlineEngine(load(catalogue_of(settings)))
            worker = Worker(transport, settings, [engine])
            await worker.start()
            stack.push_async_callback(worker.stop)
            return Bench(worker, engine, await stack.enter_async_context(aikoryu.connect(settings=settings)))

        yield on


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a server that says nothing waits less long."""
    monkeypatch.setattr(jobs, "DEAD_BYTES", MIB)
    monkeypatch.setattr(pipeline, "ANSWER_S", 0.3)
    monkeypatch.setattr(pipeline, "SWEEP_S", 0.1)
    monkeypatch.setattr(job_runs, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr(job_runs, "STORE_LONGEST_S", 0.1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB, of which the server takes three quarters for its streams."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)), capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


def fill(disk: Path, left_bytes: int) -> Path:
    """Take what is free on a disk, but for so much; the file that does."""
    ballast = disk / "ballast"
    found = os.statvfs(disk)
    ballast.write_bytes(bytes(found.f_bavail * found.f_bsize - left_bytes))
    return ballast


async def test_disk_that_runs_full_loses_no_job_and_stops_no_call(disk: Path, on: Open, eventually: Eventually) -> None:
    server = Server(disk)
    bench = await on(server)
    bench.engine.hold = True
    accepted = [await bench.submit(number) for number in range(4)]
    ballast = fill(disk, left_bytes=MIB)
    refused = None
    while refused is None:
        try:
            accepted.append(await bench.submit(len(accepted)))
        except BusError as error:
            refused = error
    assert isinstance(refused, Expired)
    assert "if that goes on, the server's log says why, and its operator acts: a full disk" in str(refused)
    assert 4 < len(accepted) <= 12
    bench.engine.release()
    with capture_logs() as logs:
        await eventually(lambda: bench.runs._unstored >= 32)
        assert (await bench.bus.call("echo", {"x": 7}))["x"] == 7
    assert bench.runs.stored == 0
    unstored = [line["count"] for line in logs if line["event"] == "result not stored"]
    assert unstored == [1, 2, 4, 8, 16, 32]

    ballast.unlink()
    os.kill(server.pid, 9)  # nats-server gives a stream up whose file could not be written, until it is started again
    async with asyncio.timeout(20):
        for number, job in enumerate(accepted):
            np.testing.assert_array_equal((await job)["x"], ROW + number)
    again = await bench.submit(len(accepted))
    np.testing.assert_array_equal((await again)["x"], ROW + len(accepted))


async def test_server_without_room_refuses_jobs_and_says_who_acts(
    on: Open, tmp_path: Path, eventually: Eventually
) -> None:
    roomy = Server(tmp_path)
    bench = await on(roomy)
    assert (await bench.bus.call("echo", {"x": 7}))["x"] == 7
    bench.engine.hold = True
    kept = await bench.submit(0)
    await roomy.stop()
    cramped = Server(tmp_path, port=int(roomy.url.rpartition(":")[2]), most_bytes=MIB // 16)
    await cramped.start()
    try:
        await eventually(lambda: bench.transport.statistics().reconnects == 1)
        with pytest.raises(Busy, match="what JetStream may use of it, is full: its operator makes room"):
            await bench.submit(1)
        bench.engine.release()
        assert (await bench.bus.call("echo", {"x": 7}, timeout_s=10, idempotent=True))["x"] == 7
        assert bench.runs.stored == 0
    finally:
        await cramped.stop()
    await roomy.start()
    async with asyncio.timeout(20):
        np.testing.assert_array_equal((await kept)["x"], ROW)


async def test_no_job_is_accepted_where_there_is_no_room_for_results(
    on: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aikoryu.bus.deposit.UNAVAILABLE_S", 0.1)
    bench = await on(Server(tmp_path, most_bytes=STREAM_BYTES + 2 * MIB))
    with pytest.raises(NoWorker, match="the log of a worker that is there says what it lacks"):
        await bench.submit(0)
    assert (await bench.bus.call("echo", {"x": 7}))["x"] == 7

"""A client that floods, and one that never reads: others are answered, memory is bounded. Benchmarks tell how fast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import aikoryu
from aikoryu.agents import open_transport
from aikoryu.bus.columns import pack
from aikoryu.bus.frames import Request, encode
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import BatchSettings, ModelSettings, NatsSettings, ServerSettings, Settings, load
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load as operations_of
from aikoryu.gpu.worker import Worker

MIB = 2**20
BATCH_ROWS = 20
ANSWER = np.ones((1, 512, 1), np.float32)  # times its own transpose 1 MiB
SUBJECT = "aikoryu.v1.default.matrix.multiply"


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


async def test_bad_neighbours_cost_others_no_answer_and_the_worker_no_memory() -> None:
    from benchmarks import neighbours

    settings = load(flags={"log.level": "critical", "worker.device": "cpu"})
    flood, mute = await neighbours.observe(settings, ["flood", "mute"], rounds=1, seconds=0.5)
    for seen in (flood, mute):
        (window,) = seen.beside
        assert window["polite"]["errors"] == {}
        assert len(window["polite"]["latencies_s"]) == 100
        assert seen.worker_bytes[-1] < 1.5 * seen.worker_bytes[0] + 64 * MIB
    (told,) = flood.told
    assert told["rows"]["answered"] > 0
    assert told["rows"].keys() <= {"answered", "busy"}
    assert mute.server_bytes < 512 * MIB


async def test_client_that_never_reads_is_cut_off_and_its_rows_are_let_go() -> None:
    async with AsyncExitStack() as stack:
        server = EmbeddedServer(
            ServerSettings(port=0, max_payload_bytes=2 * MIB), extra_config=f"max_pending: {2 * MIB}"
        )
        await stack.enter_async_context(server)
        settings = Settings(
            nats=NatsSettings(url=server.url),
            models=ModelSettings(embed=()),
            batch=BatchSettings(max_rows=BATCH_ROWS),
        )
        transport = await open_transport(settings)
        stack.push_async_callback(transport.close)
        engine = InlineEngine(operations_of(catalogue_of(settings)))
        worker = Worker(transport, settings, [engine])
        await worker.start()
        stack.push_async_callback(worker.stop)
        bus = await stack.enter_async_context(aikoryu.connect(server.url))
        engine.hold = True
        planner, rows = worker._front.planner, 5 * BATCH_ROWS
        blocking = []
        for number in range(engine.slots):  # so that rows gather, and run by whole batches
            blocking.append(bus.call("echo", {"x": number}))
            await until(lambda: len(engine.jobs) > number)  # noqa: B023 - awaited here

        address = urlsplit(server.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        stack.callback(writer.transport.abort)
        columns = {"a": pack(ANSWER), "b": pack(ANSWER.transpose(0, 2, 1))}
        writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
        writer.write(b"SUB _INBOX.mute.* 1\r\n")
        for number in range(rows):
            frame = encode(Request(v=1, n=1, cols=columns, client=17, id=number))
            writer.write(f"PUB {SUBJECT} _INBOX.mute.{number} {len(frame)}\r\n".encode() + frame + b"\r\n")

        await until(lambda: planner.waiting_rows == rows)
        run_held(engine)
        await asyncio.gather(*blocking)
        assert [job.rows for job in engine.jobs[engine.slots :]] == [BATCH_ROWS] * engine.slots
        run_held(engine)  # these answers are more than the server keeps for one that does not read
        assert planner.waiting_rows > 0
        await until(lambda: planner.waiting_rows == 0)
        engine.release()
        assert (await bus.call("echo", {"x": 7}))["x"] == 7
        await until(lambda: not worker._service.held)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def run_held(engine: InlineEngine) -> None:
    """Run the batches that the engine keeps, and keep those that follow."""
    held, engine._held = engine._held, []
    for job in held:
        engine._run(job)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it looks at comes over a socket
            await asyncio.sleep(0.005)

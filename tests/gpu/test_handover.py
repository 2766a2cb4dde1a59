"""Planned stops under load, over a real server: others take over, no call fails, no row is answered or run twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aikoryu.agents import Bus, connect, open_transport
from aikoryu.bus.frames import decode_reply
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.transport import Message
from aikoryu.config import ModelSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

STOPS = 6
CALLERS = 16


@pytest.fixture
async def settings() -> AsyncIterator[Settings]:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        yield Settings(
            nats=NatsSettings(url=server.url),
            models=ModelSettings(embed=()),
            worker=WorkerSettings(drain_s=5.0),
        )


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[InlineEngine]:
    """A worker in this process, stopped as SIGTERM stops it."""
    transport = await open_transport(settings)
    try:
        engine = InlineEngine(load(catalogue_of(settings)), slots=1, slab_bytes=1 << 20)
        served = Worker(transport, settings, [engine])
        await served.start()
        yield engine
        assert await served.stop()
    finally:
        await transport.close()


@asynccontextmanager
async def overheard(settings: Settings) -> AsyncIterator[Counter[str]]:
    """Rows that were answered well, by the subject of the reply: a frame has one of its own."""
    rows: Counter[str] = Counter()

    def on_reply(message: Message) -> None:
        if message.data and message.subject.count(".") == 3:
            rows[message.subject] += sum(count for _, count in decode_reply(message.data).at)

    transport = await open_transport(settings)
    await transport.subscribe("_INBOX.>", on_reply)
    await transport.flush()
    yield rows
    await transport.flush()
    await transport.close()


async def call_until(bus: Bus, ended: asyncio.Event, number: int) -> int:
    """Call one after the other, every second caller's calls may be sent again; how many were answered."""
    calls = 0
    while not ended.is_set():
        x = number * 1_000_000 + calls
        answer = await bus.call("echo", {"x": x}, idempotent=number % 2 == 0)
        assert int(answer["x"]) == x
        calls += 1
    return calls


async def test_no_call_fails_or_is_answered_twice_while_workers_take_turns(settings: Settings) -> None:
    ended = asyncio.Event()
    async with overheard(settings) as answered, connect(settings=settings) as bus, worker(settings):
        callers = [asyncio.create_task(call_until(bus, ended, number)) for number in range(CALLERS)]
        ran = 0
        for _ in range(STOPS):
            async with worker(settings) as engine:
                async with asyncio.timeout(10):
                    while not engine.jobs:  # noqa: ASYNC110 - of this loop's own turns
                        await asyncio.sleep(0)
            ran += sum(job.rows for job in engine.jobs)
        ended.set()
        calls = sum(await asyncio.gather(*callers))
    assert ran > STOPS, "those that stopped had work"
    assert sum(answered.values()) == calls, "of each call one answer was sent, whoever sent it"


async def test_stop_while_an_engine_comes_back_answers_what_was_accepted(settings: Settings) -> None:
    async with connect(settings=settings) as bus:
        async with worker(settings) as engine:
            engine.hold = True
            call = bus.call("echo", {"x": 7})
            async with asyncio.timeout(10):
                while not engine.jobs:  # noqa: ASYNC110 - of this loop's own turns
                    await asyncio.sleep(0)
            engine.on_lost()
            loop = asyncio.get_running_loop()
            engine.hold = False
            loop.call_later(0.05, engine.on_ready)  # while the worker drains
        assert int((await call)["x"]) == 7
    assert len(engine.jobs) == 2

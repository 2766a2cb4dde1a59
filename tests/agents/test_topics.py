"""Topics: who hears what is published, in which order, and what becomes of what nobody has time for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import msgpack
import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents import topics
from aikoryu.agents.app import App
from aikoryu.bus.errors import BusError
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import NatsSettings, ServerSettings, Settings, WorkerSettings

from .conftest import turns, until

_mark: ContextVar[str] = ContextVar("mark", default="app")


class Tick(ai.Message):
    price: int


class Listener(ai.Agent):
    """Keeps what it hears; waits while it is told to.

    Attributes:
        heard: prices, one by one; with the topic where it takes that.
        batches: prices, list by list.
        go: what the handlers wait for.
    """

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()

    @ai.on("market.*.price")
    async def one(self, tick: Tick, call: ai.Call) -> None:
        await self.go.wait()
        if tick.price < 0:
            raise ValueError("a negative price")
        self.heard.append((call.topic, tick.price))

    @ai.on("market.>")
    async def many(self, ticks: list[Tick]) -> None:
        await self.go.wait()
        self.batches.append([tick.price for tick in ticks])


class Desk(ai.Agent):
    def __init__(self) -> None:
        self.heard: list[int] = []

    @ai.on("orders", share="desk")
    async def order(self, tick: Tick) -> None:
        self.heard.append(tick.price)

    @ai.handler
    async def relay(self, price: int, call: ai.Call) -> None:
        call.publish("market.x.price", Tick(price))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def desks() -> list[Desk]:
    return [Desk(), Desk()]


@pytest.fixture
async def bus(memory: MemoryBus, listener: Listener, desks: list[Desk]) -> AsyncIterator[ai.Bus]:
    first, second = App.in_memory(memory), App.in_memory(memory)
    first.add(listener, "listener", mailbox=10)
    first.add(desks[0], "desk")
    second.add(desks[1], "desk")
    async with first as bus, second:
        yield bus


async def test_message_reaches_all_who_hear_its_topic(bus: ai.Bus, listener: Listener) -> None:
    bus.agents.publish("market.a.price", Tick(1))
    bus.agents.publish("market.a.volume", Tick(2))
    bus.agents.publish("elsewhere", Tick(3))
    await until(lambda: listener.heard and sum(map(len, listener.batches)) == 2)
    assert listener.heard == [("market.a.price", 1)]
    assert sorted(price for batch in listener.batches for price in batch) == [1, 2]


async def test_messages_of_one_tick_and_topic_share_a_frame_and_a_batch(
    memory: MemoryBus, bus: ai.Bus, listener: Listener
) -> None:
    frames: list[Any] = []
    await memory.connect().subscribe("aikoryu.v1.default.topic.>", frames.append)
    for number in range(5):
        bus.agents.publish("market.a.price", Tick(number))
    await until(lambda: len(listener.heard) == 5)
    (frame,) = frames
    assert (frame.subject, frame.reply) == ("aikoryu.v1.default.topic.market.a.price", "")
    assert msgpack.unpackb(frame.data)["n"] == 5
    assert [price for _, price in listener.heard] == [0, 1, 2, 3, 4]
    assert listener.batches == [[0, 1, 2, 3, 4]]


async def test_frames_of_a_tick_are_cut_to_size(memory: MemoryBus) -> None:
    app = App.in_memory(MemoryBus(max_payload=8192))
    frames: list[Any] = []
    async with app as bus:
        await app._memory.connect().subscribe("aikoryu.v1.default.topic.>", frames.append)  # type: ignore[union-attr]
        for _ in range(10):
            bus.agents.publish("large", "x" * 1000)
        await until(lambda: sum(msgpack.unpackb(frame.data)["n"] for frame in frames) == 10)
        assert len(frames) > 1
        with pytest.raises(ai.TooLarge):
            bus.agents.publish("large", "x" * 8192)


async def test_one_of_a_group_hears_each(bus: ai.Bus, desks: list[Desk]) -> None:
    for number in range(4):
        bus.agents.publish("orders", Tick(number))
        await turns()
    assert [desk.heard for desk in desks] == [[0, 2], [1, 3]]


async def test_batch_takes_all_that_waits_up_to_a_bound(
    bus: ai.Bus, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "MOST_BATCH", 3)
    listener.go.clear()
    for number in range(8):
        bus.agents.publish("market.a", Tick(number))
    await turns()
    listener.go.set()
    await until(lambda: sum(map(len, listener.batches)) == 8)
    assert listener.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_slow_listener_loses_the_oldest_and_each_is_counted(bus: ai.Bus, listener: Listener) -> None:
    listener.go.clear()
    bus.agents.publish("market.a.price", Tick(0))
    await turns()
    with capture_logs() as logs:
        for number in range(1, 16):
            bus.agents.publish("market.a.price", Tick(number))
        await turns()
    dropped = [entry for entry in logs if entry["event"] == "message of a topic dropped"]
    assert [entry["count"] for entry in dropped if entry["agent"] == "listener.one"] == [1, 2, 4]
    listener.go.set()
    await until(lambda: len(listener.heard) == 11)
    assert [price for _, price in listener.heard] == [0, *range(6, 16)]


async def test_agent_without_a_mailbox_hears_one_message_at_a_time(memory: MemoryBus) -> None:
    app, listener = App.in_memory(memory), Listener()
    app.add(listener, "listener", mailbox=0)
    async with app as bus:
        for number in (1, 2):
            bus.agents.publish("market.a.price", Tick(number))
            await until(lambda: len(listener.heard) == number)  # noqa: B023 - it is over within the turn


async def test_handler_sees_nothing_of_its_publishers_context_nor_of_another_message(memory: MemoryBus) -> None:
    seen: list[str] = []

    class Marker(ai.Agent):
        @ai.on("marks")
        async def mark(self, mark: str) -> None:
            seen.append(_mark.get())
            _mark.set(mark)

    app = App.in_memory(memory)
    app.add(Marker(), "marker")
    async with app as bus:
        _mark.set("publisher")
        for mark in "ab":
            bus.agents.publish("marks", mark)
        await until(lambda: len(seen) == 2)
    assert seen == ["app", "app"]


async def test_handler_that_cancels_itself_hears_the_next(memory: MemoryBus) -> None:
    heard: list[int] = []

    class Quitter(ai.Agent):
        @ai.on("numbers")
        async def hear(self, number: int) -> None:
            heard.append(number)
            raise asyncio.CancelledError

    app = App.in_memory(memory)
    app.add(Quitter(), "quitter")
    async with app as bus:
        for number in (1, 2):
            bus.agents.publish("numbers", number)
        await until(lambda: heard == [1, 2])


async def test_handler_that_swallows_its_cancelling_holds_up_no_stop(
    memory: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "CANCEL_S", 0.01)
    heard: list[int] = []
    go = asyncio.Event()

    class Stubborn(ai.Agent):
        @ai.on("numbers")
        async def hear(self, number: int) -> None:
            heard.append(number)
            while not go.is_set():
                with suppress(asyncio.CancelledError):
                    await go.wait()

    app = App.in_memory(memory, settings=Settings(worker=WorkerSettings(drain_s=0)))
    app.add(Stubborn(), "stubborn")
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            async with app as bus:
                for number in (1, 2):
                    bus.agents.publish("numbers", number)
                await until(lambda: bool(heard))
    assert "handler of a topic goes on though it was cancelled" in [line["event"] for line in logs]
    go.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert heard == [1]


async def test_handler_that_fails_hears_the_next(bus: ai.Bus, listener: Listener) -> None:
    with capture_logs() as logs:
        for price in (-1, 2):
            bus.agents.publish("market.a.price", Tick(price))
        await until(lambda: listener.heard)
    assert listener.heard == [("market.a.price", 2)]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["handler of a topic failed"]


@pytest.mark.parametrize(
    "payload",
    [
        b"garbage",
        b"",
        msgpack.packb({"v": 1, "n": 1, "cols": {}}),
        msgpack.packb({"v": 1, "n": 1, "cols": {"message": {"t": "u1", "d": b"1"}}}),
        b'{"v": 1, "n": 1, "cols": {"message": ["{\\"price\\": \\"high\\"}"]}}',
    ],
)
async def test_what_is_not_understood_is_counted(
    memory: MemoryBus, bus: ai.Bus, listener: Listener, payload: bytes
) -> None:
    with capture_logs() as logs:
        memory.connect().send("aikoryu.v1.default.topic.market.a.price", payload)
        bus.agents.publish("market.a.price", Tick(1))
        await until(lambda: listener.heard)
    assert listener.heard == [("market.a.price", 1)]
    bad = [entry["count"] for entry in logs if entry["event"] == "message of a topic not understood"]
    assert bad == [1, 1]  # by either handler


async def test_person_may_publish_text(memory: MemoryBus, bus: ai.Bus, listener: Listener) -> None:
    typed = b'{"v": 1, "n": 1, "cols": {"message": ["{\\"price\\": 5}"]}}'
    memory.connect().send("aikoryu.v1.default.topic.market.a.price", typed)
    await until(lambda: listener.heard)
    assert listener.heard == [("market.a.price", 5)]


async def test_handlers_publish_too(bus: ai.Bus, listener: Listener) -> None:
    await bus.agents.get("desk").relay(7)
    await until(lambda: listener.heard)
    assert listener.heard == [("market.x.price", 7)]


async def test_stop_handles_what_was_heard(memory: MemoryBus, listener: Listener) -> None:
    app, other = App.in_memory(memory), App.in_memory(memory)
    app.add(listener, "listener")
    async with other as bus:
        await app.__aenter__()
        listener.go.clear()
        for number in range(3):
            bus.agents.publish("market.a.price", Tick(number))
        await turns()
        stopping = asyncio.create_task(app.__aexit__())
        await turns()
        bus.agents.publish("market.a.price", Tick(9))
        await turns()
        listener.go.set()
        await stopping
    assert [price for _, price in listener.heard] == [0, 1, 2]


@pytest.mark.parametrize("topic", ["a.*", "a.>", "", "a..b", "a b", ".a"])
async def test_topic_to_publish_to_is_one(bus: ai.Bus, topic: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        bus.agents.publish(topic, Tick(1))


async def test_what_cannot_be_sent_is_told_at_once(bus: ai.Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ai.BadMessage, match="cannot be sent"):
        bus.agents.publish("a", object())
    monkeypatch.setattr(topics, "BACKLOG_BYTES", -1)
    with pytest.raises(ai.Busy, match="more is published"):
        bus.agents.publish("a", Tick(1))


async def test_closed_bus_publishes_nothing(memory: MemoryBus) -> None:
    async with App.in_memory(memory) as bus:
        pass
    with pytest.raises(BusError, match="closed"):
        bus.agents.publish("a", Tick(1))


async def test_topics_over_a_server() -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url=server.url))
        listener, app = Listener(), ai.App(settings=settings)
        app.add(listener, "listener", mailbox=2000)
        async with app, ai.connect(settings=settings) as bus:
            for number in range(1000):
                bus.agents.publish("market.a.price", Tick(number))
            async with asyncio.timeout(5):
                while len(listener.heard) < 1000:  # noqa: ASYNC110 - the server is waited for
                    await asyncio.sleep(0.001)
    assert [price for _, price in listener.heard] == list(range(1000))

"""Streams of handlers: items in order, no further ahead than asked for, and an end that both sides hear of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgpack
import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents import consumer, host, producer
from aikoryu.agents.app import App
from aikoryu.bus import open_streams
from aikoryu.bus.errors import BadFrame, BusError
from aikoryu.bus.frames import Reply, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.pending import RowsFailed
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.transport import Message
from aikoryu.config import NatsSettings, ServerSettings, Settings, WorkerSettings

from .conftest import turns, until


class Item(ai.Message):
    number: int


class Counter(ai.Agent):
    """Counts.

    Attributes:
        made: items so far.
        closed: what the generators' `finally` saw.
        step: what `slowly` waits for before each item.
    """

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[str] = []
        self.step = asyncio.Semaphore(0)
        self.calls: list[ai.Call] = []

    @ai.handler
    async def count(self, up_to: int) -> AsyncIterator[Item]:
        """Never awaits anything."""
        try:
            for number in range(up_to):
                self.made += 1
                yield Item(number)
        finally:
            self.closed.append("count")

    @ai.handler
    async def slowly(self, up_to: int, call: ai.Call) -> AsyncIterator[Item]:
        self.calls.append(call)
        try:
            for number in range(up_to):
                await self.step.acquire()
                self.made += 1
                yield Item(number)
        except asyncio.CancelledError:
            self.closed.append("cancelled")
            raise
        finally:
            self.closed.append("slowly")

    @ai.handler
    async def fails(self, after: int) -> AsyncIterator[Item]:
        for number in range(after):
            yield Item(number)
        raise ai.Declined("worn_out", "no more")

    @ai.handler
    async def once(self, number: int) -> Item:
        return Item(number)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
async def bus(memory: MemoryBus, counter: Counter) -> AsyncIterator[ai.Bus]:
    app = App.in_memory(memory, settings=Settings(worker=WorkerSettings(drain_s=1)))
    app.add(counter, "counter", concurrency=2, mailbox=1)
    async with app as bus:
        yield bus


def asking(bus: ai.Bus) -> Any:
    return bus.agents.get("counter", Counter)


# --- items -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 128, 129, 1000])
async def test_items_come_whole_and_in_order(bus: ai.Bus, counter: Counter, count: int) -> None:
    assert [item async for item in asking(bus).count.stream(count)] == [Item(n) for n in range(count)]
    await turns()
    assert counter.closed == ["count"]


async def test_item_leaves_when_it_is_there(bus: ai.Bus, counter: Counter) -> None:
    stream = asking(bus).slowly.stream(3)
    for number in range(3):
        counter.step.release()
        assert await anext(stream) == Item(number)
        assert counter.made == number + 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_generator_runs_no_further_ahead_than_was_asked_for(bus: ai.Bus, counter: Counter) -> None:
    async with aclosing(asking(bus).count.stream(1_000_000)) as stream:
        assert await anext(stream) == Item(0)
        await turns(2000)
        most = (consumer.WINDOW + 2) * producer.MOST_ITEMS
        assert counter.made <= most
        before = counter.made
        for number in range(1, 1 + 3 * producer.MOST_ITEMS):
            assert await anext(stream) == Item(number)
        await turns(2000)
        assert before < counter.made <= before + 4 * producer.MOST_ITEMS


async def test_many_streams_at_once_keep_apart(bus: ai.Bus) -> None:
    async def taken(count: int) -> int:
        return len([item async for item in asking(bus).count.stream(count)])

    assert tuple(await asyncio.gather(taken(300), taken(200))) == (300, 200)


async def test_stream_that_was_forgotten_for_others_ends_with_word_of_it(
    bus: ai.Bus, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_streams, "MAX_STREAMS", 1)
    counter.step.release()
    first = asking(bus).slowly.stream(3)
    assert await anext(first) == Item(0)  # and waits for the next
    second = asking(bus).count.stream(3)
    assert await anext(second) == Item(0)
    with pytest.raises(BadFrame, match="too many streams are open here"):
        async with asyncio.timeout(1):
            await anext(first)
    assert counter.closed[:2] == ["cancelled", "slowly"]
    assert [item async for item in second] == [Item(1), Item(2)]


async def test_untyped_caller_gets_records(bus: ai.Bus) -> None:
    assert [item.number async for item in bus.agents.get("counter").count.stream(2)] == [0, 1]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_leaving_the_loop_ends_the_generator(bus: ai.Bus, counter: Counter) -> None:
    async with aclosing(asking(bus).slowly.stream(3)) as stream:
        counter.step.release()
        async for item in stream:
            assert item == Item(0)
            break
    await until(lambda: counter.closed == ["cancelled", "slowly"])
    assert counter.calls[0].cancelled


async def test_breaking_out_of_the_loop_is_leaving_it(bus: ai.Bus, counter: Counter) -> None:
    counter.step.release()
    async for item in asking(bus).slowly.stream(3):
        assert item == Item(0)
        break
    await until(lambda: counter.closed == ["cancelled", "slowly"])


async def test_generator_that_waits_for_room_is_closed_too(bus: ai.Bus, counter: Counter) -> None:
    async with aclosing(asking(bus).count.stream(1_000_000)) as stream:
        await anext(stream)
        await turns(2000)
        assert counter.closed == []
    await until(lambda: counter.closed == ["count"])


async def test_cancelled_caller_ends_the_generator(bus: ai.Bus, counter: Counter) -> None:
    async def take() -> None:
        async for _ in asking(bus).slowly.stream(3):
            pass

    taking = asyncio.create_task(take())
    await until(lambda: counter.calls)
    taking.cancel()
    await until(lambda: counter.closed == ["cancelled", "slowly"])


async def test_stream_that_is_left_while_it_waits_never_runs(bus: ai.Bus, counter: Counter) -> None:
    first, second, third = (asking(bus).slowly.stream(1) for _ in range(3))
    takers = [asyncio.ensure_future(anext(stream)) for stream in (first, second, third)]
    await until(lambda: len(counter.calls) == 2)
    takers[2].cancel()
    await asyncio.gather(takers[2], return_exceptions=True)
    await turns()
    counter.step.release()
    counter.step.release()
    assert await asyncio.gather(*takers[:2]) == [Item(0), Item(0)]
    await first.aclose()
    await second.aclose()
    await turns()
    assert len(counter.calls) == 2


async def test_caller_that_is_gone_ends_its_stream(
    memory: MemoryBus, bus: ai.Bus, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "PROBE_S", 0.001)
    other = App.in_memory(memory)
    theirs = await other.__aenter__()
    taking = asyncio.ensure_future(anext(asking(theirs).slowly.stream(3)))
    await until(lambda: counter.calls)
    for subscription in list(theirs.client._transport.subscriptions):  # type: ignore[attr-defined]
        await subscription.unsubscribe()
    async with asyncio.timeout(5):
        while not counter.closed:  # noqa: ASYNC110 - a timer of the host's is waited for
            await asyncio.sleep(0.001)
    assert counter.closed == ["cancelled", "slowly"]
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    await other.__aexit__()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 500])
async def test_error_comes_after_the_items_before_it(bus: ai.Bus, after: int) -> None:
    stream = asking(bus).fails.stream(after)
    taken = [await anext(stream) for _ in range(after)]
    with pytest.raises(ai.Declined, match="no more") as caught:
        await anext(stream)
    assert caught.value.code == "worn_out"
    assert [item.number for item in taken] == list(range(after))


async def test_each_kind_of_handler_is_called_in_its_way(bus: ai.Bus) -> None:
    with pytest.raises(ai.WrongKind, match=r"peer\.count\.stream"):
        await asking(bus).count(3)
    with pytest.raises(ai.WrongKind, match=r"await peer\.once"):
        await anext(asking(bus).once.stream(3))


async def test_wrong_message_is_the_streams_first_answer(bus: ai.Bus) -> None:
    with pytest.raises(ai.BadMessage, match="Expected `int`, got `str`"):
        await anext(bus.agents.get("counter").count.stream("many"))


async def test_full_mailbox_refuses_streams(bus: ai.Bus, counter: Counter) -> None:
    streams = [asking(bus).slowly.stream(1) for _ in range(4)]
    takers = [asyncio.ensure_future(anext(stream)) for stream in streams]
    with pytest.raises(ai.Busy):
        await takers[3]
    for _ in range(3):
        counter.step.release()
    await asyncio.gather(*takers[:3])
    for stream in streams:
        await stream.aclose()


async def test_item_that_does_not_come_in_time_ends_both_sides(bus: ai.Bus, counter: Counter) -> None:
    with pytest.raises(ai.Expired, match=r"no item of agent\.counter\.slowly within 0\.02 s"):
        await anext(asking(bus).slowly.stream(1, timeout_s=0.02))
    await until(lambda: counter.closed)


async def test_stop_lets_a_stream_end_and_then_ends_it(memory: MemoryBus, counter: Counter) -> None:
    app, other = App.in_memory(memory, settings=Settings(worker=WorkerSettings(drain_s=0.05))), App.in_memory(memory)
    app.add(counter, "counter")
    async with other as bus:
        await app.__aenter__()
        stream = asking(bus).slowly.stream(5)
        counter.step.release()
        assert await anext(stream) == Item(0)
        stopping = asyncio.create_task(app.__aexit__())
        await turns()
        counter.step.release()
        assert await anext(stream) == Item(1)
        with capture_logs():
            await stopping
        with pytest.raises(ai.HandlerFailed, match="stopped"):
            await anext(stream)
        assert counter.closed == ["cancelled", "slowly"]


# --- the wire --------------------------------------------------------------------------------------------------------


async def test_stream_of_a_plain_client(memory: MemoryBus, bus: ai.Bus) -> None:
    connection = memory.connect()
    inbox: list[Message] = []
    await connection.subscribe(f"{connection.inbox_prefix}.>", inbox.append)

    def send(subject: str, **fields: Any) -> None:
        payload = {"v": 1, "client": 9, "stream": 5, **fields}
        connection.send(subject, msgpack.packb(payload), f"{connection.inbox_prefix}.1")

    send("aikoryu.v1.default.agent.counter.count", id=1, n=0)
    await until(lambda: inbox)
    control = msgpack.unpackb(inbox[0].data)["ctl"]
    call = {"t": "utf8", "o": bytes([0, 0, 0, 0, 1, 0, 0, 0]), "d": b"2"}
    send(control, id=2, n=1, seq=0, cols={"message": call})
    send(control, id=3, n=1, seq=1)
    send(control, id=4, n=2, seq=2)
    await until(lambda: len(inbox) == 4)
    replies = {reply["id"]: reply for reply in (msgpack.unpackb(message.data) for message in inbox[1:])}
    items = {id_: replies[id_]["cols"]["items"] for id_ in (2, 3)}
    assert json.loads(items[2]["d"]) == [{"number": 0}, {"number": 1}]
    assert (replies[2]["cols"]["seq"]["d"], replies[3]["cols"]["seq"]["d"]) == (b"\0\0\0\0", b"\2\0\0\0")
    assert json.loads(items[3]["d"]) == []
    assert replies[3]["cols"]["end"]["d"] == b"\1"
    assert replies[4]["err"][0]["code"] == "bad_frame"


async def test_part_of_a_stranger_is_told(memory: MemoryBus, bus: ai.Bus) -> None:
    stranger = memory.connect()

    def on_message(message: Message) -> None:
        request = decode_request(message.data)
        reply = Reply(id=request.id, at=[(0, 1)] * request.n, ctl="stranger", credit=9, seq=request.seq, last=True)
        stranger.send(message.reply, encode(reply))

    await stranger.subscribe("aikoryu.v1.default.agent.strange.count", on_message)
    await stranger.subscribe("stranger", on_message)
    with pytest.raises(BadFrame, match="lacks 'items'"):
        await anext(bus.agents.get("strange").count.stream(1, timeout_s=5.0))


async def test_stream_is_opened_by_one_row(bus: ai.Bus, counter: Counter) -> None:
    message = msgpack.packb({"up_to": 2})
    with pytest.raises(RowsFailed) as caught:
        await anext(bus.stream("agent.counter.count", [{"message": [message, message]}], timeout_s=5.0))
    assert {row: error.code for row, error in caught.value.errors.items()} == {0: "bad_frame", 1: "bad_frame"}
    assert counter.made == 0


async def test_trap_09_stream_over_a_server_ends_when_it_is_left(counter: Counter) -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url=server.url))
        app = ai.App(settings=settings)
        app.add(counter, "counter")
        async with app, ai.connect(settings=settings) as bus:
            assert len([item async for item in asking(bus).count.stream(1000)]) == 1000
            async with aclosing(asking(bus).slowly.stream(3)) as stream:
                counter.step.release()
                assert await anext(stream) == Item(0)
            async with asyncio.timeout(5):
                while "slowly" not in counter.closed:  # noqa: ASYNC110 - the server is waited for
                    await asyncio.sleep(0.001)
            with pytest.raises(BusError):
                await anext(bus.agents.get("counter").nothing.stream(1))

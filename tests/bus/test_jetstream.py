"""Requests to JetStream on a real server; what may have been done is told from what was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from aikoryu.bus import jetstream as module
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import Disconnected
from aikoryu.bus.jetstream import EXPECTED_LAST, STREAM_FULL, JetStream, NoAnswer, Refused, Unavailable
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.options import ConnectOptions

StartServer = Callable[..., Awaitable[Any]]

CONFIG = {"name": "S", "subjects": ["s.>"], "allow_direct": True}


@pytest.fixture
async def jetstream(start_server: StartServer) -> AsyncIterator[JetStream]:
    server = await start_server()
    connection = await NatsConnection.open(ConnectOptions(server.url))
    async with JetStream(connection) as jetstream:
        await jetstream.ensure_stream(CONFIG)
        yield jetstream
    await connection.close()


async def test_what_is_published_is_read_back(jetstream: JetStream) -> None:
    assert await jetstream.publish("s.a", b"one", {"Key": "value"}) == 1
    assert await jetstream.publish("s.b", b"two") == 2
    assert await jetstream.publish("s.a", b"", {EXPECTED_LAST: "1"}) == 3
    assert await jetstream.last("S", "s.b") == ("s.b", 2, b"two", {})
    assert await jetstream.next("S", "s.a", 1) == ("s.a", 1, b"one", {"Key": "value"})
    found = await jetstream.next("S", "s.a", 2)
    assert found is not None
    assert (found.sequence, found.data) == (3, b"")
    assert await jetstream.next("S", "s.a", 4) is None
    assert await jetstream.last("S", "s.c") is None


async def test_scan_reads_a_batch_of_one_subject(jetstream: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_MESSAGES", 3)
    for number in range(8):
        await jetstream.publish(f"s.{number % 2}", b"%d" % number)

    async def scan(subject: str, sequence: int) -> list[tuple[int, bytes]]:
        async with aclosing(jetstream.scan("S", subject, sequence)) as found:
            return [(stored.sequence, stored.data) async for stored in found]

    assert await scan("s.0", 1) == [(1, b"0"), (3, b"2"), (5, b"4")]
    assert await scan("s.0", 6) == [(7, b"6")]
    assert await scan("s.0", 8) == []
    with pytest.raises(Refused, match="Malformed Request"):
        await scan("s.0", -1)
    with pytest.raises(Unavailable, match="lets nobody read directly"):
        async with aclosing(jetstream.scan("T", "s.0", 1)) as found:
            await anext(found)


async def test_a_refusal_is_told_with_its_number(jetstream: JetStream) -> None:
    await jetstream.publish("s.a", b"one")
    with pytest.raises(Refused, match="wrong last sequence: 1") as caught:
        await jetstream.publish("s.a", b"two", {EXPECTED_LAST: "0"})
    assert caught.value.err_code in module.WRONG_LAST_SEQUENCE
    with pytest.raises(Refused, match="stream not found"):
        await jetstream.last("T", "t")
    with pytest.raises(Unavailable, match="no JetStream stream takes t"):
        await jetstream.publish("t", b"")
    await jetstream.api("STREAM.UPDATE.S", {**CONFIG, "discard": "new", "max_msgs": 1})
    with pytest.raises(Refused) as caught:
        await jetstream.publish("s.a", b"two")
    assert caught.value.err_code == STREAM_FULL


async def test_a_stream_that_is_there_is_kept_and_one_that_differs_is_told(jetstream: JetStream) -> None:
    await jetstream.api("STREAM.UPDATE.S", {**CONFIG, "description": "an operator's"})
    await jetstream.ensure_stream(CONFIG)
    with pytest.raises(Refused, match=r"stream S is there, but subjects is \['s\.>'\], not \['t'\]: change it"):
        await jetstream.ensure_stream({**CONFIG, "subjects": ["t"]})
    with pytest.raises(Refused, match="subjects overlap"):
        await jetstream.ensure_stream({"name": "T", "subjects": ["s.a"]})


async def test_no_answer_ends_the_wait_in_time_and_a_late_one_is_dropped() -> None:
    bus = MemoryBus()
    server, client = bus.connect(), bus.connect()
    requests: list[str] = []
    await server.subscribe("a", lambda message: requests.append(message.reply))
    async with JetStream(client, timeout_s=0.01) as jetstream:
        with pytest.raises(NoAnswer, match=r"on a within 0\.01 s: find out"):
            await jetstream.publish("a", b"")
        with pytest.raises(NoAnswer, match=r"within 0\.02 s"):
            await jetstream.publish("a", b"", timeout_s=0.02)
        for reply in requests:
            await server.publish(reply, b"{}")
        await server.flush()
        assert jetstream._waiting == {}
    await server.close()
    await client.close()


async def test_a_reconnect_ends_the_waits_before_it_but_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    bus = MemoryBus()
    server, client = bus.connect(), bus.connect()
    requests: list[str] = []
    await server.subscribe("*", lambda message: requests.append(message.reply))
    async with JetStream(client, timeout_s=60) as jetstream:
        lost = asyncio.create_task(jetstream.publish("a", b""))
        kept = asyncio.create_task(jetstream.publish("b", b""))
        await client.flush()
        for restored in client.on_reconnect:
            restored()
        await server.publish(requests[1], b'{"seq": 7}')
        assert await kept == 7
        assert not lost.done()
        with pytest.raises(NoAnswer, match="connection was lost"):
            await lost
        ended = asyncio.create_task(jetstream.publish("c", b""))
        await client.flush()
    with pytest.raises(NoAnswer):
        await ended
    assert client.on_reconnect == []
    assert client.subscriptions == []
    await server.close()
    await client.close()


async def test_nothing_sent_is_disconnected_not_unknown() -> None:
    bus = MemoryBus()
    client = bus.connect()
    async with JetStream(client) as jetstream:
        client.lost = True
        # What is kept for the connection's return may be done then.
        for expected in (NoAnswer, NoAnswer, Disconnected):
            with pytest.raises(expected):
                await jetstream.publish("a", bytes(1_000_000), timeout_s=0.001)
        client.lost = False
    await client.close()

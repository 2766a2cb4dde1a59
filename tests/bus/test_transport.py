"""What every transport must do, checked on the in-memory bus and on a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BadParameter, Closed, Disconnected, TooLarge
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.transport import Message, Transport, no_responders

MAX_PAYLOAD = 4096
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class Bus(Protocol):
    """Makes connections, and loses all of them at once."""

    async def connect(self) -> Transport: ...
    async def lose(self) -> None: ...
    async def restore(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._bus = MemoryBus(max_payload=MAX_PAYLOAD)
        self._connections: list[MemoryConnection] = []

    async def connect(self) -> Transport:
        self._connections.append(self._bus.connect())
        return self._connections[-1]

    async def lose(self) -> None:
        for connection in self._connections:
            self._bus.drop_connection(connection)

    async def restore(self) -> None:
        for connection in self._connections:
            self._bus.restore(connection)


class OnServer:
    def __init__(self, server: Any) -> None:
        self._server = server
        self.connections: list[NatsConnection] = []

    async def connect(self) -> Transport:
        connection = await NatsConnection.open(ConnectOptions(self._server.url))
        self.connections.append(connection)
        return connection

    async def lose(self) -> None:
        await self._server.stop()
        for connection in self.connections:
            await until_lost(connection)

    async def restore(self) -> None:
        await self._server.start(max_payload_bytes=MAX_PAYLOAD)


async def until_lost(connection: NatsConnection) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await connection.flush()
            except Disconnected:
                return


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest, start_server: Callable[..., Awaitable[Any]]) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield InMemory()
        return
    on_server = OnServer(await start_server(max_payload_bytes=MAX_PAYLOAD))
    yield on_server
    for connection in on_server.connections:
        await connection.close()


class Inbox(list[Message]):
    """Collects messages; it is the callback of a subscription."""

    def __call__(self, message: Message) -> None:
        self.append(message)

    @property
    def data(self) -> list[bytes]:
        return [message.data for message in self]


async def test_message_arrives_with_its_reply_and_headers(bus: Bus, eventually: Eventually) -> None:
    alice, bob = await bus.connect(), await bus.connect()
    inbox = Inbox()
    await bob.subscribe("greet.bob", inbox)
    await bob.flush()
    await alice.publish("greet.bob", b"hello", "answer.here", {"Trace": "7", "Empty": ""})
    await alice.publish("greet.bob", b"")
    await eventually(lambda: len(inbox) == 2)
    first, second = inbox
    assert (first.subject, first.reply, first.data) == ("greet.bob", "answer.here", b"hello")
    assert first.headers == {"Trace": "7", "Empty": ""}
    assert (second.reply, second.data, second.headers) == ("", b"", None)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("a.*.c", ["a.b.c", "a.*.c"], ["a.c", "a.b.b.c", "a.b.d", "a.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a"]),
        (">", ["a", "a.b"], []),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("a.b", ["a.b"], ["a", "a.b.c", "A.b"]),
    ],
)
async def test_wildcards(
    bus: Bus, eventually: Eventually, pattern: str, matching: list[str], others: list[str]
) -> None:
    transport = await bus.connect()
    inbox, last = Inbox(), Inbox()
    await transport.subscribe(pattern, inbox)
    await transport.subscribe("last", last)
    for subject in [*matching, *others, "last"]:
        await transport.publish(subject, b"")
    await eventually(lambda: len(last) == 1)
    assert [message.subject for message in inbox if message.subject != "last"] == matching


async def test_messages_of_one_publisher_keep_their_order(bus: Bus, eventually: Eventually) -> None:
    alice, bob = await bus.connect(), await bus.connect()
    inbox = Inbox()
    await bob.subscribe("n.*", inbox)
    await bob.flush()
    for number in range(200):
        await alice.publish(f"n.{number % 3}", str(number).encode())
    await eventually(lambda: len(inbox) == 200)
    assert inbox.data == [str(number).encode() for number in range(200)]


async def test_queue_group_gets_each_message_once(bus: Bus, eventually: Eventually) -> None:
    transport = await bus.connect()
    members, everyone, other_group = [Inbox(), Inbox(), Inbox()], Inbox(), Inbox()
    for member in members:
        await transport.subscribe("work", member, queue="workers")
    await transport.subscribe("work", everyone)
    await transport.subscribe("work", other_group, queue="others")
    for number in range(90):
        await transport.publish("work", str(number).encode())
    await eventually(lambda: len(everyone) == 90 and len(other_group) == 90)
    await eventually(lambda: sum(map(len, members)) == 90)
    assert sorted(data for member in members for data in member.data) == sorted(everyone.data)
    assert all(members)


async def test_queue_group_goes_on_when_a_member_drains(bus: Bus, eventually: Eventually) -> None:
    transport = await bus.connect()
    stays, leaves = Inbox(), Inbox()
    await transport.subscribe("work", stays, queue="workers")
    leaving = await transport.subscribe("work", leaves, queue="workers")
    for _ in range(40):
        await transport.publish("work", b"")
    await transport.flush()
    await leaving.drain()
    assert len(leaves) > 0
    before = len(leaves)
    for _ in range(20):
        await transport.publish("work", b"")
    await eventually(lambda: len(stays) + len(leaves) == 60)
    assert len(leaves) == before


async def test_drain_hands_over_what_was_received(bus: Bus) -> None:
    transport = await bus.connect()
    inbox = Inbox()
    subscription = await transport.subscribe("work", inbox)
    for _ in range(100):
        await transport.publish("work", b"")
    await subscription.drain()
    assert len(inbox) == 100
    await subscription.drain()
    await subscription.unsubscribe()


async def test_nothing_comes_after_unsubscribe(bus: Bus, eventually: Eventually) -> None:
    transport = await bus.connect()
    inbox, last = Inbox(), Inbox()
    subscription = await transport.subscribe("work", inbox)
    await transport.subscribe("last", last)
    await transport.publish("work", b"lost")
    await subscription.unsubscribe()
    await transport.publish("work", b"")
    await transport.publish("last", b"")
    await eventually(lambda: len(last) == 1)
    assert inbox == []
    await subscription.unsubscribe()


async def test_flush_covers_own_subscriptions_and_publishes(bus: Bus, eventually: Eventually) -> None:
    alice, bob = await bus.connect(), await bus.connect()
    inbox, answers = Inbox(), Inbox()
    await bob.subscribe("work", inbox)
    await bob.flush()
    await alice.subscribe("answers", answers)
    await alice.publish("work", b"", reply="answers")
    await alice.flush()
    await eventually(lambda: len(inbox) == 1)
    assert answers == []


async def test_no_responders(bus: Bus, eventually: Eventually) -> None:
    transport = await bus.connect()
    answers = Inbox()
    await transport.subscribe(f"{transport.inbox_prefix}.*", answers)
    await transport.publish("nobody", b"question", reply=f"{transport.inbox_prefix}.1")
    await transport.publish("nobody", b"statement")
    await eventually(lambda: len(answers) == 1)
    await transport.flush()
    (answer,) = answers
    assert no_responders(answer)
    assert answer.subject == f"{transport.inbox_prefix}.1"
    assert answer.headers is not None
    assert (answer.headers["Status"], answer.data, answer.reply) == ("503", b"", "")


async def test_connections_have_inboxes_of_their_own(bus: Bus) -> None:
    alice, bob = await bus.connect(), await bus.connect()
    assert alice.inbox_prefix != bob.inbox_prefix
    assert alice.inbox_prefix.startswith("_INBOX.")
    assert not alice.inbox_prefix.endswith(".")


@pytest.mark.parametrize("headers", [None, {}, {"Trace": "seven", "Other": " spaces at the ends are dropped "}])
async def test_largest_message_passes_and_one_byte_more_is_refused(
    bus: Bus, eventually: Eventually, headers: dict[str, str] | None
) -> None:
    transport = await bus.connect()
    assert transport.max_payload == MAX_PAYLOAD
    block = 0
    if headers is not None:
        block = 12 + sum(len(name) + len(value.strip()) + 4 for name, value in headers.items())
    inbox = Inbox()
    await transport.subscribe("work", inbox)
    with pytest.raises(TooLarge, match=str(MAX_PAYLOAD)):
        await transport.publish("work", bytes(MAX_PAYLOAD - block + 1), headers=headers)
    await transport.publish("work", bytes(MAX_PAYLOAD - block), headers=headers)
    await eventually(lambda: len(inbox) == 1)
    assert len(inbox[0].data) == MAX_PAYLOAD - block


@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a b", "a.>.b", "a.b>", "a*", "a\r\nPUB x 0", "a\n"])
async def test_invalid_subject_is_refused(bus: Bus, subject: str) -> None:
    transport = await bus.connect()
    with pytest.raises(BadParameter, match="subject"):
        await transport.subscribe(subject, Inbox())
    await transport.flush()


async def test_invalid_queue_header_and_empty_subject_are_refused(bus: Bus) -> None:
    transport = await bus.connect()
    with pytest.raises(BadParameter, match="queue"):
        await transport.subscribe("a", Inbox(), queue="two words")
    with pytest.raises(BadParameter, match="header"):
        await transport.publish("a", b"", headers={"A\r\nB": ""})
    with pytest.raises(BadParameter, match="subject"):
        await transport.publish("", b"")
    await transport.flush()


async def test_subject_that_the_server_would_end_the_connection_for_is_refused(
    bus: Bus, eventually: Eventually
) -> None:
    transport = await bus.connect()
    inbox = Inbox()
    await transport.subscribe("a.>", inbox)
    for subject, reply in (("a." + 3999 * "b", ""), ("a.b", 3998 * "c"), ("a." + 1334 * "€", "")):
        with pytest.raises(BadParameter, match="use shorter names"):
            await transport.publish(subject, b"", reply)
    for subject, reply in (("a." + 3998 * "b", ""), ("a.b", 3997 * "c")):
        await transport.publish(subject, b"x" * 1000, reply)
    await eventually(lambda: len(inbox) == 2)


@pytest.mark.parametrize("error", [ValueError("mistake"), asyncio.CancelledError()])
async def test_callback_that_raises_keeps_its_subscription(
    bus: Bus, eventually: Eventually, error: BaseException
) -> None:
    transport = await bus.connect()
    seen: list[bytes] = []

    def callback(message: Message) -> None:
        seen.append(message.data)
        if message.data == b"1":
            raise error

    await transport.subscribe("work", callback)
    for data in (b"0", b"1", b"2"):
        await transport.publish("work", data)
    await eventually(lambda: seen == [b"0", b"1", b"2"])


async def test_closed_connection_says_so(bus: Bus) -> None:
    transport = await bus.connect()
    subscription = await transport.subscribe("work", Inbox())
    await transport.close()
    await transport.close()
    with pytest.raises(Closed):
        await transport.publish("work", b"")
    with pytest.raises(Closed):
        await transport.subscribe("work", Inbox())
    with pytest.raises(Closed):
        await transport.flush()
    await subscription.unsubscribe()
    await subscription.drain()


async def test_close_sends_what_was_published(bus: Bus, eventually: Eventually) -> None:
    alice, bob = await bus.connect(), await bus.connect()
    inbox = Inbox()
    await bob.subscribe("work", inbox)
    await bob.flush()
    for _ in range(100):
        await alice.publish("work", bytes(1000))
    await alice.close()
    await eventually(lambda: len(inbox) == 100)


async def test_lost_connection_comes_back_with_subscriptions_and_what_was_published(
    bus: Bus, eventually: Eventually
) -> None:
    transport = await bus.connect()
    before, gone, meanwhile, restored = Inbox(), Inbox(), Inbox(), []
    transport.on_reconnect.append(lambda: restored.append(True))
    await transport.subscribe("work", before)
    ended = await transport.subscribe("work", gone)
    await transport.flush()
    await bus.lose()
    with pytest.raises(Disconnected):
        await transport.flush()
    await ended.drain()
    await transport.subscribe("work", meanwhile, queue="q")
    for number in range(20):
        await transport.publish("work", str(number).encode())
    assert restored == []
    await bus.restore()
    await eventually(lambda: bool(restored))
    await transport.publish("work", b"last")
    await eventually(lambda: len(before) == 21 and len(meanwhile) == 21)
    assert before.data == [str(number).encode() for number in range(20)] + [b"last"]
    assert gone == []
    assert restored == [True]


async def test_publishing_too_much_while_lost_is_refused(bus: Bus, eventually: Eventually) -> None:
    transport = await bus.connect()
    inbox = Inbox()
    await transport.subscribe("work", inbox)
    await bus.lose()
    kept = 0
    with contextlib.suppress(Disconnected):
        while kept < 1000:
            await transport.publish("work", bytes(MAX_PAYLOAD))
            kept += 1
    assert 2 * 1024 * 1024 * 0.95 < kept * MAX_PAYLOAD <= 2 * 1024 * 1024
    await bus.restore()
    await eventually(lambda: len(inbox) == kept)

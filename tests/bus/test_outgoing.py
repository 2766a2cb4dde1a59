"""Messages handed over by synchronous code: order, errors, and giving way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from aikoryu.bus import outgoing as module
from aikoryu.bus.errors import BusError, Disconnected, TooLarge
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.outgoing import BURST_BYTES, Outgoing


class Line:
    """A connection whose socket takes messages only while it is open.

    Attributes:
        sent: payloads and subjects, in order.
        open: the socket takes more.
        refused: raised for subjects in it.
    """

    max_payload = 1 << 20

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.pushes = 0
        self.open = asyncio.Event()
        self.open.set()
        self.refused: dict[str, BusError] = {}

    def send(self, subject: str, payload: bytes, reply: str = "", headers: Any = None) -> None:
        if subject in self.refused:
            raise self.refused[subject]
        self.sent.append((subject, payload))

    def push(self) -> bool:
        self.pushes += 1
        return self.open.is_set()

    async def writable(self) -> None:
        await self.open.wait()


@pytest.fixture
async def line() -> Line:
    return Line()


def outgoing(line: Line, collect: Any = None) -> Outgoing:
    return Outgoing(line, collect)  # type: ignore[arg-type]


async def test_messages_leave_in_order_at_the_end_of_the_tick(line: Line) -> None:
    made = outgoing(line)
    for number in range(5):
        made.send(f"s{number}", b"x")
    assert line.sent == []
    await made.drain()
    assert [subject for subject, _ in line.sent] == ["s0", "s1", "s2", "s3", "s4"]
    assert line.pushes == 1


async def test_collect_is_called_once_before_what_it_adds_leaves(line: Line) -> None:
    calls: list[int] = []

    def collect() -> None:
        calls.append(len(line.sent))
        made.send("collected", b"")

    made = outgoing(line, collect)
    made.wake()
    made.wake()
    await made.drain()
    assert calls == [0]
    assert line.sent == [("collected", b"")]


async def test_trap_03_large_messages_give_way_to_others(line: Line) -> None:
    made = outgoing(line)
    seen: list[int] = []

    async def other() -> None:
        while len(seen) < 1000:
            seen.append(len(line.sent))
            await asyncio.sleep(0)

    watching = asyncio.create_task(other())
    for _ in range(40):
        made.send("big", bytes(BURST_BYTES // 4))
    await made.drain()
    watching.cancel()
    assert len(line.sent) == 40
    steps = [later - earlier for earlier, later in zip(seen, [*seen[1:], 40], strict=True)]
    assert max(steps) <= 5
    assert len([step for step in steps if step]) >= 8


async def test_what_the_socket_does_not_take_waits_in_order(line: Line) -> None:
    made = outgoing(line)
    line.open.clear()
    made.send("first", b"x")
    for _ in range(5):
        await asyncio.sleep(0)
    made.send("second", b"x")
    made.send("third", b"x")
    for _ in range(5):
        await asyncio.sleep(0)
    assert [subject for subject, _ in line.sent] == ["first"]
    draining = asyncio.create_task(made.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done()
    line.open.set()
    async with asyncio.timeout(5):
        await draining
    assert [subject for subject, _ in line.sent] == ["first", "second", "third"]


async def test_message_that_is_refused_tells_its_sender_and_holds_up_nobody(line: Line) -> None:
    line.refused = {"large": TooLarge("8 bytes"), "lost": Disconnected("gone"), "untold": TooLarge("9 bytes")}
    made = outgoing(line)
    told: list[BusError] = []
    made.send("large", b"12345678", failed=told.append)
    made.send("lost", b"x", failed=told.append)
    made.send("fine", b"x")
    with capture_logs() as logs:
        made.send("untold", b"x")
        await made.drain()
    assert told == [line.refused["large"], line.refused["lost"]]
    assert line.sent == [("fine", b"x")]
    assert [(entry["event"], entry["subject"]) for entry in logs] == [("message not published", "untold")]


async def test_what_nobody_would_be_told_of_waits_for_a_lost_connection_in_order(line: Line) -> None:
    line.refused = {"answer": Disconnected("gone")}
    made = outgoing(line)
    for payload in (b"1", b"22"):
        made.send("answer", payload)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await made.drain()
    assert (line.sent, made.backlog_bytes) == ([], 3)
    line.refused.clear()
    async with asyncio.timeout(5):
        await made.drain()
    assert line.sent == [("answer", b"1"), ("answer", b"22")]
    assert made.backlog_bytes == 0


async def test_sender_that_is_told_may_send_again(line: Line) -> None:
    line.refused = {"large": TooLarge("8 bytes")}
    made = outgoing(line)
    made.send("large", b"12345678", failed=lambda error: made.send("small", b"1"))
    await made.drain()
    assert line.sent == [("small", b"1")]


async def test_defect_in_collect_is_told_and_holds_up_nobody(line: Line) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
    defects = [ZeroDivisionError("once")]

    def collect() -> None:
        if defects:
            raise defects.pop()

    made = outgoing(line, collect)
    made.send("first", b"")
    async with asyncio.timeout(5):
        await made.drain()
    made.send("second", b"")
    async with asyncio.timeout(5):
        await made.drain()
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert [subject for subject, _ in line.sent] == ["first", "second"]


async def test_drain_of_nothing_returns(line: Line) -> None:
    async with asyncio.timeout(1):
        await outgoing(line).drain()


async def test_messages_reach_the_bus_with_their_reply() -> None:
    bus = MemoryBus()
    got: list[Any] = []
    receiver = bus.connect()
    await receiver.subscribe("a", got.append)
    made = Outgoing(bus.connect())
    made.send("a", b"x", "answer.here")
    await made.drain()
    await receiver.flush()
    assert [(message.data, message.reply, message.headers) for message in got] == [(b"x", "answer.here", None)]


async def test_drain_does_not_wait_for_ever_for_a_connection_that_stays_lost(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 0.01, raising=False)
    line.refused["s"] = Disconnected("lost")
    made = outgoing(line)
    made.send("s", b"x")
    async with asyncio.timeout(2.0):
        await made.drain()
    line.refused.clear()
    async with asyncio.timeout(2.0):
        while not line.sent:  # noqa: ASYNC110 - what comes back late is sent all the same
            await asyncio.sleep(0.001)

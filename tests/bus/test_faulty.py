"""A connection that misbehaves: what becomes of each message, exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aikoryu.bus import faulty
from aikoryu.bus.client import Client
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import Closed, Expired
from aikoryu.bus.faults import BUS_KINDS, Faults, parse
from aikoryu.bus.faulty import FaultyTransport
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message

from .conftest import Eventually

COUNT = 6
IN_ORDER = [b"0", b"1", b"2", b"3", b"4", b"5"]

# What arrives at once of six messages, and what does when nothing is held back any more.
AT_ONCE = {
    "drop:1": [],
    "drop@0": IN_ORDER[1:],
    "delay=3600:1": [],
    "delay=3600@0": IN_ORDER[1:],
    "duplicate:1": [each for each in IN_ORDER for _ in range(2)],
    "duplicate@0": [b"0", *IN_ORDER],
    "reorder:1": [b"1", b"0", b"3", b"2", b"5", b"4"],
    "reorder@0": [b"1", b"0", *IN_ORDER[2:]],
    "disconnect@0": IN_ORDER,
}
IN_THE_END = AT_ONCE | {"delay=3600:1": IN_ORDER, "delay=3600@0": [*IN_ORDER[1:], b"0"]}
HOW_OFTEN = {"duplicate:1": 6, "drop:1": 6, "delay=3600:1": 6, "reorder:1": 3}


class Rig:
    """A faulty connection and a sound one, on one bus."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.inner = self.bus.connect()
        self.faulty = FaultyTransport(self.inner, Faults())
        self.sound = self.bus.connect()
        self.heard: list[bytes] = []

    def on_message(self, message: Message) -> None:
        self.heard.append(message.data)

    def inject(self, *rules: str) -> None:
        self.faulty.faults = Faults([parse(rule, 0.0) for rule in rules])

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def kind_of(rule: str) -> str:
    return next(kind for kind in BUS_KINDS if rule.startswith(kind))


@pytest.mark.parametrize("rule", AT_ONCE)
@pytest.mark.parametrize("sent", [True, False], ids=["sent", "received"])
async def test_each_kind_does_to_messages_what_it_says(rig: Rig, rule: str, sent: bool) -> None:
    sender, receiver = (rig.faulty, rig.sound) if sent else (rig.sound, rig.faulty)
    await receiver.subscribe("a.*", rig.on_message)
    rig.inject(rule)
    for number in range(COUNT):
        await sender.publish("a.b", str(number).encode())
        await rig.settle()
    assert rig.heard == AT_ONCE[rule]
    rig.faulty.release()
    await rig.settle()
    assert rig.heard == IN_THE_END[rule]
    assert rig.faulty.injected == {kind_of(rule): HOW_OFTEN.get(rule, 1)}
    rig.faulty.release()
    await rig.settle()
    assert len(rig.heard) == len(IN_THE_END[rule]), "what was held back is let go of once"


async def test_delayed_message_comes_when_its_time_has_passed(rig: Rig) -> None:
    await rig.sound.subscribe("a", rig.on_message)
    rig.inject("delay=0.01@0")
    before = asyncio.get_running_loop().time()
    await rig.faulty.publish("a", b"late")
    async with asyncio.timeout(5):
        while not rig.heard:  # noqa: ASYNC110 - it comes from a timer
            await asyncio.sleep(0.001)
    assert asyncio.get_running_loop().time() - before >= 0.01


async def test_last_message_is_not_held_back_for_one_that_never_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulty, "REORDER_S", 0.001)
    await rig.faulty.subscribe("a", rig.on_message)
    rig.inject("reorder:1")
    await rig.sound.publish("a", b"last")
    async with asyncio.timeout(5):
        while not rig.heard:  # noqa: ASYNC110 - it comes from a timer
            await asyncio.sleep(0.001)
    await rig.sound.publish("a", b"next")
    await rig.sound.publish("a", b"after")
    await rig.settle()
    assert rig.heard == [b"last", b"after", b"next"], "it was not waiting for the one that is gone"


async def test_both_directions_hold_back_apart(rig: Rig) -> None:
    await rig.faulty.subscribe("in", rig.on_message)
    await rig.sound.subscribe("out", rig.on_message)
    rig.inject("reorder:1")
    await rig.faulty.publish("out", b"out 1")
    await rig.sound.publish("in", b"in 1")
    await rig.settle()
    assert rig.heard == []
    await rig.faulty.publish("out", b"out 2")
    await rig.sound.publish("in", b"in 2")
    await rig.settle()
    assert rig.heard == [b"out 2", b"out 1", b"in 2", b"in 1"]


async def test_servers_own_subjects_are_spared(rig: Rig) -> None:
    await rig.faulty.subscribe("$SRV.PING", rig.on_message)
    await rig.sound.subscribe("$JS.API.INFO", rig.on_message)
    rig.inject("drop:1")
    await rig.sound.publish("$SRV.PING", b"in")
    await rig.faulty.publish("$JS.API.INFO", b"out")
    await rig.settle()
    assert rig.heard == [b"in", b"out"]
    assert rig.faulty.injected == {}


async def test_without_rules_everything_passes_with_reply_and_headers(rig: Rig) -> None:
    got: list[Message] = []
    await rig.sound.subscribe("a", got.append)
    await rig.faulty.publish("a", b"x", "r", {"N": "v"})
    await rig.settle()
    assert [(message.reply, message.data, message.headers) for message in got] == [("r", b"x", {"N": "v"})]
    assert (rig.faulty.max_payload, rig.faulty.inbox_prefix) == (rig.inner.max_payload, rig.inner.inbox_prefix)


async def test_subscription_that_ends_loses_what_is_held_back_and_a_drain_does_not(rig: Rig) -> None:
    rig.inject("delay=3600:1")
    ended, drained = (
        await rig.faulty.subscribe("ended", rig.on_message),
        await rig.faulty.subscribe("d", rig.on_message),
    )
    for subject in ("ended", "d"):
        await rig.sound.publish(subject, subject.encode())
    await rig.settle()
    await ended.unsubscribe()
    await drained.drain()
    assert rig.heard == [b"d"]
    await rig.sound.publish("d", b"after")
    await rig.settle()
    rig.faulty.release()
    assert rig.heard == [b"d"]


async def test_close_sends_what_is_held_back(rig: Rig) -> None:
    await rig.sound.subscribe("a", rig.on_message)
    rig.inject("delay=3600:1")
    await rig.faulty.publish("a", b"late")
    await rig.faulty.close()
    assert rig.heard == [b"late"]
    rig.inject()
    with pytest.raises(Closed):
        await rig.faulty.publish("a", b"too late")


async def test_message_whose_connection_has_closed_meanwhile_is_lost(rig: Rig) -> None:
    await rig.sound.subscribe("a", rig.on_message)
    rig.inject("delay=3600:1")
    await rig.faulty.publish("a", b"late")
    await rig.inner.close()
    rig.faulty.release()
    await rig.settle()
    assert rig.heard == []


async def test_callback_that_raises_late_costs_nobody_else(rig: Rig) -> None:
    def on_message(message: Message) -> None:
        rig.on_message(message)
        raise ZeroDivisionError

    await rig.faulty.subscribe("a", on_message)
    rig.inject("delay=3600:1")
    for payload in (b"1", b"2"):
        await rig.sound.publish("a", payload)
    await rig.settle()
    rig.faulty.release()
    assert rig.heard == [b"1", b"2"]


async def test_connection_that_is_cut_comes_back_and_keeps_what_was_sent(rig: Rig) -> None:
    restored: list[str] = []
    rig.faulty.on_reconnect.append(lambda: restored.append("restored"))
    await rig.sound.subscribe("a", rig.on_message)
    rig.inject("disconnect:1")
    await rig.faulty.publish("a", b"1")
    assert rig.faulty.lost
    await rig.faulty.publish("a", b"2")
    assert rig.heard == []
    await rig.settle()
    assert rig.heard == [b"1", b"2"]
    assert (rig.faulty.lost, restored) == (False, ["restored"])
    assert rig.faulty.injected == {"disconnect": 2}


async def test_service_and_client_live_on_it() -> None:
    bus = MemoryBus()
    transport = FaultyTransport(bus.connect("_WORKER"), Faults())
    service = Service(transport, Subjects(), "w1", reply_prefixes=("_INBOX",))

    def echo(held: Held) -> None:
        service.answer(held, [(0, held.request.n)], held.request.cols, [])

    await service.start()
    await service.serve("echo", echo)
    client = Client(bus.connect(), Subjects(), timeout_s=5.0, frame_bytes=1 << 16)
    await client.start()
    for rule in ("duplicate:1", "reorder:1", "delay=0.001:1", "disconnect:1"):
        transport.faults = Faults([parse(rule, 0.0)])
        assert (await client.call("echo", {"x": 7}))["x"] == 7
    transport.faults = Faults([parse("drop:1", 0.0)])
    with pytest.raises(Expired):
        await client.call("echo", {"x": 7}, timeout_s=0.05)
    transport.faults = Faults()
    assert (await client.call("echo", {"x": 7}))["x"] == 7
    await client.close()
    await service.drain(1.0)


async def test_nats_connection_that_is_cut_comes_back_by_itself(
    start_server: Callable[..., Awaitable[Any]], eventually: Eventually
) -> None:
    server = await start_server()
    inner = await NatsConnection.open(ConnectOptions(server.url))
    other = await NatsConnection.open(ConnectOptions(server.url))
    transport = FaultyTransport(inner, Faults([parse("disconnect@0", 0.0)]))
    heard: list[bytes] = []
    await other.subscribe("a", lambda message: heard.append(message.data))
    await transport.subscribe("b", lambda message: heard.append(message.data))
    await other.flush()
    await transport.publish("a", b"into the void")
    await eventually(lambda: inner.statistics().reconnects == 1)
    await transport.publish("a", b"out")
    await transport.flush()
    await other.publish("b", b"in")
    await eventually(lambda: heard[-2:] == [b"out", b"in"])
    assert inner.statistics().rebuilds == 0
    assert transport.injected == {"disconnect": 1}
    await transport.close()
    inner.cut()  # of what is closed nothing is left to cut
    await other.close()

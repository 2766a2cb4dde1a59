"""Asking agents: by class or by name, one or all of a name, and what is sent for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgpack
import numpy as np
import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents.app import App
from aikoryu.bus import client
from aikoryu.bus.columns import Column, pack_array, pack_strings, unpack
from aikoryu.bus.errors import BadMessage, BusError
from aikoryu.bus.frames import By, Reply, Request, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import Settings, WorkerSettings

from .conftest import turns, until


class Ask(ai.Message):
    text: str


class Said(ai.Message):
    by: str
    text: str


class Echo(ai.Agent):
    def __init__(self, name: str = "") -> None:
        self.name = name

    @ai.handler(deadline_s=2.0, priority="interactive", idempotent=True)
    async def say(self, message: Ask) -> Said:
        if message.text == self.name:
            raise ai.Declined("not_me", "ask another")
        return Said(self.name, message.text)

    @ai.handler
    async def plain(self, message: Ask) -> Said:
        return Said(self.name, message.text)

    @ai.handler
    async def lies(self) -> Said:
        return {"by": 1}  # type: ignore[return-value]

    @ai.handler
    async def in_turn(self) -> str:
        for _ in range(50 * int(self.name[1:])):
            await asyncio.sleep(0)
        return self.name

    @ai.handler
    async def waits(self) -> None:
        await asyncio.Event().wait()


class Spy:
    """What is asked of agents on the bus, frame by frame."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.subjects: list[str] = []

    async def watch(self, memory: MemoryBus) -> None:
        def on_message(message: Any) -> None:
            self.subjects.append(message.subject.removeprefix("aikoryu.v1.default."))
            self.requests.append(decode_request(message.data))

        await memory.connect().subscribe("aikoryu.v1.default.agent.>", on_message)

    @property
    def last(self) -> Request:
        return self.requests[-1]


@pytest.fixture
async def bus(memory: MemoryBus) -> AsyncIterator[ai.Bus]:
    """Three processes have the agent; asked by the first."""
    async with AsyncExitStack() as stack:
        buses = []
        for name in ("p1", "p2", "p3"):
            app = App.in_memory(memory, settings=Settings(worker=WorkerSettings(name=name)))
            app.add(Echo(name), "echo")
            buses.append(await stack.enter_async_context(app))
        yield buses[0]


@pytest.fixture
async def spy(memory: MemoryBus, bus: ai.Bus) -> Spy:
    made = Spy()
    await made.watch(memory)
    return made


def echo(bus: ai.Bus) -> ai.agents.Peer:
    return bus.agents.get("echo", Echo)


# --- one reply -------------------------------------------------------------------------------------------------------


async def test_processes_take_turns(bus: ai.Bus) -> None:
    said = [(await echo(bus).say(Ask(str(number)))).by for number in range(6)]
    assert sorted(said) == ["p1", "p1", "p2", "p2", "p3", "p3"]


async def test_known_class_answers_with_its_types_and_an_unknown_one_with_records(bus: ai.Bus) -> None:
    assert isinstance(await echo(bus).say(Ask("x")), Said)
    found = await bus.agents.get("echo").say(Ask("x"))
    assert (found.text, found["text"], type(found).__name__) == ("x", "x", "Record")
    assert (await bus.agents.get("echo")["say"]({"text": "x"})).text == "x"


async def test_calls_of_one_tick_share_a_frame(bus: ai.Bus, spy: Spy) -> None:
    said = await asyncio.gather(*(echo(bus).say(Ask(str(number))) for number in range(5)))
    assert [each.text for each in said] == list("01234")
    (request,) = spy.requests
    assert request.n == 5
    assert list(request.cols) == ["message"]
    assert msgpack.unpackb(unpack(request.cols["message"], 5)[4]) == {"text": "4"}


async def test_handlers_declaration_is_sent_unless_the_caller_says_otherwise(bus: ai.Bus, spy: Spy) -> None:
    await echo(bus).say(Ask("x"))
    assert (spy.last.ttl_ms, spy.last.prio) == (2000, 1)
    await echo(bus).say(Ask("x"), timeout_s=1.0, priority="background")
    assert (spy.last.ttl_ms, spy.last.prio) == (1000, -1)
    await bus.agents.get("echo").say(Ask("x"))
    assert (spy.last.ttl_ms, spy.last.prio) == (30000, 0)
    with pytest.raises(ValueError, match="interactive"):
        await echo(bus).say(Ask("x"), priority="urgent")  # type: ignore[arg-type]


async def test_idempotent_call_outlives_its_process(memory: MemoryBus) -> None:
    asking, serving = App.in_memory(memory), App.in_memory(memory)
    serving.add(Echo("s"), "echo")
    async with asking as bus:
        connection = memory.connect()
        lost = await connection.subscribe("aikoryu.v1.default.agent.echo.*", lambda message: None, queue="agent.echo")
        once, twice = (asyncio.ensure_future(ask(Ask("x"))) for ask in (echo(bus).plain, echo(bus).say))
        await turns()
        await lost.unsubscribe()
        async with serving:
            assert (await twice).by == "s"
        once.cancel()


async def test_reply_that_is_not_what_was_declared_is_told(bus: ai.Bus) -> None:
    with pytest.raises(BadMessage, match=r"at `\$\.by`"):
        await echo(bus).lies()


async def test_unknown_handler_of_a_known_class_is_not_asked_for(bus: ai.Bus) -> None:
    with pytest.raises(AttributeError, match="it has in_turn, lies, plain, say, waits"):
        _ = echo(bus).nothing
    assert not hasattr(bus.agents.get("echo"), "_private")


async def test_names_are_checked(bus: ai.Bus) -> None:
    for wrong in ("a.b", "", "a b", "a*"):
        with pytest.raises(ValueError, match="agent"):
            bus.agents.get(wrong)
    with pytest.raises(ValueError, match="has no name"):
        bus.agents.get(Ask)


# --- all of a name ---------------------------------------------------------------------------------------------------


async def test_all_answer_with_their_reply_or_their_error(bus: ai.Bus, spy: Spy) -> None:
    said = await echo(bus).say.all(Ask("p2"), most=3)
    assert {name: each for name, each in said.items() if name != "p2"} == {
        "p1": Said("p1", "p2"),
        "p3": Said("p3", "p2"),
    }
    assert (said["p2"].code, str(said["p2"])) == ("not_me", "ask another")
    assert spy.subjects == ["agent.echo.all.say"]


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"reply": pack_strings([msgpack.packb({"by": 1})])}, "bad_message"),
        ({"reply": pack_array(np.zeros(1))}, "bad_column"),
        ({"reply": Column("bin", memoryview(b""), o=memoryview(b"abc"))}, "bad_column"),
        ({"other": pack_strings([b""])}, "bad_column"),
    ],
)
async def test_answer_that_is_none_is_told_and_spoils_no_other(
    memory: MemoryBus, bus: ai.Bus, columns: dict[str, Column], code: str
) -> None:
    stranger = memory.connect()

    def on_message(message: Any) -> None:
        request = decode_request(message.data)
        reply = Reply(id=request.id, at=[(0, 1)], cols=columns, by=By("stranger", 1, 0, 0), last=True)
        stranger.send(message.reply, encode(reply))

    for subject in ("echo.all.say", "strange.say"):
        await stranger.subscribe(f"aikoryu.v1.default.agent.{subject}", on_message)
    said = await echo(bus).say.all(Ask("x"), most=4)
    assert said.pop("stranger").code == code
    assert [said[name] for name in sorted(said)] == [Said(name, "x") for name in ("p1", "p2", "p3")]
    with pytest.raises(BusError) as caught:
        await bus.agents.get("strange", Echo).say(Ask("x"))
    assert caught.value.code == code


async def test_process_that_is_busy_has_no_other_asked_again(memory: MemoryBus) -> None:
    async with AsyncExitStack() as stack:
        asked = []
        for name, concurrency in (("p1", 1), ("p2", 8)):
            app = App.in_memory(memory, settings=Settings(worker=WorkerSettings(name=name)))
            app.add(Echo(name), "echo", concurrency=concurrency, mailbox=0)
            asked.append(await stack.enter_async_context(app))
        spy = Spy()
        await spy.watch(memory)
        stack.callback(asyncio.create_task(echo(asked[0]).waits.all(timeout_s=60.0)).cancel)
        await turns()
        said = await echo(asked[0]).say.all(Ask("x"), most=2)
        assert sorted((getattr(each, "code", each) for each in said.values()), key=str) == [Said("p2", "x"), "busy"]
        await turns()
        assert spy.subjects == ["agent.echo.all.waits", "agent.echo.all.say"]


async def test_all_returns_what_came_in_time(bus: ai.Bus) -> None:
    assert await echo(bus).waits.all(timeout_s=0.01) == {}
    assert len(await echo(bus).say.all(Ask("x"), timeout_s=0.05)) == 3
    assert len(await echo(bus).say.all(Ask("x"), most=1)) == 1


async def test_first_answer_is_nobodys_last(bus: ai.Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PARTS_S", 0.0)  # that a client waits for more after the last part of an answer
    assert set(await echo(bus).in_turn.all(most=3)) == {"p1", "p2", "p3"}


async def test_all_skips_a_reply_that_cannot_be_read(bus: ai.Bus, memory: MemoryBus) -> None:
    stranger = memory.connect()
    await stranger.subscribe(
        "aikoryu.v1.default.agent.echo.all.say", lambda message: stranger.send(message.reply, b"no reply")
    )
    with capture_logs() as logs:
        said = await echo(bus).say.all(Ask("x"), timeout_s=0.05)
    assert set(said) == {"p1", "p2", "p3"}
    assert [(line["event"], line["count"]) for line in logs] == [("answer of a process not read", 1)]


async def test_all_of_none_is_told(bus: ai.Bus) -> None:
    with pytest.raises(ai.NoWorker):
        await bus.agents.get("nobody").say.all(Ask("x"))


async def test_all_that_is_cancelled_is_withdrawn(bus: ai.Bus, memory: MemoryBus) -> None:
    cancels: list[Any] = []
    await memory.connect().subscribe("aikoryu.v1.default.ctl", cancels.append)
    asking = asyncio.ensure_future(echo(bus).waits.all(timeout_s=30))
    await turns()
    asking.cancel()
    await until(lambda: cancels)
    assert asking.cancelled()


async def test_all_fails_with_its_connection(bus: ai.Bus) -> None:
    asking = asyncio.ensure_future(echo(bus).waits.all(timeout_s=30))
    await turns()
    await bus.client.close()
    with pytest.raises(BusError, match="closed"):
        await asking

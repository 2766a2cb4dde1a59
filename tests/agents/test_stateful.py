"""Agents with state: what they declare, what is kept, and what their callers are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import aikoryu as ai
from aikoryu.agents.memory_states import MemoryStates
from aikoryu.agents.stateful import Stateful
from aikoryu.bus.columns import pack_strings
from aikoryu.bus.errors import BadColumn, BadParameter, Busy
from aikoryu.bus.frames import By, Reply, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import partition

from .conftest import until
from .keyed import Count, Counter


class Account(ai.Message):
    entries: list[int] = msgspec.field(default_factory=list)
    owner: str = ""


class Bank(ai.Stateful[Account]):
    gate: asyncio.Event
    began: list[str]

    @ai.handler
    async def put(self, amount: int) -> int:
        self.state.entries.append(amount)
        if amount < 0:
            raise ai.Declined("overdrawn", "put more in before you take it out")
        return sum(self.state.entries)

    @ai.handler
    async def slowly(self, amount: int) -> str:
        self.began.append(self.key)
        await self.gate.wait()
        self.state = Account([*self.state.entries, amount])
        return self.key

    @ai.handler
    async def give_in(self) -> None:
        self.began.append(self.key)
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(0)

    @ai.handler
    async def spoil(self) -> None:
        self.state = {"entries": "none"}  # type: ignore[assignment]

    @ai.handler
    async def twice(self, amount: int, call: ai.Call) -> int:
        result: int = await call.bus.agents.get("bank", Bank, key=self.key).put(amount)
        return result

    @ai.handler
    async def move(self, to: str, call: ai.Call) -> int:
        amount = self.state.entries.pop()
        result: int = await call.agent("bank", Bank, key=to).put(amount)
        return result


class Busier(ai.Stateful[int]):
    tries = 0

    @ai.handler
    async def add(self) -> int:
        type(self).tries += 1
        self.state += 1
        if self.tries < 3:
            raise Busy("not yet", 0.001)
        return self.state


@pytest.fixture
async def bus(memory: MemoryBus) -> AsyncIterator[ai.Bus]:
    Bank.gate, Bank.began = asyncio.Event(), []
    app = ai.App.in_memory(memory)
    app.add(Bank, "bank")
    app.add(Counter, "counter")
    app.agent("busier")(Busier)
    async with app as bus:
        yield bus


def bank(bus: ai.Bus, key: str) -> Any:
    return bus.agents.get("bank", Bank, key=key)


async def test_each_key_has_a_state_of_its_own(bus: ai.Bus) -> None:
    assert await bank(bus, "a").put(1) == 1
    assert await bank(bus, "a").put(2) == 3
    assert await bank(bus, "ä b.c>").put(5) == 5
    assert await bus.agents.get("bank", key="a").put(1) == 4


async def test_states_outlive_the_process(memory: MemoryBus) -> None:
    for total in (1, 2, 3):
        app = ai.App.in_memory(memory)
        app.agent("counter")(Counter)
        async with app as bus:
            assert await bus.agents.get(Counter, key="a").add(1) == total


async def test_what_a_handler_has_done_before_it_raised_is_not_kept(bus: ai.Bus) -> None:
    await bank(bus, "a").put(1)
    with pytest.raises(ai.Declined) as caught:
        await bank(bus, "a").put(-5)
    assert caught.value.code == "overdrawn"
    assert await bank(bus, "a").put(1) == 2


async def test_what_could_not_be_read_again_is_not_written(bus: ai.Bus) -> None:
    await bank(bus, "a").put(1)
    with pytest.raises(ai.BusError) as caught:
        await bank(bus, "a").spoil()
    assert caught.value.code == "bad_message"
    assert await bank(bus, "a").put(1) == 2


async def test_calls_of_a_key_run_one_at_a_time_those_of_others_meanwhile(bus: ai.Bus) -> None:
    calls = [asyncio.ensure_future(bank(bus, key).slowly(1)) for key in ("a", "a", "b")]
    await until(lambda: len(Bank.began) == 2)
    assert sorted(Bank.began) == ["a", "b"]
    Bank.gate.set()
    assert await asyncio.gather(*calls) == ["a", "a", "b"]
    assert await bank(bus, "a").put(0) == 2


async def test_a_caller_that_withdraws_while_the_handler_runs_changes_nothing(bus: ai.Bus) -> None:
    call = asyncio.ensure_future(bank(bus, "a").slowly(7))
    await until(lambda: Bank.began)
    call.cancel()
    assert await bank(bus, "a").put(1) == 1


async def test_a_handler_that_cancels_itself_has_failed_and_runs_once(bus: ai.Bus) -> None:
    with pytest.raises(ai.HandlerFailed, match="cancelled itself"):
        await bank(bus, "a").give_in(timeout_s=2.0)
    assert Bank.began == ["a"]


async def test_a_handler_that_waits_for_its_own_key_is_told_so(bus: ai.Bus) -> None:
    with pytest.raises(ai.CallCycle, match=r"bank\.put#a"):
        await bank(bus, "a").twice(1)
    with pytest.raises(ai.BusError, match="pop from empty list"):
        await bank(bus, "a").move("b")
    await bank(bus, "a").put(4)
    assert await bank(bus, "a").move("b") == 4
    assert await bank(bus, "a").put(0) == 0


async def test_busy_handlers_are_asked_again_and_count_once(bus: ai.Bus) -> None:
    Busier.tries = 0
    assert await bus.agents.get(Busier, key="a").add() == 1


async def test_a_key_is_given_where_there_is_state_and_nowhere_else(bus: ai.Bus) -> None:
    class Plain(ai.Agent):
        @ai.handler
        async def ask(self) -> None: ...

    with pytest.raises(ValueError, match="give get"):
        bus.agents.get("bank", Bank)
    with pytest.raises(ValueError, match="leave the key out"):
        bus.agents.get("plain", Plain, key="a")
    for key in ("", "x" * 101, "\ud800"):
        with pytest.raises(BadParameter):
            bank(bus, key)
    with pytest.raises(ai.WrongKind, match="is of a key"):
        await bus.agents.get("bank").put(1)
    with pytest.raises(ai.WrongKind, match="answers once"):
        bank(bus, "a").put.stream(1)
    with pytest.raises(ai.WrongKind, match="one owner"):
        await bank(bus, "a").put.all(1)


async def test_a_field_that_is_added_has_its_default_in_states_that_were_written_before(memory: MemoryBus) -> None:
    class Older(msgspec.Struct):
        entries: list[int] = []

    class OlderBank(ai.Stateful[Older]):
        @ai.handler
        async def put(self, amount: int) -> int:
            self.state.entries.append(amount)
            return len(self.state.entries)

    app = ai.App.in_memory(memory)
    app.add(OlderBank, "bank")
    async with app as bus:
        await bus.agents.get("bank", key="a").put(3)
    app = ai.App.in_memory(memory)
    app.add(Bank, "bank")
    async with app as bus:
        assert await bank(bus, "a").put(4) == 7


async def test_an_answer_without_a_reply_is_told_as_such(memory: MemoryBus, bus: ai.Bus) -> None:
    stranger = memory.connect()

    def on_message(message: Any) -> None:
        request = decode_request(message.data)
        other = {"other": pack_strings(["1"])}
        reply = Reply(id=request.id, at=[(0, 1)], cols=other, by=By("stranger", 1, 0, 0), last=True)
        stranger.send(message.reply, encode(reply))

    await stranger.subscribe("aikoryu.v1.default.agent.strange.put.*", on_message)
    with pytest.raises(BadColumn, match="no column 'reply'"):
        await bus.agents.get("strange", Bank, key="a").put(1)


async def test_json_text_is_answered_in_kind(bus: ai.Bus) -> None:
    await bank(bus, "a").put(1)

    name = f"agent.bank.put.{partition('a', 64)}"
    assert (await bus.call(name, {"message": "2", "key": "a"}))["reply"] == "3"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"key": "x" * 101}, "the key has 101 characters"),
        ({"key": ""}, "the key has 0 characters"),
        ({"key": b"a"}, "column 'key' is bin: make it utf8"),
        ({"key": "a", "call": "1"}, "column 'call' is utf8: make it bin"),
    ],
)
async def test_a_key_or_a_number_that_is_none_is_refused_before_anything_runs(
    bus: ai.Bus, wrong: dict[str, Any], says: str
) -> None:
    await bank(bus, "a").put(1)
    with pytest.raises(BadColumn, match=says):
        await bus.call(f"agent.bank.put.{partition('a', 64)}", {"message": "2", **wrong})
    assert await bank(bus, "a").put(0) == 1


def test_what_an_agent_with_state_may_not_be_is_said_where_it_is_declared() -> None:
    class NoDefault(ai.Message):
        total: int

    with pytest.raises(TypeError, match="give each field a default"):

        class One(ai.Stateful[NoDefault]):
            pass

    class Streams(Stateful[Count]):
        @ai.handler
        async def ask(self) -> AsyncIterator[int]:
            yield 1

    class Hears(Stateful[Count]):
        @ai.on("news")
        async def hear(self, news: str) -> None: ...

    class OfAll(Stateful[Count]):
        @ai.handler
        async def all(self) -> None: ...

    app = ai.App.in_memory()
    for cls, says in ((Streams, "answer once"), (Hears, "answer once"), (OfAll, "no handler 'all'")):
        with pytest.raises(TypeError, match=says):
            app.add(cls, "one")
    with pytest.raises(TypeError, match="add the class"):
        app.add(Counter(), "one")


async def test_a_memory_bus_keeps_states_apart_from_others() -> None:
    one, two = MemoryBus(), MemoryBus()
    assert MemoryStates.of(one) is MemoryStates.of(one)
    assert MemoryStates.of(one) is not MemoryStates.of(two)

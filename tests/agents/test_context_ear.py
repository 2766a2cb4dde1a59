"""Agents and their own contexts: `call.context`, and methods that hear when it has moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents import context_ear
from aikoryu.agents.agent import kind_of
from aikoryu.agents.app import App
from aikoryu.bus.memory import MemoryBus

from .conftest import turns, until
from .fake_context import FakeGraph, FakeOwner


class Member(ai.Agent):
    """Keeps what it hears of its context; waits while it is told to."""

    context = "team"

    def __init__(self) -> None:
        self.heard: list[ai.ContextChange] = []
        self.began = 0
        self.go = asyncio.Event()
        self.go.set()

    @ai.handler
    async def say(self, vector: list[float], call: ai.Call) -> int:
        return (await call.context.put(vector)).epoch

    @ai.handler
    async def follow(self, other: str, call: ai.Call) -> list[float]:
        await call.context.follow(other, 3.0)
        return [round(float(number), 3) for number in (await call.context.get()).vector]

    @ai.handler
    async def unfollow(self, other: str, call: ai.Call) -> list[float]:
        await call.context.unfollow(other)
        return [round(float(number), 3) for number in (await call.context.get()).vector]

    @ai.handler
    async def find(self, query: list[float], call: ai.Call) -> list[str]:
        return [each.agent for each in await call.context.route(query, what="own")]

    @ai.on_context(threshold=0.5)
    async def moved(self, change: ai.ContextChange, call: ai.Call) -> None:
        self.began += 1
        await self.go.wait()
        assert call.context.agent == "ada"
        if change.vector[0] < 0:
            raise asyncio.CancelledError if change.vector[1] else ValueError("a negative context")
        self.heard.append(change)


class Count(ai.Message):
    number: int = 0


class Tally(ai.Stateful[Count]):
    @ai.handler
    async def where(self, _: None, call: ai.Call) -> list[str]:
        return [call.context.graph.name, call.context.agent]


class Listener(ai.Agent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    @ai.on("news")
    async def news(self, _: str, call: ai.Call) -> None:
        self.heard += [call.context.graph.name, call.context.agent]


@pytest.fixture
async def owner(memory: MemoryBus) -> FakeOwner:
    made = FakeOwner(memory.connect(), {"team": FakeGraph(2, 0.3, 1e-3)})
    await made.start()
    return made


@pytest.fixture
def ada() -> Member:
    return Member()


@pytest.fixture
async def bus(memory: MemoryBus, owner: FakeOwner, ada: Member) -> AsyncIterator[ai.Bus]:
    app = App.in_memory(memory)
    app.add(ada, "ada")
    app.add(Tally, "tally")
    async with app as bus:
        yield bus


async def test_handler_has_its_agents_own_context(bus: ai.Bus) -> None:
    ada, team = bus.agents.get("ada"), bus.context("team")
    assert await ada.say([0.0, 1.0]) == 1
    await team.put("bo", [1, 0])
    assert await ada.follow("bo") == [0.636, 0.364]
    assert (await team.links("ada")).heard == [("bo", 3.0)]
    assert await ada.unfollow("bo") == [0.0, 1.0]
    assert await ada.find([1.0, 0.0]) == ["bo", "ada"]


async def test_agent_with_state_has_a_context_for_each_key(bus: ai.Bus) -> None:
    assert await bus.agents.get("tally", key="soup").where() == ["agents", "tally.soup"]


async def test_handler_of_a_topic_has_it_too(memory: MemoryBus) -> None:
    app, listener = App.in_memory(memory), Listener()
    app.add(listener, "listener")
    async with app as bus:
        bus.agents.publish("news", "x")
        await until(lambda: listener.heard)
    assert listener.heard == ["agents", "listener"]


async def test_tool_has_it_too(memory: MemoryBus) -> None:
    app = App.in_memory(memory)

    @app.tool
    async def where(call: ai.Call) -> str:
        return f"{call.context.graph.name} {call.context.agent}"

    async with app as bus:
        assert await bus.agents.get("where").call() == "agents where"


async def test_method_hears_of_each_move(bus: ai.Bus, ada: Member) -> None:
    team = bus.context("team")
    await team.put("ada", [1, 0])
    await until(lambda: ada.heard)
    await team.put("ada", [1.25, 0])
    await team.put("ada", [2, 0])
    await until(lambda: len(ada.heard) == 2)
    assert [change.vector[0] for change in ada.heard] == [1, 2]


async def test_moves_while_the_method_runs_are_told_as_one(bus: ai.Bus, ada: Member) -> None:
    team = bus.context("team")
    ada.go.clear()
    for number in (1, 2, 3, 4):
        await team.put("ada", [number, 0])
        await until(lambda: ada.began == 1)
    ada.go.set()
    await until(lambda: len(ada.heard) == 2)
    assert [change.vector[0] for change in ada.heard] == [1, 4]


async def test_error_of_the_owner_is_followed_by_another_look_from_there(
    bus: ai.Bus, owner: FakeOwner, ada: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_ear, "LATEST_S", 0.001)
    put = await bus.context("team").put("ada", [1, 0])
    await until(lambda: ada.heard and owner.waiting)
    owner.fail(owner.waiting[0], ai.OperationFailed("a defect"))
    await until(lambda: owner.waiting)
    assert owner.waiting[0].cursor == put.epoch
    assert len(ada.heard) == 1


@pytest.mark.parametrize("way", [0, 1], ids=["raises", "cancels itself"])
async def test_method_that_fails_hears_the_next(bus: ai.Bus, ada: Member, way: int) -> None:
    team = bus.context("team")
    with capture_logs() as logs:
        await team.put("ada", [-1, way])
        await until(lambda: ada.began == 1)
        await team.put("ada", [1, 0])
        await until(lambda: ada.heard)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["handler of a context failed"]


async def test_graph_and_worker_that_are_not_there_yet_are_waited_for(
    memory: MemoryBus, ada: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_ear, "LATEST_S", 0.001)
    app = App.in_memory(memory)
    app.add(ada, "ada")
    with capture_logs() as logs:
        async with app as bus:
            await turns()
            await FakeOwner(memory.connect(), {}).start()
            await turns()
            await bus.context("team").put("ada", [1, 0])
            await until(lambda: ada.heard)
    told = [entry["count"] for entry in logs if entry["event"] == "context not heard"]
    assert told == [1, 2, 4, 8, 16, 32, 64, 128, 256][: len(told)]


async def test_stop_lets_the_method_end_and_watches_no_more(memory: MemoryBus, owner: FakeOwner, ada: Member) -> None:
    app = App.in_memory(memory)
    app.add(ada, "ada")
    bus = await app.__aenter__()
    ada.go.clear()
    await bus.context("team").put("ada", [1, 0])
    await until(lambda: ada.began)
    stopping = asyncio.create_task(app.__aexit__())
    await turns()
    assert not stopping.done()
    ada.go.set()
    await stopping
    assert np.asarray([change.vector[0] for change in ada.heard]).tolist() == [1]
    assert not owner.waiting


async def test_stop_that_takes_too_long_cancels_the_method(memory: MemoryBus, owner: FakeOwner, ada: Member) -> None:
    app = App.in_memory(memory)
    app.add(ada, "ada")
    async with app as bus:
        ada.go.clear()
        await bus.context("team").put("ada", [1, 0])
        await until(lambda: ada.began)
        assert app._process is not None
        assert not await app._process.stop(0.01)
    assert ada.heard == []


def make(**body: Any) -> type[ai.Agent]:
    return type("Made", (ai.Agent,), body)


def hearing(**given: float) -> Any:
    @ai.on_context(**given)
    async def hear(self: Any, change: ai.ContextChange) -> None: ...

    return hear


def test_graph_of_a_class_is_a_name() -> None:
    assert kind_of(make(hear=hearing())).context == "agents"
    assert kind_of(make(hear=hearing(), context="team")).context == "team"
    with pytest.raises(ValueError, match="use 1 to 64 letters"):
        kind_of(make(hear=hearing(), context="a team"))
    with pytest.raises(TypeError, match="call this otherwise"):
        kind_of(make(context=hearing()))


def test_method_that_hears_is_declared_as_others_are() -> None:
    (handler,) = kind_of(make(hear=hearing(threshold=0.2, min_interval_s=1))).contexts
    assert (handler.takes, handler.threshold, handler.min_interval_s) == (("message",), 0.2, 1)
    with pytest.raises(ValueError, match="at least 0"):
        ai.on_context(threshold=-1)
    with pytest.raises(TypeError, match="async def"):
        kind_of(make(hear=ai.on_context()(lambda self, change: None)))

    class Keyed(ai.Stateful[Count]):
        @ai.on_context()
        async def hear(self, change: ai.ContextChange) -> None: ...

    with pytest.raises(TypeError, match="no topics nor contexts"):
        kind_of(Keyed)

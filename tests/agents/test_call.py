"""What handlers ask in their turn: with the deadline, the chain and the fate of their own call."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import pytest

import aikoryu as ai
from aikoryu.agents.app import App
from aikoryu.bus.errors import BusError
from aikoryu.bus.frames import Request, decode_request
from aikoryu.bus.memory import MemoryBus

from .conftest import turns, until

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Ask(ai.Message):
    path: list[str]
    """Agents to go through, one after the other."""


class Hop(ai.Agent):
    """Asks the next of a path, then waits or answers.

    Attributes:
        ended: names of those whose handler ended, with what ended it.
    """

    ended: list[tuple[str, str]] = []  # noqa: RUF012 - shared by the agents of a test, and emptied by each

    def __init__(self, name: str) -> None:
        self.name = name

    @ai.handler
    async def go(self, message: Ask, call: ai.Call) -> list[str]:
        return await self._go(message, call)

    @ai.handler
    async def also(self, message: Ask, call: ai.Call) -> list[str]:
        return await self._go(message, call)

    @ai.handler(deadline_s=0.05)
    async def briefly(self, message: Ask, call: ai.Call) -> list[str]:
        return await self._go(message, call)

    @ai.handler
    async def left(self, call: ai.Call) -> float:
        return call.deadline_s

    @ai.handler
    async def stream(self, message: Ask, call: ai.Call) -> AsyncIterator[list[str]]:
        yield [self.name]
        yield await self._go(message, call)

    async def _go(self, message: Ask, call: ai.Call) -> list[str]:
        try:
            if not message.path:
                return [self.name]
            if message.path[0] == "wait":
                await asyncio.Event().wait()
            agent, _, handler = message.path[0].partition(".")
            return [self.name, *await call.agent(agent)[handler or "go"](Ask(message.path[1:]))]
        except BaseException as error:
            self.ended.append((self.name, type(error).__name__))
            raise


class Gatherer(ai.Agent):
    @ai.handler
    async def quorum(self, call: ai.Call) -> list[list[str]]:
        peers = [call.agent("a", Hop), call.agent("b", Hop), call.agent("c", Hop)]
        paths = [Ask([]), Ask(["wait"]), Ask([])]
        return await call.gather([peer.go(path) for peer, path in zip(peers, paths, strict=True)], quorum=2)

    @ai.handler
    async def able(self, call: ai.Call) -> list[str]:
        return sorted(repr(peer) for peer in await call.agents(capabilities={"hop"}, k=9))

    @ai.handler
    async def colour(self) -> str:
        seen = COLOUR.get()
        COLOUR.set("the handler's")
        return seen

    @ai.handler
    async def outlives(self, call: ai.Call) -> None:
        async def later() -> list[str]:
            return list(await call.agent("a").go(Ask([])))

        self.task = asyncio.get_running_loop().create_task(later(), context=contextvars.Context())


@pytest.fixture
def requests() -> list[Request]:
    return []


@pytest.fixture
async def bus(memory: MemoryBus, requests: list[Request]) -> AsyncIterator[ai.Bus]:
    Hop.ended.clear()
    await memory.connect().subscribe(
        "aikoryu.v1.default.agent.>", lambda message: requests.append(decode_request(message.data))
    )
    first, second = App.in_memory(memory), App.in_memory(memory)
    for name, app in (("a", first), ("b", second), ("c", first)):
        app.add(Hop(name), name, capabilities={"hop"})
    first.add(Gatherer, "gatherer")
    async with first as bus, second:
        yield bus


def go(bus: ai.Bus, *path: str, handler: str = "go", **options: Any) -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(bus.agents.get("a", Hop)[handler](Ask(list(path)), **options))


async def test_handlers_ask_handlers(bus: ai.Bus) -> None:
    assert await go(bus, "b", "c") == ["a", "b", "c"]


async def test_nested_calls_wait_no_longer_than_the_first(bus: ai.Bus, requests: list[Request]) -> None:
    await go(bus, "b", "c", timeout_s=2.0)
    first, second, third = (request.ttl_ms for request in requests)
    assert first == 2000
    assert 1500 <= third <= second < 2000


async def test_deadline_of_a_handler_binds_what_it_asks(bus: ai.Bus, requests: list[Request]) -> None:
    with pytest.raises(ai.Expired):
        await go(bus, "b", "wait", handler="briefly", timeout_s=30)
    assert requests[1].ttl_ms <= 50
    await until(lambda: len(Hop.ended) == 2)
    assert sorted(name for name, _ in Hop.ended) == ["a", "b"]


async def test_call_tells_what_is_left(bus: ai.Bus) -> None:
    assert 1.9 < await bus.agents.get("a").left(timeout_s=2.0) <= 2.0


async def test_cancelling_ends_handlers_two_levels_down(bus: ai.Bus) -> None:
    asking = go(bus, "b", "c", "wait")
    await turns(200)
    assert Hop.ended == []
    asking.cancel()
    await until(lambda: len(Hop.ended) == 3)
    assert sorted(Hop.ended) == [(name, "CancelledError") for name in "abc"]


async def test_leaving_a_stream_ends_what_it_asked(bus: ai.Bus) -> None:
    stream = bus.agents.get("a", Hop).stream.stream(Ask(["b", "wait"]))
    assert await anext(stream) == ["a"]
    await turns()
    await stream.aclose()
    await until(lambda: len(Hop.ended) == 2)
    assert sorted(Hop.ended) == [("a", "CancelledError"), ("b", "CancelledError")]


@pytest.mark.parametrize("path", [("b", "a"), ("b", "c", "a"), ("a",)])
async def test_cycle_is_refused_with_its_path(bus: ai.Bus, path: tuple[str, ...]) -> None:
    with pytest.raises(ai.CallCycle, match=" → ".join(f"{name}.go" for name in ("a", *path))) as caught:
        await go(bus, *path)
    assert caught.value.code == "call_cycle"


async def test_cycle_over_a_stream_is_refused_too(bus: ai.Bus) -> None:
    stream = bus.agents.get("a", Hop).stream.stream(Ask(["b", "a.go", "b"]))
    assert await anext(stream) == ["a"]
    with pytest.raises(ai.CallCycle):
        await anext(stream)


async def test_other_handler_of_an_agent_that_waits_may_be_asked(bus: ai.Bus) -> None:
    assert await go(bus, "b", "a.also") == ["a", "b", "a"]


async def test_only_nested_calls_carry_a_chain(bus: ai.Bus, requests: list[Request]) -> None:
    await go(bus, "b", "c")
    assert [list(request.cols) for request in requests] == [["message"], ["message", "chain"], ["message", "chain"]]


async def test_quorum_is_enough_and_the_rest_is_withdrawn(bus: ai.Bus) -> None:
    assert sorted(await bus.agents.get("gatherer").quorum()) == [["a"], ["c"]]
    await until(lambda: Hop.ended == [("b", "CancelledError")])


async def test_agents_are_found_by_what_they_can_do(bus: ai.Bus) -> None:
    assert await bus.agents.get("gatherer").able() == ["<agent a>", "<agent b>", "<agent c>"]


async def test_task_of_its_own_context_outlives_the_call(bus: ai.Bus, requests: list[Request]) -> None:
    await bus.agents.get("gatherer").outlives(timeout_s=0.5)
    await until(lambda: len(requests) == 2)
    assert requests[1].ttl_ms == 30000
    assert "chain" not in requests[1].cols


async def test_handler_sees_nothing_of_its_callers_context_nor_of_another_call(bus: ai.Bus) -> None:
    COLOUR.set("the caller's")
    assert [await bus.agents.get("gatherer").colour() for _ in range(2)] == ["none", "none"]


async def test_error_two_levels_down_arrives_as_it_was(bus: ai.Bus) -> None:
    with pytest.raises(BusError) as caught:
        await go(bus, "b", "c.nothing")
    assert caught.value.code == "no_handler"

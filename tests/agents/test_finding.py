"""Agents of apps that share a bus, found by what they can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aikoryu.agents import Agent, App, Call, handler, session
from aikoryu.agents.bus import Bus
from aikoryu.bus.discovery import AGENTS, discover
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import Settings

from .conftest import turns, until


class Searcher(Agent):
    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    @handler
    async def search(self, message: str) -> str:
        await self.go_on.wait()
        return message.upper()

    @handler
    async def rest(self) -> None:
        """Its load is only that of `search`."""


class Asker(Agent):
    @handler
    async def who(self, message: list[str], call: Call) -> list[str]:
        return [repr(peer) for peer in await call.agents(capabilities=message, k=2)]


def app(memory: MemoryBus, *names: str) -> App:
    made = App.in_memory(memory)
    for name in names:
        made.add(Searcher, name, capabilities={"retrieve", name}, concurrency=2)
    return made


@pytest.fixture
def memory() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def bus(memory: MemoryBus) -> AsyncIterator[Bus]:
    """A caller beside the apps."""
    async with session(memory.connect(), Settings()) as bus:
        yield bus


async def names(bus: Bus, **wanted: object) -> list[str]:
    return sorted(repr(peer) for peer in await bus.agents.find(**wanted))  # type: ignore[arg-type]


async def test_agents_of_other_processes_are_found_and_gone_when_their_app_stops(memory: MemoryBus, bus: Bus) -> None:
    async with app(memory, "web", "papers"):
        async with app(memory, "mail"):
            assert await names(bus) == ["<agent mail>", "<agent papers>", "<agent web>"]
            assert await names(bus, capabilities={"retrieve", "mail"}) == ["<agent mail>"]
            assert await names(bus, capabilities={"retrieve"}, k=2) != []
        assert await names(bus) == ["<agent papers>", "<agent web>"]
    assert await names(bus) == []


async def test_an_agent_in_two_processes_is_found_once_and_has_two_entries(memory: MemoryBus, bus: Bus) -> None:
    async with app(memory, "web"), app(memory, "web"):
        assert await names(bus, k=3) == ["<agent web>"]
        entries = await bus.agents.entries("web")
        assert len({entry.process for entry in entries}) == 2
        assert [(entry.handlers, entry.load) for entry in entries] == [(("rest", "search"), 0.0)] * 2


async def test_a_handler_finds_agents_also_those_of_its_own_process(memory: MemoryBus) -> None:
    made = app(memory, "web", "papers")
    made.add(Asker, "asker")
    async with made as bus:
        found = await bus.agents.get("asker").who(["retrieve"])
        assert sorted(found) == ["<agent papers>", "<agent web>"]


async def test_load_is_told_with_the_next_beat(memory: MemoryBus, bus: Bus) -> None:
    searcher = Searcher()
    made = App.in_memory(memory)
    made.add(searcher, "web", concurrency=2)
    async with made:
        assert [entry.load for entry in await bus.agents.entries()] == [0.0]
        calls = [asyncio.ensure_future(bus.agents.get("web").search("a")) for _ in range(3)]
        assert made._process is not None
        mailbox = made._process.host.residents["web"].mailbox
        await until(lambda: mailbox.load == 1.5)  # two run, one waits
        made._process._presence._beat()
        await turns()
        assert [entry.load for entry in await bus.agents.entries()] == [1.5]
        searcher.go_on.set()
        assert await asyncio.gather(*calls) == ["A", "A", "A"]


async def test_other_clients_see_handlers_and_what_they_take_as_services(memory: MemoryBus) -> None:
    async with app(memory, "web"):
        (process,) = await discover(memory.connect(), 0.02, AGENTS)
    handlers = {endpoint["subject"]: endpoint["metadata"] for endpoint in process["endpoints"]}
    assert sorted(handlers) == ["aikoryu.v1.default.agent.web.rest", "aikoryu.v1.default.agent.web.search"]
    assert handlers["aikoryu.v1.default.agent.web.search"]["request"] == '{"type":"string"}'

"""Watching a context: what is told, and what becomes of it when owners come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic

import numpy as np
import pytest

import aikoryu as ai
from aikoryu.agents import context_graph, context_watch, session
from aikoryu.bus.deadline import until as deadline
from aikoryu.bus.errors import EngineLost, Moved
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.config import Settings

from .conftest import until
from .fake_context import FakeGraph, FakeOwner


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_graph, "LOOK_S", 0.01)
    monkeypatch.setattr(context_graph, "SOONEST_S", 0.001)
    monkeypatch.setattr(context_watch, "AGAIN_S", 0.001)


@pytest.fixture
def connection(memory: MemoryBus) -> MemoryConnection:
    return memory.connect()


@pytest.fixture
async def bus(connection: MemoryConnection) -> AsyncIterator[ai.Bus]:
    async with session(connection, Settings()) as bus:
        yield bus


def cursors(owner: FakeOwner) -> list[int]:
    return [int(columns["cursor"][0]) for name, columns, _ in owner.asked if name == "watch"]


async def test_each_move_beyond_the_threshold_is_told(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    put = await team.put("ada", [1, 0])
    async with aclosing(team.watch("ada", 0.5, min_interval_s=0.25)) as changes:
        change = await anext(changes)
        assert (change.epoch, change.version, change.moved) == (put.epoch, put.version, 1.0)
        np.testing.assert_array_equal(change.vector, [1, 0])
        coming = asyncio.ensure_future(anext(changes))
        await until(lambda: owner.waiting)
        await team.put("ada", [1, 0.25])
        assert not coming.done()
        last = await team.put("ada", [1, 1])
        change = await coming
        assert (change.epoch, change.moved) == (last.epoch, 1.0)
    _, columns, parameters = next(each for each in owner.asked if each[0] == "watch")
    assert (columns["threshold"].dtype.str, columns["min_interval_ms"].dtype.str) == ("<f4", "<u4")
    assert (columns["min_interval_ms"].tolist(), parameters) == ([250], {"wait_ms": 10_000})
    assert cursors(owner) == [0, put.epoch]


async def test_leaving_withdraws_the_row(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team", dimension=2)
    waiting = asyncio.ensure_future(anext(team.watch("ada", 0.5)))
    await until(lambda: owner.waiting)
    waiting.cancel()
    await until(lambda: not owner.waiting)


async def test_silence_is_asked_again_with_the_same_cursor(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_watch, "WAIT_S", 0.01)
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        first = await anext(changes)
        coming = asyncio.ensure_future(anext(changes))
        await until(lambda: len(cursors(owner)) == 4)
        await team.put("ada", [3])
        assert (await coming).moved == 2.0
    assert cursors(owner)[:4] == [0, *[first.epoch] * 3]


async def test_watching_goes_on_where_it_was_left(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        first = await anext(changes)
    await team.put("ada", [3])
    async with aclosing(team.watch("ada", 0.5, cursor=first.epoch)) as changes:
        assert (await anext(changes)).moved == 2.0


async def test_dead_owner_is_followed_and_nothing_is_missed(
    memory: MemoryBus, log: dict[str, FakeGraph], bus: ai.Bus, owner: FakeOwner
) -> None:
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        first = await anext(changes)
        heir = FakeOwner(memory.connect(), log, "heir")
        await heir.start()
        owner.die(memory)
        coming = asyncio.ensure_future(anext(changes))
        # The heir does not know what the dead told, so it tells what there is.
        again = await coming
        assert again.epoch == first.epoch
        coming = asyncio.ensure_future(anext(changes))
        await until(lambda: heir.waiting)
        await team.put("ada", [3])
        assert (await coming).moved == 2.0
    assert cursors(heir) == [first.epoch, first.epoch]


@pytest.mark.parametrize("error", [Moved("on its way"), EngineLost("gone"), ai.Busy("full")], ids=lambda e: e.code)
async def test_owner_that_sends_watchers_away_is_asked_again(bus: ai.Bus, owner: FakeOwner, error: ai.BusError) -> None:
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        await anext(changes)
        coming = asyncio.ensure_future(anext(changes))
        for _ in range(3):
            await until(lambda: owner.waiting)
            owner.fail(owner.waiting[0], error)
        await until(lambda: owner.waiting)
        await team.put("ada", [3])
        assert (await coming).moved == 2.0


async def test_lost_connection_is_outlived(
    memory: MemoryBus, connection: MemoryConnection, bus: ai.Bus, owner: FakeOwner
) -> None:
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        await anext(changes)
        coming = asyncio.ensure_future(anext(changes))
        await until(lambda: owner.waiting)
        memory.drop_connection(connection)
        async with session(memory.connect(), Settings()) as other:
            await other.context("team").put("ada", [3])
        memory.restore(connection)
        assert (await coming).moved == 2.0


async def test_graph_or_worker_that_is_not_there_is_told(bus: ai.Bus, memory: MemoryBus) -> None:
    with pytest.raises(ai.NoWorker, match="start one"):
        await anext(bus.context("team").watch("ada", 0.5))
    await FakeOwner(memory.connect(), {}).start()
    with pytest.raises(ai.BadParameter, match="not there"):
        await anext(bus.context("team").watch("ada", 0.5))


async def test_workers_that_are_all_gone_are_waited_for(
    memory: MemoryBus,
    log: dict[str, FakeGraph],
    bus: ai.Bus,
    owner: FakeOwner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aikoryu.bus.resends.UNSERVED_S", 0.0)
    team = bus.context("team")
    await team.put("ada", [1])
    async with aclosing(team.watch("ada", 0.5)) as changes:
        first = await anext(changes)
        owner.die(memory)
        coming = asyncio.ensure_future(anext(changes))
        with pytest.raises(ai.NoWorker):
            await team.put("ada", [1])
        assert not coming.done()
        await FakeOwner(memory.connect(), log, "heir").start()
        assert (await coming).epoch == first.epoch


async def test_watch_of_a_handler_ends_with_its_deadline(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team", dimension=1)
    deadline.set(monotonic() + 0.05)
    with pytest.raises(ai.Expired):
        await anext(team.watch("ada", 0.5))


@pytest.mark.parametrize(
    ("threshold", "interval_s"),
    [(-1.0, 0.0), (float("nan"), 0.0), (float("inf"), 0.0), (1e39, 0.0), (0.1, -1.0), (0.1, 5e6)],
)
async def test_numbers_are_checked_at_once(bus: ai.Bus, threshold: float, interval_s: float) -> None:
    with pytest.raises(ai.BadParameter, match=r"threshold|min_interval_s"):
        bus.context("team").watch("ada", threshold, min_interval_s=interval_s)

"""Elections on a real server: one leader at a time, and no writes of a leader of the past."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from aikoryu.agents.coordination import Fenced, Leader, LeaseLost
from aikoryu.agents.coordination.election import Election
from aikoryu.bus.partition_log import OwnershipLost, PartitionLog
from aikoryu.bus.subjects import Subjects

RACERS = 50

Join = Callable[..., Awaitable[Any]]
Spawn = Callable[[], Awaitable[Any]]


async def test_of_fifty_racers_one_leads_at_a_time(join: Join) -> None:
    agents = [await join(f"a{number}") for number in range(5)]
    leading: list[int] = []
    terms: list[tuple[float, float]] = []
    numbers: list[int] = []

    async def race(number: int) -> None:
        async with agents[number % 5].elect("office", ttl_s=5, candidate=f"racer{number}") as term:
            began = time.monotonic()
            leading.append(number)
            assert leading == [number]
            await agents[number % 5].shared("state").put("leader", number, token=term.number)
            assert leading == [number]
            leading.clear()
            numbers.append(term.number)
            terms.append((began, time.monotonic()))

    async with asyncio.timeout(30):
        await asyncio.gather(*map(race, range(RACERS)))
    assert len(terms) == RACERS
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(terms))
    assert all(before < after for before, after in itertools.pairwise(numbers))


class Leases:
    """Leases that are given when the test says, and lost when it says."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.free = asyncio.Semaphore(1)
        self.taken = 0

    async def __call__(self) -> Any:
        return self

    async def acquire(self, name: str, *, ttl_s: int) -> Any:
        await self.free.acquire()
        self.taken += 1
        token = self.taken

        async def release() -> None:
            self.released.append(token)

        return SimpleNamespace(token=token, release=release)


async def test_tasks_that_share_an_election_resign_each_its_own_term() -> None:
    leases = Leases()
    election = Election(leases, "office")
    first = await election.__aenter__()
    leases.free.release()  # its term is lost, unnoticed
    other = asyncio.ensure_future(election.__aenter__())
    for _ in range(5):
        await asyncio.sleep(0)
    await election.__aexit__(None, None, None)
    assert leases.released == [first.number]
    second = await other
    assert second.number != first.number
    given_up = asyncio.ensure_future(election.__aenter__())
    await asyncio.sleep(0)
    given_up.cancel()
    await election.__aexit__(None, None, None)
    assert leases.released == [first.number, second.number]
    given_up = asyncio.ensure_future(election.__aenter__())
    for _ in range(5):
        await asyncio.sleep(0)  # until it waits for the office, no more for its turn
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    leases.free.release()
    async with asyncio.timeout(1), election as third:
        assert third.number == 3


async def test_a_leader_that_was_paused_past_its_term_is_refused_when_it_comes_back(join: Join, spawn: Spawn) -> None:
    """The leader is a process that is stopped; of fifty that wait exactly one follows, then the process goes on."""
    member = await spawn()
    says, number = await member.ask("lead", 1)
    assert says == "leads"
    assert await member.ask("put", "first") == ["put"]
    assert await member.ask("append", "first") == ["appended"]
    agents = [await join(f"a{number}") for number in range(5)]
    followed: list[int] = []
    log_owned = asyncio.Event()
    checked = asyncio.Event()

    async def race(racer: int) -> None:
        agent = agents[racer % 5]
        async with agent.elect("office", ttl_s=5, candidate=f"racer{racer}") as term:
            followed.append(term.number)
            await agent.shared("state").put("state", "second", token=term.number)
            log = await PartitionLog.open(await agent._jetstream(), Subjects(), "office")
            await log.claim(term.number)
            log_owned.set()
            await checked.wait()

    os.kill(member.process.pid, signal.SIGSTOP)
    racers = [asyncio.create_task(race(racer)) for racer in range(RACERS)]
    try:
        async with asyncio.timeout(10):
            await log_owned.wait()
    finally:
        os.kill(member.process.pid, signal.SIGCONT)
    # It does not look whether it leads: what it writes to does.
    assert await member.ask("put", "late") == ["fenced"]
    assert await member.ask("append", "late") == ["owner", "lost"]
    assert await member.ask("lost") == ["lost"]
    assert len(followed) == 1
    assert followed[0] > int(number)
    assert (await agents[0].shared("state").get("state")).value == "second"
    for racer in racers:
        racer.cancel()
    await asyncio.gather(*racers, return_exceptions=True)


async def test_a_leader_whose_clock_jumped_knows_it_and_its_writes_are_refused(join: Join) -> None:
    one, two = await join("one"), await join("two")
    store, other = one.shared("state"), two.shared("state")
    term = await one.elect("office", ttl_s=1).campaign()
    log = await PartitionLog.open(await one._jetstream(), Subjects(), "office")
    last = await log.claim(term.number)
    await store.put("a", 1, token=term.number)
    one.clock.shift_s = 3600.0
    assert not term.leading
    with pytest.raises(LeaseLost):
        term.check()
    async with asyncio.timeout(10):
        assert "no renewal" in await term.lost()
        await term.resign()
        async with two.elect("office", ttl_s=1) as after:
            assert after.number > term.number
            after_log = await PartitionLog.open(await two._jetstream(), Subjects(), "office")
            await after_log.claim(after.number)
            await other.put("a", 2, token=after.number)
            with pytest.raises(Fenced):
                await store.put("a", 3, token=term.number)
            with pytest.raises(OwnershipLost):
                await log.append(b"3", last)


async def test_who_watches_hears_who_leads(join: Join) -> None:
    one, two, watcher = await join("one"), await join("two"), await join("three")
    async with asyncio.timeout(10), aclosing(watcher.elect("office").watch()) as leaders:
        assert await anext(leaders) is None
        term = await one.elect("office", ttl_s=5).campaign()
        assert await anext(leaders) == Leader("one", term.number)
        await term.resign()
        await term.resign()
        assert await anext(leaders) is None
        async with two.elect("office", ttl_s=5, candidate="deputy") as after:
            assert await anext(leaders) == Leader("deputy", after.number)
        assert not term.leading
        assert await term.lost() == "its holder released it"


async def test_a_lock_and_an_office_of_one_name_are_two_things(join: Join) -> None:
    one, two = await join("one"), await join("two")
    async with asyncio.timeout(5), one.lock("a"), two.elect("a") as term, two.elect("b") as other:
        assert term.leading
        assert other.leading

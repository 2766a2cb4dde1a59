"""Locks on a real server: one holder at a time, in turn within a process, and what becomes of a holder that ends."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aikoryu.agents.coordination import LeaseLost, Lock
from aikoryu.bus.errors import BadParameter, Closed

Join = Callable[..., Awaitable[Any]]


async def test_one_holds_at_a_time_and_tokens_rise(join: Join) -> None:
    agents = [await join(f"a{number}") for number in range(4)]
    holding, tokens = 0, []

    async def work(agent: Any) -> None:
        nonlocal holding
        for _ in range(5):
            async with agent.lock("report.daily", ttl_s=5) as lock:
                assert holding == 0
                holding += 1
                await agent.connection.flush()
                holding -= 1
                tokens.append(lock.token)

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(agent) for agent in agents))
    assert len(tokens) == 20
    assert all(before < after for before, after in itertools.pairwise(tokens))


async def test_within_a_process_who_came_first_is_first(agent: Any) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with agent.lock("a", ttl_s=5):
            order.append(number)

    async with agent.lock("a", ttl_s=5), asyncio.TaskGroup() as group:
        waiting = [asyncio.create_task(work(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert order == []
        group.create_task(agent.connection.flush())
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


async def test_a_lock_that_is_held_is_not_waited_for_where_that_is_wanted(join: Join) -> None:
    one, two = await join("one"), await join("two")
    async with one.try_lock("a", ttl_s=5) as lock:
        assert isinstance(lock, Lock)
        async with two.try_lock("a", ttl_s=5) as other:
            assert other is None
        async with two.try_lock("b", ttl_s=5) as other:
            assert other is not None
    async with two.try_lock("a", ttl_s=5) as after:
        assert after is not None
        assert after.token > lock.token


async def test_a_block_that_fails_or_is_cancelled_lets_go(join: Join) -> None:
    one, two = await join("one"), await join("two")
    with pytest.raises(ZeroDivisionError):
        async with one.lock("a", ttl_s=60):
            raise ZeroDivisionError
    inside = asyncio.Event()

    async def hold() -> None:
        async with two.lock("a", ttl_s=60):
            inside.set()
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    async with asyncio.timeout(10):
        await inside.wait()
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)
        async with one.lock("a", ttl_s=60):
            pass


async def test_a_waiter_that_gives_up_leaves_its_turn_to_the_next(join: Join) -> None:
    one, two = await join("one"), await join("two")
    async with two.lock("a", ttl_s=60):
        first = asyncio.create_task(enter(one))
        second = asyncio.create_task(enter(one))
        await one.connection.flush()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(10):
        await second
    assert first.cancelled()


async def enter(agent: Any) -> None:
    async with agent.lock("a", ttl_s=1):
        pass


async def test_who_holds_learns_that_the_lock_is_lost(agent: Any) -> None:
    async with agent.lock("a", ttl_s=1) as lock:
        lock.check()
        lost = asyncio.create_task(lock.lost())
        agent.clock.shift_s = 3600.0  # the process was paused
        assert not lock.held
        with pytest.raises(LeaseLost, match=r"lock\.a is lost: no renewal was acknowledged"):
            lock.check()
        async with asyncio.timeout(5):
            assert "no renewal" in await lost


async def test_the_lock_of_a_holder_that_died_goes_to_the_next_in_time(join: Join) -> None:
    one, two = await join("one"), await join("two")
    async with asyncio.timeout(10):
        async with one.lock("a", ttl_s=1):
            await one.connection._client.abandon()
            await one.connection.close()
            began = time.monotonic()
            async with two.lock("a", ttl_s=1):
                waited_s = time.monotonic() - began
    assert waited_s < 1.0 + 1.0  # 0.3 s more than the time to live is aimed at; a test must not depend on the machine


async def test_names_and_times_are_checked(agent: Any) -> None:
    with pytest.raises(BadParameter, match="whole seconds"):
        async with agent.lock("a", ttl_s=0.5):
            pass
    with pytest.raises(ValueError, match="use letters, digits"):
        async with agent.lock("a b"):
            pass


async def test_nothing_begins_after_the_end(join: Join) -> None:
    agent = await join()
    await agent.close()
    with pytest.raises(Closed):
        async with agent.lock("a"):
            pass

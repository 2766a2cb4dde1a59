"""The recipes of docs/coordination.md, run as they stand there."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aikoryu.agents.coordination import Conflict

DOCUMENT = (Path(__file__).parents[3] / "docs" / "coordination.md").read_text("utf-8")

Join = Callable[..., Awaitable[Any]]


def recipe(title: str) -> Any:
    """What the code below a heading defines."""
    section = re.split(rf"^### {title}$", DOCUMENT, flags=re.MULTILINE)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {
        "aclosing": aclosing,
        "asynccontextmanager": asynccontextmanager,
        "Conflict": Conflict,
        "Counter": Counter,
        "random": random,
        "suppress": suppress,
    }
    exec(code[1], names)
    return names[title.lower()]


async def test_nobody_passes_a_barrier_before_all_have_come(join: Join, eventually: Any) -> None:
    barrier = recipe("Barrier")
    agents = [await join(f"a{number}") for number in range(3)]
    passing = [asyncio.create_task(barrier(agent, "b", f"p{n}", 3)) for n, agent in enumerate(agents[:2])]
    store = agents[2].shared("barriers")
    async with asyncio.timeout(10), aclosing(store.watch()) as changes:
        assert {(await anext(changes)).key for _ in range(2)} == {"b.p0", "b.p1"}
        await barrier(agents[0], "b", "p0", 2)  # who comes twice counts once
        assert not any(task.done() for task in passing)
        await asyncio.gather(barrier(agents[2], "b", "p2", 3), *passing)


@pytest.mark.parametrize(("choices", "outcome"), [("aabab", "a"), ("bbb", "b"), ("aabb", None), ("abc", None)], ids=str)
async def test_a_vote_has_one_outcome_for_everybody(join: Join, choices: str, outcome: str | None) -> None:
    vote = recipe("Vote")
    agents = [await join(f"a{number}") for number in range(2)]
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(
            *(vote(agents[n % 2], "v", f"voter{n}", choice, len(choices)) for n, choice in enumerate(choices)),
            *(vote(agents[0], "v", "voter0", choices[0], len(choices)) for _ in range(2)),
        )
    assert set(outcomes) == {outcome}


async def test_a_semaphore_lets_so_many_in_at_a_time(join: Join) -> None:
    semaphore = recipe("Semaphore")
    agents = [await join(f"a{number}") for number in range(3)]
    inside, most, entered = 0, 0, 0

    async def work(agent: Any) -> None:
        nonlocal inside, most, entered
        for _ in range(4):
            async with semaphore(agent, "s", 2, ttl_s=5) as lock:
                inside, entered = inside + 1, entered + 1
                most = max(most, inside)
                lock.check()
                await agent.connection.flush()
                inside -= 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(agent) for agent in agents for _ in range(2)))
    assert (entered, most) == (24, 2)

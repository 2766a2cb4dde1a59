"""An agent's changes of keys, kept with state or in a dict: `python -m benchmarks.ours_state {state,dict} URL`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aikoryu as ai
from benchmarks.contestant import Contestant, Served
from benchmarks.coordination import server
from benchmarks.ours import NAME, connecting
from benchmarks.processes import python

MOST = 1024  # keys in flight
SHAPES = frozenset({"keys1", "keys64", "keys1024"})


class Count(ai.Message):
    """The state of a key."""

    total: int = 0


class Add(ai.Message):
    """What an agent without state is asked."""

    key: str
    n: int


class Keyed(ai.Stateful[Count]):
    """Writes each change before it answers."""

    @ai.handler
    async def add(self, n: int) -> int:
        """Add to the key's total, and give it."""
        self.state.total += n
        return self.state.total


class Unwritten(ai.Agent):
    """Keeps the totals in memory alone."""

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    @ai.handler
    async def add(self, message: Add) -> int:
        """Add to a key's total, and give it."""
        self._totals[message.key] += message.n
        return self._totals[message.key]


class KeyedClient:
    """Changes, as an agent asks another that has state."""

    def __init__(self, bus: ai.Bus) -> None:
        self._agents = bus.agents

    async def call(self, key: str) -> int:
        """Add one to a key."""
        total: int = await self._agents.get("counter", Keyed, key=key).add(1)
        return total


class UnwrittenClient:
    """Changes, as an agent asks another that has none."""

    def __init__(self, bus: ai.Bus) -> None:
        self._add = bus.agents.get("counter", Unwritten).add

    async def call(self, key: str) -> int:
        """Add one to a key."""
        total: int = await self._add(Add(key, 1))
        return total


async def main(kept: str, url: str) -> None:
    """Serve until the end."""
    app = ai.App(settings=ai.load_settings(flags={"nats.url": url, "log.level": "warning"}))
    made: Any = Keyed if kept == "state" else Unwritten()
    app.add(made, "counter", concurrency=MOST, mailbox=MOST)
    async with app:
        print("ready", flush=True)
        await asyncio.Event().wait()


def served(module: str, *arguments: str) -> Any:
    """The `serve` of a service that is `python -m module arguments URL` behind a JetStream server of its own."""

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[Served]:
        async with server() as (url, nats_pid), python(module, *arguments, url) as service:
            yield Served(url, {"nats": nats_pid, "service": service.pid})

    return serve


CONTESTANTS = (
    Contestant(NAME, served("benchmarks.ours_state", "state"), connecting(KeyedClient), SHAPES, needs=("msgspec",)),
    Contestant(
        "dict in memory",
        served("benchmarks.ours_state", "dict"),
        connecting(UnwrittenClient),
        SHAPES,
        needs=("msgspec",),
    ),
)

if __name__ == "__main__":
    from benchmarks import loop

    loop.run(main(*sys.argv[1:]))

"""A process of a test with the agent `counter`; it is killed."""

from __future__ import annotations

import asyncio
import sys

import aikoryu as ai
from aikoryu.agents import state_store
from aikoryu.config import BusSettings, LogSettings, NatsSettings


class Count(ai.Message):
    total: int = 0


class Counter(ai.Stateful[Count]):
    @ai.handler
    async def add(self, n: int) -> int:
        self.state.total += n
        return self.state.total

    @ai.handler
    async def read(self) -> int:
        return self.state.total


async def main(url: str) -> None:
    state_store.TTL_S = 1
    settings = ai.Settings(
        nats=NatsSettings(url=url), bus=BusSettings(partitions=8, presence_ttl_s=0.5), log=LogSettings(level="critical")
    )
    app = ai.App(settings=settings)
    app.add(Counter, "counter")
    async with app as bus:
        await bus.agents.get("counter", Counter, key="first").read()
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))

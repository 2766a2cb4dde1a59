"""Agents with state in processes of their own, as far as the bus can tell, which own what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aikoryu as ai
from aikoryu.agents.agent import Resident, kind_of
from aikoryu.agents.bus import Bus, session
from aikoryu.agents.cells import Cells
from aikoryu.agents.host import Host
from aikoryu.agents.ownership import Ownership, Watch
from aikoryu.agents.roster import Change
from aikoryu.agents.state_store import StateStore
from aikoryu.bus.service import Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Transport
from aikoryu.config import BusSettings, Settings

ONE = Settings(bus=BusSettings(partitions=1, timeout_s=10))


class Count(ai.Message):
    total: int = 0


class Counter(ai.Stateful[Count]):
    @ai.handler
    async def add(self, n: int) -> int:
        self.state.total += n
        await asyncio.sleep(0)
        return self.state.total

    @ai.handler
    async def read(self) -> int:
        return self.state.total


async def nobody() -> AsyncGenerator[Change, None]:
    """Tell of nobody."""
    await asyncio.Event().wait()
    yield  # type: ignore[misc]


@asynccontextmanager
async def process(
    transport: Transport,
    store: StateStore,
    name: str,
    cls: type[ai.Agent] = Counter,
    partitions: int = 1,
    watch: Watch = nobody,
) -> AsyncIterator[Ownership]:
    """A process with the agent `counter`, which owns nothing until it is told to, or hears of others."""
    async with AsyncExitStack() as stack:
        bus: Bus = await stack.enter_async_context(session(transport, ONE))
        service = Service(transport, Subjects(), name, reply_prefixes=("_INBOX",))
        await service.start()
        host = Host(service, name, bus)
        resident = Resident("counter", cls, kind_of(cls), (), 64, 256)
        await store.open()
        stack.push_async_callback(store.close)
        owner = Ownership(resident, service, store, Cells(), watch, name, partitions)
        await host.serve(resident)
        await owner.start()
        yield owner
        await owner.stop(1.0)
        await service.drain(1.0)
        host.stop()

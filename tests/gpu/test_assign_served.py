"""Tasks of several agents over the bus: put, assigned together, put again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.agents import Bus, session
from aikoryu.agents.assignment import Assigned, Assignment, Candidates
from aikoryu.bus.errors import BadColumn, BadValue, NoTensor
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

SETTINGS = Settings(
    models=ModelSettings(embed=()), worker=WorkerSettings(name="w"), residents=ResidentSettings(host_bytes=64 << 20)
)
VECTORS = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)


class Served:
    """A worker, and connections of two agents."""

    def __init__(self, engine: InlineEngine, buses: tuple[Bus, Bus]) -> None:
        self.engine = engine
        self.buses = buses
        self.assignments = [Assignment(bus.client, SETTINGS.bus.partitions) for bus in buses]

    async def candidates(self) -> Candidates:
        matrix = self.buses[0].matrix
        return Candidates(
            await matrix.put(VECTORS, group="team"),
            capacity=await matrix.put(np.array([1, 1, 2], np.uint32), group="team"),
            capabilities=await matrix.put(np.array([1, 3, 1], np.uint64), group="team"),
            load=await matrix.put(np.zeros(3, np.float32), group="team"),
        )


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    memory = MemoryBus()
    engine = InlineEngine(load(catalogue_of(SETTINGS)), slab_bytes=8 << 20)
    worker = Worker(memory.connect("_WORKER"), SETTINGS, [engine])
    await worker.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(worker.stop)
        one, other = [await stack.enter_async_context(session(memory.connect(), SETTINGS)) for _ in range(2)]
        yield Served(engine, (one, other))


async def test_tasks_of_the_same_moment_are_assigned_together(served: Served) -> None:
    candidates = await served.candidates()
    query = np.array([1, 0], np.float32)
    found = await asyncio.gather(*(one.assign(query, candidates) for one in served.assignments for _ in range(2)))
    assert [job.rows for job in served.engine.jobs if job.operation == "agents.assign"] == [4]
    assert sorted(agent for agent, _ in found) == [0, 1, 2, 2]
    assert dict(found) == pytest.approx({0: 1.0, 1: 0.8, 2: 0.0})


async def test_candidates_change_as_a_tensor_is_put_again(served: Served) -> None:
    candidates = await served.candidates()
    one, other = served.assignments
    query = np.array([1, 0], np.float32)
    assert await one.assign(query, candidates, need=1) == Assigned(0, 1.0)
    await served.buses[0].matrix.put(np.array([0.5, 0, 0], np.float32), replace=candidates.load)
    assert (await other.assign(query, candidates, need=1)).agent == 1
    assert (await other.assign(query, candidates, need=1, load_weight=0.2)).agent == 0
    assert (await other.assign(query, candidates, need=4)) == Assigned(-1, -np.inf)


async def test_many_tasks_in_one_call(served: Served) -> None:
    candidates = await served.candidates()
    found = await served.assignments[0].assign_many(np.repeat(VECTORS, 2, axis=0), candidates)
    assert sorted(found.agents.tolist()) == [-1, -1, 0, 1, 2, 2]
    assert np.isfinite(found.scores).sum() == 4


async def test_what_does_not_fit_is_told(served: Served) -> None:
    candidates = await served.candidates()
    (assignment, _), (bus, _) = served.assignments, served.buses
    with pytest.raises(BadColumn, match="'query' has 3 numbers"):
        await assignment.assign([1.0, 0.0, 0.0], candidates)
    with pytest.raises(BadValue, match="not finite"):
        await assignment.assign([np.nan, 0.0], candidates)
    assert await bus.matrix.free(candidates.vectors)
    with pytest.raises(NoTensor):
        await assignment.assign([1.0, 0.0], candidates)

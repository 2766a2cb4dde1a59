"""What tasks for agents look like on the bus."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from aikoryu.agents import Handle, session
from aikoryu.agents.assignment import Assignment, Candidates
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadParameter
from aikoryu.bus.frames import Reply, Request, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import partition
from aikoryu.bus.transport import Message
from aikoryu.config import BusSettings, Settings

CANDIDATES = Candidates(Handle("team.v", "f4", (5, 3)), capacity=Handle("team.c", "u4", (5,)))


class Worker:
    """Gives every task to the agent of its row.

    Attributes:
        asked: operation with partition, and frame.
    """

    def __init__(self, memory: MemoryBus) -> None:
        self.asked: list[tuple[str, Request]] = []
        self._transport = memory.connect()

    async def serve(self) -> None:
        await self._transport.subscribe("aikoryu.v1.default.agents.>", self._on_request, queue="agents")

    def _on_request(self, message: Message) -> None:
        request = decode_request(message.data)
        self.asked.append((message.subject.removeprefix("aikoryu.v1.default."), request))
        columns = {"agent": np.arange(request.n, dtype=np.int32), "score": np.full(request.n, 0.5, np.float32)}
        cols = {name: pack(values) for name, values in columns.items()}
        self._transport.send(message.reply, encode(Reply(id=request.id, at=[(0, request.n)], cols=cols, last=True)))
        self._transport.push()


@pytest.fixture
def memory() -> MemoryBus:
    return MemoryBus(1 << 20)


@pytest.fixture
async def worker(memory: MemoryBus) -> Worker:
    made = Worker(memory)
    await made.serve()
    return made


async def test_one_task(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings(bus=BusSettings(partitions=10))) as bus:
        assignment = Assignment(bus.client, 10)
        assert await assignment.assign([1, 2, 3], CANDIDATES, need=1 << 63, k=4) == (0, 0.5)
    ((operation, request),) = worker.asked
    assert operation == f"agents.assign.{partition('team', 10)}"
    assert msgspec.msgpack.decode(request.p) == {
        "k": 4,
        "load_weight": 1.0,
        "vectors": {"key": "team.v", "t": "f4", "s": [5, 3]},
        "capacity": {"key": "team.c", "t": "u4", "s": [5]},
    }
    query = np.asarray(unpack(request.cols["query"], 1))
    assert (query.tolist(), query.dtype.str) == ([[1, 2, 3]], "<f4")
    need = np.asarray(unpack(request.cols["need"], 1))
    assert (need.tolist(), need.dtype.str) == ([1 << 63], "<u8")


async def test_many_tasks(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings()) as bus:
        assignment = Assignment(bus.client, 64)
        found = await assignment.assign_many(np.ones((4, 3), np.float16), CANDIDATES)
        await assignment.assign_many(np.ones((4, 3), np.float16), CANDIDATES, needs=[1, 2, 3, 4])
    assert (found.agents.tolist(), found.scores.tolist()) == ([0, 1, 2, 3], [0.5] * 4)
    (_, without), (_, request) = worker.asked
    assert list(without.cols) == ["query"]
    assert np.asarray(unpack(request.cols["query"], 4)).dtype.str == "<f2"
    assert np.asarray(unpack(request.cols["need"], 4)).tolist() == [1, 2, 3, 4]


async def test_tensors_of_two_groups_are_refused(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings()) as bus:
        with pytest.raises(BadParameter, match="load lies in group other, vectors in team"):
            await Assignment(bus.client, 64).assign([1, 2, 3], replace(CANDIDATES, load=Handle("other.l", "f4", (5,))))
    assert worker.asked == []

"""Handles, and what put, get and free ask a worker for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aikoryu.agents import Handle, session
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue, EngineLost
from aikoryu.bus.frames import Reply, Request, RowError, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import partition
from aikoryu.bus.transport import Message
from aikoryu.config import BusSettings, Settings

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Worker:
    """Takes whatever is put and answers as it is told.

    Attributes:
        asked: operation with partition, and frame.
        complete: what it says to a put.
        losing: frames to come at which its engine is lost.
        version: of what it says to a get; one more for each frame if `changing`.
    """

    def __init__(self, memory: MemoryBus) -> None:
        self.asked: list[tuple[str, Request]] = []
        self.complete = True
        self.losing = 0
        self.version = 1
        self.changing = False
        self._transport = memory.connect()

    async def serve(self) -> None:
        await self._transport.subscribe("aikoryu.v1.default.matrix.>", self._on_request, queue="matrix")

    def _on_request(self, message: Message) -> None:
        request = decode_request(message.data)
        name = message.subject.removeprefix("aikoryu.v1.default.matrix.")
        self.asked.append((name, request))
        if self.losing:
            self.losing -= 1
            lost = RowError(0, EngineLost.code, "the engine ended", request.n)
            self._transport.send(message.reply, encode(Reply(id=request.id, err=[lost], last=True)))
            return
        columns: dict[str, Any] = {"complete": np.full(request.n, self.complete)}
        if name.startswith("free"):
            columns = {"freed": np.ones(request.n, np.bool_)}
        if name.startswith("get"):
            self.version += self.changing
            columns = {
                "x": np.zeros((request.n, 1 << 16), "f4"),
                "version": np.full(request.n, self.version, np.uint64),
            }
        reply = Reply(id=request.id, at=[(0, request.n)], cols={n: pack(v) for n, v in columns.items()}, last=True)
        self._transport.send(message.reply, encode(reply))
        self._transport.push()


@pytest.fixture
def memory() -> MemoryBus:
    return MemoryBus(64 << 20)


@pytest.fixture
async def worker(memory: MemoryBus) -> Worker:
    made = Worker(memory)
    await made.serve()
    return made


@pytest.mark.parametrize(
    "handle", [Handle("g.x", "f4", (2, 3)), Handle("a-b.c_d", "bf16", ()), Handle("g.x", "u1", (0,))]
)
def test_handle_is_its_text(handle: Handle) -> None:
    assert Handle.parse(str(handle)) == handle
    assert hash(Handle.parse(str(handle))) == hash(handle)


def test_text_of_a_handle_is_short_and_plain() -> None:
    assert str(Handle("g.x", "f4", (2, 3))) == "g.x:f4:2x3"


@pytest.mark.parametrize(
    "text", ["", "g.x", "g.x:f4", "g.x:f5:2", "g.x:utf8:2", "x:f4:2", "g.x:f4:2x", "g.x:f4:-2", "g.x:f4:2\n"]
)
def test_text_that_is_no_handle_is_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="is no handle"):
        Handle.parse(text)


async def test_group_decides_the_partition(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings(bus=BusSettings(partitions=10))) as bus:
        named = [await bus.matrix.put(X, group=f"g{number}") for number in range(5)]
        unnamed = [await bus.matrix.put(X) for _ in range(3)]
    assert [name for name, _ in worker.asked[:5]] == [f"put.{partition(f'g{n}', 10)}" for n in range(5)]
    assert len({name for name, _ in worker.asked[5:]}) == 1
    assert len({handle.group for handle in unnamed}) == 1
    assert len({handle.key for handle in named + unnamed}) == 8


@pytest.mark.parametrize("group", ["", "a.b", "a b", "ä", "a" * 65])
async def test_group_that_is_no_token_is_refused(memory: MemoryBus, group: str) -> None:
    async with session(memory.connect(), Settings()) as bus:
        with pytest.raises(BadParameter, match="group"):
            await bus.matrix.put(X, group=group)


@pytest.mark.parametrize("array", [["a", "b"], [object()], np.array(["2020"], "M8[Y]")])
async def test_what_the_bus_cannot_carry_is_refused(memory: MemoryBus, array: Any) -> None:
    async with session(memory.connect(), Settings()) as bus:
        with pytest.raises(BadColumn):
            await bus.matrix.put(array)


async def test_owner_is_the_connections_and_unknown_to_others(memory: MemoryBus, worker: Worker) -> None:
    owners = set()
    for _ in range(2):
        async with session(memory.connect(), Settings()) as bus:
            handles = [await bus.matrix.put(X) for _ in range(2)]
            owners |= {str(unpack(request.cols["owner"], 1)[0]) for _, request in worker.asked[-2:]}
            assert not any(owner in str(handle) for owner in owners for handle in handles)
    assert len(owners) == 2


async def test_every_put_is_a_version_of_its_own(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings()) as bus:
        handle = await bus.matrix.put(X)
        await bus.matrix.put(X, replace=handle)
    first, second = (unpack(request.cols["version"], 1)[0] for _, request in worker.asked)
    assert first != second


async def test_time_to_live_is_the_workers_unless_given(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings()) as bus:
        await bus.matrix.put(X)
        await bus.matrix.put(X, ttl_s=5)
    assert [bytes(request.p) for _, request in worker.asked] == [b"\x80", b"\x81\xa5ttl_s\x05"]


async def test_array_of_which_a_part_was_lost_is_told(memory: MemoryBus, worker: Worker) -> None:
    worker.complete = False
    async with session(memory.connect(), Settings()) as bus:
        with pytest.raises(EngineLost, match="put it again"):
            await bus.matrix.put(np.zeros(1 << 20, np.uint8))


async def test_put_and_free_are_tried_again_when_an_engine_is_lost(memory: MemoryBus, worker: Worker) -> None:
    async with session(memory.connect(), Settings()) as bus:
        worker.losing = 2
        handle = await bus.matrix.put(X)
        asked = [unpack(request.cols["version"], 1)[0] for _, request in worker.asked]
        assert len(asked) == 3
        assert len(set(asked)) == 1, "another version could be another's"
        worker.losing = 2
        assert await bus.matrix.free(handle)
        worker.losing = 3
        with pytest.raises(EngineLost):
            await bus.matrix.put(X)


async def test_array_replaced_while_it_is_read_is_told(memory: MemoryBus, worker: Worker) -> None:
    handle = Handle("g.x", "f4", (64, 1 << 16))
    async with session(memory.connect(), Settings()) as bus:
        assert (await bus.matrix.get(handle)).shape == handle.shape
        worker.changing = True
        with pytest.raises(BadValue, match="replaced while it was read"):
            await bus.matrix.get(handle)

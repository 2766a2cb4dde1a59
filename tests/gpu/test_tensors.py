"""Put, get, free and eval over the bus, by hand and through the SDK."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace as replace_settings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.agents import Bus, Handle, session
from aikoryu.agents.tensors import GET_RUNS, RUN_BYTES
from aikoryu.bus.columns import FIXED
from aikoryu.bus.errors import BadParameter, BadValue, BusError, EngineLost, NoTensor, NotOwner, NoWorker, TooLarge
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import BatchSettings, ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.host import ChildEngine
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.ops.tensors import check_shape
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.testing import clock as stopped

X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Served:
    """A worker, and agents that have connections of their own."""

    def __init__(self, memory: MemoryBus, settings: Settings) -> None:
        self.memory = memory
        self.settings = settings
        self.engine = InlineEngine(load(catalogue_of(settings)), slab_bytes=80 << 20)
        self.worker = Worker(memory.connect("_WORKER"), settings, [self.engine])


def settings_of(name: str, **residents: Any) -> Settings:
    return Settings(
        models=ModelSettings(embed=()),
        worker=WorkerSettings(name=name),
        residents=ResidentSettings(**{"host_bytes": 64 << 20, **residents}),
    )


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served(MemoryBus(), settings_of("w1"))
    await made.worker.start()
    yield made
    await made.worker.stop()


@pytest.fixture
async def bus(served: Served) -> AsyncIterator[Bus]:
    async with session(served.memory.connect(), served.settings) as made:
        yield made


@pytest.fixture
async def other(served: Served) -> AsyncIterator[Bus]:
    """Another agent."""
    async with session(served.memory.connect(), served.settings) as made:
        yield made


@pytest.mark.parametrize("dtype", [name for name in FIXED if name != "bf16"])
async def test_array_is_put_and_got(bus: Bus, dtype: str) -> None:
    array = np.random.default_rng(1).integers(0, 2, (2, 3)).astype(FIXED[dtype])
    handle = await bus.matrix.put(array)
    assert (handle.dtype, handle.shape) == (dtype, (2, 3))
    found = await bus.matrix.get(handle)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@pytest.mark.parametrize("array", [np.float64(7.0), np.zeros((0, 5)), X.T, X[::2, ::-1], [[1, 2], [3, 4]], 3.5])
async def test_any_array_can_be_put(bus: Bus, array: Any) -> None:
    found = await bus.matrix.get(await bus.matrix.put(array))
    np.testing.assert_array_equal(found, array)
    assert found.shape == np.shape(array)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("runs", [1, 3, GET_RUNS, GET_RUNS + 2])
async def test_large_array_goes_in_runs(bus: Bus, served: Served, runs: int, extra: int) -> None:
    array = np.random.default_rng(2).integers(0, 255, runs * RUN_BYTES + extra, np.uint8)
    handle = await bus.matrix.put(array)
    np.testing.assert_array_equal(await bus.matrix.get(handle), array)
    puts = [job for job in served.engine.jobs if job.operation == "matrix.put"]
    assert sum(job.rows for job in puts) == -(-array.size // RUN_BYTES)


async def test_run_ends_within_an_element(bus: Bus) -> None:
    array = np.random.default_rng(3).normal(size=(3, RUN_BYTES // 16 + 1)).astype(np.complex128)
    np.testing.assert_array_equal(await bus.matrix.get(await bus.matrix.put(array)), array)


async def test_puts_of_many_agents_share_a_batch(bus: Bus, other: Bus, served: Served) -> None:
    handles = await asyncio.gather(*(b.matrix.put(X + n, group="shared") for n in range(5) for b in (bus, other)))
    assert [job.rows for job in served.engine.jobs] == [10]
    found = await asyncio.gather(*(bus.matrix.get(handle) for handle in handles))
    np.testing.assert_array_equal(found, [X + n for n in range(5) for _ in range(2)])


async def test_handle_is_good_in_another_agents_hands(bus: Bus, other: Bus) -> None:
    handle = await bus.matrix.put(X, group="weights")
    passed = Handle.parse(str(handle))
    assert passed == handle
    assert (passed.group, passed.shape, passed.dtype) == ("weights", (3, 4), "f4")
    np.testing.assert_array_equal(await other.matrix.get(passed), X)


async def test_only_who_put_it_may_replace_and_free_it(bus: Bus, other: Bus) -> None:
    handle = await bus.matrix.put(X)
    with pytest.raises(NotOwner):
        await other.matrix.free(handle)
    with pytest.raises(NotOwner):
        await other.matrix.put(X, replace=handle)
    with pytest.raises(NotOwner):
        await other.matrix.put(np.zeros(2 * RUN_BYTES, np.uint8), replace=handle)
    replaced = await bus.matrix.put(-X, replace=handle)
    assert replaced == handle
    np.testing.assert_array_equal(await other.matrix.get(handle), -X)
    assert await bus.matrix.free(handle)
    assert not await bus.matrix.free(handle)
    with pytest.raises(NoTensor):
        await bus.matrix.get(handle)


async def test_handle_of_before_the_shape_changed_is_refused(bus: Bus) -> None:
    handle = await bus.matrix.put(X)
    await bus.matrix.put(X[0], replace=handle)
    with pytest.raises(BadValue, match="of a tensor f4"):
        await bus.matrix.get(handle)


async def test_row_that_fails_leaves_its_neighbours_alone(bus: Bus) -> None:
    handles = [await bus.matrix.put(X + n, group="one") for n in range(3)]
    await bus.matrix.free(handles[1])
    found = await asyncio.gather(*(bus.matrix.get(handle) for handle in handles), return_exceptions=True)
    np.testing.assert_array_equal(found[0], X)
    assert isinstance(found[1], NoTensor)
    np.testing.assert_array_equal(found[2], X + 2)


async def test_fresh_engine_has_the_tensors(tmp_path: Path) -> None:
    """An engine process that died is followed by one over the same folder."""
    memory = MemoryBus()
    settings = settings_of("w1")
    catalogue = catalogue_of(settings)
    catalogue = replace(catalogue, residents=replace(catalogue.residents, directory=str(tmp_path)))
    handle = None
    for _ in range(2):
        engine = InlineEngine(load(catalogue))
        worker = Worker(memory.connect("_WORKER"), settings, [engine])
        await worker.start()
        async with session(memory.connect(), settings) as bus:
            handle = handle or await bus.matrix.put(X)
            np.testing.assert_array_equal(await bus.matrix.get(handle), X)
        await worker.stop()


async def test_engine_that_is_killed_loses_no_tensor(tmp_path: Path) -> None:
    memory = MemoryBus()
    settings = settings_of("w1", directory=str(tmp_path))
    settings = replace_settings(settings, worker=WorkerSettings(name="w1", device="cpu"))
    worker = Worker(memory.connect("_WORKER"), settings)
    await worker.start()
    async with session(memory.connect(), settings) as bus:
        handle = await bus.matrix.put(X)
        engine = worker._engines[0]
        assert isinstance(engine, ChildEngine)
        os.kill(engine.host.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while True:
                try:
                    found = await bus.matrix.eval("2 * x", x=handle)
                    break
                except EngineLost:
                    await asyncio.sleep(0)
        np.testing.assert_array_equal(found, 2 * X)
        np.testing.assert_array_equal(await bus.matrix.get(handle), X)
    assert list(tmp_path.iterdir())
    await worker.stop()
    assert list(tmp_path.glob("*/*")) == []


async def test_workers_keep_different_partitions() -> None:
    memory = MemoryBus()
    halves = [Served(memory, settings_of(f"w{n}", partitions=part)) for n, part in enumerate(("0-31", "32-63"))]
    without = Served(memory, settings_of("w3", partitions="none"))
    for each in (*halves, without):
        await each.worker.start()
    async with session(memory.connect(), halves[0].settings) as bus:
        handles = [await bus.matrix.put(X + n, group=f"group{n}") for n in range(20)]
        for n, handle in enumerate(handles):
            np.testing.assert_array_equal(await bus.matrix.get(handle), X + n)
        assert all(each.engine.jobs for each in halves)
        assert not without.engine.jobs
        await halves[0].worker.stop()
        with stopped() as time:
            asked = asyncio.gather(*(bus.matrix.get(handle) for handle in handles))
            await time.advance(20.0)
            with pytest.raises(NoWorker):
                asked.result()
    for each in (halves[1], without):
        await each.worker.stop()


async def test_array_beyond_the_workers_budget_is_refused(bus: Bus) -> None:
    with pytest.raises(TooLarge, match=r"residents\.host_bytes"):
        await bus.matrix.put(np.zeros(64 << 20, np.uint8))


@pytest.mark.parametrize(
    ("operation", "row", "parameters", "error"),
    [
        ("put", {"key": "nogroup"}, {}, BadValue),
        ("put", {"key": "../etc.passwd"}, {}, BadValue),
        ("put", {"owner": ""}, {}, BadValue),
        ("put", {"start": np.int64(-1)}, {}, BadValue),
        ("put", {"start": np.int64(2**62)}, {}, BadValue),
        ("put", {}, {"shape": [-3, 4]}, BadParameter),
        ("put", {}, {"shape": [2**40, 2**40]}, BadParameter),
        ("put", {}, {"shape": [1] * 33}, BadParameter),
        ("put", {}, {"ttl_s": -1}, BadParameter),
        ("put", {}, {"shape": [2, 3]}, BadValue),
        ("get", {}, {"t": "f4", "s": [3]}, NoTensor),
        ("get", {}, {"t": "utf8", "s": [3]}, BadParameter),
        ("get", {}, {"t": "f4", "s": [0, 2**60]}, BadParameter),
        ("get", {}, {"s": [3]}, BadParameter),
        ("get", {}, {"t": "f4", "s": [2**30]}, TooLarge),
        ("free", {"key": "x"}, {}, BadValue),
    ],
)
async def test_hostile_requests_are_refused(
    bus: Bus, operation: str, row: dict[str, Any], parameters: dict[str, Any], error: type[BusError]
) -> None:
    named = {"key": "g.x", "owner": "me", "version": np.uint64(1), "start": np.int64(0), "x": X}
    columns = {"put": tuple(named), "get": ("key", "start"), "free": ("key", "owner")}[operation]
    with pytest.raises(error):
        await bus.call(f"matrix.{operation}.0", {name: {**named, **row}[name] for name in columns}, parameters)


def test_shapes_that_arrays_can_have() -> None:
    for shape in [(), (0,), (3, 0, 5), (1,) * 31, (2**40,)]:
        check_shape(shape)


async def test_rows_beyond_a_batch_say_so() -> None:
    small = Settings(models=ModelSettings(embed=()), batch=BatchSettings(max_bytes=1 << 16))
    memory = MemoryBus()
    worker = Served(memory, small)
    await worker.worker.start()
    async with session(memory.connect(), small) as bus:
        with pytest.raises(TooLarge):
            await bus.matrix.put(np.zeros(1 << 18, np.uint8))
    await worker.worker.stop()


# --- eval ------------------------------------------------------------------------------------------------------------

RANDOM = np.random.default_rng(9)
W, B = RANDOM.normal(size=(4, 5)).astype(np.float32), RANDOM.normal(size=5).astype(np.float32)


async def test_expression_of_rows_and_residents_is_one_batch(bus: Bus, other: Bus, served: Served) -> None:
    w, b = await asyncio.gather(bus.matrix.put(W, group="net"), bus.matrix.put(B, group="net"))
    rows = RANDOM.normal(size=(20, 4)).astype(np.float32)
    calls = [who.matrix.eval("relu(x @ w + b)", x=x, w=w, b=b) for x in rows for who in (bus, other)]
    found = np.array(await asyncio.gather(*calls))
    np.testing.assert_allclose(found, np.repeat(np.maximum(rows @ W + B, 0), 2, axis=0), rtol=1e-5, atol=1e-5)
    assert [job.rows for job in served.engine.jobs if job.operation == "matrix.eval"] == [40]


async def test_expression_without_residents_is_anybodys() -> None:
    memory = MemoryBus()
    without = Served(memory, settings_of("w1", partitions="none"))
    await without.worker.start()
    async with session(memory.connect(), without.settings) as bus:
        np.testing.assert_allclose(await bus.matrix.eval("2 * x + 1", x=X), 2 * X + 1)
        with pytest.raises(NoWorker):
            await bus.matrix.eval("2 * x", x=Handle("g.x", "f4", (3,)))
    await without.worker.stop()


async def test_answer_is_kept_and_used_again(bus: Bus, other: Bus) -> None:
    w = await bus.matrix.put(W, group="net")
    product = await bus.matrix.eval("transpose(w) @ w", w=w, keep=True)
    assert (product.group, product.dtype, product.shape) == ("net", "f4", (5, 5))
    np.testing.assert_allclose(await other.matrix.get(product), W.T @ W, rtol=1e-5)
    norm = await bus.matrix.eval("norm(p)", p=product, keep=True)
    assert norm.shape == ()
    np.testing.assert_allclose(await bus.matrix.get(norm), np.linalg.norm(W.T @ W), rtol=1e-5)
    assert await bus.matrix.free(product)
    with pytest.raises(NotOwner):
        await other.matrix.free(norm)


async def test_answer_asked_for_again_is_kept_once(bus: Bus, served: Served) -> None:
    """A frame that is sent again after a lost connection."""
    w = await bus.matrix.put(W)
    handle = {"key": w.key, "t": "f4", "s": [4, 5]}
    keep = {"key": f"{w.group}.kept", "owner": "me", "version": 7}
    parameters = {"expression": "w * 2", "handles": {"w": handle}, "keep": keep}
    for _ in range(2):
        answer = await bus.call("matrix.eval.0", {}, parameters)
        assert (answer["t"], answer["s"].tolist()) == ("f4", [4, 5])
        await bus.matrix.free(w)
    assert served.engine.jobs[-2].operation == "matrix.eval"


async def test_resident_that_is_gone_is_told(bus: Bus) -> None:
    w = await bus.matrix.put(W)
    await bus.matrix.free(w)
    with pytest.raises(NoTensor):
        await bus.matrix.eval("x @ w", x=X, w=w)


async def test_residents_that_lie_apart_are_refused_before_anything_is_sent(bus: Bus, served: Served) -> None:
    here, there = [await bus.matrix.put(X, group=group) for group in ("group1", "group2")]
    before = len(served.engine.jobs)
    with pytest.raises(BadParameter, match="put them in one group"):
        await bus.matrix.eval("a + b", a=here, b=there)
    assert len(served.engine.jobs) == before


async def test_expression_that_cannot_be_read_is_told(bus: Bus) -> None:
    with pytest.raises(BadParameter, match="cannot be read"):
        await bus.matrix.eval("x +", x=X)


@pytest.fixture
async def small() -> AsyncIterator[Bus]:
    """An agent of a worker whose device has little room."""
    memory = MemoryBus(8 << 20)
    made = Served(memory, settings_of("w1", device_bytes=1 << 20))
    await made.worker.start()
    async with session(memory.connect(), made.settings) as bus:
        yield bus
    await made.worker.stop()


async def test_product_that_the_device_has_no_room_for_is_kept(small: Bus) -> None:
    a, b = RANDOM.normal(size=(700, 600)).astype(np.float32), RANDOM.normal(size=(600, 800)).astype(np.float32)
    left, right = await small.matrix.put(a, group="large"), await small.matrix.put(b, group="large")
    product = await small.matrix.eval("a @ b", a=left, b=right, keep=True)
    np.testing.assert_allclose(await small.matrix.get(product), a @ b, rtol=1e-4, atol=1e-3)
    square = await small.matrix.put(a[:600], group="large")
    product = await small.matrix.eval("a @ a", a=square, keep=True)
    np.testing.assert_allclose(await small.matrix.get(product), a[:600] @ a[:600], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("expression", ["a @ a + 1", "exp(a)", "a"])
async def test_what_else_the_device_has_no_room_for_is_refused(small: Bus, expression: str) -> None:
    a = await small.matrix.put(np.ones((600, 600), np.float32))
    with pytest.raises(TooLarge, match=r"residents\.device_bytes"):
        await small.matrix.eval(expression, a=a, keep=True)
    with pytest.raises(TooLarge, match=r"residents\.device_bytes"):
        await small.matrix.eval(f"sum({expression})", a=a)

"""Faults in an engine: each kind, what contains it, and that callers get their answers all the same."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.errors import BusError, OperationFailed
from aikoryu.bus.fault_control import Answer, inject
from aikoryu.bus.faults import parse
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.config import (
    BatchSettings,
    BreakerSettings,
    CpuSettings,
    FaultSettings,
    JobSettings,
    LogSettings,
    ModelSettings,
    Settings,
    WorkerSettings,
)
from aikoryu.gpu.device import Device, OutOfMemory
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.faults import injector
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.job import Inject
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

WAIT_S = 30.0
ANSWER_S = 0.02
X = np.arange(6, dtype=np.float32)


def settings(**groups: Any) -> Settings:
    given: dict[str, Any] = {
        "models": ModelSettings(embed=()),
        "worker": WorkerSettings(name="w1", device="cpu", spare="none"),
        "cpu": CpuSettings(threads=1),
        "batch": BatchSettings(max_bytes=1 << 20, limit_s=0.3),
        "breaker": BreakerSettings(failures=1000),
        "jobs": JobSettings(in_flight=0),
        "log": LogSettings(level="critical"),
        "faults": FaultSettings(enabled=True),
    }
    return Settings(**(given | groups))


class Served:
    """A worker, and who calls it and asks it to misbehave."""

    def __init__(self, settings: Settings, engines: list[InlineEngine]) -> None:
        self.bus = MemoryBus()
        self.engines = engines
        self.worker = Worker(self.bus.connect("_WORKER"), settings, engines)
        self.client = Client(self.bus.connect(), Subjects(), timeout_s=WAIT_S, frame_bytes=1 << 16)

    async def inject(self, *rules: str) -> list[Answer]:
        return await inject(self.bus.connect(), Subjects(), rules, ANSWER_S)

    async def echo(self, rows: int = 3) -> None:
        """Ask, and check the answer."""
        x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        answer = await self.client.call_many("echo", {"x": x})
        np.testing.assert_array_equal(answer["x"], x)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a worker whose engines are in this process, or its own."""
    async with AsyncExitStack() as stack:

        async def started(given: Settings | None = None, engines: int = 2) -> Served:
            given = given or settings()
            made = [InlineEngine(load(catalogue_of(given)), slab_bytes=4 << 20) for _ in range(engines)]
            served = Served(given, made)
            await served.worker.start()
            stack.push_async_callback(served.worker.stop)
            await served.client.start()
            stack.push_async_callback(served.client.close)
            return served

        yield started


def injected(engine: InlineEngine) -> Mapping[str, int]:
    assert engine._injector is not None
    return engine._injector.injected


@pytest.mark.parametrize("kind", ["raise", "memory", "wrong", "hang", "poison", "die"])
async def test_what_goes_wrong_on_the_device_is_answered_by_the_spare(serve: Serve, kind: str) -> None:
    served = await serve()
    device, spare = served.engines
    await served.inject(f"{kind}:1")
    await served.echo(rows=1)
    count = 2 if kind == "memory" else 1  # a batch of one row is tried again
    assert injected(device) == {kind: count}
    assert (len(device.jobs), len(spare.jobs)) == (1, 1)
    assert device.restarts == (1 if kind in ("hang", "poison", "die") else 0)
    assert spare._injector is None
    await served.inject()
    await served.echo()
    assert injected(device) == {kind: count}
    assert (len(device.jobs), len(spare.jobs)) == (2, 1)


async def test_slow_batch_is_answered_later(serve: Serve) -> None:
    served = await serve()
    await served.inject("slow=0.03@0")
    before = time.monotonic()
    await served.echo()
    assert time.monotonic() - before >= 0.03
    assert injected(served.engines[0]) == {"slow": 1}
    assert [len(engine.jobs) for engine in served.engines] == [1, 0]


async def test_batch_without_room_is_halved_on_the_device(serve: Serve) -> None:
    served = await serve()
    await served.inject("memory@0")
    await served.echo(rows=8)
    assert injected(served.engines[0]) == {"memory": 1}
    assert [len(engine.jobs) for engine in served.engines] == [1, 0]


async def test_caller_hears_of_it_where_nothing_stands_behind_the_device(serve: Serve) -> None:
    served = await serve(engines=1)
    for kind, told in (("raise", "raised Injected"), ("memory", "no room"), ("wrong", "raised ValueError")):
        await served.inject(f"{kind}:1")
        with pytest.raises(OperationFailed, match=told):
            await served.client.call("echo", {"x": X})
    await served.inject()
    await served.echo()


async def test_order_that_comes_twice_is_taken_once(serve: Serve) -> None:
    served = await serve()
    await served.inject("slow=0.001@0")
    (device, _) = served.engines
    await served.echo()
    device.inject(Inject("another", [parse("slow=0.001@0", time.monotonic())]))
    await served.echo()
    device.inject(Inject("another", [parse("slow=0.001@0", time.monotonic())]))
    await served.echo()
    assert injected(device) == {"slow": 2}


async def test_rules_of_the_settings_are_in_force_from_the_first_batch(serve: Serve) -> None:
    served = await serve(settings(faults=FaultSettings(enabled=True, rules=("raise:1", "drop:1@3600-3601"))))
    await served.echo()
    assert injected(served.engines[0]) == {"raise": 1}


async def test_worker_that_may_not_fail_refuses_and_has_nothing_in_its_way(serve: Serve) -> None:
    served = await serve(settings(faults=FaultSettings()))
    (answer,) = await served.inject("die:1", "drop:1")
    assert (answer.code, answer.rules) == ("refused", [])
    assert served.engines[0]._injector is None
    assert "run" not in vars(served.worker.operations["echo"])
    await served.echo()


async def test_rules_without_the_permission_end_the_start(serve: Serve) -> None:
    with pytest.raises(BusError, match=r"set faults\.enabled=true as well"):
        await serve(settings(faults=FaultSettings(rules=("raise:1",))))


async def test_messages_of_the_worker_are_lost_as_well(serve: Serve) -> None:
    served = await serve()
    await served.inject("drop@0")
    faulty = served.worker._faulty
    assert faulty is not None
    lost = served.client.call("echo", {"x": X})
    async with asyncio.timeout(5):
        while not faulty.injected:  # noqa: ASYNC110 - of this loop's own turns
            await asyncio.sleep(0)
    lost.cancel()
    await served.echo()
    assert faulty.injected == {"drop": 1}
    assert [len(engine.jobs) for engine in served.engines] == [1, 0]


@pytest.mark.usefixtures("without_torch")
async def test_engine_process_that_dies_hangs_or_loses_its_device_is_followed_by_one_that_does_not(
    serve: Serve,
) -> None:
    served = await serve(engines=0)
    (engine,) = served.worker._engines
    for number, kind in enumerate(["die", "hang", "poison"], start=1):
        (answer,) = await served.inject(f"{kind}@0")
        assert answer.code == ""
        await served.echo()
        assert engine.restarts == number
    await served.echo()
    await served.inject("raise:1")
    with pytest.raises(OperationFailed):
        await served.client.call("echo", {"x": X})
    engine.kill()
    with pytest.raises(OperationFailed):
        await served.client.call("echo", {"x": X})
    assert engine.restarts == 4, "the next one is told what is in force"


def test_memory_that_is_not_there_is_the_devices_own_error(device: Device) -> None:
    with device.stream(), pytest.raises(RuntimeError) as raised:
        injector([], device).memory()
    assert isinstance(device.explain(raised.value), OutOfMemory)


def test_slow_device_takes_as_long_as_it_is_told(device: Device) -> None:
    slow = injector([], device)
    with device.stream():
        slow.slow(0.01)  # a GPU's clock is measured the first time
        device.synchronize()
        before = time.monotonic()
        slow.slow(0.1)
        device.synchronize()
    assert 0.08 < time.monotonic() - before < 0.5


@pytest.mark.gpu
class TestCuda:
    """With real faults, which cost the process its context."""

    @pytest.fixture(autouse=True)
    def _gpu(self) -> None:
        torch = pytest.importorskip("torch", reason="needs the extra `worker`")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")

    @pytest.mark.parametrize("without", ["", "cupy"])
    def test_context_is_poisoned_with_cupy_or_without(self, without: str) -> None:
        if not without:
            pytest.importorskip("cupy", reason="needs the extra `cuda12` or `cuda13`")
        command = [sys.executable, "-c", textwrap.dedent(POISONED), without]
        told = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S * 4, check=False)
        assert told.stdout.splitlines() == ["enqueued", "lost"], told.stderr

    async def test_every_fault_of_the_gpu_is_answered_all_the_same(self, serve: Serve) -> None:
        behind = WorkerSettings(name="w1", device="cuda:0", spare="cpu")
        limits = BatchSettings(max_bytes=1 << 20, limit_s=2.0)
        served = await serve(settings(worker=behind, batch=limits), engines=0)
        gpu, _ = served.worker._engines
        lost = 0
        for kind in ("raise", "memory", "wrong", "slow=0.1", "poison", "hang", "die"):
            place = served.worker._front._stations[0].place
            async with asyncio.timeout(4 * WAIT_S):
                while not place.slots:  # noqa: ASYNC110 - another process comes back
                    await asyncio.sleep(0.01)
            (answer,) = await served.inject(f"{kind}@0")
            assert answer.code == ""
            await served.echo(rows=4)
            lost += kind in ("poison", "hang", "die")
            assert gpu.restarts == lost, kind


POISONED = """
    import os, sys
    if sys.argv[1]:
        sys.modules[sys.argv[1]] = None
    import torch
    from aikoryu.gpu.cuda import CudaDevice
    from aikoryu.gpu.device import DeviceLost
    from aikoryu.gpu.faults import injector

    device = CudaDevice("cuda:0", threads=1)
    device.open()
    with device.stream():
        injector([], device).poison()
        print("enqueued", flush=True)
        try:
            device.mark().wait()
        except DeviceLost:
            print("lost", flush=True)
    os._exit(0)  # what is left of the context could hang an orderly end
"""


@pytest.mark.usefixtures("without_torch")
async def test_engine_process_that_was_not_started_for_it_ignores_faults(serve: Serve) -> None:
    served = await serve(settings(faults=FaultSettings()), engines=0)
    (engine,) = served.worker._engines
    engine.inject(Inject("order", [parse("die:1", time.monotonic())]))
    await served.echo()
    assert engine.restarts == 0

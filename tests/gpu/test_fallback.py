"""Fallback: what fails on the device runs on the spare, and the device is tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.errors import EngineLost, Expired, NoWorker, OperationFailed
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.service import Service
from aikoryu.bus.subjects import Subjects
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.breaker import BreakerLimits, State
from aikoryu.gpu.device import Device
from aikoryu.gpu.fallback import Fallback
from aikoryu.gpu.front import Front
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.plan import Limits, Place, Plan, Span, Ticket
from aikoryu.gpu.signature import Signature
from aikoryu.gpu.telemetry import Telemetry


class Double(Operation):
    """Twice the number; ill on the devices in `ill`, and bad with 13 everywhere."""

    name = "test.double"
    signature = Signature({"x": "f8"}, {"y": "f8"})

    def __init__(self, ill: set[str], pure: bool = True) -> None:
        self.ill = ill
        self.pure = pure
        self.ran: list[str] = []

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        self.ran.append(device.name)
        if device.name in self.ill or 13.0 in batch["x"]:
            raise RuntimeError("ill")
        return {"y": batch["x"] * 2}


class Named(InlineEngine):
    """An engine in this process under another device's name."""

    def __init__(self, name: str, operations: Mapping[str, Operation]) -> None:
        super().__init__(operations, slots=2, slab_bytes=1 << 20)
        self.name = name
        self._executor._device.name = name

    def gone(self) -> None:
        """Die, and stay away."""
        self._held.clear()
        self.on_lost()

    def back(self) -> None:
        self.on_ready()

    def run_held(self) -> None:
        """Run what is held, and hold what comes then."""
        held, self._held = self._held, []
        for job in held:
            self._run(job)


class Rig:
    """A front with a device and a spare, and a client."""

    def __init__(self, operation: Operation, cool_s: float, limits: Limits) -> None:
        operations = {operation.name: operation}
        bus = MemoryBus()
        self.device, self.spare = Named("cuda:0", operations), Named("cpu", operations)
        self.service = Service(bus.connect("_WORKER"), Subjects(), "w", reply_prefixes=("_INBOX",))
        breaker = BreakerLimits(failures=2, window_s=10.0, cool_s=cool_s)
        self.front = Front(self.service, [self.device, self.spare], operations, limits, Telemetry(), breaker)
        self.client = Client(bus.connect(), Subjects(), timeout_s=10, frame_bytes=1 << 16)
        self.name = operation.name

    async def start(self) -> None:
        await self.device.start()
        await self.spare.start()
        await self.service.start()
        await self.service.serve(self.name, self.front.accept)
        await self.client.start()

    async def stop(self) -> None:
        await self.client.close()
        await self.service.drain(1.0)
        self.front.stop()
        await self.device.stop()
        await self.spare.stop()

    async def ask(self, x: float = 2.0) -> float:
        async with asyncio.timeout(5):
            return float((await self.client.call(self.name, {"x": float(x)}))["y"])

    @property
    def state(self) -> State:
        return self.front.fallback.breakers[self.name].state


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    made: list[Rig] = []

    async def started(operation: Operation, cool_s: float = 60.0, limits: Limits | None = None) -> Rig:
        rig = Rig(operation, cool_s, limits or Limits())
        await rig.start()
        made.append(rig)
        return rig

    yield started
    for rig in made:
        await rig.stop()


async def test_what_fails_on_the_device_is_answered_by_the_spare(start: Any) -> None:
    operation = Double({"cuda:0"})
    rig = await start(operation)
    assert await rig.ask(21.0) == 42.0
    assert operation.ran == ["cuda:0", "cpu"]


async def test_breaker_opens_and_the_device_is_left_alone(start: Any) -> None:
    operation = Double({"cuda:0"})
    rig = await start(operation)
    for n in range(5):
        assert await rig.ask(n) == 2 * n
    assert operation.ran == ["cuda:0", "cpu"] * 2 + ["cpu"] * 3
    assert rig.state is State.OPEN


async def test_device_is_tried_again_and_trusted_when_it_is_well(start: Any) -> None:
    operation = Double({"cuda:0"})
    rig = await start(operation, cool_s=0.05)
    for _ in range(3):
        await rig.ask()
    operation.ill.clear()
    operation.ran.clear()
    await asyncio.sleep(0.06)
    for _ in range(3):
        await rig.ask()
    assert operation.ran == ["cuda:0"] * 3
    assert rig.state is State.CLOSED


async def test_trial_that_fails_costs_its_callers_nothing(start: Any) -> None:
    operation = Double({"cuda:0"})
    rig = await start(operation, cool_s=0.05)
    for _ in range(2):
        await rig.ask()
    await asyncio.sleep(0.06)
    operation.ran.clear()
    assert await rig.ask() == 4.0
    assert await rig.ask() == 4.0
    assert operation.ran == ["cuda:0", "cpu", "cpu"]


async def test_rows_to_blame_are_refused_and_trip_nothing(start: Any) -> None:
    operation = Double(set())
    rig = await start(operation)
    for _ in range(4):
        with pytest.raises(OperationFailed):
            await rig.ask(13.0)
    assert await rig.ask() == 4.0
    assert operation.ran[-1] == "cuda:0"
    assert rig.front.fallback.breakers == {}


async def test_what_is_not_pure_is_not_run_twice(start: Any) -> None:
    operation = Double({"cuda:0"}, pure=False)
    rig = await start(operation)
    with pytest.raises(OperationFailed):
        await rig.ask()
    assert operation.ran == ["cuda:0"]


@pytest.mark.parametrize("pure", [True, False])
async def test_stop_that_runs_out_of_time_sends_nobody_elsewhere_with_what_may_have_run(start: Any, pure: bool) -> None:
    rig = await start(Double(set(), pure=pure))
    rig.device.hold = True
    running = asyncio.ensure_future(rig.ask())
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    rig.front.planner.limits = replace(rig.front.planner.limits, window_s=2.0)
    waiting = asyncio.ensure_future(rig.ask())
    while not rig.front.planner.waiting_rows:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not await rig.service.drain(0.0)
    found = await asyncio.gather(running, waiting, return_exceptions=True)
    # Sent again, it finds nobody.
    assert [type(each) for each in found] == [NoWorker if pure else EngineLost, NoWorker]


async def test_device_that_dies_costs_its_callers_nothing(start: Any) -> None:
    operation = Double(set())
    rig = await start(operation)
    rig.device.hold = True
    running = [asyncio.ensure_future(rig.ask(n)) for n in range(3)]
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    rig.device.gone()
    assert await asyncio.gather(*running) == [0.0, 2.0, 4.0]
    assert await rig.ask() == 4.0
    assert set(operation.ran) == {"cpu"}
    rig.device.hold = False
    rig.device.back()
    assert await rig.ask() == 4.0
    assert operation.ran[-1] == "cuda:0"


async def test_reply_says_who_answered_and_why(start: Any) -> None:
    rig = await start(Double({"cuda:0"}))
    said = []
    answer = rig.service.answer

    def watch(held: Any, at: Any, columns: Any, errors: Any, by: Any = None) -> None:
        said.append((by.engine, by.reason))
        answer(held, at, columns, errors, by)

    rig.service.answer = watch
    for _ in range(3):
        await rig.ask()
    rig.device.gone()
    await rig.ask()
    assert said == [("cpu", "operation_failed")] * 2 + [("cpu", "breaker_open"), ("cpu", "engine_down")]


@pytest.mark.parametrize("how", ["raises", "dies"])
async def test_first_rows_are_answered_after_one_small_batch_on_the_spare(start: Any, how: str) -> None:
    rig = await start(Double({"cuda:0"} if how == "raises" else set()))
    answered: list[int] = []
    answer = rig.service.answer

    def watch(held: Any, at: Any, *rest: Any) -> None:
        answered.append(sum(count for _, count in at))
        answer(held, at, *rest)

    rig.service.answer = watch
    rig.device.hold = rig.spare.hold = True
    x = np.arange(100.0, 250.0)
    asked = asyncio.ensure_future(rig.client.call_many(rig.name, {"x": x}))
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    if how == "raises":
        rig.device.release()
    else:
        rig.device.gone()
    while not rig.spare.jobs:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert answered == []
    rig.spare._run(rig.spare._held.pop(0))
    assert answered == [64]
    rig.spare.release()
    np.testing.assert_array_equal((await asked)["y"], 2 * x)
    assert (answered, [job.rows for job in rig.spare.jobs]) == ([64, 64, 22], [64, 64, 22])


async def test_row_that_expired_is_refused_once_though_its_batch_runs_again(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await start(Double(set()))
    rig.device.hold = True
    before = []
    for x in (1.0, 2.0):  # they fill the engine
        before.append(asyncio.ensure_future(rig.ask(x)))
        while len(rig.device.jobs) < len(before):  # noqa: ASYNC110 - it is this loop that hands over
            await asyncio.sleep(0)
    late = asyncio.ensure_future(rig.client.call(rig.name, {"x": 3.0}, timeout_s=5.0))
    stays = asyncio.ensure_future(rig.ask(4.0))
    while rig.front.planner.waiting_rows < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    monkeypatch.setattr("aikoryu.gpu.front.monotonic", lambda: time.monotonic() + 7.0)
    rig.device.run_held()
    rig.device.gone()
    assert await asyncio.gather(*before, stays) == [2.0, 4.0, 8.0]
    with pytest.raises(Expired):
        await late
    assert rig.front.telemetry.registry.get_sample_value("aikoryu_rows_dropped_total", {"reason": "expired"}) == 1


async def test_rows_that_expired_while_their_engine_hung_do_not_run_again(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await start(Double(set()))
    rig.device.hold = True
    late = asyncio.ensure_future(rig.client.call(rig.name, {"x": 1.0}, timeout_s=5.0))
    while len(rig.device.jobs) < 1:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    stays = asyncio.ensure_future(rig.ask(2.0))
    while len(rig.device.jobs) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    monkeypatch.setattr("aikoryu.gpu.front.monotonic", lambda: time.monotonic() + 7.0)
    rig.device.gone()
    assert await stays == 4.0
    with pytest.raises(Expired, match="worker's queue"):
        await late
    assert [job.rows for job in rig.spare.jobs] == [1]
    assert rig.front.telemetry.registry.get_sample_value("aikoryu_rows_dropped_total", {"reason": "expired"}) == 1


async def test_rows_run_on_the_spare_are_counted(start: Any) -> None:
    operation = Double({"cuda:0"})
    rig = await start(operation, cool_s=0.0)
    telemetry = rig.front.telemetry
    assert rig.front.fallback.state(rig.name) is State.CLOSED
    await rig.ask()
    assert (telemetry.rows[rig.name], telemetry.spare_rows[rig.name]) == (2, 1)
    await rig.ask()
    assert rig.front.fallback.state(rig.name) is State.OPEN
    operation.ill.clear()
    await rig.ask()
    assert (telemetry.rows[rig.name], telemetry.spare_rows[rig.name]) == (5, 2)
    assert rig.front.fallback.state(rig.name) is State.CLOSED


async def test_batch_that_hangs_ends_its_engine_and_runs_on_the_spare(start: Any) -> None:
    operation = Double(set())
    rig = await start(operation, limits=Limits(limit_s=0.05))
    rig.device.hold = True
    rig.device.kill = rig.device.gone
    began = asyncio.get_running_loop().time()
    assert await rig.ask() == 4.0
    assert 0.05 <= asyncio.get_running_loop().time() - began < 1.0
    assert operation.ran == ["cpu"]


class Clock:
    """The front's, by hand, s."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("aikoryu.gpu.front.monotonic", made)
    return made


async def test_batch_that_waits_for_others_to_end_is_not_held_against_its_engine(start: Any, clock: Clock) -> None:
    """Another front's batches are as slow as they may be, one after another; then one of them hangs."""
    operation = Double(set())
    rig = await start(operation, limits=Limits(limit_s=60.0))
    rig.device.hold = True
    rig.device.kill = rig.device.gone
    asked = asyncio.ensure_future(rig.ask())
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    for began in (1001.0, 1060.0, 1119.0):
        rig.device._pulse.stamp(0, began)
    clock.now = 1178.9
    rig.front._watch_limits()
    assert rig.device._held, "it was ended for what others have"
    clock.now = 1179.1
    rig.front._watch_limits()
    assert await asked == 4.0
    assert operation.ran == ["cpu"]


async def test_batch_that_hangs_is_found_though_the_engine_begins_others(start: Any, clock: Clock) -> None:
    rig = await start(Double(set()), limits=Limits(limit_s=60.0))
    rig.device.hold = True
    killed: list[float] = []
    rig.device.kill = lambda: killed.append(clock.now)
    asked = asyncio.ensure_future(rig.ask())
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    (job,) = rig.device.jobs
    rig.device.slabs[job.slab].stamp(job.began, 1050.0)
    rig.device._pulse.stamp(0, 1105.0)
    for clock.now in (1109.9, 1110.1):
        rig.front._watch_limits()
    assert killed == [1110.1]
    rig.device.release()
    assert await asked == 4.0


async def test_caller_that_withdraws_while_its_batch_waits_to_run_again_is_not_run(start: Any) -> None:
    operation = Double(set())
    rig = await start(operation)
    rig.device.hold = rig.spare.hold = True
    keeps = asyncio.ensure_future(rig.ask(1.0))
    leaves = asyncio.ensure_future(rig.ask(2.0))
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    rig.spare.gone()
    rig.device.gone()
    await asyncio.sleep(0)
    leaves.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    (plan,) = rig.front.fallback.device.again
    assert plan.gone == {1}
    rig.spare.hold = False
    rig.spare.back()
    assert await keeps == 2.0


class TestDecisions:
    def plan(self, place: Place, rows: list[int], runs: int = 0) -> Plan:
        lane = Lane("lane", 100, place)
        spans = [Span(Ticket(None, lane, count, 1, 0, 0.0, 1e9), 0, count) for count in rows]
        return Plan(lane, place, spans, sum(rows), [], runs)

    def test_lost_twice_its_frames_run_one_by_one_and_then_fail(self) -> None:
        place, operation = Place("cpu", 1), Double(set())
        fallback = Fallback(place, None, BreakerLimits())
        plan = self.plan(place, [2, 3])
        assert fallback.lost(plan, operation) == (place, [plan])
        plan.runs = 1
        where, parts = fallback.lost(plan, operation)
        assert where is place
        assert [[span.count for span in part.spans] for part in parts] == [[2], [3]]
        plan.runs = 2
        assert fallback.lost(plan, operation)[0] is None

    def test_what_runs_again_on_the_spare_is_cut_to_a_first_batch(self) -> None:
        device, spare, operation = Place("cuda:0", 1), Place("cpu", 1, first_rows=64), Double(set())
        fallback = Fallback(device, spare, BreakerLimits())
        for decide in (fallback.failed, fallback.lost):
            place, parts = decide(self.plan(device, [10, 50, 100, 30]), operation)
            assert place is spare
            assert [[span.count for span in part.spans] for part in parts] == [[10, 50], [64], [36], [30]]
        suspects = fallback.lost(self.plan(device, [10, 100], runs=1), operation)[1]
        assert [part.rows for part in suspects] == [10, 64, 36]
        assert [part.rows for part in fallback.lost(self.plan(spare, [100]), operation)[1]] == [100]

    def test_device_is_to_blame_once_when_every_part_ends_well(self) -> None:
        device, spare, operation = Place("cuda:0", 1), Place("cpu", 1, first_rows=64), Double(set())
        fallback = Fallback(device, spare, BreakerLimits(failures=1))
        parts = fallback.failed(self.plan(device, [100, 100]), operation)[1]
        for part in parts:
            assert fallback.state(operation.name) is State.CLOSED
            part.place, part.reason = spare, "operation_failed"
            fallback.ended(part, operation.name, 0.0)
        assert len(parts) == 4
        assert fallback.state(operation.name) is State.OPEN
        assert fallback.breakers[operation.name].opened == 1

    def test_rows_are_to_blame_when_one_part_fails_there_too(self) -> None:
        device, spare, operation = Place("cuda:0", 1), Place("cpu", 1, first_rows=64), Double(set())
        fallback = Fallback(device, spare, BreakerLimits(failures=1))
        bad, *good = fallback.failed(self.plan(device, [100, 100]), operation)[1]
        for part in (bad, *good):
            part.place, part.reason = spare, "operation_failed"
        assert fallback.failed(bad, operation) == (None, [bad])
        for part in good:
            fallback.ended(part, operation.name, 0.0)
        assert fallback.state(operation.name) is State.CLOSED

    def test_without_a_spare_there_is_nowhere_to_go(self) -> None:
        place = Place("cpu", 1)
        fallback = Fallback(place, None, BreakerLimits())
        assert fallback.failed(self.plan(place, [1]), Double(set()))[0] is None
        assert fallback.home("test.double") is place
        assert not fallback.down
        place.slots = 0
        assert fallback.down

    def test_spare_that_is_down_takes_nothing(self) -> None:
        device, spare, operation = Place("cuda:0", 1), Place("cpu", 0), Double(set())
        fallback = Fallback(device, spare, BreakerLimits(failures=1))
        fallback.died(device, {operation.name}, 0.0)
        assert fallback.breakers[operation.name].state is State.OPEN
        assert fallback.home(operation.name) is device
        assert fallback.failed(self.plan(device, [1]), operation)[0] is None
        assert fallback.refuge(device) is device
        spare.slots = 1
        assert fallback.home(operation.name) is spare
        assert fallback.refuge(device) is spare

    def test_one_death_counts_once_an_operation(self) -> None:
        device, operation = Place("cuda:0", 1), Double(set())
        fallback = Fallback(device, Place("cpu", 1), BreakerLimits(failures=2))
        fallback.died(device, {operation.name}, 0.0)
        assert fallback.breakers[operation.name].state is State.CLOSED


async def test_rows_that_wait_for_a_spare_that_died_run_on_the_device_that_is_back(start: Any) -> None:
    operation = Double(set())
    rig = await start(operation)
    rig.device.hold = True
    asked = asyncio.ensure_future(rig.ask())
    while not rig.device.jobs:  # noqa: ASYNC110 - it is this loop that hands over
        await asyncio.sleep(0)
    rig.spare.hold = True
    rig.device.gone()
    while not rig.spare.jobs:  # noqa: ASYNC110
        await asyncio.sleep(0)
    rig.spare.gone()
    rig.device.hold = False
    rig.device.back()
    assert await asked == 4.0
    assert operation.ran == ["cuda:0"]


async def test_frame_that_kills_engines_fails_alone(start: Any) -> None:
    """Three engines die of it; who shared its batch is answered."""
    operation = Double(set())
    rig = await start(operation)
    engines = (rig.device, rig.spare)
    for engine in engines:
        engine.hold = True

    def deadly(engine: Named) -> bool:
        if not engine._held:
            return False
        slabs = [(engine.slabs[held.slab], held) for held in engine._held]
        if not any(99.0 in slab.array(held.parts[0].data, np.dtype("<f8"), (held.rows,)) for slab, held in slabs):
            engine.run_held()
            return False
        engine.lose()
        return True

    answers = []
    for x in (5.0, 6.0, 1.0, 99.0, 3.0):  # frames of their own; the first two fill the engine, so the others meet
        answers.append(asyncio.ensure_future(rig.ask(x)))
        for _ in range(5):
            await asyncio.sleep(0)
    deaths = 0
    async with asyncio.timeout(5):
        while not all(answer.done() for answer in answers):
            deaths += sum(deadly(engine) for engine in engines)
            await asyncio.sleep(0)
    assert [await answers[n] for n in (0, 1, 2, 4)] == [10.0, 12.0, 2.0, 6.0]
    with pytest.raises(EngineLost):
        await answers[3]
    assert deaths == 3

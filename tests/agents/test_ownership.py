"""Keys that go from process to process: every update counts once, whoever owned the key when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents import keyed_asking, ownership
from aikoryu.agents.bus import Bus, session
from aikoryu.agents.listing import Entry
from aikoryu.agents.memory_states import MemoryLease, MemoryStates
from aikoryu.agents.ownership import Ownership
from aikoryu.agents.roster import Change
from aikoryu.agents.saved import decode_saved
from aikoryu.bus.jetstream import NoAnswer
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.transport import Subscription

from .conftest import until
from .keyed import ONE, Counter, process

MOVES = 100
CALLERS = 8
MEMBER = Path(__file__).parent / "keyed_member.py"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers look for the next owner without a rest."""
    monkeypatch.setattr(keyed_asking, "SOONEST_S", 0.0005)
    monkeypatch.setattr(keyed_asking, "LATEST_S", 0.01)


@pytest.fixture
async def states() -> MemoryStates:
    return MemoryStates()


@pytest.fixture
async def caller(memory: MemoryBus) -> AsyncIterator[Bus]:
    async with session(memory.connect(), ONE) as bus:
        yield bus


@pytest.fixture
async def pair(memory: MemoryBus, states: MemoryStates) -> AsyncIterator[list[Ownership]]:
    """Two processes; the first owns the keys."""
    async with AsyncExitStack() as stack:
        owners = [await stack.enter_async_context(process(memory.connect(), states, name)) for name in ("one", "two")]
        owners[0].want({0})
        await until(lambda: owners[0].owned)
        yield owners


async def move(giver: Ownership, taker: Ownership) -> None:
    taker.want({0})
    giver.want(set())
    await until(lambda: taker.owned)


def counter(bus: Bus, key: str = "a") -> Any:
    return bus.agents.get("counter", Counter, key=key)


class Load:
    """Callers that add one after the other until they are stopped.

    Attributes:
        done: how many additions were told as done.
    """

    def __init__(self, bus: Bus) -> None:
        self.done = 0
        self._bus = bus
        self._stopped = False
        self._callers = [asyncio.create_task(self._add()) for _ in range(CALLERS)]

    async def more(self, count: int = 2) -> None:
        """Return when so many more are done."""
        enough = self.done + count
        await until(lambda: self.done >= enough)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._callers)

    async def _add(self) -> None:
        while not self._stopped:
            await counter(self._bus).add(1)
            self.done += 1


async def test_no_update_is_lost_by_a_hundred_moves_under_load(pair: list[Ownership], caller: Bus) -> None:
    load = Load(caller)
    for number in range(MOVES):
        await load.more()
        await move(pair[number % 2], pair[1 - number % 2])
    await load.stop()
    assert load.done >= 2 * MOVES
    assert await counter(caller).read() == load.done


async def test_what_was_known_of_a_partition_is_forgotten_with_it(pair: list[Ownership], caller: Bus) -> None:
    await counter(caller).add(1)
    assert len(pair[0]._cells) == 1
    await move(pair[0], pair[1])
    assert len(pair[0]._cells) == 0


async def test_no_update_is_lost_where_the_owner_is_taken_by_surprise(
    pair: list[Ownership], states: MemoryStates, caller: Bus
) -> None:
    load = Load(caller)
    for owner in pair:
        owner.want({0})
    for number in range(MOVES):
        await load.more()
        states.expire("counter", 0, told=number % 3 != 0)
    await load.stop()
    assert await counter(caller).read() == load.done


class Gated(MemoryStates):
    """Lets one write wait, as a process does that is paused before it."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = asyncio.Event()
        self.go = asyncio.Event()
        self.armed = False
        self.refused = 0

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        if self.armed:
            self.armed = False
            self.paused.set()
            await self.go.wait()
        try:
            return await super().write(agent, partition, key, data, expected)
        except Exception:
            self.refused += 1
            raise


@pytest.fixture
def gated(states: MemoryStates) -> Gated:
    assert isinstance(states, Gated)
    return states


class TestPaused:
    """An owner that is paused between its look at the lease and its write."""

    @pytest.fixture
    async def states(self) -> Gated:
        return Gated()

    async def test_its_late_write_is_refused_and_the_callers_retry_counts_once(
        self, pair: list[Ownership], gated: Gated, caller: Bus
    ) -> None:
        await counter(caller).add(1)
        gated.armed = True
        call = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        pair[1].want({0})
        gated.expire("counter", 0, told=False)
        await until(lambda: pair[1].owned)
        assert await counter(caller).add(1) == 2
        gated.go.set()
        assert await call == 3
        assert gated.refused == 1
        assert await counter(caller).read() == 3

    async def test_its_write_that_comes_before_the_nexts_counts_once(
        self, pair: list[Ownership], gated: Gated, caller: Bus
    ) -> None:
        await counter(caller).add(1)
        gated.armed = True
        call = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        pair[1].want({0})
        gated.expire("counter", 0, told=False)
        await until(lambda: pair[1].owned)
        assert await counter(caller).read() == 1  # the next has read, and not written
        gated.go.set()
        assert await call == 2
        assert await counter(caller).add(1) == 3
        assert gated.refused == 1

    async def test_told_of_its_loss_it_has_its_callers_ask_the_next(
        self, pair: list[Ownership], gated: Gated, caller: Bus
    ) -> None:
        gated.armed = True
        call = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        pair[1].want({0})
        gated.expire("counter", 0)
        assert await call == 1
        assert await counter(caller).read() == 1

    async def test_a_defect_while_it_leaves_has_its_callers_ask_the_next(
        self, pair: list[Ownership], gated: Gated, caller: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = pair[0]
        serve = first._service.serve_partition

        class Broken:
            def __init__(self, subscription: Subscription) -> None:
                self.unsubscribe = subscription.unsubscribe

            async def drain(self) -> None:
                await self.unsubscribe()
                raise RuntimeError("a defect")

        async def broken(name: str, partition: int) -> Broken:
            return Broken(await serve(name, partition))

        monkeypatch.setattr(first._service, "serve_partition", broken)
        first.want(set())
        await until(lambda: not first._keepers)
        first.want({0})
        await until(lambda: first.owned)
        gated.armed = True
        call = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        pair[1].want({0})
        first.want(set())
        async with asyncio.timeout(5):
            assert await call == 1

    async def test_a_planned_move_waits_for_what_runs(self, pair: list[Ownership], gated: Gated, caller: Bus) -> None:
        gated.armed = True
        call = asyncio.ensure_future(counter(caller).add(1))
        await gated.paused.wait()
        pair[1].want({0})
        pair[0].want(set())
        other = asyncio.ensure_future(counter(caller, "b").add(1))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not pair[1].owned
        gated.go.set()
        assert await call == 1
        assert await other == 1
        assert gated.refused == 0
        assert pair[1].owned


class Unsure(MemoryStates):
    """Writes, or does not, and never says so."""

    answers = ""

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        answer, self.answers = self.answers[:1], self.answers[1:]
        if answer == "r":
            raise NoAnswer("lost by the test")
        sequence = await super().write(agent, partition, key, data, expected)
        if answer == "a":
            raise NoAnswer("lost by the test")
        return sequence


class TestUnsure:
    @pytest.fixture
    async def states(self) -> Unsure:
        return Unsure()

    @pytest.mark.parametrize("answers", ["a", "r", "ra", "aa", "rra"])
    async def test_a_write_that_nobody_answered_counts_once(
        self, pair: list[Ownership], states: Unsure, caller: Bus, answers: str
    ) -> None:
        states.answers = answers
        assert await counter(caller).add(1) == 1
        assert await counter(caller).add(1) == 2


class Broken(MemoryStates):
    """Whose next leases break when a partition is asked for, or when it is to be served."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = 0
        self.acquired = 0

    async def acquire(self, agent: str, partition: int) -> MemoryLease | None:
        self.acquired += 1
        if self.faults:
            self.faults -= 1
            raise RuntimeError("a defect")
        return await super().acquire(agent, partition)


async def test_a_keeper_goes_on_after_a_defect(memory: MemoryBus, caller: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RETRY_S", 0.01)
    broken = Broken()
    async with process(memory.connect(), broken, "one") as owner:
        broken.faults = 2
        with capture_logs() as logs:
            owner.want({0})
            assert await counter(caller).add(1) == 1
        assert [line["exc_info"].args for line in logs if line["event"] == "partition not owned"] == [("a defect",)] * 2


async def test_a_partition_that_cannot_be_served_is_released_and_tried_again_after_a_rest(
    memory: MemoryBus, caller: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "RETRY_S", 0.05)
    states = Broken()
    async with process(memory.connect(), states, "one") as owner:
        serve, broken = owner._service.serve_partition, True

        async def fails(name: str, partition: int) -> Any:
            if broken:
                raise RuntimeError("a defect")
            return await serve(name, partition)

        monkeypatch.setattr(owner._service, "serve_partition", fails)
        owner.want({0})
        await until(lambda: states.acquired >= 1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert states.acquired == 1
        assert owner.owned == {}
        assert states._leases == {}
        broken = False
        assert await counter(caller).add(1) == 1
        assert states.acquired == 2


async def test_a_key_that_nobody_owns_is_waited_for_and_then_given_up(
    memory: MemoryBus, states: MemoryStates, caller: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(memory.connect(), states, "one") as owner:
        call = asyncio.ensure_future(counter(caller).add(1))
        for _ in range(50):
            await asyncio.sleep(0)
        owner.want({0})
        assert await call == 1
    monkeypatch.setattr(keyed_asking, "PATIENCE_S", 0.0)
    with pytest.raises(ai.NoWorker):
        await counter(caller).read()  # which nobody has answered before


async def test_an_owner_that_reads_a_greater_token_stops_and_asks_for_the_partition_anew(
    memory: MemoryBus, states: MemoryStates, caller: Bus
) -> None:
    async with process(memory.connect(), states, "one") as owner:
        owner.want({0})
        await counter(caller).add(1)
        before = owner.owned[0]
        found = await states.read("counter", 0, "a")
        saved = decode_saved(found.data)
        later = saved.after(saved.state, saved.token + 1, None, b"")
        await states.write("counter", 0, "a", later.encode(), found.sequence)
        assert await counter(caller).add(1) == 2
        assert owner.owned[0] is not before


async def test_changes_that_are_heard_together_are_dealt_for_once(
    memory: MemoryBus, states: MemoryStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt: list[set[str]] = []

    def share(process: str, processes: set[str], agent: str, partitions: int) -> set[int]:
        dealt.append(set(processes))
        return set()

    monkeypatch.setattr(ownership, "share", share)
    more = asyncio.Event()
    others = {f"p{number}" for number in range(50)}

    async def watch() -> AsyncGenerator[Change, None]:
        for name in others:
            yield Change(True, Entry("counter", name, frozenset(), 0.0))
        await more.wait()
        yield Change(False, Entry("counter", "p7", frozenset(), 0.0))
        await asyncio.Event().wait()

    async with process(memory.connect(), states, "one", watch=watch):
        await until(lambda: dealt)
        more.set()
        await until(lambda: len(dealt) > 1)
    assert dealt == [{"one", *others}, {"one", *others} - {"p7"}]


async def test_apps_deal_keys_among_them_as_they_come_and_go(memory: MemoryBus) -> None:
    def app() -> ai.App:
        made = ai.App.in_memory(memory)
        made.add(Counter, "counter")
        return made

    first, second = app(), app()
    async with first as bus:
        for number in range(20):
            await counter(bus, str(number)).add(number)
        own = first._process._owners[0]  # type: ignore[union-attr]
        await until(lambda: len(own.owned) == 64)
        async with second:
            other = second._process._owners[0]  # type: ignore[union-attr]
            await until(lambda: len(own.owned) + len(other.owned) == 64 and other.owned)
            assert not own.owned.keys() & other.owned.keys()
            assert 16 <= len(own.owned) <= 48
            totals = [await counter(bus, str(number)).add(1) for number in range(20)]
        assert totals == [number + 1 for number in range(20)]
        await until(lambda: len(own.owned) == 64)
        assert [await counter(bus, str(number)).read() for number in range(20)] == totals

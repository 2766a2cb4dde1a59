"""Who owns a graph: one at a time, whoever sleeps, dies or stops; and what its log and snapshots bring back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aikoryu.agents.context import Context
from aikoryu.bus.errors import BadParameter, Moved
from aikoryu.bus.jetstream import Refused, Unavailable
from aikoryu.bus.leases import Leases
from aikoryu.bus.log_entry import Kind
from aikoryu.bus.partition_log import PartitionLog
from aikoryu.bus.snapshots import Snapshots
from aikoryu.gpu import context_host
from aikoryu.gpu.context import keepers as keepers_module
from aikoryu.gpu.context.graph import ContextGraph
from aikoryu.gpu.context.recovery import Recovery
from aikoryu.gpu.context_host import ContextHost

from .context_kept import Kept, blended, check, drawn, keeper, until

D = 8
LEASE_S = 1


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with Kept() as kept:
        yield kept


class Hammer:
    """Puts something all the time, and remembers what was acknowledged.

    Attributes:
        held: what each agent has put last, that was acknowledged.
        gaps: how long each put took, s.
    """

    def __init__(self, team: Context, agents: int = 8) -> None:
        self.held: dict[str, Any] = {}
        self.gaps: list[float] = []
        self._team = team
        self._random = np.random.default_rng(3)
        self._stopped = False
        self._tasks = [asyncio.create_task(self._put(f"agent {number}")) for number in range(agents)]

    async def _put(self, name: str) -> None:
        while not self._stopped:
            vector = self._random.standard_normal(D).astype(np.float32)
            began = time.monotonic()
            put = await self._team.put(name, vector)
            self.gaps.append(time.monotonic() - began)
            assert put.applied
            self.held[name] = vector
            await asyncio.sleep(0.002)

    async def goes_on(self) -> None:
        """Return after 40 more."""
        seen = len(self.gaps)
        await until(lambda: len(self.gaps) > seen + 40)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


async def opened(kept: Kept, name: str = "team") -> Context:
    return (await kept.bus()).context(name, dimension=D)


async def test_one_graph_comes_of_many_who_open_it(kept: Kept) -> None:
    both = [await kept.keepers("a"), await kept.keepers("b")]
    wires = [await kept.wire() for _ in range(4)]
    row: dict[str, Any] = {
        "graph": ["team"] * 5,
        "dimension": np.full(5, D, np.uint32),
        "alpha": np.full(5, 0.5, np.float32),
        "epsilon": np.zeros(5, np.float32),
    }
    answers = await asyncio.gather(*(wire.ask("context.open", row) for wire in wires))
    owners = [keepers for keepers in both if keepers.graphs]
    assert len(owners) == 1
    found = [row for rows, _ in answers for row in rows if row is not None]
    assert found
    assert {(int(row["dimension"]), float(row["alpha"]), int(row["epoch"])) for row in found} == {
        (D, 0.5, keeper(owners[0]).epoch)
    }
    assert {code for _, errors in answers for code in errors.values()} <= {"moved"}  # asked of the other
    assert [entry.kind for entry in await kept.log()] == [Kind.CLAIM, Kind.CHANGE]


async def test_routes_are_compiled_before_a_graph_is_served(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, bool]] = []

    def prepare(graph: ContextGraph) -> None:
        found.append((threading.current_thread().name.rsplit("_", 1)[0], any("team" in each.graphs for each in all_of)))

    monkeypatch.setattr(keepers_module, "prepare", prepare)
    all_of = [await kept.keepers("a")]
    await (await opened(kept)).put("ada", np.ones(D))
    assert found == [("aikoryu-context-opening", False)]
    all_of.append(await kept.keepers("b"))
    assert await kept.stop(all_of[0])
    assert "team" in all_of[1].graphs
    assert found[1] == ("aikoryu-context-opening", True), "while the owner before still serves it"


async def test_a_graph_that_is_owned_is_not_taken(kept: Kept) -> None:
    a, b = await kept.keepers("a"), await kept.keepers("b")
    with pytest.raises(BadParameter, match="no graph"):
        await a._opened("team", None)
    team = await opened(kept)
    await team.put("ada", np.ones(D))
    owner, other = (a, b) if a.graphs else (b, a)
    with pytest.raises(Moved, match="has an owner"):
        await other._opened("team", None)
    assert await owner._opened("team", None) is keeper(owner)
    assert not other.graphs


async def test_what_no_graph_can_be_is_refused(kept: Kept) -> None:
    keepers = await kept.keepers()
    wire = await kept.wire()
    names = ["a b", "", "x" * 65, "a.b", "fine", "fine", "fine", "fine", "gone"]
    dimensions = np.array([D, D, D, D, 8193, D, D, D, 0], np.uint32)
    alphas = np.array([0, 0, 0, 0, 0, 1.5, -1, 0, 0], np.float32)
    epsilons = np.array([0, 0, 0, 0, 0, 0, 0, -1, 0], np.float32)
    columns: dict[str, Any] = {"graph": names, "dimension": dimensions, "alpha": alphas, "epsilon": epsilons}
    _, errors = await wire.ask("context.open", columns)
    assert errors == dict.fromkeys(range(9), "bad_parameter")
    _, errors = await wire.ask("context.move", {"graph": names[:4]})
    assert errors == dict.fromkeys(range(4), "bad_parameter")
    found, _ = await wire.ask("context.move", {"graph": ["gone"]})
    assert found[0] is not None
    assert not found[0]["moved"]
    assert not keepers.graphs
    assert len(keepers._turns) == 0


async def test_asking_for_a_graph_nobody_made_wakes_nobody(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    await kept.keepers("a")
    await kept.keepers("b")
    tries = []
    acquire = Leases.try_acquire

    async def counted(self: Leases, name: str, *, ttl_s: int) -> Any:
        tries.append(name)
        return await acquire(self, name, ttl_s=ttl_s)

    monkeypatch.setattr(Leases, "try_acquire", counted)
    bus = await kept.bus()
    for _ in range(5):
        with pytest.raises(BadParameter, match="is not there"):
            await bus.context("misspelt").get("ada")
    await asyncio.sleep(0.3)
    assert tries == []


async def test_an_owner_that_sleeps_writes_nothing_after_the_next_began(kept: Kept) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    hammer = Hammer(team)
    await until(lambda: len(hammer.held) == 8)
    sleeper = keeper(a)
    # Its clock stands still: it renews nothing, and believes that it holds the lease.
    at = sleeper._lease._clock()
    sleeper._lease._clock = lambda: at
    b = await kept.keepers("b")
    await until(lambda: "team" in b.graphs, LEASE_S + 3)
    await until(lambda: sleeper.ended.is_set())
    assert sleeper._lease._tenure.reason == "its holder released it"  # it was told by the log, not by its clock
    await hammer.goes_on()
    await hammer.stop()
    entries = await kept.log()
    second = max(entry.token for entry in entries)
    claim = next(entry for entry in entries if entry.kind is Kind.CLAIM and entry.token == second)
    assert all(entry.token == second for entry in entries if entry.sequence >= claim.sequence)
    assert "team" in b.graphs
    await check(team, hammer.held, {})
    # None twice: an agent's version is that of its last put, and each put came once or was repeated by name.
    assert (await team.stats())["agents"] == 8


async def test_an_owner_that_dies_is_followed_by_itself(kept: Kept) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    own = drawn([f"agent {number}" for number in range(40)], D, 4)
    names = list(own)
    links = {(names[n], names[(3 * n + 1) % 40]): 1.0 for n in range(40) if n != (3 * n + 1) % 40}
    await team.put_many(names, np.array(list(own.values())))
    await team.link_many([source for source, _ in links], [target for _, target in links])
    b, c = await kept.keepers("b"), await kept.keepers("c")
    await kept.crash(a)
    died = time.monotonic()
    await until(lambda: bool(b.graphs or c.graphs))
    assert time.monotonic() - died < LEASE_S + 1
    assert not (b.graphs and c.graphs)
    await check(team, own, links)
    repeated = await team.put("agent 0", own["agent 0"])
    assert repeated.applied


async def test_what_was_acknowledged_outlives_its_owners(kept: Kept) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    hammer = Hammer(team)
    owners = [a]
    for name in ("b", "c"):
        await hammer.goes_on()
        owners.append(await kept.keepers(name))
        await kept.crash(owners[-2])
        await until(lambda: "team" in owners[-1].graphs, LEASE_S + 3)
    await hammer.goes_on()
    await hammer.stop()
    await check(team, hammer.held, {})


@pytest.mark.parametrize("others", [1, 2])
async def test_a_planned_stop_hands_over_under_load(kept: Kept, others: int) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    hammer = Hammer(team)
    await hammer.goes_on()
    next_ones = [await kept.keepers(f"next {number}".replace(" ", "")) for number in range(others)]
    assert await kept.stop(a)
    assert sum("team" in each.graphs for each in next_ones) == 1
    await hammer.goes_on()
    await hammer.stop()
    assert max(hammer.gaps) < 2.0
    await check(team, hammer.held, {})


async def test_an_owner_that_could_not_wait_has_left_its_graph_to_who_reads_it(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await kept.keepers("a"), await kept.keepers("b")
    team = await opened(kept)
    await team.put("ada", np.ones(D))
    owner, other = (a, b) if "team" in a.graphs else (b, a)
    read = Recovery.start

    async def slow(recovery: Recovery) -> None:
        await read(recovery)
        owner._is_stopping = True  # it does not take the graph back
        if "team" in owner.graphs:
            await owner.graphs["team"].leave()

    monkeypatch.setattr(Recovery, "start", slow)
    assert await other._moved("team")
    assert (await team.get("ada")).version


async def test_who_has_no_graph_is_ready_once_others_have(kept: Kept) -> None:
    keepers = [await kept.keepers(name) for name in ("a", "b")]
    assert not any(each._threads._claimed for each in keepers)
    await (await opened(kept)).put("ada", np.ones(D))
    await until(lambda: all(each._threads._claimed for each in keepers))


async def test_the_last_keeper_lets_go_of_its_graphs(kept: Kept) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    await team.put("ada", np.ones(D))
    await (await opened(kept, "other")).put("bo", np.ones(D))
    assert len(a.graphs) == 2
    assert await kept.stop(a)
    b = await kept.keepers("b")
    assert not b.graphs
    assert (await team.get("ada")).version  # opened by whoever asks, with no wait for a lease
    assert list(b.graphs) == ["team"]


async def test_a_watcher_misses_nothing_over_a_hand_over(kept: Kept) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    seen: list[Any] = []

    async def look() -> None:
        async with aclosing(team.watch("ada", 0.5)) as changes:
            async for change in changes:
                seen.append(change)

    looking = asyncio.create_task(look())
    await team.put("ada", np.full(D, 1.0))
    await until(lambda: len(seen) == 1)
    b = await kept.keepers("b")
    await kept.stop(a)
    await team.put("ada", np.full(D, 5.0))
    await until(lambda: seen[-1].vector[0] > 4.9)
    await kept.keepers("c")
    await kept.crash(b)
    await team.put("ada", np.full(D, 9.0))
    await until(lambda: seen[-1].vector[0] > 8.9)
    epochs = [change.epoch for change in seen]
    assert epochs == sorted(epochs)
    assert len(seen) <= 5  # each owner that follows may tell the same once more
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


def small_snapshots(kept: Kept) -> Any:
    context = replace(kept.settings.context)
    object.__setattr__(context, "snapshot_bytes", 1000)  # fewer than the settings allow
    return replace(kept.settings, context=context)


async def filled(team: Context, seed: int, count: int = 16) -> dict[str, Any]:
    own = drawn([f"agent {number}" for number in range(count)], D, seed)
    for name, vector in own.items():
        await team.put(name, vector)
    return own


async def test_a_snapshot_takes_the_place_of_the_log(kept: Kept) -> None:
    settings = small_snapshots(kept)
    a = await kept.keepers("a", settings)
    team = await opened(kept)
    await filled(team, 5)
    links = {("agent 1", "agent 2"): 2.0}
    await team.link("agent 1", "agent 2", 2.0)
    own = await filled(team, 6)
    await until(lambda: keeper(a)._snapshots._storing is None and keeper(a)._snapshots._stored is None)
    entries = await kept.log()
    assert sum(entry.kind is Kind.CHANGE for entry in entries) < 20
    assert entries[0].previous > 0  # what was before is gone
    assert sum(entry.kind is Kind.MARK for entry in entries) >= 1
    await kept.crash(a)
    b = await kept.keepers("b", settings)
    await until(lambda: "team" in b.graphs, LEASE_S + 3)
    await check(team, own, links)
    assert (await team.put("agent 0", np.ones(D))).applied


@pytest.mark.parametrize("crash_in", ["mark", "purge"])
async def test_a_crash_between_a_snapshot_and_its_mark_or_purge_loses_nothing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    settings = small_snapshots(kept)
    a = await kept.keepers("a", settings)
    team = await opened(kept)
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang(self: PartitionLog, *_: Any) -> None:
        reached.set()
        await never.wait()

    monkeypatch.setattr(PartitionLog, crash_in, hang)
    filling = asyncio.create_task(filled(team, 7))
    await reached.wait()
    b = await kept.keepers("b", settings)
    await kept.crash(a)
    monkeypatch.undo()
    own = await filling
    assert list(b.graphs) == ["team"]
    await check(team, own, {})
    await filled(team, 8)
    own = await filled(team, 9)
    await until(lambda: keeper(b)._snapshots._storing is None and keeper(b)._snapshots._stored is None)
    await kept.crash(b)
    c = await kept.keepers("c", settings)
    await until(lambda: "team" in c.graphs, LEASE_S + 3)
    await check(team, own, {})


async def test_a_log_that_grew_under_several_owners_is_still_cut(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    put = Snapshots.put

    async def counted(self: Snapshots, name: str, parts: Any) -> str:
        taken.append(name)
        return await put(self, name, parts)

    monkeypatch.setattr(Snapshots, "put", counted)
    settings = small_snapshots(kept)
    for number in range(4):
        keepers = await kept.keepers(f"a{number}", settings)
        await filled(await opened(kept), number, 4)  # less than is due
        await kept.stop(keepers)
    assert taken


async def test_a_snapshot_that_cannot_be_stored_or_marked_costs_nothing(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await kept.keepers("a", small_snapshots(kept))
    team = await opened(kept)
    calls: list[str] = []

    async def fail_put(self: Snapshots, name: str, parts: Any) -> str:
        calls.append("put")
        raise Refused("no room", 10077)

    async def fail_mark(self: PartitionLog, snapshot: bytes, expected_last: int) -> int:
        calls.append("mark")
        raise Refused("no room", 10077)

    with monkeypatch.context() as broken:
        broken.setattr(Snapshots, "put", fail_put)
        await filled(team, 10)
    with monkeypatch.context() as broken:
        broken.setattr(PartitionLog, "mark", fail_mark)
        own = await filled(team, 11)
    assert set(calls) == {"put", "mark"}
    assert list(a.graphs) == ["team"]
    assert len(await kept.changes()) > 32
    await check(team, own, {})


async def test_a_stop_while_a_graph_is_opened_leaves_it_to_others(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    await team.put("ada", np.ones(D))
    await kept.stop(a)
    b = await kept.keepers("b")
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang(self: Recovery) -> None:
        reached.set()
        await never.wait()

    with monkeypatch.context() as hanging:
        hanging.setattr(Recovery, "start", hang)
        read = asyncio.create_task(team.get("ada"))
        await reached.wait()
    c = await kept.keepers("c")
    began = time.monotonic()
    assert await kept.stop(b)
    assert time.monotonic() - began < 1.0
    assert (await read).version
    assert list(c.graphs) == ["team"]


async def test_a_graph_that_cannot_be_read_is_told_so_and_left_alone(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await kept.keepers("a")
    team = await opened(kept)
    await team.put("ada", np.ones(D))
    await kept.stop(a)
    b, c = await kept.keepers("b"), await kept.keepers("c")
    tries: list[float] = []

    async def fail(self: Recovery) -> None:
        tries.append(time.monotonic())
        raise Unavailable("made so by the test")

    with monkeypatch.context() as broken:
        broken.setattr(Recovery, "start", fail)
        read = asyncio.create_task(team.get("ada"))
        await asyncio.sleep(1.5)
        assert 2 <= len(tries) <= 12
        assert not b.graphs
        assert not c.graphs
        assert len(b._opens | c._opens) <= 6
    assert (await read).version


async def test_a_process_that_is_killed_is_followed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_host, "RESTART_DELAYS_S", (60.0,))  # or the next process might be quicker
    host = ContextHost(kept.settings, "cpu")
    await host.start()
    try:
        team = await opened(kept)
        hammer = Hammer(team)
        await hammer.goes_on()
        b = await kept.keepers("b")
        await b._answer_open("other", D, 0.0, 0.0)  # torch is loaded with the first graph, which takes seconds
        os.kill(host.pid, signal.SIGKILL)
        died = time.monotonic()
        await until(lambda: "team" in b.graphs)
        assert time.monotonic() - died < LEASE_S + 1
        await hammer.goes_on()
        await hammer.stop()
        await check(team, hammer.held, {})
    finally:
        await host.stop()


def test_what_should_reach_agents_is_solved() -> None:
    found = blended({"ada": [1.0], "bo": [0.0]}, {("ada", "bo"): 1.0}, 0.5)
    assert float(found["ada"][0]) == pytest.approx(1.0)
    assert float(found["bo"][0]) == pytest.approx(1 / 3)

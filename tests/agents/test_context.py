"""Contexts as the SDK offers them, against an owner in NumPy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

import aikoryu as ai
from aikoryu.agents import context_graph, session
from aikoryu.agents.context_answers import Linked, Route
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import BusSettings, Settings

from .conftest import turns, until
from .fake_context import FakeGraph, FakeOwner


@pytest.fixture
async def bus(memory: MemoryBus) -> AsyncIterator[ai.Bus]:
    async with session(memory.connect(), Settings(bus=BusSettings(timeout_s=4.0))) as bus:
        yield bus


def of(owner: FakeOwner, operation: str) -> list[dict[str, Any]]:
    """The columns of each frame of an operation."""
    return [columns for name, columns, _ in owner.asked if name == operation]


async def test_what_is_put_reaches_those_who_hear(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    put = await team.put("ada", [1, 0])
    assert (put.applied, put.epoch) == (True, 1)
    assert await team.link("ada", "bo", 3.0) == Linked(2, applied=True)
    await team.put("bo", [0, 1])
    seen = await team.get("bo")
    # Z_bo = 0.3 (0, 1) + 0.7 (1/4 Z_bo + 3/4 (1, 0))
    np.testing.assert_allclose(seen.vector, [0.525 / 0.825, 0.3 / 0.825], rtol=1e-6)
    assert (seen.epoch, seen.version > 0, seen.age_s) == (3, True, 0.25)
    np.testing.assert_array_equal((await team.get("bo", what="own")).vector, [0, 1])
    assert (await team.unlink("ada", "bo")).applied
    np.testing.assert_allclose((await team.get("bo")).vector, [0, 1], atol=1e-7)
    assert (await team.get("nobody")).version == 0


async def test_many_at_once(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    put = await team.put_many(
        ["ada", "bo", "ada"], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], capabilities=[1, 2, 3], load=[0, 1, 0]
    )
    assert put.applied.tolist() == [False, True, True]
    assert (await team.link_many(["ada", "bo"], ["cy", "cy"], [1, 2])).applied.tolist() == [True, True]
    (writer,) = set(of(owner, "put")[0]["writer"].tolist())
    assert writer == of(owner, "link")[0]["writer"][1]
    links = await team.links("cy")
    assert (sorted(links.heard), links.hearers) == ([("ada", 1.0), ("bo", 2.0)], [])
    seen = await team.get_many(["ada", "cy"], what="own")
    np.testing.assert_array_equal(seen.vectors, [[0.5, 0], [0, 0]])
    assert (seen.versions[0], seen.versions[1], seen.ages_s.tolist()) == (put.versions[2], 0, [0.25, 0.25])
    routed = await team.route_many([[1, 0], [0, 1]], k=1, needs=[1, 0], what="own")
    assert routed == [[Route("ada", 1.0)], [Route("bo", 1.0)]]


async def test_nothing_at_once_is_nothing(bus: ai.Bus) -> None:
    team = bus.context("team", dimension=3)
    assert (await team.put_many([], [])).epochs.tolist() == []
    assert (await team.link_many([], [])).applied.tolist() == []
    assert (await team.get_many([])).vectors.shape == (0, 3)
    assert await team.route_many(np.empty((0, 3))) == []


async def test_route_gives_the_best_and_no_more_than_there_are(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    await team.put("ada", [1, 0], capabilities=0b11, load=2.0)
    await team.put("bo", [0, 0.75], capabilities=0b01)
    assert await team.route([1, 0]) == [Route("ada", 1.0), Route("bo", 0.0)]
    assert await team.route([1, 0], needs=0b10) == [Route("ada", 1.0)]
    assert await team.route([1, 0], load_weight=1.0, k=1) == [Route("bo", 0.0)]
    assert await team.route([1, 0], needs=0b100) == []
    assert owner.asked[-1][2] == {"k": 16, "load_weight": 0.0, "what": "blended"}


async def test_optional_columns_are_left_out(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team")
    await team.put("ada", np.ones(2, np.float16))
    await team.put("ada", np.ones(2), ttl_s=1.5, capabilities=1 << 63, load=0.5, version=2**63)
    await team.link("ada", "bo", ttl_s=0.0001)
    bare, full = of(owner, "put")
    assert set(bare) == {"agent", "vector", "version", "writer"}
    assert bare["vector"].dtype == np.float16
    assert {
        name: (values.dtype.str, values[0]) for name, values in full.items() if name not in ("agent", "vector")
    } == {
        "version": ("<u8", 2**63),
        "writer": ("<u8", bare["writer"][0]),
        "ttl_ms": ("<i8", 1500),
        "capabilities": ("<u8", 1 << 63),
        "load": ("<f4", 0.5),
    }
    assert full["vector"].dtype == np.float32
    assert of(owner, "link")[0]["ttl_ms"].tolist() == [1]


async def test_versions_rise_though_the_clock_does_not(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 100)
    team = bus.context("team")
    assert (await team.put("ada", [1])).version == 100
    assert (await team.put("ada", [2])).version == 101
    assert (await team.put("ada", [3], version=500)).version == 500
    assert (await bus.context("team").put("ada", [4])).version == 501
    old = await team.put("ada", [5], version=7)
    assert (old.applied, old.version) == (False, 501)


async def test_reader_finds_what_its_connection_has_said(
    bus: ai.Bus, owner: FakeOwner, log: dict[str, FakeGraph]
) -> None:
    await bus.context("team").put("ada", [1])
    log["team"].epoch = 9
    team = bus.context("team")
    await team.get("ada")
    await team.get("ada", min_epoch=0)
    await team.get("ada", min_epoch=9)
    await team.route_many([[1], [2]])
    assert [columns.get("min_epoch", np.zeros(0)).tolist() for columns in of(owner, "get")] == [[1], [], [9]]
    assert of(owner, "route")[0]["min_epoch"].tolist() == [1, 1]
    assert (await bus.context("other", dimension=1).get("ada")).version == 0
    assert "min_epoch" not in of(owner, "get")[-1]


async def test_log_that_was_lost_does_not_keep_its_connections_from_reading(
    bus: ai.Bus, owner: FakeOwner, log: dict[str, FakeGraph]
) -> None:
    team = bus.context("team")
    for _ in range(3):
        await team.put("ada", [1, 0])
    log["team"] = FakeGraph(2, 0.3, 1e-3)
    with pytest.raises(ai.BadValue, match="beyond 0"):
        await team.get("ada", min_epoch=3)
    seen, both = await asyncio.gather(team.get("ada"), team.get_many(["ada", "bo"]))
    assert (seen.epoch, seen.version, both.epochs.tolist()) == (0, 0, [0, 0])
    assert (await team.put("ada", [0, 1])).epoch == 1
    await team.get("ada")
    assert of(owner, "get")[-1]["min_epoch"].tolist() == [1]


async def test_several_calls_at_once_open_once(bus: ai.Bus, owner: FakeOwner) -> None:
    team = bus.context("team", alpha=0.5)
    put = await asyncio.gather(*(team.put(f"a{number}", [1, 2]) for number in range(20)))
    assert all(each.applied for each in put)
    (opened,) = of(owner, "open")
    assert (opened["graph"], opened["dimension"].tolist(), opened["alpha"].tolist()) == (["team"], [2], [0.5])
    # The row that found nobody is the row that went out again.
    assert len(of(owner, "put")) == 1


async def test_graph_that_is_not_there_is_told(bus: ai.Bus, owner: FakeOwner) -> None:
    for asking in (
        bus.context("team").get("ada"),
        bus.context("team").route([1]),
        bus.context("team").link("ada", "bo"),
        bus.context("team").stats(),
        bus.context("team").get_many(["ada", "bo"]),
    ):
        with pytest.raises(ai.BadParameter, match="'team' is not there: put something, or open it with a dimension"):
            await asking
    assert (await bus.context("team", dimension=2).get("ada")).version == 0
    assert (await bus.context("team").get("ada")).version == 0


async def test_without_workers_it_is_said_who_must_act(bus: ai.Bus) -> None:
    with pytest.raises(ai.NoWorker, match="no worker could: start one"):
        await bus.context("team").put("ada", [1])


async def test_owner_that_never_answers_ends_with_the_timeout(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep(graph: str) -> None:
        pass

    monkeypatch.setattr(owner, "keep", keep)
    with pytest.raises(ai.NoWorker, match="'team' has no owner that answers"):
        await bus.context("team").put("ada", [1], timeout_s=0.2)


async def test_opening_that_takes_long_ends_with_the_timeout_of_each(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, keep = asyncio.Event(), owner.keep

    async def slowly(graph: str) -> None:
        await go.wait()
        await keep(graph)

    monkeypatch.setattr(owner, "keep", slowly)
    team = bus.context("team")
    patient = asyncio.create_task(team.put("ada", [1]))
    with pytest.raises(ai.Expired, match="'team' is being opened"):
        await team.put("bo", [1], timeout_s=0.05)
    go.set()
    assert (await patient).applied
    assert len(of(owner, "open")) == 1


async def test_keeper_that_is_busy_is_asked_again(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_graph, "LATEST_S", 0.01)
    owner.refuse += [("open", ai.Moved("the one who had it is not quite gone"))] * 5
    assert (await bus.context("team").put("ada", [1])).applied
    assert len(of(owner, "open")) == 6


async def test_graph_that_another_keeper_has_opened_meanwhile_is_asked(
    memory: MemoryBus, log: dict[str, FakeGraph], bus: ai.Bus, owner: FakeOwner
) -> None:
    owner.refuse.append(("open", ai.Moved("another's")))
    other = FakeOwner(memory.connect(), log, "other")
    log["team"] = FakeGraph(1, 0.3, 1e-3)
    putting = asyncio.create_task(bus.context("team").put("ada", [1]))
    await until(lambda: of(owner, "open"))
    await other.keep("team")
    assert (await putting).applied
    assert (len(of(owner, "open")), len(of(other, "put"))) == (1, 1)


async def test_row_that_met_an_owner_on_its_way_out_goes_out_again(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_graph, "SOONEST_S", 0.0)
    team = bus.context("team")
    await team.put("ada", [1])
    owner.refuse += [("put", ai.Moved("on its way"))] * 2
    assert (await team.put("ada", [2])).applied
    owner.refuse.append(("put", ai.Moved("on its way")))
    assert (await team.put_many(["ada", "bo"], [[3], [3]])).applied.all()
    versions = [columns["version"].tolist() for columns in of(owner, "put")]
    assert versions[1] == versions[2] == versions[3] != versions[0]
    assert versions[4] == versions[5]


@pytest.mark.parametrize("many", [False, True])
async def test_dead_owner_is_followed(
    memory: MemoryBus,
    log: dict[str, FakeGraph],
    bus: ai.Bus,
    owner: FakeOwner,
    many: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context_graph, "LOOK_S", 0.01)
    monkeypatch.setattr(context_graph, "SILENT_S", 0.05)
    team = bus.context("team")
    await team.put("ada", [1])
    heir = FakeOwner(memory.connect(), log, "heir")
    await heir.start()
    owner.die(memory)
    # Its subject was served before, so the client waits for somebody; it is the graph's to see that there is one.
    async with asyncio.timeout(2.0):
        if many:
            assert (await team.put_many(["ada", "bo"], [[2], [3]])).applied.all()
        else:
            assert (await team.put("ada", [2])).applied
    assert {name for name, _, _ in heir.asked} == {"open", "put"}
    assert of(heir, "open")[0]["dimension"].tolist() == [0]


async def test_call_that_is_cancelled_leaves_the_opening_to_others(
    bus: ai.Bus, owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, keep = asyncio.Event(), owner.keep

    async def slowly(graph: str) -> None:
        await go.wait()
        await keep(graph)

    monkeypatch.setattr(owner, "keep", slowly)
    first, second = (asyncio.create_task(bus.context("team").put(name, [1])) for name in "ab")
    await until(lambda: of(owner, "open"))
    first.cancel()
    await turns()
    go.set()
    assert (await second).applied
    assert first.cancelled()


async def test_stats_are_those_of_the_owner(bus: ai.Bus, owner: FakeOwner) -> None:
    await bus.context("team", alpha=0.5, epsilon=0.25).put("ada", [1, 2])
    stats = await bus.context("team").stats()
    assert (stats["agents"], stats["dimension"], stats["alpha"], stats["epsilon"]) == (1, 2, 0.5, 0.25)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "x" * 65, "é", "*"])
def test_name_is_one(name: str) -> None:
    with pytest.raises(ValueError, match="use 1 to 64 letters"):
        context_graph.check_name(name)


@pytest.mark.parametrize(
    "given", [{"dimension": 0}, {"alpha": 0.0}, {"alpha": 1.5}, {"epsilon": 0.0}, {"epsilon": float("nan")}]
)
async def test_numbers_of_a_graph_are_checked(bus: ai.Bus, given: dict[str, Any]) -> None:
    with pytest.raises(ai.BadParameter, match="use"):
        bus.context("team", **given)


async def test_what_makes_no_context_is_refused_before_it_is_sent(bus: ai.Bus) -> None:
    team = bus.context("team")
    for vector in ([[1, 2]], 1.0, [], ["a"], [object()], [1j]):
        with pytest.raises(ai.BadColumn, match="context"):
            await team.put("ada", vector)  # type: ignore[arg-type]
    for version in (0, 2**64):
        with pytest.raises(ai.BadParameter, match="version"):
            await team.put("ada", [1], version=version)
    for number in (-1, 2**64):
        with pytest.raises(ai.BadParameter, match=f"capabilities is {number}"):
            await team.put("ada", [1], capabilities=number)
        with pytest.raises(ai.BadParameter, match=f"needs is {number}"):
            await team.route([1], needs=number)
        with pytest.raises(ai.BadParameter, match=f"min_epoch is {number}"):
            await team.get("ada", min_epoch=number)
    for k in (0, 257):
        with pytest.raises(ai.BadParameter, match=f"k is {k}: use 1 to 256"):
            await team.route([1], k=k)
    for weights in ("x", [1.0, 2.0, 3.0]):
        with pytest.raises(ai.BadColumn, match="weights are"):
            await team.link_many(["a", "b"], ["c", "d"], weights)
    for ttl_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ai.BadParameter, match="ttl_s"):
            await team.put("ada", [1], ttl_s=ttl_s)


async def test_vector_of_another_length_is_refused_by_the_owner(bus: ai.Bus, owner: FakeOwner) -> None:
    await bus.context("team").put("ada", [1, 2])
    with pytest.raises(ai.BadColumn, match="2 numbers"):
        await bus.context("team").put("ada", [1, 2, 3])
    with pytest.raises(ai.RowsFailed, match="2 numbers"):
        await bus.context("team").put_many(["ada"], [[1, 2, 3]])

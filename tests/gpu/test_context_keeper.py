"""One graph and its owner, on a real server: what is said, read, watched, refused, and what a failure leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aikoryu.agents.context import Context
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue, Moved, NotWritten
from aikoryu.bus.frames import encode
from aikoryu.bus.jetstream import Refused
from aikoryu.bus.partition_log import OwnershipLost
from aikoryu.gpu.context import keeper as keeper_module
from aikoryu.gpu.context.keepers import Keepers
from aikoryu.gpu.context.state import GraphState
from aikoryu.gpu.device import Device, DeviceLost

from .context_kept import WAIT_S, Kept, Latch, Wire, check, drawn, frame_of, keeper, puts, until

D = 4


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with Kept() as kept:
        yield kept


@pytest.fixture
async def keepers(kept: Kept) -> Keepers:
    return await kept.keepers()


@pytest.fixture
async def team(kept: Kept, keepers: Keepers) -> Context:
    """A graph of one agent, which is kept."""
    team = (await kept.bus()).context("team", dimension=D)
    await team.put("ada", np.ones(D))
    return team


@pytest.fixture
async def wire(kept: Kept, team: Context) -> Wire:
    return await kept.wire()


async def test_what_is_said_is_read(kept: Kept, team: Context, keepers: Keepers) -> None:
    own = drawn([f"a{number}" for number in range(20)], D, 1)
    links = {(f"a{n}", f"a{(n * 7 + 1) % 20}"): 0.5 + n / 10 for n in range(20) if n != (n * 7 + 1) % 20}
    put = await team.put_many(list(own), np.array(list(own.values())), capabilities=np.arange(20), load=np.ones(20))
    assert put.applied.all()
    linked = await team.link_many([source for source, _ in links], [t for _, t in links], list(links.values()))
    assert linked.applied.all()
    await check(team, own | {"ada": np.ones(D)}, links)
    seen = await team.get("a3", what="own")
    np.testing.assert_allclose(seen.vector, own["a3"], rtol=2**-8)
    assert seen.version == put.versions[3]
    best = max(own, key=lambda name: float(own[name] @ own["a5"]))
    assert [route.agent for route in await team.route(own["a5"], k=1, what="own", needs=0)] == [best]
    assert {route.agent for route in await team.route(own["a5"], needs=16)} == {"a16", "a17", "a18", "a19"}
    heard = {source: pytest.approx(weight) for (source, target), weight in links.items() if target == "a1"}
    assert dict((await team.links("a1")).heard) == heard
    stats = await team.stats()
    assert (stats["agents"], stats["edges"], stats["dimension"], stats["watchers"]) == (21, len(links), D, 0)
    unlinked = await team.unlink("a0", "a1")
    assert unlinked.applied
    del links["a0", "a1"]
    await check(team, own | {"ada": np.ones(D)}, links)
    assert (await team.get("nobody")).version == 0


async def test_bad_rows_of_a_frame_are_refused_alone(wire: Wire) -> None:
    vectors = np.ones((4, D))
    vectors[2] = np.inf
    found, errors = await wire.ask("context.put.team", puts(["bo", "", "cy", "di"], vectors))
    assert errors == {1: "bad_value", 2: "bad_value"}
    assert [row is not None and bool(row["applied"]) for row in found] == [True, False, False, True]
    one = np.ones(2, np.uint64)
    columns: dict[str, Any] = {"source": ["bo", "di"], "target": ["bo", "bo"], "version": one, "writer": one}
    found, errors = await wire.ask("context.link.team", columns | {"weight": np.ones(2, np.float32)})
    assert (found[0], errors) == (None, {0: "bad_value"})
    queries = {"query": vectors[1:3].astype(np.float32)}
    found, errors = await wire.ask("context.route.team", queries, k=2)
    assert errors == {1: "bad_value"}
    assert found[0] is not None
    assert len(found[0]["agents"].split("\n")) == 2
    found, errors = await wire.ask("context.route.team", {"query": vectors[2:3].astype(np.float32)})
    assert (found, errors) == ([None], {0: "bad_value"})  # a frame of which nothing is left


async def test_frames_that_do_not_suit_are_refused_whole(wire: Wire, team: Context) -> None:
    for call, columns, code in (
        ("put", puts(["bo", "cy"], np.ones((2, D + 1))), "bad_column"),
        ("get", {"name": ["bo", "cy"]}, "bad_column"),
        ("nothing", {"agent": ["bo", "cy"]}, "no_handler"),
    ):
        _, errors = await wire.ask(f"context.{call}.team", columns)
        assert errors == {0: code, 1: code}
    _, errors = await wire.ask("context.get.team", {"agent": ["bo"]}, what="other")
    assert errors == {0: "bad_parameter"}
    with pytest.raises(BadColumn, match="this graph 4"):
        await team.put("bo", np.ones(D + 1))


async def test_plain_json_is_answered_in_json(wire: Wire) -> None:
    one = {"t": "u8", "d": [1]}
    columns = {"agent": ["bo"], "vector": {"t": "f4", "d": [[1, 2, 3, 4]]}, "version": one, "writer": one}
    answer = await wire.ask_json("context.put.team", {"v": 1, "n": 1, "cols": columns})
    assert answer["cols"]["applied"]["d"] == [True]
    answer = await wire.ask_json("context.get.team", {"v": 1, "n": 1, "cols": {"agent": ["bo"]}, "p": {"what": "own"}})
    assert answer["cols"]["vector"]["d"] == [[1, 2, 3, 4]]


async def test_a_reader_finds_what_was_answered_before(team: Context, wire: Wire) -> None:
    for number in range(1, 30):
        put = await team.put("ada", np.full(D, number))
        seen, one = await asyncio.gather(team.get("ada", what="own"), team.put("bo", np.ones(D)))
        assert seen.epoch >= put.epoch
        assert seen.vector.tolist() == [number] * D
        assert one.applied


async def test_an_epoch_that_is_not_there_is_refused_alone(team: Context, wire: Wire, keepers: Keepers) -> None:
    put = await team.put("ada", np.ones(D))
    epochs = np.array([put.epoch, put.epoch + 1, 0], np.uint64)
    found, errors = await wire.ask("context.get.team", {"agent": ["ada"] * 3, "min_epoch": epochs})
    assert errors == {1: "bad_value"}
    assert found[0] is not None
    assert found[2] is not None
    with pytest.raises(BadValue, match="min_epoch"):
        await team.get("ada", min_epoch=put.epoch + 1)


async def test_the_epoch_of_an_opened_graph_can_be_read(kept: Kept, team: Context, keepers: Keepers) -> None:
    await keeper(keepers).leave()
    await until(lambda: "team" in keepers.graphs)  # whose last entry is a claim now
    opened = await keepers._answer_open("team", 0, 0.0, 0.0)
    assert int(opened["epoch"]) == keeper(keepers).epoch
    seen = await team.get("ada", min_epoch=int(opened["epoch"]), timeout_s=2.0)
    assert seen.version


async def test_a_repeated_word_gets_the_same_answer(wire: Wire) -> None:
    columns = puts(["bo"], np.ones((1, D)), version=7)
    first, _ = await wire.ask("context.put.team", columns)
    again, _ = await wire.ask("context.put.team", columns)
    older, _ = await wire.ask("context.put.team", puts(["bo"], np.zeros((1, D)), version=6))
    assert first[0] is not None
    assert again[0] is not None
    assert older[0] is not None
    assert (bool(first[0]["applied"]), int(first[0]["version"])) == (True, 7)
    assert (bool(again[0]["applied"]), int(again[0]["version"])) == (True, 7)
    assert (bool(older[0]["applied"]), int(older[0]["version"])) == (False, 7)


async def test_what_has_ended_is_gone_without_anybody_saying_so(kept: Kept, team: Context, keepers: Keepers) -> None:
    await team.put("bo", np.ones(D))
    await team.put("cy", np.ones(D), ttl_s=0.05)
    await team.link("bo", "ada", ttl_s=0.06)
    said = len(await kept.changes())
    state = keeper(keepers).state
    await until(lambda: state.next_expiry_ms is None)
    # Once for each of both, and no more: what has ended is not said again and again.
    assert not (await team.links("ada")).heard
    assert (await team.get("cy", what="own")).vector.tolist() == [0] * D
    await asyncio.sleep(0.05)
    assert 1 <= len(await kept.changes()) - said <= 2


async def test_a_frame_of_many_rows_goes_into_several_windows(kept: Kept, wire: Wire, team: Context) -> None:
    names = [f"a{number}" for number in range(5000)]
    vectors = np.random.default_rng(2).standard_normal((5000, D)).astype(np.float32)
    found, errors = await wire.ask("context.put.team", puts(names, vectors))
    assert not errors
    assert all(row is not None and row["applied"] for row in found)
    epochs = {int(row["epoch"]) for row in found if row is not None}
    assert len(epochs) == 2
    assert epochs <= {entry.sequence for entry in await kept.changes()}
    np.testing.assert_allclose((await team.get_many(names[-3:], what="own")).vectors, vectors[-3:], rtol=2**-8)


async def test_what_is_said_while_a_window_is_applied_goes_into_the_next(
    kept: Kept, wire: Wire, keepers: Keepers
) -> None:
    before = len(await kept.changes())
    latch = Latch(keepers)
    asked = []
    for number in range(60):
        columns = puts([f"a{number}"], np.ones((1, D)), version=number + 1)
        asked.append(asyncio.create_task(wire.ask("context.put.team", columns)))
        await asyncio.sleep(0.001)
    await until(lambda: keepers._service.endpoints and len(keepers._service.held) == 60)
    latch.release()
    answers = [found for found, _ in await asyncio.gather(*asked)]
    assert all(row is not None and row["applied"] for rows in answers for row in rows)
    assert [int(row["version"]) for rows in answers for row in rows if row is not None] == list(range(1, 61))
    assert len(await kept.changes()) - before == 2, "the first is applied, all others wait for it together"


async def test_the_withdrawn_are_let_go(team: Context, keepers: Keepers) -> None:
    latch = Latch(keepers)
    asked: list[asyncio.Task[Any]] = [asyncio.create_task(team.get("ada")) for _ in range(3)]
    await until(lambda: len(keepers._service.held) == 1)  # which the thread has
    asked.append(asyncio.create_task(team.get_many(["ada", "bo"], what="own")))
    changes = team.watch("ada", 1e6)
    waits = asyncio.ensure_future(anext(changes))
    await until(lambda: len(keepers._service.held) == 3)
    for task in (*asked, waits):
        task.cancel()
    await asyncio.wait([*asked, waits])
    await asyncio.sleep(0.05)
    latch.release()
    await until(lambda: not keepers._service.held)
    assert (await team.stats())["watchers"] == 0


async def test_a_watcher_hears_what_moves(team: Context) -> None:
    async with aclosing(team.watch("bo", 0.5)) as changes, asyncio.timeout(WAIT_S):
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.05)
        assert not first.done()  # who has put nothing, and hears nobody, has zeros
        put = await team.put("bo", np.full(D, 2.0))
        change = await first
        assert (change.epoch, change.version) == (put.epoch, put.version)
        np.testing.assert_allclose(change.vector, [2] * D, atol=1e-2)
        assert change.moved == pytest.approx(4.0, abs=1e-2)
        nothing = asyncio.ensure_future(anext(changes))
        await team.put("bo", np.full(D, 2.125))  # a quarter: less than the threshold
        await team.put("ada", np.zeros(D))
        await asyncio.sleep(0.05)
        assert not nothing.done()
        await team.put("bo", np.full(D, 2.5))
        assert (await nothing).moved == pytest.approx(1.0, abs=1e-2)


async def test_a_watcher_that_looked_away_hears_what_holds(team: Context, wire: Wire) -> None:
    question: dict[str, Any] = {
        "agent": ["ada"],
        "threshold": np.array([0.5], np.float32),
        "min_interval_ms": np.zeros(1, np.uint32),
    }

    async def ask(cursor: int, wait_ms: int = 5000) -> dict[str, Any]:
        (row,), errors = await wire.ask(
            "context.watch.team", question | {"cursor": np.array([cursor], np.uint64)}, wait_ms=wait_ms
        )
        assert not errors
        assert row is not None
        return row

    first = await ask(0)
    await team.put("ada", np.full(D, 5.0))
    second = await ask(int(first["epoch"]))
    await team.put("ada", np.full(D, 9.0))  # nobody asks
    missed = await ask(int(first["epoch"]))
    np.testing.assert_allclose(missed["vector"], [9] * D, atol=1e-1)
    assert int(missed["epoch"]) >= int(second["epoch"])
    later = await ask(int(missed["epoch"]), wait_ms=30)
    if later["changed"]:  # that of 9 was told by an epoch of its own
        later = await ask(int(later["epoch"]), wait_ms=30)
    assert not later["changed"]
    assert int(later["version"]) == 0


async def test_an_interval_is_kept_and_ends_with_what_holds(team: Context) -> None:
    async with aclosing(team.watch("ada", 0.1, min_interval_s=0.3)) as changes, asyncio.timeout(WAIT_S):
        await anext(changes)
        began = time.monotonic()
        change = asyncio.ensure_future(anext(changes))
        for number in range(2, 12):
            await team.put("ada", np.full(D, number))
        assert not change.done()
        told = await change
        assert time.monotonic() - began > 0.25
        np.testing.assert_allclose(told.vector, [11] * D, atol=1e-1)


async def test_a_log_that_takes_nothing_refuses_what_is_said(
    team: Context, keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await team.put("cy", np.ones(D), ttl_s=0.2)
    log, tries = keeper(keepers)._log, []

    async def refuse(data: bytes, expected_last: int) -> int:
        tries.append(time.monotonic())
        raise Refused("maximum bytes exceeded", 10077)

    monkeypatch.setattr(log, "append", refuse)
    monkeypatch.setattr(keeper_module, "WRITE_AGAIN_S", 0.1)
    with pytest.raises(NotWritten, match="maximum bytes"):
        await team.put("bo", np.ones(D))
    assert (await team.get("bo", min_epoch=0)).version == 0
    await asyncio.sleep(0.45)  # that cy has ended cannot be written either
    assert 2 <= len(tries) <= 5
    monkeypatch.undo()
    assert (await team.put("bo", np.ones(D))).applied
    await until(lambda: keeper(keepers).state.counts().agents == 2)


async def test_a_defect_ends_the_ownership_and_answers_all(
    team: Context, keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GraphState, epoch: int, words: Any) -> None:
        raise ZeroDivisionError("made so by the test")

    watch = asyncio.create_task(
        wire.ask(
            "context.watch.team",
            {
                "agent": ["ada"],
                "threshold": np.array([1e6], np.float32),
                "min_interval_ms": np.zeros(1, np.uint32),
                "cursor": np.zeros(1, np.uint64),
            },
        )
    )
    await until(lambda: len(keepers._service.held) == 1)
    monkeypatch.setattr(GraphState, "apply", fail)
    owner = keeper(keepers)
    latch = Latch(keepers)
    asked = [asyncio.create_task(wire.ask("context.put.team", puts(["bo"], np.ones((1, D))))) for _ in range(3)]
    read = asyncio.create_task(wire.ask("context.get.team", {"agent": ["ada"]}))
    await until(lambda: len(keepers._service.held) == 5)
    latch.release()
    assert [errors for _, errors in await asyncio.gather(*asked)] == [{0: "moved"}] * 3
    assert (await read)[1] in ({0: "moved"}, {})
    (row,), _ = await watch
    assert row is not None
    assert not row["changed"]
    await owner.ended.wait()
    assert owner.was_given_up
    assert keepers._service.held == {}
    monkeypatch.undo()
    # It is left alone for a moment, then this process takes it again by itself; what was logged counts.
    await until(lambda: "team" in keepers.graphs)
    assert (await team.get("bo")).version == 1
    assert not keepers._is_failing


async def test_a_read_that_fails_fails_alone(
    team: Context, keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = await team.put("bo", np.ones(D))
    known = GraphState.read

    def fail(self: GraphState, agents: list[str], what: Any) -> Any:
        if "poison" in agents:
            raise RuntimeError("made so by the test")
        return known(self, agents, what)

    monkeypatch.setattr(GraphState, "read", fail)
    latch = Latch(keepers)
    first = asyncio.create_task(team.get("ada"))  # the others wait together meanwhile
    await until(lambda: len(keepers._service.held) == 1)
    asked = [asyncio.create_task(wire.ask("context.get.team", {"agent": [name]})) for name in ("bo", "poison", "ada")]
    await until(lambda: len(keepers._service.held) == 4)
    latch.release()
    await first
    (bo, no), (nothing, failed), (ada, ok) = await asyncio.gather(*asked)
    assert (no, failed, ok) == ({}, {0: "operation_failed"}, {})
    assert bo[0] is not None
    assert (bo[0]["version"], nothing, len(ada)) == (put.version, [None], 1)
    assert not keeper(keepers).was_given_up


async def test_a_defect_found_before_a_window_is_written_answers_it_too(
    keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("made so by the test")

    owner = keeper(keepers)
    monkeypatch.setattr(keeper_module, "sifted", fail)
    _, errors = await wire.ask("context.put.team", puts(["bo"], np.ones((1, D))))
    assert errors == {0: "moved"}
    await owner.ended.wait()
    assert owner.was_given_up
    assert keepers._service.held == {}


@pytest.mark.parametrize("step", ["settle", "apply"])  # as it is opened, too; or only once it serves
async def test_a_graph_that_fails_again_and_again_is_tried_ever_more_seldom(
    kept: Kept, team: Context, wire: Wire, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await kept.keepers("b")
    applied: list[float] = []

    def fail(self: GraphState, *_: Any) -> None:
        applied.append(time.monotonic())
        raise ZeroDivisionError("made so by the test")

    monkeypatch.setattr(GraphState, step, fail)
    asked = asyncio.create_task(team.put("bo", np.ones(D), timeout_s=20.0))
    end = time.monotonic() + 2.0
    with capture_logs():  # tracebacks for people take half a second each
        while time.monotonic() < end:  # somebody says something all the time
            await wire.send("context.put.team", encode(frame_of(puts(["cy"], np.ones((1, D))))))
            await asyncio.sleep(0.01)
    # 0.2, 0.4, 0.8 s apart in each of two processes.
    assert 3 <= len(applied) <= 14
    monkeypatch.undo()
    assert (await asked).applied


async def test_a_lost_device_ends_all(
    kept: Kept, team: Context, keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: GraphState, epoch: int, words: Any) -> None:
        raise DeviceLost("made so by the test")

    monkeypatch.setattr(GraphState, "apply", fail)
    _, errors = await wire.ask("context.put.team", puts(["bo"], np.ones((1, D))))
    assert errors == {0: "moved"}
    with pytest.raises(DeviceLost, match="made so"):
        await asyncio.shield(keepers.failed)
    await until(lambda: not keepers.graphs)
    await asyncio.sleep(0.5)
    assert not keepers.graphs  # whose process is about to end takes nothing
    monkeypatch.undo()
    await kept.keepers("b")
    assert (await team.get("bo")).version == 1


async def test_who_has_lost_its_lease_answers_nothing_but_that(team: Context, keepers: Keepers, wire: Wire) -> None:
    owner = keeper(keepers)
    latch = Latch(keepers)
    applied = asyncio.create_task(wire.ask("context.put.team", puts(["bo"], np.ones((1, D)))))
    await until(lambda: len(keepers._service.held) == 1)
    owner._lease._tenure.lose("made so by the test")
    taken: Any = None
    with pytest.raises(Moved):
        owner._accept("links", taken)
    _, errors = await wire.ask("context.put.team", puts(["cy"], np.ones((1, D))))
    assert errors == {0: "moved"}
    latch.release()
    assert (await applied)[1] == {0: "moved"}
    await owner.ended.wait()
    await until(lambda: keepers.graphs.get("team") not in (None, owner))
    assert (await team.get("bo")).version == 1


@pytest.mark.parametrize("loses", ["lease", "log"])
async def test_what_is_being_written_is_answered_too(
    team: Context, keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch, loses: str
) -> None:
    owner = keeper(keepers)
    reached, refused = asyncio.Event(), asyncio.Event()

    async def hang(data: bytes, expected_last: int) -> int:
        reached.set()
        await refused.wait()
        raise OwnershipLost("made so by the test")

    monkeypatch.setattr(owner._log, "append", hang)
    asked = [asyncio.create_task(wire.ask("context.put.team", puts(["bo"], np.ones((1, D)))))]
    await reached.wait()
    asked.append(asyncio.create_task(wire.ask("context.put.team", puts(["cy"], np.ones((1, D))))))
    await until(lambda: len(keepers._service.held) == 2)
    if loses == "lease":
        owner._lease._tenure.lose("made so by the test")
    else:
        refused.set()
    assert [errors for _, errors in await asyncio.gather(*asked)] == [{0: "moved"}] * 2
    await owner.ended.wait()
    assert not owner.was_given_up


async def test_each_thread_claims_the_device(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[str] = []
    monkeypatch.setattr(Device, "open", lambda device: claimed.append(threading.current_thread().name))
    await kept.keepers()
    team = (await kept.bus()).context("team", dimension=D)
    for _ in range(3):
        await team.put("ada", np.ones(D))
    assert sorted(name.rsplit("_", 1)[0] for name in claimed) == ["aikoryu-context", "aikoryu-context-opening"]


async def test_a_device_that_hangs_is_lost_but_not_one_that_is_busy(kept: Kept, keepers: Keepers) -> None:
    keepers._threads._limit_s = 0.3
    await keepers._threads.use(lambda: None)
    # Each takes less than that, all together more.
    await asyncio.gather(*(keepers._threads.use(lambda: time.sleep(0.1)) for _ in range(5)))
    assert not keepers._is_failing
    latch = Latch(keepers)
    with pytest.raises(DeviceLost, match=r"has not answered for 0\.3 s"):
        await keepers._threads.use(lambda: None)
    with pytest.raises(DeviceLost):
        await asyncio.shield(keepers.failed)
    latch.release()


async def test_what_was_taken_is_answered_before_a_stop(kept: Kept, team: Context, keepers: Keepers) -> None:
    latch = Latch(keepers)
    asked = [asyncio.create_task(team.put(f"a{number}", np.ones(D))) for number in range(5)]
    seen = asyncio.create_task(team.get("ada"))
    await until(lambda: len(keepers._service.held) >= 2)
    stopping = asyncio.create_task(kept.stop(keepers))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    latch.release()
    assert await stopping
    assert all(put.applied for put in await asyncio.gather(*asked))
    assert (await seen).version


async def test_a_stop_that_takes_too_long_sends_callers_away(kept: Kept) -> None:
    hasty = replace(kept.settings, worker=replace(kept.settings.worker, drain_s=0.2))
    keepers = await kept.keepers("hasty", hasty)
    team = (await kept.bus()).context("team", dimension=D)
    await team.put("ada", np.ones(D))
    wire = await kept.wire()
    latch = Latch(keepers)
    asked = asyncio.create_task(wire.ask("context.put.team", puts(["bo"], np.ones((1, D)))))
    await until(lambda: len(keepers._service.held) == 1)
    stopping = asyncio.create_task(kept.stop(keepers))
    assert (await asked)[1] == {0: "moved"}
    latch.release()
    assert not await stopping
    await kept.keepers("b")
    assert (await team.get("bo")).version == 1


async def test_too_many_reads_are_refused(
    team: Context, keepers: Keepers, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "MOST_WAITING_READS", 1)
    latch = Latch(keepers)
    read = [asyncio.create_task(wire.ask("context.get.team", {"agent": ["ada", "bo"]})) for _ in range(3)]
    await until(lambda: any(each.done() for each in read))
    latch.release()
    codes = [errors.get(0) for _, errors in await asyncio.gather(*read)]
    assert "busy" in codes
    assert None in codes
    assert (await team.get("ada")).version


async def test_dimension_is_the_graphs(team: Context, kept: Kept) -> None:
    other = (await kept.bus()).context("team", dimension=9)
    with pytest.raises(BadColumn, match="this graph 4"):
        await other.put("bo", np.ones(9))
    with pytest.raises(BadParameter, match="k"):
        await team.route(np.ones(D), k=1000)

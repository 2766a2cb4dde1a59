"""A graph as its windows say it, against dicts, a dense float64 solve and networkx."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Array  # noqa: E402 - only where torch is
from aikoryu.gpu.context import state as state_module  # noqa: E402
from aikoryu.gpu.context.state import QUIET_MS, GraphState, wants_forget  # noqa: E402
from aikoryu.gpu.context.words import LAST_WRITER, Words, decode, encode  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

from .context_model import SPEC, D, Link, Pair, Put, check, puts_of, window  # noqa: E402


def nothing() -> None:
    """A checkpoint at which everybody is still there."""


@pytest.fixture
def pair(device: Device) -> Pair:
    return Pair(GraphState(SPEC, device))


def seen(state: GraphState, *names: str) -> Array:
    return state.read(names, "blended").vectors


def test_a_window_is_answered_by_what_holds_after_it(pair: Pair) -> None:
    applied = pair.say(
        1,
        [Put("a", 5), Put("b", 1), Put("a", 4, 9), Put("a", 5)],
        [Link("a", "b", 1.0, 1), Link("a", "b", 2.0, 2), Link("b", "c", 0.5, 1)],
    )
    assert applied.put_holds.tolist() == [True, True, False, True]
    assert applied.put_versions.tolist() == [5, 1, 5, 5]
    assert applied.link_holds.tolist() == [False, True, True]
    assert applied.put_versions.dtype == np.uint64
    assert applied.settled.residual == pair.state.residual
    again = pair.say(2, [Put("a", 5), Put("a", 4, 9)], [Link("a", "b", 1.0, 1), Link("b", "c", 0.5, 1)])
    assert again.put_holds.tolist() == [True, False]
    assert again.link_holds.tolist() == [False, True]
    pair.check()


def test_a_window_without_words_is_one(pair: Pair) -> None:
    applied = pair.say(1)
    assert [len(rows) for rows in applied[:3]] == [0, 0, 0]
    assert pair.state.epoch == 1
    pair.check()


def test_versions_and_writers_are_all_of_u8(pair: Pair) -> None:
    top = (1 << 64) - 1
    assert pair.say(1, [Put("a", 1 << 63, top - 1)], [Link("a", "b", 1.0, top, 1 << 63)]).put_holds.all()
    assert not pair.say(2, [Put("a", (1 << 63) - 1, 1)], [Link("a", "b", 2.0, top, 1)]).link_holds.any()
    assert pair.state.read(["a"], "own").versions.tolist() == [1 << 63]
    pair.check()


def test_epochs_ascend(pair: Pair) -> None:
    pair.say(1, [Put("a", 1)])
    with pytest.raises(ValueError, match="applied already"):
        pair.state.apply(1, window(2, [Put("a", 2)]))
    pair.check()


def test_time_does_not_go_back(pair: Pair) -> None:
    pair.say(25, [Put("a", 1, until_ms=30)])
    pair.state.apply(2, window(15, [Put("b", 1, until_ms=20)]))
    assert pair.state.now_ms == 25
    pair.state.apply(3, window(16))
    assert pair.state.next_expiry_ms == 30


def test_who_is_not_known_knows_nothing(pair: Pair) -> None:
    pair.say(1, [Put("a", 3)], [Link("a", "b", 1.0, 1)])
    for what in ("own", "blended"):
        read = pair.state.read(["x", "a", "b"], what)
        assert not read.vectors[0].any()
        assert read.versions.tolist() == [0, 3, 0]
    assert seen(pair.state, "b").any()
    assert pair.state.links("x") == ([], [])
    assert pair.state.read([], "own").vectors.shape == (0, D)
    assert len(pair.state.names) == 2, "to ask for an agent makes none"


def test_what_is_said_ends_in_time(pair: Pair) -> None:
    pair.say(
        10, [Put("a", 1, until_ms=100), Put("b", 1)], [Link("a", "b", 1.0, 1), Link("b", "a", 1.0, 1, until_ms=50)]
    )
    assert pair.state.next_expiry_ms == 50
    pair.say(49)
    pair.check()
    assert pair.state.links("a")[0] == [("b", 1.0)]
    pair.say(50)
    pair.check()
    assert pair.state.links("a")[0] == []
    assert pair.state.next_expiry_ms == 100
    pair.say(1000)
    pair.check()
    assert pair.state.next_expiry_ms is None
    assert pair.state.links("b") == ([], [])
    assert pair.state.read(["a", "b"], "own").versions.tolist() == [0, 1]
    np.testing.assert_allclose(seen(pair.state, "a"), 0, atol=SPEC.epsilon / SPEC.alpha)


def test_the_end_is_later_than_its_word_and_earlier_than_the_next_version(pair: Pair) -> None:
    pair.say(1, [Put("a", 5, until_ms=10), Put("b", 1)], [Link("a", "b", 1.0, 5, until_ms=10)])
    late = pair.say(10, [Put("a", 5), Put("a", 5, LAST_WRITER - 1)], [Link("a", "b", 1.0, 5, LAST_WRITER - 1)])
    assert not late.put_holds.any()
    assert late.put_versions.tolist() == [5, 5]
    assert not late.link_holds.any()
    pair.check()
    assert pair.say(11, [Put("a", 6, 1)], [Link("a", "b", 1.0, 6, 1)]).put_holds.all()
    pair.check()


def test_a_word_that_holds_sets_the_deadline_and_no_other_does(pair: Pair) -> None:
    pair.say(1, [Put("a", 5, until_ms=100), Put("b", 5, until_ms=200), Put("c", 5, until_ms=300)])
    pair.say(2, [Put("a", 4, until_ms=20), Put("a", 5, until_ms=30)])
    assert pair.state.next_expiry_ms == 100, "an old word, and one that is there already"
    pair.say(3, [Put("a", 6, until_ms=400)])
    assert pair.state.next_expiry_ms == 200, "later"
    pair.say(4, [Put("b", 6)])
    assert pair.state.next_expiry_ms == 300, "never"
    pair.say(5, [Put("c", 6, until_ms=50), Put("c", 5, until_ms=40)])
    assert pair.state.next_expiry_ms == 50, "sooner"
    pair.say(500)
    pair.check()
    assert pair.model.there == {"b"}


def test_a_deadline_goes_with_its_word_though_another_comes_first(pair: Pair) -> None:
    links = [Link("a", "b", 1.0, 1, 1, until_ms=20), Link("b", "a", 1.0, 1, until_ms=10)]
    pair.say(1, [Put("a", 1, 1, until_ms=20), Put("b", 1, until_ms=10)], links)
    pair.say(2, [Put("a", 1, 2)], [Link("a", "b", 2.0, 1, 2)])
    pair.say(20)
    pair.check()
    assert pair.model.there == {"a"}


def test_what_an_agent_can_is_what_its_last_word_says(pair: Pair) -> None:
    pair.say(1, [Put("a", 5, capabilities=0b01, load=0.0), Put("b", 5, capabilities=1 << 63, load=9.0)])
    pair.say(2, [Put("a", 4, capabilities=0b10, load=99.0), Put("a", 5, capabilities=0b10, load=99.0)])
    state, query = pair.state, np.ones((3, D), np.float32)
    routed = state.route(query, np.array([0b01, 0b10, 1 << 63], np.uint64), 2, 1.0, "own", nothing)
    assert routed.names == [["a"], [], ["b"]]
    own = state.read(["a", "b"], "own").vectors
    cosines = own.sum(axis=1) / np.linalg.norm(own, axis=1) / D**0.5
    np.testing.assert_allclose(routed.scores[[0, 2], 0], cosines - [0, 9], atol=1e-5)
    assert np.isinf(routed.scores[[0, 1, 1, 2], [1, 0, 1, 1]]).all()
    nearest = state.route(own, np.zeros(2, np.uint64), 5, 0.0, "blended", nothing)
    assert [sorted(names) for names in nearest.names] == [["a", "b"]] * 2
    assert nearest.scores.shape == (2, 5)


def test_nobody_is_found_in_an_empty_graph(pair: Pair) -> None:
    routed = pair.state.route(np.ones((1, D), np.float32), np.zeros(1, np.uint64), 3, 0.0, "own", nothing)
    assert routed.names == [[]]
    assert pair.state.due(5).names == []
    assert not wants_forget(pair.state, 1 << 60)


def test_links_are_told_the_heaviest_first_and_not_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [Link(f"s{weight}", "hub", float(weight), 1) for weight in (3, 1, 5, 2, 4)]
    pair.say(1, links=[*links, Link("hub", "t", 0.25, 1), Link("gone", "hub", 9.0, 1)])
    pair.say(2, links=[Link("gone", "hub", 0.0, 2)])
    heard, hearers = pair.state.links("hub")
    assert heard == [(f"s{weight}", float(weight)) for weight in (5, 4, 3, 2, 1)]
    assert hearers == [("t", 0.25)]
    monkeypatch.setattr(state_module, "MOST_LINKS", 2)
    assert pair.state.links("hub")[0] == heard[:2]


def test_pagerank_of_networkx(device: Device) -> None:
    networkx = pytest.importorskip("networkx")
    names = ["a", "b", "c", "d"]  # as many as the dimension: each knows its own letter
    links = [Link("a", "b", 1.0, 1), Link("b", "c", 2.0, 1), Link("c", "a", 0.5, 1), Link("d", "a", 1.0, 1)]
    words = window(1, [Put(name, 1) for name in names], links)
    words.puts.vectors[...] = puts_of([Put("a", 1)] * 4).vectors * 0
    words.puts.vectors[range(4), range(4)] = 0x3F80  # 1.0
    state = GraphState(SPEC, device)
    state.apply(1, words)
    walk = networkx.DiGraph()
    walk.add_edges_from((name, name, {"weight": 1.0}) for name in names)
    walk.add_edges_from((link.target, link.source, {"weight": link.weight}) for link in links)
    for name, vector in zip(names, seen(state, *names), strict=True):
        rank = networkx.pagerank(walk, alpha=1 - SPEC.alpha, personalization={name: 1}, tol=1e-12, max_iter=1000)
        assert np.linalg.norm(vector - [rank[each] for each in names]) <= SPEC.epsilon / SPEC.alpha + 1e-6


def history(pair: Pair) -> None:
    """Windows with something of each kind, after which not all that was said is there."""
    draw = np.random.default_rng(7)
    names = [f"agent {number}" for number in range(24)]
    for now in range(1, 30):
        rows = draw.integers(0, 24, (12, 2)).tolist()
        until = [0, 0, now + 4]
        puts = [Put(names[a], now, 1, until[a % 3], a, a / 10) for a, _ in rows[:4]]
        links = [Link(names[a], names[b], float(b % 3), now, 2, until[b % 3]) for a, b in rows if a != b]
        pair.say(now, puts, links, forget=now % 10 == 0)
        pair.check()


def test_the_same_windows_give_the_same_state_whoever_watches(pair: Pair, device: Device) -> None:
    history(pair)
    again = GraphState(SPEC, device)
    again.watch(["agent 3", "x", "agent 20"], np.full(3, 0.1, np.float32), np.zeros(3, np.int64))
    for epoch, words in pair.log:
        again.apply(epoch, decode(encode(words)))
        again.due(epoch)
    check(again, pair.model)
    used = pair.state.graph.slots.used
    assert again.graph.slots.used == used
    np.testing.assert_array_equal(again.graph.slots.agents, pair.state.graph.slots.agents)
    one, other = (state.graph.table.blended[:used] for state in (again, pair.state))
    if device.is_cuda:  # where many add to one row in any order
        torch.testing.assert_close(one, other, atol=2 * SPEC.epsilon / SPEC.alpha, rtol=0)
    else:
        assert torch.equal(one, other)


def test_what_was_said_before_changes_nothing(pair: Pair) -> None:
    for now in range(1, 9):
        puts = [Put(f"agent {number}", now) for number in range(now, 9)]
        pair.say(now, puts, [Link(put.agent, "hub", float(now), now) for put in puts])
    kept = [column.clone() for column in (pair.state.graph.table.own, pair.state.graph.table.blended)]
    log = list(pair.log)
    for _, words in log:
        epoch = pair.state.epoch + 1
        settled = pair.state.apply(epoch, Words(8, words.puts, words.links)).settled
        assert settled[:3] == (0, 0, 0)
    assert torch.equal(pair.state.graph.table.own, kept[0])
    assert torch.equal(pair.state.graph.table.blended, kept[1])
    pair.check()


def test_who_moved_is_told_by_name(pair: Pair) -> None:
    state = pair.state
    state.watch(["b", "later", "still"], np.array([0.05, 0.05, 0.05], np.float32), np.array([0, 100, 0]))
    pair.say(1, [Put("a", 7)], [Link("a", "b", 1.0, 1)])
    due = state.due(1)
    assert due.names == ["b"]
    assert due.versions.tolist() == [0]
    np.testing.assert_allclose(due.vectors, seen(state, "b"), atol=0.02)
    np.testing.assert_allclose(due.moved, np.linalg.norm(seen(state, "b"), axis=1), rtol=1e-4)
    assert state.due(2).names == []
    pair.say(2, [Put("later", 9), Put("still", 1)])
    assert sorted(state.due(3).names) == ["later", "still"], "who is named after it is watched"
    pair.say(3, [Put("later", 10), Put("still", 2)])
    state.watch(["still"], np.array([np.inf], np.float32), np.array([0]))
    assert state.due(50).names == [], "too soon, and no more"
    told = state.due(103)
    assert told.names == ["later"]
    assert told.versions.tolist() == [10]


def test_who_is_told_what_holds_is_told_of_the_next_move_from_there(pair: Pair) -> None:
    state = pair.state
    state.watch(["b"], np.array([10.0], np.float32), np.array([0]))
    pair.say(1, [Put("a", 7)], [Link("a", "b", 1.0, 1)])
    assert state.due(1).names == [], "it has not moved so far from nothing"
    told = state.tell(["b", "nobody"])
    np.testing.assert_allclose(told.vectors[0], seen(state, "b")[0])
    state.watch(["b"], np.array([0.05], np.float32), np.array([0]))
    assert state.due(2).names == []
    pair.say(2, [Put("a", 8)])
    due = state.due(3)
    assert due.names == ["b"]
    np.testing.assert_allclose(due.moved, np.linalg.norm(seen(state, "b") - told.vectors[:1], axis=1), atol=0.02)


def test_an_agent_is_forgotten_though_it_is_watched_and_watched_when_it_comes_again(pair: Pair) -> None:
    state = pair.state
    pair.say(1, [Put("a", 1, until_ms=5), Put("b", 1)])
    state.watch(["a", "b"], np.array([0.01, 0.01], np.float32), np.array([0, 0]))
    assert sorted(state.due(1).names) == ["a", "b"]
    pair.say(9, forget=True)
    assert "a" not in state.names
    pair.check()
    assert state.due(9).names == []
    pair.say(10, [Put("c", 1), Put("b", 2)])
    assert state.due(10).names == ["b"], "not who has the slot now"
    pair.say(11, [Put("a", 2)])
    assert state.due(11).names == ["a"]


def test_a_deadline_is_not_of_who_gets_the_number_of_another(pair: Pair) -> None:
    # `keep` ends first, so that nobody looks at those behind it.
    kept = [Put("keep", 1, until_ms=900)], [Link("keep", "kept", 1.0, 1, until_ms=900)]
    pair.say(1, [Put("a", 1, until_ms=1000), *kept[0]], [Link("a", "b", 1.0, 1, until_ms=1000), *kept[1]])
    pair.say(2, [Put("a", 2, until_ms=10)], [Link("a", "b", 0.0, 2)])
    numbers = pair.state.names.find(["a", "b"])
    pair.say(10, forget=True)
    pair.say(11, [Put("x", 1)], [Link("x", "y", 1.0, 1)])
    assert pair.state.names.find(["x", "y"]).tolist() == numbers.tolist()
    pair.say(1000)
    pair.check()
    assert pair.model.there == {"x"}
    assert pair.state.links("y")[0] == [("x", 1.0)]


def test_an_edge_that_ended_with_its_agent_holds_no_more(pair: Pair) -> None:
    pair.say(1, [Put("a", 1, until_ms=5), Put("b", 1)], [Link("a", "b", 1.0, 3, until_ms=20)])
    applied = pair.say(5, [Put("a", 2)], [Link("a", "b", 1.0, 3)])
    assert applied.link_holds.tolist() == [False]
    pair.check()
    pair.say(6, forget=True)
    pair.check()
    assert pair.say(7, links=[Link("a", "b", 1.0, 3, until_ms=90)]).link_holds.all(), "once forgotten, it counts again"
    assert pair.state.next_expiry_ms == 90
    pair.say(20)
    pair.check()


def test_it_is_forgotten_when_much_has_ended_and_long_ago(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    monkeypatch.setattr(state_module, "LEAST_DEAD", 3)
    state = pair.state
    pair.say(1, [Put(f"agent {number}", 1, until_ms=100 if number < 3 else 0) for number in range(10)])
    assert not wants_forget(state, 10 * QUIET_MS), "nothing has ended"
    pair.say(100)
    assert not wants_forget(state, 99 + QUIET_MS), "not long ago"
    assert wants_forget(state, 100 + QUIET_MS)
    monkeypatch.setattr(state_module, "LEAST_DEAD", 4)
    assert not wants_forget(state, 100 + QUIET_MS), "too few"
    monkeypatch.setattr(state_module, "LEAST_DEAD", 3)
    pair.say(101, forget=True)
    assert state.ended_ms is None
    assert not wants_forget(state, 101 + QUIET_MS), "forgotten"

    names = [f"agent {number}" for number in range(10)]
    pair.say(102, links=[Link(a, b, 1.0, 1) for a, b in itertools.pairwise(names)])
    pair.say(103, links=[Link(a, b, 0.0, 2) for a, b in itertools.pairwise(names[:5])])
    assert not wants_forget(state, 103 + QUIET_MS), "fewer than half"
    pair.say(104, links=[Link(a, b, 0.0, 2) for a, b in itertools.pairwise(names[4:7])])
    assert not wants_forget(state, 104 + QUIET_MS - 1)
    assert wants_forget(state, 104 + QUIET_MS)
    pair.say(105, links=[Link(a, b, 0.0, 2) for a, b in itertools.pairwise(names[6:9])])
    assert wants_forget(state, 105), "nearly all"


def test_figures(pair: Pair) -> None:
    pair.say(1, [Put("a", 1), Put("b", 1, until_ms=2)], [Link("a", "c", 1.0, 1), Link("a", "d", 0.0, 1)])
    pair.say(2)
    figures = pair.state.figures()
    told = {name: figures[name] for name in ("epoch", "agents", "slots", "removed", "edges", "tombstones", "windows")}
    assert told == {"epoch": 2, "agents": 1, "slots": 4, "removed": 1, "edges": 1, "tombstones": 1, "windows": 2}
    assert figures["rows"] == 4
    assert figures["deadlines"] == 0
    assert figures["residual"] == pair.state.residual <= SPEC.epsilon
    assert figures["bytes"] > 256 * D * 12


def test_a_graph_without_ends_keeps_none(pair: Pair) -> None:
    for now in range(1, 5):
        pair.say(now, [Put("a", now)], [Link("a", "b", 1.0, now)])
    assert pair.state.figures()["deadlines"] == 0
    assert pair.state.next_expiry_ms is None

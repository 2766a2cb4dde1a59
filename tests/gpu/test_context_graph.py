"""The state of a context graph against dicts, and the bound on what is passed on against a dense float64 solve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from torch import Tensor  # noqa: E402 - only where torch is

from aikoryu.bus.columns import Array  # noqa: E402
from aikoryu.gpu.context.graph import ContextGraph  # noqa: E402
from aikoryu.gpu.context.notify import due  # noqa: E402
from aikoryu.gpu.context.propagate import settle  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

D = 5
ROUNDING = 2e-5  # of vectors of length 3 or so, in float32


class Model:
    """The same words kept in dicts, and what they amount to in float64."""

    def __init__(self) -> None:
        self.puts: dict[int, tuple[int, int, Array | None]] = {}
        self.links: dict[tuple[int, int], tuple[int, int, float]] = {}

    def put(self, agent: int, vector: Array | None, version: int, writer: int) -> None:
        """None removes it."""
        if (version, writer) > self.puts.get(agent, (0, 0))[:2]:
            self.puts[agent] = (version, writer, vector)
            if vector is None:
                for edge, (at, by, _) in self.links.items():
                    if agent in edge:
                        self.links[edge] = (at, by, 0.0)

    def link(self, source: int, target: int, weight: float, version: int, writer: int) -> None:
        if (version, writer) > self.links.get((source, target), (0, 0))[:2]:
            self.links[source, target] = (version, writer, weight)

    def forget(self) -> None:
        self.links = {edge: link for edge, link in self.links.items() if link[2]}
        linked = {end for edge in self.links for end in edge}
        self.puts = {agent: put for agent, put in self.puts.items() if put[2] is not None or agent in linked}

    def blended(self, agents: list[int], alpha: float) -> Array:
        """Z* of these, who are all there are."""
        own = np.zeros((len(agents), D))
        weights = np.eye(len(agents))
        for agent, (_, _, vector) in self.puts.items():
            if vector is not None:
                own[agents.index(agent)] = torch.tensor(vector).bfloat16().double().numpy()
        for (source, target), (_, _, weight) in self.links.items():
            weights[agents.index(target), agents.index(source)] += np.float32(weight)
        weights /= weights.sum(axis=1, keepdims=True)
        found: Array = np.linalg.solve(np.eye(len(agents)) - (1 - alpha) * weights, alpha * own)
        return found


def stamp(values: Any) -> Array:
    return np.array(values, np.uint64)


class Rig:
    """A graph on a device that takes lists, and a model beside it."""

    def __init__(self, device: Device, alpha: float = 0.3) -> None:
        self.place = device.place
        self.graph = ContextGraph(D, alpha, device.place)
        self.model = Model()

    def put(self, rows: list[tuple[int, Array, int, int]]) -> list[bool]:
        agents, vectors, versions, writers = zip(*rows, strict=True)
        for agent, vector, version, writer in rows:
            self.model.put(agent, vector, version, writer)
        given = torch.tensor(np.array(vectors), dtype=torch.float32, device=self.place)
        found: list[bool] = self.graph.put(np.array(agents), given, stamp(versions), stamp(writers)).tolist()
        return found

    def remove(self, rows: list[tuple[int, int, int]]) -> list[bool]:
        for agent, version, writer in sorted(rows, key=lambda row: row[1:]):
            self.model.put(agent, None, version, writer)
        agents, versions, writers = zip(*rows, strict=True)
        found: list[bool] = self.graph.remove(np.array(agents), stamp(versions), stamp(writers)).tolist()
        return found

    def link(self, rows: list[tuple[int, int, float, int, int]]) -> list[bool]:
        for row in rows:
            self.model.link(*row)
        source, target, weight, version, writer = map(list, zip(*rows, strict=True))
        weights = np.array(weight, np.float32)
        found = self.graph.link(np.array(source), np.array(target), weights, stamp(version), stamp(writer))
        told: list[bool] = found.tolist()
        return told

    def state(self) -> list[Tensor]:
        """All of what the graph answers from."""
        table = self.graph.table
        return [column.clone() for column in (table.own, table.blended, table.residual, table.is_there)]

    def check(self, epsilon: float | None) -> None:
        """Compare with the model: R is that of Z, and after settling Z is as near as the bound says."""
        graph, table, used = self.graph, self.graph.table, self.graph.slots.used
        agents = graph.slots.agents.tolist()
        taken = [slot for slot, found in enumerate(graph.slots.find(graph.slots.agents).tolist()) if slot == found]
        named = [agents[slot] for slot in taken]
        assert set(self.model.puts) | {end for edge in self.model.links for end in edge} <= set(named)
        heard, hearers = graph.edges.heard, graph.edges.hearers
        owner, position = heard.entries(torch.arange(used, device=self.place))
        other, weight = heard.other[position].long(), heard.columns["weight"][position]
        assert len(set(zip(owner.tolist(), other.tolist(), strict=True))) == len(owner) == int(hearers.count.sum())
        mirrored = hearers.find(other, owner)
        assert bool((mirrored >= 0).all())
        assert torch.equal(hearers.columns["weight"][mirrored], weight)
        weights = np.eye(used)
        np.add.at(weights, (owner.cpu().numpy(), other.cpu().numpy()), weight.cpu().numpy())
        weights /= weights.sum(axis=1, keepdims=True)
        own, blended, residual = (
            column[:used].double().cpu().numpy() for column in (table.own, table.blended, table.residual)
        )
        invariant = graph.alpha * own - blended + (1 - graph.alpha) * weights @ blended
        np.testing.assert_allclose(residual, invariant, atol=ROUNDING)
        np.testing.assert_allclose(table.norm[:used].cpu(), np.linalg.norm(residual, axis=1), atol=1e-6)
        if epsilon is not None:
            assert float(table.norm.max()) <= epsilon
            error = np.linalg.norm(blended[taken] - self.model.blended(named, graph.alpha), axis=1)
            assert error.max(initial=0) <= epsilon / graph.alpha + ROUNDING


@pytest.fixture
def rig(device: Device) -> Rig:
    return Rig(device)


def vector(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(D)


agents = st.integers(0, 11)
stamps = (st.integers(1, 6), st.integers(1, 3))
words: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(agents, st.integers(0, 99), *stamps), min_size=1, max_size=8)),
    st.tuples(
        st.just("link"),
        st.lists(st.tuples(agents, agents, st.sampled_from([0.0, 0.5, 1.0, 7.25]), *stamps), min_size=1, max_size=24),
    ),
    st.tuples(st.just("remove"), st.lists(st.tuples(agents, *stamps), min_size=1, max_size=3)),
    st.tuples(st.just("compact"), st.just([])),
    st.tuples(st.just("refresh"), st.just([])),
)
forgetting: st.SearchStrategy[Any] = st.tuples(st.just("forget"), st.just([]))


def say(rig: Rig, word: str, rows: list[Any]) -> None:
    if word == "put":
        # Of equal stamps the first counts: what a writer says in a version is one thing.
        rig.put(
            [
                (agent, vector(agent + 100 * version + 1000 * writer), version, writer)
                for agent, _, version, writer in rows
            ]
        )
    elif word == "link":
        said: dict[Any, Any] = {}
        rig.link([said.setdefault((a, b, *stamp), (a, b, weight, *stamp)) for a, b, weight, *stamp in rows])
    elif word == "remove":
        rig.remove(rows)
    elif word == "compact":
        rig.graph.edges.heard.compact()
        rig.graph.edges.hearers.compact()
    elif word == "forget":
        rig.model.forget()
        rig.graph.forget()
    else:
        rig.graph.refresh()


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(st.lists(words | forgetting, min_size=1, max_size=3), min_size=1, max_size=8),
    epsilon=st.sampled_from([1e-1, 1e-2, 1e-4]),
    alpha=st.sampled_from([0.1, 0.3, 0.9]),
    push_cost=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_the_bound_and_the_invariant_hold_after_every_window(
    device: Device, history: list[Any], epsilon: float, alpha: float, push_cost: float
) -> None:
    rig = Rig(device, alpha)
    for window in history:
        for word, rows in window:
            say(rig, word, rows)
            rig.check(None)
        settle(rig.graph, epsilon, push_cost)
        rig.check(epsilon)


@settings(max_examples=30, deadline=None)
@given(history=st.lists(words, min_size=1, max_size=8), prefix=st.integers(1, 8))
def test_a_prefix_that_is_said_again_changes_nothing(device: Device, history: list[Any], prefix: int) -> None:
    rig = Rig(device)
    for word, rows in history:
        say(rig, word, rows)
    settle(rig.graph, 1e-3)
    before = rig.state()
    for word, rows in history[:prefix]:
        if word in ("put", "link", "remove"):
            say(rig, word, rows)
    assert settle(rig.graph, 1e-3)[:2] == (0, 0)
    own, blended, residual, is_there = rig.state()
    assert torch.equal(own, before[0])
    assert torch.equal(blended, before[1])
    # What is said again of an edge is not looked at; what is said of a removed agent finds no edges.
    torch.testing.assert_close(residual, before[2], atol=1e-6, rtol=0)
    assert torch.equal(is_there, before[3])


@settings(max_examples=30, deadline=None)
@given(rows=st.permutations([(1, version, writer) for version in (1, 2, 1 << 62) for writer in (1, 5)]))
def test_the_last_writer_wins_whatever_comes_first(device: Device, rows: list[tuple[int, int, int]]) -> None:
    rig, together = Rig(device), Rig(device)
    said = [(agent, vector(version % 97 + writer), version, writer) for agent, version, writer in rows]
    for row in said:
        rig.put([row])
    held = together.put(said)
    last = vector((1 << 62) % 97 + 5)
    assert held == [row[2:] == (1 << 62, 5) for row in said]
    for graph in (rig.graph, together.graph):
        assert torch.equal(graph.table.own[0].cpu(), torch.tensor(last).bfloat16())


def test_versions_are_unsigned(rig: Rig) -> None:
    assert rig.put([(1, vector(1), (1 << 63) - 1, 1)]) == [True]
    assert rig.put([(1, vector(2), 1 << 63, 1)]) == [True]
    assert rig.put([(1, vector(3), 5, (1 << 64) - 1)]) == [False]
    assert rig.put([(1, vector(4), 1 << 63, (1 << 64) - 1)]) == [True]


def test_an_edge_that_was_ended_does_not_come_back(rig: Rig) -> None:
    assert rig.link([(1, 2, 1.0, 1, 1)]) == [True]
    assert rig.link([(1, 2, 0.0, 2, 1), (1, 2, 3.0, 1, 9)]) == [True, False]
    assert rig.link([(1, 2, 1.0, 1, 1)]) == [False]
    assert len(rig.graph.edges) == 1
    rig.graph.forget()
    assert len(rig.graph.edges) == 0
    assert len(rig.graph.slots) == 0


def test_slots_of_the_forgotten_are_given_to_others(rig: Rig) -> None:
    rig.put([(agent, vector(agent), 1, 1) for agent in range(6)])
    rig.link([(0, 1, 1.0, 1, 1), (1, 2, 2.0, 1, 1), (2, 0, 1.0, 1, 1)])
    settle(rig.graph, 1e-3)
    rig.remove([(1, 2, 1), (4, 2, 1)])
    settle(rig.graph, 1e-3)
    rig.check(1e-3)
    rig.graph.forget()
    assert len(rig.graph.slots) == 4
    rig.model.forget()
    assert rig.model.links.keys() == {(2, 0)}
    rig.check(1e-3)
    rig.put([(77, vector(77), 1, 1), (78, vector(78), 1, 1), (79, vector(79), 1, 1)])
    assert rig.graph.slots.used == 7
    assert sorted(rig.graph.slots.find(np.array([77, 78, 79])).tolist()) == [1, 4, 6]
    settle(rig.graph, 1e-3)
    rig.check(1e-3)


def test_a_row_grows_past_every_room(rig: Rig) -> None:
    draw = np.random.default_rng(1)
    for version in range(1, 40):
        ends = draw.integers(0, 600, (40, 2)).tolist()
        rig.link(
            list(
                {(a, b if version % 2 else 3): (a, b if version % 2 else 3, 1.0, version, 1) for a, b in ends}.values()
            )
        )
        rig.put([(ends[0][0], vector(version), version, 1)])
    settle(rig.graph, 1e-3)
    rig.check(1e-3)
    assert int(rig.graph.edges.heard.count.max()) > 300


@pytest.mark.parametrize("push_cost", [0.0, 1e9])
def test_those_who_moved_are_told_no_more_often_than_they_want(rig: Rig, push_cost: float) -> None:
    rig.link([(1, 2, 1.0, 1, 1)])
    rig.graph.watch(np.array([2, 3]), np.array([0.1, 0.1], np.float32), np.array([100, 0]))

    def window(version: int, length: float, now_ms: int) -> list[int]:
        rig.put([(1, np.full(D, length), version, 1)])
        settle(rig.graph, 1e-4, push_cost)
        told = due(rig.graph, now_ms)
        rows = rig.graph.table.blended[torch.from_numpy(told.slots).to(rig.place)]
        assert torch.equal(told.vectors, rows.bfloat16())
        assert (told.moved > 0.1).all()
        agents: list[int] = rig.graph.slots.agents[told.slots].tolist()
        return agents

    assert window(1, 0.01, 0) == [], "too little"
    assert window(2, 1.0, 1) == [2]
    assert window(3, 1.01, 2) == []
    assert window(4, 2.0, 100) == [], "too soon"
    assert window(5, 2.0, 101) == [2], "what was held back is told"
    assert window(6, 2.0, 300) == []
    rig.graph.watch(np.array([2]), np.array([np.inf], np.float32), np.array([0]))
    assert window(7, 9.0, 400) == []

"""What reaches agents, against networkx and a dense float64 solve, and what must hold of any mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Array  # noqa: E402 - only where torch is
from aikoryu.gpu.context.graph import ROWS, ContextGraph  # noqa: E402
from aikoryu.gpu.context.propagate import Settled, settle  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

ALWAYS_PUSH, ALWAYS_FULL, BY_COST = 0.0, 1e9, 2.0


@dataclass
class Case:
    """Numbered agents, who is heard by whom, and what they know: (n,), (e,) three times, (n, d)."""

    source: Array
    target: Array
    weight: Array
    own: Array

    @classmethod
    def random(cls, seed: int, n: int = 200, d: int = 7, degree: int = 5) -> Case:
        """A graph with a hub that most hear, and agents that hear nobody; numbers that bf16 has."""
        draw = np.random.default_rng(seed)
        pairs = np.unique(draw.integers(0, n, (n * degree, 2)) // (1, 2), axis=0)
        pairs = np.unique(np.concatenate([pairs, [(0, target) for target in range(1, n, 2)]]), axis=0)
        own = torch.tensor(draw.standard_normal((n, d))).bfloat16().double().numpy()
        return cls(pairs[:, 0], pairs[:, 1], draw.uniform(0.1, 3, len(pairs)).astype("f4"), own)

    def graph(self, device: Device, alpha: float) -> ContextGraph:
        """The case on a device, not settled."""
        place = device.place
        made = ContextGraph(self.own.shape[1], alpha, place)
        ones = np.ones(max(len(self.own), len(self.source)), np.uint64)
        numbers = np.arange(len(self.own))
        vectors = torch.tensor(self.own, device=place).float()
        assert made.put(numbers, vectors, ones[: len(numbers)], ones[: len(numbers)]).all()
        edges = len(self.source)
        assert made.link(self.source, self.target, self.weight, ones[:edges], ones[:edges]).all()
        return made

    def blended(self, alpha: float) -> Array:
        """(n, d) float64, Z*."""
        weights = np.eye(len(self.own))
        np.add.at(weights, (self.target, self.source), self.weight)
        weights /= weights.sum(axis=1, keepdims=True)
        found: Array = np.linalg.solve(np.eye(len(weights)) - (1 - alpha) * weights, alpha * self.own)
        return found


def blended(graph: ContextGraph) -> Array:
    found: Array = graph.table.blended[: graph.slots.used].cpu().double().numpy()
    return found


@pytest.mark.parametrize("push_cost", [ALWAYS_PUSH, BY_COST, ALWAYS_FULL])
@pytest.mark.parametrize(("alpha", "epsilon"), [(0.1, 1e-2), (0.3, 1e-3), (0.5, 1e-5), (1.0, 1e-3)])
def test_as_near_as_promised(
    device: Device, monkeypatch: pytest.MonkeyPatch, alpha: float, epsilon: float, push_cost: float
) -> None:
    monkeypatch.setitem(ROWS, device.place.type, 16)  # several blocks
    case = Case.random(1)
    graph = case.graph(device, alpha)
    done = settle(graph, epsilon, push_cost)
    assert done.residual <= epsilon
    assert (done.fulls == 0) if push_cost == ALWAYS_PUSH else (done.fulls > 0)
    error = np.linalg.norm(blended(graph) - case.blended(alpha), axis=1).max()
    assert error <= epsilon / alpha + 1e-5
    graph.refresh()
    assert float(graph.table.norm.max()) <= epsilon + 2e-6, "what was added up is what Z leaves"


def test_pagerank_of_networkx(device: Device) -> None:
    networkx = pytest.importorskip("networkx")
    case = Case.random(2, n=60)
    case.own = np.eye(60)
    graph = case.graph(device, 0.3)
    settle(graph, 1e-6)
    walk = networkx.DiGraph()
    walk.add_nodes_from(range(60))
    # A step of the walk goes from who hears to who is heard.
    for source, target, weight in zip(case.source.tolist(), case.target.tolist(), case.weight.tolist(), strict=True):
        walk.add_edge(target, source, weight=weight)
    for agent in range(60):
        walk.add_edge(agent, agent, weight=1 + walk.get_edge_data(agent, agent, {"weight": 0})["weight"])
    for agent in range(0, 60, 7):
        rank = networkx.pagerank(walk, alpha=0.7, personalization={agent: 1}, tol=1e-12, max_iter=1000)
        np.testing.assert_allclose(blended(graph)[agent], [rank[node] for node in range(60)], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), push_cost=st.sampled_from([ALWAYS_PUSH, BY_COST, ALWAYS_FULL]))
def test_a_constant_stays_and_nothing_leaves_the_hull(device: Device, seed: int, push_cost: float) -> None:
    case = Case.random(seed, n=50)
    case.own[:, 0] = 1.5
    epsilon = 1e-4
    graph = case.graph(device, 0.3)
    settle(graph, epsilon, push_cost)
    found, slack = blended(graph), epsilon / 0.3 + 1e-5
    assert np.abs(found[:, 0] - 1.5).max() <= slack
    assert (found <= case.own.max(axis=0) + slack).all()
    assert (found >= case.own.min(axis=0) - slack).all()


def test_the_same_calls_give_the_same_bits(device: Device) -> None:
    first, second = (Case.random(3).graph(device, 0.3) for _ in range(2))
    for graph in (first, second):
        settle(graph, 1e-3, 1.0)
    assert torch.equal(first.table.blended, second.table.blended)
    assert torch.equal(first.table.residual, second.table.residual)


def test_a_small_change_is_pushed_and_a_large_one_is_not(device: Device) -> None:
    graph = Case.random(4, n=2000, degree=3).graph(device, 0.5)
    assert settle(graph, 1e-2).fulls > 0
    stamp = np.array([2], np.uint64)
    assert graph.put(np.array([1234]), torch.full((1, 7), 1.0, device=device.place), stamp, stamp).all()
    done = settle(graph, 1e-2)
    assert done.fulls == 0
    assert 0 < done.edges < len(graph.edges)
    assert settle(graph, 1e-2) == Settled(0, 0, 0, done.residual, done.push_cost)


def test_less_than_float32_allows_ends_all_the_same(device: Device) -> None:
    graph = Case.random(5).graph(device, 0.3)
    done = settle(graph, 1e-12)
    assert 1e-12 < done.residual < 1e-5


def test_a_row_is_no_longer_than_epsilon_though_float32_has_no_such_number(device: Device) -> None:
    graph = Case.random(6, n=2, d=1, degree=1).graph(device, 0.3)
    settle(graph, 1e-3)
    nearest = float(np.float32(1e-3))
    assert nearest > 1e-3
    graph.table.residual[0] = nearest
    graph.table.norm[0] = nearest
    done = settle(graph, 1e-3, ALWAYS_PUSH)
    assert done.pushes == 1
    assert done.residual <= 1e-3


def test_a_graph_without_agents_is_settled(device: Device) -> None:
    assert settle(ContextGraph(3, 0.3, device.place), 1e-3)[:4] == (0, 0, 0, 0.0)

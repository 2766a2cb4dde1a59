"""Routes against all cosines in float64."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.gpu import shortlist  # noqa: E402 - only where torch is
from aikoryu.gpu.context import route as routing  # noqa: E402
from aikoryu.gpu.context.graph import ContextGraph  # noqa: E402
from aikoryu.gpu.context.propagate import settle  # noqa: E402
from aikoryu.gpu.context.route import Routes, prepare, route  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::triton")  # what its own code is warned of is not ours to mend

D = 16


def nothing() -> None:
    """A checkpoint at which everybody is still there."""


def cosines(queries: Any, vectors: Any) -> Any:
    """(b, n) float64; of zeros 0."""
    units = [torch.nn.functional.normalize(each.double(), dim=1, eps=1e-30) for each in (queries, vectors)]
    return units[0] @ units[1].T


def drawn(draw: np.random.Generator, count: int, place: Any) -> Any:
    """(count, D) float32 of very different lengths, every seventh 0."""
    found = draw.standard_normal((count, D)) * 2.0 ** draw.integers(-20, 20, (count, 1))
    found[::7] = 0
    return torch.tensor(found, device=place).float()


def named_by(graph: ContextGraph, found: Routes) -> list[list[int]]:
    agents: list[list[int]] = graph.slots.agents[found.slots.cpu().numpy()].tolist()
    return agents


@pytest.mark.parametrize("what", ["own", "blended"])
@pytest.mark.parametrize("load_weight", [0.0, 0.5])
def test_the_best_of_those_who_can(
    device: Device, monkeypatch: pytest.MonkeyPatch, what: Literal["own", "blended"], load_weight: float
) -> None:
    monkeypatch.setattr(routing, "TILE_BYTES", 128 * 4 * 4)  # several tiles
    monkeypatch.setattr(shortlist, "LEAST_TASKS", 4)
    draw, n, place = np.random.default_rng(1), 900, device.place
    graph = ContextGraph(D, 0.3, place)
    agents, ones, weights = draw.permutation(10_000)[:n], np.ones(n, np.uint64), np.ones(n, np.float32)
    capabilities, load = draw.integers(0, 8, n), draw.uniform(0, 1, n).astype(np.float32)
    capabilities[::2] |= -(1 << 63)
    graph.put(agents, drawn(draw, n, place), ones, ones, (capabilities.view(np.uint64), load))
    graph.link(agents, np.roll(agents, 1), weights, ones, ones)
    # Those that said nothing themselves, and those that were removed, are no candidates.
    graph.link(agents[:50], agents[:50] + 10_000, weights[:50], ones[:50], ones[:50])
    graph.remove(agents[:100], 2 * ones[:100], ones[:100])
    settle(graph, 1e-3)

    queries = drawn(draw, 9, place)
    needs = np.array([0, 1, 2, 3, 7, 0, 8, -(1 << 63), 4])
    found = route(graph, queries, torch.tensor(needs, device=place), 5, load_weight, what, nothing)

    table, slots = graph.table, torch.tensor(graph.slots.find(agents), device=place)
    vectors = (table.own if what == "own" else table.blended)[slots]
    scores = cosines(queries, vectors).cpu().numpy() - load_weight * load
    scores[(capabilities & needs[:, None]) != needs[:, None]] = -np.inf
    scores[:, :100] = -np.inf
    best = np.sort(scores, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(found.scores.cpu(), best, atol=1e-6)
    assert np.isinf(best[6]).all(), "nobody can do that"
    numbers = agents.tolist()
    for row, named in enumerate(named_by(graph, found)):
        if row != 6:
            there = [scores[row, numbers.index(agent)] for agent in named]
            np.testing.assert_allclose(there, best[row], atol=1e-6)
            assert len(set(named)) == 5


@pytest.mark.parametrize("what", ["own", "blended"])
@pytest.mark.parametrize("b", [1, 20])
def test_many_agents_are_searched_exactly(device: Device, what: Literal["own", "blended"], b: int) -> None:
    draw, n, place = np.random.default_rng(3), shortlist.LEAST_AGENTS + 77, device.place
    graph = ContextGraph(D, 0.3, place)
    agents, ones = np.arange(n), np.ones(n, np.uint64)
    graph.put(agents, drawn(draw, n, place), ones, ones)
    graph.remove(agents[::2], 2 * ones[::2], ones[::2])
    settle(graph, 1e-3)
    prepare(graph)
    queries = drawn(draw, b + 1, place)[1:]
    found = route(graph, queries, torch.zeros(b, dtype=torch.int64, device=place), 16, 0.0, what, nothing)
    vectors = (graph.table.own if what == "own" else graph.table.blended)[:n]
    scores = cosines(queries, vectors)
    scores[:, ::2] = -torch.inf
    best = scores.topk(16, 1)
    torch.testing.assert_close(found.scores.double(), best.values, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.gather(1, found.slots), best.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["own", "blended"])
def test_only_those_who_said_something_are_candidates(device: Device, what: Literal["own", "blended"]) -> None:
    place, graph = device.place, ContextGraph(D, 0.3, device.place)
    one, needs = np.ones(1, np.uint64), torch.zeros(1, dtype=torch.int64, device=place)
    five, six, seven = np.array([[5], [6], [7]])
    for agent in (five, six):
        graph.put(agent, torch.full((1, D), -1.0, device=place), one, one)
    graph.link(five, seven, np.ones(1, np.float32), one, one)
    graph.remove(six, 2 * one, one)
    settle(graph, 1e-3)
    found = route(graph, torch.ones((1, D), device=place), needs, 3, 0.0, what, nothing)
    assert named_by(graph, found)[0][0] == 5
    assert torch.isfinite(found.scores).tolist() == [[True, False, False]]


def test_who_says_nothing_is_found_by_what_reaches_it(device: Device) -> None:
    place, graph = device.place, ContextGraph(D, 0.3, device.place)
    silent, talker, other = np.arange(3)[:, None]
    one = np.ones(1, np.uint64)
    vectors = torch.eye(D, device=place)
    for agent, vector in (
        (silent, 0 * vectors[:1]),
        (talker, vectors[:1]),
        (other, 5 * vectors[:1] + 9 * vectors[1:2]),
    ):
        graph.put(agent, vector, one, one)
    graph.link(talker, silent, np.ones(1, np.float32), one, one)
    settle(graph, 1e-6)
    needs = torch.zeros(2, dtype=torch.int64, device=place)
    queries = torch.stack([3 * vectors[0], 0 * vectors[0]])
    found = route(graph, queries, needs, 3, 0.0, "blended", nothing)
    assert named_by(graph, found) == [[0, 1, 2], [0, 1, 2]], "of equals the first"
    expected = torch.tensor([[1, 1, 5 / 106**0.5], [0, 0, 0]], device=place)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-2)  # own contexts are bf16
    assert found.scores[1].tolist() == [0, 0, 0]
    assert named_by(graph, route(graph, queries, needs, 3, 0.0, "own", nothing))[0] == [1, 2, 0]


def test_a_graph_without_agents_knows_nobody(device: Device) -> None:
    graph = ContextGraph(D, 0.3, device.place)
    needs = torch.zeros(2, dtype=torch.int64, device=device.place)
    found = route(graph, torch.ones((2, D), device=device.place), needs, 3, 0.0, "own", nothing)
    assert found.slots.shape == (2, 3)
    assert bool((found.scores == -torch.inf).all())


def test_nothing_asked_is_answered_with_nothing(device: Device) -> None:
    place, graph = device.place, ContextGraph(D, 0.3, device.place)
    one, needs = np.ones(1, np.uint64), torch.zeros(0, dtype=torch.int64, device=place)
    graph.put(np.array([1]), torch.ones((1, D), device=place), one, one)
    found = route(graph, torch.ones((0, D), device=place), needs, 3, 0.0, "blended", nothing)
    assert found.slots.shape == found.scores.shape == (0, 3)

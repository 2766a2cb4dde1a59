"""Searches by bounds of groups against all scores in float64; without a GPU, with kernels written in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Array  # noqa: E402 - only where torch is
from aikoryu.gpu import group_search, shortlist  # noqa: E402
from aikoryu.gpu.batch import Abandoned  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.group_search import GROUP, GroupSearch, NoKernels  # noqa: E402
from aikoryu.gpu.shortlist import Agents, Tasks  # noqa: E402

# What Triton's own code is warned of is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:::triton")

F4, F2, BF16 = torch.float32, torch.float16, torch.bfloat16


def nothing() -> None:
    """A checkpoint at which everybody is still there."""


def scores_of(search: GroupSearch, queries: Any, needs: Any) -> Any:
    """(m, n) of the queries' precision, what the kernels compute."""
    vectors = search.vectors.to(queries.dtype)
    sound = torch.linalg.vector_norm(vectors, dim=1) <= search.longest
    found = queries @ torch.where(sound[:, None], vectors, 0).T
    if search.shortest:
        found = found / torch.linalg.vector_norm(vectors, dim=1).clamp(min=search.shortest)
    found = found - search.burden
    able = sound & search.room & (search.burden.abs() <= search.largest_load)
    able = able & ((search.capabilities & needs[:, None]) == needs[:, None])
    return torch.where(able, found, -torch.inf)


def by_group(scores: Any) -> Any:
    """(m, g, GROUP), the last one filled up."""
    more = -len(scores[0]) % GROUP
    return torch.cat([scores, torch.full_like(scores[:, :1], -torch.inf).expand(-1, more)], 1).unflatten(1, (-1, GROUP))


def bounds_in_torch(search: GroupSearch, queries: Any, needs: Any) -> Any:
    """Bounds above the greatest scores by chance, which must not matter."""
    greatest = by_group(scores_of(search, queries.float(), needs)).amax(2)
    loose = torch.rand(greatest.shape, generator=torch.Generator().manual_seed(len(queries)))
    return torch.nn.functional.pad(greatest + loose, (0, -greatest.shape[1] % GROUP), value=-torch.inf)


def keys_in_torch(search: GroupSearch, queries: Any, needs: Any, groups: Any) -> Any:
    scores = by_group(scores_of(search, queries.float(), needs))
    there = groups.clamp(max=scores.shape[1] - 1)
    found = scores.gather(1, there[:, :, None].expand(-1, -1, GROUP))
    found = torch.where((there == groups)[:, :, None], found, -torch.inf)
    return shortlist._key(found, groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)


@pytest.fixture(autouse=True)
def kernels(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches by groups, however few the agents."""
    monkeypatch.setattr(shortlist, "_suits_groups", lambda tasks, agents: True)
    if not device.is_cuda:
        monkeypatch.setattr(GroupSearch, "bounds", bounds_in_torch)
        monkeypatch.setattr(GroupSearch, "keys", keys_in_torch)


@dataclass
class Crowd:
    """Tasks and agents on the host."""

    queries: Array
    needs: Array
    vectors: Array
    room: Array
    capabilities: Array
    burden: Array

    @classmethod
    def whole(cls, tasks: int, agents: int, width: int, seed: int) -> Crowd:
        """Of whole numbers, so that all sums are exact, and few, so that many are equal."""
        draw = np.random.default_rng(seed)
        return cls(
            draw.integers(-2, 3, (tasks, width)).astype("f4"),
            draw.integers(0, 4, tasks),
            draw.integers(-2, 3, (agents, width)).astype("f4"),
            draw.integers(0, 3, agents),
            draw.integers(0, 8, agents),
            draw.integers(0, 3, agents).astype("f4"),
        )

    @classmethod
    def spread(cls, tasks: int, agents: int, width: int, seed: int) -> Crowd:
        """Of any numbers."""
        draw = np.random.default_rng(seed)
        made = cls.whole(tasks, agents, width, seed)
        made.queries, made.vectors = (
            draw.standard_normal(shape).astype("f4") for shape in ((tasks, width), (agents, width))
        )
        made.needs[tasks // 2 :: 7] |= np.int64(-1 << 63)
        made.capabilities[::3] |= np.int64(-1 << 63)
        return made

    def tasks(self, device: Device, dtype: Any = F4) -> Tasks:
        return Tasks(self._tensor(self.queries, device).to(dtype), self._tensor(self.needs, device))

    def agents(self, device: Device, dtype: Any = F4, cosine: bool = False) -> Agents:
        columns = (self.vectors, self.room, self.capabilities, self.burden)
        vectors, room, capabilities, burden = (self._tensor(column, device) for column in columns)
        return Agents(vectors.to(dtype), room, capabilities, burden, cosine)

    def best(self, tasks: Tasks, agents: Agents, k: int) -> tuple[Array, Array]:
        """Numbers and scores in float64 of the k best, of equals the first; of numbers as they were rounded."""
        vectors = agents.vectors.double().cpu().numpy()
        if agents.cosine:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), shortlist.SHORTEST)
        scores = tasks.vectors.double().cpu().numpy() @ vectors.T - self.burden
        scores[:, self.room == 0] = -np.inf
        scores[(self.capabilities & self.needs[:, None]) != self.needs[:, None]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(scores, order, 1)

    @staticmethod
    def _tensor(array: Array, device: Device) -> Any:
        return torch.from_numpy(array).to(device.place)


def check_exactly(device: Device, crowd: Crowd, k: int) -> None:
    with device.stream():
        asked, candidates = crowd.tasks(device), crowd.agents(device)
        found = shortlist.shortlist(asked, candidates, k, nothing)
        chosen, utilities = found.agents.cpu().numpy(), found.utilities.cpu().numpy()
    numbers, scores = crowd.best(asked, candidates, k)
    listed = scores.shape[1]
    np.testing.assert_array_equal(utilities[:, :listed], scores)
    assert np.all(utilities[:, listed:] == -np.inf)
    real = np.isfinite(scores)
    np.testing.assert_array_equal(chosen[:, :listed][real], numbers[real])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tasks=st.integers(1, 40),
    agents=st.integers(1, 30 * GROUP),
    width=st.integers(1, 20),
    k=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_are_found_also_among_equals(
    device: Device, tasks: int, agents: int, width: int, k: int, seed: int
) -> None:
    check_exactly(device, Crowd.whole(tasks, agents, width, seed), k)


@pytest.mark.parametrize("width", [1, 2])
def test_more_equals_than_are_looked_at(device: Device, width: int) -> None:
    check_exactly(device, Crowd.whole(30, 60 * GROUP, width, seed=6), 3)


@pytest.mark.parametrize(("query", "vector"), [(F4, BF16), (BF16, BF16), (F4, F4), (F2, F4), (BF16, F4), (F2, F2)])
@pytest.mark.parametrize(
    ("tasks", "agents", "width", "k"),
    [(1, 5000, 384, 16), (16, 4097, 96, 1), (17, 6000, 16, 40), (64, 5000, 384, 16), (200, 3001, 33, 5)],
)
def test_the_best_whatever_the_numbers(
    device: Device, query: Any, vector: Any, tasks: int, agents: int, width: int, k: int
) -> None:
    crowd = Crowd.spread(tasks, agents, width, seed=agents + tasks)
    with device.stream():
        asked, candidates = crowd.tasks(device, query), crowd.agents(device, vector)
        found = shortlist.shortlist(asked, candidates, k, nothing)
        numbers, scores = crowd.best(asked, candidates, k)
        chosen, utilities = found.agents.cpu().numpy(), found.utilities.cpu().numpy()
    real = np.isfinite(scores)
    assert np.array_equal(np.isfinite(utilities), real)
    # What float32 sums of so many products of about 1 can be off, and are not: about 1e-5.
    np.testing.assert_allclose(utilities[real], scores[real], rtol=0, atol=width * 2.0**-20)
    assert np.mean(chosen[real] == numbers[real]) > 0.99, "others only where scores are equal but for rounding"


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("vector", [F4, F2, BF16])
@pytest.mark.parametrize(("tasks", "agents", "width", "k"), [(1, 5000, 384, 16), (17, 4097, 33, 40)])
def test_the_nearest_by_cosine_whatever_their_lengths(
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    vector: Any,
    tasks: int,
    agents: int,
    width: int,
    k: int,
    groups: bool,
) -> None:
    monkeypatch.setattr(shortlist, "_suits_groups", lambda tasks, agents: groups)
    monkeypatch.setattr(group_search, "MOST_BOUNDS", 1)
    crowd = Crowd.spread(tasks, agents, width, seed=agents)
    crowd.burden *= 0.01
    crowd.queries /= np.linalg.norm(crowd.queries, axis=1, keepdims=True)
    sizes = 2.0 ** np.random.default_rng(1).integers(*((-5, 5) if vector == F2 else (-70, 40)), (agents, 1))
    crowd.vectors *= sizes.astype("f4")
    crowd.vectors[::9] = 0
    with device.stream():
        asked, candidates = crowd.tasks(device), crowd.agents(device, vector, cosine=True)
        found = shortlist.shortlist(asked, candidates, k, nothing, 1 << 20)
        numbers, scores = crowd.best(asked, candidates, k)
        chosen, utilities = found.agents.cpu().numpy(), found.utilities.cpu().numpy()
    real = np.isfinite(scores)
    assert np.array_equal(np.isfinite(utilities), real)
    np.testing.assert_allclose(utilities[real], scores[real], rtol=0, atol=1e-6)
    assert np.mean(chosen[real] == numbers[real]) > 0.99, "others only where scores are equal but for rounding"


@pytest.mark.parametrize("groups", [True, False])
def test_of_those_in_one_direction_the_first_are_nearest(
    device: Device, monkeypatch: pytest.MonkeyPatch, groups: bool
) -> None:
    monkeypatch.setattr(shortlist, "_suits_groups", lambda tasks, agents: groups)
    crowd = Crowd.whole(3, 40 * GROUP, 16, seed=4)
    crowd.queries[:], crowd.vectors[:] = 0, 1
    crowd.queries[0, :4], crowd.queries[1, :4] = 0.5, -0.5
    crowd.vectors *= 2.0 ** np.random.default_rng(2).integers(-30, 40, (len(crowd.vectors), 1)).astype("f4")
    crowd.vectors[[70, 700]], crowd.room[[70, 700]], crowd.capabilities[[70, 700]], crowd.burden[:] = 0, 1, 7, 0
    with device.stream():
        asked, candidates = crowd.tasks(device), crowd.agents(device, cosine=True)
        found = shortlist.shortlist(asked, candidates, 5, nothing)
        numbers, scores = crowd.best(asked, candidates, 5)
        np.testing.assert_array_equal(found.agents.cpu().numpy(), numbers)
        np.testing.assert_array_equal(found.utilities.cpu().numpy(), scores)
    assert scores[:, [0, 1, 2]].tolist() == [[0.5] * 3, [0, 0, -0.5], [0] * 3], "zeros are at right angles to all"


@pytest.mark.parametrize("needed", [0, 16])
def test_fewer_than_are_wanted(device: Device, needed: int) -> None:
    crowd = Crowd.whole(3, 20 * GROUP, 8, seed=5)
    crowd.needs[:], crowd.room[:] = needed, 0
    crowd.room[[7, 9 * GROUP]] = 1
    with device.stream():
        found = shortlist.shortlist(crowd.tasks(device), crowd.agents(device), 4, nothing)
        possible, chosen = torch.isfinite(found.utilities).sum(1).tolist(), found.agents.tolist()
    assert possible == [0 if needed else 2] * 3
    assert needed or all(set(row[:2]) == {7, 9 * GROUP} for row in chosen)


def test_agents_that_are_not_finite_or_too_long_spoil_nothing(device: Device) -> None:
    crowd = Crowd.spread(5, 3 * GROUP, 24, seed=2)
    crowd.room[:], crowd.needs[:] = 1, 0
    crowd.vectors[3, 1], crowd.vectors[70, 0], crowd.vectors[71], crowd.burden[72] = np.nan, -np.inf, 1e20, np.nan
    with device.stream():
        found = shortlist.shortlist(crowd.tasks(device), crowd.agents(device), 3 * GROUP, nothing)
        listed = [set(row[:-4]) for row in found.agents.tolist()]
        possible = torch.isfinite(found.utilities).sum(1).tolist()
    assert possible == [3 * GROUP - 4] * 5
    assert all(row == set(range(3 * GROUP)) - {3, 70, 71, 72} for row in listed)


def test_many_tasks_are_searched_in_turns(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_search, "MOST_BOUNDS", 1)  # the least: 16 tasks at once
    crowd, calls = Crowd.spread(50, 20 * GROUP, 16, seed=3), []
    with device.stream():
        asked, candidates = crowd.tasks(device), crowd.agents(device)
        found = shortlist.shortlist(asked, candidates, 3, lambda: calls.append(1))
        numbers, scores = crowd.best(asked, candidates, 3)
        np.testing.assert_array_equal(found.agents.cpu().numpy()[np.isfinite(scores)], numbers[np.isfinite(scores)])
    assert len(calls) >= 4


def test_search_ends_when_nobody_waits_any_more(device: Device) -> None:
    def gone() -> None:
        raise Abandoned

    crowd = Crowd.whole(2, 100, 8, seed=1)
    with device.stream(), pytest.raises(Abandoned):
        shortlist.shortlist(crowd.tasks(device), crowd.agents(device), 1, gone)


def test_without_kernels_tiles_are_searched(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(search: GroupSearch, queries: Any, needs: Any) -> Any:
        raise NoKernels

    crowd = Crowd.whole(4, 300, 8, seed=1)
    with device.stream():
        with_kernels = shortlist.shortlist(crowd.tasks(device), crowd.agents(device), 9, nothing)
        monkeypatch.setattr(GroupSearch, "bounds", missing)
        without = shortlist.shortlist(crowd.tasks(device), crowd.agents(device), 9, nothing)
        assert torch.equal(with_kernels.agents, without.agents)
        assert torch.equal(with_kernels.utilities, without.utilities)


def test_kernels_that_fail_are_not_tried_again(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        tries = 0

        def __getattr__(self, name: str) -> Any:
            Broken.tries += 1
            raise OSError("no compiler")

    monkeypatch.setattr(group_search, "_kernels", Broken)
    like = torch.zeros(1, device=device.place)
    try:
        for _ in range(2):
            with pytest.raises(NoKernels), group_search._launching(like) as kernels:
                kernels.bound_groups[(1,)]()
    finally:
        group_search._given_up.clear()
    assert Broken.tries == 1
    assert capsys.readouterr().out.count("no compiler") == 1


@pytest.mark.parametrize("listed", [1, 5, 70, 1000])
def test_greatest_bounds_are_those_of_sorting(device: Device, listed: int) -> None:
    bounds = torch.randint(0, 50, (7, 6 * GROUP), generator=torch.Generator().manual_seed(4)).float().to(device.place)
    values, places = group_search._greatest(bounds, listed)
    assert torch.equal(values.sort(1, descending=True).values, bounds.sort(1, descending=True).values[:, :listed])
    assert torch.equal(bounds.gather(1, places), values)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@pytest.mark.gpu
@pytest.mark.parametrize("vector", [F4, F2, BF16])
@pytest.mark.parametrize("query", [F4, BF16])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("tasks", "width"), [(3, 384), (40, 16), (40, 384), (40, 33)])
def test_no_score_is_above_its_groups_bound(
    device: Device, query: Any, vector: Any, tasks: int, width: int, cosine: bool
) -> None:
    if not device.is_cuda:
        pytest.skip("the kernel's rounding is that of a GPU")
    crowd = Crowd.spread(tasks, 100 * GROUP - 9, width, seed=width)
    if cosine:
        sizes = 2.0 ** np.random.default_rng(1).integers(*((-5, 5) if vector == F2 else (-70, 40)), len(crowd.vectors))
        crowd.vectors *= sizes[:, None].astype("f4")
        crowd.vectors[5] = 0
    with device.stream():
        asked, candidates = crowd.tasks(device, query), crowd.agents(device, vector, cosine)
        search = shortlist._group_search(candidates)
        bounds = search.bounds(asked.vectors, asked.needs)[:, :100].double()
        greatest = by_group(scores_of(search, asked.vectors.double(), asked.needs)).amax(2)
        real = torch.isfinite(greatest)
        assert torch.equal(torch.isfinite(bounds), real)
        above = (bounds - greatest)[real]
        assert float(above.min()) > 0
        assert float(above.max()) < 2.0**-10 * width, "so loose a bound would prove little"
    assert not group_search._given_up.is_set(), "see the log"


@pytest.mark.gpu
@pytest.mark.parametrize("vector", [F4, BF16])
def test_memory_does_not_grow_with_the_matrix_of_scores(device: Device, vector: Any) -> None:
    if not device.is_cuda:
        pytest.skip("counted by the pool of a GPU")
    tasks, agents = 64, 1_000_000
    with device.stream():
        vectors = torch.randn(agents, 32, device=device.place).to(vector)
        queries = torch.randn(tasks, 32, device=device.place)
        ones = torch.ones(agents, dtype=torch.int64, device=device.place)
        asked, candidates = Tasks(queries, ones[:tasks]), Agents(vectors, ones > 0, ones, 0.1 * ones.float())
        for suits in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shortlist, "_suits_groups", lambda tasks, agents, suits=suits: suits)
                shortlist.shortlist(asked, candidates, 16, nothing, 32 << 20)
                device.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                shortlist.shortlist(asked, candidates, 16, nothing, 32 << 20)
                device.synchronize()
                assert torch.cuda.max_memory_allocated() - before <= 64 << 20
    assert not group_search._given_up.is_set(), "see the log"

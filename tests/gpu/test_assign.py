"""agents.assign against NumPy in float64 and the exact optimum over the same shortlists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Array, Field, widen_bf16  # noqa: E402 - only where torch is
from aikoryu.bus.errors import BadColumn, BadParameter, NoTensor  # noqa: E402
from aikoryu.gpu import auction, shortlist  # noqa: E402
from aikoryu.gpu.auction import Auction  # noqa: E402
from aikoryu.gpu.batch import Abandoned, Batch  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.group_search import GROUP  # noqa: E402
from aikoryu.gpu.operation import Operation  # noqa: E402
from aikoryu.gpu.ops.assign import Assign  # noqa: E402
from aikoryu.gpu.origin import Origin  # noqa: E402
from aikoryu.gpu.residents import Residents, ResidentsSpec  # noqa: E402
from aikoryu.gpu.shortlist import Agents, Tasks  # noqa: E402

GOAL = 0.01  # of the exact optimum
TOLERANCE = {"f2": 2.0**-9, "bf16": 2.0**-9, "f4": 2.0**-18}  # of a score of unit vectors, as docs/assign.md has it
DTYPES = {"vectors": "f4", "capacity": "u4", "capabilities": "u8", "load": "f4"}


class Worker:
    """The operation on residents of its own."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.residents = Residents(ResidentsSpec())
        self.operation: Operation = Assign(self.residents)
        self.operation.load(device)
        self._version = 0

    def put(self, name: str, array: Array, dtype: str | None = None) -> dict[str, Any]:
        """Leave an array under `team.<name>`; its handle."""
        field = Field(dtype or DTYPES[name], array.shape)
        self._version += 1
        origin = Origin.make(field, self._version, "owner", 100.0)
        assert self.residents.origins.write(f"team.{name}", origin, 0, np.ascontiguousarray(array).reshape(-1))
        return {"key": f"team.{name}", "t": field.dtype, "s": field.shape}

    def batch(self, columns: dict[str, Array], dtype: str, alive: Array | None = None, **given: Any) -> Batch:
        schema = tuple(
            (name, Field(dtype if name == "query" else "u8", column.shape[1:])) for name, column in columns.items()
        )
        parameters = self.operation.decode_parameters(given)
        self.operation.outputs(schema, parameters)
        rows = len(columns["query"])
        return Batch(rows, schema, columns, parameters, np.ones(rows, bool) if alive is None else alive, self.device)

    def run(self, batch: Batch) -> tuple[Array, Array]:
        """Agent and score of each row."""
        found = np.empty(batch.rows, np.int32), np.empty(batch.rows, np.float32)
        with self.device.stream():
            answer = self.operation.run(batch, self.device)
            for name, into in zip(("agent", "score"), found, strict=True):
                self.device.fetch(answer[name], into)
            self.device.synchronize()
        return found

    def ask(self, query: ArrayLike, **given: Any) -> tuple[Array, Array]:
        """Agent and score of float32 tasks, with tensors given as arrays."""
        handles: dict[str, Any] = {
            name: self.put(name, np.asarray(value, FIXED[DTYPES[name]])) if name in DTYPES else value
            for name, value in given.items()
            if name != "need"
        }
        columns = {"query": np.asarray(query, np.float32)}
        if "need" in given:
            columns["need"] = np.asarray(given["need"], np.uint64)
        return self.run(self.batch(columns, "f4", **handles))


@pytest.fixture
def worker(device: Device) -> Iterator[Worker]:
    made = Worker(device)
    yield made
    made.residents.relieve()


def unit(shape: tuple[int, int], seed: int) -> Array:
    found = np.random.default_rng(seed).standard_normal(shape)
    normal: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
    return normal


def crowd(kind: str, tasks: int, agents: int, capacity: int, seed: int) -> tuple[Array, Array, Array]:
    """(m, d) tasks, (n, d) agents and what these can take: spread out, in clusters, or in demand for a few."""
    draw = np.random.default_rng(seed)
    queries, vectors = unit((tasks, 24), seed + 1), unit((agents, 24), seed + 2)
    if kind != "spread":
        centres = unit((8, 24), seed + 3)
        queries = centres[draw.integers(2 if kind == "hot" else 8, size=tasks)] + 0.4 * queries
        if kind == "clusters":
            vectors = centres[draw.integers(8, size=agents)] + 0.4 * vectors
    return queries.astype("f4"), vectors.astype("f4"), draw.integers(1, capacity + 1, agents).astype(np.uint32)


def utilities_of(queries: Array, agents: dict[str, Array], need: Array | None = None, weight: float = 1.0) -> Array:
    """(m, n) float64, -inf where an agent cannot take a task."""
    found: Array = queries.astype("f8") @ agents["vectors"].astype("f8").T
    if "load" in agents:
        found -= weight * agents["load"].astype("f8")
    if need is not None:
        found[(need[:, None] & ~agents["capabilities"]) != 0] = -np.inf
    found[:, agents["capacity"] == 0] = -np.inf
    return found


def listed(utilities: Array, k: int) -> tuple[Array, Array]:
    """Numbers and utilities of the k best of each row, of equals the first."""
    order = np.argsort(-utilities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(utilities, order, 1)


def optimum(agents: Array, utilities: Array, capacity: Array) -> tuple[float, int, float]:
    """The optimum over shortlists: its sum, how many tasks have an agent, and what a task counts that goes without."""
    optimize = pytest.importorskip("scipy.optimize", reason="the reference is SciPy's")
    seats, seat_of = np.unique(agents[np.isfinite(utilities)], return_inverse=True)
    rooms = np.minimum(capacity[seats], len(agents)).astype(int)
    without = float(2 * utilities[np.isfinite(utilities)].min() - utilities[np.isfinite(utilities)].max())
    worth = np.full((len(agents), len(seats)), -1e6)
    worth[np.nonzero(np.isfinite(utilities))[0], seat_of] = utilities[np.isfinite(utilities)]
    expanded = np.hstack([np.repeat(worth, rooms, axis=1), np.full((len(agents), len(agents)), without)])
    row, column = optimize.linear_sum_assignment(expanded, maximize=True)
    real = column < rooms.sum()
    return float(expanded[row, column][real].sum()), int(real.sum()), without


def check_room(agent: Array, capacity: Array) -> None:
    assert np.all(np.bincount(agent[agent >= 0], minlength=len(capacity)) <= capacity)


@pytest.mark.parametrize(("tasks", "agents", "capacity"), [(300, 600, 2), (300, 300, 1), (300, 100, 4), (60, 900, 1)])
@pytest.mark.parametrize("kind", ["spread", "clusters", "hot"])
def test_sum_is_within_the_goal_of_the_exact_optimum(
    worker: Worker, kind: str, tasks: int, agents: int, capacity: int
) -> None:
    queries, vectors, room = crowd(kind, tasks, agents, capacity, seed=tasks + agents)
    load = np.random.default_rng(5).random(agents).astype("f4") * 0.2
    agent, score = worker.ask(queries, vectors=vectors, capacity=room, load=load)
    exact = utilities_of(queries, {"vectors": vectors, "capacity": room, "load": load})
    numbers, values = listed(exact, 16)
    best, most, without = optimum(numbers, values, room)
    got = agent >= 0
    assert np.all((agent[got, None] == numbers[got]).any(axis=1)), "agents of the shortlist only"
    assert np.max(abs(score[got] - exact[got, agent[got]])) <= TOLERANCE["f4"] * 2
    assert np.all(score[~got] == -np.inf)
    short = best - score[got].sum(dtype="f8") + without * (int(got.sum()) - most)
    assert -1e-3 <= short <= GOAL * abs(best)
    assert got.sum() >= 0.99 * most
    check_room(agent, room)


@settings(deadline=None, max_examples=60)
@given(
    tasks=st.integers(1, 30),
    agents=st.integers(1, 40),
    k=st.integers(1, 20),
    most=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_nobody_goes_without_who_could_be_served(
    device: Device, tasks: int, agents: int, k: int, most: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    numbers, values = listed(draw.integers(-4, 5, (tasks, agents)).astype("f8"), k)
    values = np.where(draw.random(values.shape) < 0.3, -np.inf, values)
    room = draw.integers(1, most + 2, agents)
    place = auctioned(device, numbers, values, room)
    got = place >= 0
    agent = np.where(got, np.take_along_axis(numbers, np.maximum(place, 0)[:, None], 1)[:, 0], -1)
    assert np.all(np.isfinite(np.take_along_axis(values, np.maximum(place, 0)[:, None], 1)[got, 0]))
    check_room(agent, room)
    full = np.bincount(agent[got], minlength=agents) >= room
    assert np.all((full[numbers] | np.isneginf(values))[~got])


def auctioned(device: Device, numbers: Array, values: Array, room: Array) -> Array:
    """(m,) place on its shortlist that each task gets."""
    with device.stream():
        tensors = [torch.from_numpy(array).to(device.place) for array in (numbers, values.astype("f4"), room)]
        found: Array = Auction(*tensors).run(lambda: None).cpu().numpy()
    return found


def test_the_task_that_gains_most_gets_the_agent_all_want(worker: Worker) -> None:
    vectors = np.array([[10, 0], [9, 0], [0, 1]])
    # Alone each would take agent 0; the second loses least by another.
    agent, score = worker.ask([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]], vectors=vectors)
    assert (agent.tolist(), score.tolist()) == ([0, 1, 2], [10, 4.5, 1])


def test_nobody_takes_more_than_its_capacity(worker: Worker) -> None:
    agent, _ = worker.ask(np.ones((10, 1)), vectors=[[3], [2], [1]], capacity=[4, 0, 5])
    assert sorted(agent.tolist()) == [-1, *[0] * 4, *[2] * 5]


def test_capacity_may_be_as_large_as_its_type(worker: Worker) -> None:
    agent, _ = worker.ask(np.ones((10, 1)), vectors=[[1], [2]], capacity=[1, 2**32 - 1])
    assert agent.tolist() == [1] * 10


def test_without_capacities_each_takes_one(worker: Worker) -> None:
    agent, _ = worker.ask(np.ones((3, 1)), vectors=[[1], [2]])
    assert sorted(agent.tolist()) == [-1, 0, 1]


def test_load_counts_by_its_weight(worker: Worker) -> None:
    given: dict[str, Any] = {"vectors": [[1.0], [0.5]], "load": [1.0, 0.0]}
    assert [row.tolist() for row in worker.ask([[1.0]], **given)] == [[1], [0.5]]
    assert [row.tolist() for row in worker.ask([[1.0]], **given, load_weight=0.25)] == [[0], [0.75]]


@pytest.mark.parametrize("bit", [0, 31, 32, 62, 63])
def test_agents_have_all_that_a_task_needs(worker: Worker, bit: int) -> None:
    need = np.array([0, 1 << bit, 1 << bit | 2], np.uint64)
    agent, score = worker.ask(
        [[1.0]] * 3, need=need, vectors=[[3], [2], [1]], capabilities=[0, 1 << bit, 2**64 - 1], capacity=[9] * 3
    )
    assert (agent.tolist(), score.tolist()) == ([0, 1, 2], [3, 2, 1])


def test_what_no_agent_can_do_nobody_gets(worker: Worker) -> None:
    agent, score = worker.ask([[1.0]] * 2, need=[4, 1], vectors=[[3]], capabilities=[1])
    assert (agent.tolist(), score.tolist()) == ([-1, 0], [-np.inf, 3])


def test_equals_go_in_order(worker: Worker) -> None:
    agent, _ = worker.ask(np.ones((5, 4)), vectors=np.ones((GROUP * 3, 4)))
    assert agent.tolist() == [0, 1, 2, 3, 4]


def test_agents_that_are_not_finite_get_nothing_and_spoil_nothing(worker: Worker) -> None:
    vectors = np.array([[np.nan, 0], [np.inf, 1], [1e20, 0], [1, 0], [2, 0]])
    agent, _ = worker.ask([[1.0, 0.0], [1.0, 0.0]], vectors=vectors, load=[0, 0, 0, 0, np.nan], capacity=[9] * 5, k=1)
    assert agent.tolist() == [3, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_query_that_is_not_finite_fails_alone(worker: Worker, bad: float) -> None:
    query = np.array([[1.0], [bad], [1.0]], np.float32)
    batch = worker.batch({"query": query}, "f4", vectors=worker.put("vectors", np.array([[1.0], [2.0]], "f4")))
    agent, _ = worker.run(batch)
    assert {row: code for row, (code, _) in batch.errors.items()} == {1: "bad_value"}
    assert sorted(agent[[0, 2]].tolist()) == [0, 1]


def test_callers_that_went_take_no_agent(worker: Worker) -> None:
    handle = worker.put("vectors", np.array([[1.0], [2.0]], "f4"))
    alive = np.array([False, True, True])
    agent, _ = worker.run(worker.batch({"query": np.ones((3, 1), "f4")}, "f4", alive, vectors=handle))
    assert agent.tolist() == [-1, 1, 0]


def test_work_ends_when_nobody_waits_any_more(device: Device) -> None:
    def gone() -> None:
        raise Abandoned

    with device.stream():
        ones, numbers = (torch.ones((3, 1), device=device.place, dtype=dtype) for dtype in (torch.float32, torch.int64))
        tasks, agents = (
            Tasks(ones, numbers[:, 0], numbers[:0, 0]),
            Agents(ones, numbers[:, 0], numbers[:, 0], ones[:, 0]),
        )
        with pytest.raises(Abandoned):
            shortlist.shortlist(tasks, agents, 1, gone)
        with pytest.raises(Abandoned):
            Auction(numbers - 1, ones, numbers[:, 0]).run(gone)


@pytest.mark.parametrize("dtype", ["f2", "bf16"])
def test_numbers_of_half_width(worker: Worker, dtype: str) -> None:
    queries, vectors, room = crowd("spread", 50, 200, 2, seed=9)
    if dtype == "bf16":
        queries, vectors = ((array.view("<u4") >> 16).astype("<u2") for array in (queries, vectors))
        wide = [widen_bf16(array) for array in (queries, vectors)]
    else:
        queries, vectors = queries.astype("f2"), vectors.astype("f2")
        wide = [queries, vectors]
    handles: dict[str, Any] = {
        "vectors": worker.put("vectors", vectors, dtype),
        "capacity": worker.put("capacity", room),
    }
    agent, score = worker.run(worker.batch({"query": queries}, dtype, **handles))
    exact = utilities_of(wide[0], {"vectors": wide[1], "capacity": room})
    assert np.max(abs(score - exact[np.arange(50), agent])) <= TOLERANCE[dtype]
    assert score.sum() >= listed(exact, 16)[1][:, 0].sum() * 0.95


def test_devices_agree_where_scores_are_whole_numbers(worker: Worker) -> None:
    draw = np.random.default_rng(3)
    queries, vectors = draw.integers(-3, 4, (80, 6)).astype("f4"), draw.integers(-3, 4, (60, 6)).astype("f4")
    room = draw.integers(0, 3, 60)
    found = worker.ask(queries, vectors=vectors, capacity=room)
    alone = Worker(Device("cpu", threads=1)).ask(queries, vectors=vectors, capacity=room)
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=40)
@given(
    tasks=st.integers(1, 20),
    agents=st.integers(1, 6 * GROUP),
    k=st.integers(1, 40),
    tile=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_shortlist_is_that_of_all_scores_whatever_the_tiles(
    device: Device, tasks: int, agents: int, k: int, tile: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    queries, vectors = (draw.integers(-2, 3, (rows, 3)).astype("f4") for rows in (tasks, agents))
    capabilities, need = (draw.integers(0, 8, rows).astype(np.uint64) for rows in (agents, tasks))
    load, room = draw.integers(0, 3, agents).astype("f4"), draw.integers(0, 3, agents)
    exact = utilities_of(
        queries, {"vectors": vectors, "capacity": room, "load": load, "capabilities": capabilities}, need
    )
    numbers, values = listed(exact, k)

    def tensor(array: Array) -> Any:
        return torch.from_numpy(array.astype("i8") if array.dtype.kind == "u" else array).to(device.place)

    with pytest.MonkeyPatch.context() as patch, device.stream():
        patch.setitem(shortlist.TILE_BYTES, device.place.type, tile * GROUP * 4 * 4)
        patch.setattr(shortlist, "LEAST_TASKS", 4)
        found = shortlist.shortlist(
            Tasks(tensor(queries), tensor(need), torch.arange(3, device=device.place)),
            Agents(tensor(vectors), tensor(room), tensor(capabilities), tensor(load)),
            k,
            lambda: None,
        )
        utilities, chosen = found.utilities.cpu().numpy(), found.agents.cpu().numpy()
    width = values.shape[1]
    np.testing.assert_array_equal(utilities[:, :width], values)
    assert np.all(utilities[:, width:] == -np.inf)
    real = np.isfinite(values)
    np.testing.assert_array_equal(chosen[:, :width][real], numbers[real])


def test_the_best_may_lie_anywhere(worker: Worker) -> None:
    vectors = np.zeros((6 * GROUP, 1))
    vectors[[5 * GROUP, GROUP - 1, 2 * GROUP], 0] = [3, 2, 1]
    agent, _ = worker.ask(np.ones((3, 1)), vectors=vectors, k=3)
    assert sorted(agent.tolist()) == [GROUP - 1, 2 * GROUP, 5 * GROUP]


def test_zeros_are_equal_whatever_their_sign(device: Device) -> None:
    tile = torch.zeros((1, GROUP), device=device.place)
    tile[0, 0] = -0.0
    assert shortlist._best(tile, 0, 2).tolist() == shortlist._best(abs(tile), 0, 2).tolist()


@pytest.mark.parametrize("rounds", [1, 16])
def test_what_is_left_after_the_last_round_is_filled(
    device: Device, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(auction, "MOST_ROUNDS", rounds)
    numbers = np.tile(np.arange(8), (12, 1))
    values = np.tile(-np.arange(8.0), (12, 1))
    place = auctioned(device, numbers, values, np.ones(8, np.int64))
    assert sorted(place.tolist()) == [-1] * 4 + list(range(8))


def test_no_tasks_at_all_and_no_agents(worker: Worker) -> None:
    assert worker.ask(np.ones((2, 3)), vectors=np.ones((0, 3)))[0].tolist() == [-1, -1]
    assert worker.ask(np.ones((2, 3)), vectors=np.ones((1, 3)), capacity=[0])[0].tolist() == [-1, -1]


def test_tensor_put_again_counts_for_the_next_batch(worker: Worker) -> None:
    given: dict[str, Any] = {"vectors": [[1.0], [2.0]]}
    assert worker.ask([[1.0]], **given, load=[0, 0])[0].tolist() == [1]
    assert worker.ask([[1.0]], **given, load=[0, 2])[0].tolist() == [0]


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"vectors": {"key": "team.v", "t": "f8", "s": [4, 3]}}, BadParameter, "vectors is f8"),
        ({"vectors": {"key": "team.v", "t": "f4", "s": [4]}}, BadParameter, r"shape \[4\]"),
        ({"vectors": {"key": "team.v", "t": "f4", "s": [4, 2]}}, BadColumn, "'query' has 3 numbers"),
        ({"vectors": {"key": "team.v", "t": "f4", "s": [1 << 25, 3]}, "capabilities": None}, BadParameter, "16777216"),
        ({"capacity": {"key": "team.c", "t": "i4", "s": [4]}}, BadParameter, "capacity is i4"),
        ({"load": {"key": "team.l", "t": "f4", "s": [5]}}, BadParameter, r"load has shape \[5\]"),
        ({"capabilities": None}, BadColumn, "no `capabilities`"),
        ({"k": 0}, BadParameter, "k"),
        ({"k": 65}, BadParameter, "k"),
        ({"load_weight": float("nan")}, BadParameter, "load_weight"),
        ({"load_weight": -1.0}, BadParameter, "load_weight"),
    ],
)
def test_what_does_not_fit_is_refused(worker: Worker, changed: dict[str, Any], error: Any, match: str) -> None:
    given: dict[str, Any] = {
        "vectors": {"key": "team.v", "t": "f4", "s": [4, 3]},
        "capabilities": {"key": "team.a", "t": "u8", "s": [4]},
    }
    columns = {"query": np.ones((1, 3), "f4"), "need": np.ones(1, np.uint64)}
    with pytest.raises(error, match=match):
        worker.batch(columns, "f4", **given | changed)


def test_tensor_that_is_gone_is_told(worker: Worker) -> None:
    handle = worker.put("vectors", np.ones((2, 1), "f4"))
    assert worker.residents.free("team.vectors", "owner")
    with pytest.raises(NoTensor):
        worker.run(worker.batch({"query": np.ones((1, 1), "f4")}, "f4", vectors=handle))

"""The kernels do to a graph what torch does: compiled for the host here, on a GPU where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.gpu.context import kernels as kernels_module  # noqa: E402 - only where torch is
from aikoryu.gpu.context import propagate  # noqa: E402
from aikoryu.gpu.context.agents import AgentTable  # noqa: E402
from aikoryu.gpu.context.edges import Edges  # noqa: E402
from aikoryu.gpu.context.graph import ContextGraph  # noqa: E402
from aikoryu.gpu.context.kernels import ContextKernels, bits, words  # noqa: E402
from aikoryu.gpu.context.notify import due  # noqa: E402
from aikoryu.gpu.context.propagate import PUSH_COST, settle  # noqa: E402
from aikoryu.gpu.context.source import LONG, PART, THREADS, kernel_names  # noqa: E402
from aikoryu.gpu.context.words import rounded  # noqa: E402
from aikoryu.gpu.cuda import CudaDevice  # noqa: E402
from aikoryu.gpu.device import Device, DeviceLost  # noqa: E402

from . import host_warps  # noqa: E402
from .fake_cupy import Cupy  # noqa: E402

# What holds of torch's path holds of the kernels': its tests run here once more, on the device below.
from .test_context_graph import (  # noqa: E402, F401
    rig,
    test_a_prefix_that_is_said_again_changes_nothing,
    test_a_row_grows_past_every_room,
    test_an_edge_that_was_ended_does_not_come_back,
    test_slots_of_the_forgotten_are_given_to_others,
    test_the_bound_and_the_invariant_hold_after_every_window,
    test_those_who_moved_are_told_no_more_often_than_they_want,
)
from .test_context_propagate import (  # noqa: E402, F401
    ALWAYS_FULL,
    ALWAYS_PUSH,
    Case,
    test_a_constant_stays_and_nothing_leaves_the_hull,
    test_a_graph_without_agents_is_settled,
    test_a_small_change_is_pushed_and_a_large_one_is_not,
    test_as_near_as_promised,
    test_less_than_float32_allows_ends_all_the_same,
    test_the_same_calls_give_the_same_bits,
)

BY_COST = 2.0


@pytest.fixture(
    scope="module",
    params=["host", pytest.param("gpu", marks=pytest.mark.gpu)],
)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """A device whose graphs have kernels."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        pytest.importorskip("cupy")
        found = CudaDevice("cuda:0", threads=1)
        found.open()
        yield found
        return
    if host_warps.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    host = Device("cpu", threads=1)
    host.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextKernels, "of", on_host)
        yield host


def on_host(table: AgentTable, edges: Edges, alpha: float, *, backwards: bool = False) -> ContextKernels:
    launch = host_warps.compiled(table.own.shape[1], backwards=backwards)
    return ContextKernels(table, edges, alpha, launch)


def pair(case: Case, device: Device, alpha: float = 0.3) -> tuple[ContextGraph, ContextGraph]:
    """The same graph twice, with kernels and without."""
    with_kernels, without = case.graph(device, alpha), case.graph(device, alpha)
    assert with_kernels.kernels is not None
    without.kernels = None
    without.refresh()
    return with_kernels, without


def assert_alike(found: ContextGraph, expected: ContextGraph) -> None:
    """But for the order in which is added up."""
    used = expected.slots.used
    for name in ("blended", "residual", "norm"):
        one, other = (getattr(graph.table, name)[:used] for graph in (found, expected))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=name)
    for name in ("own", "is_there", "stirred", "capabilities", "load"):
        assert torch.equal(getattr(found.table, name), getattr(expected.table, name)), name


@pytest.mark.parametrize("push_cost", [ALWAYS_PUSH, BY_COST, ALWAYS_FULL])
@pytest.mark.parametrize("dimension", [1, 7, 130, 256, 384, 396, 1000])
def test_rows_of_every_width(device: Device, dimension: int, push_cost: float) -> None:
    case = Case.random(dimension, n=60, d=dimension, degree=3)
    found, expected = pair(case, device)
    assert_alike(found, expected)
    done, wanted = (settle(graph, 1e-2, push_cost) for graph in (found, expected))
    assert done[:3] == wanted[:3]
    assert done.residual == pytest.approx(wanted.residual, abs=1e-6)
    assert_alike(found, expected)


@pytest.mark.parametrize("dimension", [4, 7])
@pytest.mark.parametrize("many", [PART - 1, PART, 3 * PART, LONG, LONG + 1, 3 * LONG + 7])
def test_one_that_hears_many_and_is_heard_by_many(device: Device, many: int, dimension: int) -> None:
    others = np.arange(1, many + 1)
    case = Case.random(1, n=many + 1, d=dimension, degree=1)
    one = np.zeros(many, np.int64)
    case.source, case.target = np.concatenate([one, others]), np.concatenate([others, one])
    case.weight = np.random.default_rng(1).uniform(0.5, 2, 2 * many).astype("f4")
    found, expected = pair(case, device)
    assert_alike(found, expected)
    for graph in (found, expected):
        graph.refresh(torch.tensor([0, many], device=device.place))
        graph.refresh()
    assert_alike(found, expected)
    done, wanted = (settle(graph, 1e-2, ALWAYS_PUSH) for graph in (found, expected))
    assert done[:3] == wanted[:3]
    assert done.pushes > 1
    assert_alike(found, expected)
    stamp = np.array([2], np.uint64)
    for graph in (found, expected):
        graph.put(np.array([1]), torch.ones(1, dimension, device=device.place), stamp, stamp)
        assert settle(graph, 1e-5, ALWAYS_FULL).fulls > 2, "one step after another"
    assert_alike(found, expected)


def test_the_order_of_warps_does_not_matter(device: Device) -> None:
    if device.is_cuda:
        pytest.skip("its warps run at once")
    found, expected = pair(Case.random(9, d=256), device)
    found.kernels = on_host(found.table, found.edges, found.alpha, backwards=True)
    found.refresh()
    done, wanted = (settle(graph, 1e-3, ALWAYS_PUSH) for graph in (found, expected))
    assert done[:3] == wanted[:3]
    assert_alike(found, expected)


def test_warps_that_meet_lose_nothing(device: Device) -> None:
    """Of many that pass on to the same rows at once."""
    if not device.is_cuda:
        pytest.skip("its warps run one after another")
    case = Case.random(10, n=20_000, d=384, degree=8)
    case.own /= np.linalg.norm(case.own, axis=1, keepdims=True)
    found, expected = pair(case, device)
    draw = torch.Generator(device.place).manual_seed(1)
    for version in range(2, 12):
        agents = torch.randperm(20_000, generator=draw, device=device.place)[:500]
        vectors = torch.randn(500, 384, generator=draw, device=device.place) / 384**0.5
        stamps = np.full(500, version, np.uint64)
        for graph in (found, expected):
            graph.put(agents.cpu().numpy(), vectors, stamps, stamps)
            assert settle(graph, 1e-3, ALWAYS_PUSH if version % 2 else PUSH_COST).residual <= 1e-3
    used = found.slots.used
    residual, norm = found.table.residual[:used].clone(), found.table.norm[:used].clone()
    apart = torch.linalg.vector_norm(found.table.blended[:used] - expected.table.blended[:used], dim=1)
    assert float(apart.max()) <= 2e-3 / 0.3 + 1e-4
    found.kernels = None
    found.refresh()
    torch.testing.assert_close(residual, found.table.residual[:used], atol=1e-5, rtol=0)
    torch.testing.assert_close(norm, found.table.norm[:used], atol=1e-4, rtol=0)


def line(length: int, device: Device) -> tuple[ContextGraph, ContextGraph]:
    """Each hears the one before: a sweep reaches one more."""
    case = Case.random(1, n=length, d=4)
    case.own[1:] = 0
    case.source, case.target = np.arange(length - 1), np.arange(1, length)
    case.weight = np.full(length - 1, 100.0, "f4")
    return pair(case, device, alpha=0.05)


@pytest.mark.parametrize("length", [3, 4, 5, 12, 13, 30])
def test_sweeps_go_on_until_nothing_is_left(device: Device, length: int) -> None:
    """Also where the host looks in between."""
    found, expected = line(length, device)
    done, wanted = (settle(graph, 1e-3, ALWAYS_PUSH) for graph in (found, expected))
    assert done[:3] == wanted[:3]
    assert done.pushes >= length - 1
    assert_alike(found, expected)


def test_rows_that_nobody_has_stay_empty(device: Device) -> None:
    """Also where steps over all rows follow one another, which leave Z elsewhere."""
    graph = Case.random(11, n=100, degree=3).graph(device, 0.3)
    assert settle(graph, 1e-3, ALWAYS_FULL).fulls > 2
    assert len(graph.table) > 100
    assert not graph.table.blended[100:].any()


@pytest.mark.parametrize("most", [1, 4, 5, 12])
def test_after_so_many_sweeps_all_rows_are_next(device: Device, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(propagate, "MOST_PUSHES", most)
    found, expected = line(30, device)
    done, wanted = (settle(graph, 1e-3, ALWAYS_PUSH) for graph in (found, expected))
    assert done[:3] == wanted[:3]
    assert done.pushes == most
    assert done.fulls > 0
    assert_alike(found, expected)


def test_where_there_is_no_room_for_a_sweep_all_rows_are_next(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "LEAST_ROWS", 8)
    monkeypatch.setattr(kernels_module, "SHARE", 1 << 20)
    case = Case.random(6, n=100, degree=3)
    graph = case.graph(device, 0.3)
    assert settle(graph, 1e-3, ALWAYS_PUSH).fulls > 0
    stamp = np.array([2], np.uint64)
    assert graph.put(np.array([50]), torch.full((1, 7), 2.0, device=device.place), stamp, stamp).all()
    done = settle(graph, 1e-3, ALWAYS_PUSH)
    assert done.pushes > 0, "what there is room for is passed on"
    assert done.fulls > 0
    case.own[50] = 2.0
    blended = graph.table.blended[:100].cpu().double().numpy()
    assert np.linalg.norm(blended - case.blended(0.3), axis=1).max() <= 1e-3 / 0.3 + 1e-5


def test_room_grows_with_the_graph(device: Device) -> None:
    found, expected = pair(Case.random(7, n=20, degree=2), device)
    for graph in (found, expected):
        settle(graph, 1e-3, ALWAYS_PUSH)
        agents = np.arange(15, 600)
        ones = np.ones(len(agents), np.uint64)
        said = (ones << 63, np.linspace(0, 1, len(agents), dtype=np.float32))
        graph.put(agents, torch.ones(len(agents), 7, device=device.place), 2 * ones, ones, said)
        stays = rounded(np.full((3, 7), 0.3, np.float32))  # as the log has it, of agents of whom one said so before
        assert graph.put(agents[:3], stays, np.array([3, 1, 3], np.uint64), ones[:3]).tolist() == [True, False, True]
        graph.link(agents, (7 * agents) % 600, ones.astype(np.float32), ones, ones)
        settle(graph, 1e-3, ALWAYS_PUSH)
    assert_alike(found, expected)


@pytest.mark.parametrize("dimension", [7, 384, 396])
def test_who_is_due(device: Device, dimension: int) -> None:
    case = Case.random(8, n=150, d=dimension, degree=3)
    draw = np.random.default_rng(8)
    thresholds = draw.choice([0.1, 1.0, np.inf], 150)
    intervals = draw.choice([0, 100], 150)
    told = []
    for graph in pair(case, device):
        settle(graph, 1e-3)
        agents = np.arange(150)
        graph.watch(agents, thresholds.astype(np.float32), intervals)
        first = due(graph, 1000)
        stamps = np.arange(2, 77, dtype=np.uint64)
        graph.put(agents[:75], torch.zeros(75, dimension, device=device.place), stamps, stamps)
        settle(graph, 1e-3)
        told.append((first, due(graph, 1050), due(graph, 1100), due(graph, 1101)))
    for one, other in zip(*told, strict=True):
        assert one.slots.tolist() == other.slots.tolist()
        torch.testing.assert_close(one.vectors, other.vectors, atol=1e-2, rtol=1e-2)
        # What was sent is bf16, and rounded one way or the other where sums differ by a bit.
        np.testing.assert_allclose(one.moved, other.moved, atol=1e-2, rtol=1e-2)
    np.testing.assert_allclose(told[0][0].moved, told[1][0].moved, atol=1e-5, rtol=1e-5)
    assert [len(one.slots) > 0 for one in told[0]] == [True, True, True, False]


def test_nothing_is_done_with_nothing(device: Device) -> None:
    graph = ContextGraph(4, 0.3, device.place)
    nobody, stamps = np.empty(0, np.int64), np.empty(0, np.uint64)
    assert not len(due(graph, 1).slots)
    assert not len(graph.put(nobody, torch.zeros(0, 4, device=device.place), stamps, stamps))
    assert not len(graph.link(nobody, nobody, np.empty(0, np.float32), stamps, stamps))
    assert not len(graph.remove(nobody, stamps, stamps))
    graph.refresh()
    assert settle(graph, 1e-3)[:4] == (0, 0, 0, 0.0)


# --- what launches them ----------------------------------------------------------------------------------------------


EXPECTED = "#define WIDTH 384ull"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(kernels_module, "_compiled", kernels_module._compiled.__wrapped__)
    return monkeypatch


def test_a_launch_has_a_thread_for_every_lane(fresh: pytest.MonkeyPatch) -> None:
    cupy = Cupy(EXPECTED)
    fresh.setitem(sys.modules, "cupy", cupy)
    launch = kernels_module._compiled(384)
    assert launch is not None
    launch("measure", 9, words(1, None, -1))
    assert cupy.launched == [("measure", (2,), (THREADS,), (1, 0, (1 << 64) - 1))]
    assert all(isinstance(word, np.uint64) for word in cupy.launched[0][3])


def test_a_launch_that_the_driver_refuses_ends_the_device(fresh: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    cupy = Cupy(EXPECTED)
    fresh.setattr(cupy, "get_function", lambda name: refuse)
    fresh.setitem(sys.modules, "cupy", cupy)
    launch = kernels_module._compiled(384)
    assert launch is not None
    with pytest.raises(DeviceLost, match="measure cannot be launched: CUDA_ERROR_ILLEGAL_ADDRESS"):
        launch("measure", 1, ())


def test_without_a_compiler_torch_does_it(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "cupy", Cupy(EXPECTED, RuntimeError("libnvrtc.so.12 is missing")))
    with capture_logs() as logs:
        assert kernels_module._compiled(384) is None
    assert [log["reason"] for log in logs] == ["libnvrtc.so.12 is missing"]
    fresh.setitem(sys.modules, "cupy", None)
    assert kernels_module._compiled(384) is None


def test_a_graph_on_a_cpu_has_no_kernels() -> None:
    assert ContextGraph(4, 0.3, torch.device("cpu")).kernels is None


def test_what_crosses_together_lies_where_a_gpu_can_load_it() -> None:
    launched: list[Sequence[np.uint64]] = []
    graph = ContextGraph(7, 0.3, torch.device("cpu"))
    graph.kernels = ContextKernels(
        graph.table, graph.edges, 0.3, lambda name, warps, arguments: launched.append(arguments)
    )
    stamps = np.ones(3, np.uint64)
    graph.put(np.arange(3), np.zeros((3, 7), np.uint16), stamps, stamps, (stamps, np.zeros(3, np.float32)))
    slots, _, vectors, _, capabilities, load = map(int, launched[0][:6])
    assert [at % 16 for at in (slots, vectors, capabilities, load)] == [0, 0, 0, 0]


def test_numbers_are_passed_as_bits() -> None:
    assert bits(1.0) == np.uint64(0x3F800000)
    for number in (1e-3, 1e-4, 0.1, 0.3):
        below = np.uint32(bits(number, below=True)).view(np.float32)
        assert float(below) <= number < float(np.nextafter(below, np.float32(1)))


def test_all_kernels_are_found() -> None:
    found = {"say", "refresh", "refresh_parts", "measure", "select_rows", "take", "pass_on", "pull", "longest"}
    assert set(kernel_names()) == found | {"due", "tell"}

"""Products in tiles: the plan's arithmetic, and the products themselves against NumPy in a wider type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Array, widen_bf16  # noqa: E402 - only where torch is
from aikoryu.bus.errors import TooLarge  # noqa: E402
from aikoryu.gpu import tiles  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.tiles import LEAST_SIDE, Tiling, multiply, plan  # noqa: E402

MIB = 1 << 20
GIB = 1 << 30
CPU = Device("cpu", threads=1)

sizes = st.integers(1, 3000)


def moved(tiling: Tiling) -> tuple[int, int, int]:
    """Elements of a, b and the answer that are copied, counted step by step."""
    elements = [0, 0, 0]
    last: list[Any] = [None, None]
    for i, p, j in tiling.steps():
        for number, tile in enumerate(((i, p), (p, j))):
            if tile != last[number]:
                elements[number] += math.prod(part.stop - part.start for part in tile)
                last[number] = tile
        if p.stop == tiling.k:
            elements[2] += (i.stop - i.start) * (j.stop - j.start)
    return elements[0], elements[1], elements[2]


# --- the plan --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(m=sizes, k=sizes, n=sizes, itemsize=st.sampled_from([2, 4, 16]), budget=st.integers(400, 4 * MIB))
def test_plan_keeps_to_the_budget_and_covers_everything_once(
    m: int, k: int, n: int, itemsize: int, budget: int
) -> None:
    try:
        tiling = plan(m, k, n, itemsize, budget)
    except TooLarge:
        assert budget < 6 * itemsize * LEAST_SIDE
        return
    assert tiling.device_bytes(itemsize) <= budget
    if math.prod(tiling.counts) < 20_000:
        assert itemsize * sum(moved(tiling)) == tiling.moved_bytes(itemsize)
        covered = sum((i.stop - i.start) * (p.stop - p.start) * (j.stop - j.start) for i, p, j in tiling.steps())
        assert covered == m * k * n


def test_what_fits_is_moved_once() -> None:
    tiling = plan(8192, 8192, 8192, 4, GIB)
    assert tiling.moved_bytes(4) == 3 * 4 * 8192**2


@pytest.mark.parametrize(("m", "n", "buffers"), [(1000, 100_000, (1, 2, 2)), (100_000, 1000, (2, 1, 2))])
def test_smaller_operand_stands_still_and_the_other_streams(m: int, n: int, buffers: tuple[int, int, int]) -> None:
    tiling = plan(m, 4000, n, 4, 64 * MIB)
    assert tiling.buffers == buffers
    assert tiling.moved_bytes(4) == 4 * (m * 4000 + 4000 * n + m * n)


def test_long_sums_are_split_where_that_moves_less() -> None:
    whole = plan(20_000, 400_000, 20_000, 4, GIB, split_inner=False)
    split = plan(20_000, 400_000, 20_000, 4, GIB)
    assert whole.counts[1] == 1
    assert split.counts[1] > 1
    assert split.moved_bytes(4) < whole.moved_bytes(4) / 5


def test_traffic_is_near_the_least_there_can_be() -> None:
    """Half of what one level of memory of M numbers needs at the least is 2mnk / sqrt(M) (Hong and Kung 1981)."""
    for m, k, n in [(50_000, 50_000, 50_000), (20_000, 200_000, 20_000), (200_000, 5_000, 200_000)]:
        for budget in (2 * GIB, 16 * GIB):
            least = max(4 * (m * k + k * n + m * n), 4 * 2 * m * n * k / math.sqrt(budget / 4))
            assert plan(m, k, n, 4, budget).moved_bytes(4) < 2.2 * least


def test_streamed_tiles_are_not_too_narrow() -> None:
    for shape in [(50_000, 50_000, 50_000), (100_000, 1000, 100_000), (1000, 1_000_000, 1000)]:
        tiling = plan(*shape, 4, GIB)
        assert min(tiling.rows, tiling.inner, tiling.columns) >= LEAST_SIDE


def test_budget_without_room_says_what_to_raise() -> None:
    with pytest.raises(TooLarge, match=r"raise residents\.device_bytes"):
        plan(1000, 1000, 1000, 4, 16)
    with pytest.raises(TooLarge):
        plan(1000, 100_000, 1000, 2, 100_000, split_inner=False)


# --- the products ----------------------------------------------------------------------------------------------------


def matrix(dtype: str, shape: tuple[int, int], seed: int) -> Array:
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    if dtype[0] == "c":
        values = values + 1j * random.normal(size=shape)
    if dtype == "bf16":
        return np.ascontiguousarray((values.astype("<f4").view("<u4") >> 16).astype("<u2"))
    return values.astype(FIXED[dtype])


def wide(dtype: str, values: Array) -> Array:
    if dtype == "bf16":
        return widen_bf16(values).astype(np.float64)
    return values.astype(np.complex128 if dtype[0] == "c" else np.float64)


ERRORS = {"f2": 2**-10, "bf16": 2**-7, "f4": 2**-20, "f8": 2**-48, "c8": 2**-19, "c16": 2**-47}
SUBNORMAL = {"f2": 2**-24}  # where a number is so small that the bits of its mantissa go


def check(device: Device, dtype: str, m: int, k: int, n: int, budget: int, seed: int = 1) -> Tiling:
    """Multiply, and compare with NumPy in float64: the error against that of the absolute values' product."""
    a, b = matrix(dtype, (m, k), seed), matrix(dtype, (k, n), seed + 1)
    out = matrix(dtype, (m, n), seed + 2)  # whatever was there before
    tiling = multiply(device, a, b, out, dtype, budget)
    exact, absolute = wide(dtype, a) @ wide(dtype, b), abs(wide(dtype, a)) @ abs(wide(dtype, b))
    assert np.all(abs(wide(dtype, out) - exact) <= ERRORS[dtype] * absolute + SUBNORMAL.get(dtype, 0.0))
    return tiling


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("budget", [40_000, 200_000, 10 * MIB])
def test_product_of_every_float_dtype(dtype: str, budget: int) -> None:
    check(CPU, dtype, 150, 90, 210, budget)


@settings(deadline=None)
@given(
    m=st.integers(0, 40),
    k=st.integers(0, 40),
    n=st.integers(0, 40),
    budget=st.integers(300, 20_000),
    seed=st.integers(0, 2**32 - 1),
)
def test_product_of_any_shape_in_any_budget(m: int, k: int, n: int, budget: int, seed: int) -> None:
    try:
        check(CPU, "f8", m, k, n, budget, seed)
    except TooLarge:
        assert budget < 6 * 8 * LEAST_SIDE


def test_every_order_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, inner, columns, by_rows in [(7, 50, 9, True), (7, 50, 9, False), (13, 11, 17, True), (40, 1, 60, True)]:
        chosen = Tiling(40, 50, 60, rows, inner, columns, by_rows)
        monkeypatch.setattr(tiles, "plan", lambda *_, chosen=chosen, **__: chosen)
        assert check(CPU, "f8", 40, 50, 60, 0) is chosen


def test_what_is_raised_between_steps_ends_the_product() -> None:
    a = np.ones((100, 100))
    seen: list[int] = []

    def between() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        multiply(CPU, a, a, np.empty((100, 100)), "f8", 20_000, between)
    assert len(seen) == 3


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> Iterator[Device]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from aikoryu.gpu.cuda import CudaDevice

    device = CudaDevice("cuda:0", threads=8)
    device.open()
    with device.stream():
        yield device


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(
    ("m", "k", "n", "budget"),
    [
        (3000, 2000, 2500, 16 * MIB),
        (2500, 2000, 3000, 16 * MIB),
        (700, 30_000, 900, 8 * MIB),
        (4000, 500, 4000, 64 * MIB),
        (1, 40_000, 1000, 16 * MIB),
        (999, 1, 1001, 1 * MIB),
    ],
)
def test_product_on_a_gpu_keeps_to_the_budget(cuda: Device, dtype: str, m: int, k: int, n: int, budget: int) -> None:
    seed = int(np.random.default_rng().integers(1 << 30))
    check(cuda, dtype, 64, 64, 64, MIB, seed)  # cuBLAS takes its workspace
    cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(cuda.place)
    before = torch.cuda.memory_allocated(cuda.place)
    tiling = check(cuda, dtype, m, k, n, budget, seed)
    assert torch.cuda.max_memory_allocated(cuda.place) - before <= budget
    if m * k * n > 1e9 and budget < 64 * MIB:
        assert math.prod(tiling.counts) > 1


@pytest.mark.gpu
def test_gpu_copies_in_pieces_smaller_than_a_tile(cuda: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "STAGING_BYTES", 1 << 16)
    for seed in range(5):
        check(cuda, "f4", 1500, 1200, 1300, 8 * MIB, seed)

"""The matrix operations and echo against NumPy in a wider dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Field, widen_bf16  # noqa: E402 - only where torch is
from aikoryu.gpu.batch import Batch  # noqa: E402
from aikoryu.gpu.device import Device, bits  # noqa: E402
from aikoryu.gpu.operation import Operation  # noqa: E402
from aikoryu.gpu.ops import matrix  # noqa: E402
from aikoryu.gpu.ops.echo import Echo  # noqa: E402

Array = np.ndarray[Any, Any]

# Largest relative error of one rounding to the dtype, and of one step of the sum behind a product.
ROUNDING = {"f2": 2**-11, "bf16": 2**-8, "f4": 2**-24, "f8": 2**-53, "c8": 2**-22, "c16": 2**-51}
STEP = {"f2": 2**-24, "bf16": 2**-24, "f4": 2**-24, "f8": 2**-53, "c8": 2**-22, "c16": 2**-51}
SMALLEST = {"f2": 2**-24, "bf16": 2**-133, "f4": 2**-149, "f8": 2**-1074, "c8": 2**-149, "c16": 2**-1074}
FLOATS = tuple(ROUNDING)
OPERATIONS = {operation.name: operation for operation in matrix.operations()}
ELEMENTWISE = {"matrix.add": np.add, "matrix.subtract": np.subtract, "matrix.multiply": np.multiply}

sizes = st.integers(0, 9)
seeds = st.integers(0, 2**32 - 1)


def run(operation: Operation, dtype: str, **columns: Array) -> Array:
    """The column that the operation answers with, as it lies in memory."""
    device = Device("cpu", threads=1)
    schema = tuple((name, Field(dtype, column.shape[1:])) for name, column in columns.items())
    rows = len(next(iter(columns.values())))
    batch = Batch(rows, schema, columns, operation.parameters(), np.ones(rows, bool), device)
    ((name, result),) = operation.run(batch, device).items()
    ((wanted_name, wanted),) = operation.signature.bind(schema)
    found: Array = result if isinstance(result, np.ndarray) else bits(result).numpy()
    assert (name, found.dtype, found.shape) == (wanted_name, FIXED[wanted.dtype], (rows, *wanted.shape))
    return found


def column(dtype: str, shape: tuple[int, ...], seed: int) -> Array:
    """Random values of a dtype, bf16 as its bits; integers from the whole range."""
    random = np.random.default_rng(seed)
    if dtype in ("i4", "i8"):
        limits = np.iinfo(FIXED[dtype])
        return random.integers(limits.min, limits.max, shape, FIXED[dtype], endpoint=True)
    values = random.normal(0, 2, shape)
    if dtype in ("c8", "c16"):
        values = values + 1j * random.normal(0, 2, shape)
    if dtype == "bf16":
        return np.ascontiguousarray((values.astype("<f4").view("<u4") >> 16).astype("<u2"))
    return values.astype(FIXED[dtype])


def wide(dtype: str, values: Array) -> Array:
    """The same values in float64 or complex128, or their long forms where these are the dtype itself."""
    if dtype == "bf16":
        return widen_bf16(values).astype(np.float64)
    return values.astype({"f8": np.longdouble, "c8": np.complex128, "c16": np.clongdouble}.get(dtype, np.float64))


@settings(deadline=None)
@given(dtype=st.sampled_from(FLOATS), rows=st.integers(1, 5), i=sizes, k=sizes, j=sizes, seed=seeds)
def test_matmul(dtype: str, rows: int, i: int, k: int, j: int, seed: int) -> None:
    a, b = column(dtype, (rows, i, k), seed), column(dtype, (rows, k, j), seed + 1)
    check_product(dtype, a, b, run(OPERATIONS["matrix.matmul"], dtype, a=a, b=b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_matmul_of_larger_ones_is_summed_in_float32_at_least(dtype: str) -> None:
    a, b = column(dtype, (3, 40, 700), 1), column(dtype, (3, 700, 30), 2)
    check_product(dtype, a, b, run(OPERATIONS["matrix.matmul"], dtype, a=a, b=b))


def check_product(dtype: str, a: Array, b: Array, found: Array) -> None:
    exact, absolute = wide(dtype, a) @ wide(dtype, b), abs(wide(dtype, a)) @ abs(wide(dtype, b))
    bound = ROUNDING[dtype] * abs(exact) + 2 * a.shape[2] * STEP[dtype] * absolute + SMALLEST[dtype]
    assert np.all(abs(wide(dtype, found) - exact) <= bound)


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(ELEMENTWISE)),
    dtype=st.sampled_from(FLOATS),
    rows=st.integers(1, 5),
    shape=st.lists(st.integers(0, 5), max_size=3),
    seed=seeds,
)
def test_elementwise(name: str, dtype: str, rows: int, shape: list[int], seed: int) -> None:
    a, b = column(dtype, (rows, *shape), seed), column(dtype, (rows, *shape), seed + 1)
    found = wide(dtype, run(OPERATIONS[name], dtype, a=a, b=b))
    exact = ELEMENTWISE[name](wide(dtype, a), wide(dtype, b))
    assert np.all(abs(found - exact) <= ROUNDING[dtype] * abs(exact) + SMALLEST[dtype])


@settings(deadline=None)
@given(name=st.sampled_from(sorted(ELEMENTWISE)), dtype=st.sampled_from(["i4", "i8"]), seed=seeds)
def test_integers_wrap_around(name: str, dtype: str, seed: int) -> None:
    a, b = column(dtype, (3, 4), seed), column(dtype, (3, 4), seed + 1)
    assert np.array_equal(run(OPERATIONS[name], dtype, a=a, b=b), ELEMENTWISE[name](a, b))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_and_infinity_pass_through(dtype: str) -> None:
    a = np.array([[[np.nan, 1], [np.inf, 0]], [[1, 2], [3, 4]]], FIXED[dtype])
    b = np.array([[[1, 0], [1, 1]], [[1, 0], [0, 1]]], FIXED[dtype])
    product = np.array([[[np.nan, np.nan], [np.inf, np.nan]], [[1, 2], [3, 4]]])
    np.testing.assert_array_equal(run(OPERATIONS["matrix.matmul"], dtype, a=a, b=b), product)
    np.testing.assert_array_equal(run(OPERATIONS["matrix.add"], dtype, a=a, b=b)[0], [[np.nan, 1], [np.inf, 1]])
    np.testing.assert_array_equal(run(OPERATIONS["matrix.subtract"], dtype, a=a, b=a)[0], [[np.nan, 0], [np.nan, 0]])
    np.testing.assert_array_equal(run(OPERATIONS["matrix.multiply"], dtype, a=a, b=b)[0], [[np.nan, 0], [np.inf, 0]])


def test_bf16_nan_and_infinity_pass_through() -> None:
    nan, inf, one = 0x7FC0, 0x7F80, 0x3F80
    a, b = np.array([[[nan, inf]]], "<u2"), np.array([[[one], [one]]], "<u2")
    assert np.isnan(widen_bf16(run(OPERATIONS["matrix.matmul"], "bf16", a=a, b=b)))
    assert run(OPERATIONS["matrix.matmul"], "bf16", a=a[:, :, 1:], b=b[:, :1])[0, 0, 0] == inf


def test_f2_overflows_to_infinity() -> None:
    a = np.full((1, 1, 2), 60_000, "<f2")
    assert run(OPERATIONS["matrix.matmul"], "f2", a=a, b=np.ones((1, 2, 1), "<f2"))[0, 0, 0] == np.inf


@pytest.mark.parametrize("dtype", FIXED)
def test_echo_answers_with_the_columns_own_memory(dtype: str) -> None:
    x = np.arange(12).reshape(3, 2, 2).astype(FIXED[dtype])
    assert run(Echo(), dtype, x=x) is x

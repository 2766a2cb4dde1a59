"""The matrix operations and echo against NumPy in a wider dtype, within the tolerances that docs/matrix.md states."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import FIXED, Field, widen_bf16  # noqa: E402 - only where torch is
from aikoryu.gpu.batch import Batch  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.operation import Operation  # noqa: E402
from aikoryu.gpu.ops import matrix  # noqa: E402
from aikoryu.gpu.ops.echo import Echo  # noqa: E402
from aikoryu.gpu.ops.matrix import einsum, precision  # noqa: E402

Array = np.ndarray[Any, Any]

DOCUMENT = (Path(__file__).parents[2] / "docs/matrix.md").read_text()
ROW = re.compile(r"^\| (\w+(?: with tf32)?) \| 2\^-(\d+) \| 2\^-(\d+) \| (?:0|2\^-(\d+)) \|$", re.MULTILINE)
ROUNDING, STEP, OPERAND = (
    {found[0]: 2.0 ** -int(found[place]) if found[place] else 0.0 for found in ROW.findall(DOCUMENT)}
    for place in (1, 2, 3)
)
FLOATS = tuple(dtype for dtype in ROUNDING if dtype in FIXED)
INTEGERS = ("i4", "i8")
SMALLEST = {"f2": 2**-24, "bf16": 2**-133, "f4": 2**-149, "f8": 2**-1074, "c8": 2**-149, "c16": 2**-1074}
OPERATIONS = {operation.name: operation for operation in matrix.operations()}
ELEMENTWISE = {"matrix.add": np.add, "matrix.subtract": np.subtract, "matrix.multiply": np.multiply}
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "sum": np.sum,
    "mean": lambda terms, **options: np.sum(terms, **options) / np.sum(np.ones(terms.shape), **options),
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "norm": lambda terms, **options: np.sqrt(np.sum(abs(terms) ** 2, **options)),
}
Shape = tuple[int, ...]

floats = st.sampled_from(FLOATS)
sizes = st.integers(0, 9)
rows = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
pairs = mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4, min_side=0)
matmuls = mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=6, min_side=0)


def test_the_document_states_every_dtype() -> None:
    assert (*FLOATS, "f4 with tf32") == ("f2", "bf16", "f4", "f8", "c8", "c16", "f4 with tf32")
    assert {dtype for dtype, rounding in OPERAND.items() if rounding} == {"f4 with tf32"}


def ask(
    device: Device, operation: Operation, dtype: str, columns: dict[str, Array], **given: Any
) -> tuple[Array, Batch]:
    """The column that the operation answers with, on the host, and the batch."""
    schema = tuple((name, Field(dtype, column.shape[1:])) for name, column in columns.items())
    count = len(next(iter(columns.values())))
    parameters = operation.decode_parameters(given)
    batch = Batch(count, schema, columns, parameters, np.ones(count, bool), device)
    ((name, field),) = operation.outputs(schema, parameters)
    found = np.empty((count, *field.shape), FIXED[field.dtype])
    with device.stream():
        answer = operation.run(batch, device)
        assert (list(answer), tuple(answer[name].shape)) == ([name], found.shape)
        assert str(answer[name].dtype) == f"torch.{'bfloat16' if field.dtype == 'bf16' else found.dtype}"
        device.fetch(answer[name], found)
        device.synchronize()
    return found, batch


def run(device: Device, name: str, dtype: str, *operands: Array, **given: Any) -> Array:
    """What the operation answers, where no row fails; numbers in a wider dtype."""
    operation = OPERATIONS[name]
    found, batch = ask(device, operation, dtype, dict(zip(operation.signature.inputs, operands, strict=False)), **given)
    assert batch.errors == {}
    return found


def column(dtype: str, shape: Shape, seed: int) -> Array:
    """Random values of a dtype, bf16 as its bits; integers from the whole range."""
    random = np.random.default_rng(seed)
    if dtype in INTEGERS:
        limits = np.iinfo(FIXED[dtype])
        return random.integers(limits.min, limits.max, shape, FIXED[dtype], endpoint=True)
    values = random.normal(0, 2, shape)
    if dtype in ("c8", "c16"):
        values = values + 1j * random.normal(0, 2, shape)
    return as_dtype(dtype, values)


def as_dtype(dtype: str, values: Array) -> Array:
    if dtype == "bf16":
        return np.ascontiguousarray((values.astype("<f4").view("<u4") >> 16).astype("<u2"))
    return values.astype(FIXED[dtype])


def wide(dtype: str, values: Array) -> Array:
    """The same values in float64 or complex128, or their long forms where these are the dtype itself."""
    if dtype == "bf16":
        return widen_bf16(values).astype(np.float64)
    return values.astype({"f8": np.longdouble, "c8": np.complex128, "c16": np.clongdouble}.get(dtype, np.float64))


def by_row(function: Callable[..., Any], *operands: Array) -> Array:
    return np.array([function(*row) for row in zip(*operands, strict=True)])


def check(dtype: str, found: Array, exact: Array, bound: Array | float = 0.0, rounding: float | None = None) -> None:
    """The answer is within `bound` of the exact one, a rounding to the dtype aside."""
    values = wide(dtype, found)
    assert values.shape == exact.shape
    with np.errstate(all="ignore"):
        close = (
            abs(values - exact)
            <= (ROUNDING[dtype] if rounding is None else rounding) * abs(exact) + bound + SMALLEST[dtype]
        )
    if dtype == "f2":
        close |= np.isinf(values) & (abs(exact) + bound >= 65504)
    close |= np.isnan(values) & np.isnan(exact)
    assert np.all(close)


def summed(spec: str, *row: Array) -> Array:
    """NumPy's, which in version 2.4 frees what it did not allocate where an operand in long form is empty."""
    empty = not all(operand.size for operand in row)
    short = [operand.astype(np.complex128 if np.iscomplexobj(operand) else np.float64) for operand in row]
    answer: Array = np.einsum(spec, *(short if empty else row))
    return answer


def check_product(dtype: str, found: Array, spec: str, operands: Sequence[Array], arithmetic: str = "") -> None:
    """The answer of an einsum, or of a product written as one."""
    exact = by_row(lambda *row: summed(spec, *row), *(wide(dtype, operand) for operand in operands))
    absolute = by_row(lambda *row: summed(spec, *row), *(abs(wide(dtype, operand)) for operand in operands))
    inputs, answer = spec.split("->")
    lengths = {
        letter: size
        for letters, operand in zip(inputs.split(","), operands, strict=True)
        for letter, size in zip(letters, operand.shape[1:], strict=True)
    }
    terms = int(np.prod([size for letter, size in lengths.items() if letter not in answer], dtype=int))
    count = len(operands)
    step = 2 * (terms + count) * STEP[arithmetic or dtype] + 2 * count * OPERAND[arithmetic or dtype]
    check(dtype, found, exact, step * absolute)


class TestElementwise:
    @settings(deadline=None)
    @given(name=st.sampled_from(sorted(ELEMENTWISE)), dtype=floats, rows=rows, pair=pairs, seed=seeds)
    def test_within_a_rounding_where_shapes_broadcast(
        self, device: Device, name: str, dtype: str, rows: int, pair: Any, seed: int
    ) -> None:
        a, b = (column(dtype, (rows, *shape), seed + n) for n, shape in enumerate(pair.input_shapes))
        exact = by_row(ELEMENTWISE[name], wide(dtype, a), wide(dtype, b))
        check(dtype, run(device, name, dtype, a, b), exact.reshape(rows, *pair.result_shape))

    @settings(deadline=None)
    @given(name=st.sampled_from(sorted(ELEMENTWISE)), dtype=st.sampled_from(INTEGERS), seed=seeds)
    def test_integers_wrap_around(self, device: Device, name: str, dtype: str, seed: int) -> None:
        a, b = column(dtype, (3, 4), seed), column(dtype, (3, 4), seed + 1)
        assert np.array_equal(run(device, name, dtype, a, b), ELEMENTWISE[name](a, b))

    def test_a_row_never_broadcasts_with_another(self, device: Device) -> None:
        a, b = np.arange(3, dtype=np.float32), np.ones((3, 3), np.float32)
        np.testing.assert_array_equal(run(device, "matrix.add", "f4", a, b), a[:, None] + b)


class TestMatMul:
    @settings(deadline=None)
    @given(dtype=floats, rows=rows, pair=matmuls, seed=seeds)
    def test_as_numpy_where_shapes_broadcast(self, device: Device, dtype: str, rows: int, pair: Any, seed: int) -> None:
        a, b = (column(dtype, (rows, *shape), seed + n) for n, shape in enumerate(pair.input_shapes))
        exact = by_row(np.matmul, wide(dtype, a), wide(dtype, b)).reshape(rows, *pair.result_shape)
        absolute = by_row(np.matmul, abs(wide(dtype, a)), abs(wide(dtype, b))).reshape(exact.shape)
        bound = 2 * (a.shape[-1] + 2) * STEP[dtype] * absolute
        check(dtype, run(device, "matrix.matmul", dtype, a, b), exact, bound)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_of_larger_ones_is_summed_in_float32_at_least(self, device: Device, dtype: str) -> None:
        a, b = column(dtype, (3, 40, 700), 1), column(dtype, (3, 700, 30), 2)
        check_product(dtype, run(device, "matrix.matmul", dtype, a, b), "ik,kj->ij", (a, b))

    @pytest.mark.parametrize("dtype", ["f2", "bf16"])
    def test_long_sums_that_cancel_are_not_rounded_on_the_way(self, device: Device, dtype: str) -> None:
        half, other = column(dtype, (1, 8, 8192), 1), column(dtype, (1, 8192, 8), 2)
        a = np.concatenate([half, half], axis=2)
        b = np.concatenate([other, as_dtype(dtype, -wide(dtype, other))], axis=1)
        check_product(dtype, run(device, "matrix.matmul", dtype, a, b), "ik,kj->ij", (a, b))

    @pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
    def test_nan_and_infinity_pass_through(self, device: Device, dtype: str) -> None:
        a = np.array([[[np.nan, 1], [np.inf, 0]], [[1, 2], [3, 4]]], FIXED[dtype])
        b = np.array([[[1, 0], [1, 1]], [[1, 0], [0, 1]]], FIXED[dtype])
        product = np.array([[[np.nan, np.nan], [np.inf, np.nan]], [[1, 2], [3, 4]]])
        np.testing.assert_array_equal(run(device, "matrix.matmul", dtype, a, b), product)
        np.testing.assert_array_equal(run(device, "matrix.add", dtype, a, b)[0], [[np.nan, 1], [np.inf, 1]])
        np.testing.assert_array_equal(run(device, "matrix.subtract", dtype, a, a)[0], [[np.nan, 0], [np.nan, 0]])
        np.testing.assert_array_equal(run(device, "matrix.multiply", dtype, a, b)[0], [[np.nan, 0], [np.inf, 0]])

    def test_bf16_nan_and_infinity_pass_through(self, device: Device) -> None:
        nan, inf, one = 0x7FC0, 0x7F80, 0x3F80
        a, b = np.array([[[nan, inf]]], "<u2"), np.array([[[one], [one]]], "<u2")
        assert np.isnan(widen_bf16(run(device, "matrix.matmul", "bf16", a, b)))
        part = np.ascontiguousarray(a[:, :, 1:]), np.ascontiguousarray(b[:, :1])
        assert run(device, "matrix.matmul", "bf16", *part)[0, 0, 0] == inf

    def test_f2_overflows_to_infinity(self, device: Device) -> None:
        a = np.full((1, 1, 2), 60_000, "<f2")
        assert run(device, "matrix.matmul", "f2", a, np.ones((1, 2, 1), "<f2"))[0, 0, 0] == np.inf


class TestPrecision:
    A, B = column("f4", (4, 64, 256), 3), column("f4", (4, 256, 64), 4)
    EXACT = by_row(np.matmul, wide("f4", A), wide("f4", B))

    @pytest.mark.parametrize(("name", "given"), [("matrix.matmul", {}), ("matrix.einsum", {"spec": "ij,jk->ik"})])
    def test_tf32_is_coarser_only_on_cuda_and_only_where_asked_for(
        self, device: Device, name: str, given: dict[str, str]
    ) -> None:
        coarse = run(device, name, "f4", self.A, self.B, **given, precision="tf32")
        fine = run(device, name, "f4", self.A, self.B, **given)
        check_product("f4", coarse, "ik,kj->ij", (self.A, self.B), "f4 with tf32")
        check_product("f4", fine, "ik,kj->ij", (self.A, self.B))
        error, fine_error = (float(np.max(abs(found - self.EXACT))) for found in (coarse, fine))
        assert error > 50 * fine_error if device.is_cuda else error == fine_error

    def test_threads_that_want_different_precisions_each_get_theirs(self, device: Device) -> None:
        def errors(wanted: str) -> list[float]:
            products = (run(device, "matrix.matmul", "f4", self.A, self.B, precision=wanted) for _ in range(200))
            return [float(np.max(abs(product - self.EXACT))) for product in products]

        with ThreadPoolExecutor(4) as threads:
            fine, *others = threads.map(errors, ["highest", "tf32", "highest", "tf32"])
        coarse, fine_too, coarse_too = others
        assert len({*fine, *fine_too}) == len({*coarse, *coarse_too}) == 1
        assert coarse[0] > 50 * fine[0] if device.is_cuda else coarse == fine

    def test_solutions_beside_tf32_products_stay_precise(self, device: Device) -> None:
        a, b = column("f4", (1, 200, 200), 5), column("f4", (1, 200, 64), 6)
        alone = run(device, "matrix.solve", "f4", a, b)  # multiplies inside, so the switch would show

        def multiply() -> None:
            for _ in range(200):
                run(device, "matrix.matmul", "f4", self.A, self.B, precision="tf32")

        with ThreadPoolExecutor(2) as threads:
            multiplying = [threads.submit(multiply) for _ in range(2)]
            for _ in range(50):
                np.testing.assert_array_equal(run(device, "matrix.solve", "f4", a, b), alone)
            for one in multiplying:
                one.result()

    def test_the_switch_is_back_even_if_a_product_fails(self, device: Device) -> None:
        like = torch.zeros(1, device=device.place)
        with pytest.raises(ZeroDivisionError), precision.products(like, "tf32"):
            _ = 1 / 0
        assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@st.composite
def contractions(draw: st.DrawFn) -> tuple[str, list[Shape]]:
    """A spec and the shapes of a row of its operands."""
    length = {letter: draw(st.integers(0, 4)) for letter in "ijkl"}
    operands = draw(st.lists(st.text("ijkl", max_size=3), min_size=1, max_size=4))
    letters = sorted(set("".join(operands)))
    answer = draw(st.lists(st.sampled_from(letters), unique=True)) if letters else []
    return f"{','.join(operands)}->{''.join(answer)}", [tuple(length[one] for one in letters) for letters in operands]


class TestEinsum:
    @settings(deadline=None)
    @given(dtype=floats, rows=rows, contraction=contractions(), seed=seeds)
    def test_as_numpy(self, device: Device, dtype: str, rows: int, contraction: Any, seed: int) -> None:
        spec, row_shapes = contraction
        operands = [column(dtype, (rows, *shape), seed + n) for n, shape in enumerate(row_shapes)]
        check_product(dtype, run(device, "matrix.einsum", dtype, *operands, spec=spec), spec, operands)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize(
        "spec", ["ij,kj->ik", "ij,jk,kl->il", "ij,kl,jk->il", "bij,bjk->bik", "ij,j->i", "ij,ij->"]
    )
    def test_of_larger_ones(self, device: Device, dtype: str, spec: str) -> None:
        length = dict(zip("bijkl", (3, 20, 150, 40, 30), strict=True))
        row_shapes = [tuple(length[letter] for letter in letters) for letters in spec.partition("->")[0].split(",")]
        operands = [column(dtype, (2, *shape), n) for n, shape in enumerate(row_shapes)]
        check_product(dtype, run(device, "matrix.einsum", dtype, *operands, spec=spec), spec, operands)

    def test_rows_are_computed_in_parts_where_what_lies_between_is_large(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operands = [column("f8", (7, 5, 5), n) for n in range(3)]
        monkeypatch.setattr(einsum, "MAX_STEP_ELEMENTS", 60)
        found = run(device, "matrix.einsum", "f8", *operands, spec="ij,jk,kl->il")
        check_product("f8", found, "ij,jk,kl->il", operands)

    def test_letters_and_blanks_make_no_difference(self, device: Device) -> None:
        a, b = column("f4", (2, 3, 4), 0), column("f4", (2, 4, 5), 1)
        one, other = (run(device, "matrix.einsum", "f4", a, b, spec=spec) for spec in ("ij,jk->ik", " Zy , yA -> ZA "))
        np.testing.assert_array_equal(one, other)


class TestSolve:
    @settings(deadline=None)
    @given(dtype=floats, rows=rows, n=sizes, k=st.none() | st.integers(0, 4), seed=seeds)
    def test_within_what_the_condition_allows(
        self, device: Device, dtype: str, rows: int, n: int, k: int | None, seed: int
    ) -> None:
        a, b = column(dtype, (rows, n, n), seed), column(dtype, (rows, n) if k is None else (rows, n, k), seed + 1)
        found, batch = ask(device, OPERATIONS["matrix.solve"], dtype, {"a": a, "b": b})
        for row in range(rows):
            matrix_, right = wide(dtype, a[row]), wide(dtype, b[row])
            relative = 8 * n * STEP[dtype] * condition(matrix_)
            if relative < 0.1:  # else the first digit may be wrong already
                exact = solved(matrix_, right)
                largest = abs(exact).max(axis=0, initial=0.0)
                assert row not in batch.errors
                check(dtype, found[row], exact, (relative + ROUNDING[dtype]) * largest)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("n", [2, 40])
    def test_singular_row_fails_alone(self, device: Device, dtype: str, n: int) -> None:
        eye = np.eye(n)
        a, b = as_dtype(dtype, np.stack([eye, eye * 2, eye])), column(dtype, (3, n), 0)
        a[1, 1] = 0
        found, batch = ask(device, OPERATIONS["matrix.solve"], dtype, {"a": a, "b": b})
        assert {row: code for row, (code, _) in batch.errors.items()} == {1: "bad_value"}
        assert batch.errors[1][1] == "column 'a' is singular: pivot 2 of its LU decomposition is 0"
        np.testing.assert_array_equal(found[[0, 2]], b[[0, 2]])


def condition(matrix_: Array) -> float:
    if not matrix_.size:
        return 1.0
    double = matrix_.astype(np.complex128)
    try:
        return float(np.linalg.norm(double, np.inf) * np.linalg.norm(np.linalg.inv(double), np.inf))
    except np.linalg.LinAlgError:
        return float("inf")


def solved(a: Array, b: Array) -> Array:
    """The solution, refined in the operands' own width."""
    double = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
    x = np.linalg.solve(double, b.astype(double.dtype)).astype(a.dtype)
    for _ in range(4):
        x = x + np.linalg.solve(double, (b - a @ x).astype(double.dtype))
    return x


class TestReduce:
    @settings(deadline=None)
    @given(
        dtype=floats, rows=rows, shape=shapes, function=st.sampled_from(sorted(REDUCTIONS)), data=st.data(), seed=seeds
    )
    def test_as_numpy(
        self, device: Device, dtype: str, rows: int, shape: Shape, function: str, data: st.DataObject, seed: int
    ) -> None:
        axis, keepdims = data.draw(axes_for(len(shape))), data.draw(st.booleans())
        axes = tuple(range(len(shape))) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        terms = int(np.prod([shape[one] for one in axes], dtype=int))
        if function in ("max", "min"):
            assume(terms and dtype not in ("c8", "c16"))
        a = column(dtype, (rows, *shape), seed)
        found = run(device, "matrix.reduce", dtype, a, function=function, axis=axis, keepdims=keepdims)
        with np.errstate(all="ignore"):
            exact, absolute = (
                by_row(lambda row: REDUCTIONS[function](row, axis=axes, keepdims=keepdims), values)
                for values in (wide(dtype, a), abs(wide(dtype, a)))
            )
        if function in ("max", "min"):
            np.testing.assert_array_equal(wide(dtype, found), exact)
        else:
            answered = {"c8": "f4", "c16": "f8"}.get(dtype, dtype) if function == "norm" else dtype
            scale = absolute if function in ("sum", "mean") else abs(exact)
            check(answered, found, exact, np.nan_to_num(2 * terms * STEP[dtype] * scale))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("function", ["sum", "mean", "norm"])
    def test_of_many_terms(self, device: Device, dtype: str, function: str) -> None:
        a = column(dtype, (3, 3000), 0)
        found = run(device, "matrix.reduce", dtype, a, function=function)
        exact = REDUCTIONS[function](wide(dtype, a), axis=1)
        answered = {"c8": "f4", "c16": "f8"}.get(dtype, dtype) if function == "norm" else dtype
        check(answered, found, exact, 2 * 3000 * STEP[dtype] * REDUCTIONS[function](abs(wide(dtype, a)), axis=1))

    @settings(deadline=None)
    @given(
        dtype=st.sampled_from(INTEGERS),
        function=st.sampled_from(["sum", "prod", "max", "min"]),
        axis=st.sampled_from([0, 1]),
    )
    def test_integers_are_exact_and_wrap_around(self, device: Device, dtype: str, function: str, axis: int) -> None:
        a = column(dtype, (3, 4, 5), axis)
        found = run(device, "matrix.reduce", dtype, a, function=function, axis=axis)
        np.testing.assert_array_equal(found, REDUCTIONS[function](a, axis=axis + 1), strict=True)

    @pytest.mark.parametrize("function", sorted(REDUCTIONS))
    def test_nan_passes_through(self, device: Device, function: str) -> None:
        a = np.array([[1, np.nan, 2], [1, 2, 3]], np.float32)
        assert np.isnan(run(device, "matrix.reduce", "f4", a, function=function)).tolist() == [True, False]


def axes_for(rank: int) -> st.SearchStrategy[int | list[int] | None]:
    chosen = st.lists(st.integers(-rank, rank - 1), max_size=rank, unique_by=lambda axis: axis % rank)
    return st.none() | (st.integers(-rank, rank - 1) | chosen if rank else st.just([]))


class TestTranspose:
    @settings(deadline=None)
    @given(dtype=st.sampled_from((*FLOATS, *INTEGERS)), rows=rows, shape=shapes, data=st.data(), seed=seeds)
    def test_as_numpy(
        self, device: Device, dtype: str, rows: int, shape: Shape, data: st.DataObject, seed: int
    ) -> None:
        axes = data.draw(st.none() | st.permutations(range(len(shape))))
        a = column(dtype, (rows, *shape), seed)
        exact = np.stack([np.transpose(row, axes) for row in a])
        np.testing.assert_array_equal(run(device, "matrix.transpose", dtype, a, axes=axes), exact)

    def test_axes_count_from_the_end_too(self, device: Device) -> None:
        a = column("f4", (2, 3, 4, 5), 0)
        found = run(device, "matrix.transpose", "f4", a, axes=[-1, 0, -2])
        np.testing.assert_array_equal(found, a.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "given"), [("matrix.matmul", {}), ("matrix.einsum", {"spec": "ij,jk->ik"})])
def test_functions_take_operands_of_any_strides(device: Device, name: str, given: dict[str, str]) -> None:
    operation = OPERATIONS[name]
    a, b = column("f8", (3, 5, 4), 0), column("f8", (3, 6, 5), 1)
    with device.stream():
        tensors = [torch.from_numpy(operand).to(device.place).transpose(1, 2) for operand in (a, b)]
        product = operation.compute(tensors, operation.decode_parameters(given), lambda *_: None).cpu().numpy()
    np.testing.assert_allclose(product, a.swapaxes(1, 2) @ b.swapaxes(1, 2), rtol=1e-12)


@pytest.mark.parametrize("dtype", FIXED)
def test_echo_answers_with_the_columns_own_memory(dtype: str) -> None:
    x = np.arange(12).reshape(3, 2, 2).astype(FIXED[dtype])
    batch = Batch(3, (("x", Field(dtype, (2, 2))),), {"x": x}, None, np.ones(3, bool), Device("cpu", threads=1))
    assert Echo().run(batch, Device("cpu", threads=1))["x"] is x

"""Expressions: what is admitted, what types they have, and that they are NumPy's, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - only where torch is

from aikoryu.bus.columns import FIXED, Array, Field  # noqa: E402
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue, TooLarge  # noqa: E402
from aikoryu.gpu.batch import Batch  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.expression import MAX_DEPTH, MAX_LENGTH, Type, infer, parse  # noqa: E402
from aikoryu.gpu.functions import FUNCTIONS  # noqa: E402
from aikoryu.gpu.ops import evaluate as module  # noqa: E402
from aikoryu.gpu.ops.evaluate import Evaluate, EvaluateParameters  # noqa: E402
from aikoryu.gpu.residents import Handle, Residents, ResidentsSpec  # noqa: E402

ROWS = 3
DEVICE = Device("cpu", threads=1)
X = Field("f4", (4,))


class Given(Residents):
    """Residents that are there already."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        super().__init__(ResidentsSpec(device_bytes=1 << 20))
        self.tensors = tensors

    @contextmanager
    def use(self, handles: Mapping[str, Handle]) -> Iterator[dict[str, Any]]:
        yield {name: torch.from_numpy(self.tensors[name]) for name in handles}


def field(array: Array, first: int = 0) -> Field:
    return Field({dtype: name for name, dtype in FIXED.items()}[array.dtype], array.shape[first:])


def run(text: str, rows: Mapping[str, Array], shared: Mapping[str, Array] = {}) -> tuple[Array, dict[int, Any]]:
    """The answers of all rows, and the rows refused; checks them against the types promised."""
    operation = Evaluate(Given(shared))
    handles = {name: Handle(f"g.{name}", *field(array)) for name, array in shared.items()}
    parameters = EvaluateParameters(text, handles)
    schema = tuple((name, field(array, 1)) for name, array in rows.items())
    count = len(next(iter(rows.values()))) if rows else ROWS
    batch = Batch(count, schema, rows, parameters, np.ones(count, bool), DEVICE)
    found: Array = operation.run(batch, DEVICE)["y"].numpy().copy()
    ((_, promised),) = operation.outputs(schema, parameters)
    assert (field(found, 1), len(found)) == (promised, count)
    return found, batch.errors


def numpy_softmax(a: Array, axis: int = -1) -> Array:
    powers = np.exp(a - a.max(axis=axis, keepdims=True))
    found: Array = powers / powers.sum(axis=axis, keepdims=True)
    return found


NUMPY: dict[str, Any] = {
    "einsum": np.einsum,
    "solve": np.linalg.solve,
    "transpose": np.transpose,
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "norm": lambda a, axis=None, keepdims=False: np.sqrt(np.sum(np.abs(a) ** 2, axis=axis, keepdims=keepdims)),
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "softmax": numpy_softmax,
}


def reference(text: str, rows: Mapping[str, Array], shared: Mapping[str, Array] = {}) -> Array:
    """The same text as Python, with NumPy, for one row after the other."""
    count = len(next(iter(rows.values()))) if rows else ROWS
    with np.errstate(all="ignore"):
        return np.array(
            [
                eval(text, {"__builtins__": {}}, {**NUMPY, **shared, **{name: a[row] for name, a in rows.items()}})
                for row in range(count)
            ]
        )


# --- values ----------------------------------------------------------------------------------------------------------

SHAPES = [(), (2,), (3,), (2, 2), (2, 3), (3, 2), (3, 3), (2, 3, 2)]


def named(prefix: str, shape: tuple[int, ...]) -> str:
    return prefix + "".join(map(str, shape))


@st.composite
def texts(draw: st.DrawFn, shape: tuple[int, ...] | None = None, depth: int = 3) -> str:
    """An expression of rows of a shape; `r23` is a (2, 3) of each row's own, `s23` one that all share."""
    shape = draw(st.sampled_from(SHAPES[:-1])) if shape is None else shape

    def part(of: tuple[int, ...]) -> str:
        return draw(texts(of, depth - 1))

    kinds = ["name"]
    if depth:
        kinds += ["unary", "binary", "broadcast", "number", "reduce"]
        kinds += ["product", "einsum", "transpose", "solve"] if len(shape) in (1, 2) else []
        kinds += ["softmax"] if shape else []
    match draw(st.sampled_from(kinds)):
        case "unary":
            function = draw(st.sampled_from(["exp", "tanh", "sigmoid", "relu", "sqrt", "log", "-"]))
            return f"{function}({part(shape)})"
        case "binary":
            return f"({part(shape)} {draw(st.sampled_from('+-*/'))} {part(shape)})"
        case "broadcast":
            fewer = part(shape[draw(st.integers(0, len(shape))) :])
            sides = [part(shape), fewer]
            return draw(st.sampled_from("+-*/")).join(draw(st.permutations(sides))).join("()")
        case "number":
            return f"({part(shape)} {draw(st.sampled_from(['+ 2', '* 0.5', '- 3', '/ 4', '** 2', '** 2.0']))})"
        case "reduce":
            axis = draw(st.integers(0, len(shape)))
            function = draw(st.sampled_from(["sum", "mean", "max", "min", "norm"]))
            whole = (*shape[:axis], 2, *shape[axis:])
            if whole not in SHAPES:
                return f"{function}({part(shape)}, axis=())" if function in ("sum", "norm") else named("r", shape)
            return f"{function}({part(whole)}, axis={axis - draw(st.sampled_from([0, len(whole)]))})"
        case "product":
            k = draw(st.integers(2, 3))
            if len(shape) == 2:
                return f"({part((shape[0], k))} @ {part((k, shape[1]))})"
            return draw(
                st.sampled_from([f"({part((k,))} @ {part((k, *shape))})", f"({part((*shape, k))} @ {part((k,))})"])
            )
        case "einsum":
            if len(shape) == 2:
                return f"einsum('ki,jk,k->ij', {part((2, shape[0]))}, {part((shape[1], 2))}, {part((2,))})"
            return f"einsum('ij,j->i', {part((*shape, 3))}, {part((3,))})"
        case "transpose":
            return f"transpose({part(shape[::-1])})"
        case "solve":
            n = shape[0]
            return f"solve({named('r', (n, n))} + {n}0 * {named('e', (n, n))}, {part(shape)})"
        case "softmax":
            return f"softmax({part(shape)}, axis={draw(st.integers(-len(shape), len(shape) - 1))})"
    return named(draw(st.sampled_from("rs")), shape)


@settings(deadline=None, max_examples=300)
@given(text=texts(), seed=st.integers(0, 2**32 - 1), at_once=st.sampled_from([1, 1 << 28]))
def test_value_is_numpys(text: str, seed: int, at_once: int) -> None:
    random = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for shape in SHAPES:
        values[named("r", shape)] = random.uniform(0.5, 2, (ROWS, *shape))
        values[named("s", shape)] = random.uniform(0.5, 2, shape)
    values |= {"e22": np.eye(2), "e33": np.eye(3)}
    used = parse(text).names
    rows = {name: values[name] for name in used if name[0] == "r"}
    shared = {name: values[name] for name in used if name[0] != "r"}
    expected = reference(text, rows, shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_BYTES", at_once)
        found, errors = run(text, rows, shared)
    if np.all(np.isfinite(expected)) and float(np.max(np.abs(expected), initial=0)) < 1e6:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert not errors


KINDS = {"f2": 2e-3, "f4": 1e-5, "f8": 1e-12, "c8": 1e-5, "c16": 1e-12}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "x @ w + 1",
        "exp(-x) * 2",
        "tanh(x) / 3 - x ** 2",
        "sum(x, axis=0, keepdims=True)",
        "einsum('i,ij->j', x, w)",
        "norm(x)",
    ],
)
def test_every_float_dtype(dtype: str, text: str) -> None:
    random = np.random.default_rng(5)
    x, w = (random.uniform(0.5, 1, shape).astype(FIXED[dtype]) for shape in [(ROWS, 4), (4, 5)])
    wide = np.complex128 if dtype[0] == "c" else np.float64
    given_w = {"w": w} if "w" in text else {}
    found, _ = run(text, {"x": x}, given_w)
    expected = reference(text, {"x": x.astype(wide)}, {"w": w.astype(wide)})
    np.testing.assert_allclose(found.astype(wide), expected, rtol=KINDS[dtype])


@pytest.mark.parametrize(
    "text", ["x + 3 * x", "-x ** 2", "sum(x)", "max(x) - min(x)", "relu(x)", "transpose(x)", "x * 2 ** 3"]
)
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_integers(text: str, dtype: str) -> None:
    x = np.random.default_rng(6).integers(-9, 9, (ROWS, 2, 3)).astype(FIXED[dtype])
    found, _ = run(text, {"x": x})
    np.testing.assert_array_equal(found, reference(text, {"x": x}))


def test_complex_numbers() -> None:
    x = np.random.default_rng(6).normal(size=(ROWS, 3)) + 1j
    found, _ = run("x * 2j + (1 + 1j) / 2", {"x": x})
    np.testing.assert_allclose(found, x * 2j + (1 + 1j) / 2)


def test_answer_that_all_rows_share() -> None:
    w = np.arange(6.0).reshape(2, 3)
    found, _ = run("w * 2", {}, {"w": w})
    np.testing.assert_array_equal(found, np.broadcast_to(w * 2, (ROWS, 2, 3)))


def test_resident_alone_is_its_value() -> None:
    w = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(run("w", {}, {"w": w})[0][1], w)


@pytest.mark.parametrize("at_once", [1, 1 << 28])
def test_singular_row_fails_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "ROWS_BYTES", at_once)
    a = np.stack([np.eye(2), np.zeros((2, 2)), 2 * np.eye(2)])
    found, errors = run("solve(a, b)", {"a": a}, {"b": np.ones(2)})
    np.testing.assert_array_equal(found[[0, 2]], [[1, 1], [0.5, 0.5]])
    assert list(errors) == [1]
    assert errors[1][0] == "bad_value"


@pytest.mark.parametrize("rows", [{}, {"b": np.ones((ROWS, 2))}])
def test_singular_matrix_that_all_share_fails_the_call(rows: dict[str, Array]) -> None:
    with pytest.raises(BadValue, match="singular"):
        run("solve(a, b)", rows, {"a": np.zeros((2, 2))} | ({} if rows else {"b": np.ones(2)}))


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of every matrix product and decomposition."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm", "mv", "addmm", "_linalg_solve_ex"):
            self.seen.append((name, tuple(args[0].shape), tuple(args[1].shape)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("text", "x", "w", "product"),
    [
        ("x @ w", (8,), (8, 5), ("mm", (7, 8), (8, 5))),
        ("x @ w", (6, 8), (8, 5), ("mm", (42, 8), (8, 5))),
        ("w @ x", (8,), (5, 8), ("mm", (7, 8), (8, 5))),
        ("einsum('k,kn->n', x, w)", (8,), (8, 5), ("bmm", (1, 7, 8), (1, 8, 5))),
        ("einsum('mk,kn->mn', x, w)", (6, 8), (8, 5), ("bmm", (1, 42, 8), (1, 8, 5))),
        ("solve(w, x)", (8,), (8, 8), ("_linalg_solve_ex", (1, 8, 8), (1, 8, 7))),
        ("solve(w, x)", (8, 2), (8, 8), ("_linalg_solve_ex", (1, 8, 8), (1, 8, 14))),
    ],
)
def test_what_all_rows_share_is_one_product(text: str, x: Any, w: Any, product: Any) -> None:
    random = np.random.default_rng(7)
    rows, shared = {"x": random.normal(size=(7, *x))}, {"w": random.normal(size=w)}
    with Products() as products:
        found, _ = run(text, rows, shared)
    assert products.seen == [product]
    np.testing.assert_allclose(found, reference(text, rows, shared), rtol=1e-9)


def test_what_only_residents_need_is_computed_once() -> None:
    shared = {"w": np.eye(4) * 2, "u": np.eye(4) * 3}
    with Products() as products:
        found, _ = run("x @ (w @ u) + x @ (w @ u)", {"x": np.ones((ROWS, 4))}, shared)
    assert len(products.seen) == 2
    np.testing.assert_array_equal(found, np.full((ROWS, 4), 12.0))


# --- what is refused -------------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    " ",
    "2",
    "2 + 3",
    "x @",
    "x.real",
    "x[0]",
    "x;x",
    "x\0",
    "ä",
    "import os",
    "__import__('os')",
    "x.__class__",
    "eval('x')",
    "open('f')",
    "negative(x)",
    "lambda: x",
    "f'{x}'",
    "b'x'",
    "'x'",
    "x if x else x",
    "x and x",
    "not x",
    "x < 3",
    "x == x",
    "(x := 3)",
    "[x for x in x]",
    "[x]",
    "(x, x)",
    "x is x",
    "1is x",
    "0x10 * x",
    "1_000 * x",
    "x // 2",
    "x % 2",
    "x << 2",
    "~x",
    "+x",
    "x()",
    "x(x)",
    "exp",
    "exp()",
    "exp(2)",
    "exp(x, x)",
    "exp(x, axis=1)",
    "exp(*x)",
    "sum(x, **x)",
    "sum(x, axis=x)",
    "sum(x, axis='a')",
    "sum(x, axis=1.5)",
    "sum(x, axis=1)",
    "sum(x, axis=(0, 0))",
    "sum(x, 0, axis=0)",
    "sum(x, 0, True, 3)",
    "sum(x, keepdims=3)",
    "sum(x, out=x)",
    f"sum(x, axis={2**70})",
    "softmax(x, axis=None)",
    "softmax(x, axis=7)",
    "transpose(x, (0, 1))",
    "einsum(x)",
    "einsum(x, x)",
    "einsum('i->i')",
    "einsum('i,i', x, x)",
    "einsum('i->ii', x)",
    "einsum('ij->i', x)",
    "einsum('i,i,i,i,i->i', x, x, x, x, x)",
    "solve(x, x)",
    "x @ 2",
    "2 @ x",
    "x @ x @ x",
    "x + y",
    "x + 2j",
    "1 / 0 + x",
    "9 ** 9 ** 9 * x",
    "2 ** 0.5j ** 2 + x",
    "9" * 400 + "* x",
    "x" + " + x" * (MAX_LENGTH // 4),
    "(" * 300 + "x" + ")" * 300,
    "-" * (MAX_LENGTH - 1) + "x",
    "exp(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1),
    "2 ** " * 300 + "x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_hostile_expression_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(BadParameter) as caught:
        infer(parse(text), {"x": Type(X, True)})
    assert 20 < len(str(caught.value)) < 400


@settings(deadline=None, max_examples=500)
@given(text=st.text(st.sampled_from("xw 12.,()@+-*/'=eijk>sumxp[]\n:\\\""), max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    with suppress(BadParameter, TooLarge):
        infer(parse(text), {"x": Type(X, True), "w": Type(Field("f4", (4, 4)), False)})


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("x / 2", "i4"),
        ("x * 1.5", "i8"),
        (f"x + {2**31}", "i4"),
        ("x ** -1", "i8"),
        ("2 ** x", "i8"),
        ("mean(x)", "i4"),
        ("relu(x)", "c8"),
        ("max(x)", "c16"),
        ("exp(x)", "i4"),
        ("softmax(x)", "c8"),
        ("x + 1j", "f8"),
        ("x @ x", "i8"),
    ],
)
def test_dtype_that_a_function_does_not_take(text: str, dtype: str) -> None:
    with pytest.raises(BadParameter, match="in '"):
        infer(parse(text), {"x": Type(Field(dtype, (4,)), True)})


def test_operands_are_of_one_dtype() -> None:
    with pytest.raises(BadParameter, match="send both in one dtype"):
        infer(parse("x + y"), {"x": Type(X, True), "y": Type(Field("f8", (4,)), True)})


def test_step_that_one_row_has_no_room_for_is_refused() -> None:
    x = Type(Field("f4", (20_000,)), True)
    with pytest.raises(TooLarge, match="for one row"):
        infer(parse("sum(einsum('i,j->ij', x, x))"), {"x": x})
    infer(parse("sum(einsum('i,j->ij', x, x))"), {"x": x._replace(has_rows=False)})


def test_bytes_alive_at_once() -> None:
    types = {"x": Type(Field("f4", (1000,)), True), "w": Type(Field("f4", (50,)), False)}
    plan = infer(parse("sum(exp(x * 2)) + sum(exp(w))"), types)
    assert plan.row_peak_bytes == 8000
    assert plan.shared_peak_bytes == 204


def test_equal_parts_are_one_step() -> None:
    assert len(parse("exp(x @ w) + exp(x @ w)").steps) == 3
    assert len(parse("(x + 1) * (x + 1.0)").steps) == 3


def operation(budget: int = 1 << 20) -> Evaluate:
    residents = Given({})
    residents.budget_bytes = budget
    return Evaluate(residents)


@pytest.mark.parametrize(
    ("schema", "parameters", "message"),
    [
        ([("x", X)], {"expression": "2 * w", "handles": {"w": ("g.w", "f4", [3])}}, "'x' is not in the expression"),
        ([("x", X)], {"expression": "x", "handles": {"w": ("g.w", "f4", [3])}}, "'w' is not in the expression"),
        ([("x", X)], {"expression": "x", "handles": {"x": ("g.w", "f4", [3])}}, "a column and a handle"),
        ([("x", Field("utf8"))], {"expression": "x"}, "expressions take f2"),
        ([("x", Field("bool", (3,)))], {"expression": "x"}, "expressions take f2"),
        ([("x", X)], {"expression": "x", "keep": ("g.k", "me", 1)}, "handles only"),
    ],
)
def test_columns_that_do_not_suit(schema: Any, parameters: dict[str, Any], message: str) -> None:
    handles = {name: Handle(key, t, tuple(s)) for name, (key, t, s) in parameters.pop("handles", {}).items()}
    keep = module.Keep(*parameters.pop("keep")) if "keep" in parameters else None
    with pytest.raises(BadColumn, match=message):
        operation().outputs(tuple(schema), EvaluateParameters(**parameters, handles=handles, keep=keep))


def test_shared_steps_stay_within_the_devices_budget() -> None:
    with pytest.raises(TooLarge, match=r"raise residents\.device_bytes"):
        run("sum(einsum('i,j->ij', w, w)) + x", {"x": np.ones((ROWS, 4))}, {"w": np.ones(1000)})


def test_every_function_is_tested() -> None:
    tested = {name for name in FUNCTIONS if name.isalpha()} - {"negative"}
    assert tested == set(NUMPY)

"""What signatures admit, what they say of the rest, and the signatures of the built-in operations."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import FIXED, Field, Schema
from aikoryu.bus.errors import BadColumn
from aikoryu.gpu.ops.echo import Echo
from aikoryu.gpu.ops.matrix import MatMul, operations
from aikoryu.gpu.signature import Signature

MATMUL = MatMul.signature
ADD = operations()[1].signature
sizes = st.integers(0, 9)
fixed = st.sampled_from(sorted(FIXED))


def pair(a: Field, b: Field) -> Schema:
    return (("a", a), ("b", b))


@given(dtype=st.sampled_from(["f2", "bf16", "f4", "f8", "c8", "c16"]), i=sizes, k=sizes, j=sizes)
def test_product_binds_outer_dimensions(dtype: str, i: int, k: int, j: int) -> None:
    assert MATMUL.bind(pair(Field(dtype, (i, k)), Field(dtype, (k, j)))) == (("c", Field(dtype, (i, j))),)


@given(a=st.tuples(fixed, st.lists(sizes, max_size=3)), b=st.tuples(fixed, st.lists(sizes, max_size=3)))
def test_product_admits_what_numpy_multiplies(a: tuple[str, list[int]], b: tuple[str, list[int]]) -> None:
    schema = pair(Field(a[0], tuple(a[1])), Field(b[0], tuple(b[1])))
    try:
        shape = np.matmul(np.zeros(a[1]), np.zeros(b[1])).shape
    except ValueError:
        shape = None
    if shape is not None and a[0] == b[0] and a[0] in {"f2", "bf16", "f4", "f8", "c8", "c16"}:
        assert MATMUL.bind(schema) == (("c", Field(a[0], shape)),)
    else:
        with pytest.raises(BadColumn):
            MATMUL.bind(schema)


@given(a=st.lists(st.integers(0, 3), max_size=4), b=st.lists(st.integers(0, 3), max_size=4))
def test_elementwise_shapes_broadcast_as_numpys(a: list[int], b: list[int]) -> None:
    schema = pair(Field("f4", tuple(a)), Field("f4", tuple(b)))
    try:
        shape = np.broadcast_shapes(a, b)
    except ValueError:
        with pytest.raises(BadColumn, match="does not broadcast"):
            ADD.bind(schema)
    else:
        assert ADD.bind(schema) == (("c", Field("f4", shape)),)


@given(dtype=fixed, shape=st.lists(sizes, max_size=4))
def test_echo_answers_any_shape_and_fixed_dtype(dtype: str, shape: list[int]) -> None:
    field = Field(dtype, tuple(shape))
    ((name, found),) = Echo.signature.bind((("x", field),))
    assert (name, found) == ("x", field)
    assert found.row_bytes == FIXED[dtype].itemsize * prod(shape)


@pytest.mark.parametrize("dtype", ["f2", "bf16", "f4", "f8", "c8", "c16", "i4", "i8"])
def test_elementwise_dtypes(dtype: str) -> None:
    assert ADD.bind(pair(Field(dtype, (3,)), Field(dtype, (3,)))) == (("c", Field(dtype, (3,))),)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ((("a", Field("f4", (2, 2))),), "column 'b' is missing: send a: T[*,i?,k], b: T[*,k,j?]"),
        (
            (*pair(Field("f4", (2, 2)), Field("f4", (2, 2))), ("d", Field("f4"))),
            "column 'd' is not known here: send a: T[*,i?,k], b: T[*,k,j?]",
        ),
        (pair(Field("i4", (2, 2)), Field("i4", (2, 2))), "column 'a' is i4: send f2 or bf16 or f4 or f8 or c8 or c16"),
        (pair(Field("utf8"), Field("f4", (2, 2))), "column 'a' is utf8: send f2 or bf16 or f4 or f8 or c8 or c16"),
        (
            pair(Field("f4", (2, 2)), Field("f8", (2, 2))),
            "column 'b' is f8, but another column is f4: send both in one dtype",
        ),
        (
            pair(Field("f4"), Field("f4", (2, 2))),
            "a row of column 'a' has 0 dimensions []: send T[*,i?,k], 1 or more dimensions a row",
        ),
        (
            pair(Field("f4", (2, 3)), Field("f4", (2, 4))),
            "column 'b' (T[*,k,j?]): dimension k is 2, but another column has 3",
        ),
    ],
)
def test_message_says_what_to_change(schema: Schema, message: str) -> None:
    with pytest.raises(BadColumn) as caught:
        MATMUL.bind(schema)
    assert str(caught.value) == message


def test_message_shows_what_does_not_broadcast() -> None:
    with pytest.raises(BadColumn) as caught:
        ADD.bind(pair(Field("f4", (3, 2)), Field("f4", (2, 2))))
    assert str(caught.value) == (
        "column 'b' (T[*]): [2, 2] does not broadcast with [3, 2] of another column: "
        "from the last to the first, dimensions must be equal or 1"
    )


def test_dots_are_one_shape_a_name() -> None:
    signature = Signature({"a": "f4[...]", "b": "f4[...]", "c": "f4[...other]"}, {"d": "f4[...other]"})
    schema = (*pair(Field("f4", (2, 3)), Field("f4", (2, 3))), ("c", Field("f4", (4,))))
    assert signature.bind(schema) == (("d", Field("f4", (4,))),)
    with pytest.raises(BadColumn, match=r"the shape is \[3, 2\], but another column has \[2, 3\]"):
        signature.bind((*pair(Field("f4", (2, 3)), Field("f4", (3, 2))), ("c", Field("f4", (4,)))))


def test_one_dimension_may_be_missing() -> None:
    signature = Signature({"a": "f4[n,n]", "b": "f4[n,k?]"}, {"x": "f4[n,k?]"})
    right: list[tuple[int, ...]] = [(3,), (3, 2)]
    for shape in right:
        assert signature.bind(pair(Field("f4", (3, 3)), Field("f4", shape))) == (("x", Field("f4", shape)),)
    wrong: list[tuple[int, ...]] = [(), (3, 2, 1)]
    for shape in wrong:
        with pytest.raises(BadColumn, match=r"send f4\[n,k\?\], 1 or 2 dimensions a row"):
            signature.bind(pair(Field("f4", (3, 3)), Field("f4", shape)))


def test_columns_may_be_left_out() -> None:
    signature = Signature({"a": "T[...a]", "b": "T[...b]"}, {"c": "T[...a]"}, {"T": "f4|f8"}, optional=("b",))
    assert str(signature) == "a: T[...a], b?: T[...b]"
    assert signature.bind((("a", Field("f8", (2,))),)) == (("c", Field("f8", (2,))),)
    signature.check(pair(Field("f4", (2,)), Field("f4")))
    with pytest.raises(BadColumn, match="send both in one dtype"):
        signature.check(pair(Field("f4", (2,)), Field("f8")))
    with pytest.raises(BadColumn, match=r"column 'a' is missing: send a: T\[\.\.\.a\], b\?: "):
        signature.check((("b", Field("f4")),))


def test_numbers_are_dimensions() -> None:
    signature = Signature({"x": "f4[384]"}, {"y": "f4[2,2]", "z": "utf8"})
    assert signature.bind((("x", Field("f4", (384,))),)) == (("y", Field("f4", (2, 2))), ("z", Field("utf8")))
    with pytest.raises(BadColumn, match=r"a row of column 'x' is f4\[383\]: send f4\[384\]"):
        signature.bind((("x", Field("f4", (383,))),))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("f4[", "write dtype"),
        ("float[2]", "'float' is no dtype of the bus"),
        ("f4|text", "'text' is no dtype of the bus"),
        ("T[i]", "say in `types` what T may stand for"),
        ("f4[...,2]", "stands for the whole shape, alone"),
        ("f4[2,*]", r"'\*' comes first"),
        ("f4[i?,k?]", "may do without one dimension"),
    ],
)
def test_bad_signatures_are_refused_when_written(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Signature({"x": spec}, {})

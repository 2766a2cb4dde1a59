"""What the matrix operations say of types and parameters before anything runs; no torch is loaded for it."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import Field
from aikoryu.bus.errors import BadColumn, BadParameter, BusError, TooLarge
from aikoryu.gpu.ops import matrix
from aikoryu.gpu.ops.matrix.einsum import notation, plan

OPERATIONS = {operation.name: operation for operation in matrix.operations()}


def f4(*shape: int) -> Field:
    return Field("f4", shape)


def answer(name: str, *operands: Field, **given: Any) -> Field:
    """The type of the answer, as the front works it out."""
    operation = OPERATIONS[name]
    schema = tuple(zip(operation.signature.inputs, operands, strict=False))
    ((_, field),) = operation.outputs(tuple(reversed(schema)), operation.decode_parameters(given))
    return field


@pytest.mark.parametrize(
    ("name", "operands", "parameters", "expected"),
    [
        ("matrix.matmul", [f4(5, 2, 3), f4(3)], {}, f4(5, 2)),
        ("matrix.matmul", [f4(3), f4(3)], {"precision": "tf32"}, f4()),
        ("matrix.add", [f4(5, 1), f4(3)], {}, f4(5, 3)),
        ("matrix.einsum", [f4(2, 3), f4(3, 4)], {"spec": "ij,jk->ki"}, f4(4, 2)),
        ("matrix.einsum", [f4(), f4(2)], {"spec": ",i->i"}, f4(2)),
        ("matrix.einsum", [f4(3, 3)], {"spec": "ii->"}, f4()),
        ("matrix.solve", [f4(3, 3), f4(3)], {}, f4(3)),
        ("matrix.solve", [f4(3, 3), f4(3, 2)], {}, f4(3, 2)),
        ("matrix.reduce", [f4(2, 3, 4)], {"function": "sum", "axis": [0, -1]}, f4(3)),
        ("matrix.reduce", [f4(2, 3, 4)], {"function": "sum", "axis": 1, "keepdims": True}, f4(2, 1, 4)),
        ("matrix.reduce", [f4(2, 3)], {"function": "sum", "axis": []}, f4(2, 3)),
        ("matrix.reduce", [Field("c8", (2,))], {"function": "norm"}, Field("f4")),
        ("matrix.reduce", [Field("c16", (2,))], {"function": "norm"}, Field("f8")),
        ("matrix.reduce", [Field("i4", (2,))], {"function": "sum"}, Field("i8")),
        ("matrix.reduce", [Field("i4", (2,))], {"function": "max"}, Field("i4")),
        ("matrix.transpose", [f4(2, 3, 4)], {}, f4(4, 3, 2)),
        ("matrix.transpose", [f4(2, 3, 4)], {"axes": [1, -1, 0]}, f4(3, 4, 2)),
    ],
)
def test_type_of_the_answer(name: str, operands: list[Field], parameters: dict[str, Any], expected: Field) -> None:
    assert answer(name, *operands, **parameters) == expected


@pytest.mark.parametrize(
    ("name", "operands", "parameters", "code", "message"),
    [
        ("matrix.matmul", [f4(2, 2)] * 2, {"precision": "low"}, "bad_parameter", "takes these parameters: precision"),
        ("matrix.matmul", [f4(2), f4(3)], {}, "bad_column", "dimension k is 3, but another column has 2"),
        ("matrix.einsum", [f4(2)], {}, "bad_parameter", "missing required field `spec`"),
        ("matrix.einsum", [f4(2)], {"spec": "i"}, "bad_parameter", "spec 'i': write a letter a dimension of a row"),
        ("matrix.einsum", [f4(2)], {"spec": "...i->i"}, "bad_parameter", "the rows' own axis is not written"),
        ("matrix.einsum", [f4()] * 4, {"spec": ",,,,->"}, "bad_parameter", "one to four operands"),
        ("matrix.einsum", [f4(2)], {"spec": "i->ii"}, "bad_parameter", "'i' of the answer stands there twice"),
        ("matrix.einsum", [f4(2)], {"spec": "i->j"}, "bad_parameter", "'j' of the answer is in no operand"),
        ("matrix.einsum", [f4(2)], {"spec": "i,i->"}, "bad_column", "2 operands, but 1 columns came: send a, b"),
        ("matrix.einsum", [f4(2), f4(2)], {"spec": "i->"}, "bad_column", "1 operands, but 2 columns came: send a"),
        ("matrix.einsum", [f4(2), f4(2)], {"spec": "i,xy->"}, "bad_column", "'b' has 1 dimensions [2], but spec"),
        ("matrix.einsum", [f4(2), f4(3)], {"spec": "x,x->"}, "bad_column", "'b': dimension x of spec 'x,x->' is 3"),
        ("matrix.einsum", [f4(2), Field("f8", (2,))], {"spec": "i,i->"}, "bad_column", "send both in one dtype"),
        ("matrix.einsum", [Field("i4", (2,))], {"spec": "i->"}, "bad_column", "is i4: send f2 or bf16"),
        ("matrix.solve", [f4(2, 3), f4(2)], {}, "bad_column", "dimension n is 3"),
        ("matrix.solve", [f4(2, 2), f4(3)], {}, "bad_column", "dimension n is 3, but another column has 2"),
        ("matrix.reduce", [f4(2)], {"function": "median"}, "bad_parameter", "takes these parameters: function, axis"),
        ("matrix.reduce", [f4(2)], {"function": "sum", "axis": 1}, "bad_parameter", "use -1 to 0"),
        ("matrix.reduce", [f4()], {"function": "sum", "axis": 0}, "bad_parameter", "axis 0 of a row with 0 dimensions"),
        ("matrix.reduce", [f4(2, 2)], {"function": "sum", "axis": [1, -1]}, "bad_parameter", "give each axis once"),
        ("matrix.reduce", [f4(2, 0)], {"function": "max"}, "bad_column", "nothing has no max"),
        ("matrix.reduce", [Field("c8", (2,))], {"function": "min"}, "bad_column", "complex numbers have no min"),
        ("matrix.reduce", [Field("i8", (2,))], {"function": "mean"}, "bad_column", "whose mean would be no integer"),
        ("matrix.transpose", [f4(2, 2)], {"axes": [0, 0]}, "bad_parameter", "give each of 0 to 1 once"),
        ("matrix.transpose", [f4(2, 2)], {"axes": [0, 2]}, "bad_parameter", "give each of 0 to 1 once"),
        ("matrix.transpose", [f4(2, 2)], {"axes": [0]}, "bad_parameter", "give each of 0 to 1 once"),
    ],
)
def test_message_says_what_to_change(
    name: str, operands: list[Field], parameters: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises((BadColumn, BadParameter)) as caught:
        answer(name, *operands, **parameters)
    assert caught.value.code == code
    assert message in str(caught.value)


@given(spec=st.text("ijA,->. ", max_size=20), shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=5))
def test_any_spec_is_admitted_or_refused(spec: str, shapes: list[list[int]]) -> None:
    operands = [f4(*shape) for shape in shapes[:4]]
    try:
        answer("matrix.einsum", *operands, spec=spec)
    except BusError as error:
        assert error.code in ("bad_column", "bad_parameter")  # noqa: PT017 - admitting is right too


def test_specs_of_one_meaning_share_a_lane() -> None:
    einsum = OPERATIONS["matrix.einsum"]
    keys = [
        einsum.lane_key((), einsum.decode_parameters({"spec": spec, "precision": precision}))
        for spec, precision in [("ij,jk->ik", "highest"), ("x y, yA -> xA", "highest"), ("ij,jk->ik", "tf32")]
    ]
    assert keys[0] == keys[1] != keys[2]


def test_too_many_letters_are_refused() -> None:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    notation(f"{letters[:51]}->")
    for spec in (f"{letters}->", f"{letters[:32]}->{letters[:32]}"):
        with pytest.raises(BadParameter, match="use at most 31 and 51"):
            notation(spec)


@given(st.data())
def test_no_order_of_contractions_is_cheaper(data: st.DataObject) -> None:
    sizes = {letter: data.draw(st.integers(1, 50)) for letter in "ijkl"}
    operands = tuple(data.draw(st.lists(st.sampled_from("ijkl"), max_size=3).map("".join)) for _ in range(4))
    spec = notation(f"{','.join(operands)}->")
    shapes = tuple(tuple(sizes[letter] for letter in letters) for letters in operands)
    steps, largest = plan(spec, shapes)
    renamed = dict(zip("".join(spec.operands), itertools.chain.from_iterable(shapes), strict=True))

    def cost(order: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        there, multiplications, between = [set(letters) for letters in spec.operands], 0, 0
        for left, right in order:
            one, other = there[left], there[right]
            there = [letters for place, letters in enumerate(there) if place not in (left, right)]
            multiplications += math.prod(renamed[letter] for letter in one | other)
            there.append((one | other) & set().union(*there))
            if len(there) > 1:
                between = max(between, math.prod(renamed[letter] for letter in there[-1]))
        return multiplications, between

    orders = itertools.product(*(itertools.combinations(range(count), 2) for count in (4, 3, 2)))
    chosen = tuple((step.left, step.right) for step in steps)
    assert cost(chosen)[0] == min(cost(order)[0] for order in orders)
    assert cost(chosen)[1] == largest


def test_what_lies_between_two_products_is_bounded() -> None:
    four = [f4(100, 100, 100)] * 4
    with pytest.raises(TooLarge, match="goes through 100000000 elements a row between two products"):
        answer("matrix.einsum", *four, spec="ijk,ilm,jln,kmn->")


def test_no_torch_is_needed() -> None:
    program = (
        "import sys\n"
        "from aikoryu.bus.columns import Field\n"
        "from aikoryu.gpu.ops import matrix\n"
        "given = {'matrix.einsum': {'spec': 'ij,jk->ik'}, 'matrix.reduce': {'function': 'sum'}}\n"
        "for made in matrix.operations():\n"
        "    names = [name for name in made.signature.inputs if name in 'ab']\n"
        "    parameters = made.decode_parameters(given.get(made.name, {}))\n"
        "    made.outputs(tuple((name, Field('f4', (2, 2))) for name in names), parameters)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")

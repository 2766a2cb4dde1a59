"""What expressions can do: each function's rule for types, and how it is computed for all rows at once.

Where a matrix operation does the same, it does it here too. Every tensor has the row axis in front, of size 1 for what
all rows share, such as a resident: that is never copied for each row, so `x @ w` is one product.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from ..bus.columns import FIXED, Field
from ..bus.errors import BadParameter, BadValue
from .ops.matrix import Einsum, MatMul, Multiply, Reduce, Solve, Transpose
from .ops.matrix.einsum import EinsumParameters, notation, plan
from .ops.matrix.elementwise import aligned
from .ops.matrix.matmul import MatMulParameters
from .ops.matrix.operation import FLOATS, INTEGERS, MatrixOperation, Reject
from .ops.matrix.precision import is_half, products
from .ops.matrix.reduce import ReduceParameters, axes_of
from .ops.matrix.transpose import TransposeParameters

if TYPE_CHECKING:
    from torch import Tensor

Number: TypeAlias = "int | float | complex"
"""A number as it is written, of no dtype: it takes that of the tensor beside it."""

Literal: TypeAlias = "int | bool | str | list[int] | None"

REAL = ("f2", "bf16", "f4", "f8")
ALL = tuple(FLOATS.split("|"))
INTEGER = tuple(INTEGERS.split("|"))


class Function:
    """One function or operator of expressions.

    Attributes:
        name: as it is written.
        least, most: how many tensors it takes.
        takes_numbers: numbers may stand in their place, not for all of them.
        names: of its further arguments, in order; all have defaults.
    """

    name: str
    least: int = 1
    most: int = 1
    takes_numbers: bool = False
    names: tuple[str, ...] = ()

    def options(self, given: Mapping[str, Literal]) -> Any:
        """Its further arguments.

        Raises:
            msgspec.ValidationError: one is of a wrong type.
        """
        return None

    def rule(self, operands: Sequence[Field | Number], options: Any) -> Field:
        """The type of a row of the answer.

        Raises:
            BadColumn, BadParameter, TooLarge: the operands or options do not suit.
        """
        raise NotImplementedError

    def inner_bytes(self, operands: Sequence[Field | Number], options: Any) -> int:
        """What it needs for a row besides its answer, bytes."""
        return 0

    def compute(self, operands: Sequence[Tensor | Number], options: Any, reject: Reject) -> Tensor:
        """The answer of all rows, or of what they share: (rows or 1, ...)."""
        raise NotImplementedError


class _Of(Function):
    """A matrix operation as a function."""

    def __init__(self, name: str, operation: MatrixOperation, least: int, most: int) -> None:
        self.name = name
        self.least = least
        self.most = most
        self._operation = operation

    def options(self, given: Mapping[str, Literal]) -> Any:
        return msgspec.convert(dict(given), self._operation.parameters)

    def rule(self, operands: Sequence[Any], options: Any) -> Field:
        return self._operation.rule(operands, options)

    def compute(self, operands: Sequence[Any], options: Any, reject: Reject) -> Tensor:
        return self._operation.compute(operands, options, reject)


class _Reduction(_Of):
    """sum, mean, max, min or norm."""

    names = ("axis", "keepdims")

    def __init__(self, name: str) -> None:
        super().__init__(name, Reduce(), 1, 1)

    def options(self, given: Mapping[str, Literal]) -> ReduceParameters:
        return msgspec.convert({"function": self.name, **given}, ReduceParameters)


class _Transpose(_Of):
    """The axes of a row in another order."""

    names = ("axes",)

    def __init__(self) -> None:
        super().__init__("transpose", Transpose(), 1, 1)

    def options(self, given: Mapping[str, Literal]) -> TransposeParameters:
        return msgspec.convert(dict(given), TransposeParameters)


class _Einsum(_Of):
    """Einstein's summation; the notation is written first."""

    names = ("spec",)

    def __init__(self) -> None:
        super().__init__("einsum", Einsum(), 1, 4)

    def options(self, given: Mapping[str, Literal]) -> EinsumParameters:
        return msgspec.convert(dict(given), EinsumParameters)

    def inner_bytes(self, operands: Sequence[Any], options: EinsumParameters) -> int:
        # At least four bytes an element: its steps widen halves.
        largest = plan(notation(options.spec), tuple(operand.shape for operand in operands)).largest
        return largest * max(4, FIXED[operands[0].dtype].itemsize)


class _Product(_Of):
    """The matrix product: one product for all rows where an operand is shared."""

    def __init__(self) -> None:
        super().__init__("@", MatMul(), 2, 2)

    def options(self, given: Mapping[str, Literal]) -> MatMulParameters:
        return MatMulParameters()

    def compute(self, operands: Sequence[Any], options: MatMulParameters, reject: Reject) -> Tensor:
        a, b = operands
        if b.ndim == 3 and b.shape[0] == 1 and a.ndim > 1:
            flat = _multiplied(a.reshape(-1, a.shape[-1]), b[0])
            return flat.reshape(*a.shape[:-1], b.shape[-1])
        if a.ndim == 3 and a.shape[0] == 1 and b.ndim == 2:
            return _multiplied(b, a[0].mT)
        return super().compute(operands, options, reject)


class _Solve(_Of):
    """Linear equations: one decomposition for all rows where the matrix is shared."""

    def __init__(self) -> None:
        super().__init__("solve", Solve(), 2, 2)

    def compute(self, operands: Sequence[Any], options: Any, reject: Reject) -> Tensor:
        a, b = operands
        if len(a) > 1 or len(b) == 1:
            return super().compute(operands, options, reject)
        columns = b.movedim(1, 0)  # (n, rows) or (n, rows, k)
        found = super().compute((a, columns.reshape(1, len(columns), -1)), options, refuse_all)
        return found.reshape(columns.shape).movedim(0, 1)


class _Binary(Function):
    """An operator on two, element by element."""

    least = most = 2
    takes_numbers = True

    def __init__(self, name: str, function: Callable[[Any, Any], Any], dtypes: Sequence[str]) -> None:
        self.name = name
        self._function = function
        self._dtypes = dtypes

    def rule(self, operands: Sequence[Field | Number], options: Any) -> Field:
        tensors = [operand for operand in operands if isinstance(operand, Field)]
        field = tensors[0] if len(tensors) == 1 else Multiply().rule(tensors, None)
        _check_dtype(self.name, field, self._dtypes)
        for operand in operands:
            if not isinstance(operand, Field):
                _check_number(operand, field.dtype)
        return field

    def compute(self, operands: Sequence[Any], options: Any, reject: Reject) -> Tensor:
        a, b = operands
        found: Tensor = self._function(*aligned(a, b) if _are_tensors(a, b) else (a, b))
        return found


class _Power(_Binary):
    """`**`, of integers with a number that is not negative."""

    def __init__(self) -> None:
        super().__init__("**", operator.pow, (*ALL, *INTEGER))

    def rule(self, operands: Sequence[Field | Number], options: Any) -> Field:
        field = super().rule(operands, options)
        exponent = operands[1]
        if field.dtype in INTEGER and (isinstance(exponent, Field) or exponent.real < 0):
            raise BadParameter(f"** of {field.dtype} takes a number from 0 on: send f4 or f8")
        return field


class _Unary(Function):
    """A function of each element."""

    def __init__(self, name: str, function: str, dtypes: Sequence[str]) -> None:
        self.name = name
        self._function = function
        self._dtypes = dtypes

    def rule(self, operands: Sequence[Any], options: Any) -> Field:
        (field,) = operands
        _check_dtype(self.name, field, self._dtypes)
        found: Field = field
        return found

    def compute(self, operands: Sequence[Any], options: Any, reject: Reject) -> Tensor:
        import torch

        found: Tensor = getattr(torch, self._function)(*operands)
        return found


class _SoftmaxOptions(msgspec.Struct, frozen=True):
    axis: int = -1


class _Softmax(Function):
    """Exponentials over their sum along an axis of a row."""

    name = "softmax"
    names = ("axis",)

    def options(self, given: Mapping[str, Literal]) -> _SoftmaxOptions:
        return msgspec.convert(dict(given), _SoftmaxOptions)

    def rule(self, operands: Sequence[Any], options: _SoftmaxOptions) -> Field:
        (field,) = operands
        _check_dtype(self.name, field, REAL)
        axes_of(options.axis, len(field.shape))
        found: Field = field
        return found

    def compute(self, operands: Sequence[Any], options: _SoftmaxOptions, reject: Reject) -> Tensor:
        (a,) = operands
        (axis,) = axes_of(options.axis, a.ndim - 1)
        found: Tensor = a.softmax(axis + 1)
        return found


FUNCTIONS: Mapping[str, Function] = {
    function.name: function
    for function in (
        _Binary("+", operator.add, (*ALL, *INTEGER)),
        _Binary("-", operator.sub, (*ALL, *INTEGER)),
        _Binary("*", operator.mul, (*ALL, *INTEGER)),
        _Binary("/", operator.truediv, ALL),
        _Power(),
        _Product(),
        _Unary("negative", "neg", (*ALL, *INTEGER)),
        _Unary("exp", "exp", ALL),
        _Unary("log", "log", ALL),
        _Unary("sqrt", "sqrt", ALL),
        _Unary("tanh", "tanh", ALL),
        _Unary("sigmoid", "sigmoid", REAL),
        _Unary("relu", "relu", (*REAL, *INTEGER)),
        _Softmax(),
        *map(_Reduction, ("sum", "mean", "max", "min", "norm")),
        _Transpose(),
        _Einsum(),
        _Solve(),
    )
}


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices as matrix.matmul rounds it."""
    if a.is_cpu and is_half(a):
        return (a.float() @ b.float()).to(a.dtype)
    with products(a):
        return a @ b


def _are_tensors(*operands: object) -> bool:
    return not any(isinstance(operand, int | float | complex) for operand in operands)


def _check_dtype(name: str, field: Field, dtypes: Sequence[str]) -> None:
    if field.dtype not in dtypes:
        raise BadParameter(f"{name} takes {', '.join(dtypes)}, not {field.dtype}: send one of these")


def _check_number(number: Number, dtype: str) -> None:
    """A number must be one of the dtype's kind: it takes the dtype, and no other is made of the two."""
    kind = FIXED[dtype].kind if dtype != "bf16" else "f"
    if isinstance(number, complex) and kind != "c":
        raise BadParameter(f"the number {number} is complex, the tensor beside it {dtype}: send c8 or c16")
    if kind in "iu":
        bits = 8 * FIXED[dtype].itemsize - 1
        if not isinstance(number, int) or not -(1 << bits) <= number < 1 << bits:
            raise BadParameter(f"the number {number} is none of {dtype}, as the tensor beside it is: send f4 or f8")
    elif isinstance(number, int) and abs(number) >= 1 << 63:
        raise BadParameter("an integer of more than 63 bits: write it with a point, as 1e20")


def refuse_all(row: int, code: str, message: str) -> None:
    """What all rows share has no answer, so no row has."""
    raise BadValue(message)

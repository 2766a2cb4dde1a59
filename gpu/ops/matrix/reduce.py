"""matrix.reduce: sums, means, extremes, products and norms along axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from ....bus.columns import Field
from ....bus.errors import BadColumn, BadParameter
from ...signature import Signature
from .operation import FLOATS, INTEGERS, MatrixOperation, Reject
from .precision import is_half, widened

if TYPE_CHECKING:
    from torch import Tensor

_REAL = {"c8": "f4", "c16": "f8"}
_INTEGERS = INTEGERS.split("|")


def _norm(terms: Tensor) -> Tensor:
    import torch

    found: Tensor = torch.linalg.vector_norm(terms, dim=-1)
    return found


def _product(terms: Tensor) -> Tensor:
    """In halves: torch's own, on CUDA, is compiled when a dtype is first multiplied up, which takes 1 to 3 s (H100)."""
    while (count := terms.shape[-1]) > 1:
        half = count // 2
        folded = terms[..., :half] * terms[..., half : 2 * half]
        if count % 2:
            folded[..., 0] *= terms[..., -1]
        terms = folded
    return terms[..., 0] if count else terms.new_ones(terms.shape[:-1])


# Each along the last dimension, the terms; f2 and bf16 come as f4.
_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda terms: terms.sum(-1),
    "mean": lambda terms: terms.mean(-1),
    "max": lambda terms: terms.amax(-1),
    "min": lambda terms: terms.amin(-1),
    "prod": _product,
    "norm": _norm,
}


class ReduceParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to reduce by, and along which axes.

    Attributes:
        function: norm is the root of the sum of the squares of absolute values.
        axis: of a row: 0 is its first dimension, -1 its last; all if null, none if empty.
        keepdims: leave the axes in place, each of size 1.
    """

    function: Literal["sum", "mean", "max", "min", "prod", "norm"]
    axis: int | list[int] | None = None
    keepdims: bool = False


class Reduce(MatrixOperation):
    """Each row's `a`, reduced along `axis` by `function`: sum, mean, max, min, prod or norm."""

    name = "matrix.reduce"
    signature = Signature({"a": "T[...]"}, {"y": "T[...y]"}, {"T": f"{FLOATS}|{INTEGERS}"})
    parameters = ReduceParameters

    def rule(self, operands: Sequence[Field], parameters: ReduceParameters) -> Field:
        """The other axes remain; norms of complex numbers are real, and sums and products of integers i8."""
        ((dtype, shape),) = operands
        function, axes = parameters.function, axes_of(parameters.axis, len(shape))
        if dtype in _REAL and function in ("max", "min"):
            raise BadColumn(f"column 'a' is {dtype}, and complex numbers have no {function}: send real ones")
        if dtype in _INTEGERS and function in ("mean", "norm"):
            raise BadColumn(f"column 'a' is {dtype}, whose {function} would be no integer: send f4 or f8")
        if function in ("max", "min") and not math.prod(shape[axis] for axis in axes):
            raise BadColumn(f"a row of column 'a' is {operands[0]}, and nothing has no {function}: send numbers")
        if function == "norm":
            dtype = _REAL.get(dtype, dtype)
        elif dtype in _INTEGERS and function in ("sum", "prod"):
            dtype = "i8"
        if parameters.keepdims:
            return Field(dtype, tuple(1 if axis in axes else size for axis, size in enumerate(shape)))
        return Field(dtype, tuple(size for axis, size in enumerate(shape) if axis not in axes))

    def compute(self, operands: Sequence[Tensor], parameters: ReduceParameters, reject: Reject) -> Tensor:
        """Reduce all rows at once."""
        (a,) = operands
        axes = [axis + 1 for axis in axes_of(parameters.axis, a.ndim - 1)]
        others = [axis for axis in range(a.ndim) if axis not in axes]
        shape = [a.shape[axis] for axis in others]
        terms = a.permute(*others, *axes).reshape(*shape, math.prod(a.shape[axis] for axis in axes))
        if parameters.function == "prod" and not a.is_floating_point() and not a.is_complex():
            terms = terms.long()
        found = _FUNCTIONS[parameters.function](*widened([terms]))
        if is_half(a):
            found = found.to(a.dtype)
        if parameters.keepdims:
            return found.reshape([1 if axis in axes else size for axis, size in enumerate(a.shape)])
        return found


def axes_of(axis: int | Sequence[int] | None, rank: int) -> list[int]:
    """The axes meant, from 0 on, in order.

    Raises:
        BadParameter: there is no such axis, or it is given twice.
    """
    if axis is None:
        return list(range(rank))
    given = [axis] if isinstance(axis, int) else axis
    for one in given:
        if not -rank <= one < rank:
            allowed = f"use {-rank} to {rank - 1}" if rank else "leave it out"
            raise BadParameter(f"axis {one} of a row with {rank} dimensions (the rows' own is not counted): {allowed}")
    found = sorted({one % rank for one in given})
    if len(found) != len(given):
        raise BadParameter(f"axis {list(given)} of a row with {rank} dimensions: give each axis once")
    return found

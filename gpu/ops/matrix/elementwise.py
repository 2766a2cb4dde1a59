"""matrix.add, matrix.subtract, matrix.multiply: element by element, where shapes broadcast as NumPy's do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...signature import Signature
from .operation import FLOATS, INTEGERS, MatrixOperation, Reject

if TYPE_CHECKING:
    from torch import Tensor


class Elementwise(MatrixOperation):
    """A function of two columns, element by element."""

    signature = Signature({"a": "T[*]", "b": "T[*]"}, {"c": "T[*]"}, {"T": f"{FLOATS}|{INTEGERS}"})


class Add(Elementwise):
    """Each row's `a` + `b`; shapes broadcast."""

    name = "matrix.add"

    def compute(self, operands: Sequence[Tensor], parameters: Any, reject: Reject) -> Tensor:
        """(rows, ...) + (rows, ...)."""
        a, b = aligned(*operands)
        return a + b


class Subtract(Elementwise):
    """Each row's `a` - `b`; shapes broadcast."""

    name = "matrix.subtract"

    def compute(self, operands: Sequence[Tensor], parameters: Any, reject: Reject) -> Tensor:
        """(rows, ...) - (rows, ...)."""
        a, b = aligned(*operands)
        return a - b


class Multiply(Elementwise):
    """Each row's `a` * `b`, element by element; shapes broadcast."""

    name = "matrix.multiply"

    def compute(self, operands: Sequence[Tensor], parameters: Any, reject: Reject) -> Tensor:
        """(rows, ...) * (rows, ...)."""
        a, b = aligned(*operands)
        return a * b


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two with equally many dimensions: new ones come after the row, so that rows never broadcast with anything."""
    rank = max(a.ndim, b.ndim)
    return _aligned(a, rank), _aligned(b, rank)


def _aligned(tensor: Tensor, rank: int) -> Tensor:
    if tensor.ndim == rank:
        return tensor
    return tensor.reshape(tensor.shape[0], *[1] * (rank - tensor.ndim), *tensor.shape[1:])

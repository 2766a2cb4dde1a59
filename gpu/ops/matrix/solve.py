"""matrix.solve: systems of linear equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ....bus.errors import BadValue
from ...signature import Signature
from .operation import FLOATS, MatrixOperation, Reject
from .precision import products, widened

if TYPE_CHECKING:
    from torch import Tensor


class Solve(MatrixOperation):
    """The x of each row's a x = b, by LU decomposition with partial pivoting.

    f2 and bf16 are computed in float32 and rounded once.
    """

    name = "matrix.solve"
    signature = Signature({"a": "T[n,n]", "b": "T[n,k?]"}, {"x": "T[n,k?]"}, {"T": FLOATS})

    def compute(self, operands: Sequence[Tensor], parameters: Any, reject: Reject) -> Tensor:
        """Solve all rows at once; those with a singular `a` are rejected with `bad_value`."""
        import torch

        a, b = widened(operands)
        is_vector = b.ndim == 2
        with products(a):
            x, info = torch.linalg.solve_ex(a, b.unsqueeze(2) if is_vector else b)
        for row, pivot in enumerate(info.tolist()):
            if pivot:
                reject(row, BadValue.code, f"column 'a' is singular: pivot {pivot} of its LU decomposition is 0")
        found: Tensor = x.squeeze(2) if is_vector else x
        return found.to(operands[0].dtype)

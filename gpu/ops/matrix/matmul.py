"""matrix.matmul: products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ...signature import Signature
from .elementwise import aligned
from .operation import FLOATS, MatrixOperation, Reject
from .precision import Precision, is_half, products

if TYPE_CHECKING:
    from torch import Tensor


class MatMulParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How f4 is multiplied on CUDA."""

    precision: Precision = "highest"


class MatMul(MatrixOperation):
    """The matrix product of each row's `a` and `b`, as NumPy's matmul.

    f2 and bf16 are summed in float32 and rounded once.
    """

    name = "matrix.matmul"
    signature = Signature({"a": "T[*,i?,k]", "b": "T[*,k,j?]"}, {"c": "T[*,i?,j?]"}, {"T": FLOATS})
    parameters = MatMulParameters

    def compute(self, operands: Sequence[Tensor], parameters: MatMulParameters, reject: Reject) -> Tensor:
        """Multiply all rows in one batched product; a vector is a matrix of one row, or of one column."""
        a, b = operands
        a_is_vector, b_is_vector = a.ndim == 2, b.ndim == 2
        left, right = aligned(a.unsqueeze(1) if a_is_vector else a, b.unsqueeze(2) if b_is_vector else b)
        product = self._multiply(left, right, parameters)
        if a_is_vector:
            product = product.squeeze(-2)
        return product.squeeze(-1) if b_is_vector else product

    def _multiply(self, a: Tensor, b: Tensor, parameters: MatMulParameters) -> Tensor:
        if a.is_cpu and is_half(a):
            # Measured on an AVX2 core without float16 or bfloat16 products: 20 to 60 times faster from 64² on.
            return a.float().matmul(b.float()).to(a.dtype)
        with products(a, parameters.precision):
            return a.matmul(b)

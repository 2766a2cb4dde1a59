"""matrix: functions of small matrices, a call a row. One file an operation; docs/matrix.md says what each admits.

NaN and infinities pass through as IEEE 754 has them; i4 and i8 wrap around on overflow.
"""

from __future__ import annotations

from .einsum import Einsum
from .elementwise import Add, Multiply, Subtract
from .matmul import MatMul
from .operation import MatrixOperation
from .reduce import Reduce
from .solve import Solve
from .transpose import Transpose

__all__ = ["Add", "Einsum", "MatMul", "MatrixOperation", "Multiply", "Reduce", "Solve", "Subtract", "Transpose"]


def operations() -> list[MatrixOperation]:
    """The operations of the matrix system."""
    return [MatMul(), Add(), Subtract(), Multiply(), Einsum(), Solve(), Reduce(), Transpose()]

"""Matrix operations: each call is one row, and shares its batch with the same shapes of other agents."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bus.client import Client
from ..bus.errors import BadColumn
from ..bus.outbox import as_row

Array: TypeAlias = "NDArray[Any]"


class Matrix:
    """Products and elementwise operations, of float16/32/64, bfloat16 and complex64/128 (elementwise also int32/64).

    Both operands are of one dtype; the answer is too (of bfloat16 as float32: NumPy has none). Numbers and lists, which
    have no dtype of their own, take that of the array beside them; two of them become float32, or complex64. Every call
    may be sent again after a lost connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def matmul(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """The matrix product.

        Args:
            a: (i, k).
            b: (k, j).
            timeout_s: how long to wait, s.

        Returns:
            (i, j), in the operands' dtype.

        Raises:
            BadColumn: dtypes, ranks or inner dimensions do not fit, or numbers of a list their dtype.
        """
        return await self._pair("matrix.matmul", a, b, timeout_s)

    async def add(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a + b, of one shape."""
        return await self._pair("matrix.add", a, b, timeout_s)

    async def subtract(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a - b, of one shape."""
        return await self._pair("matrix.subtract", a, b, timeout_s)

    async def multiply(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a * b, elementwise, of one shape."""
        return await self._pair("matrix.multiply", a, b, timeout_s)

    async def _pair(self, operation: str, a: ArrayLike, b: ArrayLike, timeout_s: float | None) -> Array:
        answer = await self._client.call(operation, of_one_dtype(a=a, b=b), timeout_s=timeout_s, idempotent=True)
        product: Array = answer["c"]
        return product


def of_one_dtype(**operands: ArrayLike) -> dict[str, Any]:
    """A row of operands by name, where numbers and lists of them take the dtype of the array among them.

    Without an array they become float32, or complex64 if one is complex.

    Raises:
        BadColumn: an operand makes no array, or its numbers do not fit the dtype (fractions are rounded to it).
    """
    plain = [name for name, value in operands.items() if _is_plain(value)]
    if not plain:
        return operands
    row = as_row(operands)
    dtypes = [value.dtype for name, value in row.items() if name not in plain and isinstance(value, np.ndarray)]
    if not dtypes:
        dtypes = [np.dtype("c8" if any(row[name].dtype.kind == "c" for name in plain) else "f4")]
    for name in plain:
        row[name] = _cast(name, row[name], dtypes[0])
    return row


def _is_plain(value: Any) -> bool:
    """Whether these are Python's own numbers, of no dtype."""
    return isinstance(value, list | tuple | int | float | complex) and not isinstance(value, np.generic)


def _cast(name: str, given: Array, dtype: np.dtype[Any]) -> Array:
    cast = given.astype(dtype) if np.can_cast(given.dtype, dtype, "same_kind") else None
    if cast is None or (given.dtype.kind in "iu" and bool(np.any(cast != given))):
        raise BadColumn(f"column {name!r}: a number does not fit {dtype}: give an array of the dtype you mean")
    return cast

"""Matrix operations: each call is one row, and shares its batch with the same shapes of other agents."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import ArrayLike, NDArray

from ..bus.client import Client

Array: TypeAlias = "NDArray[Any]"


class Matrix:
    """Products and elementwise operations, of float16/32/64, bfloat16 and complex64/128 (elementwise also int32/64).

    Both operands are of one dtype; the answer is too (of bfloat16 as float32: NumPy has none). Every call may be sent
    again after a lost connection.
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
            BadColumn: dtypes, ranks or inner dimensions do not fit.
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
        answer = await self._client.call(operation, {"a": a, "b": b}, timeout_s=timeout_s, idempotent=True)
        product: Array = answer["c"]
        return product

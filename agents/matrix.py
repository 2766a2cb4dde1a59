"""Matrix operations: each call is one row, and shares its batch with the same shapes of other agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bus.errors import BadColumn
from ..bus.outbox import as_row
from .tensors import Tensors

Array: TypeAlias = "NDArray[Any]"
Precision: TypeAlias = Literal["highest", "tf32"]
Reduction: TypeAlias = Literal["sum", "mean", "max", "min", "prod", "norm"]

_OPERANDS = "abcd"


class Matrix(Tensors):
    """Functions of small matrices of float16/32/64, bfloat16 and complex64/128; some of int32/64 too.

    All operands are of one dtype; the answer is too (of bfloat16 as float32: NumPy has none), within the tolerances of
    docs/matrix.md. Numbers and lists, which have no dtype of their own, take that of the array beside them; without one
    they become float32, or complex64. Arrays may have any strides. Every call may be sent again after a lost
    connection, and raises BadColumn where dtypes, ranks or dimensions do not fit, or numbers of a list their dtype.
    """

    async def matmul(
        self, a: ArrayLike, b: ArrayLike, *, precision: Precision = "highest", timeout_s: float | None = None
    ) -> Array:
        """The matrix product, as `numpy.matmul`; not of integers.

        Args:
            a: (..., i, k) or (k,).
            b: (..., k, j) or (k,); the dimensions in front broadcast.
            precision: `tf32` lets a GPU round float32 operands to 10 bits, which is several times as fast.
            timeout_s: how long to wait, s.

        Returns:
            (..., i, j), without the i or j of an operand that is a vector.
        """
        given = {} if precision == "highest" else {"precision": precision}
        return await self._ask("matrix.matmul", of_one_dtype(a=a, b=b), given, timeout_s)

    async def add(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a + b, of shapes that broadcast; integers wrap around."""
        return await self._ask("matrix.add", of_one_dtype(a=a, b=b), {}, timeout_s)

    async def subtract(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a - b, of shapes that broadcast; integers wrap around."""
        return await self._ask("matrix.subtract", of_one_dtype(a=a, b=b), {}, timeout_s)

    async def multiply(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """a * b, elementwise, of shapes that broadcast; integers wrap around."""
        return await self._ask("matrix.multiply", of_one_dtype(a=a, b=b), {}, timeout_s)

    async def einsum(
        self, spec: str, *operands: ArrayLike, precision: Precision = "highest", timeout_s: float | None = None
    ) -> Array:
        """Einstein's summation over one to four operands; not of integers.

        Args:
            spec: a letter a dimension and the answer's letters after the arrow, such as `ij,jk->ik`; no dots.
            operands: as many as `spec` has.
            precision: as of `matmul`.
            timeout_s: how long to wait, s.

        Returns:
            The dimensions that the answer's letters name.

        Raises:
            BadParameter: `spec` makes no sense.
        """
        if not 1 <= len(operands) <= len(_OPERANDS):
            raise BadColumn(f"einsum takes one to {len(_OPERANDS)} operands, not {len(operands)}")
        row = of_one_dtype(**dict(zip(_OPERANDS, operands, strict=False)))
        return await self._ask("matrix.einsum", row, {"spec": spec, "precision": precision}, timeout_s)

    async def solve(self, a: ArrayLike, b: ArrayLike, *, timeout_s: float | None = None) -> Array:
        """The x of a x = b; not of integers.

        Args:
            a: (n, n).
            b: (n,) or (n, k).
            timeout_s: how long to wait, s.

        Returns:
            Of `b`'s shape.

        Raises:
            BadValue: `a` is singular.
        """
        return await self._ask("matrix.solve", of_one_dtype(a=a, b=b), {}, timeout_s)

    async def reduce(
        self,
        a: ArrayLike,
        function: Reduction,
        *,
        axis: int | Sequence[int] | None = None,
        keepdims: bool = False,
        timeout_s: float | None = None,
    ) -> Array:
        """A sum, mean, maximum, minimum, product or norm along axes.

        Args:
            a: of any shape.
            function: `norm` is the root of the sum of the squares of absolute values. Integers have no `mean` and no
                `norm`, complex numbers no `max` and no `min`.
            axis: one, several, or all.
            keepdims: leave the axes in place, with size 1.
            timeout_s: how long to wait, s.

        Returns:
            In the dtype of `a`; sums and products of integers are int64, norms of complex numbers real.

        Raises:
            BadParameter: there is no such axis.
        """
        axes = list(axis) if isinstance(axis, Sequence) else axis
        given = {"function": function, "axis": axes, "keepdims": keepdims}
        return await self._ask("matrix.reduce", of_one_dtype(a=a), given, timeout_s)

    async def transpose(
        self, a: ArrayLike, axes: Sequence[int] | None = None, *, timeout_s: float | None = None
    ) -> Array:
        """The axes in another order: reversed, unless `axes` has for each of the answer that of `a` which it is.

        Raises:
            BadParameter: `axes` does not have each axis once.
        """
        given = {"axes": axes if axes is None else list(axes)}
        return await self._ask("matrix.transpose", of_one_dtype(a=a), given, timeout_s)

    async def _ask(
        self, operation: str, row: Mapping[str, Any], parameters: Mapping[str, Any], timeout_s: float | None
    ) -> Array:
        answer = await self._client.call(operation, row, parameters, timeout_s=timeout_s, idempotent=True)
        (found,) = answer.values()
        return found  # type: ignore[no-any-return]


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

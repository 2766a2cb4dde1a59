"""matrix.transpose: the axes of each row in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ....bus.columns import Field
from ....bus.errors import BadParameter
from ...signature import Signature
from .operation import FLOATS, INTEGERS, MatrixOperation, Reject

if TYPE_CHECKING:
    from torch import Tensor


class TransposeParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The new order: for each axis of the answer, that of `a` which it is; reversed if null."""

    axes: list[int] | None = None


class Transpose(MatrixOperation):
    """Each row's `a` with its axes in another order, reversed unless `axes` says which."""

    name = "matrix.transpose"
    signature = Signature({"a": "T[...]"}, {"y": "T[...y]"}, {"T": f"{FLOATS}|{INTEGERS}"})
    parameters = TransposeParameters

    def rule(self, operands: Sequence[Field], parameters: TransposeParameters) -> Field:
        """The sizes move with their axes."""
        ((dtype, shape),) = operands
        return Field(dtype, tuple(shape[axis] for axis in _order(parameters.axes, len(shape))))

    def compute(self, operands: Sequence[Tensor], parameters: TransposeParameters, reject: Reject) -> Tensor:
        """A view: whoever fetches it copies it anyway."""
        (a,) = operands
        return a.permute(0, *(axis + 1 for axis in _order(parameters.axes, a.ndim - 1)))


def _order(axes: Sequence[int] | None, rank: int) -> list[int]:
    if axes is None:
        return list(reversed(range(rank)))
    order = [axis + rank if axis < 0 else axis for axis in axes]
    if sorted(order) != list(range(rank)):
        raise BadParameter(f"axes {list(axes)} of a row with {rank} dimensions: give each of 0 to {rank - 1} once")
    return order

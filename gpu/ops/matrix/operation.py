"""What the matrix operations have in common: a rule for types and a function of tensors, each usable by itself.

Whoever holds operands elsewhere than in a batch's columns calls the two and leaves `outputs` and `run` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ....bus.columns import Field, Schema
from ...batch import Batch
from ...device import Device
from ...operation import Operation

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = "f2|bf16|f4|f8|c8|c16"
INTEGERS = "i4|i8"

Reject: TypeAlias = Callable[[int, str, str], None]
"""Takes a row, a stable code and a message, as `Batch.reject` does."""


class MatrixOperation(Operation):
    """A function of one to four matrices a row, whose answer is one column.

    The operands are the columns of `signature.inputs`, in that order.
    """

    def rule(self, operands: Sequence[Field], parameters: Any) -> Field:
        """The type of the answer to operands of these types. Loads no torch.

        Raises:
            BadColumn, BadParameter: the operands do not suit the operation, or the parameters the operands.
            TooLarge: one row needs more room than an operation may take.
        """
        ((_, field),) = self.signature.bind(tuple(zip(self.signature.inputs, operands, strict=False)))
        return field

    def compute(self, operands: Sequence[Tensor], parameters: Any, reject: Reject) -> Tensor:
        """The answer of all rows at once.

        Args:
            operands: (rows, ...) each, of types that `rule` admits, on one device, of any strides.
            parameters: the operation's.
            reject: called with a row that has no answer; its neighbours have theirs.

        Returns:
            (rows, ...) of the type that `rule` says, perhaps a view of an operand.
        """
        raise NotImplementedError

    def outputs(self, schema: Schema, parameters: Any) -> Schema:
        """The one column of the answer."""
        self.signature.check(schema)
        fields = dict(schema)
        (name,) = self.signature.outputs
        operands = [fields[column] for column in self.signature.inputs if column in fields]
        return ((name, self.rule(operands, parameters)),)

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Compute the batch's rows."""
        there = dict(batch.schema)
        (name,) = self.signature.outputs
        operands = [batch.tensor(column) for column in self.signature.inputs if column in there]
        return {name: self.compute(operands, batch.parameters, batch.reject)}

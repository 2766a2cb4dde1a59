"""The operation contract: columns in, columns out, for the rows of many callers at once.

An operation states its signature, its parameters and what rows may share a batch; `run` does the work on whatever
device it is given. The built-in ones (`ops/`) and a user's own keep the same contract:

    @operation("demo.scale", inputs={"x": "T[...]"}, outputs={"y": "T[...]"}, types={"T": "f4|f8"})
    def scale(x, *, factor: float = 2.0):
        return {"y": x * factor}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..bus.columns import VARIABLE, Schema
from ..bus.errors import BadParameter
from .signature import Signature

if TYPE_CHECKING:
    from .batch import Batch
    from .device import Device


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of an operation that has none."""


class Operation:
    """One thing the bus can be asked for.

    Attributes:
        name: subject tokens, the system first: `matrix.matmul`.
        signature: columns of a request and of its answer.
        parameters: a frozen msgspec Struct whose fields are the parameters; it validates them.
        pure: the answer depends on nothing but the rows, so a batch may be run again after a failure.
        help: one line for callers; the docstring's first unless given.
        max_rows: largest batch, in rows, whatever the settings allow.
        endings: what follows the name in its subjects: nothing, or `.*`, the partition of the key that a call is about.
    """

    name: str
    signature: Signature
    parameters: type[msgspec.Struct] = NoParameters
    pure: bool = True
    help: str = ""
    max_rows: int = 1 << 16
    endings: tuple[str, ...] = ("",)

    def lane_key(self, schema: Schema, parameters: Any) -> Hashable:
        """What rows must have in common to share a batch, besides the types of their columns: all parameters.

        A parameter left out of the key must not matter to `run`, which sees those of some row.
        """
        # Bytes rather than the Struct itself: a list would have no hash, and a NaN equals nothing.
        return msgspec.msgpack.encode(parameters, order="deterministic")

    def outputs(self, schema: Schema, parameters: Any) -> Schema:
        """The columns of the answer to rows of these columns: what the signature says.

        An operation whose answer's shape depends on its parameters says here how.

        Raises:
            BadColumn, BadParameter: the columns do not suit the operation, or the parameters the columns.
        """
        return self.signature.bind(schema)

    def load(self, device: Device) -> None:
        """Make ready on an engine, once, before the first batch: read weights, allocate, warm up."""

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Compute the columns of the answer.

        Args:
            batch: the rows; `batch.tensor(name)` is a column on the device, `batch[name]` the same on the host.
            device: where to run.

        Returns:
            By output column, an array or tensor whose first axis is the row, or a list of str or bytes, of
            `batch.rows` rows. Rows refused through `batch.reject` may hold anything.
        """
        raise NotImplementedError

    def relieve(self) -> None:
        """Give back memory of the device that can be had again: it has none for a batch."""

    def figures(self) -> dict[str, float]:
        """What the engine's metrics shall tell of it, by name."""
        return {}

    def decode_parameters(self, value: Any) -> Any:
        """Validate a request's parameters.

        Raises:
            BadParameter: one is unknown, missing, or of a wrong type or value; the message names it.
        """
        try:
            return msgspec.convert(value, self.parameters)
        except msgspec.ValidationError as error:
            names = ", ".join(field.name for field in msgspec.structs.fields(self.parameters)) or "none"
            raise BadParameter(f"{error}: {self.name} takes these parameters: {names}") from None


class FunctionOperation(Operation):
    """An operation made of one function, by `@operation`."""

    def __init__(self, name: str, signature: Signature, function: Callable[..., Mapping[str, Any]], pure: bool) -> None:
        self.name = name
        self.signature = signature
        self.pure = pure
        self.parameters = _parameters_of(function)
        self._function = function
        self.__doc__ = function.__doc__

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Call the function with the columns, and the parameters as keywords."""
        columns = {name: batch[name] if field.dtype in VARIABLE else batch.tensor(name) for name, field in batch.schema}
        return self._function(**columns, **msgspec.structs.asdict(batch.parameters))


def operation(
    name: str,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    types: Mapping[str, str] | None = None,
    pure: bool = True,
) -> Callable[[Callable[..., Mapping[str, Any]]], Operation]:
    """Make a function an operation of the bus; a worker finds it in the module it is told to load.

    The function takes one tensor a column, rows first, on the device the batch runs on (of `utf8` and `bin` columns a
    list), and its keyword-only arguments (annotated) are the operation's parameters; it returns the answer's columns by
    name.

    Args:
        name: subject tokens, the system first: `"demo.scale"`.
        inputs: signature of each column (see `signature.py`).
        outputs: signature of each column of the answer.
        types: the dtypes that capital letters in the signatures stand for.
        pure: false if the answer depends on more than the rows.
    """

    def wrap(function: Callable[..., Mapping[str, Any]]) -> Operation:
        return FunctionOperation(name, Signature(inputs, outputs, types or {}), function, pure)

    return wrap


def _parameters_of(function: Callable[..., Any]) -> type[msgspec.Struct]:
    """A Struct of the keyword-only arguments of a function."""
    fields: list[Any] = []
    for argument in inspect.signature(function, eval_str=True).parameters.values():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind = Any if argument.annotation is inspect.Parameter.empty else argument.annotation
        required = argument.default is inspect.Parameter.empty
        fields.append((argument.name, kind) if required else (argument.name, kind, argument.default))
    name = getattr(function, "__name__", "parameters")
    return msgspec.defstruct(name, fields, frozen=True, forbid_unknown_fields=True, kw_only=True)

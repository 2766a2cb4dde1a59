"""matrix.eval: an expression over columns and resident tensors, evaluated without leaving the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from ...bus.columns import Field, Schema
from ...bus.errors import BadColumn, TooLarge
from ..batch import Batch
from ..device import Device
from ..expression import MAX_LENGTH, Plan, Type, Value, infer, parse
from ..functions import ALL, FUNCTIONS, INTEGER, refuse_all
from ..operation import Operation
from ..origin import Origin
from ..residents import Handle, Residents
from ..signature import Signature
from ..tiles import multiply
from .matrix.operation import Reject
from .tensors import field_of

if TYPE_CHECKING:
    from torch import Tensor

ROWS_BYTES = 256 << 20  # of what stands between the steps of the rows computed at once


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to leave the answer, as `matrix.put` has it."""

    key: str
    owner: str
    version: int
    ttl_s: float | None = None


class EvaluateParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to compute, of which residents.

    Attributes:
        expression: see docs/residents.md.
        handles: resident tensors by the names that the expression has for them.
        keep: leave the answer with the worker instead of sending it; only of residents.
    """

    expression: Annotated[str, msgspec.Meta(max_length=MAX_LENGTH)]
    handles: dict[str, Handle] = {}
    keep: Keep | None = None


class Evaluate(Operation):
    """The value of an expression for each row; its names are the columns, and tensors that all rows share."""

    name = "matrix.eval"
    signature = Signature({}, {})
    parameters = EvaluateParameters
    help = "The value of `expression`, whose names are the columns sent and the resident tensors of `handles`."
    endings = ("", ".*")

    def __init__(self, residents: Residents) -> None:
        self.residents = residents

    def load(self, device: Device) -> None:
        """Find what the engine before has left."""
        self.residents.open(device)

    def outputs(self, schema: Schema, parameters: EvaluateParameters) -> Schema:
        """One column `y`; of what is kept its dtype `t` and shape `s`."""
        field = _plan(schema, parameters).answer.field
        if parameters.keep is None:
            return (("y", field),)
        if schema:
            raise BadColumn(f"column {schema[0][0]!r}: what is kept can be made of handles only; put it first")
        return (("t", Field("utf8")), ("s", Field("i8", (len(field.shape),))))

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        """Evaluate what all rows share once, then the rows, as many at once as `ROWS_BYTES` allows."""
        parameters: EvaluateParameters = batch.parameters
        plan = _plan(batch.schema, parameters)
        if parameters.keep is not None:
            self._keep(plan, batch, device)
            dtype, shape = plan.answer.field
            return {"t": [dtype] * batch.rows, "s": np.tile(np.array(shape, np.int64), (batch.rows, 1))}
        self._check_room(plan)
        with self.residents.use(parameters.handles) as tensors:
            return {"y": _evaluate(plan, tensors, batch)}

    def _keep(self, plan: Plan, batch: Batch, device: Device) -> None:
        parameters: EvaluateParameters = batch.parameters
        keep = parameters.keep
        assert keep is not None, "asked for by the caller"
        ttl_s = self.residents.spec.ttl_s if keep.ttl_s is None else keep.ttl_s
        origin = Origin.make(plan.answer.field, keep.version, keep.owner, ttl_s)
        if self.residents.origins.has(keep.key, origin):
            return  # asked again, after an answer that was lost
        factors = _factors(plan, parameters.handles)
        if factors is not None and plan.answer.field.row_bytes + _bytes_of(factors) > self.residents.budget_bytes:
            self._multiply(factors, keep.key, origin, batch, device)
            return
        self._check_room(plan)
        with self.residents.use(parameters.handles) as tensors:
            values = _shared(plan, tensors)
            self.residents.keep(keep.key, origin, values[plan.program.answer.number][0])

    def _multiply(self, factors: tuple[Handle, Handle], key: str, origin: Origin, batch: Batch, device: Device) -> None:
        """Keep a product that the device has no room for, in tiles."""
        residents = self.residents
        budget = residents.budget_bytes // 2  # the other half is for batches that run at the same time
        with residents.room(budget), residents.mapped(factors[0]) as a, residents.mapped(factors[1]) as b:
            draft = residents.origins.draft(key, origin)
            try:
                multiply(device, a, b, draft.array, origin.dtype, budget, batch.checkpoint)
            except BaseException:
                residents.origins.discard(draft)
                raise
            residents.origins.publish(draft)

    def _check_room(self, plan: Plan) -> None:
        needed = plan.shared_peak_bytes
        if needed > self.residents.budget_bytes:
            raise TooLarge(
                f"what all rows share takes {needed} bytes on the way, the device keeps "
                f"{self.residents.budget_bytes}: use smaller tensors, or raise residents.device_bytes"
            )


def _plan(schema: Schema, parameters: EvaluateParameters) -> Plan:
    """How to compute the expression.

    Raises:
        BadColumn: a column or handle is not in the expression, or one has the other's name.
        BadParameter, TooLarge: as `parse` and `infer`.
    """
    shared = tuple((name, field_of(handle.t, handle.s)) for name, handle in parameters.handles.items())
    return _worked_out(parameters.expression, schema, shared)


def _factors(plan: Plan, handles: Mapping[str, Handle]) -> tuple[Handle, Handle] | None:
    """The two matrices whose product the whole expression is, if it is one."""
    steps = plan.program.steps
    if len(steps) != 1 or steps[0].function is not FUNCTIONS["@"]:
        return None
    a, b = (handles[plan.program.names[one.number]] for one in steps[0].operands if isinstance(one, Value))
    return (a, b) if len(a.s) == len(b.s) == 2 else None


def _bytes_of(handles: Iterable[Handle]) -> int:
    return sum(handle.field.row_bytes for handle in set(handles))


@lru_cache(maxsize=4096)
def _worked_out(expression: str, schema: Schema, shared: Schema) -> Plan:
    program = parse(expression)
    types = {name: Type(field, True) for name, field in schema}
    for name, field in shared:
        if name in types:
            raise BadColumn(f"{name!r} is a column and a handle: give them two names")
        types[name] = Type(field, False)
    for name, (field, _) in types.items():
        if name not in program.names:
            raise BadColumn(f"{name!r} is not in the expression: leave it out")
        if field.dtype not in (*ALL, *INTEGER):
            raise BadColumn(f"{name!r} is {field.dtype}: expressions take {', '.join((*ALL, *INTEGER))}")
    return infer(program, types)


def _evaluate(plan: Plan, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """The answer of every row."""
    import torch

    shared = _shared(plan, tensors)
    answer = plan.program.answer.number
    if not plan.answer.has_rows:
        return shared[answer].expand(batch.rows, *plan.answer.field.shape)
    columns = {place: batch.tensor(name) for place, name in enumerate(plan.program.names) if name not in tensors}
    at_once = max(1, ROWS_BYTES // max(1, plan.row_peak_bytes))
    parts: list[Tensor] = []
    for start in range(0, batch.rows, at_once):
        batch.checkpoint()
        values = shared | {place: column[start : start + at_once] for place, column in columns.items()}

        def reject(row: int, code: str, message: str, start: int = start) -> None:
            batch.reject(start + row, code, message)

        _run_steps(plan, values, reject, of_rows=True)
        parts.append(values[answer])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _shared(plan: Plan, tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """What all rows share, by its number: (1, ...) each."""
    values = {place: tensors[name].unsqueeze(0) for place, name in enumerate(plan.program.names) if name in tensors}
    _run_steps(plan, values, refuse_all, of_rows=False)
    return values


def _run_steps(plan: Plan, values: dict[int, Tensor], reject: Reject, *, of_rows: bool) -> None:
    """Add the values of the steps of one kind, and drop those that are not needed any more."""
    for number, step in plan.places(of_rows=of_rows):
        operands = [values[one.number] if isinstance(one, Value) else one for one in step.operands]
        values[number] = step.function.compute(operands, step.options, reject)
        for dead in plan.dead[number]:
            del values[dead]


def operations(residents: Residents) -> list[Operation]:
    """The operation on the given residents."""
    return [Evaluate(residents)]

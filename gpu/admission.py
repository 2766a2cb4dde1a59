"""Admission: whether a frame suits its operation, and which lane its rows belong to.

What a frame's types and parameters amount to is worked out once and remembered by their bytes; a frame like one seen
before costs a look-up and a check of lengths.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from ..bus.columns import VARIABLE, Schema, check
from ..bus.errors import TooLarge
from ..bus.frames import Request, decode_parameters
from .operation import Operation

MAX_REMEMBERED = 4096
MAX_PARAMETER_BYTES = 16 << 10  # they are remembered, and travel with each batch over the engine's socket


@dataclass(frozen=True)
class LaneSpec:
    """What the rows of a lane have in common.

    Attributes:
        key: tells lanes apart.
        operation: what runs.
        schema, outputs: columns in and out.
        parameters: encoded map, as the first frame gave it.
        row_bytes: of one row, in and out, without its columns of variable width.
        variable: some column is of variable width.
    """

    key: Hashable
    operation: Operation
    schema: Schema
    outputs: Schema
    parameters: bytes
    row_bytes: int
    variable: bool


class Admission:
    """Checks frames for a set of operations; `max_bytes` bounds one row, and a frame of variable width."""

    def __init__(self, operations: dict[str, Operation], max_bytes: int) -> None:
        self._operations = operations
        self._max_bytes = max_bytes
        self._remembered: dict[Hashable, LaneSpec] = {}

    def admit(self, operation: str, request: Request) -> LaneSpec:
        """The lane a frame's rows belong to.

        Raises:
            BadColumn, BadParameter: the frame does not suit the operation.
            TooLarge: a row, or a frame of variable width, does not fit a batch.
        """
        rows = request.n
        types = [(name, c.t, c.s[1:] if c.s is not None else None) for name, c in request.cols.items()]
        key = (operation, tuple(types), bytes(request.p))
        spec = self._remembered.get(key)
        if spec is None:
            spec = self._work_out(operation, request)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = spec
        for name, field in spec.schema:
            column = request.cols[name]
            if field.dtype in VARIABLE or len(column.d) != rows * field.row_bytes or (column.s or (rows,))[0] != rows:
                check(column, rows, name)
        if spec.variable:
            size = sum(len(column.d) + len(column.o or b"") for column in request.cols.values())
            if size > self._max_bytes:
                raise TooLarge(f"the columns are {size} bytes, the largest batch {self._max_bytes}: send fewer rows")
        return spec

    def _work_out(self, name: str, request: Request) -> LaneSpec:
        if len(request.p) > MAX_PARAMETER_BYTES:
            raise TooLarge(
                f"the parameters are {len(request.p)} bytes, more than {MAX_PARAMETER_BYTES}: send data as columns"
            )
        operation = self._operations[name]
        schema = tuple((name, check(column, request.n, name)) for name, column in sorted(request.cols.items()))
        parameters = operation.decode_parameters(decode_parameters(request.p))
        outputs = operation.outputs(schema, parameters)
        variable = any(field.dtype in VARIABLE for _, field in (*schema, *outputs))
        row_bytes = sum(field.row_bytes for _, field in (*schema, *outputs))
        for column, field in schema:
            # A dimension of 0 hides the others from a count of bytes, and rows of a batch multiply them.
            if math.prod(filter(None, field.shape)) > self._max_bytes:
                raise TooLarge(f"a row of column {column!r} is {field}, the largest batch {self._max_bytes} bytes")
        if row_bytes > self._max_bytes:
            raise TooLarge(f"a row is {row_bytes} bytes in and out, the largest batch {self._max_bytes}: send less")
        key = (name, schema, operation.lane_key(schema, parameters))
        return LaneSpec(key, operation, schema, outputs, bytes(request.p), row_bytes, variable)

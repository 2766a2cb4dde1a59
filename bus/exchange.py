"""An exchange: one request frame and the reply frames to it, as they were on the wire, and what they say row by row."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from .columns import FIXED, VARIABLE, Array, Values, unpack
from .errors import (
    BadColumn,
    BadFrame,
    BusError,
    Busy,
    Cancelled,
    Closed,
    ConnectionFailed,
    Disconnected,
    EngineDown,
    EngineLost,
    Expired,
    NoWorker,
)
from .frames import Reply, Request, RowError, Run, decode_parameters, decode_reply, decode_request, is_json

_Places: TypeAlias = "slice | Array"

OPEN, REFUSED, SETTLED = 0, 1, 2

# Nothing was run: the row is still to be answered.
REFUSALS = frozenset({Busy.code, EngineDown.code})

# Errors that say nothing of the operation: another try may be answered otherwise.
TRANSIENT = REFUSALS | {
    each.code for each in (BusError, Cancelled, Closed, ConnectionFailed, Disconnected, EngineLost, Expired, NoWorker)
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answers.

    Attributes:
        number: its place in the recording, from 0.
        time_ns: when the request came, ns since 1970.
        operation: its subject below the root: the operation's name, and the partition if it has one.
        request: the frame, byte for byte.
        answers: time and frame of each answer, in the order in which they came.
    """

    number: int
    time_ns: int
    operation: str
    request: bytes
    answers: tuple[tuple[int, bytes], ...]

    @property
    def asked(self) -> Request:
        """The request, decoded. Raises as `decode_request`."""
        return decode_request(self.request)

    @property
    def columns(self) -> dict[str, Values]:
        """What was asked: by column, an array whose first axis is the row, or a list of str or bytes."""
        asked = self.asked
        return {name: unpack(column, asked.n) for name, column in asked.cols.items()}

    @property
    def parameters(self) -> Any:
        """The request's parameters."""
        return decode_parameters(self.asked.p)

    @property
    def answer(self) -> Outcome:
        """What was answered, row by row; the first word on a row counts.

        Raises:
            BusError: an answer is no reply to this request.
        """
        outcome = Outcome(self.asked.n)
        for _, payload in self.answers:
            outcome.add(Part.read(payload))
        return outcome

    @property
    def latency_ns(self) -> int | None:
        """From the request to the last answer; None if there is none."""
        return self.answers[-1][0] - self.time_ns if self.answers else None


class Part(NamedTuple):
    """What one reply says.

    Attributes:
        at: the rows answered, as runs.
        types: wire dtype of each column.
        columns: their values, in the order of `at`; bf16 as float32.
        errors: the rows that got none.
        json: it was told in JSON, where infinities are NaN.
    """

    at: list[Run]
    types: dict[str, str]
    columns: dict[str, Values]
    errors: list[RowError]
    json: bool = False

    @classmethod
    def of(cls, reply: Reply) -> Part:
        """What a reply says.

        Raises:
            BadColumn, BadValue: a column does not fit its rows.
        """
        rows = sum(count for _, count in reply.at)
        types = {name: column.t for name, column in reply.cols.items()}
        return cls(reply.at, types, {name: unpack(each, rows) for name, each in reply.cols.items()}, reply.err)

    @classmethod
    def read(cls, payload: bytes) -> Part:
        """What a reply frame says, of MessagePack or JSON, where an infinity is NaN.

        Raises:
            BusError: these bytes are no reply.
        """
        if not is_json(payload):
            return cls.of(decode_reply(payload))
        try:
            reply = _json_replies.decode(payload)
            rows = sum(count for _, count in reply.at)
            columns = {name: _values(column, rows) for name, column in reply.cols.items()}
        except (msgspec.MsgspecError, RecursionError, ValueError, TypeError) as error:
            raise BadFrame(f"not a reply frame: {error}") from None
        return cls(reply.at, {name: column.t for name, column in reply.cols.items()}, columns, reply.err, True)


class Outcome:
    """The answers to the rows of one request.

    A refusal (`busy`, `engine_down`) is no answer: what comes after it counts. Else the first word on a row does.

    Args:
        rows: how many there are.

    Attributes:
        state: (rows,) uint8: `OPEN`, `REFUSED` or `SETTLED`.
        types: wire dtype of each column.
        columns: by name, an array of all rows or a list; zeros or None where a row has no value.
        errors: code and message of each row that got an error.
        json: some of it was told in JSON, where infinities are NaN.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.state = np.zeros(rows, np.uint8)
        self.types: dict[str, str] = {}
        self.columns: dict[str, Values] = {}
        self.errors: dict[int, tuple[str, str]] = {}
        self.json = False

    @property
    def open(self) -> int:
        """Rows of which nothing was heard."""
        return int(np.count_nonzero(self.state == OPEN))

    @property
    def valued(self) -> Array:
        """(rows,) bool, whether the row has values."""
        valued: Array = self.state == SETTLED
        if self.errors:
            valued[list(self.errors)] = False
        return valued

    def add(self, part: Part) -> None:
        """Take what a reply says.

        Raises:
            BadFrame: it names rows that are not there.
            BadColumn: a column is of another type than before.
        """
        self.json |= part.json
        for error in part.errors:
            self.fail(error.row, error.n or self.rows - error.row, error.code, error.msg)
        position = 0
        for first, count in part.at:
            self._check(first, count)
            self._put(first, count, part, position)
            position += count

    def fail(self, first: int, count: int, code: str, message: str) -> None:
        """These rows got an error, as far as nothing is known of them. Raises as `add`."""
        self._check(first, count)
        least = REFUSED if code in REFUSALS else SETTLED
        for row in (first + np.flatnonzero(self.state[first : first + count] < SETTLED)).tolist():
            self.errors[row] = (code, message)
            self.state[row] = least

    def _put(self, first: int, count: int, part: Part, position: int) -> None:
        rows, place = self._fresh(first, count, position)
        for name, values in part.columns.items():
            if name not in self.columns:
                self.types[name] = part.types[name]
                self.columns[name] = _space(values, self.rows)
            self._copy(name, part.types[name], values, rows, place)
        if self.errors:
            for row in range(self.rows)[rows] if isinstance(rows, slice) else rows.tolist():
                self.errors.pop(row, None)
        self.state[rows] = SETTLED

    def _fresh(self, first: int, count: int, position: int) -> tuple[_Places, _Places]:
        """The rows of a run that take a value now, and where a reply has theirs; nearly always all of them."""
        settled = self.state[first : first + count] == SETTLED
        if not settled.any():
            return slice(first, first + count), slice(position, position + count)
        fresh = np.flatnonzero(~settled)
        return first + fresh, position + fresh

    def _copy(self, name: str, kind: str, values: Values, rows: _Places, place: _Places) -> None:
        whole: Any = self.columns[name]
        if self.types[name] != kind:
            raise BadColumn(f"column {name!r} of the answer is {kind} here and {self.types[name]} before")
        if isinstance(values, np.ndarray) and isinstance(whole, np.ndarray):
            if values.shape[1:] != whole.shape[1:]:
                raise BadColumn(
                    f"column {name!r} of the answer has rows of {values.shape[1:]} here and {whole.shape[1:]} before"
                )
            whole[rows] = values[place]
        elif isinstance(rows, slice):
            whole[rows] = values[place]
        else:
            for row, at in zip(rows.tolist(), place.tolist(), strict=True):  # type: ignore[union-attr]
                whole[row] = values[at]

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > self.rows:
            raise BadFrame(f"the reply names rows {first} to {first + count} of a frame of {self.rows}")


class _JsonColumn(msgspec.Struct):
    t: str
    d: list[Any]


class _JsonReply(msgspec.Struct):
    at: list[Run] = []
    cols: Mapping[str, _JsonColumn] = {}
    err: list[RowError] = []


_json_replies = msgspec.json.Decoder(_JsonReply)


def _values(column: _JsonColumn, rows: int) -> Values:
    """A column as `frames.encode_json` writes it."""
    if len(column.d) != rows:
        raise ValueError(f"{len(column.d)} values are not the {rows} that are answered")
    if column.t in VARIABLE:
        texts = msgspec.convert(column.d, list[str])
        return [base64.b64decode(text, validate=True) for text in texts] if column.t == "bin" else texts
    dtype = np.dtype(np.float32) if column.t == "bf16" else FIXED.get(column.t)
    if dtype is None:
        raise ValueError(f"there is no type {column.t!r}")
    if dtype.kind not in "fc":
        return np.array(column.d, dtype)
    # null is NaN to NumPy when it is told of floats.
    numbers = np.array(column.d, np.float64)
    return numbers.view(np.complex128)[..., 0].astype(dtype) if dtype.kind == "c" else numbers.astype(dtype)


def _space(values: Values, rows: int) -> Values:
    if isinstance(values, np.ndarray):
        return np.zeros((rows, *values.shape[1:]), values.dtype)
    empty: list[Any] = [None] * rows
    return empty

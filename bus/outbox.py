"""The outbox: rows asked for in one loop tick become one columnar frame an operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from .columns import OFFSET, Column, Values, contiguous, wire_dtype
from .errors import BadColumn
from .frames import MAX_ROWS, Request, encode
from .pending import SingleRows

_RAW_NONE = msgspec.Raw(b"\x80")


class Envelope(msgspec.Struct, frozen=True):
    """What rows must share to travel in one frame, besides their columns' types.

    Attributes:
        operation: its name.
        subject: where frames go.
        parameters: encoded map; empty for none.
        timeout_s: time the caller will wait.
        priority: 0 normal, 1 high, -1 low.
        idempotent: the rows may be sent again after a lost connection.
    """

    operation: str
    subject: str
    parameters: bytes
    timeout_s: float
    priority: int
    idempotent: bool

    def request(self, client: int, id_: int, rows: int, columns: dict[str, Column]) -> Request:
        """A request frame of these rows."""
        return Request(
            v=1,
            client=client,
            id=id_,
            n=rows,
            cols=columns,
            p=msgspec.Raw(self.parameters) if self.parameters else _RAW_NONE,
            ttl_ms=max(1, int(self.timeout_s * 1000)),
            prio=self.priority,
        )


class Building:
    """A frame that still takes rows: its columns so far, as bytes.

    Rows are copied in as they come, so a caller may change its arrays as soon as `call` returns.
    """

    __slots__ = ("_columns", "envelope", "frame", "full_bytes", "used_bytes")

    def __init__(self, envelope: Envelope, frame: SingleRows, row: Mapping[str, Any], full_bytes: int) -> None:
        self.envelope = envelope
        self.frame = frame
        self.full_bytes = full_bytes
        self.used_bytes = 0
        self._columns = [(name, _part_for(value)) for name, value in row.items()]

    def append(self, row: Mapping[str, Any]) -> bool:
        """Add one row of the same types; true if the frame has reached its size."""
        for name, part in self._columns:
            self.used_bytes += part.append(row[name])
        return self.used_bytes >= self.full_bytes

    def columns(self) -> dict[str, Column]:
        """The columns of all rows appended."""
        rows = len(self.frame.answers)
        return {name: part.column(rows) for name, part in self._columns}

    def encode(self, client: int) -> bytes:
        """The frame's payload."""
        return encode(self.envelope.request(client, self.frame.id, len(self.frame.answers), self.columns()))


def type_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells rows of different column types apart, cheaply."""
    key: list[Any] = []
    for name, value in row.items():
        key.append(name)
        if type(value) is np.ndarray:
            key.append(value.dtype)
            key.append(value.shape)
        else:
            key.append(type(value))
    return tuple(key)


def as_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with what is neither array, str nor bytes made an array (a list, a number, a torch tensor)."""
    if all(type(value) in (np.ndarray, str, bytes) for value in row.values()):
        return row
    return {name: v if isinstance(v, (np.ndarray, str, bytes)) else _as_array(name, v) for name, v in row.items()}


def rows_of(columns: Mapping[str, Values]) -> int:
    """The number of rows all columns agree on."""
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) != 1:
        raise BadColumn(f"columns must be of one length, not {counts or 'none'}")
    return next(iter(counts.values()))


def cuts(columns: Mapping[str, Values], frame_bytes: int, most_rows: int = MAX_ROWS) -> Iterator[tuple[int, int]]:
    """Where to cut rows into frames of at most `frame_bytes` and `most_rows`, a row at the least: (first, end)."""
    rows = rows_of(columns)
    sizes = np.zeros(rows, np.int64)
    for values in columns.values():
        sizes += values.nbytes // max(rows, 1) if isinstance(values, np.ndarray) else [len(v) + 4 for v in values]
    ends = np.cumsum(sizes)
    first = 0
    while first < rows:
        before = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + frame_bytes, side="right")))
        end = min(end, first + most_rows)
        yield first, end
        first = end


class _Fixed:
    __slots__ = ("_data", "_dtype", "_shape", "_swap")

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._dtype = wire_dtype(value)
        self._shape = value.shape
        self._data = bytearray()
        self._swap = value.dtype.byteorder == ">"

    def append(self, value: np.ndarray[Any, Any]) -> int:
        if self._swap or not value.flags.c_contiguous:
            value = contiguous(value)
        self._data += value.data
        return value.nbytes

    def column(self, rows: int) -> Column:
        return Column(self._dtype, memoryview(self._data), (rows, *self._shape))


class _Variable:
    __slots__ = ("_data", "_ends", "_kind")

    def __init__(self, value: str | bytes) -> None:
        self._kind = "utf8" if isinstance(value, str) else "bin"
        self._data = bytearray()
        self._ends = [0]

    def append(self, value: str | bytes) -> int:
        blob = value.encode() if isinstance(value, str) else value
        self._data += blob
        self._ends.append(len(self._data))
        return len(blob) + OFFSET.itemsize

    def column(self, rows: int) -> Column:
        return Column(self._kind, memoryview(self._data), None, np.array(self._ends, OFFSET).view(np.uint8).data)


def _part_for(value: Any) -> _Fixed | _Variable:
    return _Fixed(value) if isinstance(value, np.ndarray) else _Variable(value)


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype == object:
        raise BadColumn(f"column {name!r}: a row must be an array, a number, str or bytes, not {type(value).__name__}")
    return array

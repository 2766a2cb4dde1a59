"""The outbox: rows asked for in one loop tick become one columnar frame an operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from .columns import FIXED, OFFSET, Column, Values, bytes_of, contiguous, wire_dtype
from .errors import BadColumn, BadParameter, BadValue
from .frames import MAX_ROWS, Request, encode
from .pending import SingleRows

_RAW_NONE = msgspec.Raw(b"\x80")

_parameters = msgspec.msgpack.Encoder(order="sorted")


class Envelope(msgspec.Struct, frozen=True):
    """What rows must share to travel in one frame, besides their columns' types.

    Attributes:
        operation: its name.
        subject: where frames go.
        parameters: encoded map; empty for none.
        timeout_s: time the caller will wait.
        priority: 0 normal, 1 high, -1 low.
        idempotent: the rows may be sent again after a lost connection.
        ttl_ms: the same time as frames carry it, ms.
    """

    operation: str
    subject: str
    parameters: bytes
    timeout_s: float
    priority: int
    idempotent: bool
    ttl_ms: int

    def request(
        self,
        client: int,
        id_: int,
        rows: int,
        columns: dict[str, Column],
        left_s: float | None = None,
        trace: str = "",
    ) -> Request:
        """A request frame of these rows; `left_s` is what is left of the time-out, if it has begun, s."""
        return Request(
            v=1,
            client=client,
            id=id_,
            n=rows,
            cols=columns,
            p=msgspec.Raw(self.parameters) if self.parameters else _RAW_NONE,
            ttl_ms=self.ttl_ms if left_s is None else max(1, round(1000 * left_s)),
            prio=self.priority,
            trace=trace,
        )


class Building:
    """A frame that still takes rows: its columns so far, as bytes; `full_bytes` of them, or one row if that is larger.

    Rows are copied in as they come, so a caller may change its arrays as soon as `call` returns.
    """

    __slots__ = ("_columns", "_trace", "envelope", "frame", "full_bytes", "used_bytes")

    def __init__(
        self, envelope: Envelope, frame: SingleRows, row: Mapping[str, Any], full_bytes: int, trace: str = ""
    ) -> None:
        self._trace = trace
        self.envelope = envelope
        self.frame = frame
        self.full_bytes = full_bytes
        self.used_bytes = 0
        self._columns = [(name, _part_for(value)) for name, value in row.items()]

    def append(self, row: Mapping[str, Any]) -> bool:
        """Add one row of the same types; false, and nothing is added, if the frame would become larger than its size.

        Raises:
            BadValue: a str has a lone surrogate; nothing is added.
        """
        used = self.used_bytes
        rows = len(self.frame.answers)
        try:
            for name, part in self._columns:
                used += part.append(row[name])
        except UnicodeEncodeError as error:
            self._cut(rows)
            raise BadValue(f"a str cannot be sent as UTF-8: {error}") from None
        if used > self.full_bytes and rows:
            self._cut(rows)
            return False
        self.used_bytes = used
        return True

    def columns(self) -> dict[str, Column]:
        """The columns of all rows appended."""
        rows = len(self.frame.answers)
        return {name: part.column(rows) for name, part in self._columns}

    def _cut(self, rows: int) -> None:
        """Take back what columns hold beyond these rows."""
        for _, part in self._columns:
            part.cut(rows)

    def encode(self, client: int) -> bytes:
        """The frame's payload."""
        rows = len(self.frame.answers)
        return encode(self.envelope.request(client, self.frame.id, rows, self.columns(), trace=self._trace))


def type_key(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What tells rows of different column types apart; None if a value is neither array, str nor bytes."""
    key: list[Any] = []
    for name, value in row.items():
        kind = type(value)
        if kind is np.ndarray:
            key += (name, value.dtype, value.shape)
        elif kind is str or kind is bytes:
            key += (name, kind)
        else:
            return None
    return tuple(key)


def as_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with every other value made an array: a list, a number, a torch tensor.

    Raises:
        BadColumn: a value makes no array.
    """
    return {name: v if type(v) in (np.ndarray, str, bytes) else _as_value(name, v) for name, v in row.items()}


def as_columns(columns: Mapping[str, Any]) -> dict[str, Values]:
    """The columns with everything made an array that is neither one nor a list of str or bytes.

    Raises:
        BadColumn: a column makes no array whose first axis is the row.
    """
    return {name: v if type(v) is np.ndarray and v.ndim else _as_column(name, v) for name, v in columns.items()}


def encode_parameters(parameters: Mapping[str, Any] | None) -> bytes:
    """Parameters as a map with sorted keys, so that equal ones have equal bytes; empty for none.

    Raises:
        BadParameter: a value is of a type that cannot be sent.
    """
    try:
        return _parameters.encode(parameters) if parameters else b""
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadParameter(f"the parameters cannot be sent: {error}") from None


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
        if isinstance(values, np.ndarray):
            sizes += values.nbytes // max(rows, 1)
        else:
            sizes += np.fromiter(map(_wire_bytes, values), np.int64, rows)
    ends = np.cumsum(sizes)
    first = 0
    while first < rows:
        before = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + frame_bytes, side="right")))
        end = min(end, first + most_rows)
        yield first, end
        first = end


class _Fixed:
    __slots__ = ("_data", "_dtype", "_foreign", "_row_bytes", "_shape")

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self._dtype = wire_dtype(value)
        self._shape = value.shape
        self._data = bytearray()
        self._row_bytes = value.nbytes
        # Numbers the other way round, and bfloat16, whose memory NumPy does not show as it is.
        self._foreign = value.dtype != FIXED[self._dtype]

    def append(self, value: np.ndarray[Any, Any]) -> int:
        if self._foreign:
            self._data += bytes_of(contiguous(value))
        else:
            try:
                self._data.extend(value)
            except TypeError:  # not in C order
                self._data.extend(contiguous(value))
        return self._row_bytes

    def cut(self, rows: int) -> None:
        del self._data[rows * self._row_bytes :]

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

    def cut(self, rows: int) -> None:
        del self._ends[rows + 1 :]
        del self._data[self._ends[rows] :]

    def column(self, rows: int) -> Column:
        return Column(self._kind, memoryview(self._data), None, np.array(self._ends, OFFSET).view(np.uint8).data)


def _part_for(value: Any) -> _Fixed | _Variable:
    return _Fixed(value) if isinstance(value, np.ndarray) else _Variable(value)


def _wire_bytes(value: Any) -> int:
    """Bytes of one row of variable width, its offset included."""
    if isinstance(value, str) and not value.isascii():
        value = value.encode(errors="surrogatepass")
    return len(value) + OFFSET.itemsize


def _as_value(name: str, value: Any) -> Any:
    """One row's value: a plain str or bytes of a subclass, else an array."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return _as_array(name, value)


def _as_column(name: str, values: Any) -> Values:
    if isinstance(values, (list, tuple)) and (not values or isinstance(values[0], (str, bytes, bytearray, memoryview))):
        return list(values)
    array = _as_array(name, values)
    if array.ndim == 0:
        raise BadColumn(f"column {name!r} is one value: give an array whose first axis is the row, or a list")
    return array


def _as_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadColumn(f"column {name!r} makes no array: {error}") from None
    if array.dtype == object:
        raise BadColumn(f"column {name!r} must be an array, numbers, str or bytes, not {type(value).__name__}")
    return array

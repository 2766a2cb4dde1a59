"""Columns: how the rows of a frame lie in memory, and how they become NumPy arrays and back.

A fixed-width column is its rows in C order; a variable-width one (`utf8`, `bin`) is Arrow's pair of u32 offsets and
data. All numbers are little-endian.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np

from .errors import BadColumn, BadValue

Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = "Array | list[str] | list[bytes]"

FIXED: dict[str, np.dtype[Any]] = {
    "bool": np.dtype("?"),
    "i1": np.dtype("<i1"),
    "i2": np.dtype("<i2"),
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
    "u1": np.dtype("<u1"),
    "u2": np.dtype("<u2"),
    "u4": np.dtype("<u4"),
    "u8": np.dtype("<u8"),
    "f2": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),  # NumPy has no bfloat16: the two bytes of each number, as they are
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
    "c8": np.dtype("<c8"),
    "c16": np.dtype("<c16"),
}
VARIABLE = ("utf8", "bin")
OFFSET = np.dtype("<u4")

# Dimensions of a column, the row's included: NumPy before 2.0 knows no more.
MAX_DIMENSIONS = 32

_WIRE_NAME = {dtype: name for name, dtype in FIXED.items() if name != "bf16"}


class Field(NamedTuple):
    """The type of one column: wire dtype and shape of a row (`()` for a scalar; always `()` for utf8 and bin)."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; 0 for variable width."""
        return _row_bytes(self)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]" if self.shape else self.dtype


@lru_cache(maxsize=4096)
def _row_bytes(field: Field) -> int:
    return 0 if field.dtype in VARIABLE else FIXED[field.dtype].itemsize * math.prod(field.shape)


Schema: TypeAlias = tuple[tuple[str, Field], ...]
"""Name and type of each column, in the order of the frame. Hashable: it is part of a lane's key."""


class Column(msgspec.Struct, omit_defaults=True):
    """One column on the wire: type `t`, shape `s` with the rows first, data `d`, offsets `o` if of variable width."""

    t: str
    d: memoryview
    s: tuple[int, ...] | None = None
    o: memoryview | None = None


def wire_dtype(array: Array) -> str:
    """The wire name of an array's dtype.

    Raises:
        BadColumn: the bus has no such dtype; the message lists those it has.
    """
    name = _WIRE_NAME.get(array.dtype)
    if name is not None:
        return name
    if array.dtype.name == "bfloat16":  # ml_dtypes'
        return "bf16"
    swapped = _WIRE_NAME.get(array.dtype.newbyteorder("<"))
    if swapped is not None:
        return swapped
    raise BadColumn(f"dtype {array.dtype} cannot be sent: use one of {', '.join(FIXED)}, or a list of str or bytes")


def field_of(array: Array) -> Field:
    """The type of an array whose first axis is the row."""
    return Field(wire_dtype(array), array.shape[1:])


def contiguous(array: Array) -> Array:
    """The same values in C order and little-endian; the array itself where it is so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def pack_array(array: Array) -> Column:
    """A column of an array whose first axis is the row; the data is not copied where it is contiguous."""
    array = contiguous(array)
    return Column(t=wire_dtype(array), s=array.shape, d=bytes_of(array))


def pack_strings(rows: Sequence[str] | Sequence[bytes]) -> Column:
    """A variable-width column: `utf8` of str rows, `bin` of bytes rows.

    Raises:
        BadColumn: the rows are neither all str nor all bytes.
        BadValue: a str has a lone surrogate, which no encoding carries.
    """
    try:
        if not rows or isinstance(rows[0], str):
            kind, blobs = "utf8", [row.encode() for row in rows]  # type: ignore[union-attr]
        else:
            # Through a view, because bytes(5) is five zeros.
            kind, blobs = "bin", [bytes(memoryview(row)) for row in rows]  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        raise BadColumn("a list must be all str or all bytes: make anything else an array") from None
    except UnicodeEncodeError as error:
        raise BadValue(f"a str cannot be sent as UTF-8: {error}") from None
    # 1 µs for a lone row, where `np.cumsum` of a list takes 8.
    offsets = np.fromiter(itertools.accumulate(map(len, blobs), initial=0), OFFSET, len(blobs) + 1)
    return Column(t=kind, o=bytes_of(offsets), d=memoryview(b"".join(blobs)))


def pack(values: Values) -> Column:
    """A column of an array, or of a list of str or bytes."""
    return pack_array(values) if isinstance(values, np.ndarray) else pack_strings(values)


def unpack(column: Column, rows: int) -> Values:
    """The values of a column: a read-only array that shares the frame's memory (bf16 as float32), or a list.

    Raises:
        BadColumn: type, shape or length do not fit together.
        BadValue: a `utf8` row is not UTF-8.
    """
    check(column, rows)
    if column.t in VARIABLE:
        offsets = np.frombuffer(column.o or b"", OFFSET).tolist()
        blobs = [bytes(column.d[a:b]) for a, b in itertools.pairwise(offsets)]
        if column.t == "bin":
            return blobs
        try:
            return [blob.decode() for blob in blobs]
        except UnicodeDecodeError as error:
            raise BadValue(f"a utf8 column holds bytes that are not UTF-8: {error}") from None
    array = np.frombuffer(column.d, FIXED[column.t]).reshape(column.s or (rows,))
    return widen_bf16(array) if column.t == "bf16" else array


def widen_bf16(bits: Array) -> Array:
    """float32 values of bfloat16 bits (exact: bfloat16 is the upper half of float32)."""
    return (bits.astype("<u4") << 16).view("<f4")


def narrow_bf16(values: Array) -> Array:
    """bfloat16 bits, uint16, of float32 values in C order, rounded to the nearest, of two as near to the even one."""
    bits = values.view(np.uint32)
    # The upper half and whether what is lost is above a half of its last place, or half of it and that place odd.
    made: Array = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)
    unknown = np.isnan(values)
    if unknown.any():
        made[unknown] = 0x7FC0
    return made


def check(column: Column, rows: int, name: str = "") -> Field:
    """The type of a column of `rows` rows.

    Raises:
        BadColumn: the dtype is unknown, or shape, offsets and data do not agree.
    """
    dtype = FIXED.get(column.t)
    if dtype is None:
        _check_offsets(column, rows, name)
        return Field(column.t)
    shape = (rows,) if column.s is None else column.s
    if not shape or shape[0] != rows or min(shape) < 0:
        raise BadColumn(
            f"{_label(name)} has shape {list(shape)}, but the frame says n = {rows}: the first axis is the row"
        )
    # An empty column is the only one whose dimensions its data does not bound.
    if len(shape) > MAX_DIMENSIONS or (not column.d and math.prod(filter(None, shape)) >= 1 << 48):
        raise BadColumn(
            f"{_label(name)} has {len(shape)} dimensions, or an empty shape of too many: send a smaller shape"
        )
    field = Field(column.t, shape[1:])
    if len(column.d) != dtype.itemsize * math.prod(shape):
        raise BadColumn(
            f"{_label(name)} holds {len(column.d)} bytes, but {rows} rows of {field} are {rows * field.row_bytes} bytes"
        )
    return field


def cut(column: Column, rows: int, first: int, end: int) -> Column:
    """The part of a sound column of `rows` rows that holds rows `first` to `end`."""
    if column.o is None:
        row_bytes = len(column.d) // rows
        shape = None if column.s is None else (end - first, *column.s[1:])
        return Column(column.t, memoryview(column.d)[first * row_bytes : end * row_bytes], shape)
    offsets = np.frombuffer(column.o, OFFSET)[first : end + 1]
    data = memoryview(column.d)[int(offsets[0]) : int(offsets[-1])]
    return Column(column.t, data, None, bytes_of(offsets - offsets[0]))


def _label(name: str) -> str:
    return f"column {name!r}" if name else "a column"


def _check_offsets(column: Column, rows: int, name: str) -> None:
    label = _label(name)
    if column.t not in VARIABLE:
        raise BadColumn(f"{label} is of type {column.t!r}: use one of {', '.join((*FIXED, *VARIABLE))}")
    if column.o is None or len(column.o) != (rows + 1) * OFFSET.itemsize:
        raise BadColumn(f"{label} is {column.t} and needs 'o', {rows + 1} u32 offsets for its {rows} rows")
    offsets = np.frombuffer(column.o, OFFSET)
    if offsets[0] != 0 or offsets[-1] != len(column.d) or (rows > 1 and (offsets[1:] < offsets[:-1]).any()):
        raise BadColumn(f"{label}: offsets must rise from 0 to the data's {len(column.d)} bytes")


def bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array, of whatever dtype, as bytes."""
    return array.reshape(-1).view(np.uint8).data

"""Columns against NumPy and against bytes laid out by hand."""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aikoryu.bus import columns as module
from aikoryu.bus.columns import FIXED, Array, Column, Field, check, cut, pack, unpack, wire_dtype
from aikoryu.bus.errors import BadColumn, BadValue, BusError

SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
DTYPES = st.sampled_from([name for name in FIXED if name != "bf16"])


def fixed(kind: str, data: bytes, shape: tuple[int, ...] | None = None) -> Column:
    return Column(kind, memoryview(data), shape)


def variable(kind: str, offsets: list[int], data: bytes) -> Column:
    return Column(kind, memoryview(data), None, memoryview(struct.pack(f"<{len(offsets)}I", *offsets)))


def same(one: Any, other: Array) -> bool:
    """Equal to the last bit, NaN included."""
    return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())


@given(st.data())
def test_every_dtype_and_shape_comes_back(data: st.DataObject) -> None:
    array = data.draw(npst.arrays(FIXED[data.draw(DTYPES)], data.draw(SHAPES)))
    assert same(unpack(pack(array), len(array)), array)


@pytest.mark.parametrize("name", [name for name in FIXED if name != "bf16"])
def test_wire_name_is_kind_and_size(name: str) -> None:
    dtype = FIXED[name]
    column = pack(np.ones(3, dtype))
    assert (column.t, column.s, len(column.d)) == (name, (3,), 3 * dtype.itemsize)
    assert name == "bool" or name == f"{dtype.kind}{dtype.itemsize}"


def test_numbers_are_little_endian_in_c_order() -> None:
    column = pack(np.array([[1, 2], [3, 4]], "<u2"))
    assert bytes(column.d) == bytes([1, 0, 2, 0, 3, 0, 4, 0])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24).reshape(6, 4)[::2, 1:3],
        np.arange(12)[::-1],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((0, 7), ">i8"),
        np.zeros((7, 0)),
        np.array([1 + 2j], ">c16"),
    ],
)
def test_any_layout_comes_back(array: Array) -> None:
    back = unpack(pack(array), len(array))
    assert isinstance(back, np.ndarray)
    assert back.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(back, array)


def test_contiguous_data_is_not_copied() -> None:
    array = np.arange(8.0)
    column = pack(array)
    array[0] = 99
    values = unpack(column, 8)
    assert isinstance(values, np.ndarray)
    assert values[0] == 99
    assert not values.flags.owndata


def test_unpacked_frame_cannot_be_written() -> None:
    values = unpack(fixed("f4", bytes(8), (2,)), 2)
    assert isinstance(values, np.ndarray)
    assert not values.flags.writeable


def test_bf16_widens_exactly() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80, 0xFF80, 0x0001, 0x7FC0], "<u2")
    values = unpack(fixed("bf16", bits.tobytes(), (6,)), 6)
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    expected = [1.0, -2.0, np.inf, -np.inf, 2.0**-133, np.nan]
    np.testing.assert_array_equal(values, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}]),
        np.array(["a"]),
        np.array([b"a"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(1, np.longdouble),
        np.zeros(1, [("a", "<i4")]),
    ],
)
def test_dtype_the_bus_does_not_have_is_refused_with_those_it_has(array: Array) -> None:
    with pytest.raises(BadColumn, match="use one of bool, i1"):
        wire_dtype(array)
    with pytest.raises(BadColumn):
        pack(array)


@given(st.lists(st.text(), max_size=20))
def test_strings_come_back(rows: list[str]) -> None:
    assert unpack(pack(rows), len(rows)) == rows


@given(st.lists(st.binary(), min_size=1, max_size=20))
def test_bytes_come_back(rows: list[bytes]) -> None:
    assert unpack(pack(rows), len(rows)) == rows


def test_strings_are_arrows_offsets_and_data() -> None:
    column = pack(["é", "", "ab"])
    assert column.o is not None
    assert bytes(column.o) == struct.pack("<4I", 0, 2, 2, 4)
    assert bytes(column.d) == "éab".encode()


@pytest.mark.parametrize("rows", [["a", b"b"], [b"a", "b"], [b"a", 5], [1, 2], [None], [[1.0], [2.0]]])
def test_list_of_anything_but_str_or_bytes_is_refused(rows: list[Any]) -> None:
    with pytest.raises(BadColumn, match="all str or all bytes"):
        pack(rows)


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(BadValue, match="surrogates"):
        pack(["fine", "\ud800"])


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 9, 4],  # falls, and points beyond the data
        [0, 3, 2, 4],
        [1, 2, 4],  # does not begin at 0
        [0, 2, 3],  # does not end with the data
        [0, 2, 5],
        [0, 4, 0, 4],
        [0, 2**32 - 1, 4],
        [4],
        [],
        [0, 4],  # too few
        [0, 1, 2, 3, 4],  # too many
    ],
)
@pytest.mark.parametrize("kind", ["utf8", "bin"])
def test_offsets_that_do_not_rise_from_0_to_the_end_are_refused(kind: str, offsets: list[int]) -> None:
    rows = 3 if len(offsets) == 4 else 2
    with pytest.raises(BadColumn, match="offsets"):
        unpack(variable(kind, offsets, b"abcd"), rows)


def test_offsets_of_half_a_number_are_refused() -> None:
    with pytest.raises(BadColumn, match="offsets"):
        unpack(Column("utf8", memoryview(b""), None, memoryview(bytes(7))), 1)
    with pytest.raises(BadColumn, match="offsets"):
        unpack(Column("utf8", memoryview(b"")), 1)


def test_offsets_beside_a_fixed_width_column_mean_nothing() -> None:
    # They were read instead of the data, unchecked: [0, n, 0, n, …] made megabytes of a few bytes.
    odd = Column("i1", memoryview(b"\1\2\3\4"), (4,), memoryview(b"\0\0\0\0\4\0\0\0"))
    values = unpack(odd, 4)
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [1, 2, 3, 4]


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(BadValue, match="not UTF-8"):
        unpack(variable("utf8", [0, 1, 2], b"a\xff"), 2)
    with pytest.raises(BadValue):  # a letter cut in two between rows
        unpack(variable("utf8", [0, 1, 2], "é".encode()), 2)
    assert unpack(variable("bin", [0, 1, 2], b"a\xff"), 2) == [b"a", b"\xff"]


@pytest.mark.parametrize(
    ("column", "rows", "says"),
    [
        (fixed("f4", bytes(8), (2,)), 3, "n = 3"),
        (fixed("f4", bytes(8), ()), 2, "first axis is the row"),
        (fixed("f4", bytes(8), (2, -1)), 2, "first axis is the row"),
        (fixed("f4", bytes(8), (-2,)), -2, "first axis is the row"),
        (fixed("f4", bytes(9), (2,)), 2, "9 bytes.*8 bytes"),
        (fixed("f4", bytes(8), (2, 2)), 2, "8 bytes.*16 bytes"),
        (fixed("f4", bytes(8)), 3, "8 bytes.*12 bytes"),
        (fixed("f3", bytes(8)), 2, "'f3': use one of"),
        (fixed("", bytes(8)), 2, "use one of"),
        (fixed("i1", bytes(1), (1,) * 65), 1, "65 dimensions"),
        (fixed("i1", b"", (1, 2**62, 2**62, 0)), 1, "shape"),
        (fixed("i1", b"", (0, 2**63, 2**63)), 0, "shape"),
    ],
)
def test_shape_and_data_that_do_not_agree_are_refused(column: Column, rows: int, says: str) -> None:
    with pytest.raises(BadColumn, match=says):
        check(column, rows)
    with pytest.raises(BadColumn, match=says):
        unpack(column, rows)


def test_shape_of_a_hundred_thousand_dimensions_is_refused_at_once() -> None:
    # Their product alone took seconds.
    column = fixed("i1", b"", (1, *([2**62] * 100_000)))
    begun = time.perf_counter()
    with pytest.raises(BadColumn):
        check(column, 1)
    assert time.perf_counter() - begun < 0.5


@given(
    st.sampled_from([*FIXED, "utf8", "bin", "arrow", "x"]),
    st.binary(max_size=32),
    st.none() | st.lists(st.integers(-1, 2**64), max_size=40).map(tuple),
    st.none() | st.binary(max_size=32),
    st.integers(0, 8),
)
def test_any_column_gives_its_rows_or_an_error_of_the_bus(
    kind: str, data: bytes, shape: tuple[int, ...] | None, offsets: bytes | None, rows: int
) -> None:
    column = Column(kind, memoryview(data), shape, None if offsets is None else memoryview(offsets))
    try:
        values = unpack(column, rows)
    except BusError:
        return
    assert len(values) == rows


@given(st.data())
def test_cut_gives_the_rows_of_a_slice(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 8))
    first = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(first, rows))
    values = data.draw(
        npst.arrays(np.int16, st.just((rows, 3)))
        | st.lists(st.text(max_size=3), min_size=rows, max_size=rows)
        | st.lists(st.binary(max_size=3), min_size=rows, max_size=rows)
    )
    part = unpack(cut(pack(values), rows, first, end), end - first)
    if isinstance(values, np.ndarray):
        np.testing.assert_array_equal(part, values[first:end])
    else:
        assert part == values[first:end]


def test_field_says_type_and_size() -> None:
    assert str(Field("f4", (3, 2))) == "f4[3,2]"
    assert str(Field("utf8")) == "utf8"
    assert Field("f4", (3, 2)).row_bytes == 24
    assert Field("f8").row_bytes == 8
    assert Field("bf16", (5,)).row_bytes == 10
    assert Field("utf8").row_bytes == 0
    assert module.field_of(np.zeros((9, 4), "f4")) == Field("f4", (4,))

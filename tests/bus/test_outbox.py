"""How rows gather into frames, and where larger wholes are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import unpack
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue
from aikoryu.bus.frames import decode_request
from aikoryu.bus.outbox import Building, Envelope, as_columns, as_row, cuts, encode_parameters, rows_of, type_key
from aikoryu.bus.pending import SingleRows

ENVELOPE = Envelope("echo", "aikoryu.v1.default.echo", b"", 1.5, 1, False, 1500)


def building(row: dict[str, Any], full_bytes: int = 1 << 20) -> Building:
    frame = SingleRows(7, ENVELOPE.subject, 0.0, False, lambda frame, row: None)
    return Building(ENVELOPE, frame, row, full_bytes)


def add(made: Building, row: dict[str, Any]) -> bool:
    """What `Client.call` does with a row."""
    added = made.append(row)
    if added:
        made.frame.answers.append(None)  # type: ignore[arg-type]
    return added


def test_rows_become_columns_of_one_frame() -> None:
    rows: list[dict[str, Any]] = [{"x": np.full(3, n, np.float32), "s": "é" * n, "b": bytes(n)} for n in range(4)]
    made = building(rows[0])
    assert all(add(made, row) for row in rows)
    request = decode_request(made.encode(client=5))
    assert (request.client, request.id, request.n, request.ttl_ms, request.prio) == (5, 7, 4, 1500, 1)
    values = {name: unpack(column, 4) for name, column in request.cols.items()}
    np.testing.assert_array_equal(values["x"], np.stack([row["x"] for row in rows]))
    assert values["s"] == ["", "é", "éé", "ééé"]
    assert values["b"] == [b"", b"\0", b"\0\0", b"\0\0\0"]


@pytest.mark.parametrize(
    "value",
    [
        np.float64(3.5),
        np.array(2, ">i4"),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6, dtype=">f4"),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
    ],
)
def test_row_of_any_layout_is_copied_in_order(value: Any) -> None:
    row = as_row({"x": value})
    made = building(dict(row))
    add(made, dict(row))
    add(made, dict(row))
    got = unpack(decode_request(made.encode(1)).cols["x"], 2)
    np.testing.assert_array_equal(got, np.stack([value, value]))


def test_frame_refuses_the_row_that_would_make_it_too_large() -> None:
    row = {"x": np.zeros(25, np.float32)}
    made = building(row, full_bytes=250)
    assert [add(made, row) for _ in range(3)] == [True, True, False]
    request = decode_request(made.encode(1))
    assert request.n == 2
    assert len(request.cols["x"].d) == 200


def test_refused_row_leaves_nothing_behind() -> None:
    made = building({"x": np.zeros(2), "s": "", "b": b""}, full_bytes=200)
    assert add(made, {"x": np.ones(2), "s": "ab", "b": b"\1"})
    assert not add(made, {"x": np.ones(2), "s": "x" * 500, "b": b"\2"})
    assert add(made, {"x": np.full(2, 3.0), "s": "cd", "b": b"\3"})
    request = decode_request(made.encode(1))
    assert unpack(request.cols["s"], 2) == ["ab", "cd"]
    assert unpack(request.cols["b"], 2) == [b"\1", b"\3"]
    np.testing.assert_array_equal(unpack(request.cols["x"], 2), [[1, 1], [3, 3]])


def test_frame_takes_one_row_however_large() -> None:
    made = building({"s": ""}, full_bytes=10)
    assert add(made, {"s": "x" * 100})
    assert not add(made, {"s": ""})


def test_row_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    made = building({"x": np.zeros(1), "s": ""})
    assert add(made, {"x": np.ones(1), "s": "a"})
    with pytest.raises(BadValue, match="surrogates"):
        made.append({"x": np.full(1, 9.0), "s": "\udc00"})
    assert add(made, {"x": np.full(1, 2.0), "s": "b"})
    request = decode_request(made.encode(1))
    assert unpack(request.cols["s"], 2) == ["a", "b"]
    np.testing.assert_array_equal(unpack(request.cols["x"], 2), [[1], [2]])


def test_type_key_tells_rows_apart_that_cannot_share_a_frame() -> None:
    rows: list[dict[str, Any]] = [
        {"x": np.zeros(3)},
        {"x": np.zeros(3, np.float32)},
        {"x": np.zeros(3, ">f8")},
        {"x": np.zeros(4)},
        {"x": np.zeros((3, 1))},
        {"y": np.zeros(3)},
        {"x": "a"},
        {"x": b"a"},
        {"x": np.zeros(3), "y": np.zeros(3)},
    ]
    assert len({type_key(row) for row in rows}) == len(rows)
    assert type_key({"x": np.ones(3), "s": "a"}) == type_key({"x": np.zeros(3), "s": "bcd"})


class Text(str):
    pass


def test_row_of_other_things_becomes_arrays_and_plain_strings(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(2,))
    row = as_row({"n": 5, "l": [1.0, 2.0], "m": mapped, "s": Text("a"), "u": np.str_("b"), "b": bytearray(b"c")})
    # A subclass of an array would share a frame with any other of its class, whatever their shapes.
    assert {name: type(value) for name, value in row.items()} == {
        "n": np.ndarray, "l": np.ndarray, "m": np.ndarray, "s": str, "u": str, "b": bytes,
    }  # fmt: skip
    assert type_key(row) is not None
    assert row["s"] == "a"
    assert row["n"].shape == ()


@pytest.mark.parametrize("value", [None, object(), {"a": 1}, [[1, 2], [3]], [1, "a", None], {1, 2}])
def test_row_that_makes_no_array_is_refused_by_the_columns_name(value: Any) -> None:
    with pytest.raises(BadColumn, match="'x'"):
        as_row({"x": value})
    with pytest.raises(BadColumn, match="'x'"):
        as_columns({"x": [value]})


def test_columns_of_other_things_become_arrays_and_lists() -> None:
    columns = as_columns({"n": [1, 2], "t": ("a", "b"), "b": [b"a", b"b"], "m": [[1.0, 2.0]], "e": []})
    assert {name: type(values) for name, values in columns.items()} == {
        "n": np.ndarray, "t": list, "b": list, "m": np.ndarray, "e": list,
    }  # fmt: skip
    with pytest.raises(BadColumn, match="one value"):
        as_columns({"x": np.float32(3)})
    with pytest.raises(BadColumn, match="one value"):
        as_columns({"x": "abc"})


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(BadColumn, match="one length"):
        rows_of({"a": np.zeros(2), "b": ["x"]})
    with pytest.raises(BadColumn, match="one length"):
        rows_of({})


@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.integers(1, 100),
    st.integers(1, 10),
)
def test_cuts_cover_every_row_once_within_both_bounds(sizes: list[int], frame_bytes: int, most_rows: int) -> None:
    columns: dict[str, Any] = {"s": ["x" * size for size in sizes], "x": np.zeros((len(sizes), 2), np.uint8)}
    found = list(cuts(columns, frame_bytes, most_rows))
    assert [row for first, end in found for row in range(first, end)] == list(range(len(sizes)))
    for first, end in found:
        used = sum(size + 4 + 2 for size in sizes[first:end])
        assert 1 <= end - first <= most_rows
        assert used <= frame_bytes or end - first == 1


def test_cuts_count_bytes_not_letters() -> None:
    assert list(cuts({"s": ["漢" * 10] * 4}, frame_bytes=68)) == [(0, 2), (2, 4)]
    assert list(cuts({"s": ["\U0001f600" * 10, "\ud800"]}, frame_bytes=44)) == [(0, 1), (1, 2)]


def test_equal_parameters_have_equal_bytes() -> None:
    assert encode_parameters({"a": 1, "b": 2}) == encode_parameters({"b": 2, "a": 1})
    assert encode_parameters({}) == encode_parameters(None) == b""


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800", np.arange(3)])
def test_parameters_that_cannot_be_sent_are_refused(value: Any) -> None:
    with pytest.raises(BadParameter):
        encode_parameters({"x": value})

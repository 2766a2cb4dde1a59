"""What the replies to a request say together, in MessagePack and in JSON."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import FIXED, Column, pack, pack_array
from aikoryu.bus.errors import BadColumn, BadFrame
from aikoryu.bus.exchange import OPEN, REFUSED, SETTLED, Exchange, Outcome, Part
from aikoryu.bus.frames import Reply, Request, RowError, Run, encode, encode_json


def answered(at: list[Run], values: list[int], errors: list[RowError] | None = None) -> Part:
    columns = {"y": pack(np.array(values, np.int64))} if at else {}
    return Part.of(Reply(id=1, at=at, cols=columns, err=errors or []))


def outcome(rows: int, *parts: Part) -> Outcome:
    made = Outcome(rows)
    for part in parts:
        made.add(part)
    return made


def test_parts_make_one_answer() -> None:
    made = outcome(4, answered([(2, 1), (0, 1)], [22, 0]), answered([(3, 1)], [33], [RowError(1, "bad_value", "no")]))
    assert made.columns["y"].tolist() == [0, 0, 22, 33]  # type: ignore[union-attr]
    assert made.errors == {1: ("bad_value", "no")}
    assert made.valued.tolist() == [True, False, True, True]
    assert (made.open, made.types) == (0, {"y": "i8"})


def test_the_first_word_on_a_row_counts() -> None:
    made = outcome(
        3,
        answered([(0, 2)], [1, 2]),
        answered([(1, 2)], [8, 3]),
        answered([], [], [RowError(0, "expired", "late", 0)]),
    )
    assert (made.columns["y"].tolist(), made.errors) == ([1, 2, 3], {})  # type: ignore[union-attr]


def test_a_refusal_gives_way_to_an_answer() -> None:
    refused = answered([], [], [RowError(0, "busy", "full", 0)])
    made = outcome(2, refused)
    assert (made.open, made.state.tolist(), made.valued.tolist()) == (0, [REFUSED] * 2, [False] * 2)
    made.add(answered([(0, 1)], [5], [RowError(1, "bad_value", "no")]))
    assert (made.state.tolist(), made.errors) == ([SETTLED] * 2, {1: ("bad_value", "no")})
    assert made.valued.tolist() == [True, False]


def test_rows_of_which_nothing_was_heard_are_open() -> None:
    made = outcome(3, answered([(1, 1)], [5]))
    assert (made.open, made.state.tolist()) == (2, [OPEN, SETTLED, OPEN])


@pytest.mark.parametrize("at", [[(0, 4)], [(3, 1)], [(-1, 1)]])
def test_rows_that_are_not_there_are_refused(at: list[Run]) -> None:
    with pytest.raises(BadFrame, match="of a frame of 3"):
        outcome(3, answered(at, [0] * sum(count for _, count in at)))


def test_a_column_keeps_its_type() -> None:
    made = outcome(2, answered([(0, 1)], [5]))
    for other in (np.zeros(1, np.float32), np.zeros((1, 2), np.int64)):
        with pytest.raises(BadColumn, match="before"):
            made.add(Part.of(Reply(id=1, at=[(1, 1)], cols={"y": pack(other)})))


def columns_of_all_types() -> dict[str, Column]:
    columns = {"text": pack(["a", "ü"]), "blob": pack([b"", b"\0\xff"])}
    for name, dtype in FIXED.items():
        values = np.array([[0, 1], [1, 0.5 if dtype.kind in "fc" else 1]]).astype(dtype)
        columns[name] = pack_array(values)
    columns["bf16"] = Column("bf16", pack_array(np.array([[0x3F80, 0x4000]] * 2, "<u2")).d, (2, 2))
    columns["f4"] = pack(np.array([[0.1, np.nan], [-3e38, 0]], np.float32))
    columns["c8"] = pack(np.array([[0.1 + 2j, np.nan], [0, 1]], np.complex64))
    return columns


def test_json_says_the_same() -> None:
    reply = Reply(id=1, at=[(0, 2)], cols=columns_of_all_types(), err=[RowError(2, "bad_value", "no")])
    ours, theirs = Part.read(encode(reply)), Part.read(encode_json(reply))
    assert (theirs.at, theirs.types, theirs.errors) == (ours.at, ours.types, ours.errors)
    for name, values in ours.columns.items():
        other = theirs.columns[name]
        if isinstance(values, list):
            assert other == values
        else:
            assert isinstance(other, np.ndarray)
            assert (name, other.dtype, other.shape) == (name, values.dtype, values.shape)
            # Of a complex number both parts are told; what is null is NaN.
            np.testing.assert_array_equal(np.isnan(other), np.isnan(values))
            np.testing.assert_array_equal(np.nan_to_num(other), np.nan_to_num(values))


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda tail: b"{" + tail))
def test_other_bytes_raise_nothing_else(payload: bytes) -> None:
    with suppress(BadFrame, BadColumn):
        outcome(1, Part.read(payload))


@pytest.mark.parametrize(
    "document",
    [
        b'{"at": [[0, 1]], "cols": {"x": {"t": "f4", "d": ["a"]}}}',
        b'{"at": [[0, 1]], "cols": {"x": {"t": "q9", "d": [1]}}}',
        b'{"at": [[0, 1]], "cols": {"x": {"t": "bin", "d": ["?"]}}}',
        b'{"at": [[0, 1]], "cols": {"x": {"t": "i4", "d": [[1], [1, 2]]}}}',
        b'{"at": [[0, 1]], "cols": {"x": {"t": "c8", "d": [1]}}}',
        b'{"at": [[0, 2]], "cols": {"x": {"t": "i4", "d": [1]}}}',
        b'{"at": [[0, 1]], "cols": {"x": {"t": "utf8", "d": [1]}}}',
    ],
)
def test_json_that_is_no_reply_is_told(document: bytes) -> None:
    with pytest.raises(BadFrame, match="not a reply frame"):
        Part.read(document)


def test_an_exchange_is_decoded() -> None:
    x = np.arange(6.0).reshape(2, 3)
    request = Request(v=1, n=2, id=3, cols={"x": pack(x)})
    reply = Reply(id=3, at=[(0, 2)], cols={"y": pack(2 * x)}, last=True)
    exchange = Exchange(0, 100, "demo.scale", encode(request), ((150, encode(reply)),))
    np.testing.assert_array_equal(exchange.columns["x"], x)
    np.testing.assert_array_equal(exchange.answer.columns["y"], 2 * x)
    assert (exchange.parameters, exchange.latency_ns) == ({}, 50)
    assert Exchange(0, 100, "echo", encode(request), ()).latency_ns is None

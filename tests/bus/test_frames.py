"""Frames, written and read by `msgpack` and `json`, which know nothing of this codec; and bytes of anybody."""

from __future__ import annotations

import base64
import json
import math
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadColumn, BadFrame, BadVersion, BusError, Busy, NoWorker
from aikoryu.bus.frames import (
    MAX_ROWS,
    By,
    Cancel,
    Holding,
    Question,
    Reply,
    Request,
    RowError,
    decode_cancel,
    decode_holding,
    decode_parameters,
    decode_question,
    decode_reply,
    decode_request,
    encode,
    encode_json,
    halves,
    is_json,
    retry_ms,
    sent_again,
)

ROWS = np.array([[1, 2], [3, 4]], "<f4")


def request_map(**fields: Any) -> dict[str, Any]:
    """A request as a client of another language would write it."""
    x = {"t": "f4", "s": [2, 2], "d": ROWS.tobytes()}
    return {"v": 1, "client": 2**62, "id": 9, "n": 2, "cols": {"x": x}, "p": {"k": 3}, **fields}


def in_json(n: int, **columns: Any) -> bytes:
    return json.dumps({"v": 1, "n": n, "cols": columns}).encode()


def value_of(n: int, column: Any) -> Any:
    """What a JSON column is as an array or list."""
    return unpack(decode_request(in_json(n, x=column)).cols["x"], n)


# --- MessagePack -----------------------------------------------------------------------------------------------------


def test_request_of_another_encoder_is_read() -> None:
    request = decode_request(msgpack.packb(request_map(ttl_ms=250, prio=-1, trace="abc", stream=4, seq=5, last=True)))
    assert (request.v, request.client, request.id, request.n) == (1, 2**62, 9, 2)
    assert (request.ttl_ms, request.prio, request.trace) == (250, -1, "abc")
    assert (request.stream, request.seq, request.last) == (4, 5, True)
    assert decode_parameters(request.p) == {"k": 3}
    np.testing.assert_array_equal(unpack(request.cols["x"], 2), ROWS)


def test_request_of_a_client_that_names_little_has_defaults() -> None:
    request = decode_request(msgpack.packb({"v": 1, "n": 1}))
    assert (request.client, request.id, request.ttl_ms, request.prio, request.cols) == (0, 0, 0, 0, {})
    assert decode_parameters(request.p) == {}


def test_unknown_keys_are_ignored() -> None:
    assert decode_request(msgpack.packb(request_map(later={"a": [1]}))).n == 2


def test_request_is_read_by_another_decoder() -> None:
    made = Request(v=1, n=2, client=5, id=6, cols={"x": pack(ROWS), "s": pack(["a", "é"])}, ttl_ms=100)
    found = msgpack.unpackb(encode(made))
    assert found["v"] == 1
    assert found["cols"]["x"] == {"t": "f4", "s": [2, 2], "d": ROWS.tobytes()}
    assert found["cols"]["s"] == {"t": "utf8", "o": bytes([0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]), "d": "aé".encode()}
    assert (found["client"], found["id"], found["n"], found["ttl_ms"]) == (5, 6, 2, 100)
    assert "trace" not in found


def test_reply_is_read_by_another_decoder() -> None:
    reply = Reply(
        id=6,
        at=[(0, 1), (2, 1)],
        cols={"x": pack(ROWS)},
        err=[RowError(1, "bad_value", "NaN", 1)],
        by=By("cuda:0", 64, 10, 20),
        last=True,
    )
    found = msgpack.unpackb(encode(reply))
    assert found["id"] == 6
    assert found["at"] == [[0, 1], [2, 1]]
    assert found["cols"]["x"]["d"] == ROWS.tobytes()
    assert found["err"] == [{"row": 1, "code": "bad_value", "msg": "NaN"}]
    assert found["by"] == {"engine": "cuda:0", "batch": 64, "queue_us": 10, "run_us": 20}
    assert found["last"] is True


def test_reply_of_another_encoder_is_read() -> None:
    column = {"t": "utf8", "o": bytes(4) + b"\2\0\0\0", "d": b"hi"}
    reply = decode_reply(msgpack.packb({"v": 1, "id": 3, "at": [[4, 1]], "cols": {"s": column}, "last": True}))
    assert (reply.id, reply.at, reply.last) == (3, [(4, 1)], True)
    assert unpack(reply.cols["s"], 1) == ["hi"]
    opened = decode_reply(msgpack.packb({"id": 3, "ctl": "somewhere", "credit": 100}))
    assert (opened.ctl, opened.credit) == ("somewhere", 100)


def test_cancel_goes_both_ways() -> None:
    assert msgpack.unpackb(encode(Cancel(5, 6, [1, 2]))) == {"client": 5, "id": 6, "rows": [1, 2]}
    cancel = decode_cancel(msgpack.packb({"client": 5, "id": 6}))
    assert (cancel.client, cancel.id, cancel.rows, cancel.stream) == (5, 6, [], 0)


def test_question_and_its_answer_go_both_ways() -> None:
    assert msgpack.unpackb(encode(Question(5, [6, 7]))) == {"client": 5, "ids": [6, 7]}
    question = decode_question(msgpack.packb({"client": 5, "ids": [6]}))
    assert (question.client, question.ids) == (5, [6])
    assert msgpack.unpackb(encode(Holding([6]))) == {"ids": [6]}
    assert decode_holding(msgpack.packb({"ids": [6, 7]})).ids == [6, 7]


def test_frame_sent_again_says_so_and_is_the_same_otherwise() -> None:
    first = encode(Request(v=1, n=2, client=5, id=6, cols={"x": pack(ROWS), "s": pack(["a", "é"])}, ttl_ms=100, prio=1))
    found = msgpack.unpackb(sent_again(first, 2, 0.0304))
    assert found == {**msgpack.unpackb(first), "again": 2, "ttl_ms": 30}
    assert msgpack.unpackb(sent_again(first, 3, -1.0))["ttl_ms"] == 1


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, MAX_ROWS),
    st.integers(-1, 1),
    st.text(max_size=128),
    st.dictionaries(st.text(), st.lists(st.text(), max_size=3), max_size=3),
)
def test_own_requests_come_back(number: int, rows: int, priority: int, trace: str, columns: dict[str, Any]) -> None:
    cols = {name: pack(values) for name, values in columns.items()}
    made = Request(v=1, n=rows, client=number, id=number, prio=priority, trace=trace, cols=cols)
    back = decode_request(encode(made))
    assert encode(back) == encode(made)
    assert (back.client, back.n, back.prio, back.trace) == (number, rows, priority, trace)


def test_columns_are_views_of_the_payload() -> None:
    payload = msgpack.packb(request_map())
    view = decode_request(payload).cols["x"].d
    assert view.obj is payload
    assert view.readonly


# --- bad input -------------------------------------------------------------------------------------------------------

DECODERS = [decode_request, decode_reply, decode_cancel, decode_question, decode_holding]
Decoder = Callable[[bytes], Any]
any_decoder = pytest.mark.parametrize("decode", DECODERS, ids=["request", "reply", "cancel", "question", "holding"])

DEEP = 2_000_000
HOSTILE = {
    "empty": b"",
    "nil": b"\xc0",
    "one byte": b"\xff",
    "array of 2**32": b"\xdd\xff\xff\xff\xff",
    "map of 2**32": b"\xdf\xff\xff\xff\xff",
    "columns of 2**32": b"\x84\xa1v\x01\xa2id\x01\xa1n\x01\xa4cols\xdf\xff\xff\xff\xff",
    "runs of 2**32": b"\x83\xa2id\x01\xa6client\x01\xa2at\xdd\xff\xff\xff\xff",
    "rows of 2**32": b"\x83\xa2id\x01\xa6client\x01\xa4rows\xdd\xff\xff\xff\xff",
    "bytes of 2**32": b"\x83\xa1v\x01\xa1n\x01\xa1p\xc6\xff\xff\xff\xff",
    "text of 2**32": b"\x83\xa1v\x01\xa1n\x01\xa5trace\xdb\xff\xff\xff\xff",
    "deep array": b"\x91" * DEEP + b"\xc0",
    "deep parameters": b"\x84\xa1v\x01\xa1n\x01\xa2id\x01\xa1p" + b"\x91" * DEEP + b"\xc0",
    "deep columns": b"\x84\xa1v\x01\xa1n\x01\xa2id\x01\xa4cols" + b"\x81\xa1x" * DEEP + b"\xc0",
    "deep unknown key": b"\x85\xa1v\x01\xa1n\x01\xa2id\x01\xa6client\x01\xa1z" + b"\x91" * DEEP + b"\xc0",
    "text that is not UTF-8": b"\x86\xa1v\x01\xa1n\x01\xa2id\x01\xa5trace\xa1\xff\xa3ctl\xa1\xff\xa4rows\xa1\xff",
    "key that is not UTF-8": b"\x85\xa1v\x01\xa1n\x01\xa2id\x01\xa4cols\x81\xa1\xff\xc0\xa4rows\xa1\xff",
    "json, deep": b'{"v":1,"n":1,"p":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "json, deep columns": b'{"v":1,"n":1,"cols":{"x":' + b"[" * DEEP + b"]" * DEEP + b"}}",
    "json, cut off": b'{"v":1,',
    "json, a NUL": b'{"v":1,"n":1}\0',
    "json, an array": b"[1]",
    "json, half a surrogate": b'{"v":1,"n":1,"trace":"\\ud800"}',
    "json, not UTF-8": b'{"v":1,"n":1,"trace":"\xff"}',
    "json, number of 100,000 digits": b'{"v":' + b"9" * 100_000 + b"}",
}


@any_decoder
@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused_quickly_in_little_memory(decode: Decoder, payload: bytes) -> None:
    tracemalloc.start()
    begun = time.perf_counter()
    try:
        with pytest.raises(BusError):
            decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begun < 1.0
    assert peak < len(payload) + 2**20


@any_decoder
@given(payload=st.binary(max_size=200))
def test_random_bytes_give_only_errors_of_the_bus(decode: Decoder, payload: bytes) -> None:
    attempt(decode, payload)


@any_decoder
@settings(max_examples=300)
@given(data=st.data())
def test_mutated_frames_give_only_errors_of_the_bus(decode: Decoder, data: st.DataObject) -> None:
    payload = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(payload) - 1)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "end"])):
            case "set":
                payload[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del payload[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                payload[at:at] = data.draw(st.binary(min_size=1, max_size=6))
            case "end":
                del payload[at:]
    attempt(decode, bytes(payload))


NAMES = ["v", "n", "id", "client", "cols", "p", "at", "err", "rows", "stream", "last", "t", "s", "d", "o", "x"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)


@any_decoder
@given(document=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8))
def test_other_shapes_give_only_errors_of_the_bus(decode: Decoder, document: dict[str, Any]) -> None:
    attempt(decode, msgpack.packb({"v": 1, "n": 1, **document}))
    attempt(decode, msgpack.packb(document))


@given(document=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=8))
def test_other_shapes_in_json_give_only_errors_of_the_bus(document: dict[str, Any]) -> None:
    text = json.dumps({"v": 1, "n": 1, **document}, default=lambda value: base64.b64encode(value).decode())
    attempt(decode_request, text.encode())


@given(column=ANYTHING)
def test_any_column_in_json_gives_its_rows_or_an_error_of_the_bus(column: Any) -> None:
    text = json.dumps(column, default=lambda value: base64.b64encode(value).decode())
    attempt(decode_request, b'{"v":1,"n":1,"cols":{"x":' + text.encode() + b"}}")


def attempt(decode: Decoder, payload: bytes) -> None:
    """Decode, and read every column, as the worker or client would: only errors of the bus may come."""
    with suppress(BusError):
        frame = decode(payload)
        if isinstance(frame, Request):
            assert 0 <= frame.n <= MAX_ROWS
            decode_parameters(frame.p)
        for column in getattr(frame, "cols", {}).values():
            unpack(column, frame.n if isinstance(frame, Request) else sum(count for _, count in frame.at))


VALID = [
    msgpack.packb(request_map(ttl_ms=5, trace="abc")),
    msgpack.packb({"v": 1, "n": 2, "cols": {"s": {"t": "utf8", "o": bytes(12), "d": b""}}}),
    encode(Reply(id=1, at=[(0, 2)], cols={"x": pack(ROWS), "s": pack(["a", "b"])}, err=[RowError(2, "busy", "full")])),
    encode(Reply(id=1, by=By("cpu", 1, 2, 3), ctl="a.b", credit=9, last=True)),
    encode(Cancel(5, 6, [1, 2, 3])),
    in_json(2, x=[[1, 2], [3, 4]], y={"t": "bin", "d": ["aGk=", ""]}),
]


@any_decoder
@pytest.mark.parametrize("version", [2, 2**63])
@pytest.mark.parametrize("shape", [{}, {"rows": [1]}, {"n": "x", "id": "uuid", "cols": [1], "client": None}])
def test_frame_of_a_later_version_is_named_as_such_whatever_its_shape(
    decode: Decoder, version: int, shape: dict[str, Any]
) -> None:
    with pytest.raises(BadVersion, match=str(version)):
        decode(msgpack.packb({"v": version, **shape}))


@any_decoder
@pytest.mark.parametrize("version", [0, 2, 7])
def test_frame_of_another_version_in_todays_shape_is_refused(decode: Decoder, version: int) -> None:
    with pytest.raises(BadVersion, match=str(version)):
        decode(msgpack.packb({"v": version, "n": 1, "id": 1, "ids": [1], "client": 1}))


def test_json_of_a_later_version_is_named_as_such() -> None:
    with pytest.raises(BadVersion, match="version 3"):
        decode_request(b'{"v": 3, "id": "uuid", "rows": {"a": null}}')


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": -1}, r"\$\.n"),
        ({"n": MAX_ROWS + 1}, r"\$\.n"),
        ({"n": 1.5}, r"\$\.n"),
        ({"n": None}, r"\$\.n"),
        ({"v": "1"}, "v"),
        ({"prio": 2}, r"\$\.prio"),
        ({"client": -1}, r"\$\.client"),
        ({"client": 2**64 - 1}, r"\$\.client"),
        ({"ttl_ms": -5}, r"\$\.ttl_ms"),
        ({"trace": "x" * 129}, r"\$\.trace"),
        ({"cols": [1]}, r"\$\.cols"),
        ({"cols": {"x": {"t": "f4"}}}, "`d`"),
        ({"cols": {"x": {"t": "f4", "d": "text"}}}, "bytes"),
        ({"cols": {"x": {"t": "f4", "d": b"", "s": "2"}}}, r"\.s"),
        ({"cols": {1: {"t": "f4", "d": b""}}}, "str"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadFrame, match=says):
        decode_request(msgpack.packb(request_map(**fields)))


def test_frame_without_a_version_or_rows_is_refused() -> None:
    with pytest.raises(BadFrame, match="`v`"):
        decode_request(msgpack.packb({"n": 1}))
    with pytest.raises(BadFrame, match="`n`"):
        decode_request(msgpack.packb({"v": 1}))


@pytest.mark.parametrize("raw", [b"\x91" * 5000 + b"\xc0", b"\xa1\xff", b"\xc1", b""])
def test_parameters_that_are_not_messagepack_are_refused(raw: bytes) -> None:
    with pytest.raises(BadFrame, match="p: "):
        decode_parameters(msgspec.Raw(raw))


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_request_can_be_typed_by_hand() -> None:
    request = decode_request(b'{"v": 1, "n": 2, "id": 4, "ttl_ms": 50, "p": {"k": [1, "a"]}, "cols": {"x": [1, 2]}}')
    assert (request.n, request.id, request.ttl_ms, request.client) == (2, 4, 50, 0)
    assert decode_parameters(request.p) == {"k": [1, "a"]}


def test_json_is_known_by_its_first_byte() -> None:
    assert is_json(b'{"v":1}')
    assert not any(is_json(payload) for payload in (b"", b"\x81\xa1v\x01", b" {", b"[", VALID[0]))


@pytest.mark.parametrize(
    ("column", "dtype", "values"),
    [
        ([1, 2], "<i8", [1, 2]),
        ([1, 2.5], "<f4", [1, 2.5]),
        ([True, False], "?", [True, False]),
        ([[1, 2], [3, 4]], "<i8", [[1, 2], [3, 4]]),
        ({"d": [1, 2]}, "<i8", [1, 2]),
        ({"t": "f4", "d": [[1, 2], [3, 4]]}, "<f4", [[1, 2], [3, 4]]),
        ({"t": "f8", "d": [0.1, 1e300]}, "<f8", [0.1, 1e300]),
        ({"t": "f2", "d": [0.5, 65504]}, "<f2", [0.5, 65504]),
        ({"t": "u1", "d": [0, 255]}, "u1", [0, 255]),
        ({"t": "u8", "d": [0, 2**64 - 1]}, "<u8", [0, 2**64 - 1]),
        ({"t": "i8", "d": [-(2**63), 2**63 - 1]}, "<i8", [-(2**63), 2**63 - 1]),
        ({"t": "i4", "d": [1.0, -2.0]}, "<i4", [1, -2]),
        ({"t": "bool", "d": [1, 0]}, "?", [True, False]),
        ({"t": "c8", "d": [[1, 2], [3, -4]]}, "<c8", [1 + 2j, 3 - 4j]),
        ({"t": "c16", "d": [[[1, 2]], [[3, 4]]]}, "<c16", [[1 + 2j], [3 + 4j]]),
        ({"t": "bf16", "d": [1, -2.5]}, "<f4", [1, -2.5]),
        ({"t": "f4", "d": ["NaN", "-inf"]}, "<f4", [math.nan, -math.inf]),
        ({"t": "f4", "d": [None, 1]}, "<f4", [math.nan, 1]),
        ({"t": "c8", "d": [["inf", 0], [0, "NaN"]]}, "<c8", [complex(math.inf, 0), complex(0, math.nan)]),
        ({"t": "f4", "d": [[], []]}, "<f4", [[], []]),
    ],
)
def test_json_column_of_numbers(column: Any, dtype: str, values: Any) -> None:
    found = value_of(2, column)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, np.array(values, dtype))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (["a", "é"], ["a", "é"]),
        ({"t": "utf8", "d": ["a", ""]}, ["a", ""]),
        ({"t": "bin", "d": ["aGk=", ""]}, [b"hi", b""]),
    ],
)
def test_json_column_of_strings(column: Any, values: list[Any]) -> None:
    assert value_of(2, column) == values


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_in_json_is_rounded_to_the_nearest(number: float) -> None:
    rounded = float(value_of(1, {"t": "bf16", "d": [number]})[0])
    exact = np.float32(number)
    below = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = np.uint32(int(below.view(np.uint32)) + 0x10000).view(np.float32)
    distances = [abs(float(exact) - float(below)), abs(float(exact) - float(above))]
    if math.isfinite(above):
        assert abs(float(exact) - rounded) == min(distances)


def test_bf16_half_way_is_rounded_to_even() -> None:
    half = {"t": "bf16", "d": [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]}
    assert value_of(3, half).tolist() == [1.0, 1 + 2**-6, -1.0]


@pytest.mark.parametrize(
    "column",
    [
        "x",
        5,
        None,
        {},
        {"t": "f4"},
        {"t": "f4", "d": "abc"},
        {"t": "f4", "d": {"a": 1}},
        {"t": "f3", "d": [1, 2]},
        {"t": 5, "d": [1, 2]},
        {"t": ["f4"], "d": [1, 2]},
        {"t": "arrow", "d": [1, 2]},
        [[1, 2], [3]],  # ragged
        [1, "a"],
        ["a", 1],
        [{}, {}],
        [["a"], ["b"]],
        {"t": "utf8", "d": [5, None]},
        {"t": "bin", "d": ["###", ""]},
        {"t": "bin", "d": ["é", ""]},
        {"t": "bin", "d": [5, 6]},
        {"t": "u1", "d": [0, 256]},
        {"t": "u1", "d": [0, -1]},
        {"t": "i4", "d": [1.5, 2]},
        {"t": "i4", "d": ["5", "6"]},
        {"t": "i4", "d": [None, 1]},
        {"t": "i8", "d": [1e300, 1]},
        {"t": "i8", "d": [2**63, 1]},
        {"t": "bool", "d": [5, 0]},
        {"t": "f4", "d": [1e39, 1]},
        {"t": "f2", "d": [1e6, 1]},
        {"t": "bf16", "d": [1e39, 1]},
        [1e39, 1],
        {"t": "c8", "d": [1, 2]},
        {"t": "c8", "d": [[1], [2]]},
        {"t": "c8", "d": [[1, 2, 3], [4, 5, 6]]},
        {"t": "c8", "d": []},
        {"t": "f4", "d": [1, 2, 3]},
        [],
    ],
    ids=str,
)
def test_json_column_that_does_not_fit_is_refused_and_never_becomes_other_values(column: Any) -> None:
    with pytest.raises(BadColumn):
        value_of(2, column)


def test_json_number_of_500_brackets_is_refused() -> None:
    payload = b'{"v":1,"n":1,"cols":{"x":' + b"[" * 500 + b"]" * 500 + b"}}"
    with pytest.raises(BadColumn):
        unpack(decode_request(payload).cols["x"], 1)


def test_nan_and_infinity_are_not_json() -> None:
    with pytest.raises(BadFrame):
        decode_request(b'{"v":1,"n":1,"cols":{"x":[NaN]}}')


def test_reply_in_json_can_be_read_by_a_person() -> None:
    columns = {
        "f": pack(np.array([[0.5, 1], [2, 3]], "f4")),
        "c": pack(np.array([1 + 2j, 3 - 4j], "c8")),
        "s": pack(["a", "é"]),
        "b": pack([b"hi", b"\xff"]),
        "i": pack(np.array([2**63 - 1, -1])),
        "t": pack(np.array([True, False])),
    }
    reply = Reply(
        id=7, at=[(0, 2)], cols=columns, err=[RowError(2, "bad_value", "é")], by=By("cpu", 2, 1, 1), last=True
    )
    found = json.loads(encode_json(reply))
    assert found["cols"] == {
        "f": {"t": "f4", "d": [[0.5, 1.0], [2.0, 3.0]]},
        "c": {"t": "c8", "d": [[1.0, 2.0], [3.0, -4.0]]},
        "s": {"t": "utf8", "d": ["a", "é"]},
        "b": {"t": "bin", "d": ["aGk=", "/w=="]},
        "i": {"t": "i8", "d": [2**63 - 1, -1]},
        "t": {"t": "bool", "d": [True, False]},
    }
    assert (found["v"], found["id"], found["at"], found["last"]) == (1, 7, [[0, 2]], True)
    assert found["err"] == [{"row": 2, "code": "bad_value", "msg": "é"}]
    assert found["by"]["engine"] == "cpu"
    assert not {"seq", "ctl", "credit"} & found.keys()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="u2").reshape(2, 3),
        np.array([[1.5, -0.0]], "f8"),
        np.array([0.1, 1e-40], "f4"),
        np.array([[1 + 2j], [3j]], "c16"),
        np.array([True]),
        np.zeros((2, 0), "f4"),
    ],
)
def test_column_of_a_json_reply_is_a_column_of_a_json_request(array: Any) -> None:
    column = json.loads(encode_json(Reply(id=1, at=[(0, len(array))], cols={"x": pack(array)})))["cols"]["x"]
    found = value_of(len(array), column)
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_nan_and_infinity_are_null_in_a_json_reply() -> None:
    reply = Reply(id=1, at=[(0, 3)], cols={"x": pack(np.array([np.nan, np.inf, 1], "f4"))})
    assert json.loads(encode_json(reply))["cols"]["x"]["d"] == [None, None, 1.0]


# --- parts -----------------------------------------------------------------------------------------------------------


def rows_and_errors(replies: list[Reply]) -> tuple[dict[int, Any], list[RowError]]:
    rows: dict[int, Any] = {}
    for reply in replies:
        total = sum(count for _, count in reply.at)
        values = {name: unpack(column, total) for name, column in reply.cols.items()}
        position = 0
        for first, count in reply.at:
            for row in range(first, first + count):
                assert row not in rows
                rows[row] = tuple(str(values[name][position]) for name in sorted(values))
                position += 1
    return rows, [error for reply in replies for error in reply.err]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=5), st.integers(0, 3))
def test_halves_hold_every_row_and_error_once(gaps: list[tuple[int, int]], errors: int) -> None:
    at, row = [], 0
    for gap, count in gaps:
        at.append((row + gap, count))
        row += gap + count
    total = sum(count for _, count in at)
    columns = {"x": pack(np.arange(total * 2.0).reshape(total, 2)), "s": pack([f"s{n}" * n for n in range(total)])}
    failed = [RowError(1000 + number, "bad_value", "no") for number in range(errors)]
    reply = Reply(id=3, at=at, cols=columns if at else {}, err=failed, by=By("cpu", 1, 1, 1), seq=4, last=True)
    parts = [reply]
    while any(halves(part) for part in parts):
        parts = [half for part in parts for half in halves(part) or (part,)]
    assert rows_and_errors(parts) == rows_and_errors([reply])
    assert len(parts) == max(1, total + errors)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(
        (part.id, part.seq, part.by) == (3, 4, By("cpu", 1, 1, 1)) for part in map(decode_reply, map(encode, parts))
    )


def test_retry_is_in_milliseconds_and_only_of_busy() -> None:
    assert retry_ms(Busy("full", retry_after_s=0.25)) == 250
    assert retry_ms(NoWorker("none")) == 0

"""Frames: what a request and a reply are on the wire, in MessagePack and, for a person at a plain client, in JSON.

A frame is one map. `decode_request` takes bytes from anybody and either gives a `Request` whose parts have the
documented types or raises one of the bus's errors; whether the columns suit an operation is the operation's to say.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from .columns import FIXED, VARIABLE, Array, Column, cut, narrow_bf16, pack_strings, unpack
from .errors import BadColumn, BadFrame, BadVersion, BusError, Busy

VERSION = 1
MAX_ROWS = 1 << 22
MAX_ASKED = 512  # frames of one question: a small message, and a worker looks each up
LONGEST_MESSAGE = 500  # characters of an error

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Rows = Annotated[int, msgspec.Meta(ge=0, le=MAX_ROWS)]
ColumnName = Annotated[str, msgspec.Meta(max_length=128)]
Run = tuple[int, int]
"""Consecutive rows of a frame: first, count."""

_NO_PARAMETERS = msgspec.Raw(b"\x80")


class Request(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request frame.

    Attributes:
        v: version of the format, 1.
        n: rows.
        cols: columns by name, `n` rows each.
        client: number of the sending client; with `id` the key under which a repeated frame is recognised. 0 for a
            client that keeps no such number.
        id: number of the frame, the client's own; used once.
        again: how often the frame has been sent before. A copy under a number that came already is dropped.
        p: parameters, an undecoded map.
        ttl_ms: time the caller will wait, from its sending, ms; 0 for no limit.
        prio: 0 normal, 1 high, -1 low.
        trace: trace context of all its rows, W3C's `traceparent`; empty if they are part of no trace.
        stream: number of a stream this frame opens (`n` = 0, on the operation's subject) or is a part of (on the
            worker's control subject); 0 for an ordinary request.
        seq: a part's number in its stream, from 0.
        last: no part follows.
    """

    v: int
    n: Rows
    cols: dict[ColumnName, Column] = {}
    client: Count = 0
    id: Count = 0
    again: Count = 0
    p: msgspec.Raw = _NO_PARAMETERS
    ttl_ms: Count = 0
    prio: Annotated[int, msgspec.Meta(ge=-1, le=1)] = 0
    trace: Annotated[str, msgspec.Meta(max_length=128)] = ""
    stream: Count = 0
    seq: Count = 0
    last: bool = False


class RowError(msgspec.Struct, omit_defaults=True):
    """Why rows got no answer: `n` rows from `row` on (n = 0: all that follow), a stable code, and what to change."""

    row: int
    code: str
    msg: str
    n: int = 1
    retry_ms: int = 0


class By(msgspec.Struct, omit_defaults=True):
    """Who answered: engine, rows of its batch, µs queued and µs run; and why it was not the usual engine."""

    engine: str
    batch: int
    queue_us: int
    run_us: int
    reason: str = ""


class Reply(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One reply frame: the answer of some rows of a request.

    Attributes:
        id: number of the request frame.
        at: the rows answered by `cols`, as runs; the columns' rows follow in this order.
        cols: columns of the answer.
        err: rows that got none.
        by: who answered.
        seq: number of the part of a stream this answers.
        again: the number under which the frame it answers had been sent.
        last: the frame is now answered whole.
        ctl: a stream is open; its parts go to this subject.
        credit: rows of a stream that may be unanswered at once.
    """

    v: int = VERSION
    id: int
    at: list[Run] = []
    cols: dict[str, Column] = {}
    err: list[RowError] = []
    by: By | None = None
    seq: int = 0
    again: int = 0
    last: bool = False
    ctl: str = ""
    credit: int = 0


class Cancel(msgspec.Struct, omit_defaults=True):
    """To every worker: rows of a frame whose caller no longer waits (none named: all), or a stream left early."""

    client: Count
    id: Count
    rows: list[int] = []
    stream: Count = 0
    v: int = VERSION


class Question(msgspec.Struct, omit_defaults=True):
    """To every worker, with a reply subject: who holds these frames of a client?"""

    client: Count
    ids: Annotated[list[Count], msgspec.Meta(max_length=MAX_ASKED)]
    v: int = VERSION


class Holding(msgspec.Struct, omit_defaults=True):
    """A worker's answer to a `Question`: those it holds. One that holds none says nothing."""

    ids: list[Count]
    v: int = VERSION


class _Version(msgspec.Struct):
    v: int = 0


class _JsonRequest(Request, kw_only=True):
    cols: dict[str, Any] = {}


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_cancels = msgspec.msgpack.Decoder(Cancel)
_questions = msgspec.msgpack.Decoder(Question)
_holdings = msgspec.msgpack.Decoder(Holding)
_json_requests = msgspec.json.Decoder(_JsonRequest)

Said = TypeVar("Said", Cancel, Question, Holding)

_INTEGERS = frozenset(name for name, dtype in FIXED.items() if dtype.kind in "iu" and name != "bf16")

# What a decoder raises for bytes of somebody else.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

encode = _encoder.encode


def decode_request(payload: bytes) -> Request:
    """Read a request frame, of MessagePack or JSON.

    Raises:
        BadFrame: these bytes are not a request frame.
        BadVersion: it is a frame, of another version.
        BadColumn: a JSON column's values do not make an array.
    """
    json = is_json(payload)
    try:
        request = _decode_json(payload) if json else _requests.decode(payload)
    except _UNREADABLE as error:
        raise _explain(payload, json, error) from None
    if request.v != VERSION:
        raise BadVersion(f"the frame is of version {request.v}, this worker speaks {VERSION}")
    return request


def decode_reply(payload: bytes) -> Reply:
    """Read a reply frame.

    Raises:
        BadFrame: these bytes are not one.
        BadVersion: it is a frame, of a later version.
    """
    try:
        reply = _replies.decode(payload)
    except _UNREADABLE as error:
        raise _explain(payload, False, error, "reply") from None
    if reply.v != VERSION:
        raise BadVersion(f"the reply is of version {reply.v}, this client speaks {VERSION}")
    return reply


def decode_cancel(payload: bytes) -> Cancel:
    """Read a cancel frame; raises as `decode_question`."""
    return _decoded(_cancels, payload, "cancel")


def decode_question(payload: bytes) -> Question:
    """Read a question.

    Raises:
        BadFrame: these bytes are not one.
        BadVersion: it is one, of a later version.
    """
    return _decoded(_questions, payload, "question")


def decode_holding(payload: bytes) -> Holding:
    """Read the answer to a question; raises as `decode_question`."""
    return _decoded(_holdings, payload, "holding")


def sent_again(payload: bytes, again: int, left_s: float) -> bytes:
    """A request frame as it is sent once more.

    Args:
        payload: as it was sent first, in MessagePack.
        again: how often it has been sent before.
        left_s: time the caller will still wait, s.
    """
    request = _requests.decode(payload)
    request.again = again
    request.ttl_ms = max(1, round(1000 * left_s))
    return encode(request)


def is_json(payload: bytes) -> bool:
    """True if a frame is JSON (its first byte is `{`), so that its reply must be too."""
    return payload[:1] == b"{"


def decode_parameters(raw: msgspec.Raw) -> Any:
    """The parameters of a request, decoded.

    Raises:
        BadFrame: they are not MessagePack.
    """
    try:
        return msgspec.msgpack.decode(raw)
    except _UNREADABLE as error:
        raise BadFrame(f"p: {error}") from None


def encode_json(reply: Reply) -> bytes:
    """A reply in JSON: columns as nested lists, complex numbers as [re, im], bytes in base64, NaN and infinity null."""
    document = msgspec.structs.asdict(reply)
    rows = sum(count for _, count in reply.at)
    document["cols"] = {name: _json_column(column, rows) for name, column in reply.cols.items()}
    for empty in ("seq", "again", "ctl", "credit"):
        if not document[empty]:
            del document[empty]
    return msgspec.json.encode(document)


def halves(reply: Reply) -> tuple[Reply, Reply] | None:
    """The same answer in two frames; None if it is that of one row, or one error."""
    rows = sum(count for _, count in reply.at)
    if rows + len(reply.err) < 2:
        return None
    half = (rows + 1) // 2
    errors = 0 if rows == 1 else len(reply.err) // 2
    first, second = _cut_runs(reply.at, half)
    return (
        msgspec.structs.replace(
            reply,
            at=first,
            cols={name: cut(column, rows, 0, half) for name, column in reply.cols.items()} if first else {},
            err=reply.err[:errors],
            last=False,
        ),
        msgspec.structs.replace(
            reply,
            at=second,
            cols={name: cut(column, rows, half, rows) for name, column in reply.cols.items()} if second else {},
            err=reply.err[errors:],
        ),
    )


def row_error(error: BusError, first: int = 0, rows: int = 0) -> RowError:
    """An error as it stands in a reply, for `rows` rows from `first` on (0: all that follow); its text is cut to size.

    A message may quote what a caller sent, and must not grow with it.
    """
    text = str(error)
    if len(text) > LONGEST_MESSAGE:
        text = text[: LONGEST_MESSAGE - 1] + "…"
    return RowError(first, error.code, text, rows, retry_ms(error))


def error_headers(error: RowError) -> dict[str, str]:
    """What any NATS client reads of an error. Source: ADR-32, error handling."""
    return {"Nats-Service-Error": error.msg, "Nats-Service-Error-Code": error.code}


def retry_ms(error: BusError) -> int:
    """When the caller may try again, ms; 0 for errors that a second try would meet too."""
    return int(1000 * error.retry_after_s) if isinstance(error, Busy) else 0


def _cut_runs(runs: list[Run], rows: int) -> tuple[list[Run], list[Run]]:
    """The runs of the first `rows` rows, and those of the rest."""
    first: list[Run] = []
    second: list[Run] = []
    for start, count in runs:
        taken = min(count, rows)
        rows -= taken
        if taken:
            first.append((start, taken))
        if taken < count:
            second.append((start + taken, count - taken))
    return first, second


def _decoded(decoder: msgspec.msgpack.Decoder[Said], payload: bytes, what: str) -> Said:
    try:
        said = decoder.decode(payload)
    except _UNREADABLE as error:
        raise _explain(payload, False, error, what) from None
    if said.v != VERSION:
        raise BadVersion(f"the {what} frame is of version {said.v}, this side speaks {VERSION}")
    return said


def _explain(payload: bytes, json: bool, error: Exception, what: str = "request") -> BusError:
    """The most useful error for bytes that are no frame of ours: perhaps they are one of a later version."""
    decode = msgspec.json.decode if json else msgspec.msgpack.decode
    try:
        found = decode(payload, type=_Version)
    except _UNREADABLE:
        return BadFrame(f"not a {what} frame: {error}")
    if found.v > VERSION:
        return BadVersion(f"the {what} frame is of version {found.v}, this side speaks {VERSION}")
    return BadFrame(f"not a {what} frame: {error}")


def _decode_json(payload: bytes) -> Request:
    typed = _json_requests.decode(payload)
    fields = {name: getattr(typed, name) for name in Request.__struct_fields__}
    fields["cols"] = {name: _column_of(name, value, typed.n) for name, value in typed.cols.items()}
    raw = typed.p
    parameters = {} if raw == _NO_PARAMETERS else msgspec.json.decode(raw)
    fields["p"] = msgspec.Raw(_encoder.encode(parameters))
    return Request(**fields)


def _column_of(name: str, value: Any, rows: int) -> Column:
    """A column typed by a person: `{"t": "f4", "d": [...]}`, or a plain list (strings; else float32, int64 or bool)."""
    kind, data = (value.get("t"), value.get("d")) if isinstance(value, dict) else (None, value)
    if not isinstance(data, list):
        raise BadColumn(f'column {name!r}: in JSON write {{"t": "f4", "d": [[1, 2], [3, 4]]}} or a plain list')
    try:
        if kind in VARIABLE or (kind is None and data and isinstance(data[0], str)):
            if kind == "bin":
                return pack_strings([base64.b64decode(row, validate=True) for row in data])
            return pack_strings(data)
        # Python's own integers: NumPy makes floats of those beyond 63 bits.
        array = np.array(data, object if kind in _INTEGERS else None)
        if kind is None:
            kind = "bool" if array.dtype.kind == "b" else "i8" if array.dtype.kind in "iu" else "f4"
        if kind not in FIXED:
            raise BadColumn(f"column {name!r} is of type {kind!r}: use one of {', '.join((*FIXED, *VARIABLE))}")
        with np.errstate(over="raise", invalid="raise"):
            array = _numbers(array, kind)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise BadColumn(f"column {name!r}: its values do not make an array of {rows} equal rows: {error}") from None
    return Column(t=kind, s=array.shape, d=array.reshape(-1).view(np.uint8).data)


def _numbers(array: Array, kind: str) -> Array:
    """Numbers a person typed, as a wire dtype; a value that does not fit it raises instead of becoming another."""
    if kind in ("c8", "c16"):
        if array.shape[-1] != 2:
            raise ValueError("write a complex number as [re, im]")
        array = np.ascontiguousarray(array, np.float64).view(np.complex128)[..., 0]
    if kind == "bf16":
        return narrow_bf16(array.astype(np.float32))
    made = np.ascontiguousarray(array, FIXED[kind])
    if made.dtype.kind in "biu" and not np.array_equal(made, array):
        raise ValueError(f"not every value is one of {kind}")
    return made


def _json_column(column: Column, rows: int) -> dict[str, Any]:
    values = unpack(column, rows)
    if isinstance(values, list):
        return {"t": column.t, "d": [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in values]}
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    return {"t": column.t, "d": values.tolist()}

"""Trace context: which trace a call is part of, and the spans of what becomes of it.

The one place that knows OpenTelemetry, and it never loads it: where the program has not loaded its API nothing can
record, and a trace context that came with a call is passed on as it is. Spans continue traces; they begin none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from sys import modules
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import BusError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

API = "opentelemetry.trace"
MOST_LINKS = 32  # of a batch's span to the other callers

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")

_passed_on: ContextVar[str] = ContextVar("aikoryu_trace", default="")


class Calling:
    """A call as its caller sees it, until it is answered; a context manager for as long.

    Args:
        context: what goes with it, W3C's `traceparent`; empty if it is part of no trace.
        span: records it, if something does.
    """

    __slots__ = ("_span", "context")

    def __init__(self, context: str, span: Span | None = None) -> None:
        self.context = context
        self._span = span

    def __enter__(self) -> Calling:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):  # not where a caller has left
            self.fail(error)
        self.end()

    def fail(self, error: BaseException) -> None:
        """It, or a row of it, got an error."""
        if self._span is not None:
            _fail(self._span, error)

    def end(self, rows: int = 0) -> None:
        """It is answered; it had so many rows, if that is known only now."""
        if self._span is not None:
            if rows:
                self._span.set_attribute("aikoryu.rows", rows)
            self._span.end()


class Caller(NamedTuple):
    """A frame of a batch that is part of a trace.

    Attributes:
        trace: the context that came with it.
        arrived: monotonic time, s.
        rows: of the frame in this batch.
    """

    trace: str
    arrived: float
    rows: int


class Batch(NamedTuple):
    """What a batch's spans tell.

    Attributes:
        operation: its name.
        rows: in all.
        engine: where it ran.
        reason: why there, if it is not the usual engine.
        started, ended, answering: monotonic times at which it was handed to the engine, came back, and began to be
            answered, s.
        run_s: time on the engine, s.
        failed: code of the error that it came to; empty if it did not.
    """

    operation: str
    rows: int
    engine: str
    reason: str
    started: float
    ended: float
    answering: float
    run_s: float
    failed: str


_UNTRACED = Calling("")


def current() -> str:
    """The trace context of what this context does: that of the span that records, else what came with its call."""
    otel: Any = modules.get(API)
    if otel is not None:
        span = otel.get_current_span()
        if span.is_recording():
            return _header(span)
    return _passed_on.get()


def calling(operation: str) -> Calling:
    """A call begins; its span is a child of the one that records here."""
    otel: Any = modules.get(API)
    if otel is not None and otel.get_current_span().is_recording():
        above, _, last = operation.rpartition(".")
        name = above if last.isdecimal() else operation  # without the partition: names of spans are to be few
        span = _tracer().start_span(f"call {name}", kind=otel.SpanKind.CLIENT)
        return Calling(_header(span), span)
    trace = _passed_on.get()
    return Calling(trace) if trace else _UNTRACED


@contextmanager
def handling(name: str, trace: str, arrived: float) -> Iterator[None]:
    """A handler runs; what it asks is part of the same trace.

    Args:
        name: the handler's.
        trace: what came with its call; what is no trace context is ignored.
        arrived: when that was, monotonic time, s.
    """
    if _FORM.fullmatch(trace) is None:
        yield
        return
    token = _passed_on.set(trace)
    try:
        if API not in modules:
            yield
            return
        from opentelemetry import trace as otel

        parent, began = _remote(trace), _since_1970(arrived)
        span = _tracer().start_span(name, parent, otel.SpanKind.SERVER, start_time=began)
        if span.is_recording():
            _child(span, "queue", began, time.time_ns())
        with otel.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield
    finally:
        _passed_on.reset(token)


def failed(error: BusError) -> None:
    """The handler that runs here came to an error, as its caller is told."""
    otel: Any = modules.get(API)
    if otel is not None:
        _fail(otel.get_current_span(), error)


def forget() -> None:
    """Let nothing that begins in this context be part of the trace that the context is part of."""
    _passed_on.set("")
    if API in modules:
        from opentelemetry import context

        context.attach(context.Context())


def records() -> bool:
    """Whether spans can be recorded in this process."""
    return API in modules


def batch(told: Batch, callers: Sequence[Caller]) -> None:
    """A batch was answered: each caller's trace has its spans, linked to those of the others."""
    from opentelemetry import trace as otel

    now = time.time_ns()
    contexts = [(caller, _remote(caller.trace)) for caller in callers if _FORM.fullmatch(caller.trace)]
    links = [otel.Link(otel.get_current_span(context).get_span_context()) for _, context in contexts]
    started, ended, answering = map(_since_1970, (told.started, told.ended, told.answering))
    attributes: dict[str, str | int] = {
        "aikoryu.operation": told.operation,
        "aikoryu.engine": told.engine,
        "aikoryu.batch.rows": told.rows,
    }
    if told.reason:
        attributes["aikoryu.reason"] = told.reason
    for number, (caller, parent) in enumerate(contexts):
        arrived = _since_1970(caller.arrived)
        span = _tracer().start_span(
            f"batch {told.operation}",
            parent,
            otel.SpanKind.SERVER,
            attributes | {"aikoryu.rows": caller.rows},
            (links[:number] + links[number + 1 :])[:MOST_LINKS],
            arrived,
        )
        if not span.is_recording():
            continue
        _child(span, "queue", arrived, started)
        _child(span, "run", ended - int(1e9 * told.run_s), ended)
        _child(span, "reply", answering, now)
        if told.failed:
            span.set_status(otel.Status(otel.StatusCode.ERROR, told.failed))
        span.end(now)


@cache
def _tracer() -> Tracer:
    from opentelemetry import trace as otel

    return otel.get_tracer("aikoryu")  # of whichever provider the program sets, also later


def _header(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _remote(trace: str) -> Context:
    """A context whose span is the one of another process."""
    from opentelemetry import trace as otel

    form = _FORM.fullmatch(trace)
    assert form is not None, "its form has been checked"
    trace_id, span_id, flags = (int(part, 16) for part in form.groups())
    remote = otel.SpanContext(trace_id, span_id, is_remote=True, trace_flags=otel.TraceFlags(flags))
    return otel.set_span_in_context(otel.NonRecordingSpan(remote))


def _child(parent: Span, name: str, began: int, ended: int) -> None:
    """A span that is over; times in ns since 1970."""
    from opentelemetry import trace as otel

    _tracer().start_span(name, otel.set_span_in_context(parent), start_time=began).end(max(began, ended))


def _fail(span: Span, error: BaseException) -> None:
    from opentelemetry import trace as otel

    code = error.code if isinstance(error, BusError) else type(error).__name__
    span.set_attribute("error.type", code)
    span.set_status(otel.Status(otel.StatusCode.ERROR, str(error)))


def _since_1970(at: float) -> int:
    """A monotonic time, s, as spans have it, ns."""
    return time.time_ns() - int(1e9 * (monotonic() - at))

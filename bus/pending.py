"""Requests that wait for their answer: one object a frame, of single calls or of a part of a `call_many`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from .columns import unpack
from .errors import BadColumn, BadFrame, BusError, Busy, Closed, Declined, from_wire
from .frames import Reply, RowError
from .tracing import Calling

LEAST_ROW_BYTES = 256

Row: TypeAlias = dict[str, Any]


class Answer(asyncio.Future[Row]):
    """The coming answer of one row: await it. Cancelling it (or the task that awaits it) withdraws the row."""

    __slots__ = ("frame", "row")

    frame: SingleRows
    row: int

    def cancel(self, msg: Any = None) -> bool:
        """Withdraw the row; true if it had not been answered yet."""
        cancelled = super().cancel(msg)
        if cancelled:
            self.frame.withdraw(self.frame, self.row)
        return cancelled


class Pending:
    """A request frame that was sent, or is about to be.

    Attributes:
        id: number of the frame.
        subject, payload: the message, kept so that it can be sent again.
        rows: how many it has; 0 until it is sent.
        open: rows that have no answer yet.
        deadline: loop time at which the caller gives up, s.
        idempotent: it may be sent again whenever its answer may be lost.
        again: times it was sent again, for whatever reason.
        busy: times it was sent again because the worker was busy.
        resent: it was sent again although a worker may have taken it: two may answer.
        heard: loop time at which it was last heard of, or will be sent again, s; 0 until somebody looks.
        asked: loop time at which workers were asked about it, s; 0 if they were not since it was last heard of.
        unserved: loop time since which nobody has served its subject, s; 0 while somebody seems to.
    """

    __slots__ = (
        "again",
        "asked",
        "busy",
        "deadline",
        "heard",
        "id",
        "idempotent",
        "open",
        "payload",
        "resent",
        "rows",
        "subject",
        "unserved",
    )

    def __init__(self, id_: int, subject: str, payload: bytes, rows: int, deadline: float, idempotent: bool) -> None:
        self.id = id_
        self.subject = subject
        self.payload = payload
        self.rows = rows
        self.open = rows
        self.deadline = deadline
        self.idempotent = idempotent
        self.again = 0
        self.busy = 0
        self.resent = False
        self.heard = 0.0
        self.asked = 0.0
        self.unserved = 0.0

    def deliver(self, reply: Reply) -> None:
        """Hand out the rows and errors of one reply; `open` is 0 when every row has been answered.

        Rows that have an answer keep it: a frame that was sent again may be answered by two workers.

        Raises:
            BadFrame, BadColumn, BadValue: the reply makes no sense for this frame; some rows may have been answered.
        """
        for error in reply.err:
            count = error.n or self.rows - error.row
            self._check(error.row, count)
            self.fail_rows(error.row, count, exception_of(error))
        if reply.at:
            total = 0
            for first, count in reply.at:
                self._check(first, count)
                total += count
            self.take(reply, {name: unpack(column, total) for name, column in reply.cols.items()})
        if self.open <= 0:
            self.close()

    def fail(self, error: BusError) -> None:
        """Answer every row that has no answer yet with an error."""
        self.fail_rows(0, self.rows, error)
        self.open = 0
        self.close()

    def spoilt(self, error: BusError) -> bool:
        """A reply came that cannot be read, or makes no sense; whether nothing more is awaited because of it."""
        self.fail(error)
        return True

    def close(self) -> None:
        """Called once, when every row has been answered: let go of what waiting needed."""
        self.payload = b""

    def take(self, reply: Reply, columns: dict[str, Any]) -> None:
        """Hand out answers: `columns` hold the rows named by `reply.at`, in that order; lessens `open`."""
        raise NotImplementedError

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        """Answer `count` rows from `first` on with an error; lessens `open`."""
        raise NotImplementedError

    def _check(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > self.rows:
            raise BadFrame(f"the reply names rows {first} to {first + count} of a frame of {self.rows}")


class SingleRows(Pending):
    """A frame of single calls, coalesced; its payload is made when the loop tick ends.

    Attributes:
        answers: the future of each row.
        withdraw: called with this frame and a row whose caller no longer waits.
    """

    __slots__ = ("answers", "withdraw")

    def __init__(
        self, id_: int, subject: str, deadline: float, idempotent: bool, withdraw: Callable[[SingleRows, int], None]
    ) -> None:
        super().__init__(id_, subject, b"", 0, deadline, idempotent)
        self.answers: list[Answer] = []
        self.withdraw = withdraw

    def take(self, reply: Reply, columns: dict[str, Any]) -> None:
        rows = owned_rows(columns)
        for start, count in reply.at:
            for answer in self.answers[start : start + count]:
                row = next(rows)
                if not answer.done():
                    answer.set_result(row)
                    self.open -= 1

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        for answer in self.answers[first : first + count]:
            if not answer.done():
                answer.set_exception(error)
                self.open -= 1
                if isinstance(error, Closed):
                    answer.exception()  # looked at: who closes the client need not await what it gave up

    def close(self) -> None:
        super().close()
        self.answers = []  # each of them holds this frame: no cycle is left for the collector


class TracedRows(SingleRows):
    """A frame of single calls that are part of one trace."""

    __slots__ = ("_calling",)

    def __init__(
        self,
        id_: int,
        subject: str,
        deadline: float,
        idempotent: bool,
        withdraw: Callable[[SingleRows, int], None],
        calling: Calling,
    ) -> None:
        super().__init__(id_, subject, deadline, idempotent, withdraw)
        self._calling = calling

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        super().fail_rows(first, count, error)
        self._calling.fail(error)

    def close(self) -> None:
        super().close()
        self._calling.end(self.rows)


class ManyRows(Pending):
    """One frame of a `call_many`: rows from `offset` on of a larger whole."""

    __slots__ = ("_answered", "offset", "weight", "whole")

    def __init__(
        self,
        id_: int,
        subject: str,
        payload: bytes,
        rows: int,
        deadline: float,
        idempotent: bool,
        whole: Gathered,
        offset: int,
    ) -> None:
        super().__init__(id_, subject, payload, rows, deadline, idempotent)
        self.whole = whole
        self.offset = offset
        # Narrow rows weigh more than their bytes: a worker's queue is bounded in rows, too.
        self.weight = max(len(payload), rows * LEAST_ROW_BYTES)
        whole.in_flight_bytes += self.weight
        self._answered = bytearray(rows)

    def close(self) -> None:
        self.whole.answered(self.weight)
        super().close()

    def take(self, reply: Reply, columns: dict[str, Any]) -> None:
        position = 0
        for start, count in reply.at:
            if not self._answered.count(1, start, start + count):  # as in most replies
                self._put(start, count, columns, position)
            elif self._answered.count(0, start, start + count):
                for row in range(start, start + count):
                    if not self._answered[row]:
                        self._put(row, 1, columns, position + row - start)
            position += count

    def _put(self, start: int, count: int, columns: dict[str, Any], position: int) -> None:
        self.whole.put(self.offset + start, count, columns, position)
        self._answered[start : start + count] = b"\1" * count
        self.open -= count

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        for row in range(first, first + count):
            if not self._answered[row]:
                self._answered[row] = 1
                self.open -= 1
                self.whole.errors[self.offset + row] = error


class RowsFailed(BusError):
    """Some rows of a `call_many` got an error.

    Attributes:
        columns: the answer, with zeros or None in the rows that failed.
        errors: the exception of each row that failed, by row number.
    """

    code = "rows_failed"

    def __init__(self, columns: dict[str, Any], errors: dict[int, BusError]) -> None:
        first = min(errors)
        super().__init__(f"{len(errors)} rows failed, row {first} first: {errors[first]}")
        self.columns = columns
        self.errors = errors


class Gathered:
    """The answers of a `call_many`, gathered in the order of its rows.

    Attributes:
        columns: by name, an array of all rows, or a list; rows without an answer hold zeros or None.
        errors: exception by row.
        in_flight_bytes: payload bytes of frames that were sent and not answered whole.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: dict[str, Any] = {}
        self.errors: dict[int, BusError] = {}
        self.in_flight_bytes = 0
        self._room: asyncio.Future[None] | None = None

    @contextmanager
    def filling(self) -> Iterator[None]:
        """While frames are still to come, the whole is not answered, even if all those sent are."""
        self.in_flight_bytes += 1
        try:
            yield
        finally:
            self.answered(1)

    async def room(self, limit_bytes: int) -> None:
        """Return when at most `limit_bytes` are in flight."""
        while self.in_flight_bytes > limit_bytes:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def answered(self, payload_bytes: int) -> None:
        """A frame has been answered whole."""
        self.in_flight_bytes -= payload_bytes
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def put(self, first: int, count: int, columns: dict[str, Any], position: int) -> None:
        """Store `count` rows of `columns`, from `position` on, as rows `first` and following.

        Raises:
            BadColumn: a column is of another type than in the answers before.
        """
        for name, values in columns.items():
            whole = self.columns.get(name)
            if whole is None:
                whole = self.columns[name] = self._space(values)
            if _type(whole) != _type(values):
                raise BadColumn(f"column {name!r} of the answer is {_type(values)} here and {_type(whole)} before")
            whole[first : first + count] = values[position : position + count]

    def _space(self, values: Any) -> Any:
        if isinstance(values, list):
            return [None] * self.rows
        return np.zeros((self.rows, *values.shape[1:]), values.dtype)


def _type(values: Any) -> Any:
    return (values.dtype, values.shape[1:]) if isinstance(values, np.ndarray) else type(values)


def owned_rows(columns: dict[str, Any]) -> Iterator[Row]:
    """Rows for callers to keep: copies, so that none pins its whole frame nor is read-only."""
    if not columns:
        return iter(dict, None)
    if len(columns) == 1:  # as most answers are; three times as fast
        [(name, values)] = columns.items()
        if len(values) == 1:  # a lone call's
            return iter(({name: next(iter(_owned(values)))},))
        return ({name: value} for value in _owned(values))
    parts = zip(*map(_owned, columns.values()), strict=True)
    return (dict(zip(columns, row, strict=True)) for row in parts)


def _owned(values: Any) -> Iterable[Any]:
    # Iterating an array of one axis gives scalars, which are nobody's views.
    return map(np.ndarray.copy, values) if isinstance(values, np.ndarray) and values.ndim > 1 else values


def exception_of(error: RowError) -> BusError:
    """The exception for an error of a reply; codes that this side does not know are kept."""
    made = from_wire(error.code, error.msg)
    if isinstance(made, Busy) and error.retry_ms:
        made.retry_after_s = error.retry_ms / 1000
    return made if made.code == error.code else Declined(error.code, error.msg)

"""The request client: many callers of one process, few messages.

A call appends its row to the operation's outbox; at the end of the loop tick each outbox becomes one frame. Replies
come to the client's own inbox, and a frame's number and row numbers find the futures: no subscription, no task and no
timer a request. One sweeper serves all deadlines.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from functools import lru_cache
from typing import Any

from numpy.typing import ArrayLike

from . import tracing
from .columns import Values, pack
from .deadline import FOREVER, inherited_s, until
from .errors import BadFrame, BadParameter, BusError, Closed, Disconnected, Expired, NoWorker
from .frames import Cancel, decode_reply, encode
from .outbox import Building, Envelope, as_columns, as_row, cuts, encode_parameters, rows_of, type_key
from .outgoing import Outgoing
from .pending import Answer, Gathered, ManyRows, Pending, RowsFailed, SingleRows, TracedRows
from .resends import Resends
from .stream import Source, Stream
from .subjects import Subjects
from .transport import Message, Subscription, Transport, no_responders

MANY_BYTES = 256 * 1024  # frames of a call_many: nobody waits for the first of them alone
MANY_ROWS = 4096
MANY_IN_FLIGHT_BYTES = 4 * 1024 * 1024
FRAME_OVERHEAD = 4096  # headroom of a frame's map, names and offsets below max_payload, bytes
HELD = "held"  # last token of the subject on which workers say what they hold
PARTS_S = 1.0  # that parts of an answer may come after the last
MAX_TIMEOUT_S = 86400.0
MAX_ENVELOPES = 256  # remembered, parameters and all: making one takes 1 µs of a lone call's 28


class Client:
    """Asks workers for operations over one connection.

    Args:
        transport: the connection; it stays open when the client is closed.
        subjects: the bus's subject tree.
        timeout_s: how long a call waits unless it says otherwise.
        frame_bytes: size at which a frame of coalesced calls is sent within a tick.

    Attributes:
        number: by which workers tell clients apart.
        largest_bytes: most bytes of columns one frame can carry.
        subjects: the bus's subject tree.
        timeout_s: how long a call waits unless it says otherwise.
    """

    def __init__(self, transport: Transport, subjects: Subjects, *, timeout_s: float, frame_bytes: int) -> None:
        self._transport = transport
        self.subjects = subjects
        self.timeout_s = timeout_s
        self.largest_bytes = transport.max_payload - FRAME_OVERHEAD
        self._frame_bytes = min(frame_bytes, self.largest_bytes)
        self.number = secrets.randbits(63) | 1
        self._inbox = f"{transport.inbox_prefix}.{self.number:x}"
        self._loop = asyncio.get_running_loop()
        self._outgoing = Outgoing(transport, self._collect)
        self._building: dict[tuple[Any, ...], Building] = {}
        self._envelopes = lru_cache(MAX_ENVELOPES, typed=True)(self._new_envelope)
        self._pending: dict[int, Pending] = {}
        self._resends = Resends(
            self._pending,
            self.number,
            subjects.control,
            f"{self._inbox}.{HELD}",
            self._publish,
            self._outgoing,
            transport,
        )
        self._withdrawn: dict[int, list[int]] = {}
        self._last_id = 0
        self._sweep_at = float("inf")
        self._sweeper: asyncio.TimerHandle | None = None
        self._subscription: Subscription | None = None
        self._closed = False

    async def start(self) -> None:
        """Listen for replies; before the first call."""
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_reply)
        self._transport.on_reconnect.append(self._on_reconnect)
        await self._transport.flush()

    def call(
        self,
        operation: str,
        row: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        idempotent: bool = False,
    ) -> Answer:
        """Ask for one row; the future that is returned resolves to the answer's columns, `{name: value}`.

        Args:
            operation: its name, `matrix.matmul`.
            row: by column, an array (without a row axis), a number, str or bytes; copied before this returns.
            parameters: the operation's parameters.
            timeout_s: how long to wait; the client's own unless given.
            priority: 0 normal, 1 high, -1 low.
            idempotent: it may run twice: sent again when it, or its answer, may be lost, instead of failing.

        Returns:
            A future; cancel it, or the task that awaits it, to withdraw the row. It raises the bus's errors.
        """
        if until.get() != FOREVER:
            timeout_s = inherited_s(self.timeout_s if timeout_s is None else timeout_s)
        types = type_key(row)
        if types is None:
            row = as_row(row)
            types = type_key(row)
            assert types is not None, "as_row leaves nothing else"
        encoded = encode_parameters(parameters) if parameters else b""
        trace = tracing.current()
        key = (operation, encoded, timeout_s, priority, idempotent, types, trace)
        building = self._building.get(key)
        if building is None:
            envelope = self._envelope(operation, encoded, timeout_s, priority, idempotent)
            building = self._building[key] = self._start_frame(envelope, row, trace)
        if not building.append(row):
            self._seal(building)
            building = self._building[key] = self._start_frame(building.envelope, row, trace)
            building.append(row)
        frame = building.frame
        answer = Answer(loop=self._loop)
        answer.frame = frame
        answer.row = len(frame.answers)
        frame.answers.append(answer)
        return answer

    async def call_many(
        self,
        operation: str,
        columns: Mapping[str, ArrayLike],
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        idempotent: bool = False,
    ) -> dict[str, Any]:
        """Ask for many rows at once.

        Args:
            operation: its name.
            columns: by name, an array (or what makes one) whose first axis is the row, or a list of str or bytes.
            parameters, timeout_s, priority, idempotent: as for `call`.

        Returns:
            The answer's columns, rows in the order asked.

        Raises:
            RowsFailed: some rows got an error; it carries the others' answers.
        """
        encoded = encode_parameters(parameters)
        if until.get() != FOREVER:
            timeout_s = inherited_s(self.timeout_s if timeout_s is None else timeout_s)
        envelope = self._envelope(operation, encoded, timeout_s, priority, idempotent)
        packable = as_columns(columns)
        with tracing.calling(operation) as calling:
            return await self._call_many(envelope, packable, calling.context)

    async def _call_many(self, envelope: Envelope, packable: dict[str, Values], trace: str) -> dict[str, Any]:
        whole = Gathered(rows_of(packable))
        deadline = self.deadline(envelope)
        frames: list[ManyRows] = []
        try:
            for first, end in cuts(packable, min(MANY_BYTES, self.largest_bytes), MANY_ROWS):
                await whole.room(MANY_IN_FLIGHT_BYTES)
                left_s = deadline - self._loop.time()
                if left_s <= 0:
                    whole.errors.update((row, Expired("not sent before the deadline")) for row in range(first, end))
                    continue
                part = {name: pack(values[first:end]) for name, values in packable.items()}
                id_, rows = self.next_id(), end - first
                payload = encode(envelope.request(self.number, id_, rows, part, left_s, trace))
                frame = ManyRows(id_, envelope.subject, payload, rows, deadline, envelope.idempotent, whole, first)
                frames.append(frame)
                self.send(frame)
            await whole.room(0)
        except BaseException:
            for frame in frames:
                if frame.open:
                    self.withdraw(frame.id, [])
            raise
        if whole.errors:
            raise RowsFailed(whole.columns, whole.errors)
        return whole.columns

    def stream(
        self,
        operation: str,
        source: Source,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Send chunk after chunk of rows to one worker, and get their answers in order.

        Args:
            operation: its name.
            source: an iterable, async or not, of chunks; a chunk is columns as for `call_many`.
            parameters, priority: as for `call`.
            timeout_s: how long a chunk may take.

        Returns:
            An async iterator of the answers' columns, one a chunk. Leaving it cancels what is under way.
        """
        encoded = encode_parameters(parameters)
        if until.get() != FOREVER:
            timeout_s = inherited_s(self.timeout_s if timeout_s is None else timeout_s)
        return Stream(self, self._envelope(operation, encoded, timeout_s, priority, False)).answers(source)

    async def close(self) -> None:
        """Withdraw what is still unanswered, failing it with `Closed`, and stop listening. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for building in self._building.values():
            building.frame.rows = len(building.frame.answers)
            building.frame.fail(Closed("the client was closed before the call was sent"))
        self._building.clear()
        for pending in list(self._pending.values()):
            self.withdraw(pending.id, [])
            pending.fail(Closed("the client was closed before the answer came"))
        self._pending.clear()
        self._resends.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._outgoing.drain()
        self._transport.on_reconnect.remove(self._on_reconnect)
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def _envelope(
        self, operation: str, parameters: bytes, timeout_s: float | None, priority: int, idempotent: bool
    ) -> Envelope:
        if self._closed:
            raise Closed("the client is closed")
        return self._envelopes(operation, parameters, timeout_s, priority, idempotent)

    def _new_envelope(
        self, operation: str, parameters: bytes, timeout_s: float | None, priority: int, idempotent: bool
    ) -> Envelope:
        subject = self.subjects.asked(operation)
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if not timeout_s <= MAX_TIMEOUT_S:  # or not a number
            raise BadParameter(f"timeout_s is {timeout_s}: use at most {MAX_TIMEOUT_S:g} s")
        if priority not in (-1, 0, 1):
            raise BadParameter(f"priority is {priority}: use 0 (normal), 1 (high) or -1 (low)")
        ttl_ms = round(max(1.0, 1000 * timeout_s))
        return Envelope(operation, subject, parameters, timeout_s, priority, idempotent, ttl_ms)

    def _start_frame(self, envelope: Envelope, row: Mapping[str, Any], trace: str) -> Building:
        id_, deadline = self.next_id(), self.deadline(envelope)
        subject, idempotent = envelope.subject, envelope.idempotent
        self._outgoing.wake()
        if not trace:
            frame = SingleRows(id_, subject, deadline, idempotent, self._withdraw_row)
            return Building(envelope, frame, row, self._frame_bytes)
        calling = tracing.calling(envelope.operation)
        frame = TracedRows(id_, subject, deadline, idempotent, self._withdraw_row, calling)
        return Building(envelope, frame, row, self._frame_bytes, calling.context)

    def next_id(self) -> int:
        """A number no frame or stream of this client has yet."""
        self._last_id += 1
        return self._last_id

    def _seal(self, building: Building) -> None:
        frame = building.frame
        frame.rows = len(frame.answers)
        frame.open += frame.rows  # less those withdrawn in this very tick
        if frame.open <= 0:
            self._withdrawn.pop(frame.id, None)
            frame.close()
            return
        try:
            frame.payload = building.encode(self.number)
        except (TypeError, ValueError) as error:
            frame.fail(BadFrame(f"{building.envelope.operation}: the call cannot be encoded: {error}"))
            return
        self.send(frame)

    def _collect(self) -> None:
        """Hand every frame begun in this tick, and every withdrawal, to the connection."""
        if self._building:
            for building in self._building.values():
                self._seal(building)
            self._building.clear()
        if self._withdrawn:
            for id_, rows in self._withdrawn.items():
                self._outgoing.send(self.subjects.control, encode(Cancel(self.number, id_, rows)), failed=_in_vain)
            self._withdrawn.clear()

    def deadline(self, envelope: Envelope) -> float:
        """When a frame sent now is given up, loop time, s."""
        return self._loop.time() + envelope.timeout_s

    def send(self, pending: Pending) -> None:
        """Send a frame and await its replies; a closed client fails it, a lost connection what may not run twice."""
        if self._closed:  # of many rows, or of a stream, some may be left
            pending.fail(Closed("the client was closed before the call was sent"))
            return
        if self._transport.lost and not pending.idempotent:
            # Kept for the connection's return it would run, and its answer be taken for one that may be lost.
            pending.fail(Disconnected("the connection to the server is lost; the call was not sent"))
            return
        self._pending[pending.id] = pending
        if pending.deadline < self._sweep_at:
            self._sweep_no_later_than(pending.deadline)
        if pending.idempotent and not self._resends.watching:
            self._resends.watch()
        self._publish(pending, pending.payload)

    def _publish(self, pending: Pending, payload: bytes) -> None:
        def failed(error: BusError) -> None:
            # A frame that could not leave a lost connection is sent again when it is back.
            if pending.idempotent and isinstance(error, Disconnected):
                return
            if self._pending.pop(pending.id, None) is not None:
                pending.fail(error)

        self._outgoing.send(pending.subject, payload, f"{self._inbox}.{pending.id}", failed)

    def _on_reply(self, message: Message) -> None:
        number = message.subject.rpartition(".")[2]
        pending = self._pending.get(int(number)) if number.isdecimal() and len(number) < 20 else None
        if pending is None:
            if number == HELD:
                self._resends.on_holding(message)
            return
        if not message.data:
            # Else a worker asks whether anybody still listens here; that the subject exists is the answer.
            if no_responders(message) and not self._resends.unserved(pending):
                del self._pending[pending.id]
                pending.fail(
                    NoWorker(
                        f"nobody serves {pending.subject}: start a worker or an agent that does, or correct the name"
                    )
                )
            return
        try:
            reply = decode_reply(message.data)
            self._resends.served(pending.subject)
            if reply.err and self._resends.refused(pending, reply):
                return
            pending.deliver(reply)
        except BusError as error:
            if pending.spoilt(error):
                del self._pending[pending.id]
            return
        if pending.open <= 0:
            del self._pending[pending.id]
        elif pending.idempotent:
            self._resends.partly_answered(pending, reply.last)
        elif reply.last:
            self._loop.call_later(PARTS_S, self._close_early, pending)

    def _close_early(self, pending: Pending) -> None:
        """Fail what no part has answered, though the last came a while ago."""
        if self._pending.pop(pending.id, None) is not None:
            pending.fail(BusError("the worker closed the request without answering every row"))

    def _on_reconnect(self) -> None:
        """Send again what may be; whoever held the rest may have run it or not."""
        for pending in list(self._pending.values()):
            if pending.idempotent:
                self._resends.send_again(pending)
            else:
                del self._pending[pending.id]
                pending.fail(Disconnected("the connection was lost; the call may or may not have run"))

    def _withdraw_row(self, frame: SingleRows, row: int) -> None:
        frame.open -= 1
        if frame.rows and frame.open <= 0:
            self._pending.pop(frame.id, None)
            frame.close()
        self.withdraw(frame.id, [row])

    def leave_stream(self, number: int) -> None:
        """Tell the worker that a stream has ended."""
        self._outgoing.send(self.subjects.control, encode(Cancel(self.number, 0, stream=number)), failed=_in_vain)

    def withdraw(self, id_: int, rows: list[int]) -> None:
        """Tell workers, at the end of this tick, that nobody waits for these rows of a frame (none named: all)."""
        known = self._withdrawn.get(id_)
        if not rows:
            self._pending.pop(id_, None)
            self._withdrawn[id_] = []
        elif known is None:
            self._withdrawn[id_] = rows
        elif known:  # else all of them are withdrawn already
            known += rows
        self._outgoing.wake()

    def _sweep_no_later_than(self, deadline: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = deadline
        self._sweeper = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Fail what has passed its deadline, and sleep until the next may."""
        now = self._loop.time()
        why = "no answer before the deadline"
        if self._transport.lost:
            why += ": the connection to the server is lost, see that it runs and can be reached"
        for pending in [pending for pending in self._pending.values() if pending.deadline <= now]:
            del self._pending[pending.id]
            pending.fail(Expired(why))
        self._sweep_at = float("inf")
        if self._pending:
            self._sweep_no_later_than(min(pending.deadline for pending in self._pending.values()))


def _in_vain(error: BusError) -> None:
    """A withdrawal that a lost connection does not take: the workers will hear that nobody listens any more."""

"""Streams: chunk after chunk of rows to one worker, answers in order, never more under way than the worker grants.

A stream is opened on the operation's subject; the worker that takes it answers with its own subject, to which the parts
go (the queue group would scatter them), and with its credit: the rows that may be unanswered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import tracing
from .columns import Values, pack
from .errors import BadFrame, BusError
from .frames import Reply, Request, encode
from .outbox import Envelope, as_columns, cuts, rows_of
from .pending import Gathered, ManyRows, Pending, RowsFailed

if TYPE_CHECKING:
    from .client import Client

AHEAD_CHUNKS = 64  # sent before the caller takes the first of them: it sets the pace, not the source

Chunk = Mapping[str, ArrayLike]
Source = AsyncIterable[Chunk] | Iterable[Chunk]


class Stream:
    """One stream of one client."""

    def __init__(self, client: Client, envelope: Envelope) -> None:
        self._client = client
        self._envelope = envelope
        self._number = client.next_id()
        self._trace = ""
        self._control = ""
        self._granted = 0
        self._credit = 0
        self._seq = 0
        self._room: asyncio.Event = asyncio.Event()
        self._under_way: dict[int, Part] = {}
        # Read while later chunks are sent, so a source that pauses holds back no answer.
        self._chunks: asyncio.Queue[Gathered | None] = asyncio.Queue()
        self._ahead = asyncio.Semaphore(AHEAD_CHUNKS)

    async def answers(self, source: Source) -> AsyncGenerator[dict[str, Any], None]:
        """Send the source's chunks and give their answers in order.

        Raises:
            RowsFailed: some rows of a chunk got an error; the stream ends there.
            BusError: no worker took the stream, or it is lost.
        """
        with tracing.calling(self._envelope.operation) as calling:
            self._trace = calling.context
            sender: asyncio.Task[None] | None = None
            try:
                opened = await self._open()
                self._control = opened.ctl
                self._granted = self._credit = opened.credit
                sender = asyncio.create_task(self._send_all(source))
                while (chunk := await self._chunks.get()) is not None:
                    await chunk.room(0)
                    if chunk.errors:
                        raise RowsFailed(chunk.columns, chunk.errors)
                    yield chunk.columns
                    self._ahead.release()
                await sender
            finally:
                for id_ in self._under_way:
                    self._client.withdraw(id_, [])
                self._client.leave_stream(self._number)
                if sender is not None:
                    sender.cancel()
                    # What the source raises now, nobody asked for.
                    await asyncio.gather(sender, return_exceptions=True)

    def release(self, part: Part) -> None:
        """A part has been answered: its rows are credit again."""
        self._under_way.pop(part.id, None)
        self._credit += part.rows
        self._room.set()

    async def _open(self) -> Reply:
        envelope = self._envelope
        request = envelope.request(self._client.number, self._client.next_id(), 0, {})
        request.stream = self._number
        opening = Opening(request.id, envelope.subject, encode(request), self._client.deadline(envelope))
        self._client.send(opening)
        return await opening.opened

    async def _send_all(self, source: Source) -> None:
        """Send every chunk as credit allows; the end, or the source's own error, is told last."""
        try:
            async for given in _each(source):
                await self._ahead.acquire()
                columns = as_columns(given)
                chunk = Gathered(rows_of(columns))
                self._chunks.put_nowait(chunk)
                with chunk.filling():
                    for first, end in cuts(columns, self._client.largest_bytes, self._granted):
                        await self._send(chunk, columns, first, end)
        finally:
            self._chunks.put_nowait(None)

    async def _send(self, chunk: Gathered, columns: Mapping[str, Values], first: int, end: int) -> None:
        while self._credit < end - first:
            self._room.clear()
            await self._room.wait()
        self._credit -= end - first
        packed = {name: pack(values[first:end]) for name, values in columns.items()}
        number, id_ = self._client.number, self._client.next_id()
        request: Request = self._envelope.request(number, id_, end - first, packed, trace=self._trace)
        request.stream, request.seq = self._number, self._seq
        self._seq += 1
        part = Part(request, self._control, self._client.deadline(self._envelope), chunk, first, self)
        self._under_way[part.id] = part
        self._client.send(part)


class Part(ManyRows):
    """Rows of one chunk under way."""

    __slots__ = ("_stream",)

    def __init__(
        self, request: Request, control: str, deadline: float, chunk: Gathered, offset: int, stream: Stream
    ) -> None:
        super().__init__(request.id, control, encode(request), request.n, deadline, False, chunk, offset)
        self._stream = stream

    def close(self) -> None:
        super().close()
        self._stream.release(self)


class Opening(Pending):
    """The frame that opens a stream; `opened` resolves to the worker's answer."""

    __slots__ = ("opened",)

    def __init__(self, id_: int, subject: str, payload: bytes, deadline: float) -> None:
        super().__init__(id_, subject, payload, 0, deadline, idempotent=True)
        self.opened: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def deliver(self, reply: Reply) -> None:
        super().deliver(reply)
        if not reply.err and (not reply.ctl or reply.credit < 1):
            raise BadFrame("the worker opened no stream: its reply grants nothing")
        if not self.opened.done():
            self.opened.set_result(reply)

    def fail_rows(self, first: int, count: int, error: BusError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)


async def _each(source: Source) -> AsyncIterator[Chunk]:
    """The chunks of a source of either kind."""
    if isinstance(source, AsyncIterable):
        async for chunk in source:
            yield chunk
    else:
        for chunk in source:
            yield chunk

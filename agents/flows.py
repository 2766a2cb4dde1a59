"""The flows of packets, kept by a worker: chunk after chunk is sent, and what a lost engine forgets is sent again."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from ..bus.client import Client
from ..bus.errors import BadFrame, BusError, Busy, Disconnected, EngineLost, Expired, NotWritten, NoWorker, OutOfStep
from ..bus.pending import RowsFailed
from ..bus.subjects import partition
from ..netio.capture import Capture, open_capture
from ..netio.flow_cuts import Timeouts
from ..netio.flow_key import KeyChoice
from ..netio.flow_wire import FLOW_BYTES, MOST_ANSWER_BYTES, ONCE, unpacked
from ..netio.flows import Flows
from .flow_chunks import END, Live, Piece, Row, Size, TimedSource, of_capture, of_packets, tick, timed

UNDER_WAY = 8
"""Chunks without an answer: so many answers the worker keeps."""
GIVEN = 1024
"""Flows that a chunk without packets fetches."""
KEPT_BYTES = 128 << 20
"""Of chunks that the worker has not written down; beyond them it is waited for."""
CHUNK_PACKETS = 16384
CHUNK_BYTES = 2 << 20
SLACK_BYTES = 64 << 10
"""Of a message, for what is not packets or flows in it."""
WAIT_S = 0.1
PART_S = 5.0
"""Within which a chunk is answered, unless it, its answer or its worker is lost."""
LEAVE_S = 1.0
"""How long leaving early waits for the worker to forget its table."""
SOONEST_S, LATEST_S = 0.05, 0.5
"""Between two tries."""

AGAIN = (EngineLost, OutOfStep, NoWorker, Disconnected, Expired, Busy, BadFrame)
"""What is tried again: a worker that was started anew knows no stream, and says `bad_frame`."""

_log = structlog.get_logger(__name__)


async def flows_by_worker(
    client: Client,
    partitions: int,
    source: TimedSource | AsyncIterable[Any],
    table: str | None,
    key: KeyChoice,
    timeouts: Timeouts,
    capacity: int,
    link: int,
    chunk: int,
    timeout_s: float,
) -> AsyncGenerator[Flows, None]:
    """The flows of packets as they end; see `agents.packets.Network.flows`."""
    name = table or f"{ONCE}{secrets.token_hex(8)}"
    room = max(FLOW_BYTES, min(client.largest_bytes - SLACK_BYTES, MOST_ANSWER_BYTES))
    size = Size(max(1, min(chunk, room // FLOW_BYTES)), max(1, min(CHUNK_BYTES, room)))
    parameters = {
        **{"table": name, "key": asdict(key), **asdict(timeouts)},
        **{"capacity": capacity, "link": link, "answer_bytes": room},
    }
    with ExitStack() as stack:
        chunks: Unread | Live
        if isinstance(source, AsyncIterable):
            chunks = live = Live(source, size, link)
            stack.callback(live.close)
        elif isinstance(source, str | Path | Capture):
            capture = source if isinstance(source, Capture) else stack.enter_context(open_capture(source))
            chunks = Unread(lambda: of_capture(capture, size, link))
        else:
            packets = timed(source)
            chunks = Unread(lambda: of_packets(packets, size, link))
        run = FlowRun(client, f"packets.flows.{partition(name, partitions)}", parameters, chunks, timeout_s)
        try:
            async with aclosing(run.flows()) as found:
                async for flows in found:
                    yield flows
        except BaseException:  # also where the caller asks for no more
            if table is None:
                await run.forget()
            raise


@dataclass(frozen=True)
class Chunk:
    """A chunk that was numbered."""

    number: int
    piece: Piece


class Unread:
    """A source that can be read again from its beginning, one piece at a time.

    Args:
        read: begins to read it.
    """

    def __init__(self, read: Callable[[], Iterator[Piece]]) -> None:
        self._read = read
        self._pieces = read()

    async def next(self) -> Piece:
        """What is to be sent next; `END` at the end, which it may be asked for again."""
        return next(self._pieces, END)

    def restart(self) -> None:
        """Begin again."""
        self._pieces = self._read()


class FlowRun:
    """One source on its way through one table.

    A chunk is kept until the worker says that the table as it is after it is written down. When something is lost, the
    chunks from the number that the worker expects are sent again; answers to those that were answered before are
    dropped, because they are the same. If the table itself is lost, a source that can be read again is, from its
    beginning.

    Args:
        client: asks the workers.
        operation: with the partition of the table's name.
        parameters: of the operation.
        source: what is sent.
        timeout_s: for how long nothing may go on before it is given up, s.
    """

    def __init__(
        self, client: Client, operation: str, parameters: dict[str, Any], source: Unread | Live, timeout_s: float
    ) -> None:
        self._client = client
        self._operation = operation
        self._parameters = parameters
        self._unread = source
        self._timeout_s = timeout_s
        self._sender = _new_sender()
        self._kept: deque[Chunk] = deque()
        self._kept_bytes = 0
        self._last = 0  # number of the last chunk made
        self._answered = 0  # chunks before this one's next have their answers
        self._given = 0  # up to this chunk flows were given to the caller
        self._left = 0
        self._fetches = 0  # chunks without packets that are still to be sent
        self._ends = 0  # number of the chunk that said the end
        self._unsaved_since: float | None = None  # the worker tries to write its table down, and cannot
        self._waits: set[int] = set()  # numbers of chunks that were made to wait; they come again in the same places
        self._moved = asyncio.Event()

    async def flows(self) -> AsyncGenerator[Flows, None]:
        """The flows as they end, each once.

        Raises:
            BusError: nothing went on for too long, or the worker refuses what is sent.
            NotWritten: so much is kept that the worker must write its table down, and it could not for too long.
        """
        loop = asyncio.get_running_loop()
        moved_at, rest_s = loop.time(), SOONEST_S
        first = 1
        while True:
            try:
                async with aclosing(self._sent(first)) as answers:
                    async for flows in answers:
                        moved_at, rest_s = loop.time(), SOONEST_S
                        if flows is not None:
                            yield flows
            except AGAIN as error:
                is_unserved = isinstance(error, NoWorker) and not self._given
                if is_unserved or loop.time() - moved_at > self._timeout_s:
                    raise
                first = self._again_from(error, has_moved=self._answered >= first)
            else:
                return
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, LATEST_S)

    async def forget(self) -> None:
        """Have the worker do away with the table; where that fails, it is forgotten when it was unused for long."""
        if not self._last:
            return
        row = {**self._row(Chunk(0, tick())), "forget": np.array([True])}
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._client.call_many(self._operation, row, self._parameters, timeout_s=LEAVE_S)

    async def _sent(self, first: int) -> AsyncGenerator[Flows | None, None]:
        """Send chunks from a number on, and give what each answer brings that is new."""
        self._answered = first - 1
        self._fetches = 0
        timeout_s = min(PART_S, self._timeout_s)
        answers = self._client.stream(self._operation, self._columns(first), self._parameters, timeout_s=timeout_s)
        try:
            async for answer in answers:
                self._answered += 1
                self._left = int(answer["left"][0])
                self._let_go(int(answer["saved"][0]))
                self._check_written(answer["trouble"][0])
                is_new, self._given = self._answered > self._given, max(self._given, self._answered)
                self._moved.set()
                yield unpacked(answer["flows"][0]) if is_new and answer["count"][0] else None
        except RowsFailed as error:
            raise error.errors[min(error.errors)] from None
        finally:
            await answers.aclose()

    async def _columns(self, first: int) -> AsyncIterator[Row]:
        """The chunks from a number on, until all flows have come."""
        number = first
        while True:
            while number - self._answered > UNDER_WAY:
                await self._answer()
            chunk = self._chunk(number) or await self._made(number)
            if chunk is None:
                return
            yield self._row(chunk)
            number += 1

    def _chunk(self, number: int) -> Chunk | None:
        """A chunk that is kept."""
        if self._kept and self._kept[0].number <= number <= self._kept[-1].number:
            return self._kept[number - self._kept[0].number]
        return None

    async def _made(self, number: int) -> Chunk | None:
        """The next chunk; None if there is no more."""
        if number in self._waits:
            piece = tick()
        elif self._ends:
            while not self._fetches and self._answered < number - 1:
                await self._answer()
            if not self._fetches:
                self._fetches = -(-self._left // GIVEN)
            if not self._fetches:
                return None
            self._fetches -= 1
            piece = tick()
        elif self._kept_bytes > KEPT_BYTES and number > self._given:  # what was answered is to come as it was
            await asyncio.sleep(WAIT_S)
            if isinstance(self._unread, Unread):
                self._waits.add(number)
            piece = tick()
        else:
            piece = await self._unread.next()
            self._ends = number if piece.is_end else 0
        chunk = Chunk(number, piece)
        self._kept.append(chunk)
        self._kept_bytes += piece.held_bytes
        self._last = number
        return chunk

    async def _answer(self) -> None:
        """Wait for the next answer."""
        self._moved.clear()
        await self._moved.wait()

    def _row(self, chunk: Chunk) -> Row:
        row = chunk.piece.row()
        return {
            "source": np.array([self._sender], np.uint64),
            "number": np.array([chunk.number], np.uint64),
            **{name: [values] for name, values in row.items()},
            "now_ns": np.array([chunk.piece.now_ns], np.int64),
            "end": np.array([chunk.piece.is_end]),
        }

    def _let_go(self, written: int) -> None:
        """Forget chunks that the worker has written down."""
        while self._kept and self._kept[0].number <= min(written, self._answered):
            self._kept_bytes -= self._kept.popleft().piece.held_bytes

    def _check_written(self, trouble: str) -> None:
        """Give up waiting for a worker that cannot write its table down.

        Args:
            trouble: why it could not when it tried last; empty if it could.

        Raises:
            NotWritten: nothing more can be kept, and that has been so for `timeout_s`.
        """
        if not trouble or self._kept_bytes <= KEPT_BYTES:
            self._unsaved_since = None
            return
        now = asyncio.get_running_loop().time()
        if self._unsaved_since is None:
            self._unsaved_since = now
        if now - self._unsaved_since > self._timeout_s:
            raise NotWritten(
                f"the worker cannot write down table {self._parameters['table']!r} of flows: {trouble}: make room in "
                f"its residents.directory; {self._kept_bytes >> 20} MiB of packets are kept here, and no more can be"
            )

    def _again_from(self, error: BusError, has_moved: bool) -> int:
        """The number to go on with after an error.

        Args:
            error: what was answered.
            has_moved: other chunks were answered before, since sending began.

        Raises:
            BusError: there is none: the error itself.
        """
        if not isinstance(error, OutOfStep):
            return self._answered + 1
        oldest = self._kept[0].number if self._kept else self._last + 1
        if oldest <= error.expected <= self._last + 1:
            return error.expected
        if error.expected < oldest and has_moved:
            # Chunks that found no engine are sent again in any order: what was missed may have come since.
            return self._answered + 1
        if error.expected != 1:
            raise error
        return self._begin_again(oldest)

    def _begin_again(self, oldest: int) -> int:
        """The worker has no such table any more: send all again, or what there is."""
        self._sender = _new_sender()
        self._answered = self._ends = 0
        if isinstance(self._unread, Unread):
            self._unread.restart()
            self._kept.clear()
            self._kept_bytes = self._last = 0
            return 1
        _log.warning("flows that were open are lost with their worker", operation=self._operation)
        lost = oldest - 1
        self._kept = deque(Chunk(chunk.number - lost, chunk.piece) for chunk in self._kept)
        self._last -= lost
        self._given = max(0, self._given - lost)
        return 1


def _new_sender() -> int:
    return secrets.randbits(63) | 1

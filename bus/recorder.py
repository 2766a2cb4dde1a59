"""The recorder: hears what is asked on a bus and what is answered, and writes both down.

It subscribes beside the queue groups, so workers get what they got before. While it listens, though, somebody listens
to every subject it hears: docs/replay.md says what callers and workers are then not told.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache

import msgspec

from .errors import BadParameter, BusError
from .exchange import REFUSALS
from .frames import RowError, Run, decode_request, is_json
from .recording import RecordingFull, RecordingWriter
from .subjects import AGENT, Subjects
from .transport import Message, Subscription, Transport, check_interest

MOST_OPEN = 65536  # requests whose answers are awaited, about 300 bytes each; beyond it the oldest are forgotten
LINGER_S = 5.0  # for the answers to what was asked last

# What is counted beside requests and answers, in the recording's last record.
AGAIN = "sent_again"  # the same request once more: it is in the recording once
STREAMS = "streams"  # a stream was opened: its parts go to one worker, and are not heard
UNREADABLE = "unreadable"  # no request frame, or its answer would go where no worker answers
UNANSWERED = "unanswered"  # not answered whole when the recording ended, or when it was forgotten
GAPS = "gaps"  # the connection was lost: what was said meanwhile is not there


class _Open:
    """A request that is not answered whole: its number, rows without an answer, and how often it had been sent."""

    __slots__ = ("again", "number", "refused", "resent", "rows")

    def __init__(self, number: int, rows: int, again: int) -> None:
        self.number = number
        self.rows = rows
        self.again = again
        self.refused = False
        self.resent = False  # two workers may answer: how many rows are open cannot be told by counting


class Recorder:
    """Writes down the requests of chosen operations, and the answers to them.

    Args:
        transport: the connection.
        subjects: the bus's subject tree.
        writer: of the recording.
        patterns: which operations, `matrix.>`, `echo`, or `>` for all; and which handlers of agents, `agent.>`.
        reply_prefixes: inbox prefixes that answers go to, `bus.reply_prefixes`.
        clock: gives the time, ns since 1970.

    Attributes:
        counts: what happened beside what is in the file.
        over: set when nothing more can be written; `failure` says why.

    Raises:
        BadParameter: a pattern is none.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        writer: RecordingWriter,
        patterns: Sequence[str],
        reply_prefixes: Sequence[str],
        clock: Callable[[], int],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.over = asyncio.Event()
        self.failure: Exception | None = None
        self._transport = transport
        self._subjects = subjects
        self._writer = writer
        self._clock = clock
        self._heard = [check_pattern(subjects, pattern) for pattern in patterns]
        self._hears_agents = any(pattern.startswith(f"{AGENT}.") for pattern in patterns)
        self._inboxes = [f"{prefix}." for prefix in reply_prefixes]
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._settled = asyncio.Event()
        self._requests: list[Subscription] = []
        self._answers: list[Subscription] = []
        self._is_operation = lru_cache(4096)(self._serves)

    async def start(self) -> None:
        """Listen from now on.

        Raises:
            ConnectionFailed: the server does not let this user listen; the message names the subjects.
        """
        self._transport.on_reconnect.append(self._on_reconnect)
        for inbox in self._inboxes:  # first: no answer comes before its request
            self._answers.append(await self._transport.subscribe(f"{inbox}>", self._on_answer))
        for subject in self._heard:
            self._requests.append(await self._transport.subscribe(subject, self._on_request))
        await self._transport.flush()

    async def stop(self, linger_s: float = LINGER_S) -> None:
        """Hear no more requests, wait for the answers to those that were heard, and end the recording."""
        for subscription in self._requests:
            await subscription.drain()
        if self._open and not self.over.is_set():
            self._settled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(linger_s):
                    await self._settled.wait()
        for subscription in self._answers:
            await subscription.unsubscribe()
        self._transport.on_reconnect.remove(self._on_reconnect)
        self.counts[UNANSWERED] += len(self._open)
        with suppress(OSError):  # of a full disk: what is in the file is whole
            self._writer.end(self._clock(), self.counts)

    def _on_request(self, message: Message) -> None:
        operation = message.subject.removeprefix(f"{self._subjects.root}.")
        if self.over.is_set() or not message.reply or not self._is_operation(operation):
            return
        try:
            request = decode_request(message.data)
        except BusError:
            self.counts[UNREADABLE] += 1
            return
        known = self._open.get(message.reply)
        if known is not None and request.again == known.again:
            return  # heard by two patterns, or doubled on its way
        if known is not None:
            known.resent = known.resent or not known.refused
            known.again, known.refused = request.again, False
        if known is not None or request.again:
            self.counts[AGAIN] += 1
        elif request.stream or not request.n:
            self.counts[STREAMS] += 1
        elif not any(message.reply.startswith(inbox) for inbox in self._inboxes):
            self.counts[UNREADABLE] += 1
        else:
            self._write_request(operation, request.n, message)

    def _write_request(self, operation: str, rows: int, message: Message) -> None:
        try:
            number = self._writer.asked(self._clock(), operation, message.data)
        except (RecordingFull, OSError) as error:
            self._end(error)
            return
        self._open[message.reply] = _Open(number, rows, 0)
        if len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
            self.counts[UNANSWERED] += 1

    def _on_answer(self, message: Message) -> None:
        known = self._open.get(message.subject)
        # An empty message is a worker's question whether anybody listens, or the server's word that no worker does.
        if known is None or not message.data or self.over.is_set():
            return
        try:
            self._writer.answered(known.number, self._clock(), message.data)
        except (RecordingFull, OSError) as error:
            self._end(error)
            return
        answered, known.refused = _answered(message.data, known.rows)
        known.rows -= answered
        if known.rows <= 0 and not known.resent:
            del self._open[message.subject]
            if not self._open:
                self._settled.set()

    def _end(self, error: Exception) -> None:
        self.failure = error
        self.over.set()
        self._settled.set()

    def _on_reconnect(self) -> None:
        self.counts[GAPS] += 1

    def _serves(self, operation: str) -> bool:
        """Whether a subject below the root is an operation's, or a handler's if such were named.

        `>` hears topics, jobs and withdrawals as well; and of handlers also what all of a name are asked at once.
        """
        system, *rest = operation.split(".")
        if system == AGENT:
            asked_of_one = len(rest) == 2 or (len(rest) == 3 and rest[2].isdecimal())  # the partition of a key
            return self._hears_agents and asked_of_one
        try:
            self._subjects.operation(operation)
        except ValueError:
            return False
        return True


def check_pattern(subjects: Subjects, pattern: str) -> str:
    """The subject that a pattern of operations listens to.

    Raises:
        BadParameter: it is none, or of what is no operation.
    """
    subject = f"{subjects.root}.{pattern}"
    check_interest(subject, "")
    system = pattern.split(".")[0]
    if system not in ("*", ">") and not pattern.startswith(f"{AGENT}."):
        try:
            subjects.operation(system)
        except ValueError as error:
            raise BadParameter(f"{pattern!r}: {error}") from None
    return subject


def steady_clock() -> Callable[[], int]:
    """A clock in ns since 1970 that no correction of the machine's makes leap."""
    ahead = time.time_ns() - time.monotonic_ns()
    return lambda: time.monotonic_ns() + ahead


class _Rows(msgspec.Struct):
    """Which rows a reply is about; its columns are not looked at."""

    at: list[Run] = []
    err: list[RowError] = []


_rows = msgspec.msgpack.Decoder(_Rows)
_json_rows = msgspec.json.Decoder(_Rows)


def _answered(payload: bytes, left: int) -> tuple[int, bool]:
    """How many rows of `left` a reply settles, and whether it refuses them all, so that they may be sent again."""
    try:
        rows = (_json_rows if is_json(payload) else _rows).decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0, False
    settled = sum(count for _, count in rows.at)
    settled += sum(error.n or left for error in rows.err if error.code not in REFUSALS)
    return settled, any(error.code in REFUSALS for error in rows.err)

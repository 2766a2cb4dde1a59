"""Tells the bus that a process is there, and which agents are in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

import structlog

from ..bus.errors import BadFrame, BusError
from ..bus.outgoing import Outgoing
from ..bus.subjects import Subjects
from ..bus.transport import Message, Subscription, Transport
from .allowance import Allowance
from .announcements import MOST_BYTES, Announced, decode_question
from .announcer import Announcer

BEATS = 3  # in a time to live, at least: two may be lost
JITTER = (
    0.2  # of the time between beats, by which one may come earlier: processes started together do not beat together
)
LIST_EVERY = 0.1  # of a time to live, at least between two lists for all: agents may come and go one by one
ANSWER_BYTES = 16 << 20  # a second, of lists for who asks: 1,024 small ones, or 640 of 1,250 agents
LEAST_BYTES = 16 << 10  # that an answer counts
BACKLOG_BYTES = 8 * 1024 * 1024  # of answers that the connection has not taken; questions beyond it are not answered

_log = structlog.get_logger(__name__)


class Presence:
    """One process's word to all others: a small message a beat, and the list of its agents when that has changed.

    Args:
        transport: its connection.
        subjects: the bus's subject tree.
        process: one subject token, unique on the bus.
        describe: gives its agents as they are now; no two of one name.
        loads: gives their loads by name, rows that run and wait over what may run at once; those left out have none.
        ttl_s: how long others count the process as there after each message, s.
        reply_prefixes: inbox prefixes that are answered; who asks can name any subject as its reply.

    Attributes:
        unanswered: questions that were too many.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        process: str,
        describe: Callable[[], Sequence[Announced]],
        loads: Callable[[], Mapping[str, float]],
        *,
        ttl_s: float,
        reply_prefixes: tuple[str, ...],
    ) -> None:
        self.unanswered = 0
        self._transport = transport
        self._subjects = subjects
        self._process = process
        self._describe = describe
        self._loads = loads
        self._ttl_s = ttl_s
        self._reply_prefixes = tuple(p for prefix in reply_prefixes for p in (f"{prefix}.", f"{prefix}_"))
        self._subject = subjects.presence_of(process)
        self._loop = asyncio.get_running_loop()
        # By the machine's monotonic clock: a process that is started again has the greater number, whatever the time of
        # day does. On another machine it may have the smaller one, and is heard when the first one's time is over.
        self._announcer = Announcer(
            process, int(self._loop.time() * 1e6), ttl_s, min(MOST_BYTES, transport.max_payload)
        )
        self._outgoing = Outgoing(transport)
        self._answers = Allowance(ANSWER_BYTES)
        self._random = random.Random(process)
        self._questions: Subscription | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._listing: asyncio.TimerHandle | None = None
        self._list_at = 0.0

    async def start(self) -> None:
        """Tell of the agents, answer who asks, and beat from now on."""
        self._questions = await self._transport.subscribe(self._subjects.presence, self._on_question)
        self._transport.on_reconnect.append(self._beat)
        self._list()
        self._beat()

    async def stop(self) -> None:
        """Say goodbye, so that others find these agents no more; before their handlers are drained. Idempotent."""
        if self._questions is None:
            return
        questions, self._questions = self._questions, None
        self._transport.on_reconnect.remove(self._beat)
        for timer in (self._beating, self._listing):
            if timer is not None:
                timer.cancel()
        self._send(self._subject, self._announcer.goodbye())
        await questions.unsubscribe()
        await self._outgoing.drain()

    def changed(self) -> None:
        """Agents have come or gone: tell at once, or as soon as a list may follow the last."""
        if self._questions is not None and self._listing is None:
            self._listing = self._loop.call_at(max(self._loop.time(), self._list_at), self._list)

    def _list(self) -> None:
        self._listing = None
        self._list_at = self._loop.time() + self._ttl_s * LIST_EVERY
        if self._announcer.describe(self._describe()):
            for part in self._announcer.listing():
                self._send(self._subject, part)

    def _beat(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
        within_s = self._ttl_s / BEATS * (1 - JITTER * self._random.random())
        self._beating = self._loop.call_later(within_s, self._beat)
        # Beats kept for a lost connection would come all at once, and too late.
        if not self._transport.lost:
            self._send(self._subject, self._announcer.beat(self._loads()))

    def _on_question(self, message: Message) -> None:
        if not message.reply.startswith(self._reply_prefixes):
            return
        try:
            asked = decode_question(message.data)
        except BadFrame as error:
            _log.debug("question not understood", error=str(error))
            return
        if asked.process in ("", self._process):
            parts = self._announcer.listing()
            if self._may_answer(sum(map(len, parts))):
                for part in parts:
                    self._send(message.reply, part)

    def _may_answer(self, size: int) -> bool:
        """Whether so many bytes may go to who asks; one who gets none sees from the next beat what is missing."""
        if self._outgoing.backlog_bytes <= BACKLOG_BYTES and self._answers.take(
            max(size, LEAST_BYTES), self._loop.time()
        ):
            return True
        self.unanswered += 1
        if self.unanswered & (self.unanswered - 1) == 0:  # the 1st, 2nd, 4th, 8th
            _log.warning("question who is there not answered: too many come", count=self.unanswered)
        return False

    def _send(self, subject: str, payload: bytes) -> None:
        self._outgoing.send(subject, payload, failed=_untold)


def _untold(error: BusError) -> None:
    """Who missed it sees that from the next beat, and asks."""
    _log.debug("presence not told", error=str(error))

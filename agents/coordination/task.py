"""A task that this process has claimed: kept while it is worked on, then done, failed or given back."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from ...bus.deposit import deposit
from ...bus.errors import BusError, Disconnected
from ...bus.jetstream import JetStream, NoAnswer, Unavailable
from ...bus.jobs import DELIVERED, MESSAGE_ID, REASON, delivery_of, retry_s
from ...bus.leases import Clock
from ...bus.pipeline import Pipeline
from ...bus.tenure import Phase, Tenure
from ...bus.transport import Message, no_responders
from .claims import GIVE_BACK
from .errors import TaskLost

ANSWER_S = 1.0  # for the server to confirm that a task is done; then it is told again
PATIENCE_S = 10.0  # how long it is told, s
RETRY_S = 0.1
BURY_S = 10.0
REASON_CHARACTERS = 1024

_DONE = b"+ACK"
_WORKING = b"+WPI"

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass
class TaskCounts:
    """What became of the tasks that this process claimed.

    Attributes:
        claimed: times a task came.
        repeated: of those, times it had come to somebody before: it may have been done twice.
        done, failed, given_back: as their holders said.
        late: of those done, the ones that had been lost to another before.
        buried: given up.
    """

    claimed: int = 0
    repeated: int = 0
    done: int = 0
    failed: int = 0
    given_back: int = 0
    late: int = 0
    buried: int = 0


@dataclass(frozen=True)
class Ways:
    """How a task's holder reaches the server, and what holds for all tasks of its queue.

    Attributes:
        jetstream, pipeline: over one connection.
        clock: monotonic, s.
        ack_wait_s: of silence, after which another gets a task.
        max_attempts: times it may come to somebody before it is given up.
        retry_s: rest after the first failure, s; it doubles each time.
        buried: the subject of a task given up, by its id.
    """

    jetstream: JetStream
    pipeline: Pipeline
    clock: Clock
    ack_wait_s: float
    max_attempts: int
    retry_s: float
    buried: Callable[[str], str]


class Claim:
    """A task as it came: the message, whose it is, and what the server is told of it.

    Attributes:
        id: of the task.
        attempt: times it came to somebody, this one included.
        data: what was put.
    """

    def __init__(self, message: Message, ways: Ways, counts: TaskCounts) -> None:
        self.id = message.subject.rpartition(".")[2]
        self.attempt = delivery_of(message.reply)
        self.data = message.data
        self._ack = message.reply
        self._ways = ways
        self._counts = counts
        counts.claimed += 1
        counts.repeated += self.attempt > 1

    @property
    def worn_out(self) -> bool:
        """Whether all attempts were made, and none ended."""
        return self.attempt > self._ways.max_attempts

    @property
    def last(self) -> bool:
        """Whether this attempt is the last."""
        return self.attempt >= self._ways.max_attempts

    async def confirm(self, what: bytes, timeout_s: float) -> None:
        """Tell the server, and wait until it has heard; raises as `JetStream.replies`."""
        async with aclosing(self._ways.jetstream.replies(self._ack, what, timeout_s=timeout_s)) as replies:
            if no_responders(await anext(replies)):
                raise Unavailable(f"nobody heard about task {self.id}: its stream is gone, or its server not up yet")

    async def finish(self) -> None:
        """Have the server remove the task; it is told until it has heard.

        Raises:
            NoAnswer, Unavailable, Disconnected: it has perhaps not heard; the task may come to another.
            Closed: this process has closed the connection.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        while True:
            try:
                return await self.confirm(_DONE, ANSWER_S)
            except (NoAnswer, Unavailable, Disconnected):
                if loop.time() + RETRY_S >= end:
                    raise
                await asyncio.sleep(RETRY_S)

    def put_back(self, rest_s: float) -> None:
        """Let another have it after a rest; unheard, that comes when the holder has been silent for long enough."""
        nak = GIVE_BACK + b" " + msgspec.json.encode({"delay": int(rest_s * 1e9)}) if rest_s > 0 else GIVE_BACK
        self._ways.pipeline.tell(self._ack, nak)

    def rest_s(self) -> float:
        """How long the task rests after a failure, s."""
        return retry_s(self.attempt, self._ways.retry_s, random.random())

    async def bury(self, reason: str) -> None:
        """Keep the task among the dead, then remove it; if that does not succeed, whoever gets it next does so."""
        headers = {
            REASON: reason[:REASON_CHARACTERS],
            DELIVERED: str(min(self.attempt, self._ways.max_attempts)),
            MESSAGE_ID: secrets.token_hex(8),
        }
        try:
            subject = self._ways.buried(self.id)
            await deposit(self._ways.pipeline, subject, self.data, headers, BURY_S)
            await self.finish()
        except BusError as error:
            _log.warning("task not buried", task=self.id, error=str(error))
            self.put_back(self.rest_s())
        else:
            self._counts.buried += 1
            _log.error("task given up", task=self.id, attempts=self.attempt, reason=reason)


class Task(Generic[T]):
    """A task that this process has; it tells the server that it is still at it, three times in `ack_wait_s`.

    Whatever it ends with first counts: `done`, `fail` or `give_back`.

    Attributes:
        message: what was put.
        id: under which.
        attempt: times it came to somebody, this one included.
    """

    def __init__(self, message: T, claim: Claim, ways: Ways, counts: TaskCounts, claimed_at: float) -> None:
        self.message = message
        self.id = claim.id
        self.attempt = claim.attempt
        self._claim = claim
        self._ways = ways
        self._counts = counts
        self._tenure = Tenure(ways.ack_wait_s, claimed_at)
        self._ended = False
        self._over = asyncio.Event()
        # A timer, and a task only when there is something to tell: most tasks are done before.
        self._renewal: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    @property
    def held(self) -> bool:
        """Whether the task is still this holder's alone, by its own clock as it is now."""
        return self._tenure.decide(self._ways.clock()).phase is not Phase.LOST

    def check(self) -> None:
        """Raise TaskLost unless the task is held."""
        if not self.held:
            raise TaskLost(f"task {self.id} may have gone to another: {self._tenure.reason}")

    async def lost(self) -> str:
        """Wait until the task is lost, or has ended; returns why."""
        await self._over.wait()
        return self._tenure.reason

    async def done(self) -> None:
        """The work is done: when this returns nobody gets the task again.

        Raises:
            NoAnswer, Unavailable, Disconnected: the server has perhaps not heard; another may do it again.
            Closed: this process has closed the connection.
        """
        if self._ended:
            return
        held = self.held
        self._end("its holder has done it")
        # A task that was lost, too: whoever has it now need not have it done again after.
        await self._claim.finish()
        self._counts.done += 1
        self._counts.late += not held

    async def fail(self, reason: str) -> None:
        """The work failed: it comes again after a rest, or is given up if this was the last attempt."""
        if self._ended:
            return
        held = self.held
        self._end(f"it failed: {reason}")
        self._counts.failed += 1
        if held and self._claim.last:
            await self._claim.bury(reason)
        elif held:  # else another has it, and would lose it
            self._claim.put_back(self._claim.rest_s())

    async def give_back(self, rest_s: float = 0.0) -> None:
        """Let another have the task, not before `rest_s`; it counts as an attempt."""
        if self._ended:
            return
        held = self.held
        self._end("its holder gave it back")
        self._counts.given_back += 1
        if held:
            self._claim.put_back(rest_s)

    def _end(self, reason: str) -> None:
        self._ended = True
        self._tenure.lose(reason)
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()
        self._over.set()

    def _look(self) -> None:
        """Renew the claim when that is due."""
        loop = asyncio.get_running_loop()
        phase, within_s = self._tenure.decide(self._ways.clock())
        if phase is Phase.HELD:
            self._timer = loop.call_later(within_s, self._look)
        elif phase is Phase.DUE:
            self._renewal = loop.create_task(self._renew(within_s), name=f"aikoryu-task-{self.id}")
        elif not self._ended:
            _log.warning("task lost", task=self.id, reason=self._tenure.reason)
            self._over.set()

    async def _renew(self, within_s: float) -> None:
        sent_at = self._ways.clock()
        try:
            await self._claim.confirm(_WORKING, within_s)
        except BusError:
            self._tenure.unanswered(self._ways.clock())
        else:
            self._tenure.renewed(sent_at)
        self._look()

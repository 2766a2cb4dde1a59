"""Jobs that a worker has: looked up, run, stored, acknowledged, in this order.

A job goes to the service as an ordinary frame, so it shares its batch with what came over the wire. Whatever dies in
between, the job is delivered again: to be run, or to be acknowledged at once if its result is there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import monotonic

import msgspec
import structlog

from ..config import JobSettings
from .errors import BadFrame, BusError, EngineLost, TooLarge
from .frames import Reply, RowError, encode, encode_json, is_json, row_error
from .jetstream import WRONG_LAST_SEQUENCE, Refused, Stored
from .job_puller import Puller
from .jobs import (
    CALLER,
    DELIVERED,
    FIRST_ONLY,
    REASON,
    REASON_CODE,
    JobSubjects,
    Next,
    after,
    delivery_of,
    outcome_of,
    retry_s,
)
from .loopback import Loopback
from .pipeline import LOOK_SUBJECTS, Pipeline
from .transport import Message

BUSY_S = 10.0  # a job is kept so long while the worker is busy, before another gets it
BUSY_LONGEST_S = 2.0  # between two offers
STORE_RETRY_S = 0.5  # before the first further try to store a result; twice as long each time
STORE_LONGEST_S = 15.0

_ACKNOWLEDGED = b"+ACK"
_WORKING = b"+WPI"

_log = structlog.get_logger(__name__)


class Taken:
    """A job that this worker has.

    Attributes:
        number: tells it from others here, and from another delivery of the same job.
        ack: subject on which it is acknowledged.
        delivered: times it was delivered, this one included.
        id, operation: which job.
        frame: the request frame.
        caller: inbox of who submitted it, or empty.
        puller: that it came through.
        since: monotonic time at which it came, s.
        running: it was handed to the service, which has not answered.
        resting: ends its rest before it is offered again, or its result stored; None while it does not rest.
        known: its result is there already.
        offers: times the worker was too busy for it.
        unstored: times its result, or its dead letter, could not be stored.
    """

    __slots__ = (
        "ack",
        "caller",
        "delivered",
        "frame",
        "id",
        "known",
        "number",
        "offers",
        "operation",
        "puller",
        "resting",
        "running",
        "since",
        "unstored",
    )

    def __init__(self, number: int, message: Message, names: JobSubjects, puller: Puller) -> None:
        self.number = number
        self.ack = message.reply
        self.delivered = delivery_of(message.reply)
        self.id, self.operation = names.parts(message.subject)
        self.frame = message.data
        self.caller = (message.headers or {}).get(CALLER, "")
        self.puller = puller
        self.since = monotonic()
        self.running = False
        self.resting: asyncio.TimerHandle | None = None
        self.known = False
        self.offers = 0
        self.unstored = 0


class JobRuns:
    """The jobs a worker has.

    Args:
        pipeline: to JetStream.
        loopback: to the service of this worker.
        names: of the streams and subjects.
        settings: their group.
        may_answer: whether a subject that a job names may be written to.

    Attributes:
        taken, stored, known, retried, buried: jobs that came, whose result was stored, that were acknowledged because
            it was there, that were given back, and dead-lettered.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        loopback: Loopback,
        names: JobSubjects,
        settings: JobSettings,
        may_answer: Callable[[str], bool],
    ) -> None:
        self.taken = self.stored = self.known = self.retried = self.buried = 0
        self._pipeline = pipeline
        self._loopback = loopback
        self._names = names
        self._settings = settings
        self._may_answer = may_answer
        self._taken: dict[int, Taken] = {}
        self._arrived: list[Taken] = []
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._unstored = 0
        self._idle = asyncio.Event()
        loopback.on_answer = self._on_answer

    @property
    def in_flight(self) -> int:
        """Jobs that this worker has now."""
        return len(self._taken)

    def take(self, message: Message, puller: Puller) -> None:
        """Look after a job that came; from now on it is this worker's."""
        self.taken += 1
        taken = self._taken[self.taken] = Taken(self.taken, message, self._names, puller)
        if self._stopping:
            self._give_back(taken, 0.0)
            return
        if not self._arrived:
            self._loop.call_soon(self._look_up)
        self._arrived.append(taken)

    def keep(self) -> None:
        """Tell the server that jobs which take long are still being worked on."""
        now = monotonic()
        for taken in self._taken.values():
            if now - taken.since > self._settings.ack_wait_s / 4:
                self._pipeline.tell(taken.ack, _WORKING)

    def refuse(self) -> None:
        """Give back what comes from now on, and what fails in a way that would be tried again."""
        self._stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Give back what was not run, and wait until the results of the others are stored."""
        self.refuse()
        for taken in list(self._taken.values()):
            if taken.resting is not None:
                taken.resting.cancel()
            if taken.resting is not None or taken.running:  # the service let it go without a word
                self._give_back(taken, 0.0)
        try:
            async with asyncio.timeout(timeout_s):
                while self._taken:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.warning("jobs not given back: others get them when their time is up", jobs=len(self._taken))

    def _look_up(self) -> None:
        """Ask, for all that came in this loop tick, which have their result already."""
        arrived, self._arrived = self._arrived, []
        for first in range(0, len(arrived), LOOK_SUBJECTS):
            self._look_up_some(arrived[first : first + LOOK_SUBJECTS])

    def _look_up_some(self, arrived: list[Taken]) -> None:
        by_subject: dict[str, list[Taken]] = {}
        for taken in arrived:
            by_subject.setdefault(self._names.result(taken.id), []).append(taken)

        def found(result: Stored) -> None:
            for taken in by_subject[result.subject]:
                taken.known = True
                self.known += 1
                self._acknowledge(taken, result.data)

        def done(error: BusError | None) -> None:
            for taken in arrived:
                if taken.known:
                    continue
                if error is not None or self._stopping:
                    self._give_back(taken, self._settings.retry_s if error is not None else 0.0)
                elif taken.delivered > self._settings.max_deliver:
                    ended = EngineLost("the worker ended, or lost its connection, while it had the job")
                    self._bury(taken, row_error(ended))
                else:
                    self._run(taken)

        self._pipeline.last_of(self._names.results, by_subject, found, done)

    def _run(self, taken: Taken) -> None:
        taken.running = True
        self._loopback.ask(self._names.subjects.operation(taken.operation), taken.frame, str(taken.number))

    def _on_answer(self, name: str, payload: bytes, headers: dict[str, str] | None) -> None:
        """What the service says of a job."""
        taken = self._taken.get(int(name))
        if taken is None or not taken.running or not payload:  # without a payload, whether somebody listens
            return
        taken.running = False
        outcome = outcome_of(payload)
        if not outcome.whole:
            payload = _refusal(taken, row_error(BadFrame("a job is one row, and no stream: submit each by itself")))
            outcome = outcome_of(payload)
        waited_s = monotonic() - taken.since if taken.offers else 0.0
        then = after(outcome, taken.delivered, self._settings.max_deliver, waited_s, BUSY_S)
        if then is Next.STORE:
            self._store(taken, payload)
        elif self._stopping:
            self._give_back(taken, 0.0)
        elif then is Next.WAIT:
            taken.offers += 1
            pause_s = max(outcome.err[0].retry_ms / 1000, min(BUSY_LONGEST_S, 0.01 * 2.0 ** min(taken.offers, 16)))
            self._rest(taken, pause_s, lambda: self._offer(taken))
        elif then is Next.RETRY:
            self._give_back(taken, retry_s(taken.delivered, self._settings.retry_s, random.random()))
        else:
            self._bury(taken, outcome.err[0])

    def _rest(self, taken: Taken, pause_s: float, then: Callable[[], None]) -> None:
        """Go on with a job after about so long."""

        def go_on() -> None:
            taken.resting = None
            then()

        taken.resting = self._loop.call_later(pause_s * (0.5 + random.random()), go_on)

    def _offer(self, taken: Taken) -> None:
        if self._stopping:
            self._give_back(taken, 0.0)
        else:
            self._run(taken)

    def _store(self, taken: Taken, result: bytes) -> None:
        """Store a result; acknowledge its job then."""

        def done(error: BusError | None) -> None:
            if error is None:
                self.stored += 1
                self._unstored = 0
                self._acknowledge(taken, result)
            elif isinstance(error, Refused) and error.err_code in WRONG_LAST_SEQUENCE:
                # Another delivery of the job was faster, and its result is the one that stays.
                self.known += 1
                self._acknowledge(taken, b"")
            elif isinstance(error, TooLarge):
                self._store(taken, _refusal(taken, row_error(error)))
            else:
                self._again("result not stored", taken, error, lambda: self._store(taken, result))

        self._pipeline.publish(self._names.result(taken.id), result, done, FIRST_ONLY)

    def _bury(self, taken: Taken, error: RowError) -> None:
        """Dead-letter a job, then let its caller know by the result."""
        reason = f"given up after {min(taken.delivered, self._settings.max_deliver)} deliveries: {error.msg}"
        headers = FIRST_ONLY | {REASON: reason, REASON_CODE: error.code, DELIVERED: str(taken.delivered)}

        def done(refused: BusError | None) -> None:
            buried = isinstance(refused, Refused) and refused.err_code in WRONG_LAST_SEQUENCE
            if refused is None or buried:
                self.buried += 1
                _log.error("job given up", id=taken.id, operation=taken.operation, error=error.code, reason=reason)
                self._store(taken, _refusal(taken, RowError(0, error.code, reason)))
            elif isinstance(refused, TooLarge):
                self._store(taken, _refusal(taken, RowError(0, error.code, reason)))
            else:
                self._again("dead letter not stored", taken, refused, lambda: self._bury(taken, error))

        self._pipeline.publish(self._names.dead_letter(taken.id, taken.operation), taken.frame, done, headers)

    def _again(self, what: str, taken: Taken, error: BusError, retry: Callable[[], None]) -> None:
        """Try later to store something; the job is kept meanwhile, or given back if this worker is to stop."""
        if self._stopping:
            self._give_back(taken, 0.0)
            return
        self._unstored += 1
        # The 1st, 2nd, 4th, 8th: a disk that is full for long does not fill the log, which may lie on it.
        if self._unstored & (self._unstored - 1) == 0:
            _log.warning(what, id=taken.id, count=self._unstored, error=str(error))
        pause_s = min(STORE_LONGEST_S, STORE_RETRY_S * 2.0 ** min(taken.unstored, 16))
        taken.unstored += 1
        self._rest(taken, pause_s, retry)

    def _acknowledge(self, taken: Taken, result: bytes) -> None:
        self._pipeline.tell(taken.ack, _ACKNOWLEDGED)
        if result and self._may_answer(taken.caller):
            self._pipeline.tell(taken.caller, result)
        self._forget(taken)

    def _give_back(self, taken: Taken, delay_s: float) -> None:
        """Let the server deliver a job again, not before `delay_s`."""
        self.retried += 1
        self._pipeline.tell(taken.ack, b"-NAK " + msgspec.json.encode({"delay": int(delay_s * 1e9)}))
        self._forget(taken)

    def _forget(self, taken: Taken) -> None:
        if self._taken.pop(taken.number, None) is not None:
            taken.puller.finished(len(taken.frame))
        if not self._taken:
            self._idle.set()


def _refusal(taken: Taken, error: RowError) -> bytes:
    """The reply frame of a job that has no answer, in the job's own encoding."""
    reply = Reply(id=0, err=[error], last=True)
    return encode_json(reply) if is_json(taken.frame) else encode(reply)

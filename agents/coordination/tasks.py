"""A queue of tasks that agents share: each is claimed by one, and comes again until somebody has done it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from ...bus.deposit import deposit
from ...bus.errors import BadValue, Busy, Expired
from ...bus.jetstream import JetStream, NoAnswer
from ...bus.jobs import DELIVERED, MESSAGE_ID, REASON, check_id, consumer_name, work_consumer
from ...bus.leases import Clock, boottime
from ...bus.permissions import BURIED, TASKS
from ...bus.pipeline import Full, Pipeline
from ...bus.subjects import Subjects
from . import streams
from .claims import Claims
from .once import Once
from .task import Claim, Task, TaskCounts, Ways

ACK_WAIT_S = 30.0
MAX_ATTEMPTS = 5
RETRY_S = 1.0
FULL_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class Floor:
    """What all queues of one connection share.

    Attributes:
        jetstream, pipeline, claims: over the connection.
        subjects: the bus.
        timeout_s: for a task to be accepted, s.
        clock: monotonic, s.
    """

    jetstream: JetStream
    pipeline: Pipeline
    claims: Claims
    subjects: Subjects
    timeout_s: float
    clock: Clock = boottime


class DeadTask(NamedTuple):
    """A task given up.

    Attributes:
        id: under which it was put; put it again to have it tried again.
        message: as plain values, whatever type it had.
        reason: of the last failure.
        attempts: that were made.
    """

    id: str
    message: Any
    reason: str
    attempts: int


class Tasks(Generic[T]):
    """One queue.

    Args:
        floor: opened, with the streams made.
        name: of the queue, one token.
        of: the type of its messages: anything that msgspec encodes.
        ack_wait_s: of silence, after which a task goes to another, s; the same for all who claim from the queue.
        max_attempts: times a task may come to somebody before it is given up.
        retry_s: rest after the first failure, s; it doubles each time.

    Attributes:
        counts: what became of the tasks that were claimed here.
    """

    def __init__(
        self,
        floor: Callable[[], Awaitable[Floor]],
        name: str,
        of: type[T],
        *,
        ack_wait_s: float = ACK_WAIT_S,
        max_attempts: int = MAX_ATTEMPTS,
        retry_s: float = RETRY_S,
    ) -> None:
        self.name = name
        self.counts = TaskCounts()
        self._floor = floor
        self._decoder = msgspec.msgpack.Decoder(of)
        self._ack_wait_s = ack_wait_s
        self._max_attempts = max_attempts
        self._retry_s = retry_s
        self._consumer = Once(self._make_consumer)

    async def put(self, message: T, *, id: str = "") -> str:  # noqa: A002 - what a caller calls it
        """Have a task done by somebody; returns its id when the server has it.

        Args:
            message: what to do.
            id: at most 128 letters, digits, '_' and '-'; a random one by default. A second task of an id is not taken
                while the first waits or is worked on.

        Raises:
            BadParameter, BadValue, TooLarge: it cannot be put.
            Busy: the stream is full, or the server's disk is.
            Refused, Unavailable: the server does not take tasks.
            Expired: the server did not say that it has it; put it again under the same id.
        """
        id_ = id or secrets.token_hex(8)
        check_id(id_)
        try:
            payload = msgspec.msgpack.encode(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadValue(f"{self.name}: the task cannot be written ({error})") from None
        floor = await self._floor()
        subject = streams.task(floor.subjects, self.name, id_)
        try:
            # The number tells a publish that is sent again from another task of the same id.
            await deposit(floor.pipeline, subject, payload, {MESSAGE_ID: secrets.token_hex(8)}, floor.timeout_s)
        except Full:
            raise Busy(f"no room for tasks of {self.name}: put it later, or have more agents claim", FULL_S) from None
        except NoAnswer:
            raise Expired(f"{self.name}: nobody said that task {id_} is there: put it again under this id") from None
        return id_

    @asynccontextmanager
    async def claim(self, timeout_s: float | None = None) -> AsyncIterator[Task[T]]:
        """Wait for a task, and have it for the block, which works on it.

        The task is done when the block ends, unless it said otherwise; fails if it raises; and is given back if it is
        cancelled. A holder that is silent for `ack_wait_s`, dead or cut off, loses it to another: so a task is done at
        least once, and `counts.repeated` counts those that came before.

        Args:
            timeout_s: longest wait, s; by default for ever; 0: only what is there now.

        Raises:
            NoTask: none came.
            NoAnswer, Unavailable, Disconnected: when it was done the server did not hear of it.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        task = await self._next(timeout_s)
        try:
            yield task
        except Exception as error:
            await task.fail(f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            await task.give_back()
            raise
        await task.done()

    async def dead(self) -> AsyncGenerator[DeadTask, None]:
        """The tasks of this queue that were given up in the last 30 days; close the iterator (`aclosing`).

        Raises:
            NoAnswer, Unavailable, Disconnected, Refused, Closed: there may be more.
        """
        floor = await self._floor()
        stream, subject = floor.subjects.stream(BURIED), streams.buried_task(floor.subjects, self.name, "*")
        at, more = 1, True
        while more:
            more = False
            async with aclosing(floor.jetstream.scan(stream, subject, at)) as found:
                async for stored in found:
                    at, more = stored.sequence + 1, True
                    yield DeadTask(
                        stored.subject.rpartition(".")[2],
                        msgspec.msgpack.decode(stored.data),
                        stored.headers.get(REASON, ""),
                        int(stored.headers.get(DELIVERED, 0)),
                    )

    async def _next(self, timeout_s: float | None) -> Task[T]:
        floor = await self._floor()
        ways = Ways(
            floor.jetstream,
            floor.pipeline,
            floor.clock,
            self._ack_wait_s,
            self._max_attempts,
            self._retry_s,
            lambda id_: streams.buried_task(floor.subjects, self.name, id_),
        )
        while True:
            message = await floor.claims.take(self._address(floor), self._consumer, timeout_s)
            came_at = floor.clock()
            claim = Claim(message, ways, self.counts)
            if claim.worn_out:
                await claim.bury("its holders fell silent, or gave it back, each time")
                continue
            try:
                decoded = self._decoder.decode(message.data)
            except msgspec.DecodeError as error:
                await claim.bury(f"it is no task of this queue: {error}")
                continue
            return Task(decoded, claim, ways, self.counts, came_at)

    async def _make_consumer(self) -> None:
        floor = await self._floor()
        subject = streams.task(floor.subjects, self.name, "*")
        config = work_consumer(consumer_name(self.name), subject, self._ack_wait_s)
        stream = floor.subjects.stream(TASKS)
        await floor.jetstream.api(
            f"CONSUMER.CREATE.{self._address(floor)}.{subject}", {"stream_name": stream, "config": config}
        )

    def _address(self, floor: Floor) -> str:
        return f"{floor.subjects.stream(TASKS)}.{consumer_name(self.name)}"

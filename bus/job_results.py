"""Waiting for the results of jobs.

A worker sends a result, once it is stored, to the inbox that its job names: one message, no subscription a job. It may
miss its mark (another process waits, the connection was lost, the worker died), so whoever waits also looks, seldom.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from functools import partial
from typing import Self
from weakref import WeakValueDictionary

from .errors import BusError, Closed
from .jetstream import JetStream, Stored
from .jobs import JobSubjects
from .pipeline import LOOK_SUBJECTS, Pipeline, settle
from .transport import Message, Subscription, Transport

TICK_S = 0.05
LOOK_FIRST_S = 0.1
LOOK_LONGEST_S = 2.0
SENT_S = 1.0  # the first look at a job whose result should come by itself
CHECK_S = 30.0  # between two looks whether a job without a result is still there


class Expected:
    """A result that may be waited for.

    Attributes:
        id: of the job.
        reply: the result, a reply frame; nothing (no bytes) when neither job nor result is there; None so far.
        waiters: who awaits it.
        look_at, check_at: loop time of the next look for it, and for its job, s.
        look_s: time between the looks.
    """

    __slots__ = ("__weakref__", "check_at", "id", "look_at", "look_s", "reply", "waiters")

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.reply: bytes | None = None
        self.waiters: list[asyncio.Future[bytes]] = []
        self.look_at = self.check_at = 0.0
        self.look_s = LOOK_FIRST_S


class JobResults:
    """The results that callers of one connection wait for; a context manager, which subscribes their inbox.

    Args:
        transport: the connection.
        pipeline, jetstream: of the same.
        names: of the streams and subjects.
    """

    def __init__(self, transport: Transport, pipeline: Pipeline, jetstream: JetStream, names: JobSubjects) -> None:
        self._transport = transport
        self._pipeline = pipeline
        self._jetstream = jetstream
        self._names = names
        self._inbox = f"{transport.inbox_prefix}.job-{secrets.token_hex(6)}"
        self._loop = asyncio.get_running_loop()
        self._expected: WeakValueDictionary[str, Expected] = WeakValueDictionary()
        self._waiting: dict[str, Expected] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._checks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_result)
        self._transport.on_reconnect.append(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.on_reconnect.remove(self._on_reconnect)
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._ticker is not None:
            self._ticker.cancel()
        for check in self._checks:
            check.cancel()
        for expected in self._waiting.values():
            for waiter in expected.waiters:
                if not waiter.done():
                    waiter.set_exception(Closed("the bus was closed before the job was done; it goes on"))

    def inbox(self, id_: str) -> str:
        """Where a job's result shall be sent."""
        return f"{self._inbox}.{id_}"

    def expect(self, id_: str) -> Expected:
        """The result of a job, the same object for as long as somebody has it."""
        expected = self._expected.get(id_)
        if expected is None:
            expected = self._expected[id_] = Expected(id_)
        return expected

    def submitted(self, expected: Expected) -> None:
        """The job is there, and its result will be sent here: look later."""
        now = self._loop.time()
        expected.look_at = now + SENT_S
        expected.look_s = SENT_S
        expected.check_at = now + CHECK_S

    async def wait(self, expected: Expected) -> bytes:
        """The result, a reply frame; no bytes if neither job nor result is there.

        Raises:
            Closed: this was closed first.
        """
        if expected.reply is not None:
            return expected.reply
        self._waiting[expected.id] = expected
        if self._ticker is None:
            self._ticker = self._loop.call_later(0, self._tick)
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        expected.waiters.append(waiter)
        try:
            return await waiter
        finally:
            expected.waiters.remove(waiter)
            if not expected.waiters:
                self._waiting.pop(expected.id, None)

    async def find(self, id_: str) -> bytes:
        """The result that is there now; no bytes if there is none.

        Raises:
            Unavailable, NoAnswer, Disconnected: it is not known.
        """
        found: list[bytes] = []
        looked: asyncio.Future[BusError | None] = self._loop.create_future()
        result, done = self._names.result(id_), partial(settle, looked)
        self._pipeline.last_of(self._names.results, [result], lambda stored: found.append(stored.data), done)
        error = await looked
        if error is not None:
            raise error
        return found[0] if found else b""

    def _on_result(self, message: Message) -> None:
        expected = self._expected.get(message.subject.rpartition(".")[2])
        if expected is not None and message.data:
            _resolve(expected, message.data)

    def _on_reconnect(self) -> None:
        for expected in self._waiting.values():
            expected.look_at = 0.0

    def _tick(self) -> None:
        """Look for the results that are due."""
        self._ticker = self._loop.call_later(TICK_S, self._tick) if self._waiting else None
        now = self._loop.time()
        due = [expected for expected in self._waiting.values() if expected.look_at <= now]
        for expected in due:
            expected.look_at = now + expected.look_s
            expected.look_s = min(LOOK_LONGEST_S, 2 * expected.look_s)
            if expected.check_at <= now:
                expected.check_at = now + CHECK_S
                check = self._loop.create_task(self._check(expected))
                self._checks.add(check)
                check.add_done_callback(self._checks.discard)
        for first in range(0, len(due), LOOK_SUBJECTS):
            self._look(due[first : first + LOOK_SUBJECTS])

    def _look(self, due: Iterable[Expected]) -> None:
        by_subject = {self._names.result(expected.id): expected for expected in due}

        def found(result: Stored) -> None:
            _resolve(by_subject[result.subject], result.data)

        # A look that fails is followed by another.
        self._pipeline.last_of(self._names.results, by_subject, found, lambda error: None)

    async def _check(self, expected: Expected) -> None:
        """See whether the job is there; if not, its result is, or never will be."""
        query = {"subjects_filter": self._names.job(expected.id, ">")}
        try:
            state = (await self._jetstream.api(f"STREAM.INFO.{self._names.jobs}", query))["state"]
            if not state.get("subjects"):
                _resolve(expected, await self.find(expected.id))
        except BusError:
            expected.check_at = 0.0  # it is not known: ask again at the next look


def _resolve(expected: Expected, reply: bytes) -> None:
    if expected.reply is None:
        expected.reply = reply
        for waiter in expected.waiters:
            if not waiter.done():
                waiter.set_result(reply)

"""Many requests to JetStream at once: publishes whose acknowledgement comes later, messages read back by the hundred.

`jetstream.JetStream` waits for each answer, which suits a lease or a stream's making. Jobs come by the thousand a
second: here what is asked in one loop tick leaves together, and an answer costs a look into a table.

Source: NATS ADR-31, direct gets of several subjects.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Self, TypeVar

import msgspec

from .errors import BusError
from .jetstream import API, JetStream, NoAnswer, Refused, Stored, Unavailable
from .outgoing import Headers, Outgoing
from .transport import Message, Subscription, Transport, no_responders

ANSWER_S = 5.0  # for the last answer to come
SWEEP_S = 0.5
LOOK_SUBJECTS = 256  # of one look for the last messages; the server takes 1,024

_ERROR_STORE = 10077  # the stream is full, or the subject's share of it
_ERROR_ROOM = (10023, 10047)  # the server's disk is, or what JetStream may use of it
_PER_SUBJECT = "per subject"

T = TypeVar("T")

Answered = Callable[[Message], bool]
"""Takes an answer; true if none follows."""

Done = Callable[[BusError | None], None]
"""Takes the error of what was asked, None if there was none."""


class Full(Refused):
    """The stream has no room; nothing was stored."""

    @property
    def disk(self) -> bool:
        """Whether the server has no room for any stream, and not this one alone."""
        return self.err_code in _ERROR_ROOM


class Occupied(Refused):
    """The message, or another of a subject that takes but one, is there already; nothing was stored."""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Acknowledgement(msgspec.Struct):
    error: _Error | None = None
    duplicate: bool = False
    seq: int = 0


class _Asked(NamedTuple):
    """A request under way."""

    answered: Answered
    done: Done
    deadline: float


_acknowledgements = msgspec.json.Decoder(_Acknowledgement)


class Pipeline:
    """Asks over one connection; a context manager, which subscribes its inbox.

    Args:
        transport: the connection; it stays open when this ends.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._inbox = f"{transport.inbox_prefix}.pl-{secrets.token_hex(6)}"
        self._loop = asyncio.get_running_loop()
        self._outgoing = Outgoing(transport)
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_answer)
        self._transport.on_reconnect.append(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._outgoing.drain()
        self._transport.on_reconnect.remove(self._on_reconnect)
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        self._fail_all("this side stopped listening")
        if self._sweeper is not None:
            self._sweeper.cancel()

    def tell(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish at the end of this loop tick, for no answer here; waits for a lost connection."""
        self._outgoing.send(subject, payload, reply)

    def publish(self, subject: str, payload: bytes, done: Done, headers: Headers = None) -> None:
        """Put a message into the stream of its subject.

        Args:
            subject: of a stream.
            payload: the message.
            done: called with None when the server has it; with `Occupied` if it had it before; else with the error:
                `Full`, `Refused`, `Unavailable`; `NoAnswer` if it may have it, as the acknowledgement did not come
                within `ANSWER_S` or the connection was lost; others if it was not sent.
            headers: of the message.
        """

        def answered(message: Message) -> bool:
            stored = _stored(message)
            done(stored if isinstance(stored, BusError) else None)
            return True

        self._ask(subject, payload, answered, done, headers)

    async def write(self, subject: str, payload: bytes, headers: Headers = None) -> int:
        """Put a message into the stream of its subject, and wait until the server has it.

        Returns:
            Its sequence there.

        Raises:
            BusError: what `publish` gives to its `done`.
        """
        outcome: asyncio.Future[int | BusError | None] = self._loop.create_future()

        def answered(message: Message) -> bool:
            settle(outcome, _stored(message))
            return True

        self._ask(subject, payload, answered, partial(settle, outcome), headers)
        stored = await outcome
        if isinstance(stored, int):
            return stored
        assert stored is not None
        raise stored

    def last_of(
        self,
        stream: str,
        subjects: Iterable[str],
        found: Callable[[Stored], None],
        done: Done,
    ) -> None:
        """Read the last messages of up to `LOOK_SUBJECTS` subjects, in one request.

        Args:
            stream: allows direct gets.
            subjects: which.
            found: called with each message there is.
            done: called when that was all, or with the error: `Unavailable`, `Refused`, or as of `publish`.
        """

        def answered(message: Message) -> bool:
            status = status_of(message)
            if not status:
                headers = message.headers or {}
                sequence = int(headers.get("Nats-Sequence", 0))
                found(Stored(headers.get("Nats-Subject", ""), sequence, message.data, headers))
                return False
            if status in ("204", "404"):  # these were all; none was found
                done(None)
            elif no_responders(message):
                done(Unavailable(f"no JetStream stream {stream}: make the stream, or wait until its server is up"))
            else:
                done(Refused(f"stream {stream}: {(message.headers or {}).get('Description', status)}", 0))
            return True

        body = msgspec.json.encode({"multi_last": list(subjects)})
        self._ask(f"{API}.DIRECT.GET.{stream}", body, answered, done)

    async def drain(self) -> None:
        """Return when all that was handed over has been given to the connection."""
        await self._outgoing.drain()

    def _ask(self, subject: str, payload: bytes, answered: Answered, done: Done, headers: Headers = None) -> None:
        """Publish at the end of this loop tick, and give what comes back to `answered`, errors to `done`."""
        self._number = number = self._number + 1
        self._asked[number] = _Asked(answered, done, self._loop.time() + ANSWER_S)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        self._outgoing.send(subject, payload, f"{self._inbox}.{number}", partial(self._fail, number), headers)

    def _on_answer(self, message: Message) -> None:
        number = message.subject.rpartition(".")[2]
        if not number.isdecimal() or len(number) > 19:
            return
        asked = self._asked.get(int(number))
        if asked is not None and asked.answered(message):
            self._asked.pop(int(number), None)

    def _fail(self, number: int, error: BusError) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.done(error)

    def _on_reconnect(self) -> None:
        self._fail_all("the connection was lost")

    def _fail_all(self, why: str) -> None:
        for number in list(self._asked):
            self._fail(number, NoAnswer(f"{why} before JetStream answered: find out"))

    def _sweep(self) -> None:
        now = self._loop.time()
        for number in [number for number, asked in self._asked.items() if asked.deadline <= now]:
            self._fail(number, NoAnswer(f"JetStream did not answer within {ANSWER_S:g} s: find out"))
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._asked else None


class PipelinedJetStream(JetStream):
    """A `JetStream` whose publishes are a pipeline's: what many tasks publish in one loop tick leaves together."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._pipeline = Pipeline(transport)

    async def __aenter__(self) -> Self:
        await self._pipeline.__aenter__()
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        await self._pipeline.__aexit__(*error)

    async def publish(
        self, subject: str, payload: bytes, headers: Headers = None, *, timeout_s: float | None = None
    ) -> int:
        """As `JetStream.publish`; after a lost connection the outcome is unknown at once."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._pipeline.write(subject, payload, headers)
        except TimeoutError:
            raise NoAnswer(f"JetStream did not answer on {subject} within {timeout_s:g} s: find out") from None


def settle(future: asyncio.Future[T], outcome: T) -> None:
    """Give a future the outcome of what was asked, unless whoever awaits it has gone."""
    if not future.done():
        future.set_result(outcome)


def status_of(message: Message) -> str:
    """The inline status of a message, `404`; empty for an ordinary one."""
    return message.headers.get("Status", "") if message.headers else ""


def _stored(message: Message) -> int | BusError:
    """The sequence of what was published, or why there is none."""
    if no_responders(message):
        return Unavailable("no JetStream stream takes the message: make the stream, or wait until its server is up")
    acknowledgement = _acknowledgements.decode(message.data)
    error = acknowledgement.error
    if error is None:
        return Occupied("JetStream has the message", 0) if acknowledgement.duplicate else acknowledgement.seq
    text = f"JetStream refused the message: {error.description}"
    if error.err_code == _ERROR_STORE and _PER_SUBJECT in error.description:
        return Occupied(text, error.err_code)
    if error.err_code in (_ERROR_STORE, *_ERROR_ROOM):
        return Full(text, error.err_code)
    if error.code == 503:
        return Unavailable(f"{text}; try again later")
    return Refused(text, error.err_code)

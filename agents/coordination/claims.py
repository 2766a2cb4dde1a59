"""Asking for tasks: one pull for each that waits for one, so that nobody holds what it has no use for.

Source: NATS ADR-13. `bus.job_puller` asks ahead, for a worker that takes whatever comes; here a task that comes to
nobody would only be given back.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import msgspec

from ...bus.errors import Disconnected
from ...bus.jetstream import API, NoAnswer, Unavailable
from ...bus.pipeline import Pipeline, status_of
from ...bus.transport import Message, Subscription, Transport
from .errors import NoTask
from .once import Once

PULL_S = 5.0  # a request that the server has forgotten is noticed this late
GRACE_S = 1.0
RETRY_S = 0.1

GIVE_BACK = b"-NAK"

_NONE_CAME = ("404", "408")


class Claims:
    """The pulls of one process; a task that comes when nobody waits any more is given back.

    Args:
        transport: the connection.
        pipeline: over it.
    """

    def __init__(self, transport: Transport, pipeline: Pipeline) -> None:
        self._transport = transport
        self._pipeline = pipeline
        self._loop = asyncio.get_running_loop()
        self._pulls: list[Pull] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Claims:
        self._transport.on_reconnect.append(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.on_reconnect.remove(self._on_reconnect)
        await asyncio.gather(*(pull.close() for pull in self._pulls), *self._closing)

    async def take(self, consumer: str, ready: Once[None], timeout_s: float | None) -> Message:
        """Wait for a task.

        Args:
            consumer: names of the stream and the consumer, `<stream>.<consumer>`.
            ready: makes the consumer if it is missing.
            timeout_s: longest wait, s; None: for ever; 0: only what is there now.

        Raises:
            NoTask: none came.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        end = None if timeout_s is None else self._loop.time() + timeout_s
        left_s = timeout_s
        while True:
            message = None
            try:
                await ready()
                pull = self._free() or await self._another()
                try:
                    message = await pull.wait(consumer, PULL_S if left_s is None else min(left_s, PULL_S))
                except asyncio.CancelledError:
                    self._withdraw(pull)
                    raise
            except (NoAnswer, Unavailable, Disconnected):
                ready.forget()
                await asyncio.sleep(RETRY_S)
            if message is not None:
                return message
            if end is not None and (left_s := end - self._loop.time()) <= 0:
                raise NoTask(f"no task came to {consumer} within {timeout_s:g} s: ask again")

    def _free(self) -> Pull | None:
        """A pull that nobody waits for, and the server neither."""
        return next((pull for pull in self._pulls if not pull.waited and not pull.under_way), None)

    async def _another(self) -> Pull:
        pull = Pull(self._transport, self._pipeline)
        await pull.open()
        self._pulls.append(pull)
        return pull

    def _withdraw(self, pull: Pull) -> None:
        """Nobody waits for what a pull brings: the server forgets one whose inbox nobody hears.

        A task that came to it would have come in vain, and one that comes so often is given up.
        """
        if pull.under_way:
            self._pulls.remove(pull)
            closing = asyncio.create_task(pull.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _on_reconnect(self) -> None:
        for pull in self._pulls:
            pull.forgotten()


class Pull:
    """A request for one task, again and again; each has a subscription, for a task does not say which it answers.

    Attributes:
        waited: somebody waits for what comes.
    """

    def __init__(self, transport: Transport, pipeline: Pipeline) -> None:
        self.waited = False
        self._transport = transport
        self._pipeline = pipeline
        self._inbox = f"{transport.inbox_prefix}.claim-{secrets.token_hex(6)}"
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._until = 0.0
        self._came: asyncio.Future[Message | None] = self._loop.create_future()
        self._subscription: Subscription | None = None

    @property
    def under_way(self) -> bool:
        """Whether the server may still send a task."""
        return self._loop.time() < self._until

    async def open(self) -> None:
        """Listen."""
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_message)

    async def close(self) -> None:
        """Give back what is on its way, and listen no more."""
        self.waited = False
        if self._subscription is not None:
            await self._subscription.drain()

    async def wait(self, consumer: str, expires_s: float) -> Message | None:
        """What comes; None if the request ended without a task.

        Args:
            consumer: who is asked.
            expires_s: when the server ends the request, s; 0: at once.

        Raises:
            Unavailable: the server refused it; perhaps the consumer is missing.
        """
        self.waited = True
        self._came = came = self._loop.create_future()
        self._ask(consumer, expires_s)
        try:
            with suppress(TimeoutError):  # then the server has forgotten it, unless an answer came just now
                async with asyncio.timeout_at(self._until + GRACE_S):
                    await asyncio.wait({came})
        except asyncio.CancelledError:
            if came.done() and (late := came.result()) is not None:
                self._return(late)
            raise
        finally:
            self.waited = False
        message: Message | None = came.result() if came.done() else None
        if message is None or (status := status_of(message)) in _NONE_CAME:
            return None
        if status:
            description = (message.headers or {}).get("Description", status)
            raise Unavailable(f"{consumer} cannot be asked for tasks: {description}")
        return message

    def forgotten(self) -> None:
        """The server knows nothing of the request any more."""
        self._until = 0.0
        if not self._came.done():
            self._came.set_result(None)

    def _ask(self, consumer: str, expires_s: float) -> None:
        self._number += 1
        self._until = self._loop.time() + expires_s
        body = {"batch": 1, "expires": int(expires_s * 1e9)} if expires_s > 0 else {"batch": 1, "no_wait": True}
        subject = f"{API}.CONSUMER.MSG.NEXT.{consumer}"
        self._pipeline.tell(subject, msgspec.json.encode(body), f"{self._inbox}.{self._number}")

    def _on_message(self, message: Message) -> None:
        if status_of(message) and message.subject != f"{self._inbox}.{self._number}":
            return  # the end of an earlier request
        self._until = 0.0
        if self.waited and not self._came.done():
            self._came.set_result(message)
        else:
            self._return(message)

    def _return(self, message: Message) -> None:
        if not status_of(message):
            self._pipeline.tell(message.reply, GIVE_BACK)

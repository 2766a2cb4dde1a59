"""Asking for tasks: one pull for each that waits for one, so that nobody holds what it has no use for.

Source: NATS ADR-13. `bus.job_puller` asks ahead, for a worker that takes whatever comes; here a task that comes to
nobody would only be given back.
"""

from __future__ import annotations

import asyncio
import secrets

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
        self._inbox = f"{transport.inbox_prefix}.claim-{secrets.token_hex(6)}"
        self._loop = asyncio.get_running_loop()
        self._pulls: dict[str, _Pull] = {}
        self._number = 0
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> Claims:
        self._subscription = await self._transport.subscribe(f"{self._inbox}.*", self._on_message)
        self._transport.on_reconnect.append(self._on_reconnect)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.on_reconnect.remove(self._on_reconnect)
        if self._subscription is not None:
            await self._subscription.drain()

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
            try:
                await ready()
                message = await self._pulled(consumer, PULL_S if left_s is None else min(left_s, PULL_S))
            except (NoAnswer, Unavailable, Disconnected):
                ready.forget()
                message = None
                await asyncio.sleep(RETRY_S)
            if message is not None:
                return message
            if end is not None and (left_s := end - self._loop.time()) <= 0:
                raise NoTask(f"no task came to {consumer} within {timeout_s:g} s: ask again")

    async def _pulled(self, consumer: str, expires_s: float) -> Message | None:
        """What one pull brings; None if it ended without a task.

        Raises:
            Unavailable: the server refused it; perhaps the consumer is missing.
        """
        pull = self._spare(consumer) or self._ask(consumer, expires_s)
        pull.waited = True
        try:
            async with asyncio.timeout_at(pull.until + GRACE_S):
                await asyncio.wait({pull.came})
        except TimeoutError:
            self._pulls.pop(pull.number, None)  # the server has forgotten it, unless its answer came just now
        except asyncio.CancelledError:
            pull.waited = False
            if pull.came.done() and (message := pull.came.result()) is not None:
                self._return(message)
            raise
        message = pull.came.result() if pull.came.done() else None
        if message is None:
            return None
        status = status_of(message)
        if not status:
            return message
        if status in _NONE_CAME:
            return None
        raise Unavailable(f"{consumer} cannot be asked for tasks: {(message.headers or {}).get('Description', status)}")

    def _spare(self, consumer: str) -> _Pull | None:
        """A pull under way whose waiter went away."""
        now = self._loop.time()
        waiting = (pull for pull in self._pulls.values() if pull.consumer == consumer and not pull.waited)
        return next((pull for pull in waiting if pull.until > now), None)

    def _ask(self, consumer: str, expires_s: float) -> _Pull:
        self._number += 1
        now = self._loop.time()
        # Those whose end nobody waited for.
        self._pulls = {pull.number: pull for pull in self._pulls.values() if pull.until + GRACE_S > now}
        pull = self._pulls[str(self._number)] = _Pull(str(self._number), consumer, now + expires_s)
        body = {"batch": 1, "expires": int(expires_s * 1e9)} if expires_s > 0 else {"batch": 1, "no_wait": True}
        self._pipeline.tell(f"{API}.CONSUMER.MSG.NEXT.{consumer}", msgspec.json.encode(body), self._reply(pull))
        return pull

    def _reply(self, pull: _Pull) -> str:
        return f"{self._inbox}.{pull.number}"

    def _on_message(self, message: Message) -> None:
        pull = self._pulls.pop(message.subject.rpartition(".")[2], None)
        if pull is not None and pull.waited:
            pull.came.set_result(message)
        else:
            self._return(message)

    def _on_reconnect(self) -> None:
        """The server has forgotten all pulls."""
        pulls, self._pulls = self._pulls, {}
        for pull in pulls.values():
            pull.came.set_result(None)

    def _return(self, message: Message) -> None:
        if not status_of(message):
            self._pipeline.tell(message.reply, GIVE_BACK)


class _Pull:
    """A request for one task.

    Attributes:
        number: last token of its reply subject.
        consumer: which was asked.
        until: loop time at which the server ends it, s.
        came: what it brought; nothing if the server has forgotten it.
        waited: somebody waits for that.
    """

    __slots__ = ("came", "consumer", "number", "until", "waited")

    def __init__(self, number: str, consumer: str, until: float) -> None:
        self.number = number
        self.consumer = consumer
        self.until = until
        self.came: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self.waited = False

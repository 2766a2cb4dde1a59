"""Outgoing messages: synchronous code hands them over, and they leave together at the end of the loop tick.

When more is ahead of the socket than it takes, the rest waits here until it does, in order, while others run (nats-py
alone does not yield until 2 MiB are pending: a stall of 53 ms was seen).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from .errors import BusError, Disconnected
from .transport import Transport

BURST_BYTES = 256 * 1024  # published before others get their turn

DRAIN_S = 5.0  # a connection that is lost may stay so, and who stops does not
RETRY_S = 0.02  # between two looks at a socket that takes no more, or a connection that is lost

Failed = Callable[[BusError], None]
Headers = dict[str, str] | None

_log = structlog.get_logger(__name__)


class Outgoing:
    """The messages one connection still has to publish.

    Args:
        transport: the connection.
        collect: called before each burst, at the end of a loop tick in which `wake` was called; it may `send` what has
            gathered since.

    Attributes:
        backlog_bytes: payload bytes handed over and not yet given to the connection.
    """

    def __init__(self, transport: Transport, collect: Callable[[], None] | None = None) -> None:
        self._transport = transport
        self._collect = collect
        self.backlog_bytes = 0
        self._queue: deque[tuple[str, bytes, str, Failed | None, Headers]] = deque()
        self._awake = False
        self._idle = asyncio.Event()
        self._waiting: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def send(
        self, subject: str, payload: bytes, reply: str = "", failed: Failed | None = None, headers: Headers = None
    ) -> None:
        """Publish soon, after what was handed over before; when the connection is lost, after its return.

        Args:
            subject: where to.
            payload: the message.
            reply: subject of its answer.
            failed: called with the error if it could not be published, or is not to wait for a lost connection;
                without it the message waits, and other errors are logged.
            headers: of the message.
        """
        self._queue.append((subject, payload, reply, failed, headers))
        self.backlog_bytes += len(payload)
        if not self._awake:
            self.wake()

    def wake(self) -> None:
        """See to it that `collect` is called, and the queue published, at the end of this loop tick."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._burst)

    async def drain(self) -> None:
        """Return when all that was handed over has been given to the connection, or after `DRAIN_S`."""
        if self._awake:
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._idle.wait()

    def _burst(self) -> None:
        """Publish what is queued; if that is too much at once, go on when the socket has taken it."""
        try:
            room = self._publish()
        except BaseException:
            self._rest()  # a defect: what is still queued leaves with the next message, not never
            raise
        if not room:
            self._waiting = self._loop.create_task(self._wait())
        elif self._queue:
            self._loop.call_soon(self._burst)
        else:
            self._rest()

    def _publish(self) -> bool:
        """Hand over one burst; false if the socket should take it before the next."""
        if self._collect is not None:
            self._collect()
        transport, queue = self._transport, self._queue
        sent = 0
        while queue and sent < BURST_BYTES:
            subject, payload, reply, failed, headers = queue.popleft()
            try:
                transport.send(subject, payload, reply, headers)
            except Disconnected as error:
                if failed is None:
                    queue.appendleft((subject, payload, reply, failed, headers))
                    return False
                failed(error)
            except BusError as error:
                if failed is None:
                    _log.warning("message not published", subject=subject, bytes=len(payload), error=str(error))
                else:
                    failed(error)
            sent += len(payload)
            self.backlog_bytes -= len(payload)
        return transport.push()

    def _rest(self) -> None:
        self._awake = False
        self._idle.set()

    async def _wait(self) -> None:
        await self._transport.writable()
        if self._queue:  # the connection may be lost: then there is room, but not yet
            await asyncio.sleep(RETRY_S)
        self._burst()

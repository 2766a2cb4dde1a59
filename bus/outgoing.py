"""Outgoing messages: synchronous code hands them over, one task publishes them in order.

Callbacks and `call` cannot await, publishing can only be awaited. The task also gives way to others between large
messages: nats-py does not yield until 2 MiB are pending (a stall of 53 ms was seen).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from .errors import BusError
from .transport import Transport

YIELD_BYTES = 256 * 1024

Failed = Callable[[BusError], None]

_log = structlog.get_logger(__name__)


class Outgoing:
    """The messages one connection still has to publish.

    Attributes:
        collect: called before each burst, at the end of a loop tick in which `wake` was called; it may `send` what has
            gathered since.
    """

    def __init__(self, transport: Transport, collect: Callable[[], None] | None = None) -> None:
        self._transport = transport
        self._collect = collect
        self._queue: deque[tuple[str, bytes, str, Failed | None]] = deque()
        self._awake = False
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def send(self, subject: str, payload: bytes, reply: str = "", failed: Failed | None = None) -> None:
        """Publish soon, after what was handed over before.

        Args:
            subject: where to.
            payload: the message.
            reply: subject of its answer.
            failed: called with the error if it could not be published; without it the error is logged.
        """
        self._queue.append((subject, payload, reply, failed))
        if not self._awake:
            self.wake()

    def wake(self) -> None:
        """See to it that `collect` is called, and the queue published, at the end of this loop tick."""
        if not self._awake:
            self._awake = True
            self._task = self._loop.create_task(self._publish())

    async def drain(self) -> None:
        """Return when all that was handed over has been given to the connection."""
        while self._awake and self._task is not None:
            await asyncio.shield(self._task)

    async def _publish(self) -> None:
        publish, queue = self._transport.publish, self._queue
        if self._collect is not None:
            self._collect()
        burst = 0
        while queue:
            subject, payload, reply, failed = queue.popleft()
            try:
                await publish(subject, payload, reply)
            except BusError as error:
                if failed is None:
                    _log.warning("message not published", subject=subject, bytes=len(payload), error=str(error))
                else:
                    failed(error)
            burst += len(payload)
            if burst > YIELD_BYTES:
                burst = 0
                await asyncio.sleep(0)
        self._awake = False

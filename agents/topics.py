"""Topics: messages for whoever listens, without an answer.

Those that are published to one topic in one loop tick share a frame, as calls do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from typing import Any

import structlog

from ..bus.columns import pack_strings, unpack
from ..bus.errors import BadColumn, BusError, Busy, Closed, TooLarge
from ..bus.frames import Request, decode_request
from ..bus.frames import encode as encode_frame
from ..bus.outgoing import Outgoing
from ..bus.subjects import Subjects
from ..bus.transport import Message, Subscription, Transport
from .agent import Resident
from .call import Call
from .handler import TopicHandler
from .message import Encoded, encode

MOST_BATCH = 1024  # messages that one call of a handler of list[T] takes
BACKLOG_BYTES = 64 << 20  # published and not taken by the connection
FRAME_OVERHEAD = 4096
CANCEL_S = 1.0  # that a handler has for its `finally`

_log = structlog.get_logger(__name__)


class Publisher:
    """Publishes to topics over one connection.

    Args:
        transport: the connection.
        subjects: the bus's subject tree.
        frame_bytes: size at which a frame of one tick is sent before the next is begun.
    """

    def __init__(self, transport: Transport, subjects: Subjects, frame_bytes: int) -> None:
        self._subjects = subjects
        self._largest = transport.max_payload - FRAME_OVERHEAD
        self._frame_bytes = min(frame_bytes, self._largest)
        self._outgoing = Outgoing(transport, self._collect)
        self._gathered: dict[str, list[bytes]] = {}
        self._bytes: dict[str, int] = {}
        self._closed = False

    def publish(self, topic: str, message: Any) -> None:
        """Tell all who hear a topic, at the end of this loop tick.

        Raises:
            BadMessage: the message holds what cannot be sent.
            TooLarge: it is larger than the server takes.
            Busy: more is published than leaves.
            Closed: the bus was closed.
            ValueError: the topic is no name of one.
        """
        if self._closed:
            raise Closed("the bus is closed")
        subject = self._subjects.topic(topic)
        if "*" in topic or ">" in topic:
            raise ValueError(f"topic {topic!r}: publish to one, patterns are for those who hear")
        payload = encode(message)
        assert isinstance(payload, bytes)
        if len(payload) > self._largest:
            raise TooLarge(f"the message is {len(payload)} bytes, the server takes {self._largest}: publish less")
        if self._outgoing.backlog_bytes > BACKLOG_BYTES:
            raise Busy("more is published than the connection takes: publish less, or later")
        if self._bytes.get(subject, 0) + len(payload) > self._frame_bytes:
            self._send(subject)
        self._gathered.setdefault(subject, []).append(payload)
        self._bytes[subject] = self._bytes.get(subject, 0) + len(payload)
        self._outgoing.wake()

    async def close(self) -> None:
        """Publish what was handed over, and take no more. Idempotent."""
        self._closed = True
        await self._outgoing.drain()

    def _collect(self) -> None:
        for subject in list(self._gathered):
            self._send(subject)

    def _send(self, subject: str) -> None:
        messages = self._gathered.pop(subject, None)
        self._bytes.pop(subject, None)
        if messages:
            request = Request(v=1, n=len(messages), cols={"message": pack_strings(messages)})
            self._outgoing.send(subject, encode_frame(request))


class Ear:
    """What one agent of this process hears of one topic: message after message, or all that wait.

    A slow one loses the oldest of what waits; each loss is counted.

    Args:
        resident, handler: who hears.
        root: subject above all topics, with its dot.
        bus: what the handler asks through.
        context: in which the handler runs.

    Attributes:
        dropped: messages lost because too many waited.
        bad: messages that were not what the handler declares.
    """

    def __init__(self, resident: Resident, handler: TopicHandler, root: str, bus: Any, context: Context) -> None:
        self.dropped = 0
        self.bad = 0
        self._resident = resident
        self._handler = handler
        self._root = root
        self._bus = bus
        self._context = context
        self._waiting: deque[tuple[str, Encoded]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    async def start(self, transport: Transport, subjects: Subjects) -> None:
        """Listen."""
        handler = self._handler
        self._subscription = await transport.subscribe(
            subjects.topic(handler.topic), self._on_message, queue=handler.share or ""
        )

    async def stop(self, timeout_s: float) -> bool:
        """Hear no more, and return when what waits has been handled; false if it took too long and was let go.

        A handler that does not end though it is cancelled is left behind.
        """
        if self._subscription is not None:
            await self._subscription.drain()
        if self._task is None:
            return True
        await asyncio.wait({self._task}, timeout=timeout_s)
        ended = self._task.done()
        if not ended:
            self._waiting.clear()
            self._task.cancel()
            _, left = await asyncio.wait({self._task}, timeout=CANCEL_S)
            if left:
                _log.warning("handler of a topic goes on though it was cancelled", agent=self._name)
        return ended

    def _on_message(self, message: Message) -> None:
        topic = message.subject.removeprefix(self._root)
        try:
            request = decode_request(message.data)
            column = request.cols.get("message")
            values = None if column is None else unpack(column, request.n)
            if not isinstance(values, list):
                raise BadColumn("column 'message' is missing, or no strings")
        except BusError as error:
            self._count_bad(error)
            return
        for value in values:
            if len(self._waiting) >= max(1, self._resident.mailbox.most_waiting):
                self._waiting.popleft()
                self.dropped += 1
                if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th
                    _log.warning("message of a topic dropped", agent=self._name, topic=topic, count=self.dropped)
            self._waiting.append((topic, value))
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._handle_all())

    async def _handle_all(self) -> None:
        handler = self._handler
        own = asyncio.current_task()
        assert own is not None
        while self._waiting:
            topic, messages = self._take()
            if not messages:
                continue
            given = messages if handler.batch else messages[0]
            resident = self._resident
            call = Call(self._bus, None, topic, agent=resident.name, graph=resident.kind.context)
            run = handler.function(resident.agent, *handler.arguments(given, call))
            try:
                # A task for its context: what a handler sets there is nothing to the next message.
                await asyncio.get_running_loop().create_task(run, context=self._context.copy())
            except (Exception, asyncio.CancelledError):
                if own.cancelling():
                    raise
                _log.exception("handler of a topic failed", agent=self._name, topic=topic)

    def _take(self) -> tuple[str, list[Any]]:
        """The next message that is one, or a batch of them; and the topic of the last."""
        messages: list[Any] = []
        topic = ""
        most = MOST_BATCH if self._handler.batch else 1
        while self._waiting and len(messages) < most:
            topic, data = self._waiting.popleft()
            try:
                messages.append(self._handler.message.decode(data))
            except Exception as error:  # what a type of the handler's own raises for it, too
                self._count_bad(error)
        return topic, messages

    def _count_bad(self, error: Exception) -> None:
        self.bad += 1
        if self.bad & (self.bad - 1) == 0:
            _log.warning("message of a topic not understood", agent=self._name, count=self.bad, error=str(error))

    @property
    def _name(self) -> str:
        return f"{self._resident.name}.{self._handler.function.__name__}"

"""A bus without a server, inside one event loop: what most tests use.

It keeps NATS' rules (wildcards, queue groups, no-responders answers, limits, a lost connection) and leaves chance out:
the members of a queue group take turns, and messages reach their callbacks in the order in which they were published.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from .errors import BadParameter, Closed, Disconnected, TooLarge
from .transport import OUTBOX_BYTES, Callback, check_interest, check_length, header_block

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryMessage:
    """One received message."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None = None


class MemoryBus:
    """What connections of one bus share, in place of a server.

    Args:
        max_payload: largest message, headers included, in bytes.
    """

    def __init__(self, max_payload: int = 1024 * 1024) -> None:
        self.max_payload = max_payload
        self._subscriptions: list[MemorySubscription] = []
        self._turns: dict[str, int] = defaultdict(int)
        self._connected = 0

    def connect(self, inbox_prefix: str = "_INBOX") -> MemoryConnection:
        """A new connection; its inbox is numbered by the order of these calls."""
        self._connected += 1
        return MemoryConnection(self, f"{inbox_prefix}.memory{self._connected}")

    def drop_connection(self, connection: MemoryConnection) -> None:
        """Lose a connection: it receives nothing more, and keeps what it publishes until `restore`."""
        connection.lost = True
        for subscription in connection.subscriptions:
            self.remove(subscription)

    def restore(self, connection: MemoryConnection) -> None:
        """Give a lost connection back its subscriptions, send what it kept, then call its `on_reconnect`."""
        connection.lost = False
        for subscription in connection.subscriptions:
            self.add(subscription)
        kept, connection.outbox = connection.outbox, []
        for message in kept:
            self.route(connection, message)
        for restored in connection.on_reconnect:
            asyncio.get_running_loop().call_soon(_run, "on_reconnect", restored)

    def add(self, subscription: MemorySubscription) -> None:
        """Let messages come to a subscription."""
        self._subscriptions.append(subscription)

    def remove(self, subscription: MemorySubscription) -> None:
        """Let no message come any more, if any did."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def route(self, sender: MemoryConnection, message: MemoryMessage) -> None:
        """Hand a message to every subscription that matches, and to one of each queue group."""
        tokens = message.subject.split(".")
        receivers: list[MemorySubscription] = []
        groups: dict[str, list[MemorySubscription]] = defaultdict(list)
        for subscription in self._subscriptions:
            if subscription.matches(tokens):
                (groups[subscription.queue] if subscription.queue else receivers).append(subscription)
        for queue, members in groups.items():
            receivers.append(members[self._turns[queue] % len(members)])
            self._turns[queue] += 1
        if not receivers and message.reply:
            # As the server does: to whoever sent the request, if it listens where it wants its answer.
            asked = message.reply.split(".")
            receivers = [each for each in sender.subscriptions if each.matches(asked)][:1]
            message = MemoryMessage(message.reply, "", b"", {"Status": "503"})
        for subscription in receivers:
            subscription.offer(message)


class MemoryConnection:
    """A `Transport` on a `MemoryBus`; its `connect` makes one.

    Attributes:
        lost: the bus dropped it and did not restore it yet.
        outbox: what was published meanwhile.
    """

    def __init__(self, bus: MemoryBus, inbox_prefix: str) -> None:
        self.max_payload = bus.max_payload
        self.inbox_prefix = inbox_prefix
        self.on_reconnect: list[Callable[[], None]] = []
        self.lost = False
        self.outbox: list[MemoryMessage] = []
        self.subscriptions: list[MemorySubscription] = []
        self._bus = bus
        self._closed = False

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message; while the connection is lost, keep it as far as the limit of a real one goes."""
        self.send(subject, payload, reply, headers)

    def send(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send one message; nothing waits for `push` here."""
        self._check_open()
        if not subject:
            raise BadParameter("a message needs a subject")
        check_length(subject, reply)
        if len(payload) + (len(header_block(headers)) if headers is not None else 0) > self.max_payload:
            raise TooLarge(f"headers and payload exceed {self.max_payload} bytes, the bus's max_payload: send less")
        message = MemoryMessage(subject, reply, bytes(payload), dict(headers) if headers else None)
        if not self.lost:
            self._bus.route(self, message)
        elif sum(len(kept.data) for kept in self.outbox) + len(payload) > OUTBOX_BYTES:
            raise Disconnected("the connection is lost and its buffer is full: try again later")
        else:
            self.outbox.append(message)

    def push(self) -> bool:
        """Nothing is ever ahead."""
        return True

    async def writable(self) -> None:
        """Nothing is ever ahead."""

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> MemorySubscription:
        """Receive messages of `subject`; at once, or when a lost connection is restored."""
        self._check_open()
        check_interest(subject, queue)
        subscription = MemorySubscription(self._bus, self, subject, callback, queue)
        self.subscriptions.append(subscription)
        if not self.lost:
            self._bus.add(subscription)
        return subscription

    async def flush(self) -> None:
        """Return when everything published before, by whichever connection, has reached its callbacks."""
        self._check_open()
        if self.lost:
            raise Disconnected("the connection is lost: try again later")
        await _delivered()

    async def close(self) -> None:
        """Deliver what was published, then close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await _delivered()
        for subscription in list(self.subscriptions):
            await subscription.unsubscribe()

    def cut(self) -> None:
        """Lose the connection; it is restored in the next turn of the loop."""
        if not self.lost:
            self._bus.drop_connection(self)
            asyncio.get_running_loop().call_soon(self._bus.restore, self)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the connection was closed by this process")


class MemorySubscription:
    """One subscription of a connection."""

    def __init__(
        self, bus: MemoryBus, connection: MemoryConnection, subject: str, callback: Callback, queue: str
    ) -> None:
        self.queue = queue
        self._bus = bus
        self._connection = connection
        self._tokens = subject.split(".")
        self._subject = subject
        self._callback = callback
        self._live = True

    def matches(self, tokens: list[str]) -> bool:
        """Whether a message of this subject comes here."""
        own = self._tokens
        if own[-1] == ">":
            own = own[:-1]
            if len(tokens) <= len(own):
                return False
        elif len(tokens) != len(own):
            return False
        return all(mine in ("*", its) for mine, its in zip(own, tokens, strict=False))

    def offer(self, message: MemoryMessage) -> None:
        """Let the loop hand the message to the callback, after those offered before."""
        asyncio.get_running_loop().call_soon(self._deliver, message)

    async def unsubscribe(self) -> None:
        """Stop now; messages not yet handed to the callback are lost. Idempotent."""
        self._live = False
        self._leave()

    async def drain(self) -> None:
        """Take no new messages; return when every message already received has been handed to the callback."""
        self._leave()
        await _delivered()
        self._live = False

    def _leave(self) -> None:
        self._bus.remove(self)
        if self in self._connection.subscriptions:
            self._connection.subscriptions.remove(self)

    def _deliver(self, message: MemoryMessage) -> None:
        if self._live:
            _run(self._subject, self._callback, message)


def _run(name: str, callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    # Cancelled as well, as on a real connection: the result of a cancelled future.
    except (Exception, asyncio.CancelledError) as error:
        _log.warning("callback failed", name=name, exc_info=error)


async def _delivered() -> None:
    """Return when the loop has run what it was given before this call."""
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_soon(turn.set_result, None)
    # Shielded: a flush that is cancelled leaves a future that can still be set.
    await asyncio.shield(turn)

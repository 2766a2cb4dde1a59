"""A connection that loses, delays, doubles and reorders messages, and is cut, as rules say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Protocol, runtime_checkable

import structlog

from .errors import BusError
from .faults import Faults, Rule
from .transport import Callback, Message, Subscription, Transport

REORDER_S = 0.02  # longest a message is held back for the next one to overtake it
SPARED = "$"  # begins the subjects of the server's own services

_log = structlog.get_logger(__name__)


@runtime_checkable
class Cuttable(Protocol):
    """A connection that can be lost on purpose."""

    def cut(self) -> None:
        """Lose the connection as if the network did; it comes back by itself."""


class FaultyTransport:
    """A `Transport` that passes everything on, but for what goes wrong.

    Messages sent, and those that each subscription receives, are subject to its faults, but not where the subject
    begins with `$`. What is held back was sent as far as its sender can tell: if it cannot be later, it is lost.

    Args:
        transport: the connection.
        faults: what goes wrong; may be replaced at any time.

    Attributes:
        faults: what goes wrong now.
        injected: how often something did, by kind.
    """

    def __init__(self, transport: Transport, faults: Faults) -> None:
        self.max_payload = transport.max_payload
        self.inbox_prefix = transport.inbox_prefix
        self.on_reconnect = transport.on_reconnect
        self.faults = faults
        self.injected: Counter[str] = Counter()
        self._transport = transport
        self._outbound = _Direction(self)
        self._inbound = _Direction(self)
        self.on_reconnect.append(self._restored)

    @property
    def lost(self) -> bool:
        """Whether the connection is lost, and not restored yet."""
        return self._transport.lost

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message, as every transport."""
        self.send(subject, payload, reply, headers)
        if not self.push():
            await self.writable()

    def send(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Line a message up for the next `push`, or hold it back."""
        if subject.startswith(SPARED):
            self._transport.send(subject, payload, reply, headers)
        else:
            self._outbound.take(lambda: self._transport.send(subject, payload, reply, headers), self._send_late)

    def push(self) -> bool:
        """Hand what was sent to the socket."""
        return self._transport.push()

    async def writable(self) -> None:
        """Wait until the socket has taken most of what was pushed."""
        await self._transport.writable()

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Receive messages of `subject`."""
        subscription = FaultySubscription(self._inbound, callback)
        subscription.inner = await self._transport.subscribe(subject, subscription.on_message, queue=queue)
        return subscription

    async def flush(self) -> None:
        """Return when the server has processed everything that was sent and not held back."""
        await self._transport.flush()

    async def close(self) -> None:
        """Send what is held back, then close the connection."""
        self.release()
        await self._transport.close()

    def release(self) -> None:
        """Let go at once of everything that is held back, in both directions."""
        self._outbound.release()
        self._inbound.release()

    def inject(self, kind: str) -> None:
        """Count a fault, and cut the connection if that is what it is."""
        self.injected[kind] += 1
        if kind == "disconnect" and isinstance(self._transport, Cuttable):
            self._transport.cut()

    def _restored(self) -> None:
        self.max_payload = self._transport.max_payload

    def _send_late(self, send: Callable[[], None]) -> None:
        try:
            send()
            self._transport.push()
        except BusError as error:
            _log.warning("message held back is lost", error=str(error))


class FaultySubscription:
    """A subscription of a `FaultyTransport`.

    Attributes:
        inner: that of the connection, once it is made.
    """

    inner: Subscription

    def __init__(self, inbound: _Direction, callback: Callback) -> None:
        self._inbound = inbound
        self._callback = callback
        self._live = True

    def on_message(self, message: Message) -> None:
        """Hand a message to the callback, or hold it back."""
        if message.subject.startswith(SPARED):
            self._callback(message)
        else:
            self._inbound.take(lambda: self._deliver(message), _deliver_late)

    async def unsubscribe(self) -> None:
        """Stop now; messages held back are lost."""
        self._live = False
        await self.inner.unsubscribe()

    async def drain(self) -> None:
        """Take no new messages; return when every message already received has been handed to the callback."""
        await self.inner.drain()
        self._inbound.release()
        self._live = False

    def _deliver(self, message: Message) -> None:
        if self._live:
            self._callback(message)


_Pass = Callable[[], None]
"""Sends or delivers one message."""

_PassLate = Callable[[_Pass], None]
"""Does so from a timer, where nobody takes what it raises."""


class _Held:
    """A message held back; its timer lets it go."""

    def __init__(self, go: _Pass, late: _PassLate, seconds: float, end: Callable[[_Held], None]) -> None:
        self.go = go
        self.late = late
        self.timer = asyncio.get_running_loop().call_later(seconds, end, self)


class _Direction:
    """The messages of one direction, sent or received."""

    def __init__(self, owner: FaultyTransport) -> None:
        self._owner = owner
        self._held: dict[_Held, None] = {}
        self._overtaken: _Held | None = None

    def take(self, go: _Pass, late: _PassLate) -> None:
        """Pass a message on, or do with it what a rule says."""
        rule = self._owner.faults.draw(monotonic())
        before, self._overtaken = self._overtaken, None
        try:
            if rule is None or (rule.kind == "reorder" and before is not None):  # it is the one that overtakes
                go()
            else:
                self._owner.inject(rule.kind)
                self._misbehave(rule, go, late)
        finally:
            if before is not None:
                self._let_go(before)

    def release(self) -> None:
        """Pass on everything that is held back, in the order in which it came."""
        for held in list(self._held):
            self._let_go(held)

    def _misbehave(self, rule: Rule, go: _Pass, late: _PassLate) -> None:
        match rule.kind:
            case "drop":
                pass
            case "delay":
                self._hold(go, late, rule.seconds)
            case "reorder":
                self._overtaken = self._hold(go, late, REORDER_S)
            case "duplicate":
                go()
                go()
            case _:
                go()

    def _hold(self, go: _Pass, late: _PassLate, seconds: float) -> _Held:
        held = _Held(go, late, seconds, self._let_go)
        self._held[held] = None
        return held

    def _let_go(self, held: _Held) -> None:
        held.timer.cancel()
        if self._overtaken is held:
            self._overtaken = None
        if held in self._held:
            del self._held[held]
            held.late(held.go)


def _deliver_late(deliver: _Pass) -> None:
    try:
        deliver()
    # Cancelled as well, as on every connection: the result of a cancelled future.
    except (Exception, asyncio.CancelledError) as error:
        _log.warning("callback failed", exc_info=error)

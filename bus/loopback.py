"""A connection on which this process can ask itself: requests that are handed to a service without the server.

The service sees ordinary messages, and its answers come back the same way, so what is asked here shares batches with
what came over the wire. Everything else goes to the connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from .nats_reader import Incoming
from .transport import Callback, Subscription, Transport

Answer = Callable[[str, bytes, dict[str, str] | None], None]
"""Takes an answer: what the caller named it, payload and headers."""


class Loopback:
    """A `Transport` that keeps messages of its own process at home.

    Args:
        transport: the connection for all others.
        prefix: an inbox prefix that the service may answer, by default the connection's; nothing is ever sent to it.

    Attributes:
        on_answer: takes the answers of what `ask` handed over.
    """

    def __init__(self, transport: Transport, prefix: str = "") -> None:
        self.max_payload = transport.max_payload
        self.inbox_prefix = transport.inbox_prefix
        self.on_reconnect = transport.on_reconnect
        self.on_answer: Answer = lambda name, payload, headers: None
        self._transport = transport
        self._home = f"{prefix or transport.inbox_prefix}.home-{secrets.token_hex(12)}."
        self._served: dict[str, Callback] = {}
        self.on_reconnect.append(self._restored)

    @property
    def lost(self) -> bool:
        """Whether the connection is lost, and not restored yet."""
        return self._transport.lost

    def serves(self, subject: str) -> bool:
        """Whether a queue group's subscription of this very subject was made here."""
        return subject in self._served

    def ask(self, subject: str, payload: bytes, name: str) -> None:
        """Hand a request to whoever serves `subject` here; `name` tells its answers apart."""
        self._served[subject](Incoming(subject, self._home + name, payload, None))

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message, as every transport."""
        if subject.startswith(self._home):
            self.send(subject, payload, reply, headers)
        else:
            await self._transport.publish(subject, payload, reply, headers)

    def send(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Line a message up for the next `push`, or hand an answer over at once."""
        if subject.startswith(self._home):
            self.on_answer(subject[len(self._home) :], payload, headers)
        else:
            self._transport.send(subject, payload, reply, headers)

    def push(self) -> bool:
        """Hand what was sent to the socket."""
        return self._transport.push()

    async def writable(self) -> None:
        """Wait until the socket has taken most of what was pushed."""
        await self._transport.writable()

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Receive messages of `subject`, those that `ask` is given too if it is a queue group's."""
        subscription = await self._transport.subscribe(subject, callback, queue=queue)
        if queue:
            self._served[subject] = callback
        return subscription

    async def flush(self) -> None:
        """Return when the server has processed everything published and subscribed so far."""
        await self._transport.flush()

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    def _restored(self) -> None:
        self.max_payload = self._transport.max_payload

"""What the rest of the bus needs of a connection: publish, subscribe, flush, drain, close.

`connection.NatsConnection` is the real one, `memory.MemoryConnection` the one most tests use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Message(Protocol):
    """One received message; nats-py's own `Msg` has this shape, so nothing is copied on the way in."""

    @property
    def subject(self) -> str: ...
    @property
    def reply(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> dict[str, str] | None: ...


# Synchronous on purpose: a callback can only enqueue. One that awaited a batch would make batches of one, because
# callbacks of a subscription run one after another.
Callback = Callable[[Message], None]


class Subscription(Protocol):
    async def unsubscribe(self) -> None:
        """Stop now; messages not yet handed to the callback are lost."""

    async def drain(self) -> None:
        """Take no new messages; return when every message already received has been handed to the callback."""


class Transport(Protocol):
    """A connection to the bus.

    Attributes:
        max_payload: largest message, headers included, in bytes.
        inbox_prefix: subject prefix under which this connection receives its replies, without a trailing dot.
        on_reconnect: called (no arguments) each time a lost connection has been restored, subscriptions included.
    """

    max_payload: int
    inbox_prefix: str
    on_reconnect: list[Callable[[], None]]

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message.

        Raises:
            TooLarge: headers and payload together exceed `max_payload`; nothing was sent.
            Closed: the connection was closed by this process.
        """

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Receive messages of `subject` (wildcards `*` and `>`), as one of a queue group if `queue` is given."""

    async def flush(self) -> None:
        """Return when the server has processed everything published and subscribed so far."""

    async def close(self) -> None:
        """Flush what was published, then close. Idempotent."""


def no_responders(message: Message) -> bool:
    """True for the server's answer that nobody listens to the subject of a request (status 503, empty body)."""
    headers = message.headers
    return headers is not None and not message.data and headers.get("Status") == "503"

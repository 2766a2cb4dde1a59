"""What the rest of the bus needs of a connection: publish, subscribe, flush, drain, close.

`connection.NatsConnection` is the real one, `memory.MemoryConnection` the one most tests use.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from .errors import BadParameter

# What senders may be ahead of the socket before they should wait, and, while disconnected, before they are refused.
OUTBOX_BYTES = 2 * 1024 * 1024
LONGEST_SUBJECTS = 4000  # bytes, of a message; the server ends the connection over a line of 4,096

_INTEREST = re.compile(r"(?:(?:\*|[^\s.*>]+)\.)*(?:\*|>|[^\s.*>]+)")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans("\r\n", "  ")


class Message(Protocol):
    """One received message."""

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

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be lost, and not restored yet."""

    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send one message, and wait while too much is ahead of it.

        Raises:
            TooLarge: headers and payload together exceed `max_payload`; nothing was sent.
            BadParameter: there is no subject, or too long a one, or a header's name is not allowed.
            Disconnected: the connection is lost and the buffer for later is full; nothing was sent.
            Closed: the connection was closed by this process.
        """

    def send(self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Line a message up for the next `push`; raises as `publish` does."""

    def push(self) -> bool:
        """Hand what was sent to the socket; false if so much is ahead of it that the caller should await `writable`."""

    async def writable(self) -> None:
        """Wait until the socket has taken most of what was pushed."""

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Receive messages of `subject` (wildcards `*` and `>`), as one of a queue group if `queue` is given."""

    async def flush(self) -> None:
        """Return when the server has processed everything published and subscribed so far.

        Raises:
            ConnectionFailed: the server does not let this user subscribe to what it did; the message names it.
            Disconnected: the connection is lost.
            Closed: the connection was closed by this process.
        """

    async def close(self) -> None:
        """Flush what was published, then close. Idempotent."""


def no_responders(message: Message) -> bool:
    """True for the server's answer that nobody listens to the subject of a request (status 503, empty body)."""
    headers = message.headers
    return headers is not None and not message.data and headers.get("Status") == "503"


def check_length(subject: str, reply: str) -> None:
    """Raise BadParameter if the server would close the connection for the length of a message's subjects."""
    # A character is four bytes at most: few subjects need to be encoded to be measured.
    if 4 * (len(subject) + len(reply)) > LONGEST_SUBJECTS:
        size = len(subject.encode()) + len(reply.encode())
        if size > LONGEST_SUBJECTS:
            raise BadParameter(
                f"subject {subject[:40]!r}… and its reply's are {size} bytes, the bus takes {LONGEST_SUBJECTS}: use "
                "shorter names"
            )


def check_interest(subject: str, queue: str) -> None:
    """Raise BadParameter unless `subject` may be subscribed to; the server would close the connection for it."""
    if not _INTEREST.fullmatch(subject):
        raise BadParameter(
            f"subject {subject!r}: use tokens separated by dots, `*` for one and a last `>` for the rest"
        )
    if re.search(r"\s", queue):
        raise BadParameter(f"queue group {queue!r}: use a name without spaces")


def header_block(headers: dict[str, str]) -> bytes:
    """Headers as they go over the wire; their bytes count towards `max_payload`.

    Raises:
        BadParameter: a name is not made of token characters (RFC 7230).
    """
    lines = ["NATS/1.0\r\n"]
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise BadParameter(f"header {name!r}: use letters, digits and `-` in its name")
        lines.append(f"{name}: {value.strip().translate(_NEWLINES)}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()

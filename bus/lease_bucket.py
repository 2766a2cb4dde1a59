"""The key-value bucket in which leases are kept: read, compare and set, erase, and hints of changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec

from .bucket import DELETED, Bucket, Hints
from .errors import BadParameter
from .jetstream import TTL, JetStream
from .subjects import Subjects
from .transport import Message

MARKER_TTL_S = 1


class LeaseBucket:
    """The keys of a bus's leases of one kind.

    Attributes:
        config: of its stream.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects, kind: str) -> None:
        self._keys = Bucket(jetstream, subjects, kind, "lease")
        self.config: dict[str, Any] = self._keys.config(MARKER_TTL_S)

    async def ensure(self) -> None:
        """Make the bucket, unless it is there. Raises as `JetStream.ensure_stream`."""
        await self._keys.jetstream.ensure_stream(self.config)

    async def read(self, name: str) -> Found:
        """What is there now. Raises as `JetStream.last`, and BadParameter if it is no record."""
        stored = await self._keys.read(name)
        return Found(0, None) if stored is None else Found(stored.sequence, _record(name, stored.data))

    async def write(self, name: str, record: Record, expected: int) -> int:
        """Store a record for its time to live, after the sequence `expected` (0: nothing); returns its own.

        Raises:
            Overtaken: the last sequence is another one.
            Others as `JetStream.publish`.
        """
        # A write without a time to live would stay for ever, and one in fractions is cut to whole seconds.
        return await self._keys.write(name, msgspec.json.encode(record), {TTL: str(record.ttl_s)}, expected)

    async def erase(self, name: str, expected: int) -> None:
        """Let others have the lease at once. Raises as `write`."""
        await self._keys.write(name, b"", {TTL: "1", **DELETED}, expected)

    @asynccontextmanager
    async def changes(self, name: str) -> AsyncIterator[Changes]:
        """Hints that a lease may have changed: the server's, and each reconnect, because some may have been missed."""
        self._keys.subject(name)
        changes = Changes()
        async with self._keys.tell(changes, name):
            yield changes


class Held(NamedTuple):
    """Who holds a lease: the holder's name, and its fencing token, larger than that of every holder before."""

    holder: str
    token: int


class Record(msgspec.Struct, frozen=True):
    """What the key of a lease holds, as JSON. `token` is 0 in the first record, whose sequence is the token."""

    holder: str
    nonce: str
    ttl_s: int
    token: int


class Found(NamedTuple):
    """What the key of a lease holds, and the sequence a write must name; no record after an expiry or a release."""

    sequence: int
    record: Record | None

    @property
    def token(self) -> int:
        return self.record.token or self.sequence if self.record is not None else 0

    @property
    def held(self) -> Held | None:
        return Held(self.record.holder, self.token) if self.record is not None else None


class Changes(Hints):
    """Wakes who waits for a lease to change hands.

    Attributes:
        known: who held it when that was last told; renewals by the same wake nobody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: Held | None = None

    def on_event(self, message: Message) -> None:
        """The server told of a stored change."""
        # What makes no sense is no reason to look away.
        with suppress(BadParameter, ValueError):
            sequence = int((message.headers or {}).get("Nats-Sequence", 0))
            if self.known is not None and Found(sequence, _record(message.subject, message.data)).held == self.known:
                return
        self.set()

    async def after(self, found: Found) -> None:
        """Return when it may have changed since `found` was read."""
        self.known = found.held
        await self.wait()


def _record(name: str, data: bytes) -> Record | None:
    if not data:
        return None
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError as error:
        raise BadParameter(f"the key of the lease {name} holds something else ({error}): delete it") from error

"""The key-value bucket in which leases are kept: read, compare and set, erase, and hints of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import msgspec

from .errors import BadParameter
from .jetstream import EXPECTED_LAST, TTL, WRONG_LAST_SEQUENCE, JetStream, Refused
from .subjects import Subjects, check_tokens
from .transport import Message

MARKER_TTL_NS = 1_000_000_000
# Who waits for a change looks this often though nothing seems to have happened: a hint may be lost.
LOOK_AGAIN_S = 5.0


class LeaseBucket:
    """The keys of a bus's leases.

    The server tells of each stored change, its own expiry markers included, on a subject of ours (`republish`). That is
    a hint, which may be lost or made up: what holds is read.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects) -> None:
        self._jetstream = jetstream
        self._bus = subjects.root
        self._name = f"{subjects.prefix}-{subjects.namespace}-leases".replace(".", "-")
        self._stream = f"KV_{self._name}"
        self._events = f"{subjects.prefix}.leases.v1.{subjects.namespace}"

    async def ensure(self) -> None:
        """Make the bucket, unless it is there. Raises as `JetStream.ensure_stream`."""
        await self._jetstream.ensure_stream(
            {
                "name": self._stream,
                # Two buses whose names differ in a dot only would share a bucket: the description tells them apart.
                "description": f"leases of {self._bus}",
                "subjects": [f"$KV.{self._name}.>"],
                "storage": "file",
                "max_msgs_per_subject": 1,
                "discard": "new",
                "deny_delete": True,
                "allow_rollup_hdrs": True,
                "allow_msg_ttl": True,
                # Without it an expiry happens in silence.
                "subject_delete_marker_ttl": MARKER_TTL_NS,
                "republish": {"src": f"$KV.{self._name}.>", "dest": f"{self._events}.>"},
            }
        )

    async def read(self, name: str) -> Found:
        """What is there now. Raises as `JetStream.last`, and BadParameter if it is no record."""
        stored = await self._jetstream.last(self._stream, self._key(name))
        return Found(0, None) if stored is None else Found(stored.sequence, _record(name, stored.data))

    async def write(self, name: str, record: Record, expected: int) -> int:
        """Store a record for its time to live, after the sequence `expected` (0: nothing); returns its own.

        Raises:
            Overtaken: the last sequence is another one.
            Others as `JetStream.publish`.
        """
        # A write without a time to live would stay for ever, and one in fractions is cut to whole seconds.
        return await self._put(name, msgspec.json.encode(record), {TTL: str(record.ttl_s)}, expected)

    async def erase(self, name: str, expected: int) -> None:
        """Let others have the lease at once. Raises as `write`."""
        await self._put(name, b"", {TTL: "1", "KV-Operation": "DEL"}, expected)

    @asynccontextmanager
    async def changes(self, name: str) -> AsyncIterator[Changes]:
        """Hints that a lease may have changed: the server's, and each reconnect, because some may have been missed."""
        self._key(name)
        transport = self._jetstream.transport
        changes = Changes()
        subscription = await transport.subscribe(f"{self._events}.{name}", changes.on_event)
        transport.on_reconnect.append(changes.set)
        try:
            yield changes
        finally:
            transport.on_reconnect.remove(changes.set)
            await subscription.unsubscribe()

    async def _put(self, name: str, payload: bytes, headers: dict[str, str], expected: int) -> int:
        try:
            return await self._jetstream.publish(self._key(name), payload, {**headers, EXPECTED_LAST: str(expected)})
        except Refused as refused:
            if refused.err_code in WRONG_LAST_SEQUENCE:
                raise Overtaken from refused
            raise

    def _key(self, name: str) -> str:
        check_tokens(name, "lease")
        return f"$KV.{self._name}.{name}"


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


class Overtaken(Exception):
    """The key's last sequence is not the one that was named; nothing was written."""


class Changes:
    """Wakes who waits for a lease to change hands.

    Attributes:
        known: who held it when that was last told; renewals by the same wake nobody.
    """

    def __init__(self) -> None:
        self.known: Held | None = None
        self._event = asyncio.Event()
        self.set = self._event.set
        self.clear = self._event.clear

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
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._event.wait()


def _record(name: str, data: bytes) -> Record | None:
    if not data:
        return None
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError as error:
        raise BadParameter(f"the key of the lease {name} holds something else ({error}): delete it") from error

"""A key-value bucket of JetStream: read, compare and set, and hints of changes.

The bucket is made by hand rather than through nats-py: its `update` drops the time to live of a key, and its `create`
does not see the marker that an expired key leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from .errors import BadParameter
from .jetstream import EXPECTED_LAST, WRONG_LAST_SEQUENCE, JetStream, Refused, Stored
from .subjects import Subjects, check_tokens
from .transport import Message

OPERATION = "KV-Operation"
DELETED = {OPERATION: "DEL"}
# Who waits for a change looks this often though nothing seems to have happened: a hint may be lost.
LOOK_AGAIN_S = 5.0


class Overtaken(Exception):
    """The key's last sequence is not the one that was named; nothing was written."""


class Bucket:
    """The keys of one kind on a bus.

    The server tells of each stored change, its own expiry markers included, on a subject of ours (`republish`). That is
    a hint, which may be lost or made up: what holds is read.

    Args:
        jetstream: how to ask the server.
        subjects: the bus.
        kind: the last word of the bucket's name, `leases`.
        key: what a key is called in errors.

    Attributes:
        jetstream: as given.
        stream: name of the stream that holds the bucket.
    """

    def __init__(self, jetstream: JetStream, subjects: Subjects, kind: str, key: str) -> None:
        self.jetstream = jetstream
        self._bus = subjects.root
        self._kind = kind
        self._what = key
        self._name = subjects.stream(kind)
        self.stream = f"KV_{self._name}"
        self._events = subjects.kept(kind)

    def config(self, marker_s: int, **more: Any) -> dict[str, Any]:
        """The bucket as JetStream's configuration of a stream.

        Args:
            marker_s: how long the marker of an expired key stays, s; without one an expiry happens in silence.
            more: further keys of the configuration.
        """
        return {
            "name": self.stream,
            # Two buses whose names differ in a dot only would share a bucket: the description tells them apart.
            "description": f"{self._kind} of {self._bus}",
            "subjects": [f"$KV.{self._name}.>"],
            "storage": "file",
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": marker_s * 10**9,
            "republish": {"src": f"$KV.{self._name}.>", "dest": f"{self._events}.>"},
            **more,
        }

    async def read(self, key: str) -> Stored | None:
        """What is there now, a marker included. Raises as `JetStream.last`, and ValueError if it is no key."""
        return await self.jetstream.last(self.stream, self.subject(key))

    async def write(self, key: str, payload: bytes, headers: dict[str, str], expected: int) -> int:
        """Store a value after the sequence `expected` (0: nothing); returns its own.

        Raises:
            Overtaken: the last sequence is another one.
            Others as `JetStream.publish`.
        """
        try:
            return await self.jetstream.publish(self.subject(key), payload, {**headers, EXPECTED_LAST: str(expected)})
        except Refused as refused:
            if refused.err_code in WRONG_LAST_SEQUENCE:
                raise Overtaken from refused
            raise

    @asynccontextmanager
    async def tell(self, hints: Hints, key: str) -> AsyncIterator[None]:
        """Wake `hints` at each change of the keys that `key` stands for, and at each reconnect: some may be missed."""
        transport = self.jetstream.transport
        subscription = await transport.subscribe(f"{self._events}.{key}", hints.on_event)
        transport.on_reconnect.append(hints.set)
        try:
            yield
        finally:
            transport.on_reconnect.remove(hints.set)
            await subscription.unsubscribe()

    def subject(self, key: str) -> str:
        """The subject of a key. Raises ValueError if it is none."""
        check_tokens(key, self._what)
        return f"$KV.{self._name}.{key}"

    def key(self, subject: str) -> str:
        """The key of a subject."""
        return subject.removeprefix(f"$KV.{self._name}.")


class Hints:
    """Wakes who waits for a key to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.set = self._event.set
        self.clear = self._event.clear

    def on_event(self, message: Message) -> None:
        """The server told of a stored change."""
        self.set()

    async def wait(self) -> None:
        """Return when something may have changed since `clear`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._event.wait()


def check_ttl(ttl_s: int) -> None:
    """Raise BadParameter unless the server has such a time to live: one in fractions is cut to whole seconds."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or ttl_s < 1:
        raise BadParameter(f"ttl_s is {ttl_s!r}: the server counts whole seconds, 1 or more")

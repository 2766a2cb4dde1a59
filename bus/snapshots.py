"""Snapshots: values of any size, kept in parts on a JetStream stream until a later one takes their place.

<kept>.<name>.<id>.<number>    a part, from 0 on
<kept>.<name>.<id>.end         how many parts there are, and their checksum

An id is made for one `put` alone, so what a put that failed has left is never taken for a part of another.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec

from .errors import BusError
from .jetstream import JetStream, NoAnswer
from .pipeline import Pipeline
from .subjects import Subjects, check_tokens

SNAPSHOT = "snapshot"
# Of parts that are not acknowledged yet. On loopback 0.9 GB/s from 2 to 4 MiB, no more beyond; what else the connection
# sends waits behind them: appends to a log at most 4 ms at 2 MiB, 10 at 4, 37 at 32.
IN_FLIGHT_BYTES = 4 * 2**20
PATIENCE_S = 10.0  # for a replica that stays behind
RETRY_S = 0.1
FORGET_S = 5.0

_END = "end"


class Incomplete(BusError):
    """A snapshot is not there, or a part of it is missing or was changed: recover from another."""

    code = "incomplete"


class _End(msgspec.Struct, frozen=True):
    """The last message of a snapshot.

    Attributes:
        parts: how many precede it.
        crc32: of their bytes, one part after another.
    """

    parts: int
    crc32: int


class Snapshots:
    """The snapshots of a bus; `open` makes the stream that holds all of them.

    Args:
        jetstream: how they are read; it stays open when this ends.
        pipeline: how they are written; likewise.
        subjects: the bus.
    """

    def __init__(self, jetstream: JetStream, pipeline: Pipeline, subjects: Subjects) -> None:
        self._jetstream = jetstream
        self._pipeline = pipeline
        self._stream = subjects.stream(SNAPSHOT)
        self._root = subjects.kept(SNAPSHOT)

    @classmethod
    async def open(cls, jetstream: JetStream, pipeline: Pipeline, subjects: Subjects) -> Snapshots:
        """Make the stream, unless it is there. Raises as `JetStream.ensure_stream`."""
        await jetstream.ensure_stream(snapshot_stream(subjects))
        return cls(jetstream, pipeline, subjects)

    async def put(self, name: str, parts: AsyncIterable[bytes] | Iterable[bytes]) -> str:
        """Store a snapshot; when this returns the server has all of it.

        Failed or cancelled, it deletes what it has stored, if the server can be asked; else `drop` does so later.

        Args:
            name: dot-separated tokens, `context.<graph>`.
            parts: each smaller than the server's largest message. They are taken as the server takes them,
                `IN_FLIGHT_BYTES` ahead; others have their turn between two.

        Returns:
            Its id, one subject token.

        Raises:
            ValueError: the name is not made of subject tokens.
            Full, Refused, TooLarge, Closed: it is not stored.
            Unavailable, Disconnected, NoAnswer: likewise; put it again, from its first part.
        """
        check_tokens(name, "snapshot")
        id_ = secrets.token_hex(8)
        subject = self._subject(name, id_)
        writing = _Writing(self._pipeline)
        count = crc32 = 0
        try:
            async with aclosing(_each(parts)) as each:
                async for part in each:
                    await writing.send(f"{subject}.{count}", part)
                    count, crc32 = count + 1, zlib.crc32(part, crc32)
                    await asyncio.sleep(0)
            await writing.settle()
            # Not before the others are there: a snapshot that has an end has every part.
            await writing.send(f"{subject}.{_END}", msgspec.json.encode(_End(count, crc32)))
            await writing.settle()
        except BaseException:
            with suppress(BusError, TimeoutError):
                async with asyncio.timeout(FORGET_S):
                    await writing.idle()  # a part that came after the purge would stay
                    await self._purge({"filter": f"{subject}.*"})
            raise
        return id_

    async def get(self, name: str, id_: str) -> AsyncGenerator[bytes, None]:
        """The parts of a snapshot, in order; close the iterator (`aclosing`). Only its end says that they are right.

        Raises:
            Incomplete: it is not there, or a part is missing or not as it was put.
            NoAnswer, Unavailable, Disconnected, Refused, Closed: what follows is not known; read it again.
        """
        subject = self._subject(name, id_)
        found = await self._jetstream.last(self._stream, f"{subject}.{_END}")
        if found is None:
            raise Incomplete(f"{subject} is not there, or was never stored to its end: recover from another snapshot")
        end = msgspec.json.decode(found.data, type=_End)
        count = crc32 = at = tries = 0
        while count < end.parts:
            before = count
            async with aclosing(self._jetstream.scan(self._stream, f"{subject}.*", at + 1)) as scanned:
                async for stored in scanned:
                    if stored.subject != f"{subject}.{count}":
                        if count == before:
                            raise Incomplete(f"{subject}: part {count} of {end.parts} is gone: recover from another")
                        break  # its delivery failed: ask again
                    count, at, crc32 = count + 1, stored.sequence, zlib.crc32(stored.data, crc32)
                    yield stored.data
            tries = 0 if count > before else tries + 1
            if tries * RETRY_S > PATIENCE_S:
                raise NoAnswer(f"{subject}: no replica has part {count} yet: read it again later")
            if tries:
                await asyncio.sleep(RETRY_S)
        if crc32 != end.crc32:
            raise Incomplete(f"{subject} is not what was put: its checksum differs. Recover from another snapshot")

    async def drop(self, name: str, but: str) -> None:
        """Delete everything of a name that is older than one of its snapshots; nothing if that one is not there.

        What is younger stays, so whoever no longer keeps the name cannot delete the snapshot of who does.

        Raises:
            Refused, Unavailable, Disconnected, NoAnswer, Closed: as `JetStream.api`; drop them later.
        """
        async with aclosing(self._jetstream.scan(self._stream, f"{self._subject(name, but)}.*", 1)) as scanned:
            first = await anext(scanned, None)
        # Nothing is older than 1; and the server takes 0 for no bound at all.
        if first is not None and first.sequence > 1:
            await self._purge({"filter": self._subject(name, "*.*"), "seq": first.sequence})

    async def _purge(self, what: dict[str, Any]) -> None:
        await self._jetstream.api(f"STREAM.PURGE.{self._stream}", what)

    def _subject(self, name: str, id_: str) -> str:
        return f"{self._root}.{name}.{id_}"


def snapshot_stream(subjects: Subjects) -> dict[str, Any]:
    """The stream of all snapshots of a bus, as JetStream has it."""
    return {
        "name": subjects.stream(SNAPSHOT),
        "description": f"snapshots of {subjects.root}",
        "subjects": [f"{subjects.kept(SNAPSHOT)}.>"],
        "storage": "file",
        # Where an operator sets a limit, a full stream refuses; it never forgets the part of a snapshot.
        "discard": "new",
        "deny_delete": True,
        "allow_direct": True,
    }


class _Writing:
    """Messages on their way into the stream, so many bytes at once."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._messages = 0
        self._bytes = 0
        self._error: BusError | None = None
        self._answered = asyncio.Event()

    async def send(self, subject: str, payload: bytes) -> None:
        """Publish a message once there is room; raises the first error that any message met."""
        while self._messages and self._bytes + len(payload) > IN_FLIGHT_BYTES and self._error is None:
            await self._next()
        self._check()
        self._messages += 1
        self._bytes += len(payload)
        self._pipeline.publish(subject, payload, partial(self._done, len(payload)))

    async def settle(self) -> None:
        """Return when the server has every message; raises the first error."""
        while self._messages and self._error is None:
            await self._next()
        self._check()

    async def idle(self) -> None:
        """Return when no message is on its way any more."""
        while self._messages:
            await self._next()

    async def _next(self) -> None:
        self._answered.clear()
        await self._answered.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _done(self, size: int, error: BusError | None) -> None:
        self._messages -= 1
        self._bytes -= size
        self._error = self._error or error
        self._answered.set()


async def _each(parts: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    if isinstance(parts, AsyncIterable):
        async for part in parts:
            yield part
    else:
        for part in parts:
            yield part

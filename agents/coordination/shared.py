"""Values that agents share by key, and change without overwriting one another.

A value is MessagePack, its revision the sequence of the message that holds it. Every write names the sequence that it
follows, also one that only wants to replace whatever is there: it has to look whether somebody with a greater token has
written.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, NamedTuple, TypeVar

import msgspec

from ...bus.bucket import DELETED, Bucket, Hints, Overtaken, check_ttl
from ...bus.errors import BadParameter, BadValue, Disconnected
from ...bus.jetstream import TTL, NoAnswer, Stored, Unavailable
from ...bus.leases import Clock, boottime
from ...bus.subjects import check_tokens
from ...bus.transport import check_interest
from .errors import Conflict, Fenced
from .streams import MARKER_S

PATIENCE_S = 10.0  # how long a write is tried, s
RETRY_S = 0.1

_TOKEN = "Aikoryu-Token"
_ID = "Aikoryu-Id"
_BEFORE = "Nats-Last-Sequence"  # of an answer to a direct get: the sequence of the answer before it

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """A value, and the revision at which it was read."""

    value: T
    revision: int


class Change(NamedTuple, Generic[T]):
    """What became of a key: it has this value now, or (`deleted`) none, for it was deleted or has expired."""

    key: str
    value: T | None
    revision: int
    deleted: bool


class Shared(Generic[T]):
    """The values of one store, by key.

    Keys are dot-separated tokens, `workers.7`; patterns may have `*` for one token and a last `>` for the rest.

    Args:
        bucket: the bucket of all stores, made.
        name: of this one, one token.
        of: the type of its values: anything that msgspec encodes.
        clock: s; one that runs on while the machine sleeps.
    """

    def __init__(
        self, bucket: Callable[[], Awaitable[Bucket]], name: str, of: type[T], clock: Clock = boottime
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._clock = clock
        self._decoder = msgspec.msgpack.Decoder(of)

    async def get(self, key: str) -> Entry[T] | None:
        """The value of a key as the server has it now; None if there is none.

        Raises:
            BadValue: it is of another type.
            NoAnswer, Unavailable, Disconnected, Refused, Closed: it is not known.
        """
        found = await self._find(key)
        return Entry(self._decode(key, found.data), found.sequence) if found.data else None

    async def put(self, key: str, value: T, *, ttl_s: int | None = None, token: int = 0) -> int:
        """Give a key a value, whatever it has.

        Args:
            key: which.
            value: the new one.
            ttl_s: how long it stays, whole s, 1 or more; by default until it is deleted.
            token: of the lock or the term (`number`) that allows the write. Once a key was written with a token, only
                writes with the same or a greater one get in, after it was deleted too; such values do not expire.

        Returns:
            The revision of the value.

        Raises:
            Fenced: it was written with a greater token; nothing was written.
            BadParameter, BadValue, TooLarge: it cannot be written so.
            Unavailable, Disconnected, Refused, Closed: nothing was written.
            NoAnswer: it may have been written, and then overwritten: read it. It was not written twice.
        """
        return await self._put(key, value, None, ttl_s, token)

    async def create(self, key: str, value: T, *, ttl_s: int | None = None, token: int = 0) -> int:
        """Give a key a value if it has none: of several that do so at once, one succeeds.

        Raises:
            Conflict: it has one.
            Others as `put`.
        """
        return await self._put(key, value, 0, ttl_s, token)

    async def update(self, key: str, value: T, revision: int, *, ttl_s: int | None = None, token: int = 0) -> int:
        """Replace the value that was read at `revision`. A time to live that it had is given to this one, too.

        Raises:
            Conflict: it is not there any more.
            Others as `put`.
        """
        return await self._put(key, value, revision, ttl_s, token)

    async def delete(self, key: str, revision: int | None = None, *, token: int = 0) -> None:
        """Take a key's value away; nothing happens if it has none.

        Args:
            key: which.
            revision: only the value that was read at it; by default any.
            token: as for `put`.

        Raises:
            Conflict: it has another revision.
            Others as `put`.
        """
        await self._write(key, b"", revision, None, token)

    async def keys(self, pattern: str = ">") -> list[str]:
        """The keys that have a value, those that were written first ahead; raises as `get`."""
        async with aclosing(self._stored(await self._bucket(), pattern, 1)) as found:
            return [self._key(stored) async for stored in found if stored.data]

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Change[T], None]:
        """What the keys have now, then each change; close the iterator (`aclosing`).

        No key's latest value is missed, whatever happens to the connection or the server in between, and revisions of
        a key only rise. Of changes of one key in quick succession, or while the connection was lost, the last is told.

        Raises:
            BadValue: a value is of another type.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        bucket = await self._bucket()
        hints = Hints()
        known: dict[str, int] = {}
        at, looked_at = 1, self._clock()
        async with bucket.tell(hints, self._below(pattern)):
            while True:
                hints.clear()
                began = self._clock()
                # The server may have forgotten what was deleted since: compare with all there is.
                afresh = began - looked_at > MARKER_S / 2
                gone = set(known) if afresh else set()
                try:
                    async with aclosing(self._stored(bucket, pattern, 1 if afresh else at)) as found:
                        async for stored in found:
                            at = max(at, stored.sequence + 1)
                            key = self._key(stored)
                            gone.discard(key)
                            if stored.data and known.get(key) != stored.sequence:
                                known[key] = stored.sequence
                                yield Change(key, self._decode(key, stored.data), stored.sequence, deleted=False)
                            elif not stored.data and known.pop(key, 0):
                                yield Change(key, None, stored.sequence, deleted=True)
                except (NoAnswer, Unavailable, Disconnected):
                    await asyncio.sleep(RETRY_S)
                    continue
                for key in gone:
                    yield Change(key, None, known.pop(key), deleted=True)
                looked_at = began
                await hints.wait()

    async def _put(self, key: str, value: T, revision: int | None, ttl_s: int | None, token: int) -> int:
        try:
            payload = msgspec.msgpack.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadValue(f"{self.name}: the value of {key!r} cannot be written ({error})") from None
        return await self._write(key, payload, revision, ttl_s, token)

    async def _write(self, key: str, payload: bytes, revision: int | None, ttl_s: int | None, token: int) -> int:
        """Store a value, or (no payload) take it away; returns its revision."""
        if ttl_s is not None:
            check_ttl(ttl_s)
            if token:
                raise BadParameter("what expires forgets who wrote it: give ttl_s or a token, not both")
        bucket = await self._bucket()
        id_ = secrets.token_hex(8)
        while True:
            found = await self._find(key)
            if revision is not None and revision != found.revision:
                text = f"{self.name}: {key!r} is at revision {found.revision}, not {revision}"
                raise Conflict(f"{text}: read it, and decide again", found.revision)
            if token < found.token:
                text = f"{self.name}: {key!r} was written with token {found.token}, after {token or 'none'}"
                raise Fenced(f"{text}: stop, your lock or term is over", found.token)
            if not payload and not found.data and token == found.token:
                return found.sequence
            headers = _headers(id_, payload, found, revision, ttl_s, token)
            try:
                return await self._settle(bucket, key, payload, headers, found.sequence)
            except Overtaken:
                # Who was quicker, the next look shows.
                continue

    async def _settle(self, bucket: Bucket, key: str, payload: bytes, headers: dict[str, str], expected: int) -> int:
        """Write until it is known to be there, or not. Sending it again is safe: only one can follow `expected`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        doubtful = False
        while True:
            try:
                return await bucket.write(self._full(key), payload, headers, expected)
            except (NoAnswer, Unavailable, Disconnected) as error:
                doubtful = doubtful or isinstance(error, NoAnswer)
                if loop.time() + RETRY_S >= end:
                    if doubtful:
                        raise NoAnswer(f"{self.name}: {key!r} may have been written, or be yet: read it") from error
                    raise
                await asyncio.sleep(RETRY_S)
            except Overtaken:
                if not doubtful:
                    raise
                found = await self._find(key)
                if found.id == headers[_ID]:
                    return found.sequence
                raise NoAnswer(f"{self.name}: {key!r} may have been written, and then overwritten: read it") from None

    async def _find(self, key: str) -> _Found:
        """What is there now; a server that is away for less than `PATIENCE_S` is waited for."""
        check_tokens(key, "key")
        bucket = await self._bucket()
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        while True:
            try:
                stored = await bucket.read(self._full(key))
            except (NoAnswer, Unavailable, Disconnected):
                if loop.time() + RETRY_S >= end:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return _Found() if stored is None else _found(stored)

    async def _stored(self, bucket: Bucket, pattern: str, at: int) -> AsyncGenerator[Stored, None]:
        """The messages of a pattern's keys from a sequence on, as their leader has them, none left out."""
        subjects = f"{bucket.subject(self.name)}.{self._pattern(pattern)}"
        while True:
            before = 0
            async with aclosing(bucket.jetstream.scan(bucket.stream, subjects, at)) as found:
                async for stored in found:
                    if int(stored.headers.get(_BEFORE, before)) != before:
                        break  # one was lost on its way: ask for it again
                    before, at = stored.sequence, stored.sequence + 1
                    yield stored
            # Any replica may have answered, and no more than so many at once; the leader knows whether it was all.
            latest = await bucket.jetstream.next(bucket.stream, subjects, at)
            if latest is None:
                return
            at = latest.sequence + 1
            yield latest

    def _decode(self, key: str, data: bytes) -> T:
        try:
            return self._decoder.decode(data)
        except msgspec.DecodeError as error:
            raise BadValue(f"{self.name}: the value of {key!r} is of another type ({error})") from None

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}"

    def _below(self, pattern: str) -> str:
        return f"{self.name}.{self._pattern(pattern)}"

    def _pattern(self, pattern: str) -> str:
        check_interest(pattern, "")
        return pattern

    def _key(self, stored: Stored) -> str:
        return stored.subject.split(".", 3)[3]


class _Found(NamedTuple):
    """What a key's subject holds.

    Attributes:
        sequence: of the message, 0 if there is none.
        data: the value; nothing (no bytes) if there is none.
        token: with which it was written, 0 without.
        ttl: as it was given, empty without.
        id: of the write.
    """

    sequence: int = 0
    data: bytes = b""
    token: int = 0
    ttl: str = ""
    id: str = ""

    @property
    def revision(self) -> int:
        return self.sequence if self.data else 0


def _found(stored: Stored) -> _Found:
    headers = stored.headers
    return _Found(stored.sequence, stored.data, int(headers.get(_TOKEN, 0)), headers.get(TTL, ""), headers.get(_ID, ""))


def _headers(
    id_: str, payload: bytes, found: _Found, revision: int | None, ttl_s: int | None, token: int
) -> dict[str, str]:
    headers = {_ID: id_}
    if not payload:
        headers |= DELETED
        ttl_s = MARKER_S
    if token:
        # Also of what was deleted: it is remembered for as long as there may be somebody of the past.
        return headers | {_TOKEN: str(token)}
    if ttl_s is not None:
        return headers | {TTL: str(ttl_s)}
    # A write without a time to live would stay for ever, though the value that it replaces did not.
    return headers | {TTL: found.ttl} if revision and found.ttl else headers

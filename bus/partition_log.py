"""The log of a partition: every change of its state, in order, by one owner at a time.

Each entry names the sequence of the one before (`Nats-Expected-Last-Subject-Sequence`); the server refuses it if
another has come in between. So an owner that lost its lease without noticing cannot append once the next owner has
*claimed* the log, and because each entry carries its writer's fencing token, an earlier owner cannot claim it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from .errors import BadParameter, BusError, Disconnected
from .jetstream import WRONG_LAST_SEQUENCE, JetStream, NoAnswer, Refused, Unavailable
from .log_entry import Entry, Kind, Write, decode
from .subjects import Subjects, check_tokens

LOG = "log"
# How long an append tries to find out what became of it, and waits for one answer, s.
PATIENCE_S = 10.0
ANSWER_WITHIN_S = 2.0
RETRY_S = 0.1


class OwnershipLost(BusError):
    """Another has claimed the partition. Drop its state; whoever owns it now answers for it.

    Attributes:
        applied: whether the entry that was being appended is in the log; None if that cannot be known any more.
    """

    code = "ownership_lost"

    def __init__(self, message: str, applied: bool | None = False) -> None:
        super().__init__(message)
        self.applied = applied


class Unresolved(BusError):
    """Nobody answered whether an entry was appended. It may be in the log, or get there: `resolve` finds out."""

    code = "unresolved"


class LogGap(BusError):
    """Entries between two that were read are gone: purged, or lost by the server. Replay from the latest mark."""

    code = "log_gap"


class PartitionLog:
    """One partition's log; `open` makes it, `claim` begins to own it. Only its owner appends, anyone may replay.

    Attributes:
        last: sequence of the last entry that this owner knows to be in the log.
    """

    def __init__(self, jetstream: JetStream, stream: str, subject: str, patience_s: float) -> None:
        self.last = 0
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._patience_s = patience_s
        self._token = 0
        self._mark = 0
        self._write: Write | None = None
        self._turn = asyncio.Lock()

    @classmethod
    async def open(
        cls, jetstream: JetStream, subjects: Subjects, name: str, *, patience_s: float = PATIENCE_S
    ) -> PartitionLog:
        """The log `name` of a bus; makes the stream that holds all of them, unless it is there.

        Args:
            patience_s: how long an append tries to find out what became of it, s.

        Raises:
            ValueError: the name is not made of subject tokens.
            Others as `JetStream.ensure_stream`.
        """
        check_tokens(name, "log")
        await jetstream.ensure_stream(log_stream(subjects))
        return cls(jetstream, subjects.stream(LOG), f"{subjects.kept(LOG)}.{name}", patience_s)

    async def claim(self, token: int) -> int:
        """Begin to own the log: after this, no entry of an earlier owner gets in, late ones of this process included.

        Args:
            token: of the lease that allows it, 1 or more.

        Returns:
            The sequence of the claim, now the last; `replay` first, then append.

        Raises:
            OwnershipLost: an owner with a larger token has claimed it.
            Unresolved: it is not known whether the log is claimed; claim it again.
            Unavailable, Disconnected, NoAnswer, Refused, Closed: it is not claimed; on the first three, claim it again.
        """
        if token < 1:
            raise BadParameter(f"the token is {token}: take that of a lease")
        async with self._turn:
            while True:
                last = await self._tail()
                self._token, self._write = 0, None
                if last is not None and last.token > token:
                    raise OwnershipLost(f"{self._subject} was claimed with token {last.token}, after {token}")
                self._token, self.last, self._mark = token, 0, 0
                if last is not None:
                    self.last = last.sequence
                    self._mark = last.sequence if last.kind is Kind.MARK else last.mark
                self._write = self._new(Kind.CLAIM, b"")
                try:
                    return await self._settle()
                except OwnershipLost:
                    # Somebody, perhaps of a lesser token, was quicker; which, the next look shows.
                    continue

    async def append(self, data: bytes, expected_last: int) -> int:
        """Add a change; when this returns the server has it.

        What an earlier call left open is settled first. Cancelled, it leaves open whether the change is in the log.

        Args:
            data: the change.
            expected_last: sequence of the entry up to which the caller's state has come.

        Returns:
            The sequence of the change.

        Raises:
            OwnershipLost: the log has another owner; `applied` says whether the change is in the log. Claim it again
                with the token of a new lease.
            Unresolved: nobody answered for `patience_s`; `resolve` before anything that depends on it.
            BadParameter: `expected_last` is not this log's last entry; nothing was appended.
            Unavailable, Disconnected, Refused, TooLarge, Closed: nothing was appended.
        """
        return await self._add(Kind.CHANGE, data, expected_last)

    async def mark(self, snapshot: bytes, expected_last: int) -> int:
        """Say that a snapshot holds everything up to `expected_last`; replays begin here. `purge` may follow.

        A snapshot that was taken earlier and stored beside further appends ends earlier, too. Then its data says with
        which sequence, a recovery asks for the `latest_mark` and replays after that, and `purge` keeps what follows it.

        Args:
            snapshot: what finds the snapshot again; it must be stored where it survives before this is called.

        Returns, Raises: as `append`.
        """
        return await self._add(Kind.MARK, snapshot, expected_last)

    async def resolve(self) -> int:
        """Settle what an append left open: when this returns it is in the log.

        Returns:
            The sequence of the log's last entry.

        Raises:
            As `append`.
        """
        async with self._turn:
            return await self._settle()

    async def purge(self, before: int | None = None) -> None:
        """Delete what precedes the latest mark that this owner knows. May be repeated; raises as `JetStream.api`.

        The mark itself stays: a subject without a message would begin again at 0, which late entries may expect.

        Args:
            before: keep what has this sequence or a larger one as well, for a snapshot that ended before its mark.
        """
        end = self._mark if before is None else min(before, self._mark)
        # Nothing precedes 1; and the server takes 0 for no bound at all, and would delete everything.
        if end > 1:
            await self._jetstream.api(f"STREAM.PURGE.{self._stream}", {"filter": self._subject, "seq": end})

    async def latest_mark(self) -> Entry | None:
        """The latest mark, where a recovery begins; None if there is none. Anyone may ask.

        Raises:
            LogGap: it is gone; a later one has taken its place, ask again.
            Unavailable, Disconnected, NoAnswer, Refused, Closed: it is not known.
        """
        last = await self._tail()
        if last is None or last.kind is Kind.MARK:
            return last
        if not last.mark:
            return None
        stored = await self._jetstream.next(self._stream, self._subject, last.mark)
        if stored is None or stored.sequence != last.mark:
            raise LogGap(f"{self._subject}: the mark {last.mark} is gone: ask again for the latest")
        return decode(stored)

    async def replay(self, after: int | None = None) -> AsyncGenerator[Entry, None]:
        """The entries, at least up to the last one at the time of the call; close the iterator (`aclosing`).

        Args:
            after: begin after this sequence; None: with the latest mark, or with the first entry if there is none.

        Raises:
            LogGap: an entry is missing.
            NoAnswer, Unavailable, Disconnected, Refused, Closed: what came so far is right; go on after the last entry.
        """
        last = await self._tail()
        if last is None:
            return
        seen: int | None = 0 if after is None else after
        at = (after or 0) + 1
        if after is None and (mark := last.sequence if last.kind is Kind.MARK else last.mark):
            seen, at = None, mark
        tries = 0
        while at <= last.sequence:
            came = False
            async with aclosing(self._jetstream.scan(self._stream, self._subject, at)) as found:
                async for stored in found:
                    entry = decode(stored)
                    if seen is not None and entry.previous != seen:
                        if not came:
                            raise LogGap(
                                f"{self._subject}: {entry.sequence} follows {entry.previous}, but {seen} was the last "
                                "one read: replay from the latest mark"
                            )
                        break
                    came = True
                    seen, at = entry.sequence, entry.sequence + 1
                    yield entry
            tries = 0 if came else tries + 1
            if tries * RETRY_S > self._patience_s:
                raise NoAnswer(f"{self._subject}: no replica has entry {last.sequence} yet: go on after {at - 1} later")
            if not came:
                await asyncio.sleep(RETRY_S)

    async def _add(self, kind: Kind, data: bytes, expected_last: int) -> int:
        async with self._turn:
            last = await self._settle()
            if expected_last != last:
                raise BadParameter(f"{self._subject} ends with {last}, not {expected_last}: apply what is between")
            self._write = self._new(kind, data)
            return await self._settle()

    async def _settle(self) -> int:
        """Send what is under way until it is known to be in the log, or never to get there."""
        if not self._token:
            raise OwnershipLost(f"{self._subject} is not owned by this process: claim it with the token of a lease")
        loop = asyncio.get_running_loop()
        end = loop.time() + self._patience_s
        while (write := self._write) is not None:
            try:
                sequence = await self._send(write)
            except (NoAnswer, Unavailable, Disconnected) as error:
                if loop.time() + RETRY_S < end:
                    await asyncio.sleep(RETRY_S)
                    continue
                if write.doubtful:
                    raise Unresolved(
                        f"{self._subject}: nobody says whether an entry was appended: resolve it"
                    ) from error
                self._write = None
                raise
            except BusError:
                # Refused for good; an earlier attempt of the same entry may be in the log nevertheless.
                if not write.doubtful:
                    self._write = None
                raise
            self._write = None
            self.last = sequence
            if write.kind is Kind.MARK:
                self._mark = sequence
        return self.last

    async def _send(self, write: Write) -> int:
        """Try once to append. Sending the same entry again is safe: only one can follow the one before."""
        before, write.doubtful = write.doubtful, True
        try:
            return await self._jetstream.publish(
                self._subject, write.data, write.headers, timeout_s=min(ANSWER_WITHIN_S, self._patience_s)
            )
        except NoAnswer:
            raise
        except Refused as refused:
            write.doubtful = before
            if refused.err_code not in WRONG_LAST_SEQUENCE:
                raise
        except BusError:
            write.doubtful = before
            raise
        return await self._found(write)

    async def _found(self, write: Write) -> int:
        """The sequence of an entry that the server refused because another stands in its place: perhaps itself."""
        applied: bool | None = False
        if write.doubtful:
            stored = await self._jetstream.next(self._stream, self._subject, write.previous + 1)
            entry = decode(stored) if stored is not None else None
            if entry is not None and entry.id == write.id:
                return entry.sequence
            if entry is None or entry.previous != write.previous:
                applied = None
        self._token, self._write = 0, None
        raise OwnershipLost(f"{self._subject} has another owner: drop its state, or acquire the lease again", applied)

    async def _tail(self) -> Entry | None:
        stored = await self._jetstream.last(self._stream, self._subject)
        return None if stored is None else decode(stored)

    def _new(self, kind: Kind, data: bytes) -> Write:
        return Write(kind, data, self.last, self._token, self._mark)


def log_stream(subjects: Subjects) -> dict[str, Any]:
    """The stream of all logs of a bus, as JetStream has it."""
    return {
        "name": subjects.stream(LOG),
        "description": f"logs of {subjects.root}",
        "subjects": [f"{subjects.kept(LOG)}.>"],
        "storage": "file",
        # Where an operator sets a limit, a full log refuses; it never forgets its oldest entry.
        "discard": "new",
        "deny_delete": True,
        "allow_direct": True,
    }

"""Where states are kept, and who owns them: a stream of the server with a message a key, and leases.

<prefix>-<namespace>-state    <prefix>.state.v1.<namespace>.<agent>.<partition>.<key>

A write names the sequence that it follows, so one of an owner that does not know yet that it is none any more is
refused once the next has written; where it comes before, the next is refused, and reads what was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol

from ..bus.bucket import Overtaken
from ..bus.errors import BadParameter
from ..bus.jetstream import EXPECTED_LAST, WRONG_LAST_SEQUENCE, Refused
from ..bus.leases import Clock, Leases, boottime
from ..bus.permissions import LOCKS, STATE
from ..bus.pipeline import PipelinedJetStream
from ..bus.subjects import Subjects
from ..bus.transport import Message, Subscription, Transport

TTL_S = 5  # of a lease: how long the keys of a process that died wait for their next owner
LONGEST_KEY = 100  # characters

_PLAIN = re.compile(r"[A-Za-z0-9\-][A-Za-z0-9_\-]*")


class Lease(Protocol):
    """The right to own a partition.

    Attributes:
        token: greater than that of every owner before.
        on_lost: called with the reason when it is lost, not when it is released.
    """

    token: int
    on_lost: list[Callable[[str], None]]

    def check(self) -> None:
        """Raise LeaseLost unless it is held."""

    async def release(self) -> None:
        """Let others have it. Idempotent."""


class Found(NamedTuple):
    """What was written of a key, and the sequence that the next write must name."""

    sequence: int = 0
    data: bytes = b""


class StateStore(Protocol):
    """Keeps what agents write, and says who may write."""

    async def open(self) -> None:
        """Make ready; before anything else. Raises as `JetStream.ensure_stream`."""

    async def close(self) -> None:
        """Listen no more. Idempotent."""

    async def acquire(self, agent: str, partition: int) -> Lease | None:
        """Take a partition if nobody owns it. Raises as `Leases.try_acquire`."""

    async def watch(self, agent: str, changed: Callable[[int], None]) -> Subscription:
        """Call with each partition that may have another owner, or none: a hint, which may be lost."""

    async def read(self, agent: str, partition: int, key: str) -> Found:
        """What is there now. Raises as `JetStream.last`."""

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        """Write after the sequence `expected` (0: nothing); returns its own.

        Raises:
            Overtaken: another has written; nothing was.
            Others as `JetStream.publish`.
        """


class JetStreamStates:
    """A `StateStore` on a server.

    Args:
        transport: the connection.
        subjects: the bus.
        process: what others are told of who owns a partition.
        clock: monotonic, s; one that runs on while the machine sleeps.
    """

    def __init__(self, transport: Transport, subjects: Subjects, process: str, clock: Clock = boottime) -> None:
        self._transport = transport
        self._subjects = subjects
        # The leases of a share, too, are renewed at about the same time. Measured, of 64 while nobody calls: 0.4 % of a
        # core here and 0.1 % in the server, where each alone costs 0.8 and 0.4 %.
        self._jetstream = PipelinedJetStream(transport)
        self._leases = Leases(self._jetstream, subjects, process, clock, LOCKS)
        self._stream = subjects.stream(STATE)
        self._open = AsyncExitStack()

    async def open(self) -> None:
        """Make the stream and the bucket, unless they are there."""
        await self._open.enter_async_context(self._jetstream)
        await self._jetstream.ensure_stream(states(self._subjects))
        await self._leases.ensure()

    async def close(self) -> None:
        await self._open.aclose()

    async def acquire(self, agent: str, partition: int) -> Lease | None:
        return await self._leases.try_acquire(f"owner.{agent}.{partition}", ttl_s=TTL_S)

    async def watch(self, agent: str, changed: Callable[[int], None]) -> Subscription:
        def on_message(message: Message) -> None:
            last = message.subject.rpartition(".")[2]
            if last.isdecimal():
                changed(int(last))

        return await self._transport.subscribe(f"{self._subjects.kept(LOCKS)}.owner.{agent}.*", on_message)

    async def read(self, agent: str, partition: int, key: str) -> Found:
        stored = await self._jetstream.last(self._stream, self._subject(agent, partition, key))
        return Found() if stored is None else Found(stored.sequence, stored.data)

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        subject = self._subject(agent, partition, key)
        try:
            return await self._jetstream.publish(subject, data, {EXPECTED_LAST: str(expected)})
        except Refused as refused:
            if refused.err_code in WRONG_LAST_SEQUENCE:
                raise Overtaken from refused
            raise

    def _subject(self, agent: str, partition: int, key: str) -> str:
        return f"{self._subjects.kept(STATE)}.{agent}.{partition}.{token_of(key)}"


def states(subjects: Subjects) -> dict[str, Any]:
    """The stream of states, as JetStream's configuration; where an operator sets a limit, a full one refuses."""
    return {
        "name": subjects.stream(STATE),
        "description": f"{STATE} of {subjects.root}",
        "subjects": [f"{subjects.kept(STATE)}.>"],
        "storage": "file",
        "max_msgs_per_subject": 1,
        "discard": "new",
        "deny_delete": True,
    }


def token_of(key: str) -> str:
    """A key as one token of a subject: as it is, or, if that is none, `_` and its UTF-8 in hex."""
    return key if _PLAIN.fullmatch(key) else f"_{key.encode().hex()}"


def check_key(key: str) -> None:
    """Raises BadParameter unless a key is one: 1 to 100 characters that UTF-8 has."""
    if not 1 <= len(key) <= LONGEST_KEY:
        raise BadParameter(f"the key has {len(key)} characters: use 1 to {LONGEST_KEY}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise BadParameter(f"key {key!r} is no text that UTF-8 has ({error.reason}): use another") from None

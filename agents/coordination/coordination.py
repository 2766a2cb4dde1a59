"""Coordination as an agent sees it: locks, elections, shared values and tasks over one connection."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack
from typing import Any, TypeVar, overload

from ...bus.bucket import Bucket
from ...bus.errors import BadParameter, Closed
from ...bus.jetstream import JetStream
from ...bus.leases import Clock, Leases, boottime
from ...bus.permissions import LOCKS
from ...bus.pipeline import Pipeline
from ...bus.subjects import Subjects, check_tokens
from ...bus.transport import Transport
from . import election, streams
from . import tasks as task_queues
from .claims import Claims
from .election import Election
from .lock import Locks
from .once import Once
from .quorum import gather
from .shared import Shared
from .tasks import Floor, Tasks

TIMEOUT_S = 10.0

T = TypeVar("T")


class Coordination:
    """What agents that work together need; nothing is subscribed or made before the first of it is used.

    Args:
        transport: the connection; it stays open when this ends.
        subjects: the bus.
        name: what others are told of who holds or leads; by default the machine and the process.
        timeout_s: for a task to be accepted, s.
        clock: monotonic, s; one that runs on while the machine sleeps.

    Attributes:
        lock: `async with`: a lock; see `lock.Locks.hold`.
        try_lock: likewise, if it is free; see `Locks.attempt`.
        gather: the first answers of several; see `quorum.gather`.
    """

    gather = staticmethod(gather)

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        name: str = "",
        timeout_s: float = TIMEOUT_S,
        clock: Clock = boottime,
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._name = name or f"{socket.gethostname().replace('.', '-')}-{os.getpid()}"
        self._timeout_s = timeout_s
        self._clock = clock
        self._open = AsyncExitStack()
        self._closed = False
        self._jetstream = Once(self._open_jetstream)
        self._leases = Once(self._open_leases)
        self._bucket = Once(self._open_bucket)
        self._floor = Once(self._open_floor)
        locks = Locks(self._leases)
        self.lock = locks.hold
        self.try_lock = locks.attempt

    def elect(self, name: str, *, ttl_s: int = election.TTL_S, candidate: str = "") -> Election:
        """An election: `async with` it to lead for the block, or watch who leads.

        Args:
            name: of the office, dot-separated tokens.
            ttl_s: how long a term outlives its leader's last renewal, whole s, 1 or more.
            candidate: what others are told of who leads; by default this process's name.
        """

        async def leases() -> Leases:
            opened = await self._leases()
            return self._leases_of(await self._jetstream(), candidate) if candidate else opened

        return Election(leases, name, ttl_s)

    @overload
    def shared(self, name: str) -> Shared[Any]: ...
    @overload
    def shared(self, name: str, of: type[T]) -> Shared[T]: ...
    def shared(self, name: str, of: Any = Any) -> Shared[Any]:
        """A store of shared values.

        Args:
            name: one token.
            of: the type of its values; by default whatever MessagePack has.
        """
        return Shared(self._bucket, _token(name, "store"), of, self._clock)

    @overload
    def tasks(
        self, name: str, *, ack_wait_s: float = ..., max_attempts: int = ..., retry_s: float = ...
    ) -> Tasks[Any]: ...
    @overload
    def tasks(
        self, name: str, of: type[T], *, ack_wait_s: float = ..., max_attempts: int = ..., retry_s: float = ...
    ) -> Tasks[T]: ...
    def tasks(
        self,
        name: str,
        of: Any = Any,
        *,
        ack_wait_s: float = task_queues.ACK_WAIT_S,
        max_attempts: int = task_queues.MAX_ATTEMPTS,
        retry_s: float = task_queues.RETRY_S,
    ) -> Tasks[Any]:
        """A queue of tasks; all who claim from it should give the same times.

        Args:
            name: one token.
            of: the type of its messages; by default whatever MessagePack has.
            ack_wait_s: of silence, after which a task goes to another, s.
            max_attempts: times a task may come to somebody before it is given up.
            retry_s: rest after the first failure, s; it doubles each time.
        """
        _token(name, "queue")
        return Tasks(self._floor, name, of, ack_wait_s=ack_wait_s, max_attempts=max_attempts, retry_s=retry_s)

    async def close(self) -> None:
        """Stop listening. Locks, terms and tasks that are held end with their blocks, or their time. Idempotent."""
        self._closed = True
        await self._open.aclose()

    async def _open_jetstream(self) -> JetStream:
        if self._closed:
            raise Closed("the bus is closed")
        return await self._open.enter_async_context(JetStream(self._transport))

    async def _open_leases(self) -> Leases:
        leases = self._leases_of(await self._jetstream(), self._name)
        await leases.ensure()
        return leases

    async def _open_bucket(self) -> Bucket:
        jetstream = await self._jetstream()
        bucket = streams.shared_bucket(jetstream, self._subjects)
        await jetstream.ensure_stream(streams.shared(bucket), streams.OPERATORS)
        return bucket

    async def _open_floor(self) -> Floor:
        jetstream = await self._jetstream()
        # That of tasks comes last: where there is no room for what is given up, no task is accepted.
        for config in (streams.buried_tasks(self._subjects), streams.tasks(self._subjects)):
            await jetstream.ensure_stream(config, streams.OPERATORS)
        pipeline = await self._open.enter_async_context(Pipeline(self._transport))
        claims = await self._open.enter_async_context(Claims(self._transport, pipeline))
        return Floor(jetstream, pipeline, claims, self._subjects, self._timeout_s, self._clock)

    def _leases_of(self, jetstream: JetStream, holder: str) -> Leases:
        return Leases(jetstream, self._subjects, holder, self._clock, LOCKS)


def _token(name: str, what: str) -> str:
    """The name, if it is one token of a subject."""
    try:
        check_tokens(name, what)
    except ValueError as error:
        raise BadParameter(str(error)) from None
    if "." in name:
        raise BadParameter(f"{what} {name!r}: use a name without a dot, which parts it from what it holds")
    return name

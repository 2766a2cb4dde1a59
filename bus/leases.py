"""Leases: one holder at a time for a name, for as long as it renews.

A lease is a key of a bucket (`lease_bucket.py`) that the server removes after a time to live. Who writes the key names
the sequence it must follow, so of two that try one wins. A lease alone does not fence: a holder that slept may act
after the next has begun. Its `token` does, where what it writes to compares tokens, as `partition_log.py` does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from .bucket import Overtaken, check_ttl
from .errors import BusError, Disconnected
from .jetstream import JetStream, NoAnswer, Unavailable
from .lease_bucket import Found, Held, LeaseBucket, Record
from .subjects import Subjects
from .tenure import Phase, Tenure

LEASES = "leases"  # the workers' kind
RELEASE_WITHIN_S = 2.0
# A waiter tries again this soon after the server could not be asked.
RETRY_S = 0.1
# The keeper of a lease looks at its clock this often, in parts of the time to live: a machine that slept notices soon.
LOOK_AT_CLOCK = 0.1

_log = structlog.get_logger(__name__)

Clock = Callable[[], float]


class LeaseLost(BusError):
    """This process does not hold the lease any more. It must stop what the lease allowed, and may acquire it again."""

    code = "lease_lost"


def boottime() -> float:
    """Seconds since the machine started, those it was suspended included, which the event loop's clock leaves out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Leases:
    """The leases of one bus; `open` makes the bucket.

    Args:
        jetstream: how to ask the server; it stays open when this ends.
        subjects: the bus.
        holder: what others are told of who holds a lease: the worker's name.
        clock: monotonic time, s.
        kind: the last word of the bucket's name; leases of different kinds, and rights to them, are apart.
    """

    def __init__(
        self, jetstream: JetStream, subjects: Subjects, holder: str, clock: Clock = boottime, kind: str = LEASES
    ) -> None:
        self._bucket = LeaseBucket(jetstream, subjects, kind)
        self._holder = holder
        self._clock = clock

    @classmethod
    async def open(cls, jetstream: JetStream, subjects: Subjects, holder: str, clock: Clock = boottime) -> Leases:
        """Make the bucket, unless it is there. Raises as `JetStream.ensure_stream`."""
        leases = cls(jetstream, subjects, holder, clock)
        await leases.ensure()
        return leases

    async def ensure(self) -> None:
        """Make the bucket, unless it is there. Raises as `JetStream.ensure_stream`."""
        await self._bucket.ensure()

    @asynccontextmanager
    async def hold(self, name: str, *, ttl_s: int) -> AsyncIterator[Lease]:
        """Acquire a lease, and release it at the end. Raises as `acquire`; a lost lease ends nothing by itself."""
        lease = await self.acquire(name, ttl_s=ttl_s)
        try:
            yield lease
        finally:
            await lease.release()

    async def acquire(self, name: str, *, ttl_s: int) -> Lease:
        """Wait until the lease is free, and take it. Who waited longest has no advantage.

        Cancelled, it may leave a lease that nobody renews.

        Args:
            name: dot-separated tokens, `partition.3`.
            ttl_s: how long the lease outlives its last renewal, whole s, 1 or more.

        Raises:
            BadParameter: the server has no such time to live.
            Refused, Closed: the server does not let this user, or this process has closed the connection.
        """
        nonce = secrets.token_hex(8)
        failures = 0
        async with self._bucket.changes(name) as changes:
            while True:
                changes.clear()
                try:
                    took = await self._attempt(name, ttl_s, nonce)
                except (NoAnswer, Unavailable, Disconnected) as error:
                    failures += 1
                    await _pause(name, failures, error)
                    continue
                if isinstance(took, Lease):
                    return took
                await changes.after(took)

    async def try_acquire(self, name: str, *, ttl_s: int) -> Lease | None:
        """Take the lease if it is free; None if another holds it.

        Raises:
            BadParameter, Refused, Closed: as `acquire`.
            NoAnswer, Unavailable, Disconnected: it is not known who holds it; if this process, nobody renews it.
        """
        took = await self._attempt(name, ttl_s, secrets.token_hex(8))
        return took if isinstance(took, Lease) else None

    async def watch(self, name: str) -> AsyncGenerator[Held | None, None]:
        """Who holds the lease, now and whenever that changes (None: nobody); close the iterator (`aclosing`).

        It tells states, not events: of changes in quick succession, or while the connection was lost, only the last.
        """
        async with self._bucket.changes(name) as changes:
            first = True
            failures = 0
            while True:
                changes.clear()
                try:
                    found = await self._bucket.read(name)
                except (NoAnswer, Unavailable, Disconnected) as error:
                    failures += 1
                    await _pause(name, failures, error)
                    continue
                if first or found.held != changes.known:
                    first = False
                    yield found.held
                await changes.after(found)

    async def _attempt(self, name: str, ttl_s: int, nonce: str) -> Lease | Found:
        """Take the lease, or tell who holds it."""
        check_ttl(ttl_s)
        while True:
            found = await self._bucket.read(name)
            mine = found.record is not None and found.record.nonce == nonce
            if found.record is not None and not mine:
                return found
            # Mine: an attempt that was not answered. Writing it again makes its age known.
            record = Record(self._holder, nonce, ttl_s, found.token if mine else 0)
            sent_at = self._clock()
            with suppress(Overtaken):
                sequence = await self._bucket.write(name, record, found.sequence)
                tenure = Tenure(ttl_s, sent_at)
                return Lease(self._bucket, name, record, record.token or sequence, sequence, tenure, self._clock)


class Lease:
    """A lease that this process took; a task renews it.

    Attributes:
        name: of the lease.
        token: fencing token, larger than that of every holder before; it stays the same while the lease is renewed.
        on_lost: called with the reason when the lease is found lost; not when it is released.
    """

    def __init__(
        self, bucket: LeaseBucket, name: str, record: Record, token: int, sequence: int, tenure: Tenure, clock: Clock
    ) -> None:
        self.name = name
        self.token = token
        self.on_lost: list[Callable[[str], None]] = []
        self._bucket = bucket
        self._record = msgspec.structs.replace(record, token=token)
        self._sequence = sequence
        self._tenure = tenure
        self._clock = clock
        self._over = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(), name=f"aikoryu-lease-{name}")

    @property
    def held(self) -> bool:
        """Whether this process may still act, by its own clock as it is now."""
        return self._tenure.decide(self._clock()).phase is not Phase.LOST

    def check(self) -> None:
        """Raise LeaseLost unless the lease is held."""
        if not self.held:
            raise LeaseLost(f"the lease {self.name} is lost: {self._tenure.reason}. Acquire it again")

    async def lost(self) -> str:
        """Wait until the lease is lost or released; returns why."""
        await self._over.wait()
        return self._tenure.reason

    async def release(self) -> None:
        """Stop holding the lease, then let others have it; if the server is out of reach, it expires. Idempotent."""
        self._tenure.lose("its holder released it")
        self._keeper.cancel()
        await asyncio.wait({self._keeper})
        self._over.set()
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(RELEASE_WITHIN_S):
                # A lost lease as well: a renewal that was kept while the connection was lost may have come through.
                while self._sequence:
                    try:
                        await self._bucket.erase(self.name, self._sequence)
                        self._sequence = 0
                    except Overtaken:
                        self._sequence = await self._own_sequence()

    async def _keep(self) -> None:
        while True:
            phase, within_s = self._tenure.decide(self._clock())
            if phase is Phase.LOST:
                self._announce()
                return
            if phase is Phase.DUE:
                await self._renew(within_s)
            else:
                await asyncio.sleep(min(within_s, self._record.ttl_s * LOOK_AT_CLOCK))

    async def _renew(self, within_s: float) -> None:
        sent_at = self._clock()
        try:
            async with asyncio.timeout(within_s):
                self._sequence = await self._bucket.write(self.name, self._record, self._sequence)
                self._tenure.renewed(sent_at)
        except Overtaken:
            await self._find_out(within_s)
        except (BusError, TimeoutError) as error:
            _log.warning("lease not renewed", lease=self.name, error=str(error) or f"no answer within {within_s:g} s")
            self._tenure.unanswered(self._clock())

    async def _find_out(self, within_s: float) -> None:
        """The key has a later sequence: of a renewal that was not answered, or of another holder."""
        try:
            async with asyncio.timeout(within_s):
                sequence = await self._own_sequence()
        except (BusError, TimeoutError):
            self._tenure.unanswered(self._clock())
        else:
            if sequence:
                self._sequence = sequence
            else:
                self._tenure.lose("the server let it expire, or somebody deleted it")

    async def _own_sequence(self) -> int:
        """The sequence of this lease's record, 0 if it is there no more."""
        found = await self._bucket.read(self.name)
        return found.sequence if found.record is not None and found.record.nonce == self._record.nonce else 0

    def _announce(self) -> None:
        _log.warning("lease lost", lease=self.name, token=self.token, reason=self._tenure.reason)
        self._over.set()
        for lost in list(self.on_lost):
            try:
                lost(self._tenure.reason)
            except Exception as error:
                _log.warning("on_lost failed", lease=self.name, exc_info=error)


async def _pause(name: str, failures: int, error: BusError) -> None:
    # The 1st, 2nd, 4th, 8th: a server that is away for long does not fill the log.
    if failures & (failures - 1) == 0:
        _log.warning("lease cannot be asked for", lease=name, failures=failures, error=str(error))
    await asyncio.sleep(RETRY_S)

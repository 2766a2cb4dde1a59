"""Which keys of an agent with state this process owns: its share of the partitions, while it holds their leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress

import structlog

from ..bus.errors import BusError, Closed, Disconnected, Moved
from ..bus.jetstream import NoAnswer, Unavailable
from ..bus.service import Service
from ..bus.subjects import partition as partition_of
from ..bus.transport import Subscription
from .agent import Resident
from .cells import Cells
from .keyed_call import KeyedCall
from .roster import Change
from .shares import share
from .state_store import Lease, StateStore
from .tenancy import Tenancy

RETRY_S = 1.0  # at the latest, a partition that another owns is asked for again; hints of its release may be lost
UNANSWERED_S = 0.1  # likewise, when the server did not say who owns it
SETTLE_S = 5.0  # that calls have to end before their partition goes to another process

Watch = Callable[[], AsyncGenerator[Change, None]]

_log = structlog.get_logger(__name__)


class Ownership:
    """The partitions of one agent that this process owns.

    Args:
        resident: the agent.
        service: takes its calls.
        store: where states and leases are kept, opened.
        cells: what this process remembers of keys.
        watch: tells which processes have which agents; see `Lookout.watch`.
        process: this one's name.
        partitions: to which the agent's keys are dealt.

    Attributes:
        owned: by partition.
    """

    def __init__(
        self,
        resident: Resident,
        service: Service,
        store: StateStore,
        cells: Cells,
        watch: Watch,
        process: str,
        partitions: int,
    ) -> None:
        self.owned: dict[int, Tenancy] = {}
        self._resident = resident
        resident.ownership = self
        self._service = service
        self._store = store
        self._cells = cells
        self._watch = watch
        self._process = process
        self._partitions = partitions
        self._processes = {process}
        self._wanted: set[int] = set()
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Event] = {}
        self._follower: asyncio.Task[None] | None = None
        self._dealing: asyncio.Handle | None = None
        self._watching: Subscription | None = None
        self._settle_s = SETTLE_S
        self._failures = 0

    def find(self, key: str) -> Tenancy:
        """By which this process owns a key.

        Raises:
            Moved: it does not.
        """
        tenancy = self.owned.get(partition_of(key, self._partitions))
        if tenancy is None:
            raise Moved(f"{self._resident.name} {key!r} has another owner: ask again")
        return tenancy

    def accepted(self, calls: Iterable[KeyedCall]) -> None:
        """Calls that now wait in the mailbox."""
        for call in calls:
            call.tenancy.accepted([call])

    async def start(self) -> None:
        """Take this process's share from now on, when it is known which others there are."""
        self._watching = await self._store.watch(self._resident.name, self._wake)
        self._follower = asyncio.create_task(self._follow(), name=f"aikoryu-owner-{self._resident.name}")

    def want(self, wanted: set[int]) -> None:
        """Own these partitions and no others: each as soon as it is free, those that are too many no longer."""
        self._wanted = wanted
        for partition in wanted - self._keepers.keys():
            self._wakes[partition] = asyncio.Event()
            self._keepers[partition] = asyncio.create_task(
                self._keep(partition), name=f"aikoryu-owner-{self._resident.name}-{partition}"
            )
        for partition in self._wakes.keys() - wanted:
            self._wake(partition)

    async def stop(self, settle_s: float) -> None:
        """Hand over all that is owned, answering what was accepted as far as it ends in time. Idempotent."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait({self._follower})
        if self._dealing is not None:
            self._dealing.cancel()
        self._settle_s = min(settle_s, SETTLE_S)
        self.want(set())
        if self._keepers:
            await asyncio.wait(self._keepers.values())
        if self._watching is not None:
            await self._watching.unsubscribe()

    async def _follow(self) -> None:
        """Hear who comes and goes."""
        name = self._resident.name
        while True:
            try:
                async with aclosing(self._watch()) as changes:
                    self._processes = {self._process}
                    async for change in changes:
                        if change.entry.name == name:
                            (self._processes.add if change.joined else self._processes.discard)(change.entry.process)
                            self._processes.add(self._process)  # it is there, whether or not it hears itself
                            self._deal_soon()
                return
            except Closed:
                return
            except Exception as error:
                traceback = None if isinstance(error, BusError) else error
                _log.warning("who else has the agent is not known", agent=name, error=str(error), exc_info=traceback)
                await asyncio.sleep(RETRY_S)

    def _deal_soon(self) -> None:
        """Want this process's share, when all changes at hand are heard: a share of a thousand processes takes long."""
        if self._dealing is None:
            self._dealing = asyncio.get_running_loop().call_soon(self._deal)

    def _deal(self) -> None:
        self._dealing = None
        self.want(share(self._process, self._processes, self._resident.name, self._partitions))

    def _wake(self, partition: int) -> None:
        """A partition may have become free, be lost, or be wanted no more."""
        wake = self._wakes.get(partition)
        if wake is not None:
            wake.set()

    async def _keep(self, partition: int) -> None:
        """Own a partition whenever that is possible, until it is wanted no more."""
        wake = self._wakes[partition]
        try:
            while partition in self._wanted:
                wake.clear()
                within_s = RETRY_S
                try:
                    lease = await self._store.acquire(self._resident.name, partition)
                    if lease is not None:
                        await self._own(partition, lease, wake)
                        continue
                except (NoAnswer, Unavailable, Disconnected):
                    within_s = UNANSWERED_S
                except Exception as error:
                    # A defect, too: nobody else would take the partition as long as this process wants it.
                    self._complain(partition, error)
                    await self._rest(partition, wake)
                    continue
                if partition in self._wanted:
                    await _either(wake, within_s)
        finally:
            del self._keepers[partition], self._wakes[partition]

    async def _own(self, partition: int, lease: Lease, wake: asyncio.Event) -> None:
        """Serve a partition until its lease is lost or it is wanted no more."""
        lost: list[str] = []

        def on_lost(reason: str) -> None:
            lost.append(reason)
            wake.set()

        lease.on_lost.append(on_lost)
        tenancy = self.owned[partition] = Tenancy(self._resident, partition, lease, self._store, self._cells, on_lost)
        try:
            subscription = await self._service.serve_partition(self._resident.name, partition)
            try:
                while partition in self._wanted and not lost:
                    await wake.wait()
                    wake.clear()
            finally:
                await (subscription.unsubscribe() if lost else subscription.drain())
            if lost:
                _log.info("partition lost", agent=self._resident.name, partition=partition, reason=lost[0])
                tenancy.give_up()
            else:
                await tenancy.settle(self._settle_s)
        except BaseException:
            tenancy.give_up()
            raise
        finally:
            del self.owned[partition]
            tenancy.end()
            await lease.release()

    async def _rest(self, partition: int, wake: asyncio.Event) -> None:
        """Wait before the next try, also if hints come: this process's own release is one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                while partition in self._wanted:
                    wake.clear()
                    await wake.wait()

    def _complain(self, partition: int, error: Exception) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th
            traceback = None if isinstance(error, BusError) else error
            _log.warning(
                "partition not owned",
                agent=self._resident.name,
                partition=partition,
                error=str(error),
                exc_info=traceback,
            )


async def _either(wake: asyncio.Event, within_s: float) -> None:
    """Return when there is something to look at, or the time has passed."""
    try:
        async with asyncio.timeout(within_s):
            await wake.wait()
    except TimeoutError:
        return

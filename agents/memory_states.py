"""States and owners in memory, in place of a server: for apps that run without one, inside one event loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from weakref import WeakKeyDictionary

from ..bus.bucket import Overtaken
from ..bus.leases import LeaseLost
from ..bus.memory import MemoryBus
from .state_store import Found


class MemoryStates:
    """A `StateStore` that lasts as long as a bus in memory; all its apps share it."""

    def __init__(self) -> None:
        self._leases: dict[tuple[str, int], MemoryLease] = {}
        self._written: dict[tuple[str, str], Found] = {}
        self._watching: list[_Watching] = []
        self._tokens = itertools.count(1)
        self._sequences = itertools.count(1)

    @classmethod
    def of(cls, memory: MemoryBus) -> MemoryStates:
        """The states of a bus in memory."""
        return _of.setdefault(memory, cls())

    async def open(self) -> None:
        """Nothing is to be made."""

    async def close(self) -> None:
        """Nothing listens but what `watch` has returned."""

    async def acquire(self, agent: str, partition: int) -> MemoryLease | None:
        if (agent, partition) in self._leases:
            return None
        lease = MemoryLease(self, (agent, partition), next(self._tokens))
        self._leases[agent, partition] = lease
        return lease

    async def watch(self, agent: str, changed: Callable[[int], None]) -> _Watching:
        watching = _Watching(agent, changed, self._watching)
        self._watching.append(watching)
        return watching

    async def read(self, agent: str, partition: int, key: str) -> Found:
        return self._written.get((agent, key), Found())

    async def write(self, agent: str, partition: int, key: str, data: bytes, expected: int) -> int:
        if self._written.get((agent, key), Found()).sequence != expected:
            raise Overtaken
        sequence = next(self._sequences)
        self._written[agent, key] = Found(sequence, data)
        return sequence

    def expire(self, agent: str, partition: int, *, told: bool = True) -> None:
        """Take a partition from its owner, as a server does that heard nothing of it; `told`: the owner notices."""
        lease = self._leases.get((agent, partition))
        if lease is not None:
            if told:
                lease.lose("it expired")
            self.free(lease)

    def free(self, lease: MemoryLease) -> None:
        """Let others have a partition."""
        if self._leases.get(lease.place) is lease:
            del self._leases[lease.place]
            agent, partition = lease.place
            for watching in list(self._watching):
                if watching.agent == agent:
                    watching.changed(partition)


class MemoryLease:
    """A `Lease` of a partition."""

    def __init__(self, states: MemoryStates, place: tuple[str, int], token: int) -> None:
        self.place = place
        self.token = token
        self.on_lost: list[Callable[[str], None]] = []
        self._states = states
        self._reason = ""

    def check(self) -> None:
        if self._reason:
            raise LeaseLost(f"the partition {self.place} is lost: {self._reason}")

    def lose(self, reason: str) -> None:
        """It is over, and its holder hears of it."""
        self._reason = reason
        for lost in self.on_lost:
            lost(reason)

    async def release(self) -> None:
        self._reason = self._reason or "its holder released it"
        self._states.free(self)


class _Watching:
    """Who wants to hear of an agent's partitions."""

    def __init__(self, agent: str, changed: Callable[[int], None], among: list[_Watching]) -> None:
        self.agent = agent
        self.changed = changed
        self._among = among

    async def unsubscribe(self) -> None:
        if self in self._among:
            self._among.remove(self)

    async def drain(self) -> None:
        await self.unsubscribe()


_of: WeakKeyDictionary[MemoryBus, MemoryStates] = WeakKeyDictionary()

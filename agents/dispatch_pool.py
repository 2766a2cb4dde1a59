"""The agents that tasks are assigned to, as arrays: what each is about, what it can do, how busy it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .assignment import Candidates
from .listing import Entry

ROOM = 16  # tasks of one batch that go to one process of an agent
MOST_SKILLS = 64  # capabilities and handlers that can be told to a worker, a bit each


@dataclass
class Pool:
    """The agents that say what they are about.

    Attributes:
        names: theirs.
        texts: what each is about.
        bits: of each capability, and of each handler.
        vectors: (n, d) float32, of the texts.
        capabilities: (n,) uint64.
        load: (n,) float32, of the least loaded process of each.
        capacity: (n,) uint32.
        made: when loads were taken, s of the loop's clock.
        candidates: the same, with a worker; None if none took it.
    """

    names: list[str]
    texts: list[str]
    bits: dict[str, int]
    capabilities: NDArray[np.uint64]
    load: NDArray[np.float32]
    capacity: NDArray[np.uint32]
    made: float
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    candidates: Candidates | None = None

    @classmethod
    def of(cls, entries: Iterable[Entry], now: float) -> Pool:
        """Those of some agents without state that say what they are about, by name; a name's processes are one."""
        found: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.about and not entry.keyed:  # for a key no task says
                found.setdefault(entry.name, []).append(entry)
        names = sorted(found)
        able = [frozenset.intersection(*map(_skills, found[name])) for name in names]
        bits = {each: bit for bit, each in enumerate(sorted(frozenset().union(*able))[:MOST_SKILLS])}
        return cls(
            names,
            [found[name][0].about for name in names],
            bits,
            np.array([sum(1 << bits[each] for each in skills if each in bits) for skills in able], np.uint64),
            np.array([min(entry.load for entry in found[name]) for name in names], np.float32),
            np.array([ROOM * len(found[name]) for name in names], np.uint32),
            now,
        )

    def same(self, other: Pool) -> bool:
        """Whether the agents are, and what they can do; loads aside."""
        return (self.names, self.texts, self.bits) == (other.names, other.texts, other.bits) and np.array_equal(
            self.capabilities, other.capabilities
        )

    def need(self, capabilities: Iterable[str], handler: str) -> int | None:
        """The bits of what a task needs; None if no agent here has one of them."""
        wanted = [self.bits.get(each) for each in (*capabilities, _of_handler(handler))]
        return None if None in wanted else sum(1 << bit for bit in wanted if bit is not None)


def _skills(entry: Entry) -> frozenset[str]:
    """What an agent can do, and its handlers, which no capability can be taken for."""
    return entry.capabilities.union(map(_of_handler, entry.handlers))


def _of_handler(name: str) -> str:
    return f"{name}()"

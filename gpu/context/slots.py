"""Which row of a graph's matrices is whose."""

from __future__ import annotations

import numpy as np

from ...bus.columns import Array


class Slots:
    """A slot for each agent, found by its number; slots that are given back are taken first.

    They are on the host, whatever the device: whoever says something is answered from here, and no GPU waited for. The
    same calls give the same slots on every device. The table has a place for every number up to the largest.

    Attributes:
        used: slots from here on were never taken.
    """

    def __init__(self) -> None:
        self.used = 0
        self._slot: Array = np.empty(0, np.int64)
        self._agents: Array = np.empty(0, np.int64)
        self._is_taken: Array = np.empty(0, bool)
        self._free: Array = np.empty(0, np.int64)

    def __len__(self) -> int:
        """How many are taken."""
        return self.used - len(self._free)

    @property
    def agents(self) -> Array:
        """(used,) int64, whose each slot is; of one that is free, whose it was."""
        return self._agents[: self.used]

    def find(self, agents: Array) -> Array:
        """(m,) int64, the slots of agents; -1 for those that have none."""
        known = (agents >= 0) & (agents < len(self._slot))
        if known.all():
            return self._slot[agents]
        found = np.full(len(agents), -1)
        found[known] = self._slot[agents[known]]
        return found

    def take(self, agents: Array) -> Array:
        """(m,) int64, the slots of agents, new ones for those that have none; an agent may come more than once."""
        found = self.find(agents)
        new = agents[found < 0]
        if not len(new):
            return found
        self._add(np.unique(new))
        return self.find(agents)

    def taken(self) -> Array:
        """(used,) bool, the slots that are somebody's."""
        return self._is_taken[: self.used].copy()

    def give_back(self, slots: Array) -> None:
        """Free slots that are taken, (m,) int64, each once."""
        self._slot[self._agents[slots]] = -1
        self._is_taken[slots] = False
        self._free = np.concatenate([self._free, slots])

    def _add(self, agents: Array) -> None:
        """Take slots for agents that have none, in ascending order and each once."""
        reused, self._free = self._free[: len(agents)], self._free[len(agents) :]
        first, self.used = self.used, self.used + len(agents) - len(reused)
        slots = np.concatenate([reused, np.arange(first, self.used)])
        self._slot = _grown(self._slot, int(agents[-1]) + 1, -1)
        self._agents = _grown(self._agents, self.used, -1)
        self._is_taken = _grown(self._is_taken, self.used, 0)
        self._slot[agents], self._agents[slots], self._is_taken[slots] = slots, agents, True


def _grown(column: Array, length: int, fill: int) -> Array:
    """At least so long, and half as much again where it must grow."""
    if length <= len(column):
        return column
    more = np.full(length + length // 2 - len(column), fill, column.dtype)
    return np.concatenate([column, more])

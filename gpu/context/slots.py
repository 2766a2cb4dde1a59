"""Which row of a graph's matrices is whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Slots:
    """A slot for each agent, found by its number; slots that are given back are taken first.

    The same calls give the same slots on every device.

    Attributes:
        used: slots from here on were never taken.
        agents: (used,) int64, whose each slot is; of one that is free, whose it was.
    """

    def __init__(self, place: torch.device) -> None:
        import torch

        self.used = 0
        self.agents = torch.empty(0, dtype=torch.int64, device=place)
        self._sorted = self.agents
        self._slot = self.agents
        self._free = self.agents

    def __len__(self) -> int:
        """How many are taken."""
        return len(self._sorted)

    def find(self, agents: Tensor) -> Tensor:
        """(m,) int64, the slots of agents; -1 for those that have none."""
        import torch

        if not len(self._sorted):
            return torch.full_like(agents, -1)
        where = torch.searchsorted(self._sorted, agents).clamp(max=len(self._sorted) - 1)
        return torch.where(self._sorted[where] == agents, self._slot[where], -1)

    def take(self, agents: Tensor) -> Tensor:
        """(m,) int64, the slots of agents, new ones for those that have none; an agent may come more than once."""
        import torch

        found = self.find(agents)
        new = agents[found < 0]
        if not len(new):
            return found
        self._add(torch.unique(new))
        return self.find(agents)

    def taken(self) -> Tensor:
        """(used,) bool, the slots that are somebody's."""
        import torch

        found = torch.zeros(self.used, dtype=torch.bool, device=self._slot.device)
        return found.index_fill_(0, self._slot, True)

    def give_back(self, slots: Tensor) -> None:
        """Free slots that are taken, (m,) int64, each once."""
        import torch

        kept = ~torch.isin(self._slot, slots)
        self._sorted, self._slot = self._sorted[kept], self._slot[kept]
        self._free = torch.cat([self._free, slots])

    def _add(self, agents: Tensor) -> None:
        """Take slots for agents that have none, in ascending order and each once."""
        import torch

        reused, self._free = self._free[: len(agents)], self._free[len(agents) :]
        first, self.used = self.used, self.used + len(agents) - len(reused)
        slots = torch.cat([reused, torch.arange(first, self.used, device=reused.device)])
        self.agents = torch.cat([self.agents, agents[len(reused) :]])
        self.agents[reused] = agents[: len(reused)]
        self._sorted, order = torch.cat([self._sorted, agents]).sort()
        self._slot = torch.cat([self._slot, slots])[order]

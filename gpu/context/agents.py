"""What a graph keeps of each agent: a row of every matrix, and on the host what was said of it last."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from ...bus.columns import Array
from .stamps import Stamps

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class AgentTable:
    """Columns by slot, with room for more rows.

    Attributes:
        own: (n, d) bf16, X0: what each agent has put.
        blended: (n, d) float32, Z: what reaches it, so far.
        residual: (n, d) float32, R: what has not been passed on.
        norm: (n,) float32, the length of each row of R.
        is_there: (n,) bool, as `LastWords` has it, for searches.
        capabilities: (n,) int64, a bit for each.
        load: (n,) float32.
        stirred: (n,) bool, Z has changed since it was last compared with `sent`.
        sent: (n, d) bf16, what the agent was last told of its row of Z.
        threshold: (n,) float32, τ: how far Z may be from that; infinite for who is not told.
        interval_ms: (n,) int64, the least time between two tellings.
        sent_ms: (n,) int64, when it was told last.
    """

    own: Tensor
    blended: Tensor
    residual: Tensor
    norm: Tensor
    is_there: Tensor
    capabilities: Tensor
    load: Tensor
    stirred: Tensor
    sent: Tensor
    threshold: Tensor
    interval_ms: Tensor
    sent_ms: Tensor

    @classmethod
    def empty(cls, slots: int, dimension: int, place: torch.device) -> AgentTable:
        """Rows of nobody."""
        import torch

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((slots, *shape), dtype=dtype, device=place)

        table = cls(
            own=zeros(torch.bfloat16, dimension),
            blended=zeros(torch.float32, dimension),
            residual=zeros(torch.float32, dimension),
            norm=zeros(torch.float32),
            is_there=zeros(torch.bool),
            capabilities=zeros(torch.int64),
            load=zeros(torch.float32),
            stirred=zeros(torch.bool),
            sent=zeros(torch.bfloat16, dimension),
            threshold=zeros(torch.float32),
            interval_ms=zeros(torch.int64),
            sent_ms=zeros(torch.int64),
        )
        table.clear(torch.arange(slots, device=place))
        return table

    def __len__(self) -> int:
        return len(self.norm)

    def grow(self, slots: int) -> None:
        """Have so many rows; the new ones are nobody's."""
        import torch

        more = AgentTable.empty(slots - len(self), self.own.shape[1], self.own.device)
        for column in fields(self):
            setattr(self, column.name, torch.cat([getattr(self, column.name), getattr(more, column.name)]))

    def clear(self, slots: Tensor) -> None:
        """Make rows nobody's, (m,) int64."""
        for column in fields(self):
            getattr(self, column.name).index_fill_(0, slots, 0)
        self.threshold[slots] = math.inf
        self.sent_ms[slots] = NEVER_MS


@dataclass
class LastWords:
    """What was put or removed last, by slot; on the host, so that whose word counts is known without a GPU.

    Attributes:
        stamps: n of them.
        is_there: (n,) bool, the agent has put something and was not removed.
    """

    stamps: Stamps
    is_there: Array

    @classmethod
    def none(cls, slots: int) -> LastWords:
        """Nobody has said anything."""
        return cls(Stamps.none(slots), np.zeros(slots, bool))

    def grow(self, slots: int) -> None:
        """Have so many rows; of the new ones nothing was said."""
        more = LastWords.none(slots - len(self.is_there))
        self.stamps = Stamps.joined([self.stamps, more.stamps])
        self.is_there = np.concatenate([self.is_there, more.is_there])

    def clear(self, slots: Array) -> None:
        """Forget what was said, (m,) int64."""
        self.stamps[slots] = Stamps.none(len(slots))
        self.is_there[slots] = False

    def versions(self, slots: Array) -> Array:
        """(m,) uint64, of what agents have put; 0 for who is not there, and for slot -1."""
        found: Array = np.where((slots >= 0) & self.is_there[slots], self.stamps.version[slots], np.uint64(0))
        return found


NEVER_MS = -(1 << 62)
"""When an agent was told that was never told: so long ago that no interval matters."""

"""What a graph keeps of each agent: a row of every matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .stamps import SIGN, Stamps

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
        version, writer: (n,) int64, the stamp of the last put or removal.
        is_there: (n,) bool, the agent has put something and was not removed.
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
    version: Tensor
    writer: Tensor
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
            version=zeros(torch.int64),
            writer=zeros(torch.int64),
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
        self.version[slots] = self.writer[slots] = SIGN
        self.threshold[slots] = math.inf
        self.sent_ms[slots] = NEVER_MS

    def stamps(self, slots: Tensor) -> Stamps:
        """The stamps of rows."""
        return Stamps(self.version[slots], self.writer[slots])


NEVER_MS = -(1 << 62)
"""When an agent was told that was never told: so long ago that no interval matters."""

"""Who listens to whom: the edges of a graph, by who hears and by who is heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...bus.columns import Array
from ..device import tensor_of
from .adjacency import Adjacency
from .stamps import Stamps

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Edges:
    """Weighted edges between slots; an edge of weight 0 is a tombstone, which only keeps its stamp.

    An agent hears itself with weight 1, and the weights of all it hears are divided by their sum: `Â` of the graph is
    `scale × (I + W)`. `Â` itself is not kept, so that a change of one edge changes no other.

    Attributes:
        heard: a row a slot, of those that it hears: CSR; versions and writers are u8, kept as int64 of the same bits.
        hearers: a row a slot, of those that hear it: CSC.
        scale: (slots,) float32, one over the sum of what each hears.
    """

    def __init__(self, place: torch.device) -> None:
        import torch

        stamped = {"weight": torch.float32, "version": torch.int64, "writer": torch.int64}
        self.heard = Adjacency(stamped, place)
        self.hearers = Adjacency({"weight": torch.float32}, place)
        self.scale = torch.empty(0, dtype=torch.float32, device=place)

    def __len__(self) -> int:
        """How many, with tombstones."""
        return self.heard.total

    def widen(self, slots: int) -> None:
        """Have so many slots, at least."""
        import torch

        self.heard.widen(slots)
        self.hearers.widen(slots)
        self.scale = torch.cat([self.scale, self.scale.new_ones(max(slots - len(self.scale), 0))])

    def link(self, source: Array, target: Array, weight: Array, stamps: Stamps) -> Array:
        """Let targets hear sources, where nothing later has been said of the same edge.

        Args:
            source, target: (m,) int64, slots.
            weight: (m,) float32, finite and at least 0, which ends it.
            stamps: m of them.

        Returns:
            (m,) bool, those that hold now: later ones of the same call count, too.
        """
        import torch

        place = self.scale.device
        sources, targets = tensor_of(source, place), tensor_of(target, place)
        position = self.heard.find(targets, sources)
        known = position.cpu().numpy() >= 0
        before = Stamps.none(len(known))
        before[known] = self.stamps(position[tensor_of(known, place)])
        applied = stamps.after(before) & stamps.last((target << 32) | source)
        rows = tensor_of(applied.nonzero()[0], place)
        sources, targets = sources[rows], targets[rows]
        weights, versions, writers = (
            tensor_of(column[applied], place) for column in (weight, stamps.version, stamps.writer)
        )
        values = {"weight": weights, "version": versions, "writer": writers}
        self.heard.write(position[rows], targets, sources, values)
        self.hearers.write(self.hearers.find(sources, targets), sources, targets, {"weight": weights})
        self._rescale(torch.unique(targets))
        return applied

    def stamps(self, positions: Tensor) -> Stamps:
        """The stamps of edges, by where `heard` has them."""
        columns = self.heard.columns
        version, writer = (columns[name][positions].cpu().numpy().view(np.uint64) for name in ("version", "writer"))
        return Stamps(version, writer)

    def isolate(self, slots: Tensor) -> Tensor:
        """End all edges from and to slots, (m,) int64 and each once; their stamps stay.

        Returns:
            (c,) int64, the slots whose scale changed.
        """
        import torch

        ends = []
        for these, those in ((self.heard, self.hearers), (self.hearers, self.heard)):
            owner, position = these.entries(slots)
            other = these.other[position].long()
            these.columns["weight"][position] = 0.0
            those.columns["weight"][those.find(other, slots[owner])] = 0.0
            ends.append(other)
        changed: Tensor = torch.unique(torch.cat([slots, ends[1]]))
        self._rescale(changed)
        return changed

    def forget(self) -> None:
        """Drop tombstones: an old word on an edge that was ended counts again, should it come once more."""
        self.heard.compact(self.heard.columns["weight"] > 0)
        self.hearers.compact(self.hearers.columns["weight"] > 0)

    def _rescale(self, slots: Tensor) -> None:
        import torch

        weight = self.heard.columns["weight"][self.heard.entries(slots).position].double()
        # Sums in the order of the edges, on every device; those of `index_add_` are in any.
        # `unsafe` leaves out checks, which wait for the device and stumble over no slots at all.
        heard = torch.segment_reduce(weight, "sum", lengths=self.heard.count[slots], initial=0.0, unsafe=True)
        self.scale[slots] = (1 / (1 + heard)).float()

"""A named graph on a device: what its agents know, who hears whom, and what has not been passed on yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ...bus.columns import Array
from ..device import tensor_of
from .agents import AgentTable, LastWords
from .edges import Edges
from .kernels import Abilities, ContextKernels
from .slots import Slots
from .stamps import Stamps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST_SLOTS = 256
# Of a residual that are computed at once. On two cores, d = 384, a sweep that reached 93,000 rows took 71 ms by so many
# and 200 by all at once.
ROWS = {"cpu": 1 << 12, "cuda": 1 << 17}


class ContextGraph:
    """The state of a graph, and what changes it, many rows at a time.

    What is sought is `Z* = a (I − (1−a) Â)⁻¹ X0`. Whatever is called, and in whatever order, what holds after it is
    `R = a X0 − (I − (1−a) Â) Z` but for rounding, so that `Z* − Z` is at most the longest row of R over a;
    `propagate.settle` makes that small.

    Agents are numbers from 0 on, best without many gaps. Versions and writers are u8, and versions begin at 1. The
    later word holds, by version and then by writer, whichever comes first; so a repeated one changes nothing. Whose
    word counts is decided on the host, so what is said comes as arrays. All numbers are finite.

    Args:
        dimension: d, of every vector.
        alpha: a, above 0 and at most 1: what of an agent's blended context is its own at the least.
        place: the device.

    Attributes:
        slots: which row is whose.
        last: what was said last of each.
        edges: between slots.
        table: the rows.
        kernels: what works on them on a GPU; without it, torch does.

    Source: Andersen, Chung and Lang 2006, Local graph partitioning using PageRank vectors (the residual); Klicpera et
    al. 2019, Predict then propagate (vectors in place of probabilities).
    """

    def __init__(self, dimension: int, alpha: float, place: torch.device) -> None:
        self.dimension = dimension
        self.alpha = alpha
        self.slots = Slots()
        self.last = LastWords.none(LEAST_SLOTS)
        self.edges = Edges(place)
        self.table = AgentTable.empty(LEAST_SLOTS, dimension, place)
        self.edges.widen(LEAST_SLOTS)
        self.kernels = ContextKernels.of(self.table, self.edges, alpha)

    def put(
        self, agents: Array, vectors: Array | Tensor, versions: Array, writers: Array, said: Abilities = None
    ) -> Array:
        """Say what agents know.

        Args:
            agents: (m,) int64; one may come more than once.
            vectors: (m, d), bits of bf16, an array, or a tensor in float32 or bf16 on any device; kept as bf16.
            versions, writers: (m,) uint64.
            said: what they can do and how busy they are, as `route` asks for it; by default that stays.

        Returns:
            (m,) bool, those that hold now: not those for which there is a later word, also in the same call.
        """
        return self._say(agents, vectors, Stamps(versions, writers), said, is_there=True)[0]

    def remove(self, agents: Array, versions: Array, writers: Array) -> Array:
        """Take agents' contexts and edges away; their stamps stay until `forget`.

        A later put brings the context back, and later links the edges.

        Args:
            agents: (m,) int64; one may come more than once.
            versions, writers: (m,) uint64, as of a put.

        Returns:
            (m,) bool, those that hold now.
        """
        nothing = np.zeros((len(agents), self.dimension), np.uint16)
        applied, slots = self._say(agents, nothing, Stamps(versions, writers), None, is_there=False)
        self.refresh(self.edges.isolate(self._tensor(slots)))
        return applied

    def link(self, sources: Array, targets: Array, weights: Array, versions: Array, writers: Array) -> Array:
        """Let targets hear sources; agents that have put nothing yet may be linked, too.

        Args:
            sources, targets: (m,) int64, agents; an edge may come more than once.
            weights: (m,) float32, at least 0, which ends the edge.
            versions, writers: (m,) uint64, of the edge.

        Returns:
            (m,) bool, those that hold now.
        """
        source, target = self._take(sources), self._take(targets)
        applied = self.edges.link(source, target, weights, Stamps(versions, writers))
        self.refresh(self._tensor(np.unique(target[applied])))
        return applied

    def watch(self, agents: Array, thresholds: Array, intervals_ms: Array) -> None:
        """Let `notify.due` tell agents when their blended context has moved; who was told nothing knows zeros.

        Args:
            agents: (m,) int64, each once.
            thresholds: (m,) float32, τ; infinite to be told no more.
            intervals_ms: (m,) int64, the least time between two tellings.
        """
        slots, table = self._tensor(self._take(agents)), self.table
        table.threshold[slots], table.interval_ms[slots] = self._tensor(thresholds), self._tensor(intervals_ms)
        table.stirred[slots] = True

    def forget(self) -> None:
        """Compact: drop the tombstones of edges, and give back the slots of agents of whom nothing is left.

        Those are not there, have no edges and are not watched; what they can do is dropped, too. Words as old
        as what was dropped count again, should they come once more.
        """
        self.edges.forget()
        table, used = self.table, self.slots.used
        alone = table.threshold[:used].isinf()
        alone &= (self.edges.heard.count[:used] == 0) & (self.edges.hearers.count[:used] == 0)
        gone = self.slots.taken() & ~self.last.is_there[:used] & alone.cpu().numpy()
        slots = gone.nonzero()[0]
        # Who hears nobody has X0 for Z*, here 0: an empty row is right, and nobody hears of it.
        table.clear(self._tensor(slots))
        self.last.clear(slots)
        self.slots.give_back(slots)

    def refresh(self, slots: Tensor | None = None) -> None:
        """Compute residuals anew from Z, which also takes away what rounding has made of them.

        Args:
            slots: (m,) int64, each once; all by default.
        """
        import torch

        if self.kernels is not None:
            self.kernels.refresh(slots, self.slots.used)
            return
        if slots is not None:
            for part in torch.split(slots, ROWS[slots.device.type]):
                self._refresh_some(part)
            return
        # Bags of `embedding_bag` follow one another.
        if not self.edges.heard.is_compact:
            self.edges.heard.compact()
        used, heard = self.slots.used, self.edges.heard
        for run in blocks(torch.cat([heard.start[:used], heard.count[:used].sum()[None]])):
            self._refresh_run(*run)

    def _say(
        self, agents: Array, vectors: Array | Tensor, stamps: Stamps, said: Abilities, *, is_there: bool
    ) -> tuple[Array, Array]:
        """What `put` says, and the slots of those that were applied."""
        import torch

        slots, last, table = self._take(agents), self.last, self.table
        applied = stamps.after(last.stamps[slots]) & stamps.last(slots)
        if not applied.all():
            slots, stamps = slots[applied], stamps[applied]
            by = applied if isinstance(vectors, np.ndarray) else tensor_of(applied, vectors.device)
            vectors = vectors[by]
            said = None if said is None else (said[0][applied], said[1][applied])
        last.stamps[slots], last.is_there[slots] = stamps, is_there
        if not isinstance(vectors, np.ndarray):
            # Rounded before the difference is formed: R must be of what is kept.
            vectors = vectors.to(table.own.device, torch.bfloat16).contiguous()
        if self.kernels is not None:
            self.kernels.say(slots, vectors, said, is_there=is_there)
            return applied, slots
        if isinstance(vectors, np.ndarray):
            vectors = self._tensor(vectors.view(np.int16)).view(torch.bfloat16)
        rows = self._tensor(slots)
        table.residual[rows] += self.alpha * (vectors.float() - table.own[rows].float())
        table.own[rows], table.is_there[rows] = vectors, is_there
        table.norm[rows] = torch.linalg.vector_norm(table.residual[rows], dim=1)
        if said is not None:
            table.capabilities[rows], table.load[rows] = map(self._tensor, said)
        return applied, slots

    def _take(self, agents: Array) -> Array:
        slots = self.slots.take(agents)
        if self.slots.used > len(self.table):
            self.table.grow(max(self.slots.used, len(self.table) + len(self.table) // 2))
            self.last.grow(len(self.table))
            self.edges.widen(len(self.table))
        return slots

    def _tensor(self, column: Array) -> Tensor:
        return tensor_of(column, self.table.norm.device)

    def _refresh_some(self, slots: Tensor) -> None:
        import torch

        heard, table = self.edges.heard, self.table
        position = heard.entries(slots).position
        ends = torch.cat([slots.new_zeros(1), heard.count[slots].cumsum(0)])
        sums = weighted_sums(table.blended, heard.other[position], heard.columns["weight"][position], ends)
        mixed = (sums + table.blended[slots]) * ((1 - self.alpha) * self.edges.scale[slots])[:, None]
        table.residual[slots] = mixed.add_(table.own[slots], alpha=self.alpha).sub_(table.blended[slots])
        table.norm[slots] = torch.linalg.vector_norm(table.residual[slots], dim=1)

    def _refresh_run(self, rows: slice, edges: slice, ends: Tensor) -> None:
        """The same of slots one after the other, whose edges are, too."""
        import torch

        heard, table = self.edges.heard, self.table
        mixed = weighted_sums(table.blended, heard.other[edges], heard.columns["weight"][edges], ends)
        mixed.add_(table.blended[rows]).mul_(((1 - self.alpha) * self.edges.scale[rows])[:, None])
        table.residual[rows] = mixed.add_(table.own[rows], alpha=self.alpha).sub_(table.blended[rows])
        table.norm[rows] = torch.linalg.vector_norm(table.residual[rows], dim=1)


def blocks(ends: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cut sums over edges that follow one another into parts that are computed at once.

    Args:
        ends: (m + 1,) int64, as `weighted_sums` has it.

    Yields:
        Which sums, which edges, and where these begin and end among them.
    """
    most, count = ROWS[ends.device.type], len(ends) - 1
    cuts = [*range(0, count, most), count]
    edges = ends[cuts].tolist()
    for first, last, begin, end in zip(cuts, cuts[1:], edges, edges[1:], strict=False):
        yield slice(first, last), slice(begin, end), ends[first : last + 1] - begin


def weighted_sums(rows: Tensor, which: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Sums of rows with weights, added up in order, so that they are the same each time.

    Args:
        rows: (n, d) float32.
        which: (e,) int32, the rows that are added up.
        weight: (e,) float32.
        ends: (m + 1,) int64, where each sum begins in them, and where the last one ends.

    Returns:
        (m, d) float32.
    """
    from torch.nn.functional import embedding_bag

    return embedding_bag(which, rows, ends.int(), mode="sum", per_sample_weights=weight, include_last_offset=True)

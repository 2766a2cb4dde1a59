"""A graph as its log says it: windows in, answers out, names and NumPy at the seam, a device behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ...bus.columns import Array
from ..device import Device, tensor_of
from . import notify
from .deadlines import Deadlines, Ends
from .graph import ContextGraph
from .names import Names
from .propagate import Settled, settle
from .route import route
from .stamps import Stamps
from .words import LAST_WRITER, Links, Puts, Spec, Words

if TYPE_CHECKING:
    from torch import Tensor

QUIET_MS = 600_000
"""What was ended so long ago is contradicted by no call any more that is sent again."""
LEAST_DEAD = 1024  # rows: fewer are not worth a window
MOST_LINKS = 4096
ROWS_COUNTED = 1 << 17  # whose edges are looked at at once

What = Literal["own", "blended"]


class Applied(NamedTuple):
    """What has become of a window.

    Attributes:
        put_holds: (m,) bool, those whose stamp is the agent's now; also of a word that was there before.
        put_versions: (m,) uint64, the version that holds now.
        link_holds: (l,) bool, those whose stamp and weight are the edge's now.
        settled: what it took.
    """

    put_holds: Array
    put_versions: Array
    link_holds: Array
    settled: Settled


class Read(NamedTuple):
    """What agents know.

    Attributes:
        vectors: (m, d) float32; zeros of an agent that is not known.
        versions: (m,) uint64, of what it has put; 0 if that is nothing, or has ended.
    """

    vectors: Array
    versions: Array


class Routed(NamedTuple):
    """The best agents of each query, the best first.

    Attributes:
        names: b lists of at most k.
        scores: (b, k) float32, -inf beyond them.
    """

    names: list[list[str]]
    scores: Array


class Due(NamedTuple):
    """Who is to be told that what reaches it has moved.

    Attributes:
        names: m of them.
        vectors: (m, d) float32, their blended contexts.
        versions: (m,) uint64, as of `Read`.
        moved: (m,) float32, how far those are from what they were told before.
    """

    names: list[str]
    vectors: Array
    versions: Array
    moved: Array


class Counts(NamedTuple):
    """What a graph holds, and what of it only keeps a stamp.

    Attributes:
        agents: that have put something and were not removed.
        slots: taken, by these, by those that are only linked, and by the removed.
        removed: agents.
        edges: with tombstones.
        tombstones: edges that were ended.
    """

    agents: int
    slots: int
    removed: int
    edges: int
    tombstones: int


class GraphState:
    """A graph and the names of its agents; windows of its log bring it from epoch to epoch.

    The same windows give the same bits on the same device; on another, or settled at other times, what is blended is
    within twice epsilon over alpha. Everything is synchronous, and for one thread at a time.

    Args:
        spec: of the graph.
        device: where it is.

    Attributes:
        spec, device: as given.
        epoch: of the last window applied; 0 for none.
        now_ms: its time.
        residual: the longest row of R.
        next_expiry_ms: when the next word ends: a window is due then, even if nothing is said in it. None for never.
        ended_ms: when something was removed or unlinked last; None if it was all forgotten.
        graph, names: by number.
        agent_ends, edge_ends: the words that end.
    """

    def __init__(self, spec: Spec, device: Device) -> None:
        self.spec = spec
        self.device = device
        self.epoch = 0
        self.now_ms = 0
        self.residual = 0.0
        self.next_expiry_ms: int | None = None
        self.ended_ms: int | None = None
        self.graph = ContextGraph(spec.dimension, spec.alpha, device.place)
        self.names = Names()
        self.agent_ends = Deadlines(1, self._agents_hold)
        self.edge_ends = Deadlines(2, self._edges_hold)
        self._place = device.place
        self._watched: dict[str, tuple[float, int]] = {}
        self._windows = self._rows = self._pushes = self._fulls = self._pushed = 0

    def apply(self, epoch: int, words: Words) -> Applied:
        """Say a window, and settle."""
        return Applied(*self.say(epoch, words), self.settle())

    def say(self, epoch: int, words: Words) -> tuple[Array, Array, Array]:
        """Say a window: what has ended by its time ends, puts and links count, then it is forgotten if that is said.

        Whoever reads a log says all of it before it settles.

        Args:
            epoch: the window's place in the log, above those before.
            words: rows that `words.refused_puts` and `words.refused_links` let pass.

        Returns:
            What holds now, as `Applied` has it.
        """
        if epoch <= self.epoch:
            raise ValueError(f"window {epoch} is applied already, up to {self.epoch}: go on from there")
        puts, links = words.puts, words.links
        self.now_ms = max(self.now_ms, words.now_ms)
        unnamed = self._unnamed(words)
        self._expire()
        agents = self._put(puts)
        edges = self._link(links)
        if unnamed:  # after all have their slots
            thresholds, intervals_ms = zip(*(self._watched[name] for name in unnamed), strict=True)
            self.watch(unnamed, np.array(thresholds, np.float32), np.array(intervals_ms, np.int64))
        put_holds, put_versions = self._puts_hold(agents, puts)
        link_holds = self._links_hold(edges, links)
        if words.forget:
            self._forget()
        self.epoch = epoch
        self._windows += 1
        self._rows += len(puts) + len(links)
        return put_holds, put_versions, link_holds

    def settle(self) -> Settled:
        """Pass on what has not been, and see what ends next; `apply` does."""
        settled = settle(self.graph, self.spec.epsilon)
        self.residual = settled.residual
        self._pushes += settled.pushes
        self._fulls += settled.fulls
        self._pushed += settled.edges
        ends = [at for at in (self.agent_ends.first_ms(), self.edge_ends.first_ms()) if at is not None]
        self.next_expiry_ms = min(ends, default=None)
        return settled

    def read(self, agents: Sequence[str], what: What) -> Read:
        """What agents know themselves, or with what reaches them."""
        slots, table = self._slots(agents), self.graph.table
        vectors = _array((table.own if what == "own" else table.blended)[self._tensor(slots)].float())
        vectors[slots < 0] = 0.0
        return Read(vectors, self.graph.last.versions(slots))

    def route(
        self,
        queries: Array,
        needs: Array,
        k: int,
        load_weight: float,
        what: What,
        checkpoint: Callable[[], object],
    ) -> Routed:
        """The agents of the greatest scores, by the cosine less the load.

        Args:
            queries: (b, d) float32, none longer than `shortlist.LONGEST`.
            needs: (b,) uint64, bits of capabilities.
            k: how many, at most.
            load_weight: what a load of 1 takes off a score.
            what: which of the agents' contexts.
            checkpoint: called between tiles; what it raises ends the search.
        """
        found = route(self.graph, self._tensor(queries), self._tensor(needs), k, load_weight, what, checkpoint)
        scores = _array(found.scores)
        counts = (scores > -np.inf).sum(axis=1).tolist()
        best, agents = _array(found.slots), self.graph.slots.agents
        names = [self.names.of(agents[row[:count]]) for row, count in zip(best, counts, strict=True)]
        return Routed(names, scores)

    def watch(self, agents: Sequence[str], thresholds: Array, intervals_ms: Array) -> None:
        """Let `due` tell agents when their blended context has moved; who was told nothing knows zeros.

        Of an agent that nobody has named yet it is kept until somebody does: it takes no slot, so that the same
        windows give the same slots whoever watches.

        Args:
            agents: m of them, each once.
            thresholds: (m,) float32, τ; infinite to be told no more.
            intervals_ms: (m,) int64, the least time between two tellings.
        """
        for name, threshold, interval in zip(agents, thresholds.tolist(), intervals_ms.tolist(), strict=True):
            if threshold < np.inf:
                self._watched[name] = (threshold, interval)
            else:
                self._watched.pop(name, None)
        numbers = self.names.find(agents)
        known = numbers >= 0
        self.graph.watch(numbers[known], thresholds[known].astype(np.float32), intervals_ms[known].astype(np.int64))

    def tell(self, agents: Sequence[str]) -> Read:
        """What reaches agents, as `read` has it; from now on they count as told that."""
        slots, table = self._slots(agents), self.graph.table
        rows = self._tensor(slots[slots >= 0])
        table.sent[rows] = table.blended[rows].to(table.sent.dtype)
        return self.read(agents, "blended")

    def due(self, now_ms: int) -> Due:
        """Who has moved by more than τ from what it was told, its interval being over; they count as told.

        Args:
            now_ms: on a clock that never goes back.
        """
        told = notify.due(self.graph, now_ms)
        agents, versions = self.graph.slots.agents[told.slots], self.graph.last.versions(told.slots)
        return Due(self.names.of(agents), _array(told.vectors.float()), versions, told.moved)

    def links(self, agent: str) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """Whom an agent hears and who it, with weights, the heaviest first, `MOST_LINKS` of each at most."""
        slot = self._slots([agent])
        if slot[0] < 0:
            return [], []
        found = []
        for adjacency in (self.graph.edges.heard, self.graph.edges.hearers):
            position = adjacency.entries(self._tensor(slot)).position
            weight, order = adjacency.columns["weight"][position].sort(descending=True, stable=True)
            count = min(int((weight > 0).sum()), MOST_LINKS)
            other = adjacency.other[position[order[:count]]].long()
            names = self.names.of(self.graph.slots.agents[_array(other)])
            found.append(list(zip(names, weight[:count].tolist(), strict=True)))
        return found[0], found[1]

    def counts(self) -> Counts:
        """What it holds; reads all edges."""
        import torch

        last, edges, slots = self.graph.last, self.graph.edges, self.graph.slots
        there = last.is_there[: slots.used]
        removed = slots.taken() & ~there & (last.stamps.version[: slots.used] > 0)
        heard = edges.heard
        alive = 0
        for first in range(0, slots.used, ROWS_COUNTED):
            rows = torch.arange(first, min(first + ROWS_COUNTED, slots.used), device=self._place)
            alive += int((heard.columns["weight"][heard.entries(rows).position] > 0).sum())
        total = len(edges)
        return Counts(int(there.sum()), len(slots), int(removed.sum()), total, total - alive)

    def figures(self) -> dict[str, float]:
        """Figures by name; reads all edges."""
        counts, table, edges = self.counts(), self.graph.table, self.graph.edges
        kept: list[Tensor] = [getattr(table, column.name) for column in fields(table)]
        for adjacency in (edges.heard, edges.hearers):
            kept += [adjacency.start, adjacency.count, adjacency.other, *adjacency.columns.values()]
        return {
            "epoch": self.epoch,
            "dimension": self.spec.dimension,
            "alpha": self.spec.alpha,
            "epsilon": self.spec.epsilon,
            "agents": counts.agents,
            "slots": counts.slots,
            "removed": counts.removed,
            "edges": counts.edges - counts.tombstones,
            "tombstones": counts.tombstones,
            "deadlines": len(self.agent_ends) + len(self.edge_ends),
            "residual": self.residual,
            "windows": self._windows,
            "rows": self._rows,
            "pushes": self._pushes,
            "fulls": self._fulls,
            "edges_pushed": self._pushed,
            "bytes": sum(column.nbytes for column in kept),
        }

    def _expire(self) -> None:
        """End what has ended by now: after the word that ends, and before any of a later version."""
        ends = self.agent_ends.take(self.now_ms)
        if len(ends):
            self.graph.remove(ends.what[:, 0], ends.version, _last_writers(len(ends)))
            self.ended_ms = self.now_ms
        # Edges of those are ended already; a stamp of their own keeps them so.
        ends = self.edge_ends.take(self.now_ms)
        if len(ends):
            nothing = np.zeros(len(ends), np.float32)
            self.graph.link(ends.what[:, 0], ends.what[:, 1], nothing, ends.version, _last_writers(len(ends)))
            self.ended_ms = self.now_ms

    def _put(self, puts: Puts) -> Array:
        """Say puts; the agents' numbers."""
        agents = self.names.take(puts.agents)
        if not len(puts):
            return agents
        said = (puts.capabilities, puts.load)
        held = self.graph.put(agents, puts.vectors, puts.versions, puts.writers, said)
        self._keep(self.agent_ends, held, agents[:, None], puts)
        return agents

    def _link(self, links: Links) -> Array:
        """Say links; (m, 2) int64, the numbers of sources and targets."""
        ends = np.stack([self.names.take(links.sources), self.names.take(links.targets)], axis=1)
        if not len(links):
            return ends
        held = self.graph.link(ends[:, 0], ends[:, 1], links.weights, links.versions, links.writers)
        self._keep(self.edge_ends, held, ends, links)
        if (links.weights[held] == 0).any():
            self.ended_ms = self.now_ms
        return ends

    def _keep(self, deadlines: Deadlines, held: Array, what: Array, said: Puts | Links) -> None:
        ending = held & (said.until_ms > 0)
        deadlines.add(Ends(said.until_ms[ending], what[ending], said.versions[ending], said.writers[ending]))

    def _puts_hold(self, agents: Array, puts: Puts) -> tuple[Array, Array]:
        held = self.graph.last.stamps[self.graph.slots.find(agents)]
        return held.same(Stamps(puts.versions, puts.writers)), held.version

    def _links_hold(self, edges: Array, links: Links) -> Array:
        if not len(links):
            return np.zeros(0, bool)
        position, said = self._positions(edges), Stamps(links.versions, links.writers)
        weights = _array(self.graph.edges.heard.columns["weight"][position])
        held: Array = self.graph.edges.stamps(position).same(said) & (weights == links.weights)
        return held

    def _agents_hold(self, ends: Ends) -> Array:
        slots = self.graph.slots.find(ends.what[:, 0])
        held: Array = (slots >= 0) & self.graph.last.stamps[slots].same(Stamps(ends.version, ends.writer))
        return held

    def _edges_hold(self, ends: Ends) -> Array:
        position = self._positions(ends.what)
        # -1 reads the last entry, and does not count.
        held: Array = self.graph.edges.stamps(position).same(Stamps(ends.version, ends.writer))
        return held & _array(position >= 0)

    def _forget(self) -> None:
        """Drop what only keeps stamps, and the names of agents of whom nothing is left, watched or not."""
        import torch

        graph, table = self.graph, self.graph.table
        before, used = graph.slots.taken(), graph.slots.used
        thresholds = table.threshold[:used].clone()
        table.threshold[:used] = torch.inf
        graph.forget()
        after = graph.slots.taken()
        table.threshold[:used] = torch.where(self._tensor(after), thresholds, torch.inf)
        self.agent_ends.sift()
        self.edge_ends.sift()
        self.names.drop(graph.slots.agents[before & ~after])
        self.ended_ms = None

    def _unnamed(self, words: Words) -> list[str]:
        """Who is watched, and named for the first time by these words."""
        if not self._watched:
            return []
        said = [*words.puts.agents, *words.links.sources, *words.links.targets]
        return [name for name in dict.fromkeys(said) if name in self._watched and name not in self.names]

    def _slots(self, agents: Sequence[str]) -> Array:
        """(m,) int64, -1 for who has none."""
        return self.graph.slots.find(self.names.find(agents))

    def _positions(self, edges: Array) -> Tensor:
        """Where edges, (m, 2) numbers of sources and targets, lie among those heard; -1 for those that do not."""
        import torch

        source, target = self.graph.slots.find(edges[:, 0]), self.graph.slots.find(edges[:, 1])
        # No row -1 is asked for: it would be the last.
        rows = ((source >= 0) & (target >= 0)).nonzero()[0]
        position = torch.full((len(edges),), -1, device=self._place)
        found = self.graph.edges.heard.find(self._tensor(target[rows]), self._tensor(source[rows]))
        position[self._tensor(rows)] = found
        return position

    def _tensor(self, column: Array) -> Tensor:
        return tensor_of(column, self._place)


def wants_forget(state: GraphState, now_ms: int) -> bool:
    """Whether the owner is to log a window with `forget`. It may read all edges: ask it once a minute.

    So it is if more than a quarter of the slots are of the removed, or half of the edges tombstones; and if nothing has
    been ended for `QUIET_MS`. A word that is older than what was dropped counts again should it come once more, and a
    call is not sent again for so long. Where something is ended all the time, three quarters of either are too much.

    Args:
        state: of the owner.
        now_ms: ms since 1970.
    """
    if state.ended_ms is None:
        return False
    counts = state.counts()
    if counts.removed + counts.tombstones < LEAST_DEAD:
        return False
    removed, tombstones = counts.removed / max(counts.slots, 1), counts.tombstones / max(counts.edges, 1)
    if now_ms - state.ended_ms >= QUIET_MS:
        return removed > 0.25 or tombstones > 0.5
    return removed > 0.75 or tombstones > 0.75


def _last_writers(count: int) -> Array:
    return np.full(count, LAST_WRITER, np.uint64)


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.cpu().numpy()
    return found

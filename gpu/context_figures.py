"""What keepers of context graphs tell of them, once a second: counts that are there anyway, nothing of the device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from heapq import nlargest
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .context.keeper import GraphKeeper
    from .context.propagate import Settled

MOST_TOLD = 100
"""Graphs of a process, at most: callers name them, and each is a dozen series of Prometheus."""
TELL_S = 1.0
BUCKETS_S = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Tally:
    """What a graph's owner has done since it has the graph.

    Attributes:
        windows, rows: applied.
        pushes, fulls: sweeps over some rows and over all.
        swept_edges: that those went along.
        push_cost: by which it was decided between the two last; None before the first window.
        waits: windows by the seconds they took, those up to each of `BUCKETS_S`, then those beyond.
        waited_s: of all windows together.
    """

    def __init__(self) -> None:
        self.windows = self.rows = self.pushes = self.fulls = self.swept_edges = 0
        self.push_cost: float | None = None
        self.waits = [0] * (len(BUCKETS_S) + 1)
        self.waited_s = 0.0

    def add(self, rows: int, settled: Settled, waited_s: float) -> None:
        """A window was applied.

        Args:
            rows: of callers, that are in it.
            settled: what passing it on took.
            waited_s: from when it was taken from what waits, s.
        """
        self.windows += 1
        self.rows += rows
        self.pushes += settled.pushes
        self.fulls += settled.fulls
        self.swept_edges += settled.edges
        self.push_cost = settled.push_cost
        self.waits[bisect_left(BUCKETS_S, waited_s)] += 1
        self.waited_s += waited_s


class GraphFigures(msgspec.Struct, frozen=True, array_like=True):
    """One graph; what is not told is as of `Tally`.

    Attributes:
        name: of the graph.
        residual: the longest row of R, after the last window.
        epoch: of that window.
        waiting_rows: said, and not in the log yet.
        watchers: rows that wait for a change.
    """

    name: str
    windows: int
    rows: int
    pushes: int
    fulls: int
    swept_edges: int
    push_cost: float | None
    waits: list[int]
    waited_s: float
    residual: float | None  # None as well where it is no number, which JSON does not have
    epoch: int
    waiting_rows: int
    watchers: int


class KeeperFigures(msgspec.Struct, frozen=True):
    """A process that keeps graphs.

    Attributes:
        device: where.
        graphs: how many.
        told: those that most was said in.
    """

    device: str
    graphs: int
    told: list[GraphFigures]


class HostFigures(msgspec.Struct, frozen=True):
    """Who keeps a worker's graphs.

    Attributes:
        up: whether a process serves, by device.
        keepers: each process that has graphs; two while they go from one to the other.
    """

    up: dict[str, bool]
    keepers: list[KeeperFigures]


def figures_of(device: str, keepers: Collection[GraphKeeper]) -> KeeperFigures:
    """What the owner of graphs tells of them."""
    told = nlargest(MOST_TOLD, keepers, key=lambda keeper: keeper.tally.rows)
    return KeeperFigures(device, len(keepers), [_of_graph(keeper) for keeper in told])


def _of_graph(keeper: GraphKeeper) -> GraphFigures:
    tally, state = keeper.tally, keeper.state
    return GraphFigures(
        keeper.name,
        tally.windows,
        tally.rows,
        tally.pushes,
        tally.fulls,
        tally.swept_edges,
        tally.push_cost,
        tally.waits,
        tally.waited_s,
        state.residual,
        state.epoch,
        keeper.waiting_rows,
        keeper.watcher_count,
    )

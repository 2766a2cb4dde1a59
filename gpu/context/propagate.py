"""Pass on what has changed, until what is left is small: sweep by sweep, of a few rows or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .graph import ContextGraph, blocks, weighted_sums

if TYPE_CHECKING:
    from torch import Tensor

# An edge that is pushed is sorted, and its row of R read and written. On two cores, n = 1e5, d = 384: 0.16 µs for each
# beyond those that reach every row, and 0.07 in a sweep over all rows.
PUSH_COST = 2.2
MOST_PUSHES = 256  # of a call; sweeps of all rows then, each of which takes off a part of at least alpha


class Settled(NamedTuple):
    """What a call of `settle` has done.

    Attributes:
        pushes: sweeps over the rows that had something to pass on.
        fulls: sweeps over all rows.
        edges: that all of them went along.
        residual: the length of the longest row of R; above ε where float32 allows no less.
    """

    pushes: int
    fulls: int
    edges: int
    residual: float


def settle(graph: ContextGraph, epsilon: float, push_cost: float = PUSH_COST) -> Settled:
    """Make every row of R at most ε long; each row of Z is then at most ε over alpha from what is sought.

    A sweep takes all rows that are longer, adds them to Z, and passes them on to who hears them. Where that costs more
    than to compute all of R anew, it does that. Both add up in order: the same calls give the same bits.

    Args:
        graph: what to settle.
        epsilon: ε, above 0.
        push_cost: of an edge in a sweep over some rows, in such of a sweep over all.
    """
    pushes = fulls = gone = 0
    table, hearers = graph.table, graph.edges.hearers
    used, all_edges = graph.slots.used, len(graph.edges)
    while True:
        norm = table.norm[:used]
        frontier = (norm > epsilon).nonzero().flatten()
        if not len(frontier):
            break
        edges = int(hearers.count[frontier].sum())
        if pushes < MOST_PUSHES and push_cost * (edges + len(frontier)) < all_edges + used:
            _push(graph, frontier)
            pushes, gone = pushes + 1, gone + edges
            continue
        longest = float(norm.max())
        _full(graph)
        fulls, gone = fulls + 1, gone + all_edges
        if not float(norm.max()) < (1 - graph.alpha / 2) * longest:
            break  # rounding is all that is left
    return Settled(pushes, fulls, gone, float(table.norm[:used].max()) if used else 0.0)


def _push(graph: ContextGraph, frontier: Tensor) -> None:
    """Pass on the residuals of some rows, (f,) int64 and each once."""
    import torch

    table, hearers = graph.table, graph.edges.hearers
    passed = table.residual[frontier]
    table.blended[frontier] += passed
    table.stirred[frontier] = True
    table.residual[frontier] = 0
    owner, position = hearers.entries(frontier)
    # Each hears itself, too.
    itself = torch.arange(len(frontier), device=frontier.device)
    target = torch.cat([frontier, hearers.other[position].long()])
    weight = torch.cat([graph.edges.scale.new_ones(len(frontier)), hearers.columns["weight"][position]])
    # By who hears: no product an edge is held, and nothing is added in an order of its own.
    target, order = target.sort(stable=True)
    reached, count = torch.unique_consecutive(target, return_counts=True)
    ends = torch.cat([count.new_zeros(1), count.cumsum(0)])
    owner, weight = torch.cat([itself, owner])[order].int(), weight[order]
    scale = ((1 - graph.alpha) * graph.edges.scale[reached])[:, None]
    for rows, edges, ends_there in blocks(ends):
        part = reached[rows]
        left = table.residual[part]
        left.addcmul_(weighted_sums(passed, owner[edges], weight[edges], ends_there), scale[rows])
        table.residual[part] = left
        table.norm[part] = torch.linalg.vector_norm(left, dim=1)


def _full(graph: ContextGraph) -> None:
    """Z ← (1−a) Â Z + a X0, which is Z + R, and R anew."""
    table, used = graph.table, graph.slots.used
    table.blended[:used] += table.residual[:used]
    table.stirred[:used] = True
    graph.refresh()

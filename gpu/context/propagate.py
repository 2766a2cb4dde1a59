"""Pass on what has changed, until what is left is small: sweep by sweep, of a few rows or of all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .graph import ContextGraph, blocks, weighted_sums
from .kernels import Pushed, no_more

if TYPE_CHECKING:
    from torch import Tensor

# What an edge costs that is pushed, in such of a sweep over all rows. Measured (`benchmarks.context_maths`) on an H100,
# n = 1e6, where whoever is reached adds up all that it hears: 5 in a uniform graph, 19 in a clustered one, where sweeps
# over all rows find most in caches. On two cores, d = 384, 2,000 to 100,000 agents and windows of 8 to 2,048 puts, by 5
# it took as long as by anything from 2 to 8 or less: at 2,000, 8 puts took 8.8 ms, and by 2.2 14.7.
PUSH_COST = 5.0
MOST_PUSHES = 256  # of a call; sweeps of all rows then, each of which takes off a part of at least alpha
NO_LIMIT = 1 << 62  # edges


class Settled(NamedTuple):
    """What a call of `settle` has done.

    Attributes:
        pushes: sweeps over the rows that had something to pass on.
        fulls: sweeps over all rows.
        edges: that all of them went along.
        residual: the length of the longest row of R; above ε where float32 allows no less.
        push_cost: by which it was decided between the two.
    """

    pushes: int
    fulls: int
    edges: int
    residual: float
    push_cost: float


def settle(graph: ContextGraph, epsilon: float, push_cost: float = PUSH_COST) -> Settled:
    """Make every row of R at most ε long; each row of Z is then at most ε over alpha from what is sought.

    A sweep takes all rows that are longer, adds them to Z, and passes them on to who hears them. Where that costs more
    than to compute all of R anew, it does that. All is added up in order, so the same calls give the same bits, but
    for one case: of a row that hears more than `source.LONG` others, a GPU's kernels add up parts in any order. The
    bound holds all the same, and two replicas are at most twice as far from each other.

    Args:
        graph: what to settle.
        epsilon: ε, above 0.
        push_cost: of an edge in a sweep over some rows, in such of a sweep over all; by default as measured.
    """
    used, all_edges = graph.slots.used, len(graph.edges)
    pushes = fulls = gone = 0
    longest, again = 0.0, False
    limit = math.ceil((all_edges + used) / push_cost) if push_cost else NO_LIMIT
    while used:
        done = push(graph, epsilon, limit if pushes < MOST_PUSHES else 0, max(MOST_PUSHES - pushes, 1))
        pushes, gone, longest = pushes + done.pushes, gone + done.edges, done.longest
        if done.is_settled:
            break
        before = longest
        full_step(graph, again=again and not done.pushes)
        again = True
        fulls, gone = fulls + 1, gone + all_edges
        longest = float(graph.table.norm[:used].max())
        if not longest < (1 - graph.alpha / 2) * before:
            break  # rounding is all that is left
    if graph.kernels is not None:
        graph.kernels.rest()
    return Settled(pushes, fulls, gone, longest, push_cost)


def push(graph: ContextGraph, epsilon: float, limit: int, most: int) -> Pushed:
    """Sweeps over rows that have something to pass on, while those are few.

    Args:
        graph: of which somebody has a slot.
        epsilon: ε.
        limit: rows and edges of a sweep that cost as much as all rows.
        most: sweeps, at least 1.
    """
    used, hearers = graph.slots.used, graph.edges.hearers
    if graph.kernels is not None:
        return graph.kernels.push(used, epsilon, limit, most)
    norm, over = graph.table.norm[:used], no_more(epsilon)
    pushes = gone = 0
    while True:
        frontier = (norm > over).nonzero().flatten()
        edges = int(hearers.count[frontier].sum())
        if not len(frontier) or pushes == most or edges + len(frontier) >= limit:
            return Pushed(pushes, gone, float(norm.max()), not len(frontier))
        _sweep(graph, frontier)
        pushes, gone = pushes + 1, gone + edges


def _sweep(graph: ContextGraph, frontier: Tensor) -> None:
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


def full_step(graph: ContextGraph, *, again: bool = False) -> None:
    """Z ← (1−a) Â Z + a X0, which is Z + R, and R anew.

    Args:
        graph: of which somebody has a slot.
        again: nothing has changed since the last such step.
    """
    table, used = graph.table, graph.slots.used
    if graph.kernels is not None:
        graph.kernels.full_step(used, again=again)
        return
    table.blended[:used] += table.residual[:used]
    table.stirred[:used] = True
    graph.refresh()

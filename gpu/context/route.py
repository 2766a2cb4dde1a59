"""Who should get a message: the agents whose contexts are most like it, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..shortlist import SHORTEST, Agents, Tasks, shortlist
from ..shortlist import prepare as prepare_search
from .graph import ContextGraph

if TYPE_CHECKING:
    from torch import Tensor

TILE_BYTES = 32 << 20
"""Of scores and copies at once: with what finds the best of them, less than 64 MiB, however many agents there are."""


class Routes(NamedTuple):
    """The k best agents of each query, the best first.

    Attributes:
        slots: (b, k) int64, whose; where there are fewer, what stands there means nothing.
        scores: (b, k) float32, -inf there.
    """

    slots: Tensor
    scores: Tensor


def route(
    graph: ContextGraph,
    queries: Tensor,
    needs: Tensor,
    k: int,
    load_weight: float,
    what: Literal["own", "blended"],
    checkpoint: Callable[[], object],
) -> Routes:
    """The agents of the greatest scores: the cosine of the angle between the vectors, less the load.

    Not the dot product, which a blended context is too short for where those that an agent hears disagree. With a
    vector of length 0 the cosine is 0. Only agents count that have put something and have every capability that is
    needed.

    Args:
        graph: whose agents.
        queries: (b, d) f2, bf16 or f4, none longer than `shortlist.LONGEST`; no bit of them is dropped, though own
            contexts are bf16.
        needs: (b,) int64, a bit for each capability; 0 for none.
        k: how many.
        load_weight: what a load of 1 counts, in units of similarity.
        what: which of the agents' contexts are compared.
        checkpoint: called between tiles; what it raises ends the search.
    """
    import torch

    table, used = graph.table, graph.slots.used
    if not used:
        slots = torch.zeros((len(queries), k), dtype=torch.int64, device=queries.device)
        return Routes(slots, torch.full_like(slots, -torch.inf, dtype=torch.float32))
    vectors = (table.own if what == "own" else table.blended)[:used]
    burden = load_weight * table.load[:used]
    candidates = Agents(vectors, table.is_there[:used], table.capabilities[:used], burden, cosine=True)
    straight = torch.nn.functional.normalize(queries.float(), dim=1, eps=SHORTEST)
    found = shortlist(Tasks(straight, needs), candidates, k, checkpoint, TILE_BYTES)
    return Routes(found.agents, found.utilities)


def prepare(graph: ContextGraph) -> None:
    """Compile what `route` runs on a GPU, which takes seconds the first time on a machine; elsewhere nothing."""
    for vectors in (graph.table.own, graph.table.blended):
        prepare_search(vectors, cosine=True)

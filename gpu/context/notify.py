"""Who is to be told that what reaches them has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .graph import ContextGraph

if TYPE_CHECKING:
    from torch import Tensor


class Notices(NamedTuple):
    """What is to be told.

    Attributes:
        agents: (m,) int64.
        vectors: (m, d) bf16, their blended contexts.
        moved: (m,) float32, how far those are from what they were told before.
    """

    agents: Tensor
    vectors: Tensor
    moved: Tensor


def due(graph: ContextGraph, now_ms: int) -> Notices:
    """Those whose Z is further than τ from what they were told, and whose interval is over; they count as told.

    Whose interval is not over is looked at again by the next call.

    Args:
        graph: after it has settled.
        now_ms: the time, on a clock that never goes back.
    """
    import torch

    table, used = graph.table, graph.slots.used
    may = table.stirred[:used] & (table.threshold[:used] < torch.inf)
    may &= now_ms - table.sent_ms[:used] >= table.interval_ms[:used]
    slots = may.nonzero().flatten()
    table.stirred[slots] = False
    blended = table.blended[slots]
    moved = torch.linalg.vector_norm(blended - table.sent[slots].float(), dim=1)
    far = moved > table.threshold[slots]
    slots, vectors = slots[far], blended[far].to(torch.bfloat16)
    table.sent[slots] = vectors
    table.sent_ms[slots] = now_ms
    return Notices(graph.slots.agents[slots], vectors, moved[far])

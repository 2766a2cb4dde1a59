"""Who is to be told that what reaches them has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...bus.columns import Array
from .graph import ContextGraph

if TYPE_CHECKING:
    from torch import Tensor


class Notices(NamedTuple):
    """What is to be told.

    Attributes:
        slots: (m,) int64, whose.
        vectors: (m, d) bf16, their blended contexts, on the device.
        moved: (m,) float32, how far those are from what they were told before.
    """

    slots: Array
    vectors: Tensor
    moved: Array


def due(graph: ContextGraph, now_ms: int) -> Notices:
    """Those whose Z is further than τ from what they were told, and whose interval is over; they count as told.

    Whose interval is not over is looked at again by the next call.

    Args:
        graph: after it has settled.
        now_ms: the time, on a clock that never goes back.
    """
    import torch

    table, used = graph.table, graph.slots.used
    if graph.kernels is not None and used:
        return Notices(*graph.kernels.due(used, now_ms))
    may = table.stirred[:used] & (table.threshold[:used] < torch.inf)
    may &= now_ms - table.sent_ms[:used] >= table.interval_ms[:used]
    slots = may.nonzero().flatten()
    table.stirred[slots] = False
    blended = table.blended[slots]
    moved = torch.linalg.vector_norm(blended - table.sent[slots].float(), dim=1)
    far = moved > table.threshold[slots]
    return _told(graph, slots[far], blended[far], moved[far], now_ms)


def _told(graph: ContextGraph, slots: Tensor, blended: Tensor, moved: Tensor, now_ms: int) -> Notices:
    """Those of slots, each once, who count as told of these vectors from now on."""
    vectors = blended.to(graph.table.sent.dtype)
    graph.table.sent[slots] = vectors
    graph.table.sent_ms[slots] = now_ms
    return Notices(slots.cpu().numpy(), vectors, moved.cpu().numpy())

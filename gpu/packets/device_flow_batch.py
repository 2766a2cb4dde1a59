"""What the packets of a batch make of flows on the device: `netio.flow_batch` there.

A thread takes at most `CHUNK` packets of a flow, and one a flow then joins what these have found, so that a flow with
most of the packets costs little more than many; what depends on all packets before, clocks and cuts by the active
time-out, is carried from chunk to chunk in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...netio.flow_cuts import Timeouts
from .device_flow_runs import DeviceRuns
from .device_flow_slots import DeviceFlowSlots
from .flow_layout import BEGINS, PART, WORDS
from .kernels import PacketKernels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Limits:
    """Time-outs as kernels take them: nanoseconds, 0 for none."""

    idle_ns: int
    active_ns: int

    @classmethod
    def of(cls, timeouts: Timeouts) -> Limits:
        return cls(int(timeouts.idle_ns or 0), int(timeouts.active_ns or 0))


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where records begin.

    Attributes:
        clocks: (n,) int64, the flow's clock at each place.
        begins: (n,) uint8, of `flow_layout.BEGINS`.
    """

    clocks: Tensor
    begins: Tensor

    @classmethod
    def of(
        cls, kernels: PacketKernels, runs: DeviceRuns, known: Tensor, table: DeviceFlowSlots, limits: Limits
    ) -> Cuts:
        """Where they begin.

        Args:
            kernels: of the device.
            runs: the packets.
            known: (runs,) int64, the slot of each flow, -1 where the table has none.
            table: what was before.
            limits: when records end.
        """
        import torch

        count, chunks = len(runs), len(runs.chunk_begin)
        placed = (runs.arrivals, runs.order, count, runs.chunk_begin, chunks)
        times = torch.empty_like(runs.chunk_begin)
        kernels.launch("find_chunk_times", chunks, *placed, times)
        by_run = (runs.first_chunk, len(runs.begin))
        kernels.launch("carry_clocks", len(runs.begin), *by_run, chunks, known, table.latest, times)

        clocks = torch.empty_like(runs.order)
        begins = torch.empty(count, dtype=torch.uint8, device=clocks.device)
        open_end, begun = torch.empty_like(times), torch.empty_like(times)
        before = (runs.of_place, runs.begin, known, table.begun, table.states, times)
        found = (clocks, begins, open_end, begun)
        kernels.launch("cut_flow_chunks", chunks, *placed, *before, limits.idle_ns, limits.active_ns, *found)
        if limits.active_ns and chunks > len(runs.begin):
            given = (count, runs.chunk_begin, chunks, limits.active_ns, clocks, open_end, begun, begins)
            kernels.launch("carry_cuts", len(runs.begin), *by_run, *given)
        return cls(clocks, begins)


def add_packets(
    kernels: PacketKernels,
    runs: DeviceRuns,
    cuts: Cuts,
    known: Tensor,
    slots: Tensor,
    serial: int,
    table: DeviceFlowSlots,
    limits: Limits,
) -> tuple[Tensor, Tensor]:
    """Brings the table's records up to date, and gives those that ended, in any order.

    Args:
        kernels: of the device.
        runs: the packets.
        cuts: where records begin.
        known: (runs,) int64, the slot of each flow, -1 where the table had none.
        slots: (runs,) int64, the slot of each flow.
        serial: the number of the packet that `Arrival.row` counts from.
        table: changed in place.
        limits: when records end.

    Returns:
        (k, WORDS) int64 records, some perhaps without packets, and (k,) uint8, a `Reason` each.
    """
    import torch

    place, begin, begins = slots.device, runs.begin, cuts.begins
    is_head = (begins > BEGINS["NOT"]) | runs.is_start
    number = is_head.cumsum(0) - 1
    head_begin = is_head.nonzero().flatten()
    segment_begin = (is_head | runs.is_chunk).nonzero().flatten()
    heads, segments = len(head_begin), len(segment_begin)

    # The last record of a run has the slot. All before it end, first those that have packets here.
    of_head = runs.of_place[head_begin]
    is_last = torch.ones(heads, dtype=torch.bool, device=place)
    is_last[:-1] = of_head[1:] != of_head[:-1]
    homes = torch.where(is_last, slots[of_head], -(~is_last).cumsum(0))
    is_known = known >= 0
    is_left = is_known & (begins[begin] > BEGINS["NOT"])
    left = heads - len(begin) + is_left.cumsum(0) - 1
    count = heads - len(begin) + int(is_left.sum())
    ended = torch.empty((count, WORDS), dtype=torch.int64, device=place)
    reasons = torch.empty(count, dtype=torch.uint8, device=place)
    if count:
        given = (begin, len(begin), known, begins, number, homes, left, table.records, ended)
        kernels.launch("leave_flows", len(begin), *given)

    parts = torch.empty((segments - heads, PART.itemsize), dtype=torch.uint8, device=place)
    packets = (runs.arrivals, runs.order, runs.keys, len(runs), serial)
    laid = (segment_begin, segments, is_head, begins, number, homes, cuts.clocks)
    kernels.launch("add_flow_segments", segments, *packets, *laid, table.records, ended, parts)

    by_run = (begin, len(begin), slots, is_known, begins, number)
    by_head = (head_begin, heads, torch.searchsorted(segment_begin, head_begin), segments, homes, left, parts)
    columns = (table.records, ended, reasons, table.begun, table.latest, table.states)
    kernels.launch("settle_flows", len(begin), *by_run, *by_head, limits.idle_ns, limits.active_ns, *columns)
    return ended, reasons

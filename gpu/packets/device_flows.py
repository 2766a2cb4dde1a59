"""The flows of packets that are on a device: they stay there until they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ...bus.columns import Array
from ...netio.flow_cuts import BadTable, Timeouts
from ...netio.flow_key import KeyChoice
from ...netio.flow_record import RECORD, spans
from ...netio.flow_state import FlowState
from ...netio.flow_table import CAPACITY, PIECE, SPARED
from ...netio.flows import Flows, Reason
from .device_flow_batch import Cuts, Limits, add_packets
from .device_flow_runs import DevicePackets, DeviceRuns, column_names
from .device_flow_slots import DeviceFlowSlots
from .flow_layout import DUE, WORDS
from .frames import Frames
from .kernels import DeviceFrames, PacketKernels

if TYPE_CHECKING:
    from torch import Tensor

MOST = 1 << 20
"""Packets that are added at once, and flows that leave at once: 200 MB and 500 MB beside the table."""


class DeviceFlowTable:
    """`netio.flow_table.FlowTable` on a device: given the same packets, it gives the same flows, bit by bit.

    What is enqueued has run when a method returns, so that calls may come from any stream, one after the other. After
    an error of the device the table may hold half of a batch: go on from a state that was taken before.

    Args:
        kernels: of the device.
        key: what names a flow.
        timeouts: when flows end.
        capacity: most flows at a time, 1 to 2**31. Memory, `bytes`, is taken at once.

    Attributes:
        columns: names of the columns that `update` reads.
        packets: how many packets `update` was given.
        ignored: how many of them had no IP header.

    Raises:
        BadTable: the capacity is not allowed.
    """

    def __init__(
        self,
        kernels: PacketKernels,
        key: KeyChoice | None = None,
        timeouts: Timeouts | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        if not 1 <= capacity <= 1 << 31:
            raise BadTable(f"a table of {capacity} flows: give a capacity of 1 to {1 << 31}")
        self.packets = 0
        self.ignored = 0
        self._key = key or KeyChoice()
        self._timeouts = timeouts or Timeouts()
        self._limits = Limits.of(self._timeouts)
        self.columns = column_names(self._key)
        self._kernels = kernels
        self._slots = DeviceFlowSlots(kernels, capacity)
        kernels.device.synchronize()

    def __len__(self) -> int:
        """How many flows have not ended."""
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """The device's memory that the table takes."""
        return self._slots.bytes

    def update(self, columns: Mapping[str, Tensor], time_ns: Tensor, wire: Tensor) -> Flows:
        """Adds packets in the order of their arrival, and gives the flows they show to have ended, by first packet.

        Args:
            columns: of n packets, on the device, contiguous: those that `columns` names, as `PacketKernels.dissect`
                gives them. Packets without an IP header are counted and ignored.
            time_ns: (n,) int64, nanoseconds since 1970, on the device.
            wire: (n,) uint32, bytes of each packet on the wire, on the device.
        """
        packets = DevicePackets(columns, time_ns, wire)
        ended = []
        first = 0
        while first < len(packets):
            last = min(len(packets), first + self._piece())
            ended += self._add(packets, first, last)
            first = last
        self.packets += len(packets)
        self._kernels.device.synchronize()
        return Flows.joined(ended)

    def update_frames(self, frames: Frames, time_ns: Array) -> Flows:
        """Does the same with raw packets of the host, which are dissected on the device.

        Args:
            frames: n packets.
            time_ns: (n,) int64, nanoseconds since 1970.
        """
        device = self._kernels.device
        there = DeviceFrames.of(frames, device)
        wire = np.diff(frames.blobs.offsets) if frames.wire is None else frames.wire
        columns = self._kernels.dissect(there, self.columns)
        return self.update(columns, device.tensor(time_ns, "i8"), device.tensor(wire, "u4"))

    def expire(self, now_ns: int) -> Flows:
        """Ends the flows whose time-outs have passed, though no packet of theirs may come: live by the clock.

        Args:
            now_ns: nanoseconds since 1970.
        """
        due = self._slots.due(now_ns, self._limits.idle_ns, self._limits.active_ns)
        cut = (due == DUE["CUT"]).nonzero().flatten()
        parts = self._flows(cut, Reason.ACTIVE)
        self._slots.empty(cut)
        for name, reason in (("ACTIVE", Reason.ACTIVE), ("IDLE", Reason.IDLE)):
            parts += self._end((due == DUE[name]).nonzero().flatten(), reason)
        self._kernels.device.synchronize()
        return Flows.joined(parts)

    def flush(self) -> Flows:
        """Ends all flows, and gives them in the order of their first packets; the table is empty then."""
        ended = self._end(self._slots.taken(), Reason.END)
        self._kernels.device.synchronize()
        return Flows.joined(ended)

    def state(self) -> FlowState:
        """A copy of all that it holds, on the host."""
        slots = self._slots.taken()
        records: Array = np.empty(len(slots), RECORD)
        words, latest = records.view(np.int64).reshape(-1, WORDS), np.empty(len(slots), np.int64)
        device = self._kernels.device
        for first in range(0, len(slots), MOST):
            device.fetch(self._slots.records[slots[first : first + MOST]], words[first : first + MOST])
        device.fetch(self._slots.latest[slots], latest)
        device.synchronize()
        return FlowState(self.packets, self.ignored, records, latest)

    def restore(self, state: FlowState) -> None:
        """Goes on where another table was, of the same key and time-outs. Only for a table that was given nothing.

        Raises:
            BadTable: there are more flows than it has room for.
        """
        count, capacity = len(state.records), self._slots.capacity
        if count > capacity:
            raise BadTable(f"{count} flows for a table of {capacity}: give a larger capacity")
        self.packets, self.ignored = state.packets, state.ignored
        device = self._kernels.device
        words = state.records.copy().view(np.int64).reshape(count, WORDS)
        begun = spans(state.records)[0]
        is_empty = (state.records["packets"] == 0).all(axis=1)
        columns = (device.tensor(words, "i8"), device.tensor(begun, "i8"), device.tensor(state.latest.copy(), "i8"))
        self._slots.put(*columns, device.tensor(is_empty, "bool"))
        device.synchronize()

    def _piece(self) -> int:
        """How many packets to add at once: as many as have room, or as `FlowTable` adds, since flows end by these."""
        size = min(PIECE, self._slots.capacity)
        return max(size, min(self._slots.capacity - len(self), MOST) // size * size)

    def _add(self, packets: DevicePackets, first: int, last: int) -> list[Flows]:
        rows = packets.columns[self.columns[0]][first:last].nonzero().flatten() + first
        self.ignored += last - first - len(rows)
        if not len(rows):
            return []
        slots = self._slots
        runs = DeviceRuns.of(self._kernels, packets, rows, first, self._key, slots.seed)
        known = slots.find(runs)
        cuts = Cuts.of(self._kernels, runs, known, slots, self._limits)
        is_new = known < 0
        count = int(is_new.sum())
        crowded_out = self._make_room(count, known)
        taken = slots.take(count)
        found = known.masked_scatter(is_new, taken)
        serial = self.packets + first
        ended, reasons = add_packets(self._kernels, runs, cuts, known, found, serial, slots, self._limits)
        slots.add(taken)
        return [self._fetched(ended, reasons), *crowded_out] if len(ended) else crowded_out

    def _make_room(self, count: int, known: Tensor) -> list[Flows]:
        """Ends flows until `count` more have room, those without packets for longest first, but none of `known`."""
        lacking = count - (self._slots.capacity - len(self))
        if lacking <= 0:
            return []
        number = max(lacking, self._slots.capacity // SPARED)
        return self._end(self._slots.oldest(number, known[known >= 0]), Reason.FULL)

    def _end(self, slots: Tensor, reason: Reason) -> list[Flows]:
        """Takes flows out of the table, and gives those that have packets."""
        ended = self._flows(slots, reason)
        self._slots.free(slots)
        return ended

    def _flows(self, slots: Tensor, reason: Reason) -> list[Flows]:
        """The flows in these slots, copied in parts: beside a large table there is no room for all of them."""
        import torch

        reasons = torch.full((min(len(slots), MOST),), reason, dtype=torch.uint8, device=slots.device)
        parts = (slots[first : first + MOST] for first in range(0, len(slots), MOST))
        return [self._fetched(self._slots.records[part], reasons[: len(part)]) for part in parts]

    def _fetched(self, records: Tensor, reasons: Tensor) -> Flows:
        """The flows of records that have packets."""
        device = self._kernels.device
        words: Array = device.to_host(records)
        reason: Array = device.to_host(reasons)
        device.synchronize()
        rows = words.view(RECORD)[:, 0]
        has_packets = (rows["packets"] > 0).any(axis=1)
        return Flows.of(rows[has_packets], reason[has_packets])

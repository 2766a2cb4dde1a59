"""A flow table on a device with as many flows as there are addresses, and batches of packets of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aikoryu.gpu.device import Device
from aikoryu.gpu.packets.device_flows import DeviceFlowTable
from aikoryu.gpu.packets.kernels import DeviceFrames, PacketKernels
from aikoryu.netio.dissect import dissect
from aikoryu.netio.flow_table import FlowTable
from benchmarks import record
from benchmarks.ours import NAME
from benchmarks.packets_device import Samples

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM, ZIPF = "flows-uniform", "flows-zipf"
WITH_DISSECT, FILLING = f"{NAME}, with dissect", "new flows, with dissect"
POWER = 1.1
ETHERNET = 1
FRAME = bytes.fromhex(
    "020000000002 020000000001 0800"
    "4500 0028 0000 4000 40 06 0000 00000000 00000000"
    "0000 0000 00000001 00000001 50 10 fa00 0000 0000"
)
"""A bare ACK; addresses and ports are 0."""
SOURCE_AT, PORT_AT = 26, 34
GAP_NS = 100  # no flow is idle for as long as a time-out within a run
ROOM = 1.6
"""Flows there is room for, to those that live: a table that is nearly full adds packets in small pieces."""


class Arriving(NamedTuple):
    """Packets of a batch, when they come, and how long they are."""

    frames: DeviceFrames
    time_ns: Tensor
    wire: Tensor


class FlowLoad:
    """A table, filled.

    Args:
        kernels: of the device, on whose current stream everything runs.
        flows: that live, up to 2**32.
        batch: packets of a batch.
    """

    def __init__(self, kernels: PacketKernels, flows: int, batch: int) -> None:
        import torch

        self._kernels = kernels
        self._flows = flows
        self._batch = batch
        self._room = round(flows * ROOM)
        self._table = DeviceFlowTable(kernels, capacity=self._room)
        self._clock_ns = 0
        self._generator = torch.Generator(kernels.device.name).manual_seed(1)
        start = time.perf_counter()
        for first in range(0, flows, batch):
            ids = torch.arange(first, min(first + batch, flows), device=kernels.device.place)
            self._update([self._arriving(ids)], dissects=True)
        self._filled_s = time.perf_counter() - start
        self._wrong = abs(len(self._table) - flows) + wrong_flows(kernels, max(1, batch // 8))

    def rounds(self, batches: int, rounds: int) -> dict[str, Samples]:
        """Batches that are uniform over the flows, and batches by Zipf's law, each several times.

        Args:
            batches: different ones of each kind.
            rounds: times that they are all added.
        """
        drawn = {UNIFORM: self._uniform(batches), ZIPF: self._zipf(batches)}
        found: dict[str, Samples] = {shape: {NAME: [], WITH_DISSECT: []} for shape in drawn}
        for shape, ids in drawn.items():
            for _ in range(rounds):
                for name, samples in found[shape].items():
                    took_s = self._update([self._arriving(each) for each in ids], dissects=name == WITH_DISSECT)
                    rate = self._batch * batches / took_s
                    a_flow = round(self._table.bytes / self._room, 1)
                    samples.append(record.sample(self._wrong, rows_per_s=round(rate), bytes_a_flow=a_flow))
        found[UNIFORM][FILLING] = [record.sample(rows_per_s=round(self._flows / self._filled_s))]
        return found

    def _uniform(self, batches: int) -> list[Tensor]:
        return [(draw * self._flows).long().clamp(max=self._flows - 1) for draw in self._draws(batches)]

    def _zipf(self, batches: int) -> list[Tensor]:
        import torch

        ranks = torch.arange(1, self._flows + 1, device=self._kernels.device.place, dtype=torch.float64)
        law = (ranks**-POWER).cumsum(0)
        return [torch.searchsorted(law, draw * law[-1]).clamp(max=self._flows - 1) for draw in self._draws(batches)]

    def _draws(self, batches: int) -> list[Tensor]:
        import torch

        place = self._kernels.device.place
        return [
            torch.rand(self._batch, generator=self._generator, device=place, dtype=torch.float64)
            for _ in range(batches)
        ]

    def _arriving(self, ids: Tensor) -> Arriving:
        """A packet of each of these flows, the next ones to come."""
        found = arriving(ids, self._clock_ns, self._kernels.device)
        self._clock_ns += len(ids) * GAP_NS
        return found

    def _update(self, given: Sequence[Arriving], dissects: bool) -> float:
        """Seconds in which packets are added, with or without the reading of their headers."""
        kernels, table = self._kernels, self._table
        ready = [] if dissects else [kernels.dissect(each.frames, table.columns) for each in given]
        kernels.device.synchronize()
        start = time.perf_counter()
        for number, each in enumerate(given):
            columns = kernels.dissect(each.frames, table.columns) if dissects else ready[number]
            table.update(columns, each.time_ns, each.wire)
        kernels.device.synchronize()
        return time.perf_counter() - start


def wrong_flows(kernels: PacketKernels, flows: int) -> int:
    """Of so many flows, three packets each, those that a table on the device and one of netio do not agree about."""
    import torch

    ids = torch.arange(3 * flows, device=kernels.device.place) * 7919 % flows
    packets = arriving(ids, 0, kernels.device)
    there, here = DeviceFlowTable(kernels, capacity=2 * flows), FlowTable(capacity=2 * flows)
    there.update(kernels.dissect(packets.frames, there.columns), packets.time_ns, packets.wire)
    offsets = np.arange(len(ids), dtype=np.uint64) * np.uint64(len(FRAME))
    lengths = np.full(len(ids), len(FRAME), np.uint32)
    blob = packets.frames.blob.cpu().numpy()
    read = dissect(blob, offsets, lengths, np.full(len(ids), ETHERNET, np.uint16))
    here.update(read, packets.time_ns.cpu().numpy(), lengths)
    found, expected = there.flush(), here.flush()
    if len(found) != len(expected):
        return max(len(found), len(expected))
    is_wrong = (found.packets != expected.packets) | (found.wire_bytes != expected.wire_bytes)
    return int(np.count_nonzero(is_wrong.any(axis=1)))


def arriving(ids: Tensor, start_ns: int, device: Device) -> Arriving:
    """A packet of each of these flows, every second one from the other end, the first at this time."""
    import torch

    rows = len(ids)
    heads = torch.frombuffer(bytearray(FRAME), dtype=torch.uint8).to(device.place).repeat(rows, 1)
    is_answer = torch.arange(rows, device=device.place) % 2 == 1
    client, server = 0x0A00_0000 + (ids & 0xFF_FFFF), torch.full_like(ids, 0xC0A8_0001)
    port, service = 1024 + (ids >> 24), torch.full_like(ids, 443)
    for asking, asked, at, size in ((client, server, SOURCE_AT, 4), (port, service, PORT_AT, 2)):
        for place, value in enumerate((torch.where(is_answer, asked, asking), torch.where(is_answer, asking, asked))):
            for byte in range(size):
                heads[:, at + place * size + byte] = (value >> 8 * (size - 1 - byte) & 0xFF).to(torch.uint8)
    offsets = (torch.arange(rows + 1, device=device.place) * len(FRAME)).to(torch.uint32)
    times = start_ns + torch.arange(rows, device=device.place) * GAP_NS
    wire = torch.full((rows,), len(FRAME), dtype=torch.uint32, device=device.place)
    return Arriving(DeviceFrames(heads.flatten(), offsets, None, None, ETHERNET), times, wire)

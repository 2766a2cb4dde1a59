"""The packets of a batch on the device, sorted by flow: `netio.flow_runs` there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...netio.flow_key import WORDS, KeyChoice
from .flow_layout import ARRIVAL, CHUNK
from .kernels import PacketKernels

if TYPE_CHECKING:
    from torch import Tensor

_ENDS = ("version", "src_high", "src_low", "dst_high", "dst_low", "sport", "dport", "protocol", "fragment_offset")
_SUMS = ("total_length", "payload_wire", "tcp_flags", "seq", "icmp_type", "icmp_code")
_VLANS = ("vlan_outer", "vlan_inner")
_TUNNELS = ("tunnel", "tunnel_id")


def column_names(choice: KeyChoice) -> tuple[str, ...]:
    """The columns of packets that flows are made of, as `packets.columns` names them; the first is the IP version."""
    plain = (*(_VLANS if choice.vlan else ()), *(_TUNNELS if choice.tunnel else ()))
    return (*(f"{choice.header}.{name}" for name in (*_ENDS, *_SUMS)), *plain)


@dataclass(frozen=True, eq=False)
class DevicePackets:
    """What `update` is given.

    Attributes:
        columns: (n,) each, contiguous, those of `column_names`.
        time_ns: (n,) int64.
        wire: (n,) uint32.
    """

    columns: Mapping[str, Tensor]
    time_ns: Tensor
    wire: Tensor

    def __len__(self) -> int:
        return len(self.time_ns)

    def addresses(self, choice: KeyChoice) -> tuple[Tensor | None, ...]:
        """All columns as `arrive_flows` takes them."""
        headers = (self.columns[f"{choice.header}.{name}"] for name in (*_ENDS, *_SUMS))
        vlans = (self.columns[name] if choice.vlan else None for name in _VLANS)
        tunnels = (self.columns[name] if choice.tunnel else None for name in _TUNNELS)
        return (*headers, *vlans, *tunnels, self.time_ns, self.wire)


@dataclass(frozen=True, eq=False)
class DeviceRuns:
    """Packets sorted by flow, and by arrival within each: a run is the places of one flow.

    Attributes:
        keys: (n, 6) int64, the bits of `FlowKeys.words`; by packet, as are `hashes` and `arrivals`.
        hashes: (n,) int64.
        arrivals: (n, 32) uint8, of `flow_layout.ARRIVAL`.
        order: (n,) int64, the packet in each place.
        is_start: (n,) bool, whether a run starts in a place.
        begin: (runs,) int64, the first place of each.
        of_place: (n,) int64, the run of each place.
        is_chunk: (n,) bool, whether a chunk of at most `CHUNK` places of a run starts there.
        chunk_begin: (chunks,) int64.
        first_chunk: (runs,) int64, the first chunk of each run.
    """

    keys: Tensor
    hashes: Tensor
    arrivals: Tensor
    order: Tensor
    is_start: Tensor
    begin: Tensor
    of_place: Tensor
    is_chunk: Tensor
    chunk_begin: Tensor
    first_chunk: Tensor

    def __len__(self) -> int:
        return len(self.order)

    @classmethod
    def of(
        cls, kernels: PacketKernels, packets: DevicePackets, rows: Tensor, first: int, choice: KeyChoice, seed: int
    ) -> DeviceRuns:
        """The runs of some packets.

        Args:
            kernels: of the device.
            packets: the packets.
            rows: (n,) int64, ascending, which of them, at least one; all of these have an IP header.
            first: what `Arrival.row` counts from.
            choice: what names a flow.
            seed: of the hashes.
        """
        import torch

        place, count = rows.device, len(rows)
        keys = torch.empty((count, WORDS), dtype=torch.int64, device=place)
        hashes = torch.empty(count, dtype=torch.int64, device=place)
        arrivals = torch.empty((count, ARRIVAL.itemsize), dtype=torch.uint8, device=place)
        given = (rows, count, first, seed, *packets.addresses(choice))
        kernels.launch("arrive_flows", count, *given, keys, arrivals, hashes)

        order = torch.sort(hashes, stable=True).indices
        is_start, collided = _starts(kernels, keys, hashes, order)
        if bool(collided):
            order = sorted_rows(keys)
            is_start, _ = _starts(kernels, keys, hashes, order)
        begin = is_start.nonzero().flatten()
        of_place = is_start.cumsum(0) - 1
        is_chunk = (torch.arange(count, device=place) - begin[of_place]) % CHUNK == 0
        chunk_begin = is_chunk.nonzero().flatten()
        first_chunk = torch.searchsorted(chunk_begin, begin)
        return cls(keys, hashes, arrivals, order, is_start, begin, of_place, is_chunk, chunk_begin, first_chunk)


def sorted_rows(words: Tensor) -> Tensor:
    """The order of rows by their words, the last one first: (n,) int64, rows of equal words as they came.

    Args:
        words: (n, k) int64, the bits of uint64.
    """
    import torch

    order = torch.arange(len(words), device=words.device)
    for word in words.unbind(1):
        # With the upper bit turned over they are in the order of unsigned numbers.
        order = order[torch.sort(word[order] ^ -(2**63), stable=True).indices]
    return order


def _starts(kernels: PacketKernels, keys: Tensor, hashes: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a run starts in each place, and whether keys that differ have a hash in common."""
    import torch

    starts = torch.empty(len(order), dtype=torch.bool, device=order.device)
    collided = torch.zeros(1, dtype=torch.int32, device=order.device)
    kernels.launch("mark_flow_runs", len(order), keys, hashes, order, len(order), starts, collided)
    return starts, collided

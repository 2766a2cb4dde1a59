"""Flows that have ended: columns, one row a flow; what has a direction has two values, originator's and responder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import tcp_state
from .community_id import ICMP, ICMP6
from .flow_batch import Reason
from .flow_key import parts
from .flow_record import empty, originators
from .keys import Keys
from .packet_index import Array

__all__ = ["Flows", "Reason"]


@dataclass(frozen=True, eq=False)
class Flows:
    """One row a flow. In columns of (n, 2) the originator's packets come first, then the responder's.

    The originator is who sent the first SYN, or whom the first SYN-ACK went to; without either, the first sender.

    Attributes:
        version: (n,) uint8, 4 or 6.
        source_high, source_low, destination_high, destination_low: (n,) uint64, halves of the addresses of originator
            and responder; IPv4 is in the lower ones.
        source_port, destination_port: (n,) uint16; 0 where the protocol has none, or `is_fragment`.
        protocol: (n,) uint8.
        is_fragment: (n,) bool, of fragments after the first, which have no ports and so are a flow of their own.
        vlan_outer, vlan_inner: (n,) uint16; `NO_VLAN` where there is none, or VLANs are not in the key.
        tunnel: (n,) uint8, a `Tunnel`, `NONE` where tunnels are not in the key.
        tunnel_id: (n,) uint32, the same.
        icmp_type, icmp_code: (n,) uint8, of the first packet.
        serial: (n,) uint64, number of the first packet, counted from 0 over all that the table was given.
        first_ns, last_ns: (n, 2) int64, the flow's clock at the first and the last packet; 0 where there is none.
        packets: (n, 2) uint64.
        wire_bytes, ip_bytes, payload_bytes: (n, 2) uint64, of frames, of IP packets, and of what follows all headers.
        size_least, size_most: (n, 2) uint32, bytes of a frame on the wire; 0 where there is none.
        size_squares: (n, 2) uint64, the sum of their squares; 2**64 - 1 for more.
        gap_least_ns, gap_most_ns: (n, 2) uint64, times between packets of one direction; 0 where there are not two.
        gap_squares: (n, 2) uint64, the sum of the squares of their whole microseconds; 2**64 - 1 for more.
        flag_counts: (n, 2, 8) uint32, packets with FIN, SYN, RST, PSH, ACK, URG, ECE, CWR.
        first_sizes: (n, 2, 8) uint32, bytes on the wire of each direction's first packets, 0 beyond the last.
        first_gaps_us: (n, 2, 8) uint32, whole microseconds from the one before to each of these; 2**32 - 1 for more.
        letters: (n, 32) uint8, codes of `tcp_state` plus one, even codes the originator's.
        is_flipped: (n,) bool, whether the first packet came from the responder.
        is_continued: (n,) bool, whether the active time-out cut the flow before.
        reason: (n,) uint8, a `Reason`.
    """

    version: Array
    source_high: Array
    source_low: Array
    destination_high: Array
    destination_low: Array
    source_port: Array
    destination_port: Array
    protocol: Array
    is_fragment: Array
    vlan_outer: Array
    vlan_inner: Array
    tunnel: Array
    tunnel_id: Array
    icmp_type: Array
    icmp_code: Array
    serial: Array
    first_ns: Array
    last_ns: Array
    packets: Array
    wire_bytes: Array
    ip_bytes: Array
    payload_bytes: Array
    size_least: Array
    size_most: Array
    size_squares: Array
    gap_least_ns: Array
    gap_most_ns: Array
    gap_squares: Array
    flag_counts: Array
    first_sizes: Array
    first_gaps_us: Array
    letters: Array
    is_flipped: Array
    is_continued: Array
    reason: Array

    def __len__(self) -> int:
        return len(self.version)

    def __getitem__(self, rows: Any) -> Flows:
        """The flows of a slice, of row numbers or of a mask."""
        return Flows(**{name: getattr(self, name)[rows] for name in NAMES})

    @classmethod
    def of(cls, records: Array, reason: Array) -> Flows:
        """The flows of records that have packets.

        Args:
            records: (n,) of `flow_record.RECORD`.
            reason: (n,) uint8.
        """
        originator = originators(records)
        is_second = originator.astype(bool)
        key = parts(records["key"].T)
        ends, ports = _turned(key.pop("addresses"), is_second), _turned(key.pop("ports"), is_second)
        letters = records["letters"]
        sides = {name: _turned(records[field], is_second) for name, field in SIDES.items()}
        # Records say the largest number there is where nothing was.
        sides["size_least"][sides["packets"] < 1] = 0
        sides["gap_least_ns"][sides["packets"] < 2] = 0
        return cls(
            source_high=ends[:, 0, 0],
            source_low=ends[:, 0, 1],
            destination_high=ends[:, 1, 0],
            destination_low=ends[:, 1, 1],
            source_port=ports[:, 0],
            destination_port=ports[:, 1],
            icmp_type=records["icmp"][:, 0].copy(),
            icmp_code=records["icmp"][:, 1].copy(),
            serial=records["serial"].copy(),
            letters=np.where(letters > 0, ((letters - np.uint8(1)) ^ originator[:, None]) + np.uint8(1), np.uint8(0)),
            is_flipped=originator != records["origin"],
            is_continued=records["is_continued"].copy(),
            reason=reason,
            **key,
            **sides,
        )

    @classmethod
    def joined(cls, several: Sequence[Flows]) -> Flows:
        """All flows, in the order of their first packets."""
        whole = [part for part in several if len(part)]
        if not whole:
            return cls.of(empty(0), np.empty(0, np.uint8))
        serial = np.concatenate([part.serial for part in whole])
        order = np.argsort(serial)
        return cls(**{name: np.concatenate([getattr(part, name) for part in whole])[order] for name in NAMES})

    @property
    def start_ns(self) -> Array:
        """The flow's clock at its first packet: (n,) int64."""
        first = np.where(self.packets > 0, self.first_ns, np.iinfo(np.int64).max)
        least: Array = first.min(axis=1)
        return least

    @property
    def end_ns(self) -> Array:
        """The flow's clock at its last packet: (n,) int64."""
        last = np.where(self.packets > 0, self.last_ns, np.iinfo(np.int64).min)
        most: Array = last.max(axis=1)
        return most

    @property
    def gap_sum_ns(self) -> Array:
        """The sum of the times between packets of one direction: (n, 2) uint64."""
        return self.last_ns.view(np.uint64) - self.first_ns.view(np.uint64)

    @property
    def tcp_flags(self) -> Array:
        """All flags that packets of a direction had: (n, 2) uint8."""
        return np.packbits(self.flag_counts > 0, axis=2, bitorder="little")[:, :, 0]

    @property
    def state(self) -> Array:
        """How the connection went: (n,) uint8, each a `ConnState`."""
        return tcp_state.states(self._stateful, self.letters, self.packets, self.payload_bytes)

    @property
    def history(self) -> Array:
        """What Zeek calls history: (n,) str."""
        return tcp_state.histories(self.letters, self.is_flipped)

    def keys(self) -> Keys:
        """What names these flows, as rules and Community ID take it; ICMP's type and code stand for ports."""
        is_icmp = (self.protocol == ICMP) | (self.protocol == ICMP6)
        return Keys(
            version=self.version,
            source_high=self.source_high,
            source_low=self.source_low,
            destination_high=self.destination_high,
            destination_low=self.destination_low,
            source_port=np.where(is_icmp, self.icmp_type, self.source_port),
            destination_port=np.where(is_icmp, self.icmp_code, self.destination_port),
            protocol=self.protocol,
            vlan=self.vlan_outer,
            tcp_flags=self.tcp_flags[:, 0],
        )

    @property
    def _stateful(self) -> Array:
        """The protocol where packets had its header, else 0."""
        return self.protocol * ~self.is_fragment


NAMES = tuple(field.name for field in fields(Flows))
SIDES = {
    "first_ns": "begun_ns",
    "last_ns": "latest_ns",
    **{name: name for name in ("packets", "wire_bytes", "ip_bytes", "payload_bytes", "size_squares", "gap_squares")},
    **{name: name for name in ("size_least", "size_most", "gap_least_ns", "gap_most_ns")},
    **{name: name for name in ("flag_counts", "first_sizes", "first_gaps_us")},
}
"""Columns by direction, and the field of a record that holds each by side."""


def _turned(sides: Array, is_second: Array) -> Array:
    """What is given by side, (n, 2, …), by originator and responder."""
    turned = sides.copy()
    turned[is_second] = sides[is_second, ::-1]
    return turned

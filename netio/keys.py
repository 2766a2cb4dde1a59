"""What a packet is classified by: addresses, ports, protocol, VLAN and TCP flags, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .packet_index import Array
from .packets import NO_VLAN, Headers


@dataclass(frozen=True, eq=False)
class Keys:
    """One row a packet. Where a packet has no port, VLAN tag or flags, it says 0, `NO_VLAN` and 0.

    Attributes:
        version: (n,) uint8: 4, 6, or 0 for what is no IP packet, which no rule matches.
        source_high, source_low, destination_high, destination_low: (n,) uint64, halves of the addresses; IPv4 is in the
            lower ones.
        source_port, destination_port: (n,) uint16.
        protocol: (n,) uint8.
        vlan: (n,) uint16, the outermost VLAN id, or `NO_VLAN`.
        tcp_flags: (n,) uint8, FIN in bit 0 to CWR in bit 7.
    """

    version: Array
    source_high: Array
    source_low: Array
    destination_high: Array
    destination_low: Array
    source_port: Array
    destination_port: Array
    protocol: Array
    vlan: Array
    tcp_flags: Array

    def __len__(self) -> int:
        return len(self.version)

    def __getitem__(self, rows: Any) -> Keys:
        """The keys of some rows: a slice, or an array of indices or booleans."""
        return Keys(**{name: column[rows] for name, column in vars(self).items()})

    @classmethod
    def of(cls, headers: Headers, vlan: Array) -> Self:
        """The keys of dissected packets.

        Args:
            headers: the outer or the inner ones.
            vlan: (n,) uint16, as `Packets.vlan_outer`.
        """
        return cls(
            version=headers.version,
            source_high=headers.src_high,
            source_low=headers.src_low,
            destination_high=headers.dst_high,
            destination_low=headers.dst_low,
            source_port=headers.sport,
            destination_port=headers.dport,
            protocol=headers.protocol,
            vlan=vlan,
            tcp_flags=headers.tcp_flags.astype(np.uint8),
        )

    @classmethod
    def ipv4(cls, source: ArrayLike, destination: ArrayLike, *five: ArrayLike) -> Self:
        """Keys of IPv4 packets, untagged and without flags.

        Args:
            source, destination: (n,), each address as an integer.
            five: source ports, destination ports and protocols, each (n,).
        """
        ends = np.asarray(source, np.uint64), np.asarray(destination, np.uint64)
        return cls._of(4, np.zeros_like(ends[0]), ends[0], np.zeros_like(ends[1]), ends[1], *five)

    @classmethod
    def ipv6(cls, source: ArrayLike, destination: ArrayLike, *five: ArrayLike) -> Self:
        """Keys of IPv6 packets: as `ipv4`, but for addresses of (n, 2), upper and lower half."""
        ends = np.asarray(source, np.uint64).T, np.asarray(destination, np.uint64).T
        return cls._of(6, *ends[0], *ends[1], *five)

    @classmethod
    def _of(cls, version: int, *columns: ArrayLike) -> Self:
        rows = np.shape(columns[0])
        dtypes = (*[np.uint64] * 4, np.uint16, np.uint16, np.uint8)
        seven = [np.asarray(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]
        rest = [np.full(rows, NO_VLAN, np.uint16), np.zeros(rows, np.uint8)]
        return cls(np.full(rows, version, np.uint8), *seven, *rest)

"""What a packet is classified by: addresses, ports, protocol, VLAN and TCP flags, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

Array: TypeAlias = np.ndarray[Any, Any]

NO_VLAN = 0xFFFF
"""The VLAN of a packet without a tag. It is no VLAN id: those have 12 bits."""


@dataclass(frozen=True, eq=False)
class Keys:
    """One row a packet. Where a packet has no port, VLAN tag or flags, it says 0, `NO_VLAN` and 0.

    Attributes:
        version: (n,) uint8: 4, 6, or 0 for what is no IP packet, which no rule matches.
        source, destination: (n, 2) uint64, the upper and lower half of the address; IPv4 is in the lower half.
        source_port, destination_port: (n,) uint16.
        protocol: (n,) uint8.
        vlan: (n,) uint16, the outermost VLAN id, or `NO_VLAN`.
        tcp_flags: (n,) uint8, FIN in bit 0 to CWR in bit 7.
    """

    version: Array
    source: Array
    destination: Array
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
    def ipv4(cls, source: ArrayLike, destination: ArrayLike, *five: ArrayLike, **rest: ArrayLike) -> Self:
        """Keys of IPv4 packets.

        Args:
            source, destination: (n,), each address as an integer.
            five: source ports, destination ports and protocols, each (n,).
            rest: `vlan` and `tcp_flags`, each (n,), where they are known.
        """
        return cls._of(4, _lower(source), _lower(destination), *five, **rest)

    @classmethod
    def ipv6(cls, source: ArrayLike, destination: ArrayLike, *five: ArrayLike, **rest: ArrayLike) -> Self:
        """Keys of IPv6 packets: as `ipv4`, but for addresses of (n, 2), upper and lower half."""
        return cls._of(6, np.asarray(source, np.uint64), np.asarray(destination, np.uint64), *five, **rest)

    @classmethod
    def _of(
        cls,
        version: int,
        source: Array,
        destination: Array,
        source_port: ArrayLike,
        destination_port: ArrayLike,
        protocol: ArrayLike,
        vlan: ArrayLike = NO_VLAN,
        tcp_flags: ArrayLike = 0,
    ) -> Self:
        rows = len(source)
        return cls(
            version=np.full(rows, version, np.uint8),
            source=source,
            destination=destination,
            source_port=np.asarray(source_port, np.uint16),
            destination_port=np.asarray(destination_port, np.uint16),
            protocol=np.asarray(protocol, np.uint8),
            vlan=np.broadcast_to(np.asarray(vlan, np.uint16), rows),
            tcp_flags=np.broadcast_to(np.asarray(tcp_flags, np.uint8), rows),
        )


def _lower(addresses: ArrayLike) -> Array:
    lower = np.asarray(addresses, np.uint64)
    return np.stack([np.zeros_like(lower), lower], axis=1)

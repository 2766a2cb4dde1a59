"""What makes packets one flow: both ends, protocol, and what else is chosen, the same in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .packet_index import Array
from .packets import NO_VLAN, Packets
from .tuples import mixed

WORDS = 6


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """Which parts of a packet name its flow.

    Attributes:
        header: the IP header whose ends count: the innermost says who talks, the outermost who carries it.
        vlan: equal ends in different VLANs are different flows.
        tunnel: equal ends in different tunnels, or in networks of different numbers, are different flows. Where each
            direction has a number of its own, as in GTP, each is a flow of its own then.
    """

    header: Literal["inner", "outer"] = "inner"
    vlan: bool = False
    tunnel: bool = False


@dataclass(frozen=True, slots=True)
class FlowKeys:
    """The flow of each packet, and which of its ends sent the packet.

    The lower end, by address and then by port, comes first, whoever sends.

    Attributes:
        words: (6, n) uint64: upper and lower half of the first end's address, the same of the second's; their ports,
            protocol, tunnel, IP version, and whether it is a fragment that lacks its ports; VLAN ids and tunnel id.
        side: (n,) uint8, 0 where the first end sent the packet, else 1.
    """

    words: Array
    side: Array

    def __len__(self) -> int:
        return len(self.side)

    @classmethod
    def of(cls, packets: Packets, choice: KeyChoice, rows: Array | slice) -> FlowKeys:
        """The keys of some rows of packets; all of them have an IP header."""
        headers = packets.inner if choice.header == "inner" else packets.outer
        source = headers.src_high[rows], headers.src_low[rows], headers.sport[rows]
        destination = headers.dst_high[rows], headers.dst_low[rows], headers.dport[rows]
        after = source[2] > destination[2]
        for half in (1, 0):
            after = (source[half] > destination[half]) | ((source[half] == destination[half]) & after)
        words = np.empty((WORDS, len(after)), np.uint64)
        for half in (0, 1):
            words[half] = np.where(after, destination[half], source[half])
            words[half + 2] = np.where(after, source[half], destination[half])
        service = np.where(after, destination[2], source[2]).astype(np.uint64) << np.uint64(16)
        service |= np.where(after, source[2], destination[2])
        service = service << np.uint64(8) | headers.protocol[rows]
        service <<= np.uint64(8)
        if choice.tunnel:
            service |= packets.tunnel[rows]
        service = service << np.uint64(8) | headers.version[rows]
        service <<= np.uint64(8)
        service |= is_portless(headers.protocol[rows], headers.fragment_offset[rows])
        words[4] = service
        words[5] = _vlans(packets, rows) if choice.vlan else UNTAGGED
        if choice.tunnel:
            words[5] |= packets.tunnel_id[rows]
        return cls(words, after.astype(np.uint8))

    def hashes(self, seed: int) -> Array:
        """A hash of each key: (n,) uint64, good in its upper bits."""
        return mixed((np.full(len(self), seed, np.uint64), *self.words))


def is_portless(protocol: Array, fragment_offset: Array) -> Array:
    """Which packets lack the ports that their protocol has, because they are fragments after the first: (n,) bool."""
    return (fragment_offset > 0) & HAS_PORTS[protocol]


HAS_PORTS = np.isin(np.arange(256), (6, 17, 33, 132, 136))
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""

UNTAGGED = np.uint64(NO_VLAN << 48 | NO_VLAN << 32)


def _vlans(packets: Packets, rows: Array | slice) -> Array:
    ids = packets.vlan_outer[rows].astype(np.uint64) << np.uint64(16) | packets.vlan_inner[rows]
    return ids << np.uint64(32)


def parts(words: Array) -> dict[str, Array]:
    """What keys say, a column a name.

    Args:
        words: (6, n) uint64, of `FlowKeys`.

    Returns:
        `addresses` (n, 2, 2) uint64, of the first and the second end, upper and lower half; `ports` (n, 2) uint16, of
        both ends; `protocol`, `tunnel`, `version` (n,) uint8, `is_fragment` (n,) bool, `vlan_outer`, `vlan_inner` (n,)
        uint16, `tunnel_id` (n,) uint32.
    """
    service, rest = words[4], words[5]
    return {
        "addresses": np.stack([words[:2].T, words[2:4].T], axis=1),
        "ports": np.stack([_field(service, 48, np.uint16), _field(service, 32, np.uint16)], axis=1),
        "protocol": _field(service, 24, np.uint8),
        "tunnel": _field(service, 16, np.uint8),
        "version": _field(service, 8, np.uint8),
        "is_fragment": _field(service, 0, np.uint8) > 0,
        "vlan_outer": _field(rest, 48, np.uint16),
        "vlan_inner": _field(rest, 32, np.uint16),
        "tunnel_id": _field(rest, 0, np.uint32),
    }


def _field(words: Array, shift: int, dtype: type[np.unsignedinteger]) -> Array:
    return (words >> np.uint64(shift)).astype(dtype)

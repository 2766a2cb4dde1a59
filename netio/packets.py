"""What dissection gives: columns, one row a packet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

from .packet_index import Array

NO_VLAN = 0xFFFF
NO_LABEL = 0xFFFFFFFF


class Error(IntEnum):
    """The first thing that is wrong with a packet. What was read before it stands in its columns."""

    NONE = 0
    TRUNCATED = 1
    """The capture has fewer bytes of the packet than a header needs."""
    BAD_LENGTH = 2
    """A length is smaller than its header, or larger than what carries it; or a header is larger than what is left."""
    BAD_VERSION = 3
    """An IP header of another version than the layer below says."""
    LOOP_LIMIT = 4
    """More headers than are followed: `MAX_IP_HEADERS`, `MAX_TAGS`."""
    UNKNOWN_LINK = 5
    """A link type that is not dissected."""


class Tunnel(IntEnum):
    """What carries the second IP header of a packet."""

    NONE = 0
    IP = 1
    GRE = 2
    VXLAN = 3
    GENEVE = 4
    GTP = 5
    TEREDO = 6
    L2TP = 7


@dataclass(frozen=True, slots=True)
class Headers:
    """Columns of one IP header of each packet and of the transport header behind it; 0 for what a packet lacks.

    Addresses are two unsigned integers of 64 bits, because rules, hashes and flow keys compare them as numbers; an
    IPv4 address is the lower 32 bits, and `version` tells the families apart.

    Attributes:
        version: (n,) uint8, 4 or 6; 0 = no IP header.
        src_high: (n,) uint64, upper half of the source address; 0 for IPv4.
        src_low: (n,) uint64, lower half of the source address.
        dst_high: (n,) uint64, upper half of the destination address; 0 for IPv4.
        dst_low: (n,) uint64, lower half of the destination address.
        protocol: (n,) uint8, number of the protocol behind IPv6 extension headers and AH.
        ttl: (n,) uint8, time to live or hop limit.
        tos: (n,) uint8, DSCP and ECN, or traffic class.
        header_length: (n,) uint8, bytes of the IP header; IPv6 extension headers do not count.
        total_length: (n,) uint32, bytes of the IP packet as its header says; what the frame holds where IPv4 says 0,
            as segmentation offload does.
        identification: (n,) uint32.
        dont_fragment: (n,) bool.
        more_fragments: (n,) bool.
        fragment_offset: (n,) uint16, bytes.
        sport: (n,) uint16, source port of TCP, UDP, UDP-Lite, SCTP or DCCP.
        dport: (n,) uint16, destination port.
        seq: (n,) uint32, TCP sequence number.
        ack: (n,) uint32, TCP acknowledgement number.
        window: (n,) uint16, TCP window as it stands in the header.
        tcp_flags: (n,) uint16, twelve bits, FIN the lowest.
        tcp_header_length: (n,) uint8, bytes.
        icmp_type: (n,) uint8, of ICMP or ICMPv6.
        icmp_code: (n,) uint8.
        payload_offset: (n,) uint32, bytes from the first of the packet to what follows the last header read.
        payload_wire: (n,) uint32, bytes of payload on the wire.
        payload_captured: (n,) uint32, bytes of payload in the capture: never read more.
    """

    version: Array
    src_high: Array
    src_low: Array
    dst_high: Array
    dst_low: Array
    protocol: Array
    ttl: Array
    tos: Array
    header_length: Array
    total_length: Array
    identification: Array
    dont_fragment: Array
    more_fragments: Array
    fragment_offset: Array
    sport: Array
    dport: Array
    seq: Array
    ack: Array
    window: Array
    tcp_flags: Array
    tcp_header_length: Array
    icmp_type: Array
    icmp_code: Array
    payload_offset: Array
    payload_wire: Array
    payload_captured: Array

    def __len__(self) -> int:
        return len(self.version)


@dataclass(frozen=True, slots=True)
class Packets:
    """Columns of a batch of packets.

    Attributes:
        link: (n,) uint16, link type.
        ethertype: (n,) uint16, type in the first link header; 0 where there is none, or a length in its place.
        vlan_outer: (n,) uint16, first VLAN id before any IP header; `NO_VLAN` where there is none.
        vlan_inner: (n,) uint16, last VLAN id, where there are two or more; else `NO_VLAN`.
        mpls_label: (n,) uint32, first label before any IP header; `NO_LABEL` where there is none.
        tunnel: (n,) uint8, a `Tunnel`: what carries the second IP header.
        tunnel_id: (n,) uint32, network of VXLAN and Geneve, tunnel endpoint of GTP, key of GRE.
        ip_headers: (n,) uint8, how many IP headers; those that ICMP errors quote do not count.
        error: (n,) uint8, an `Error`.
        outer: the first IP header.
        inner: the last IP header. The same arrays as `outer` where no packet of the batch has two.
    """

    link: Array
    ethertype: Array
    vlan_outer: Array
    vlan_inner: Array
    mpls_label: Array
    tunnel: Array
    tunnel_id: Array
    ip_headers: Array
    error: Array
    outer: Headers
    inner: Headers

    def __len__(self) -> int:
        return len(self.link)


HEADER_DTYPES: dict[str, np.dtype[Any]] = {field.name: np.dtype("u1") for field in fields(Headers)}
HEADER_DTYPES |= dict.fromkeys(("src_high", "src_low", "dst_high", "dst_low"), np.dtype("u8"))
HEADER_DTYPES |= dict.fromkeys(("total_length", "identification", "seq", "ack"), np.dtype("u4"))
HEADER_DTYPES |= dict.fromkeys(("payload_offset", "payload_wire", "payload_captured"), np.dtype("u4"))
HEADER_DTYPES |= dict.fromkeys(("dont_fragment", "more_fragments"), np.dtype("?"))
HEADER_DTYPES |= dict.fromkeys(("fragment_offset", "sport", "dport", "window", "tcp_flags"), np.dtype("u2"))

PACKET_DTYPES: dict[str, np.dtype[Any]] = {
    "link": np.dtype("u2"),
    "ethertype": np.dtype("u2"),
    "vlan_outer": np.dtype("u2"),
    "vlan_inner": np.dtype("u2"),
    "mpls_label": np.dtype("u4"),
    "tunnel": np.dtype("u1"),
    "tunnel_id": np.dtype("u4"),
    "ip_headers": np.dtype("u1"),
    "error": np.dtype("u1"),
}

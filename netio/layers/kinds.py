"""The kinds of headers, and what in one header names the kind of the next."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..packet_index import Array


class Kind:
    """Headers that are read, in the order in which a pass over a batch takes them; a packet that is done has none.

    Plain numbers, because NumPy widens whole arrays to 64 bits to compare them with a member of an `IntEnum`.
    """

    DONE = 0
    RADIOTAP = 1
    WIFI = 2
    PADDED_WIFI = 3
    SLL = 4
    SLL2 = 5
    NULL = 6
    LOOP = 7
    HDLC = 8
    ETHERNET = 9
    LLC = 10
    VLAN = 11
    PPPOE = 12
    PPP = 13
    MPLS = 14
    RAW = 15
    ARP = 16
    IPV4 = 17
    IPV6 = 18
    EXTENSION = 19
    TCP = 20
    UDP = 21
    PORTS = 22
    ICMP = 23
    GRE = 24
    VXLAN = 25
    GENEVE = 26
    GTP = 27
    TEREDO = 28
    L2TP = 29


# https://www.tcpdump.org/linktypes.html
LINKS = {
    0: Kind.NULL,
    1: Kind.ETHERNET,
    9: Kind.PPP,
    12: Kind.RAW,  # DLT_RAW of most systems, written to files by some programs
    14: Kind.RAW,  # DLT_RAW of OpenBSD
    50: Kind.PPP,
    51: Kind.PPPOE,
    101: Kind.RAW,
    104: Kind.HDLC,
    105: Kind.WIFI,
    108: Kind.LOOP,
    113: Kind.SLL,
    127: Kind.RADIOTAP,
    228: Kind.IPV4,
    229: Kind.IPV6,
    276: Kind.SLL2,
}

ETHERTYPES = {
    0x0800: Kind.IPV4,
    0x0806: Kind.ARP,
    0x8100: Kind.VLAN,
    0x86DD: Kind.IPV6,
    0x8847: Kind.MPLS,
    0x8848: Kind.MPLS,
    0x8864: Kind.PPPOE,
    0x88A8: Kind.VLAN,
    0x9100: Kind.VLAN,
}

PPP_PROTOCOLS = {0x0021: Kind.IPV4, 0x0057: Kind.IPV6, 0x0281: Kind.MPLS, 0x0283: Kind.MPLS}

# Address families of BSD, macOS and Linux.
FAMILIES = {2: Kind.IPV4, 10: Kind.IPV6, 24: Kind.IPV6, 28: Kind.IPV6, 30: Kind.IPV6}

NIBBLES = {4: Kind.IPV4, 6: Kind.IPV6}

TRANSPORTS = {
    1: Kind.ICMP,
    4: Kind.IPV4,
    6: Kind.TCP,
    17: Kind.UDP,
    33: Kind.PORTS,
    41: Kind.IPV6,
    47: Kind.GRE,
    51: Kind.EXTENSION,
    58: Kind.ICMP,
    132: Kind.PORTS,
    136: Kind.PORTS,
    137: Kind.MPLS,
}
EXTENSIONS = dict.fromkeys((0, 43, 44, 60), Kind.EXTENSION)

UDP_PORTS = {1701: Kind.L2TP, 2152: Kind.GTP, 3544: Kind.TEREDO, 4789: Kind.VXLAN, 6081: Kind.GENEVE}


class Tables(NamedTuple):
    """The mappings above as arrays that a number indexes: (65536,) uint8, or (256,) for numbers of a byte."""

    links: Array
    ethertypes: Array
    ppp: Array
    families: Array
    nibbles: Array
    after_ipv4: Array
    after_ipv6: Array
    udp_ports: Array


@lru_cache(maxsize=8)
def tables(xp: Any) -> Tables:
    """The tables in the memory of an array namespace."""

    def table(kinds: Mapping[int, int], size: int = 65536) -> Array:
        array = np.zeros(size, np.uint8)
        array[list(kinds)] = list(kinds.values())
        on_device: Array = xp.asarray(array)
        return on_device

    return Tables(
        links=table(LINKS),
        ethertypes=table(ETHERTYPES),
        ppp=table(PPP_PROTOCOLS),
        families=table(FAMILIES),
        nibbles=table(NIBBLES, 16),
        after_ipv4=table(TRANSPORTS, 256),
        after_ipv6=table(TRANSPORTS | EXTENSIONS, 256),
        udp_ports=table(UDP_PORTS),
    )

"""Headers of the link layer, as link types of captures name them, and LLC."""

from __future__ import annotations

from ..packet_index import Array
from ..packets import Error
from .kinds import Kind
from .walk import Rows, Walk

# A smaller number in a type's place is a length (IEEE 802.3).
LEAST_ETHERTYPE = 0x0600

ETHERNET_BYTES = 14
SLL_BYTES = 16
SLL2_BYTES = 20
SLL_LLC = 4

SNAP_SAP = 0xAA
IP_SAP = 0x06
UNNUMBERED = 0x03
ETHERNET_OUI = 0x000000
BRIDGE_OUI = 0x0000F8


def ethernet(walk: Walk, rows: Rows) -> None:
    """Ethernet II and IEEE 802.3."""
    rows, at, head, _ = walk.read(rows, ETHERNET_BYTES)
    ethertype = head.u16(12)
    _name(walk, rows, ethertype)
    follow(walk, rows, at + ETHERNET_BYTES, ethertype)


def follow(walk: Walk, rows: Rows, at: Array, ethertype: Array) -> None:
    """Goes to the header that an ethertype names; a length in its place leads to LLC and ends the packet."""
    kinds = walk.tables.ethertypes[ethertype]
    lengths = ethertype < LEAST_ETHERTYPE
    if lengths.any():
        kinds = walk.xp.where(lengths, Kind.LLC, kinds)
        walk.shorten(walk.numbers(rows)[lengths], (at + ethertype)[lengths])
    walk.go(rows, at, kinds)


def _name(walk: Walk, rows: Rows, ethertype: Array) -> None:
    if walk.first:
        walk.put(rows, ethertype=walk.xp.where(ethertype < LEAST_ETHERTYPE, 0, ethertype))


def llc(walk: Walk, rows: Rows) -> None:
    """IEEE 802.2, with SNAP or with IP's own access point. Source: RFC 1042."""
    rows, at, _, _ = walk.read(rows, 3)
    head = walk.peek(rows, 0, 8)
    sap, control, oui = head.u16(0), head.u8(2), head.u32(3) & 0xFFFFFF00
    plain = control == UNNUMBERED
    snap = plain & (sap == SNAP_SAP * 0x0101) & ((oui == ETHERNET_OUI << 8) | (oui == BRIDGE_OUI << 8))
    ip = plain & (sap == IP_SAP * 0x0101)
    kinds = walk.xp.where(snap, walk.tables.ethertypes[head.u16(6)], walk.xp.where(ip, Kind.IPV4, Kind.DONE))
    walk.go(rows, at + walk.xp.where(snap, 8, 3), kinds)


def sll(walk: Walk, rows: Rows) -> None:
    """Linux cooked capture, version 1."""
    rows, at, head, _ = walk.read(rows, SLL_BYTES)
    _cooked(walk, rows, at + SLL_BYTES, head.u16(14))


def sll2(walk: Walk, rows: Rows) -> None:
    """Linux cooked capture, version 2."""
    rows, at, head, _ = walk.read(rows, SLL2_BYTES)
    _cooked(walk, rows, at + SLL2_BYTES, head.u16(0))


def _cooked(walk: Walk, rows: Rows, at: Array, ethertype: Array) -> None:
    _name(walk, rows, ethertype)
    walk.go(rows, at, walk.xp.where(ethertype == SLL_LLC, Kind.LLC, walk.tables.ethertypes[ethertype]))


def null(walk: Walk, rows: Rows) -> None:
    """BSD loopback: an address family in the byte order of the machine that captured; some write an ethertype."""
    xp = walk.xp
    rows, at, head, _ = walk.read(rows, 4)
    upper, lower = head.u16(0), head.u16(2)
    family = xp.where(upper == 0, lower, xp.where(lower == 0, upper >> 8 | (upper & 0xFF) << 8, 0))
    kinds = walk.tables.families[family]
    walk.go(rows, at + 4, xp.where(kinds == Kind.DONE, walk.tables.ethertypes[lower], kinds))


def loop(walk: Walk, rows: Rows) -> None:
    """OpenBSD loopback: the same in network byte order."""
    rows, at, head, _ = walk.read(rows, 4)
    walk.go(rows, at + 4, walk.tables.families[walk.xp.where(head.u16(0) == 0, head.u16(2), 0)])


def hdlc(walk: Walk, rows: Rows) -> None:
    """Cisco HDLC: address, control, ethertype."""
    rows, at, head, _ = walk.read(rows, 4)
    ethertype = head.u16(2)
    _name(walk, rows, ethertype)
    walk.go(rows, at + 4, walk.tables.ethertypes[ethertype])


def raw(walk: Walk, rows: Rows) -> None:
    """No header: the version of IP says which."""
    rows, at, head, _ = walk.read(rows, 1)
    kinds = walk.tables.nibbles[head.u8(0) >> 4]
    walk.go(rows, at, kinds)
    if not kinds.all():
        walk.fail(walk.numbers(rows)[kinds == Kind.DONE], Error.BAD_VERSION)

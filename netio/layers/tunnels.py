"""What carries one network in another: GRE, and tunnels over UDP."""

from __future__ import annotations

from ..packets import Tunnel
from .kinds import Kind
from .walk import Rows, Walk

GRE_CHECKSUM = 0x8000
GRE_ROUTING = 0x4000
GRE_KEY = 0x2000
GRE_SEQUENCE = 0x1000
GRE_ACKNOWLEDGEMENT = 0x0080
GRE_VERSION = 0x0007

ETHERNET_IN_GRE = 0x6558
PPP_IN_GRE = 0x880B
ERSPAN_2 = 0x88BE
ERSPAN_3 = 0x22EB
ERSPAN_2_BYTES = 8
ERSPAN_3_BYTES = 12

GTP_OPTIONAL = 0x07
GTP_EXTENSION = 0x04
GTP_VERSION_1 = 0x30
GTP_PACKET = 255
MAX_GTP_EXTENSIONS = 8

TEREDO_AUTHENTICATION = 1
TEREDO_ORIGIN = 0
TEREDO_ORIGIN_BYTES = 8

L2TP_CONTROL = 0x8000
L2TP_LENGTH = 0x4000
L2TP_SEQUENCE = 0x0800
L2TP_OFFSET = 0x0200


def gre(walk: Walk, rows: Rows) -> None:
    """GRE of versions 0 and 1, ERSPAN in it. Source: RFC 2784, RFC 2890, RFC 2637, draft-foschiano-erspan."""
    xp = walk.xp
    rows, at, head, _ = walk.read(rows, 4)
    flags, protocol = head.u16(0), head.u16(2)
    checked = flags & (GRE_CHECKSUM | GRE_ROUTING) != 0
    keyed, numbered = flags & GRE_KEY != 0, flags & GRE_SEQUENCE != 0
    later = flags & GRE_VERSION == 1
    size = 4 + 4 * checked + 4 * keyed + 4 * numbered + 4 * (later & (flags & GRE_ACKNOWLEDGEMENT != 0))
    key = walk.peek(rows, 4 + 4 * checked, 4).u32(0)
    walk.enter(rows, Tunnel.GRE, xp.where(keyed & ~later, key, 0))
    kinds = walk.tables.ethertypes[protocol]
    kinds = xp.where(protocol == ETHERNET_IN_GRE, Kind.ETHERNET, kinds)
    kinds = xp.where(protocol == PPP_IN_GRE, Kind.PPP, kinds)
    # ERSPAN without a sequence number is of the first type, which has no header of its own.
    kinds = xp.where((protocol == ERSPAN_2) | (protocol == ERSPAN_3), Kind.ETHERNET, kinds)
    size = xp.where((protocol == ERSPAN_2) & numbered, size + ERSPAN_2_BYTES, size)
    optional = walk.peek(rows, size + ERSPAN_3_BYTES - 1, 1).u8(0) & 1
    size = xp.where(protocol == ERSPAN_3, size + ERSPAN_3_BYTES + 8 * optional, size)
    # An acknowledgement of version 1 alone carries nothing, and has no sequence number.
    ends = (flags & GRE_ROUTING != 0) | (flags & GRE_VERSION > 1) | (later & ~numbered)
    walk.go(rows, at + size, xp.where(ends, Kind.DONE, kinds))


def vxlan(walk: Walk, rows: Rows) -> None:
    """VXLAN. Source: RFC 7348."""
    rows, at, head, _ = walk.read(rows, 8)
    walk.enter(rows, Tunnel.VXLAN, head.u32(4) >> 8)
    walk.go(rows, at + 8, Kind.ETHERNET)


def geneve(walk: Walk, rows: Rows) -> None:
    """Geneve. Source: RFC 8926."""
    rows, at, head, _ = walk.read(rows, 8)
    protocol = head.u16(2)
    walk.enter(rows, Tunnel.GENEVE, head.u32(4) >> 8)
    kinds = walk.xp.where(protocol == ETHERNET_IN_GRE, Kind.ETHERNET, walk.tables.ethertypes[protocol])
    size = 8 + ((head.u8(0) & 0x3F).astype("i8") << 2)
    walk.go(rows, at + size, walk.xp.where(head.u8(0) >> 6 == 0, kinds, Kind.DONE))


def gtp(walk: Walk, rows: Rows) -> None:
    """GTP-U of version 1; only messages that carry a packet lead on. Source: 3GPP TS 29.281."""
    xp = walk.xp
    rows, at, head, _ = walk.read(rows, 8)
    flags = head.u8(0)
    walk.enter(rows, Tunnel.GTP, head.u32(4))
    size = xp.where(flags & GTP_OPTIONAL != 0, 12, 8)
    following = walk.peek(rows, 11, 1).u8(0) * (flags & GTP_EXTENSION != 0)
    for _ in range(MAX_GTP_EXTENSIONS):
        more = following != 0
        if not more.any():
            break
        length = walk.peek(rows, size, 1).u8(0).astype("i8") << 2
        following = xp.where(more & (length > 0), walk.peek(rows, size + xp.maximum(length, 1) - 1, 1).u8(0), 0)
        size = size + xp.where(more, length, 0)
    carries = (flags & 0xF0 == GTP_VERSION_1) & (head.u8(1) == GTP_PACKET) & (following == 0)
    kinds = walk.tables.nibbles[walk.peek(rows, size, 1).u8(0) >> 4]
    walk.go(rows, at + size, xp.where(carries, kinds, Kind.DONE))


def teredo(walk: Walk, rows: Rows) -> None:
    """Teredo: an authentication and an origin may stand before the IPv6 packet. Source: RFC 4380 section 5.1.1."""
    xp = walk.xp
    head = walk.peek(rows, 0, 4)
    at = walk.at[rows]
    walk.enter(rows, Tunnel.TEREDO)
    known = head.u16(0) == TEREDO_AUTHENTICATION
    size = xp.where(known, 13 + head.u8(2).astype("i8") + head.u8(3), 0)
    there = walk.end[rows] - at > size + TEREDO_ORIGIN_BYTES
    origin = there & (walk.peek(rows, size, 2).u16(0) == TEREDO_ORIGIN)
    size = size + TEREDO_ORIGIN_BYTES * origin
    kinds = walk.tables.nibbles[walk.peek(rows, size, 1).u8(0) >> 4]
    kinds = xp.where(kinds == Kind.IPV6, kinds, Kind.DONE)
    walk.go(rows, xp.where(kinds == Kind.IPV6, at + size, at), kinds)


def l2tp(walk: Walk, rows: Rows) -> None:
    """L2TP of version 2; data leads to PPP. Source: RFC 2661 section 3.1."""
    xp = walk.xp
    rows, at, head, _ = walk.read(rows, 6)
    flags = head.u16(0)
    walk.enter(rows, Tunnel.L2TP)
    size = 6 + 2 * (flags & L2TP_LENGTH != 0) + 4 * (flags & L2TP_SEQUENCE != 0)
    offset = walk.peek(rows, size, 2).u16(0)
    size = xp.where(flags & L2TP_OFFSET != 0, size + 2 + offset.astype("i8"), size)
    data = (flags & L2TP_CONTROL == 0) & (flags & 0x000F == 2)
    walk.go(rows, xp.where(data, at + size, at), xp.where(data, Kind.PPP, Kind.DONE))

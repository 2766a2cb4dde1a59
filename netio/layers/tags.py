"""What stands between the link layer and IP: VLAN tags, PPPoE, PPP, MPLS."""

from __future__ import annotations

from ..packets import NO_LABEL, NO_VLAN, Error
from .kinds import Kind
from .link import ETHERNET_BYTES, follow
from .walk import Rows, Walk

PPPOE_BYTES = 6
PPP_ADDRESS = 0xFF03

# Labels behind which there is no packet. Source: RFC 5586, RFC 3429.
GENERIC_CHANNEL = 13
OAM_ALERT = 14
BOTTOM_OF_STACK = 0x100
CONTROL_WORD_BYTES = 4


def vlan(walk: Walk, rows: Rows) -> None:
    """A tag of IEEE 802.1Q or 802.1ad."""
    rows, at, head, _ = walk.read(walk.tag(rows), 4)
    plain = walk.columns["ip_headers"][rows] == 0
    numbers, vid = walk.numbers(rows)[plain], (head.u16(0) & 0x0FFF)[plain]
    first = walk.columns["vlan_outer"][numbers] == NO_VLAN
    walk.put(numbers[first], vlan_outer=vid[first])
    walk.put(numbers[~first], vlan_inner=vid[~first])
    follow(walk, rows, at + 4, head.u16(2))


def pppoe(walk: Walk, rows: Rows) -> None:
    """A session of PPP over Ethernet. Source: RFC 2516."""
    rows, at, head, _ = walk.read(rows, PPPOE_BYTES)
    walk.shorten(rows, at + PPPOE_BYTES + head.u16(4))
    walk.go(rows, at + PPPOE_BYTES, Kind.PPP)


def ppp(walk: Walk, rows: Rows) -> None:
    """PPP, with or without address and control, its protocol in one or two bytes. Source: RFC 1661, RFC 1662."""
    xp = walk.xp
    rows, at, _, _ = walk.read(rows, 1)
    head = walk.peek(rows, 0, 4)
    framed = head.u16(0) == PPP_ADDRESS
    protocol = xp.where(framed, head.u16(2), head.u16(0))
    short = protocol & 0x0100 != 0
    protocol = xp.where(short, protocol >> 8, protocol)
    walk.go(rows, at + 2 * framed + xp.where(short, 1, 2), walk.tables.ppp[protocol])


def mpls(walk: Walk, rows: Rows) -> None:
    """A label; behind the last one IP, or Ethernet with or without a control word, which nothing but its looks tells.

    Source: RFC 3032, RFC 4928.
    """
    xp = walk.xp
    rows, at, head, _ = walk.read(walk.tag(rows), 4)
    entry = head.u32(0)
    unnamed = (walk.columns["mpls_label"][rows] == NO_LABEL) & (walk.columns["ip_headers"][rows] == 0)
    walk.put(walk.numbers(rows)[unnamed], mpls_label=(entry >> 12)[unnamed])
    inside = walk.peek(rows, 4, CONTROL_WORD_BYTES + ETHERNET_BYTES)
    nibble = inside.u8(0) >> 4
    kinds = walk.tables.nibbles[nibble]
    plain = (kinds == Kind.DONE) & (walk.tables.ethertypes[inside.u16(12)] != Kind.DONE)
    worded = (nibble == 0) & (walk.tables.ethertypes[inside.u16(12 + CONTROL_WORD_BYTES)] != Kind.DONE) & ~plain
    kinds = xp.where(plain | worded, Kind.ETHERNET, kinds)
    kinds = xp.where((entry >> 12 == GENERIC_CHANNEL) | (entry >> 12 == OAM_ALERT), Kind.DONE, kinds)
    bottom = entry & BOTTOM_OF_STACK != 0
    walk.go(rows, at + 4 + xp.where(bottom & worded, CONTROL_WORD_BYTES, 0), xp.where(bottom, kinds, Kind.MPLS))
    unseen = bottom & (walk.end[rows] == at + 4) & (walk.limit[rows] > at + 4)
    if unseen.any():
        walk.fail(walk.numbers(rows)[unseen], Error.TRUNCATED)

"""TCP, UDP, ICMP, and the protocols of which nothing but the ports is read."""

from __future__ import annotations

from ..packets import Error
from .kinds import Kind
from .walk import Rows, Walk

TCP_BYTES = 20
UDP_BYTES = 8
SCTP_BYTES = 12
DCCP_BYTES = 12
ICMP_BYTES = 8
PORTS_BYTES = 4

SCTP = 132
DCCP = 33


def tcp(walk: Walk, rows: Rows) -> None:
    """TCP. Source: RFC 9293."""
    rows, at, head, whole = walk.read(rows, TCP_BYTES, PORTS_BYTES)
    walk.put(rows, sport=head.u16(0), dport=head.u16(2))
    walk.kind[rows] = Kind.DONE
    if whole is not None:
        rows, at, head = walk.numbers(rows)[whole], at[whole], head[whole]
    size = head.u8(12) >> 4 << 2
    walk.put(
        rows,
        seq=head.u32(4),
        ack=head.u32(8),
        window=head.u16(14),
        tcp_flags=head.u16(12) & 0x0FFF,
        tcp_header_length=size,
    )
    walk.at[rows] = at + size
    wrong = (size < TCP_BYTES) | (at + size > walk.limit[rows])
    if wrong.any():
        walk.fail(walk.numbers(rows)[wrong], Error.BAD_LENGTH)


def udp(walk: Walk, rows: Rows) -> None:
    """UDP; over IPv6 a length of 0 stands for a jumbogram. A port, the destination's first, may name a tunnel.

    Source: RFC 768, RFC 2675.
    """
    xp = walk.xp
    rows, at, head, whole = walk.read(rows, UDP_BYTES, PORTS_BYTES)
    sport, dport = head.u16(0), head.u16(2)
    walk.put(rows, sport=sport, dport=dport)
    walk.kind[rows] = Kind.DONE
    if whole is not None:
        rows, at, head, sport, dport = walk.numbers(rows)[whole], at[whole], head[whole], sport[whole], dport[whole]
    named = walk.tables.udp_ports[dport]
    kinds = xp.where(named != Kind.DONE, named, walk.tables.udp_ports[sport])
    walk.go(rows, at + UDP_BYTES, kinds)
    length = head.u16(4)
    small = length < UDP_BYTES
    if not small.any():
        walk.shorten(rows, at + length)
        return
    walk.shorten(rows, xp.where(small, walk.limit[rows], at + length))
    jumbo = (length == 0) & (walk.columns["version"][rows] == 6)
    walk.fail(walk.numbers(rows)[small & ~jumbo], Error.BAD_LENGTH)


def ports(walk: Walk, rows: Rows) -> None:
    """SCTP, DCCP and UDP-Lite. Source: RFC 9260, RFC 4340, RFC 3828."""
    xp = walk.xp
    rows, at, head, _ = walk.read(rows, PORTS_BYTES)
    walk.put(rows, sport=head.u16(0), dport=head.u16(2))
    protocol = walk.columns["protocol"][rows]
    size = xp.where(protocol == SCTP, SCTP_BYTES, xp.where(protocol == DCCP, DCCP_BYTES, UDP_BYTES))
    # The fifth byte of DCCP is its header's length in words, options included.
    size = xp.where(protocol == DCCP, walk.peek(rows, 4, 1).u8(0).astype("i8") << 2, size)
    walk.go(rows, at + size, Kind.DONE)
    wrong = at + size > walk.limit[rows]
    if wrong.any():
        walk.fail(walk.numbers(rows)[wrong], Error.BAD_LENGTH)


def icmp(walk: Walk, rows: Rows) -> None:
    """ICMP and ICMPv6; what their errors quote is payload. Source: RFC 792, RFC 4443."""
    rows, at, head, whole = walk.read(rows, ICMP_BYTES, 2)
    walk.put(rows, icmp_type=head.u8(0), icmp_code=head.u8(1))
    walk.kind[rows] = Kind.DONE
    if whole is not None:
        rows, at = walk.numbers(rows)[whole], at[whole]
    walk.at[rows] = at + ICMP_BYTES

"""ARP, IPv4, and IPv6 with its extension headers."""

from __future__ import annotations

from ..packets import Error, Tunnel
from .kinds import Kind
from .walk import Rows, Walk

ARP_BYTES = 8

IPV4_BYTES = 20
# So much holds the source address: enough to say which packet this was.
IPV4_LEAST = 16
MORE_FRAGMENTS = 0x2000
DONT_FRAGMENT = 0x4000
FRAGMENT_OFFSET = 0x1FFF

IPV6_BYTES = 40
IPV6_LEAST = 24

FRAGMENT = 44
AUTHENTICATION = 51


def arp(walk: Walk, rows: Rows) -> None:
    """ARP: nothing but whether all of it is there. Source: RFC 826."""
    rows, _, head, _ = walk.read(rows, ARP_BYTES)
    size = ARP_BYTES + 2 * (head.u8(4).astype("i8") + head.u8(5))
    walk.kind[rows] = Kind.DONE
    have = walk.limit[rows] - walk.at[rows]
    beyond = have < size
    if beyond.any():
        walk.fail(walk.numbers(rows)[beyond], Error.BAD_LENGTH)
    cut = walk.end[rows] - walk.at[rows] < size
    if cut.any():
        walk.fail(walk.numbers(rows)[cut], Error.TRUNCATED)
    walk.at[rows] += walk.xp.minimum(size, have)


def ipv4(walk: Walk, rows: Rows) -> None:
    """IPv4 with options. A length of 0 is what segmentation offload leaves: the packet then ends with its frame.

    Source: RFC 791.
    """
    xp = walk.xp
    rows, at, head, whole = walk.read(walk.count_ip(rows), IPV4_BYTES, IPV4_LEAST)
    first, total = head.u8(0), head.u16(2)
    size = (first & 15) << 2
    wrong_version = first >> 4 != 4
    wrong = wrong_version | (size < IPV4_BYTES) | ((total < size) & (total > 0))
    if wrong.any():
        walk.fail(walk.numbers(rows)[wrong], xp.where(wrong_version, Error.BAD_VERSION, Error.BAD_LENGTH)[wrong])
        right = ~wrong
        rows, at, head, size, total = walk.numbers(rows)[right], at[right], head[right], size[right], total[right]
        whole = None if whole is None else whole[right]
    walk.leave_outer(rows, Tunnel.IP)
    protocol, fragment = head.u8(9), head.u16(6)
    offset = (fragment & FRAGMENT_OFFSET) << 3
    offload = total == 0
    if offload.any():
        total = xp.where(offload, walk.limit[rows] - at, total)
    more = fragment & MORE_FRAGMENTS != 0
    if more.any():
        walk.fragment[walk.numbers(rows)[more]] = True
    walk.put(
        rows,
        version=4,
        src_low=head.u32(12),
        dst_low=head.u32(16),
        protocol=protocol,
        ttl=head.u8(8),
        tos=head.u8(1),
        header_length=size,
        total_length=total,
        identification=head.u16(4),
        dont_fragment=fragment & DONT_FRAGMENT != 0,
        more_fragments=more,
        fragment_offset=offset,
    )
    walk.go(rows, at + size, walk.tables.after_ipv4[protocol] * (offset == 0))
    if whole is not None:
        part = walk.numbers(rows)[~whole]
        walk.put(part, dst_low=0)
        walk.kind[part] = Kind.DONE
    walk.shorten(rows, at + total)


def ipv6(walk: Walk, rows: Rows) -> None:
    """IPv6. A length of 0 stands for a jumbogram or segmentation offload: the packet then ends with its frame.

    Source: RFC 8200, RFC 2675.
    """
    xp = walk.xp
    rows, at, head, whole = walk.read(walk.count_ip(rows), IPV6_BYTES, IPV6_LEAST)
    wrong = head.u8(0) >> 4 != 6
    if wrong.any():
        walk.fail(walk.numbers(rows)[wrong], Error.BAD_VERSION)
        right = ~wrong
        rows, at, head = walk.numbers(rows)[right], at[right], head[right]
        whole = None if whole is None else whole[right]
    walk.leave_outer(rows, Tunnel.IP)
    protocol, length = head.u8(6), head.u16(4)
    walk.put(
        rows,
        version=6,
        src_high=head.u64(8),
        src_low=head.u64(16),
        dst_high=head.u64(24),
        dst_low=head.u64(32),
        protocol=protocol,
        ttl=head.u8(7),
        tos=head.u16(0) >> 4 & 0xFF,
        header_length=IPV6_BYTES,
        total_length=length.astype("u4") + IPV6_BYTES,
    )
    at = at + IPV6_BYTES
    walk.go(rows, at, walk.tables.after_ipv6[protocol])
    if whole is not None:
        part = walk.numbers(rows)[~whole]
        walk.put(part, dst_high=0, dst_low=0)
        walk.kind[part] = Kind.DONE
    walk.shorten(rows, xp.where(length == 0, walk.limit[rows], at + length))


def extension(walk: Walk, rows: Rows) -> None:
    """An extension header of IPv6, or AH of either version: the column `protocol` says which.

    Source: RFC 8200 section 4, RFC 4302.
    """
    xp = walk.xp
    rows, at, head, _ = walk.read(walk.tag(rows), 8)
    this = walk.columns["protocol"][rows].copy()
    following, length = head.u8(0), head.u8(1).astype("i8")
    size = xp.where(this == FRAGMENT, 8, xp.where(this == AUTHENTICATION, (length + 2) << 2, (length + 1) << 3))
    walk.put(rows, protocol=following)
    six = walk.columns["version"][rows] == 6
    kinds = xp.where(six, walk.tables.after_ipv6[following], walk.tables.after_ipv4[following])
    later = this == FRAGMENT
    if later.any():
        numbers, part = walk.numbers(rows)[later], head[later]
        fragment = part.u16(2)
        walk.put(
            numbers,
            identification=part.u32(4),
            more_fragments=fragment & 1 != 0,
            fragment_offset=fragment & 0xFFF8,
        )
        walk.fragment[numbers] |= fragment & 1 != 0
        later[later] = fragment & 0xFFF8 != 0
    walk.go(rows, at + size, xp.where(later, Kind.DONE, kinds))

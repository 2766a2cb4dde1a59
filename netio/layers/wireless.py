"""IEEE 802.11 frames, and radiotap before them."""

from __future__ import annotations

from ..packet_index import Array
from ..packets import Error
from .kinds import Kind
from .walk import Rows, Walk

RADIOTAP_BYTES = 8
TIMER_PRESENT = 1 << 0
FLAGS_PRESENT = 1 << 1
MORE_PRESENT = 1 << 31
MAX_PRESENT_WORDS = 8
TIMER_BYTES = 8

FLAG_FCS = 0x10
FLAG_PADDED = 0x20
FCS_BYTES = 4

HEADER_BYTES = 24
DATA = 2
SUBTYPE_NO_DATA = 0x4
SUBTYPE_QOS = 0x8
TO_AND_FROM_DS = 0x3
PROTECTED = 0x40
ORDER = 0x80
FRAGMENT_NUMBER = 0x0F
QOS_AGGREGATE = 0x80


def radiotap(walk: Walk, rows: Rows) -> None:
    """The radio's notes before a frame. Source: https://www.radiotap.org."""
    rows, at, head, _ = walk.read(rows, RADIOTAP_BYTES)
    length = head.little_u16(2)
    present = head.little_u32(4)
    fields = walk.xp.full(len(at), RADIOTAP_BYTES)
    more = present & MORE_PRESENT != 0
    for _ in range(MAX_PRESENT_WORDS):
        if not more.any():
            break
        following = walk.peek(rows, fields, 4).little_u32(0)
        fields = fields + 4 * more
        more = more & (following & MORE_PRESENT != 0)
    # The timer is aligned to its size, counted from the first byte of the header.
    timer = present & TIMER_PRESENT != 0
    fields = walk.xp.where(timer, (fields + 7 & ~7) + TIMER_BYTES, fields)
    flags = walk.xp.where(present & FLAGS_PRESENT != 0, walk.peek(rows, fields, 1).u8(0), 0)
    walk.go(rows, at + length, walk.xp.where(flags & FLAG_PADDED != 0, Kind.PADDED_WIFI, Kind.WIFI))
    fcs = flags & FLAG_FCS != 0
    if fcs.any():
        checked = walk.numbers(rows)[fcs]
        walk.shorten(checked, walk.xp.maximum(walk.limit[checked] - FCS_BYTES, walk.at[checked]))
    small = length < RADIOTAP_BYTES
    if small.any():
        walk.fail(walk.numbers(rows)[small], Error.BAD_LENGTH)


def wifi(walk: Walk, rows: Rows) -> None:
    """A frame of IEEE 802.11: data that is not encrypted, aggregated or a later fragment leads to LLC."""
    _frame(walk, rows, 1)


def padded_wifi(walk: Walk, rows: Rows) -> None:
    """The same where the radio has filled up the header to a multiple of four bytes."""
    _frame(walk, rows, 4)


def _frame(walk: Walk, rows: Rows, multiple: int) -> None:
    rows, _, head, _ = walk.read(rows, 2)
    control, flags = head.u8(0), head.u8(1)
    data = (control >> 2 & 3 == DATA) & (control >> 4 & SUBTYPE_NO_DATA == 0) & (flags & PROTECTED == 0)
    walk.kind[rows] = Kind.DONE
    rows, at, head, _ = walk.read(walk.numbers(rows)[data], HEADER_BYTES)
    qos = head.u8(0) >> 4 & SUBTYPE_QOS != 0
    flags = head.u8(1)
    size: Array = HEADER_BYTES + 6 * (flags & TO_AND_FROM_DS == TO_AND_FROM_DS)
    aggregate = qos & (walk.peek(rows, size, 1).u8(0) & QOS_AGGREGATE != 0)
    size = size + 2 * qos + 4 * (qos & (flags & ORDER != 0))
    size = size + -size % multiple
    whole = (head.u8(22) & FRAGMENT_NUMBER == 0) & ~aggregate
    walk.go(rows, at + size, walk.xp.where(whole, Kind.LLC, Kind.DONE))

"""Packets added to the records of their flows: one reduction a property over all packets of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from .flow_cuts import elapsed
from .flow_record import FIRST, FLAGS, MOST_U4, MOST_U8
from .flow_runs import starts
from .packet_index import Array

US_NS = np.uint64(1000)
HALF = np.uint64(32)
EXACT = 1 << 44
"""Values below it cannot overflow a sum over a batch of 2**20 packets."""
FIELD = np.uint64(21)
"""Bits of a count of flags in a word of three; a batch has fewer packets than they count."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What is summed up, one row a packet; the rows of a record are in the order of their arrival, one after the other.

    Attributes:
        record: (n,) int64, not falling.
        side: (n,) uint8, which end sent it.
        clock: (n,) int64, the clock of its flow.
        wire, ip, payload: (n,) uint32, bytes.
        flags: (n,) uint16, of TCP.
    """

    record: Array
    side: Array
    clock: Array
    wire: Array
    ip: Array
    payload: Array
    flags: Array


@dataclass(frozen=True, slots=True)
class Sides:
    """The rows of each record sorted by side: a group is what one end sent.

    Attributes:
        order: (n,) int64, the row in each place.
        head: (groups,) int64, the place of the first row of each group.
        group: record and side of each group: (groups,) int64 and uint8.
        rank: (n,) int64, how many rows of its group are before each row.
    """

    order: Array
    head: Array
    group: tuple[Array, Array]
    rank: Array

    @classmethod
    def of(cls, record: Array, side: Array) -> Self:
        marks = np.append(True, record[1:] != record[:-1])
        start, segment = starts(marks)
        rows = np.arange(len(record))
        ones_before = np.cumsum(side, dtype=np.int64) - side
        ones = np.add.reduceat(side, start, dtype=np.int64)
        zeros = np.diff(start, append=len(record)) - ones
        rank_one = ones_before - ones_before[start][segment]
        rank = np.where(side, rank_one, rows - start[segment] - rank_one)
        order = np.empty(len(record), np.int64)
        order[start[segment] + rank + np.where(side, zeros[segment], 0)] = rows
        is_head = np.zeros(len(record), bool)
        is_head[start] = True
        is_head[(start + zeros)[ones > 0]] = True
        head = np.flatnonzero(is_head)
        return cls(order, head, (record[order[head]], side[order[head]]), rank)


def add(records: Array, columns: Columns) -> None:
    """Adds packets to their records; afterwards `records` say what they would if each packet had been added alone.

    Args:
        records: (m,) of `flow_record.RECORD`, changed in place.
        columns: the packets, at least one.
    """
    sides = Sides.of(columns.record, columns.side)
    order, head, group = sides.order, sides.head, sides.group
    before = records["packets"][group]
    clock = columns.clock[order]
    gap, is_gap = _gaps(clock, head, records["latest_ns"][group], before > 0)
    _keep_first(records, columns, sides, gap)
    wire = columns.wire[order]

    size = np.diff(head, append=len(order)).astype(np.uint64)
    records["packets"][group] = before + size
    added = {"wire_bytes": wire, "ip_bytes": columns.ip[order], "payload_bytes": columns.payload[order]}
    for name, values in added.items():
        records[name][group] += np.add.reduceat(values, head, dtype=np.uint64)
    records["size_least"][group] = np.minimum(records["size_least"][group], np.minimum.reduceat(wire, head))
    records["size_most"][group] = np.maximum(records["size_most"][group], np.maximum.reduceat(wire, head))
    _add_squares(records, "size_squares", group, wire.astype(np.uint64), head)

    least = np.minimum.reduceat(np.where(is_gap, gap, MOST_U8), head)
    records["gap_least_ns"][group] = np.minimum(records["gap_least_ns"][group], least)
    records["gap_most_ns"][group] = np.maximum(records["gap_most_ns"][group], np.maximum.reduceat(gap, head))
    _add_squares(records, "gap_squares", group, gap // US_NS, head)
    records["begun_ns"][group] = np.where(before > 0, records["begun_ns"][group], clock[head])
    records["latest_ns"][group] = clock[np.append(head[1:], len(order)) - 1]
    if columns.flags.any():
        _count_flags(records, group, columns.flags[order], head)


def _gaps(clock: Array, head: Array, latest: Array, has_latest: Array) -> tuple[Array, Array]:
    """The time since the same side's last packet: (n,) uint64, 0 where there is none, and (n,) bool, where there is."""
    gap = np.empty(len(clock), np.uint64)
    gap[1:] = elapsed(clock[:-1], clock[1:])
    gap[head] = np.where(has_latest, elapsed(latest, clock[head]), np.uint64(0))
    is_gap = np.ones(len(clock), bool)
    is_gap[head] = has_latest
    return gap, is_gap


def _keep_first(records: Array, columns: Columns, sides: Sides, gap: Array) -> None:
    early = np.flatnonzero(sides.rank < FIRST)
    record, side = columns.record[early], columns.side[early]
    place = records["packets"][record, side] + sides.rank[early].astype(np.uint64)
    kept = place < FIRST
    early, at = early[kept], (record[kept], side[kept], place[kept].astype(np.int64))
    of_row = np.empty_like(gap)
    of_row[sides.order] = gap
    records["first_sizes"][at] = columns.wire[early]
    records["first_gaps_us"][at] = np.minimum(of_row[early] // US_NS, MOST_U4)


def _add_squares(records: Array, name: str, group: tuple[Array, Array], values: Array, head: Array) -> None:
    """Adds squares to sums that stay at the most there is."""
    most = int(values.max())
    if most * most < EXACT:
        sums = np.add.reduceat(values * values, head)
    else:
        squares = np.where(values > MOST_U4, MOST_U8, values * values)
        low = np.add.reduceat(squares & MOST_U4, head)
        high = np.add.reduceat(squares >> HALF, head) + (low >> HALF)
        sums = np.where(high > MOST_U4, MOST_U8, high << HALF | low & MOST_U4)
    there = records[name][group]
    total = there + sums
    records[name][group] = np.where(total < there, MOST_U8, total)


def _count_flags(records: Array, group: tuple[Array, Array], flags: Array, head: Array) -> None:
    """Adds up eight counts as three words, each of three counts."""
    flags = flags & 0xFF
    counts = np.empty((len(head), FLAGS), np.uint32)
    for bit in range(FLAGS):
        if bit % 3 == 0:
            sums = np.add.reduceat(_SPREAD[bit // 3][flags], head)
        counts[:, bit] = sums & ((np.uint64(1) << FIELD) - np.uint64(1))
        sums >>= FIELD
    records["flag_counts"][group] += counts


_BITS = np.arange(256, dtype=np.uint64)[:, None] >> np.arange(9, dtype=np.uint64) & np.uint64(1)
_BITS[:, FLAGS:] = 0
_SPREAD = [
    (_BITS[:, first : first + 3] << (FIELD * np.arange(3, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    for first in range(0, 9, 3)
]
"""By the flags of a packet: one in the field of each flag that is set."""

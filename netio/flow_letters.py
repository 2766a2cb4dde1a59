"""The letters of packets added to the records of their flows (`tcp_state` says what they are)."""

from __future__ import annotations

import numpy as np

from .flow_record import MOST_REPEATS
from .flow_runs import starts
from .packet_index import Array
from .tcp_state import KINDS, REPEATED, Kind


def add_letters(records: Array, record: Array, side: Array, kind: Array, seq: Array) -> None:
    """Adds the letters of packets to their records.

    Args:
        records: (m,) of `flow_record.RECORD`, changed in place.
        record: (n,) int64, not falling; the rows of a record are in the order of their arrival.
        side: (n,) uint8.
        kind: (n,) uint8, of `tcp_state.kinds`.
        seq: (n,) uint32, by which a repeated letter is told from a packet sent again.
    """
    code = kind * np.uint8(2) + side
    seen = (records["seen"][record] >> code & 1).astype(bool)
    rows = np.flatnonzero((kind != Kind.NONE) & (~seen | IS_REPEATED[kind]))
    if not len(rows):
        return
    is_letter, is_repeat = _letters(records, record, side, kind, seq, rows, seen)
    rows = rows[is_letter]
    if len(rows):
        _append(records, record[rows], code[rows], is_repeat[is_letter])


def _letters(
    records: Array, record: Array, side: Array, kind: Array, seq: Array, rows: Array, seen: Array
) -> tuple[Array, Array]:
    """Which rows have a letter to record, and which of these repeat one: (n,) bool each. Notes sequence numbers."""
    slot = (record[rows] * KINDS + kind[rows]) * 2 + side[rows]
    # Values that hold their own place are sorted by value, and rows of equal slots stay in order.
    bits = max(1, (len(rows) - 1).bit_length())
    packed = np.sort(slot << bits | np.arange(len(rows)))
    place = packed & ((1 << bits) - 1)
    is_head = np.append(True, packed[1:] >> bits != packed[:-1] >> bits)
    sorted_rows = rows[place]
    of_letter = record[sorted_rows], side[sorted_rows], REPEATED_PLACE[kind[sorted_rows]]
    number = seq[sorted_rows]
    before = np.append(number[:1], number[:-1])
    before[is_head] = records["last_seqs"][tuple(column[is_head] for column in of_letter)]
    repeats = IS_REPEATED[kind[sorted_rows]]
    is_new = is_head & ~seen[sorted_rows]
    is_again = repeats & ~is_new & (number != before)
    is_tail = np.append(is_head[1:], True) & repeats
    records["last_seqs"][tuple(column[is_tail] for column in of_letter)] = number[is_tail]
    is_letter, is_repeat = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    is_letter[place] = is_new | is_again
    is_repeat[place] = is_again
    return is_letter, is_repeat


def _append(records: Array, record: Array, code: Array, is_repeat: Array) -> None:
    """Appends letters, rows in order, to their records, repeats as long as there is room for them."""
    start, segment = starts(np.append(True, record[1:] != record[:-1]))
    repeats_before = np.cumsum(is_repeat) - is_repeat
    repeats = records["repeats"][record] + repeats_before - repeats_before[start][segment]
    fits = ~is_repeat | (repeats < MOST_REPEATS)
    record, code, is_repeat = record[fits], code[fits], is_repeat[fits]
    if not len(record):
        return
    start, segment = starts(np.append(True, record[1:] != record[:-1]))
    place = records["letter_count"][record] + np.arange(len(record)) - start[segment]
    records["letters"][record, place] = code + 1
    each = record[start]
    records["letter_count"][each] += np.diff(start, append=len(record)).astype(np.uint8)
    records["repeats"][each] += np.add.reduceat(is_repeat, start, dtype=np.uint8)
    # Each code is new to a record at most once, so that a sum of bits is their union.
    bits = np.where(is_repeat, 0, np.uint32(1) << code.astype(np.uint32)).astype(np.uint32)
    records["seen"][each] |= np.add.reduceat(bits, start, dtype=np.uint32)


IS_REPEATED = np.isin(np.arange(len(Kind)), REPEATED)
REPEATED_PLACE = np.array([REPEATED.index(kind) if kind in REPEATED else 0 for kind in Kind])

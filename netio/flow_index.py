"""Which record holds the flow of a key: open addressing in one array, batches of keys at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .packet_index import Array

FREE = np.uint64(0)
LOWER = np.uint64(0xFFFF_FFFF)
GONE = LOWER
"""What a place says whose record was removed: a search goes on there, and an insertion takes it."""
HALF = np.uint64(32)


class FlowIndex:
    """From hashes to records, by linear probing; all searches of a batch go on in step.

    A place is eight bytes: the lower half of the hash, and the record's number plus one. At most half are taken.

    Args:
        capacity: how many records there may be.
    """

    def __init__(self, capacity: int) -> None:
        bits = max(4, (2 * capacity - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._last = (1 << bits) - 1
        self._places = np.zeros(1 << bits, np.uint64)
        self._gone = 0

    @property
    def bytes(self) -> int:
        return self._places.nbytes

    @property
    def is_worn(self) -> bool:
        """Whether so many records were removed that `rebuild` is due."""
        return self._gone > len(self._places) // 4

    def find(self, hashes: Array, is_key: Callable[[Array, Array], Array]) -> Array:
        """The record of each key: (n,) int64, -1 for none.

        Args:
            hashes: (n,) uint64.
            is_key: tells of rows and as many records whether each record has the key of its row.
        """
        found = np.full(len(hashes), -1)
        rows, at = np.arange(len(hashes)), self._start(hashes)
        while len(rows):
            place = self._places[at]
            alike = np.flatnonzero((place ^ hashes[rows] << HALF) >> HALF == 0)
            alike = alike[(place[alike] != FREE) & (place[alike] & LOWER != GONE)]
            records = (place[alike] & LOWER).astype(np.int64) - 1
            same = is_key(rows[alike], records)
            found[rows[alike[same]]] = records[same]
            going_on = place != FREE
            going_on[alike[same]] = False
            rows, at = rows[going_on], (at[going_on] + 1) & self._last
        return found

    def insert(self, hashes: Array, records: Array) -> None:
        """Adds records whose keys differ from each other's and from all that are there.

        Args:
            hashes: (n,) uint64.
            records: (n,) int64.
        """
        entries = hashes << HALF | (records + 1).astype(np.uint64)
        at = self._start(hashes)
        while len(entries):
            place = self._places[at]
            is_open = (place == FREE) | (place & LOWER == GONE)
            # Of several that want a place the last one written gets it.
            self._places[at[is_open]] = entries[is_open]
            placed = self._places[at] == entries
            self._gone -= int(np.count_nonzero(place[placed] != FREE))
            entries, at = entries[~placed], (at[~placed] + 1) & self._last

    def remove(self, hashes: Array, records: Array) -> None:
        """Takes out records that are there.

        Args:
            hashes: (n,) uint64.
            records: (n,) int64.
        """
        entries = hashes << HALF | (records + 1).astype(np.uint64)
        at = self._start(hashes)
        self._gone += len(entries)
        while len(entries):
            there = self._places[at] == entries
            self._places[at[there]] = GONE
            entries, at = entries[~there], (at[~there] + 1) & self._last

    def rebuild(self, hashes: Array, records: Array) -> None:
        """Begins anew with these records."""
        self._places[:] = FREE
        self._gone = 0
        self.insert(hashes, records)

    def _start(self, hashes: Array) -> Array:
        return (hashes >> self._shift).astype(np.int64)

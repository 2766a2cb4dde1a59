"""Where the records of a capture begin, though each is known only from the length of the one before.

A walk of one record after the other costs Python about 200 ns a record. So places far apart are guessed to be
beginnings of records, by their looks, and all are walked from in step, as arrays. A guess counts only if the walk that
began before it ends exactly there: the answer is that of the plain walk, whatever the bytes. Where guesses fail, the
plain walk goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import numpy as np

from .packet_index import Array

# How far walks in step reach ahead at first, and at most: twice as far each time that no guess was wrong.
FIRST_REGION_BYTES = 2**23
REGION_BYTES = 2**25
SEGMENT_BYTES = 2**14
# A guess is looked for in the first bytes of a segment, which hold a beginning unless packets are larger.
SEARCH_BYTES = 2**11
# Fewer walks at once than this cost more than they save.
LEAST_LANES = 128


class Records(Protocol):
    """Records of a file format, of which some are packets.

    Attributes:
        blob: (n,) uint8, the whole file.
        at: where the record at hand begins.
        head_bytes: bytes of a record that `following` and `packets` look at.
    """

    blob: Array
    at: int
    head_bytes: int

    def plain(self, until: int) -> Iterator[int]:
        """The packets from `at` on, one after the other, that begin before `until`.

        Ends with `at` at `until` or behind it; before it where the file ends, is damaged, or something begins that is
        not walked over.
        """

    def mark(self) -> tuple[int, bytes]:
        """Two bytes that packets like the one at hand have, and where in the record they stand."""

    def likely(self, places: Array) -> Array:
        """(n,) bool, which of the places look like beginnings of packets; each has `head_bytes` bytes or more."""

    def following(self, places: Array) -> Array:
        """(n,) int64, where the records after packets that begin at `places` begin; what is no packet leads afar."""

    def packets(self, places: Array) -> int:
        """How many of these records, from the first on, are whole packets."""


class Chain:
    """The packets among the records of a file, in their order.

    Args:
        records: the file; `records.at` moves as packets are taken.
    """

    def __init__(self, records: Records) -> None:
        self._region_bytes = FIRST_REGION_BYTES
        self._plain_bytes = SEGMENT_BYTES
        self._ready = np.zeros(0, np.int64)
        self.follow(records)

    def follow(self, records: Records) -> None:
        """Goes on in another part of the file; what was learnt of how good guesses are stays."""
        self._records = records
        self._walk: Iterator[int] | None = None
        # Files and their parts begin with what is no packet.
        self._plain_until = records.at + self._plain_bytes

    def take(self, limit: int) -> Array:
        """(m,) int64, where the next packets begin: `limit` of them, or fewer where `Records.plain` ended early."""
        parts, rows = [self._ready[:0]], 0
        while rows < limit:
            if self._walk is None and not len(self._ready):
                self._open_region()
            if self._walk is None:
                part, self._ready = np.split(self._ready, [limit - rows])
            else:
                part = np.fromiter(islice(self._walk, limit - rows), np.int64)
            parts.append(part)
            rows += len(part)
            if rows < limit and self._walk is not None:
                self._walk = None
                if self._records.at < self._plain_until:
                    break
        return np.concatenate(parts)

    def _open_region(self) -> None:
        """Makes packets ready by walks in step, or begins a plain walk."""
        records = self._records
        if records.at >= self._plain_until:
            stops = self._guesses()
            if len(stops) >= LEAST_LANES:
                self._ready = self._lanes(np.append(records.at, stops[:-1]), stops)
                if records.at == stops[-1]:
                    self._region_bytes = min(2 * self._region_bytes, REGION_BYTES)
                    self._plain_bytes = SEGMENT_BYTES
                    return
            # Twice as far each time, so that files in which guessing is of no use cost little more than plain ones.
            self._plain_until = records.at + self._plain_bytes
            self._plain_bytes = min(2 * self._plain_bytes, REGION_BYTES)
        if not len(self._ready):
            self._walk = records.plain(self._plain_until)

    def _guesses(self) -> Array:
        """(k,) int64, rising: places in the next region, of which most are likely to be beginnings of packets."""
        records, blob = self._records, self._records.blob
        first = records.at + SEGMENT_BYTES
        room = len(blob) - SEARCH_BYTES - records.head_bytes - records.at
        segments = min(self._region_bytes, room) // SEGMENT_BYTES - 1
        if segments < LEAST_LANES:
            return np.zeros(0, np.int64)
        mark_at, mark = records.mark()
        shape, strides = (segments, SEARCH_BYTES), (SEGMENT_BYTES, 1)
        one, other = (np.ndarray(shape, "u1", blob, first + mark_at + i, strides) for i in (0, 1))
        # Flat, because the rows and columns of a table cost NumPy six times as much.
        segment, place = np.divmod(np.flatnonzero((one == mark[0]) & (other == mark[1])), SEARCH_BYTES)
        at = first + segment * SEGMENT_BYTES + place
        likely = records.likely(at)
        segment, at = segment[likely], at[likely]
        following = records.following(at)
        likely = following <= len(blob) - records.head_bytes
        likely[likely] = records.likely(following[likely])
        _, earliest = np.unique(segment[likely], return_index=True)
        guesses: Array = at[likely][earliest]
        return guesses

    def _lanes(self, at: Array, stops: Array) -> Array:
        """The packets from walks in step: walk k begins at `at[k]` and must end at `stops[k]`.

        Leaves `records.at` where the first walk ended that missed its stop or met what is no packet.
        """
        ends = np.zeros_like(stops)
        lanes = np.arange(len(stops), dtype=np.uint16)
        places, owners = [], []
        stop = stops
        while len(at):
            places.append(at)
            owners.append(lanes)
            at = self._records.following(at)
            on = at < stop
            if not on.all():
                ends[lanes[~on]] = at[~on]
                at, stop, lanes = at[on], stop[on], lanes[on]
        # Stable, so that a walk's records stay in their order; of 16 bits, because those are sorted by radix.
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        found, owner = np.concatenate(places)[order], owner[order]
        missed = np.flatnonzero(ends != stops)
        last = missed[0] if len(missed) else len(stops) - 1
        found = found[: np.searchsorted(owner, last, "right")]
        packets = self._records.packets(found)
        self._records.at = int(ends[last] if packets == len(found) else found[packets])
        return found[:packets]

"""Where the records of a pcap file begin, though each is known only from the length of the one before.

A walk of one record after the other costs Python about 200 ns a record. So places far apart are guessed to be
beginnings of records, by their times, and all are walked from in step, as arrays. A guess counts only if the walk that
began before it ends exactly there: the answer is that of the plain walk, whatever the bytes. Where guesses fail, the
plain walk goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Literal

import numpy as np

from .packet_index import Array
from .records import headers

RECORD_BYTES = 16
LENGTH_AT = 8

REGION_BYTES = 2**25
SEGMENT_BYTES = 2**14
# A guess is looked for in the first bytes of a segment, which hold a beginning unless packets are larger.
SEARCH_BYTES = 2**11
# Fewer walks at once than this cost more than they save.
LEAST_LANES = 64
LARGEST_PACKET = 2**18


class Chain:
    """The records of a pcap file, in their order.

    Args:
        blob: (n,) uint8, the whole file.
        at: where the first record begins.
        order: byte order of the lengths.

    Attributes:
        at: where the record that follows those taken begins.
    """

    def __init__(self, blob: Array, at: int, order: Literal["<", ">"]) -> None:
        self.at = at
        self._blob = blob
        self._record = np.dtype([(name, order + "u4") for name in ("seconds", "fraction", "captured", "wire")])
        self._record_length = np.dtype(order + "u4")
        self._order: Literal["little", "big"] = "little" if order == "<" else "big"
        self._length = Struct(order + "I")
        # The upper half of a time in seconds, which changes every 18 hours.
        self._time_at = 2 if order == "<" else 0
        self._plain_until = 0
        self._ready = np.zeros(0, np.int64)

    def take(self, limit: int) -> Array:
        """(m,) int64, where the next records begin: `limit` of them, or fewer where no whole record follows."""
        parts, rows = [], 0
        while rows < limit:
            if not len(self._ready):
                self._ready = self._region()
            if not len(self._ready):
                break
            part, self._ready = np.split(self._ready, [limit - rows])
            parts.append(part)
            rows += len(part)
        return np.concatenate(parts) if parts else self._ready

    def _region(self) -> Array:
        """The next records, at least one; none where no whole one follows."""
        if self.at >= self._plain_until:
            stops = self._guesses()
            self._plain_until = int(stops[-1]) if len(stops) else self.at + REGION_BYTES
            if len(stops) >= LEAST_LANES:
                places = self._lanes(np.append(self.at, stops[:-1]), stops)
                if len(places):
                    return places
        return np.fromiter(self._plain(), np.int64)

    def _plain(self) -> Iterator[int]:
        """Record after record up to `_plain_until`."""
        blob, length_at = self._blob.data, self._length.unpack_from
        last = len(blob) - RECORD_BYTES
        at, end = self.at, min(self._plain_until, last + 1)
        while at < end:
            (length,) = length_at(blob, at + LENGTH_AT)
            if length > last - at:
                break
            yield at
            at += RECORD_BYTES + length
        self.at = at

    def _guesses(self) -> Array:
        """(k,) int64, rising: places in the next region, of which most are likely to be beginnings of records."""
        first = self.at + SEGMENT_BYTES
        segments = (min(REGION_BYTES, len(self._blob) - SEARCH_BYTES - RECORD_BYTES - self.at) // SEGMENT_BYTES) - 1
        if segments < LEAST_LANES:
            return np.zeros(0, np.int64)
        shape, strides = (segments, SEARCH_BYTES), (SEGMENT_BYTES, 1)
        upper, lower = (np.ndarray(shape, "u1", self._blob, first + self._time_at + i, strides) for i in (0, 1))
        time = self._blob[self.at + self._time_at : self.at + self._time_at + 2]
        # Flat, because the rows and columns of a table cost NumPy six times as much.
        segment, place = np.divmod(np.flatnonzero((upper == time[0]) & (lower == time[1])), SEARCH_BYTES)
        at = first + segment * SEGMENT_BYTES + place
        likely, following = self._likely(at, time)
        segment, at, following = segment[likely], at[likely], following[likely]
        likely, _ = self._likely(following, time)
        _, earliest = np.unique(segment[likely], return_index=True)
        guesses: Array = at[likely][earliest]
        return guesses

    def _likely(self, at: Array, time: Array) -> tuple[Array, Array]:
        """Which of the places look like beginnings of records, and where the record after each would begin."""
        last = len(self._blob) - RECORD_BYTES
        inside = at <= last
        records = headers(self._blob, np.minimum(at, last), self._record)
        captured, wire = records["captured"].astype(np.int64), records["wire"]
        following = at + captured + RECORD_BYTES
        looks = inside & (captured <= wire) & (wire <= LARGEST_PACKET)
        recent = records["seconds"] >> 16 == int.from_bytes(time.tobytes(), self._order)
        return looks & recent, following

    def _lanes(self, at: Array, stops: Array) -> Array:
        """The records from walks in step: walk k begins at `at[k]` and must end at `stops[k]`.

        Leaves `self.at` where the first walk ended that missed its stop.
        """
        last = len(self._blob) - RECORD_BYTES
        ends = np.zeros_like(stops)
        lanes = np.arange(len(stops), dtype=np.uint16)
        places, owners = [], []
        stop = stops
        while len(at):
            places.append(at)
            owners.append(lanes)
            at = at + headers(self._blob, at + LENGTH_AT, self._record_length) + RECORD_BYTES
            on = at < stop
            if not on.all():
                ends[lanes[~on]] = at[~on]
                at, stop, lanes = at[on], stop[on], lanes[on]
        # Stable, so that a walk's records stay in their order; of 16 bits, because those are sorted by radix.
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        found, owner = np.concatenate(places)[order], owner[order]
        missed = np.flatnonzero(ends != stops)
        if not len(missed):
            self.at = int(stops[-1])
            return found
        found = found[: np.searchsorted(owner, missed[0], "right")]
        self.at = int(ends[missed[0]])
        if self.at > last + RECORD_BYTES:
            # The last record says that it goes beyond the file.
            self.at, found = int(found[-1]), found[:-1]
        return found

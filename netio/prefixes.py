"""From an address to its *class*: addresses that lie in the same prefixes.

Prefixes cut the addresses into intervals. An IPv4 address finds its interval in three table look-ups, by its upper 16
bits, the next 8 and the last 8; a table has as many rows as there are blocks that some prefix cuts, and blocks that
none cuts have one entry. An IPv6 address is searched for: its halves among the halves of all beginnings, then the pair
of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .bits import WORD, distinct, packed, words_of
from .family import Words
from .packet_index import Array

MOST_ENTRIES = 1 << 26
"""Entries of IPv4 tables, of 4 bytes; beyond it addresses are searched for."""
COLUMNS = 512
"""Members whose intervals are worked out at once."""


class AddressMap(Protocol):
    """From addresses to numbers."""

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""

    def locate(self, address: Words) -> Array:
        """The class of each address: (n,) int32."""


def classes(prefix: Words, mask: Words, member: Array, members: int) -> tuple[AddressMap, Array]:
    """The classes of addresses.

    Args:
        prefix, mask: words of (n,).
        member: (n,) integers below `members`, what each prefix stands for.
        members: how many there are.

    Returns:
        A map from addresses to classes, and (classes, words of the members) uint64: what covers each class.
    """
    starts, begin, end = intervals(prefix, mask)
    sets = np.empty((len(starts), words_of(members)), np.uint64)
    for first in range(0, members, COLUMNS):
        last = min(first + COLUMNS, members)
        rows = np.flatnonzero((member >= first) & (member < last))
        change = np.zeros((len(starts) + 1, last - first), np.int32)
        np.add.at(change, (begin[rows], member[rows] - first), 1)
        np.add.at(change, (end[rows], member[rows] - first), -1)
        sets[:, first // WORD : -(-last // WORD)] = packed(np.cumsum(change[:-1], axis=0, dtype=np.int32) > 0)
    numbers, sets = distinct(sets)
    return address_map(starts, numbers), sets


def address_map(starts: Array, numbers: Array) -> AddressMap:
    """The map from addresses to the numbers of the intervals that begin at `starts`."""
    if starts.dtype.names:
        return SearchedPairs.of(starts, numbers)
    return TableWalk.of(starts, numbers) or Searched(starts.astype(np.uint32), numbers)


@dataclass(frozen=True, eq=False)
class TableWalk:
    """IPv4 addresses by tables of 16, 8 and 8 bits.

    An entry of the first two holds where its block begins in the next table, times two, and in bit 0 whether that block
    has an entry for each value of the next 8 bits or one for all of them. An entry of the last is a class.
    """

    top: Array
    middle: Array
    last: Array

    @classmethod
    def of(cls, starts: Array, numbers: Array) -> TableWalk | None:
        """The tables of intervals that begin at `starts`, of classes `numbers`; None if they would be too large."""
        address = np.arange(1 << 16, dtype=np.int64) << 16
        tables = []
        for bits in (16, 8):
            interval = np.searchsorted(starts, address, side="right") - 1
            is_cut = np.append(starts, 1 << 32)[interval + 1] < address + (1 << bits)
            # Only blocks of full length are cut: an entry for all 256 values stands for one that no prefix cuts.
            size = np.where(is_cut, 256, 1)
            begin = np.cumsum(size) - size
            if begin[-1] + size[-1] > MOST_ENTRIES:
                return None
            tables.append((begin << 1 | is_cut).astype(np.int32))
            inner = np.arange(begin[-1] + size[-1]) - np.repeat(begin, size)
            address = np.repeat(address, size) + (inner << (bits - 8))
        interval = np.searchsorted(starts, address, side="right") - 1
        return cls(tables[0], tables[1], numbers[interval])

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return self.top.nbytes + self.middle.nbytes + self.last.nbytes

    def locate(self, address: Words) -> Array:
        """The class of each address: (n,) int32."""
        (word,) = address
        entry = self.top[word >> 16]
        entry = self.middle[(entry >> 1) + ((word >> 8) & 0xFF).astype(np.int32) * (entry & 1)]
        found: Array = self.last[(entry >> 1) + (word & 0xFF).astype(np.int32) * (entry & 1)]
        return found


@dataclass(frozen=True, eq=False)
class Searched:
    """IPv4 addresses by binary search among the beginnings of intervals."""

    starts: Array
    numbers: Array

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return self.starts.nbytes + self.numbers.nbytes

    def locate(self, address: Words) -> Array:
        """The class of each address: (n,) int32."""
        return self.numbers[np.searchsorted(self.starts, address[0], side="right") - 1]


@dataclass(frozen=True, eq=False)
class SearchedPairs:
    """IPv6 addresses by binary search: of each half, then of both ranks as one number.

    Attributes:
        upper, lower: the distinct halves of the beginnings, sorted.
        codes: of each beginning, the rank of its upper half x (lower halves + 1) + that of its lower half from 1.
        numbers: the class of each interval.
    """

    upper: Array
    lower: Array
    codes: Array
    numbers: Array

    @classmethod
    def of(cls, starts: Array, numbers: Array) -> SearchedPairs:
        """The search among intervals that begin at `starts` and are of class `numbers`."""
        upper, upper_rank = np.unique(starts["upper"], return_inverse=True)
        lower, lower_rank = np.unique(starts["lower"], return_inverse=True)
        codes = upper_rank.reshape(-1) * (len(lower) + 1) + lower_rank.reshape(-1) + 1
        return cls(upper, lower, codes, numbers)

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return self.upper.nbytes + self.lower.nbytes + self.codes.nbytes + self.numbers.nbytes

    def locate(self, address: Words) -> Array:
        """The class of each address: (n,) int32."""
        upper, lower = address
        rank = np.searchsorted(self.upper, upper, side="right") - 1
        # Past an upper half where no interval begins, every lower half is beyond the last beginning before it.
        inside = np.where(self.upper[rank] == upper, np.searchsorted(self.lower, lower, side="right"), len(self.lower))
        code = rank * (len(self.lower) + 1) + inside
        return self.numbers[np.searchsorted(self.codes, code, side="right") - 1]


def intervals(prefix: Words, mask: Words) -> tuple[Array, Array, Array]:
    """Where intervals begin, sorted, and the first interval of each prefix and the first after it: (n,) each.

    IPv4 beginnings are int64, IPv6 ones records of `upper` and `lower`, uint64.
    """
    rows = len(prefix[0])
    is_last: Array
    points: Array
    upper: Array
    lower: Array
    if len(prefix) == 1:
        begin = prefix[0].astype(np.int64)
        after = begin + (~mask[0]).astype(np.int64) + 1
        is_last = after > 0xFFFF_FFFF
        points = np.concatenate([[0], begin, np.where(is_last, 0, after)])
    else:
        upper, lower = (word | ~part for word, part in zip(prefix, mask, strict=True))
        is_last = (upper == ~np.uint64(0)) & (lower == ~np.uint64(0))
        lower = lower + np.uint64(1)
        upper = upper + (lower == 0).astype(np.uint64)
        points = np.zeros(2 * rows + 1, np.dtype([("upper", np.uint64), ("lower", np.uint64)]))
        points["upper"][1:] = np.concatenate([prefix[0], upper])
        points["lower"][1:] = np.concatenate([prefix[1], lower])
    starts, at = np.unique(points, return_inverse=True)
    at = at.reshape(-1)[1:]
    return starts, at[:rows], np.where(is_last, len(starts), at[rows:])

"""Bit vectors: for each class of a field the rules it matches, so that the AND of three rows is what a key matches.

A row has three levels. 4,096 rules are a *page* of 64 words of 64 rules. A class has a word that says in which pages
it has rules, and each page a *summary* that says in which words; pages that are alike are kept once. Pages are in
order of priority, so a key is done with the first page that has a match. Within a page rules are laid out by prefix,
so that what a key can match lies in few words, the words by their first rules.

Source:
    Baboescu and Varghese, Scalable Packet Classification, SIGCOMM 2001 (aggregated bit vectors and their
    rearrangement).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .bits import WORD, distinct, lowest, packed
from .family import Family, FamilyKeys
from .packet_index import Array
from .prefixes import AddressMap, address_map, intervals
from .services import RulesUnfit, Services

PAGE = WORD * WORD
MOST_BYTES = 1 << 29
"""Memory of the pages of one field."""


@dataclass(frozen=True, eq=False)
class BitVectors:
    """The first match by bit vectors.

    Attributes:
        source, destination: from addresses to their classes.
        services: from the rest of a key to its service class.
        fields: the vectors of source, destination and service classes.
        MOST_RULES: one word names their pages.
        rows: (64 words,) int32, the rule of each bit.
        earliest: (words,) int32, the first rule of each word, ascending within a page.
    """

    MOST_RULES: ClassVar[int] = WORD * PAGE

    source: AddressMap
    destination: AddressMap
    services: Services
    fields: tuple[Vectors, Vectors, Vectors]
    rows: Array
    earliest: Array

    @classmethod
    def of(cls, family: Family) -> BitVectors:
        """The vectors of these rules.

        Raises:
            RulesUnfit: they would be too large.
        """
        services = Services.of(family.rules)
        rows, place = _layout(family)
        maps = []
        fields = []
        for prefix, mask in ((family.source, family.source_mask), (family.destination, family.destination_mask)):
            starts, begin, end = intervals(prefix, mask)
            numbers, vectors = Vectors.of_intervals(begin, end, place, len(starts))
            maps.append(address_map(starts, numbers))
            fields.append(vectors)
        served = Vectors.of_sets(services.members(rows))
        return cls(maps[0], maps[1], services, (fields[0], fields[1], served), rows, rows[::WORD].copy())

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        fields = sum(field.bytes for field in self.fields)
        return self.source.bytes + self.destination.bytes + self.services.bytes + fields + self.rows.nbytes

    def first(self, keys: FamilyKeys) -> Array:
        """The first rule that matches each key: (n,) int32, -1 for none."""
        located = (
            self.source.locate(keys.source),
            self.destination.locate(keys.destination),
            self.services.classes(keys),
        )
        none = np.int32(len(self.rows))
        found = np.full(len(keys), none, np.int32)
        source, destination, service = (field.tops[at] for field, at in zip(self.fields, located, strict=True))
        tops = source & destination & service
        at = np.flatnonzero(tops)
        for page in range(self.fields[0].pages.shape[1]):
            here = at[(tops[at] >> np.uint64(page)) & np.uint64(1) != 0]
            self._look(located, page, here, found)
            at = at[found[at] == none]
            if not len(at):
                break
        return np.where(found == none, np.int32(-1), found)

    def _look(self, located: tuple[Array, Array, Array], page: int, at: Array, found: Array) -> None:
        """Lower `found` of the keys `at` to their first matches in a page."""
        pages = tuple(field.pages[row[at], page] for field, row in zip(self.fields, located, strict=True))
        source, destination, service = (field.summaries[row] for field, row in zip(self.fields, pages, strict=True))
        left = source & destination & service
        begins = tuple(row.astype(np.int64) * WORD for row in pages)
        some = np.flatnonzero(left)
        while len(some):
            at, left = at[some], left[some]
            begins = tuple(begin[some] for begin in begins)
            bit = lowest(left)
            source, destination, service = (
                field.words[begin + bit] for field, begin in zip(self.fields, begins, strict=True)
            )
            matched = source & destination & service
            word = bit + page * WORD
            best = found[at]
            rule = self.rows[word * WORD + lowest(matched | _LAST)]
            best = np.where(matched == 0, best, np.minimum(best, rule))
            found[at] = best
            left &= left - np.uint64(1)
            some = np.flatnonzero((left != 0) & (self.earliest[word] < best))


_LAST = np.uint64(1 << 63)


@dataclass(frozen=True, eq=False)
class Vectors:
    """The bit vectors of one field's classes.

    Attributes:
        tops: (classes,) uint64, in which pages each has rules.
        pages: (classes, pages) int32, into the next two.
        summaries: (distinct pages,) uint64, which words of each are not 0.
        words: (64 distinct pages,) uint64.
    """

    tops: Array
    pages: Array
    summaries: Array
    words: Array

    @classmethod
    def of_intervals(cls, begin: Array, end: Array, place: Array, count: int) -> tuple[Array, Vectors]:
        """The vectors of `count` intervals.

        Args:
            begin, end: (n,), each rule's first interval and the one after its last.
            place: (n,), the bit of each rule.
            count: how many intervals there are.

        Returns:
            (count,) int32, the class of each interval, and the vectors of the classes.

        Raises:
            RulesUnfit: they would be too large.
        """
        pages = []
        for first in range(0, len(place), PAGE):
            rows = np.flatnonzero((place >= first) & (place < first + PAGE))
            word, bit = np.divmod(place[rows] - first, WORD)
            # A rule's bit is turned over where it begins and where it ends, and on the way carried along.
            flips = np.zeros((count + 1, WORD), np.uint64)
            np.bitwise_xor.at(flips, (begin[rows], word), np.uint64(1) << bit.astype(np.uint64))
            np.bitwise_xor.at(flips, (end[rows], word), np.uint64(1) << bit.astype(np.uint64))
            pages.append(distinct(np.bitwise_xor.accumulate(flips, axis=0)[:-1]))
        numbers, rows = distinct(np.stack([number for number, _ in pages], axis=1).astype(np.uint64))
        return numbers, cls._of(rows.astype(np.int64), [sets for _, sets in pages])

    @classmethod
    def of_sets(cls, sets: Array) -> Vectors:
        """The vectors of classes whose sets are known: (classes, words) uint64."""
        pages = [distinct(sets[:, first : first + WORD]) for first in range(0, sets.shape[1], WORD)]
        return cls._of(np.stack([number for number, _ in pages], axis=1), [page for _, page in pages])

    @classmethod
    def _of(cls, numbers: Array, sets: list[Array]) -> Vectors:
        """The vectors of classes by each one's number of page, (classes, pages), and of the pages of each number."""
        words = np.concatenate(sets)
        if words.nbytes + numbers.nbytes // 2 > MOST_BYTES:
            raise RulesUnfit
        pages = numbers + np.cumsum([0] + [len(page) for page in sets[:-1]])
        summaries = packed(words != 0)[:, 0]
        tops = packed(summaries[pages] != 0)[:, 0]
        return cls(tops, pages.astype(np.int32), summaries, words.reshape(-1))

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return sum(table.nbytes for table in (self.tops, self.pages, self.summaries, self.words))


def _layout(family: Family) -> tuple[Array, Array]:
    """The rule of each bit, (64 words,) int32, and the bit of each rule, (n,).

    Bits to spare name rule 0: no prefix sets them, so they never match.
    """
    pages = -(-len(family) // PAGE)
    rows = np.zeros(pages * PAGE, np.int32)
    place = np.empty(len(family), np.int64)
    by_prefix = np.lexsort(family.destination[::-1] + family.source[::-1]).astype(np.int32)
    for page in range(pages):
        inside = by_prefix[by_prefix // PAGE == page]
        words = [np.sort(inside[start : start + WORD]) for start in range(0, len(inside), WORD)]
        words.sort(key=lambda word: int(word[0]))
        for number, word in enumerate(words):
            begin = page * PAGE + number * WORD
            rows[begin : begin + len(word)] = word
            place[word] = np.arange(begin, begin + len(word))
    return rows, place

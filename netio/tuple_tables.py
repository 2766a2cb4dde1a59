"""Tuple tables: rules that fix the same bits of a key, as prefixes of two lengths do, are found by a hash of those.

Each source, destination, port and protocol has a row of bits, the tables that have a rule for it, and only tables in
the AND of a key's rows are looked at, by their first rules, until the next has only later rules than the match so far.
A rule that fixes more bits than its table stands among those of the same hash. Memory grows with the rules, whatever
they are.

Source:
    Srinivasan, Suri and Varghese, Packet Classification using Tuple Space Search, SIGCOMM 1999, section 4 (pruning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .bits import WORD, lowest, packed, words_of
from .family import PORTS, Family, FamilyKeys, Words, matches
from .packet_index import Array
from .prefixes import AddressMap, classes
from .services import RulesUnfit
from .tuples import Tuples, key_words, mixed, rule_words

LEAST_CROWD = 128
SCANNED = 64
"""Rules that a scan compares with a key in the time in which a key is compared with one of its bucket."""


@dataclass(frozen=True, eq=False)
class TupleTables:
    """The first match by tuple tables.

    Attributes:
        family: the rules.
        masks: words of (tables,), by which a table masks the words of keys.
        earliest: (tables,) int32, the first rule of each, ascending.
        source, destination: from addresses to classes.
        sources, destinations: (classes, words) uint64, the tables that have a rule for them.
        ports: for source and destination: (65536, words) uint64, the same.
        protocols: (256, words) uint64, the same.
        buckets: (2**k + 1,) int32, where the rules of each hash begin in `rules`.
        rules: (n,) int32, by bucket and then in order.
    """

    MOST_RULES: ClassVar[int] = 1 << 30

    family: Family
    masks: Words
    earliest: Array
    source: AddressMap
    destination: AddressMap
    sources: Array
    destinations: Array
    ports: tuple[Array, Array]
    protocols: Array
    buckets: Array
    rules: Array

    @classmethod
    def of(cls, family: Family) -> TupleTables:
        """The tables of these rules.

        Raises:
            RulesUnfit: keys would look at so many rules that a scan of all is faster.
        """
        tuples = Tuples.of(family)
        if tuples.crowd > max(LEAST_CROWD, len(family) / SCANNED):
            raise RulesUnfit
        table = tuples.of_rule
        count = len(tuples.earliest)
        source, sources = classes(family.source, family.source_mask, table, count)
        destination, destinations = classes(family.destination, family.destination_mask, table, count)
        size = 1 << max(1, (2 * len(family)).bit_length())
        masked = tuple(word & mask[table] for word, mask in zip(rule_words(family), tuples.masks, strict=True))
        hashes = _hashes(table, masked, size)
        # A stable sort keeps the rules of a bucket in order.
        rules = np.argsort(hashes, kind="stable").astype(np.int32)
        buckets = np.searchsorted(hashes[rules], np.arange(size + 1)).astype(np.int32)
        return cls(
            family,
            tuples.masks,
            tuples.earliest,
            source,
            destination,
            sources,
            destinations,
            (_by_port(family, table, count, PORTS[0]), _by_port(family, table, count, PORTS[1])),
            _by_protocol(family, table, count),
            buckets,
            rules,
        )

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        tables = (self.sources, self.destinations, *self.ports, self.protocols, self.buckets, self.rules)
        rules = len(self.family) * (4 * sum(word.itemsize for word in self.family.source) + 20)
        return self.source.bytes + self.destination.bytes + sum(table.nbytes for table in tables) + rules

    def first(self, keys: FamilyKeys) -> Array:
        """The first rule that matches each key: (n,) int32, -1 for none."""
        none = np.int32(len(self.family))
        found = np.full(len(keys), none, np.int32)
        source = self.source.locate(keys.source)
        destination = self.destination.locate(keys.destination)
        words = key_words(keys)
        for column in range(self.sources.shape[1]):
            left = self.sources[source, column] & self.destinations[destination, column]
            left &= self.ports[0][keys.source_port, column] & self.ports[1][keys.destination_port, column]
            left &= self.protocols[keys.protocol, column]
            left[self.earliest[column * WORD] > found] = 0
            at = np.flatnonzero(left)
            left = left[at]
            while len(at):
                table = column * WORD + lowest(left)
                self._probe(keys, words, at, table, found)
                left &= left - np.uint64(1)
                going_on = (left != 0) & (self.earliest[table] < found[at])
                at, left = at[going_on], left[going_on]
        return np.where(found == none, np.int32(-1), found)

    def _probe(self, keys: FamilyKeys, words: Words, at: Array, table: Array, found: Array) -> None:
        """Lower `found` of the keys `at` to the first match in the bucket that a table has for each."""
        masked = tuple(word[at] & mask[table] for word, mask in zip(words, self.masks, strict=True))
        bucket = _hashes(table, masked, len(self.buckets) - 1)
        place, end = self.buckets[bucket], self.buckets[bucket + 1]
        while True:
            walking = np.flatnonzero(place < end)
            at, place, end = at[walking], place[walking], end[walking]
            rule = self.rules[place]
            earlier = np.flatnonzero(rule < found[at])
            if not len(earlier):
                return
            at, place, end, rule = at[earlier], place[earlier], end[earlier], rule[earlier]
            matched = matches(self.family, rule, keys, at)
            found[at[matched]] = rule[matched]
            place = np.where(matched, end, place + 1)


def _hashes(table: Array, masked: Words, size: int) -> Array:
    """The bucket of each row, of `size` buckets, a power of two: int64."""
    return (mixed((table.astype(np.uint64), *masked)) >> np.uint64(WORD + 1 - size.bit_length())).astype(np.int64)


def _by_port(family: Family, table: Array, count: int, name: str) -> Array:
    """For each port, the tables that have a rule for it: (65536, words) uint64."""
    low = getattr(family.rules, f"{name}_low").astype(np.int64)
    after = getattr(family.rules, f"{name}_high").astype(np.int64) + 1
    rows = np.empty((1 << 16, words_of(count)), np.uint64)
    for word in range(rows.shape[1]):
        inside = np.flatnonzero(table // WORD == word)
        change = np.zeros(((1 << 16) + 1, WORD), np.int32)
        np.add.at(change, (low[inside], table[inside] % WORD), 1)
        np.add.at(change, (after[inside], table[inside] % WORD), -1)
        rows[:, word] = packed(np.cumsum(change[:-1], axis=0, dtype=np.int32) > 0)[:, 0]
    return rows


def _by_protocol(family: Family, table: Array, count: int) -> Array:
    """For each protocol, the tables that have a rule for it: (256, words) uint64."""
    protocol, mask = family.rules.protocol, family.rules.protocol_mask
    pairs = np.unique(np.stack([protocol, mask, table], axis=1).astype(np.int64), axis=0)
    has = np.zeros((256, count), bool)
    for value, bits, number in pairs.tolist():
        has[(np.arange(256) & bits) == value, number] = True
    return packed(has)

"""Which rules share a table: those that fix the same bits, and tables merged until there are few enough.

A rule fixes the bits of its prefixes, and a port or protocol when it names just one: the *service word* of a packet is
its source port, destination port and protocol, and a rule's masks of addresses and of that word are what it fixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .family import BITS, Family, FamilyKeys, Words, address_words
from .packet_index import Array
from .rules import masks

MOST_TABLES = 512
"""Rules that are crafted to fix different bits each would otherwise make a table each, and every key look at all."""
TRIED = 8
"""Tables that are tried as the one into which the smallest is merged: the nearest by bits lost."""
SAMPLE = 1024
"""Keys on which that is tried."""


SERVICE_BITS = (16, 16, 8)
"""Of source port, destination port and protocol, from bit 24, 8 and 0 of the service word."""

Lengths: TypeAlias = tuple[int, int, int, int, int]
"""How many bits are fixed: of source, destination, source port, destination port and protocol."""


@dataclass(frozen=True, eq=False)
class Tuples:
    """At most `MOST_TABLES` tables of rules.

    Attributes:
        of_rule: (n,) int64, the table of each rule.
        earliest: (tables,) int32, the first rule of each, ascending.
        crowd: how many rules a key finds in the buckets of all tables, on average over a sample.
        masks: what each table fixes: words of (tables,), those of `fixed_words`.
    """

    of_rule: Array
    earliest: Array
    crowd: float
    masks: Words

    @classmethod
    def of(cls, family: Family) -> Tuples:
        """The tables of these rules."""
        tables = _merged(family)
        tables.sort(key=lambda table: int(table.rows[0]))
        of_rule = np.empty(len(family), np.int64)
        for number, table in enumerate(tables):
            of_rule[table.rows] = number
        earliest = np.array([table.rows[0] for table in tables], np.int32)
        crowd = sum(table.looked_at for table in tables) / SAMPLE
        return cls(of_rule, earliest, crowd, _masks([table.lengths for table in tables], family.version))


def key_words(keys: FamilyKeys) -> Words:
    """What tables mask of keys: the words of both addresses, and the service word."""
    return (*keys.source, *keys.destination, _service_word(keys.source_port, keys.destination_port, keys.protocol))


def rule_words(family: Family) -> Words:
    """The same of rules; where a table fixes a bit, its rules have it."""
    rules = family.rules
    service = _service_word(rules.source_port_low, rules.destination_port_low, rules.protocol)
    return (*family.source, *family.destination, service)


def _service_word(source_port: Array, destination_port: Array, protocol: Array) -> Array:
    ports = source_port.astype(np.uint64) << np.uint64(24) | destination_port.astype(np.uint64) << np.uint64(8)
    return ports | protocol.astype(np.uint64)


@dataclass(frozen=True)
class _Table:
    """Rules that fix at least so many bits.

    Attributes:
        lengths: how many.
        rows: of the rules, ascending.
        looked_at: how often a key of the sample finds a rule in its bucket.
    """

    lengths: Lengths
    rows: Array
    looked_at: int

    def loss(self, other: _Table) -> int:
        """Bits that the two no longer fix when they are one table."""
        return sum(map(abs, map(int.__sub__, self.lengths, other.lengths)))


@dataclass(frozen=True)
class _Maker:
    """Makes tables of a family's rules, and looks how they do for keys like them.

    Attributes:
        version: of the family.
        rules: words of (n,).
        sample: words of keys that each match one of the rules.
    """

    version: int
    rules: Words
    sample: Words

    @classmethod
    def of(cls, family: Family) -> _Maker:
        rules = rule_words(family)
        random = np.random.default_rng(len(family))
        drawn = random.integers(len(family), size=SAMPLE if len(family) else 0)
        fixed = _masks(list(map(tuple, _lengths(family)[drawn].tolist())), family.version)
        sample = []
        for word, mask in zip(rules, fixed, strict=True):
            free = random.integers(np.iinfo(word.dtype).max, size=len(drawn), dtype=word.dtype, endpoint=True)
            sample.append(word[drawn] | (free & ~mask))
        return cls(family.version, rules, tuple(sample))

    def table(self, lengths: Lengths, rows: Array) -> _Table:
        """The table of these rules, which all fix these bits."""
        fixed = _masks([lengths], self.version)
        rules = np.sort(mixed(tuple(word[rows] & mask for word, mask in zip(self.rules, fixed, strict=True))))
        sample = mixed(tuple(word & mask for word, mask in zip(self.sample, fixed, strict=True)))
        counts = np.searchsorted(rules, sample, side="right") - np.searchsorted(rules, sample)
        return _Table(lengths, rows, int(counts.sum()))

    def joined(self, left: _Table, right: _Table) -> _Table:
        """The table of the rules of both."""
        return self.table(_common(left.lengths, right.lengths), np.sort(np.concatenate([left.rows, right.rows])))


def mixed(words: Words) -> Array:
    """A hash of rows of words: (n,) uint64, good in its upper bits."""
    hashes = np.zeros(len(words[0]), np.uint64)
    for word in words:
        hashes = (hashes ^ word) * _FACTOR
        hashes ^= hashes >> np.uint64(32)
    return hashes * _FACTOR


_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio in 64 bits: odd, with bits spread evenly."""


def _merged(family: Family) -> list[_Table]:
    """The tables: the one with the fewest rules is merged where keys then look at least, until few enough are left."""
    make = _Maker.of(family)
    lengths, of_rule = np.unique(_lengths(family), axis=0, return_inverse=True)
    by_length = np.argsort(of_rule.reshape(-1), kind="stable")
    cuts = np.searchsorted(of_rule.reshape(-1)[by_length], np.arange(1, len(lengths)))
    tables = [
        make.table(tuple(fixed), rows)
        for fixed, rows in zip(lengths.tolist(), np.split(by_length, cuts), strict=bool(len(lengths)))
    ]
    while len(tables) > MOST_TABLES:
        tables.sort(key=lambda table: len(table.rows), reverse=True)
        least = tables.pop()
        nearest = sorted(range(len(tables)), key=lambda number: least.loss(tables[number]))[:TRIED]
        joined = {number: make.joined(least, tables[number]) for number in nearest}
        best = min(nearest, key=lambda number: joined[number].looked_at - tables[number].looked_at)
        tables[best] = joined[best]
    return tables


def _lengths(family: Family) -> Array:
    """What each rule fixes: (n, 5) int64."""
    rules = family.rules
    one_source = rules.source_port_low == rules.source_port_high
    one_destination = rules.destination_port_low == rules.destination_port_high
    parts = [
        rules.source_length,
        rules.destination_length,
        np.where(one_source, 16, 0),
        np.where(one_destination, 16, 0),
        np.where(rules.protocol_mask == 0xFF, 8, 0),
    ]
    return np.stack(parts, axis=1).astype(np.int64)


def _common(left: Lengths, right: Lengths) -> Lengths:
    return tuple(map(min, left, right))  # type: ignore[return-value]


def _masks(lengths: list[Lengths], version: int) -> Words:
    columns = np.array(lengths, np.int64).reshape(-1, 5)
    fixed: list[Array] = []
    for side in (0, 1):
        fixed += address_words(np.stack(masks(columns[:, side], BITS[version]), axis=1), version)
    whole = [np.where(columns[:, 2 + field], (1 << bits) - 1, 0) for field, bits in enumerate(SERVICE_BITS)]
    return (*fixed, _service_word(*whole))

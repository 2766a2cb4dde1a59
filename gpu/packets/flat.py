"""A compiled rule set in one piece of memory, as the kernels read it: netio's arrays, and what leads to them.

What leads to them are structs of `classify.cu`, here lists of numbers and places in the same order: every member is 8
bytes wide. A place becomes a pointer once it is known where the whole will lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from ...bus.columns import Array
from ...netio.bit_vectors import BitVectors, Vectors
from ...netio.class_tables import ClassTables
from ...netio.classify import Classifier, Structure
from ...netio.family import EXTRA, PORTS, Family
from ...netio.linear import LinearScan
from ...netio.prefixes import AddressMap, Searched, SearchedPairs, TableWalk
from ...netio.services import Services
from ...netio.tuple_tables import TupleTables

NO_RULE = 0x7FFFFFFF
"""More than any rule's number."""

STRUCTURES = (ClassTables, BitVectors, TupleTables, LinearScan)
MAPS = (TableWalk, Searched, SearchedPairs)
ENUMS = {
    "STRUCTURE": {kind.__name__: number for number, kind in enumerate(STRUCTURES)},
    "MAP": {name: number for number, name in enumerate(("WALK", "SEARCH", "PAIRS"))},
    "FIELD": {name: number for number, name in enumerate((*PORTS, *EXTRA))},
}
"""Numbers that the kernels tell things by."""

ALIGN = 64
MOST_FIELDS = 5
MOST_WORDS = 4


class Place(NamedTuple):
    """Where something lies, counted from the first byte of the whole."""

    offset: int


Words: TypeAlias = "list[int | Place]"
"""Members of a struct; 0 is also the null pointer."""


@dataclass(frozen=True, eq=False)
class Flat:
    """A rule set, ready to be copied to where kernels read it.

    Attributes:
        parts: where each array begins, and the array.
        structs: where each struct begins, and its members.
        four, six: where the `Structure` of each IP version begins; None where it has no rules.
        nbytes: of the whole.
    """

    parts: list[tuple[int, Array]]
    structs: list[tuple[int, Words]]
    four: int | None
    six: int | None
    nbytes: int

    @classmethod
    def of(cls, classifier: Classifier) -> Flat:
        """The set that a classifier was compiled from."""
        laying = _Laying()
        found: dict[int, int] = {}
        for version, structure in classifier.structures.items():
            family = classifier.families[version]
            rows: int | Place = 0 if len(family) == len(classifier.rules) else laying.array(family.rows)
            kind = STRUCTURES.index(type(structure))
            found[version] = laying.struct([kind, laying.structure(structure), rows]).offset
        return cls(laying.parts, laying.structs, found.get(4), found.get(6), max(ALIGN, laying.nbytes))

    def copied(self, address: int) -> Array:
        """The whole, to be copied to that address: (nbytes,) uint8."""
        whole = np.zeros(self.nbytes, np.uint8)
        for offset, array in self.parts:
            whole[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        for offset, members in self.structs:
            words = [address + word.offset if isinstance(word, Place) else word for word in members]
            whole[offset : offset + 8 * len(words)] = np.array(words, np.uint64).view(np.uint8)
        return whole


class _Laying:
    """Finds a place for each array and struct; an array that comes again has one already."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Array]] = []
        self.structs: list[tuple[int, Words]] = []
        self.nbytes = 0
        self._known: dict[int, Place] = {}

    def array(self, array: Array) -> Place:
        known = self._known.get(id(array))
        if known is None:
            # The classifier holds the array, so nothing else has its id.
            known = self._known[id(array)] = self._room(array.nbytes)
            self.parts.append((known.offset, np.ascontiguousarray(array)))
        return known

    def struct(self, members: Words) -> Place:
        place = self._room(8 * len(members))
        self.structs.append((place.offset, members))
        return place

    def structure(self, structure: Structure) -> Place:
        if isinstance(structure, ClassTables):
            return self.struct(self._class_tables(structure))
        if isinstance(structure, BitVectors):
            return self.struct(self._bit_vectors(structure))
        if isinstance(structure, TupleTables):
            return self.struct(self._tuple_tables(structure))
        assert isinstance(structure, LinearScan), f"{type(structure).__name__} has no kernel"
        return self.struct(self._family(structure.family))

    def _class_tables(self, tables: ClassTables) -> Words:
        return [
            *self._map(tables.source),
            *self._map(tables.destination),
            *self._services(tables.services),
            *tables.order,
            *(self.array(tables.pairs), tables.pairs.shape[1]),
            *(self.array(tables.matches), tables.matches.shape[1]),
        ]

    def _bit_vectors(self, bits: BitVectors) -> Words:
        vectors = [word for each in bits.fields for word in self._vectors(each)]
        pages = bits.fields[0].pages.shape[1]
        return [
            *self._map(bits.source),
            *self._map(bits.destination),
            *self._services(bits.services),
            *vectors,
            *(pages, self.array(bits.rows), self.array(bits.earliest)),
        ]

    def _tuple_tables(self, tuples: TupleTables) -> Words:
        by = (tuples.sources, tuples.destinations, *tuples.ports, tuples.protocols)
        buckets = len(tuples.buckets) - 1
        return [
            *self._family(tuples.family),
            *self._map(tuples.source),
            *self._map(tuples.destination),
            tuples.sources.shape[1],
            *map(self.array, by),
            len(tuples.masks),
            *_filled([self.array(mask) for mask in tuples.masks], MOST_WORDS + 1),
            *(self.array(tuples.earliest), self.array(tuples.buckets)),
            *(64 + 1 - buckets.bit_length(), self.array(tuples.rules)),
        ]

    def _family(self, family: Family) -> Words:
        rules = family.rules
        extra = [self.array(getattr(rules, name + end)) for name in EXTRA for end in ("", "_mask")]
        return [
            *(len(family), len(family.source)),
            *_filled([self.array(words) for words in family.source + family.destination], MOST_WORDS),
            *_filled([self.array(words) for words in family.source_mask + family.destination_mask], MOST_WORDS),
            *(self.array(getattr(rules, f"{name}_low")) for name in PORTS),
            *(self.array(getattr(rules, f"{name}_high")) for name in PORTS),
            *extra,
        ]

    def _vectors(self, vectors: Vectors) -> Words:
        return [self.array(each) for each in (vectors.tops, vectors.pages, vectors.summaries, vectors.words)]

    def _services(self, services: Services) -> Words:
        words: Words = []
        for name, table, (count, joined) in zip(services.fields, services.tables, services.joined, strict=True):
            words += [ENUMS["FIELD"][name], self.array(table), count, self.array(joined)]
        return [len(services.fields), *_filled(words, 4 * MOST_FIELDS)]

    def _map(self, found: AddressMap) -> Words:
        if isinstance(found, TableWalk):
            arrays: Sequence[Array | None] = (found.top, found.middle, None, found.last)
        elif isinstance(found, Searched):
            arrays = (found.starts, None, None, found.numbers)
        else:
            assert isinstance(found, SearchedPairs), f"{type(found).__name__} has no kernel"
            arrays = (found.upper, found.lower, found.codes, found.numbers)
        sizes = [0 if array is None else len(array) for array in arrays[:3]]
        return [MAPS.index(type(found)), *(0 if array is None else self.array(array) for array in arrays), *sizes]

    def _room(self, size: int) -> Place:
        offset = self.nbytes
        self.nbytes = -(-(offset + size) // ALIGN) * ALIGN
        return Place(offset)


def _filled(words: Words, count: int) -> Words:
    """As many words, 0 where there are no more."""
    return [*words, *[0] * (count - len(words))]

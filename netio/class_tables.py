"""Tables of classes: two classes of a key give a *pair class*, that and its third class give the first match.

The classes are those of the source, of the destination and of the service; which two are joined first is chosen so
that the last table is smallest. Ten to fifteen look-ups a key, whatever the rules; but the tables grow faster than the
rules.

Source:
    Gupta and McKeown, Packet Classification on Multiple Fields, SIGCOMM 1999, section 5 (recursive flow
    classification).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .bits import BLOCK_WORDS, cross, first
from .family import Family, FamilyKeys
from .packet_index import Array
from .prefixes import AddressMap, classes
from .services import RulesUnfit, Services

MOST_PAIRS = 1 << 22
"""Pairs of classes that may be joined; three joins are tried."""
MOST_WORDS = 1 << 27
"""Words of bits that may be looked at for one table: a second."""
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Which of source, destination and service are joined first, and which comes last."""


@dataclass(frozen=True, eq=False)
class ClassTables:
    """The first match by tables of classes.

    Attributes:
        MOST_RULES: with more, most sets need tables that are too large, and the attempt costs a second.
        source, destination: from addresses to their classes.
        services: from the rest of a key to its service class.
        order: of `ORDERS`.
        pairs: (classes, classes) int32, pair classes.
        matches: (pair classes, classes) int32, the first match, -1 for none.
    """

    MOST_RULES: ClassVar[int] = 1 << 11

    source: AddressMap
    destination: AddressMap
    services: Services
    order: tuple[int, int, int]
    pairs: Array
    matches: Array

    @classmethod
    def of(cls, family: Family) -> ClassTables:
        """The tables of these rules.

        Raises:
            RulesUnfit: they would be too large.
        """
        rules = np.arange(len(family))
        services = Services.of(family.rules)
        source, sources = classes(family.source, family.source_mask, rules, len(rules))
        destination, destinations = classes(family.destination, family.destination_mask, rules, len(rules))
        sets = (sources, destinations, services.members(rules))
        order, pairs, joined = _best_order(sets)
        last = sets[order[2]]
        matches = np.empty((len(joined), len(last)), np.int32)
        step = max(1, BLOCK_WORDS // last.size)
        for start in range(0, len(joined), step):
            matches[start : start + step] = first(joined[start : start + step, None] & last[None])
        return cls(source, destination, services, order, pairs, matches)

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return (
            self.source.bytes + self.destination.bytes + self.services.bytes + self.pairs.nbytes + self.matches.nbytes
        )

    def first(self, keys: FamilyKeys) -> Array:
        """The first rule that matches each key: (n,) int32, -1 for none."""
        found = (
            self.source.locate(keys.source),
            self.destination.locate(keys.destination),
            self.services.classes(keys),
        )
        left, right, last = self.order
        return self.matches[self.pairs[found[left], found[right]], found[last]]


def _best_order(sets: tuple[Array, Array, Array]) -> tuple[tuple[int, int, int], Array, Array]:
    """The order with the smallest last table, its pair classes and their sets.

    Raises:
        RulesUnfit: every order needs a table that is too large.
    """
    words = sets[0].shape[1]
    best = None
    least = MOST_WORDS // words + 1
    for order in ORDERS:
        left, right, last = (sets[axis] for axis in order)
        if len(left) * len(right) > min(MOST_PAIRS, MOST_WORDS // words):
            continue
        pairs, joined = cross(left, right)
        if len(joined) * len(last) < least:
            least = len(joined) * len(last)
            best = order, pairs, joined
    if best is None:
        raise RulesUnfit
    return best

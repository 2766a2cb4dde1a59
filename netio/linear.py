"""The linear scan: every rule looks at every key. The oracle of the other structures, and the best for a few rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .family import Family, FamilyKeys, serves
from .packet_index import Array

BLOCK_PAIRS = 1 << 18
"""Pairs of a rule and a key compared at once: their booleans and words stay in the second-level cache."""
BLOCK_RULES = 256


@dataclass(frozen=True, eq=False)
class LinearScan:
    """Compares the addresses of all pairs, a block of rules after another, and the rest for the few pairs left.

    Keys that have their first match leave before the next block.
    """

    MOST_RULES: ClassVar[int] = 1 << 30

    family: Family

    @classmethod
    def of(cls, family: Family) -> LinearScan:
        """The scan of these rules."""
        return cls(family)

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return len(self.family) * (4 * sum(word.itemsize for word in self.family.source) + 20)

    def first(self, keys: FamilyKeys) -> Array:
        """The first rule that matches each key: (n,) int32, -1 for none."""
        found = np.full(len(keys), -1, np.int32)
        step = BLOCK_PAIRS // BLOCK_RULES
        for start in range(0, len(keys), step):
            self._scan(keys, np.arange(start, min(start + step, len(keys))), found)
        return found

    def _scan(self, keys: FamilyKeys, waiting: Array, found: Array) -> None:
        """Write the matches of the keys `waiting` into `found`."""
        family = self.family
        fields = list(
            zip(
                family.source + family.destination,
                family.source_mask + family.destination_mask,
                keys.source + keys.destination,
                strict=True,
            )
        )
        for start in range(0, len(family), BLOCK_RULES):
            rules = slice(start, start + BLOCK_RULES)
            inside = np.ones((1, 1), bool)
            for prefix, mask, key in fields:
                inside = inside & ((key[waiting, None] & mask[rules]) == prefix[rules])
            at, rows = np.nonzero(inside)
            at, rows = waiting[at], rows + start
            served = serves(family.rules, rows, keys, at)
            at, rows = at[served], rows[served]
            # Pairs come key by key, each key's rules in order: written backwards, the first one stays.
            found[at[::-1]] = rows[::-1]
            waiting = waiting[found[waiting] < 0]
            if not len(waiting):
                return

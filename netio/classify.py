"""Which rule a packet falls under: a rule set compiled to a structure that suits it, and asked with keys.

`docs/rules.md` has the figures by which the structures are preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np

from .bit_vectors import BitVectors
from .class_tables import ClassTables
from .family import BITS, Family, FamilyKeys
from .keys import Keys
from .linear import LinearScan
from .packet_index import Array
from .rules import RuleSet
from .services import RulesUnfit
from .tuple_tables import TupleTables

BLOCK_KEYS = 1 << 15
"""Keys looked up at once: their columns and intermediate results stay in the second-level cache."""


class Structure(Protocol):
    """A form of rules in which the first match of keys is found.

    Attributes:
        MOST_RULES: beyond it, it is not tried.
    """

    MOST_RULES: ClassVar[int]

    @classmethod
    def of(cls, family: Family) -> Self:
        """The structure of these rules, at least one.

        Raises:
            RulesUnfit: it would be too large or too slow. `LinearScan` never is.
        """

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""

    def first(self, keys: FamilyKeys) -> Array:
        """The first rule of the family that matches each key: (n,) int32, -1 for none."""


PREFERRED: tuple[type[Structure], ...] = (ClassTables, BitVectors, TupleTables, LinearScan)
"""The fastest first, as measured."""


def compile_rules(rules: RuleSet, structures: Sequence[type[Structure]] = PREFERRED) -> Classifier:
    """Make a rule set ready for look-ups.

    Args:
        rules: the set.
        structures: what is tried, in this order, for the rules of each IP version.

    Raises:
        RulesUnfit: none of `structures` can hold the rules; the preferred ones can.
    """
    families = {version: Family.of(rules, version) for version in BITS}
    families = {version: family for version, family in families.items() if len(family)}
    return Classifier(rules, families, {version: _build(family, structures) for version, family in families.items()})


def _build(family: Family, structures: Sequence[type[Structure]]) -> Structure:
    for structure in structures:
        if len(family) <= structure.MOST_RULES:
            try:
                return structure.of(family)
            except RulesUnfit:
                pass
    names = ", ".join(structure.__name__ for structure in structures)
    raise RulesUnfit(f"{len(family)} rules of IPv{family.version} are too many or too diverse for {names}")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A rule set, compiled. It never changes: a batch that holds one sees one version of the rules.

    Attributes:
        rules: the set, with its version and digest.
        families: by IP version, its rules.
        structures: by IP version, what finds the first match among them.
    """

    rules: RuleSet
    families: dict[int, Family]
    structures: dict[int, Structure]

    @property
    def bytes(self) -> int:
        """Memory of what is read for lookups."""
        return sum(structure.bytes for structure in self.structures.values())

    def classify(self, keys: Keys) -> Array:
        """The row of the first rule that matches each key: (n,) int32, -1 for none."""
        found = np.full(len(keys), -1, np.int32)
        for start in range(0, len(keys), BLOCK_KEYS):
            block = keys[start : start + BLOCK_KEYS]
            for version, structure in self.structures.items():
                is_version = block.version == version
                if is_version.all():
                    first = structure.first(FamilyKeys.of(block, version))
                    found[start : start + BLOCK_KEYS] = self._rows(version, first)
                elif is_version.any():
                    at = np.flatnonzero(is_version)
                    first = structure.first(FamilyKeys.of(block[at], version))
                    found[start + at] = self._rows(version, first)
        return found

    def _rows(self, version: int, first: Array) -> Array:
        """Rows of the whole set, for rows of one family's rules."""
        rows = self.families[version].rows
        if len(rows) == len(self.rules):
            return first
        return np.append(rows, np.int32(-1))[first]

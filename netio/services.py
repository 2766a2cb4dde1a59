"""Ports, protocol, VLAN and TCP flags of rules as one number.

Rules share few combinations of them (594 in 100,000 rules): each is a *service*. Keys that match the same services are
of one *service class*, found by a few table look-ups: each field has classes of its own, which are joined two at a
time.

Source:
    Gupta and McKeown, Packet Classification on Multiple Fields, SIGCOMM 1999, section 5 (recursive flow
    classification).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bits import cross, distinct, packed, words_of
from .family import EXTRA, PORTS, FamilyKeys
from .packet_index import Array
from .rules import RuleSet

MOST_WORDS = 1 << 24
"""Words of bits that may be looked at to join two tables, or for one field: 128 MiB, a second."""

_DOMAIN = {"protocol": 1 << 8, "vlan": 1 << 16, "tcp_flags": 1 << 8}


class RulesUnfit(Exception):
    """The rules do not suit a structure: it would take too much memory or time. `compile_rules` takes the next."""


@dataclass(frozen=True, eq=False)
class Services:
    """From a key to its service class.

    Attributes:
        of_rule: (n,) int32, the service of each rule.
        bits: (classes, words), the services that keys of each class match.
        fields: what is looked at, ports first; a field that no rule looks at is not.
        tables: for each of them, from a value to its class.
        joined: for each but the first, from the class so far x classes + its class to the class with it.
    """

    of_rule: Array
    bits: Array
    fields: tuple[str, ...]
    tables: tuple[Array, ...]
    joined: tuple[tuple[int, Array], ...]

    @classmethod
    def of(cls, rules: RuleSet) -> Services:
        """The services of these rules.

        Raises:
            RulesUnfit: tables of these rules would be too large.
        """
        columns = [getattr(rules, f"{name}_{end}") for name in PORTS for end in ("low", "high")]
        columns += [getattr(rules, f"{name}{end}") for name in EXTRA for end in ("", "_mask")]
        _, where, of_rule = np.unique(np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True)
        services = rules.take(where)
        fields = [name for name in PORTS if _looked_at(services, name)]
        fields += [name for name in EXTRA if _looked_at(services, name)]
        bits = packed(np.ones((1, len(where)), bool))
        tables = []
        joined = []
        for name in fields:
            table, sets = _field(services, name)
            if len(bits) * sets.size > MOST_WORDS:
                raise RulesUnfit
            numbers, bits = cross(bits, sets)
            tables.append(table)
            joined.append((len(sets), numbers.reshape(-1)))
        return cls(of_rule.reshape(-1).astype(np.int32), bits, tuple(fields), tuple(tables), tuple(joined))

    @property
    def bytes(self) -> int:
        """Memory of what is read for a lookup."""
        return sum(table.nbytes for table in self.tables) + sum(numbers.nbytes for _, numbers in self.joined)

    def classes(self, keys: FamilyKeys) -> Array:
        """The service class of each key: (n,) int32."""
        found = np.zeros(len(keys), np.int32)
        for name, table, (count, numbers) in zip(self.fields, self.tables, self.joined, strict=True):
            found = numbers[found * count + table[getattr(keys, name)]]
        return found

    def members(self, rules: Array) -> Array:
        """The rules that keys of each service class match, as far as services go.

        Args:
            rules: (members,) rows of the rules in the order of the bits.

        Returns:
            (classes, words of the members) uint64.
        """
        flags = np.unpackbits(self.bits.astype("<u8").view(np.uint8), axis=1, bitorder="little")
        sets = np.empty((len(self.bits), words_of(len(rules))), np.uint64)
        step = max(1, (1 << 24) // max(1, len(rules)))
        for start in range(0, len(sets), step):
            sets[start : start + step] = packed(flags[start : start + step, self.of_rule[rules]].view(bool))
        return sets


def _looked_at(services: RuleSet, name: str) -> bool:
    if name in PORTS:
        return bool(getattr(services, f"{name}_low").any() or (getattr(services, f"{name}_high") != 0xFFFF).any())
    return bool(getattr(services, f"{name}_mask").any())


def _field(services: RuleSet, name: str) -> tuple[Array, Array]:
    """The classes of a field's values: from a value to its class, int32, and the services that each class matches.

    Raises:
        RulesUnfit: that would take too much memory.
    """
    words = words_of(len(services))
    if name in PORTS:
        low, high = getattr(services, f"{name}_low"), getattr(services, f"{name}_high")
        starts = np.unique(np.concatenate([[0], low, high[high < 0xFFFF].astype(np.int64) + 1]))
        interval = np.searchsorted(starts, np.arange(1 << 16), side="right") - 1
        _limit(len(starts) * words)
        numbers, sets = distinct(packed((low <= starts[:, None]) & (starts[:, None] <= high)))
        return numbers[interval], sets
    value, mask = getattr(services, name), getattr(services, f"{name}_mask")
    pairs, of_service = np.unique(value.astype(np.int64) << 16 | mask, return_inverse=True)
    domain = np.arange(_DOMAIN[name])
    _limit(len(domain) * words_of(len(pairs)))
    table, by_pair = distinct(packed((domain[:, None] & (pairs & 0xFFFF)) == pairs >> 16))
    flags = np.unpackbits(by_pair.astype("<u8").view(np.uint8), axis=1, bitorder="little").view(bool)
    _limit(len(flags) * words)
    return table, packed(flags[:, of_service.reshape(-1)])


def _limit(words: int) -> None:
    if words > MOST_WORDS:
        raise RulesUnfit

"""Rules and keys of one IP version, in the form that every structure of classification is built from and asked with.

An address is a tuple of words: one uint32 for IPv4, two uint64, upper and lower half, for IPv6. What is done to an
address is done to each word, so a structure is written once for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .keys import Keys
from .packet_index import Array
from .rules import RuleSet, masks

Words: TypeAlias = tuple[Array, ...]
BITS = {4: 32, 6: 128}
EXTRA = ("protocol", "vlan", "tcp_flags")
"""What rules match by value and mask, besides addresses."""
PORTS = ("source_port", "destination_port")


@dataclass(frozen=True, eq=False)
class Family:
    """The rules that can match packets of one IP version, in order.

    Attributes:
        version: 4 or 6.
        rules: those rules.
        rows: (n,) int32, their rows in the whole set, ascending.
        source, source_mask, destination, destination_mask: words of (n,).
    """

    version: int
    rules: RuleSet
    rows: Array
    source: Words
    source_mask: Words
    destination: Words
    destination_mask: Words

    @classmethod
    def of(cls, rules: RuleSet, version: int) -> Family:
        """The rules of `rules` for packets of this version."""
        rows = np.flatnonzero((rules.family == version) | (rules.family == 0))
        chosen = rules.take(rows)
        bits = BITS[version]
        return cls(
            version,
            chosen,
            rows.astype(np.int32),
            address_words(chosen.source, version),
            address_words(np.stack(masks(chosen.source_length, bits), axis=1), version),
            address_words(chosen.destination, version),
            address_words(np.stack(masks(chosen.destination_length, bits), axis=1), version),
        )

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class FamilyKeys:
    """Keys of one IP version: addresses as words of (n,), the rest as in `Keys`."""

    source: Words
    destination: Words
    source_port: Array
    destination_port: Array
    protocol: Array
    vlan: Array
    tcp_flags: Array

    @classmethod
    def of(cls, keys: Keys, version: int) -> FamilyKeys:
        """The same keys, all of which are of this version."""
        return cls(
            _halves(keys.source_high, keys.source_low, version),
            _halves(keys.destination_high, keys.destination_low, version),
            keys.source_port,
            keys.destination_port,
            keys.protocol,
            keys.vlan,
            keys.tcp_flags,
        )

    def __len__(self) -> int:
        return len(self.protocol)


def address_words(addresses: Array, version: int) -> Words:
    """Addresses of (n, 2) uint64 as words."""
    return _halves(np.ascontiguousarray(addresses[:, 0]), np.ascontiguousarray(addresses[:, 1]), version)


def _halves(high: Array, low: Array, version: int) -> Words:
    return (low.astype(np.uint32),) if version == 4 else (high, low)


def matches(family: Family, rows: Array, keys: FamilyKeys, at: Array) -> Array:
    """Whether rule `rows[i]` matches key `at[i]`, looking at every field: (n,) bool."""
    inside = serves(family.rules, rows, keys, at)
    for prefix, mask, key in zip(
        family.source + family.destination,
        family.source_mask + family.destination_mask,
        keys.source + keys.destination,
        strict=True,
    ):
        inside &= (key[at] & mask[rows]) == prefix[rows]
    return inside


def serves(rules: RuleSet, rows: Array, keys: FamilyKeys, at: Array) -> Array:
    """Whether rule `rows[i]` matches the ports, protocol, VLAN and flags of key `at[i]`: (n,) bool."""
    inside = np.ones(len(rows), bool)
    for name in PORTS:
        port = getattr(keys, name)[at]
        inside &= getattr(rules, f"{name}_low")[rows] <= port
        inside &= port <= getattr(rules, f"{name}_high")[rows]
    for name in EXTRA:
        inside &= (getattr(keys, name)[at] & getattr(rules, f"{name}_mask")[rows]) == getattr(rules, name)[rows]
    return inside

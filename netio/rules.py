"""Rules that name packets: `Rule`, one of them for people, and `RuleSet`, an immutable table of them for machines.

The first rule that matches a packet wins. A set never changes: `edited` gives another one, with the next version, so
whoever holds one keeps classifying by it until they take the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .errors import NetError
from .packet_index import Array

ANY_PORT = (0, 0xFFFF)
MATCH = "match"
"""The label of rules that say nothing else, as those of ClassBench."""


class Rule(NamedTuple):
    """One rule. A packet matches when every field does; what is left out matches everything.

    Attributes:
        label: what a packet is called, or what is to be done with it.
        family: 4 or 6, or 0 for both; then both addresses are left out.
        source, destination: the prefixes, as integers, with no bit set beyond their length.
        source_length, destination_length: bits of the prefixes.
        source_ports, destination_ports: first and last port.
        protocol, protocol_mask: matches where (protocol of the packet & mask) == protocol.
        vlan, vlan_mask: the same of the packet's VLAN id, 0xFFFF where it has none.
        tcp_flags, tcp_flags_mask: the same of its TCP flags, 0 where it is not TCP.
        name: what reports call the rule.
    """

    label: str = MATCH
    family: int = 0
    source: int = 0
    source_length: int = 0
    destination: int = 0
    destination_length: int = 0
    source_ports: tuple[int, int] = ANY_PORT
    destination_ports: tuple[int, int] = ANY_PORT
    protocol: int = 0
    protocol_mask: int = 0
    vlan: int = 0
    vlan_mask: int = 0
    tcp_flags: int = 0
    tcp_flags_mask: int = 0
    name: str = ""


class Problem(NamedTuple):
    """What is wrong with one rule, and what to write instead.

    Attributes:
        line: of the text, or the rule's place in the set, each from 1.
    """

    line: int
    message: str


class BadRules(NetError):
    """Some rules are not rules. Nothing was read or changed; whoever wrote them must mend the lines named.

    Attributes:
        problems: one for each bad line, in order.
    """

    code: ClassVar[str] = "bad_rules"
    SHOWN: ClassVar[int] = 10

    def __init__(self, problems: Sequence[Problem], where: str = "line") -> None:
        shown = [f"{where} {problem.line}: {problem.message}" for problem in problems[: self.SHOWN]]
        if len(problems) > self.SHOWN:
            shown.append(f"and {len(problems) - self.SHOWN} more")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)


@dataclass(frozen=True, eq=False)
class RuleSet:
    """Rules in order of priority, row 0 the highest. The arrays are read-only; `Rule` says what the fields mean.

    Attributes:
        family, source_length, destination_length, protocol, protocol_mask, tcp_flags, tcp_flags_mask: (n,) uint8.
        source, destination: (n, 2) uint64, upper and lower half; IPv4 is in the lower half.
        source_port_low, source_port_high, destination_port_low, destination_port_high, vlan, vlan_mask: (n,) uint16.
        label: (n,) int32, into `labels`.
        labels: the distinct labels.
        names: one a rule, or none at all.
        version: of the set: 1, and one more with each edit.

    Raises:
        BadRules: a prefix has bits beyond its length, a range ends before it begins, and the like.
    """

    family: Array
    source: Array
    source_length: Array
    destination: Array
    destination_length: Array
    source_port_low: Array
    source_port_high: Array
    destination_port_low: Array
    destination_port_high: Array
    protocol: Array
    protocol_mask: Array
    vlan: Array
    vlan_mask: Array
    tcp_flags: Array
    tcp_flags_mask: Array
    label: Array
    labels: tuple[str, ...] = (MATCH,)
    names: tuple[str, ...] = field(default=(), repr=False)
    version: int = 1

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = np.array(getattr(self, name), dtype, order="C")
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        _check(self)

    @classmethod
    def of(cls, rules: Iterable[Rule], version: int = 1) -> Self:
        """The set of these rules, in this order.

        Raises:
            BadRules: some are no rules; their places are named.
        """
        rows = list(rules)
        try:
            return cls(**_columns(rows), version=version)
        except OverflowError:
            raise BadRules(
                [Problem(place, "a number in it does not fit its field") for place in _overflowing(rows)],
                "rule",
            ) from None

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, row: int) -> Rule:
        """One rule, as it was given."""
        take = {name: getattr(self, name)[row].tolist() for name in COLUMNS}
        return Rule(
            label=self.labels[take["label"]],
            source=take["source"][0] << 64 | take["source"][1],
            destination=take["destination"][0] << 64 | take["destination"][1],
            source_ports=(take["source_port_low"], take["source_port_high"]),
            destination_ports=(take["destination_port_low"], take["destination_port_high"]),
            name=self.names[row] if self.names else "",
            **{name: take[name] for name in _PLAIN},
        )

    def __iter__(self) -> Iterator[Rule]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RuleSet) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that two sets share when they hold the same rules, whatever their versions."""
        digest = hashlib.blake2b(digest_size=16)
        for name in COLUMNS:
            digest.update(getattr(self, name).tobytes())
        digest.update(repr((len(self), self.labels, self.names)).encode())
        return digest.hexdigest()

    def edited(self, start: int, stop: int, rules: Iterable[Rule]) -> RuleSet:
        """The next version, with `rules` in place of the rows from `start` to `stop`, as a list's slice is replaced.

        Raises:
            BadRules: some are no rules. This set stays as it is in any case.
        """
        rows = list(self)
        rows[start:stop] = rules
        return RuleSet.of(rows, self.version + 1)

    def take(self, rows: Array) -> RuleSet:
        """The rules of some rows, in the order of `rows`."""
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        return replace(self, **columns, names=tuple(self.names[row] for row in rows) if self.names else ())


_PLAIN = (
    "family",
    "source_length",
    "destination_length",
    "protocol",
    "protocol_mask",
    "vlan",
    "vlan_mask",
    "tcp_flags",
    "tcp_flags_mask",
)


COLUMNS = {
    "family": np.uint8,
    "source": np.uint64,
    "source_length": np.uint8,
    "destination": np.uint64,
    "destination_length": np.uint8,
    "source_port_low": np.uint16,
    "source_port_high": np.uint16,
    "destination_port_low": np.uint16,
    "destination_port_high": np.uint16,
    "protocol": np.uint8,
    "protocol_mask": np.uint8,
    "vlan": np.uint16,
    "vlan_mask": np.uint16,
    "tcp_flags": np.uint8,
    "tcp_flags_mask": np.uint8,
    "label": np.int32,
}
"""The arrays of a `RuleSet`, in order."""

_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def masks(lengths: Array, bits: int) -> tuple[Array, Array]:
    """The masks of prefixes of addresses of `bits` bits, as upper and lower half: (n,) uint64 each."""
    beyond = np.clip(bits - lengths.astype(np.int64), 0, bits)
    lower = np.where(beyond >= 64, np.uint64(0), _ONES << np.minimum(beyond, 63).astype(np.uint64))
    if bits == 32:
        return np.zeros_like(lower), lower & np.uint64(0xFFFF_FFFF)
    upper = np.where(beyond >= 128, np.uint64(0), _ONES << np.clip(beyond - 64, 0, 63).astype(np.uint64))
    return upper, lower


def _columns(rows: list[Rule]) -> dict[str, Any]:
    """What a `RuleSet` of these rules is made of.

    Raises:
        OverflowError: a number is outside its column's type.
    """
    labels = {label: number for number, label in enumerate(dict.fromkeys(rule.label for rule in rows))}
    return {
        "family": np.array([rule.family for rule in rows], np.uint8),
        "source": _halves([rule.source for rule in rows]),
        "source_length": np.array([rule.source_length for rule in rows], np.uint8),
        "destination": _halves([rule.destination for rule in rows]),
        "destination_length": np.array([rule.destination_length for rule in rows], np.uint8),
        "source_port_low": np.array([rule.source_ports[0] for rule in rows], np.uint16),
        "source_port_high": np.array([rule.source_ports[1] for rule in rows], np.uint16),
        "destination_port_low": np.array([rule.destination_ports[0] for rule in rows], np.uint16),
        "destination_port_high": np.array([rule.destination_ports[1] for rule in rows], np.uint16),
        "protocol": np.array([rule.protocol for rule in rows], np.uint8),
        "protocol_mask": np.array([rule.protocol_mask for rule in rows], np.uint8),
        "vlan": np.array([rule.vlan for rule in rows], np.uint16),
        "vlan_mask": np.array([rule.vlan_mask for rule in rows], np.uint16),
        "tcp_flags": np.array([rule.tcp_flags for rule in rows], np.uint8),
        "tcp_flags_mask": np.array([rule.tcp_flags_mask for rule in rows], np.uint8),
        "label": np.array([labels[rule.label] for rule in rows], np.int32),
        "labels": tuple(labels),
        "names": tuple(rule.name for rule in rows) if any(rule.name for rule in rows) else (),
    }


def _overflowing(rows: list[Rule]) -> Iterator[int]:
    """The places, from 1, of rules with numbers outside their column's type."""
    for place, rule in enumerate(rows, 1):
        try:
            _columns([rule])
        except OverflowError:
            yield place


def _halves(addresses: list[int]) -> Array:
    halves = [(address >> 64, address & 0xFFFF_FFFF_FFFF_FFFF) for address in addresses]
    return np.array(halves, np.uint64).reshape(-1, 2)


def _check(rules: RuleSet) -> None:
    """Raise `BadRules` for rows that break what every structure built from a set relies on."""
    is_6 = rules.family == 6
    wrong = {"its family is not 4, 6 or 0": ~np.isin(rules.family, (0, 4, 6))}
    for side in ("source", "destination"):
        address, length = getattr(rules, side), getattr(rules, f"{side}_length")
        upper_4, lower_4 = masks(length, 32)
        upper_6, lower_6 = masks(length, 128)
        beyond = (address[:, 0] & ~np.where(is_6, upper_6, upper_4)) | (
            address[:, 1] & ~np.where(is_6, lower_6, lower_4)
        )
        low, high = getattr(rules, f"{side}_port_low"), getattr(rules, f"{side}_port_high")
        wrong[f"its {side} has bits beyond the prefix length: clear them"] = beyond != 0
        wrong[f"its {side} is longer than the address"] = length > np.where(is_6, 128, np.where(rules.family, 32, 0))
        wrong[f"its {side} ports end before they begin: swap them"] = low > high
    for name in ("protocol", "vlan", "tcp_flags"):
        value, mask = getattr(rules, name), getattr(rules, f"{name}_mask")
        wrong[f"its {name} has bits beyond the mask: clear them"] = (value & ~mask) != 0
    problems = [Problem(int(row) + 1, message) for message, rows in wrong.items() for row in np.flatnonzero(rows)]
    if problems:
        raise BadRules(sorted(problems), "rule")

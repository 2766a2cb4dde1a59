"""Rules that a set could do without: those never reached, and those after which the same would be said anyway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .family import EXTRA, PORTS
from .packet_index import Array
from .rules import RuleSet, masks
from .tuples import mixed

BLOCK_PAIRS = 1 << 20
BLOCK_ROWS = 64
MOST_PAIRS = 1 << 29
"""Pairs of rules compared before a report gives up: about half a minute."""


@dataclass(frozen=True)
class Report:
    """What a rule set could do without. Rows count from 0.

    Attributes:
        shadowed: each rule that no packet reaches, with the earlier rules that take all of its packets: one rule, or
            several whose ranges of one port together cover its own. Other unions of rules are not looked for.
        redundant: each other rule without which its packets get the same label, with the later rule that covers it.
        complete: whether all pairs of rules were compared. If not, what is listed is true, but more may be.
    """

    shadowed: dict[int, tuple[int, ...]]
    redundant: dict[int, int]
    complete: bool


def report(rules: RuleSet) -> Report:
    """Look for rules that `rules` could do without: the same labels are given when all that is listed is removed."""
    covers, complete = _covers(_Boxes.of(rules))
    shadowed = covers.shadowed()
    # Looked for among the rest: of two equal rules each could do without the other, but not both.
    rest = np.delete(np.arange(len(rules)), list(shadowed))
    covers, compared = _covers(_Boxes.of(rules.take(rest)))
    redundant, looked_at = _redundant(covers.boxes, covers.later)
    rows = {int(rest[row]): int(rest[by]) for row, by in sorted(redundant.items())}
    return Report(dict(sorted(shadowed.items())), rows, complete and compared and looked_at)


@dataclass(frozen=True)
class _Boxes:
    """A rule set with the masks of its prefixes, as four words: (n, 4) uint64, source and then destination."""

    rules: RuleSet
    prefix: Array
    mask: Array

    @classmethod
    def of(cls, rules: RuleSet) -> _Boxes:
        columns = []
        for lengths in (rules.source_length, rules.destination_length):
            for of_4, of_6 in zip(masks(lengths, 32), masks(lengths, 128), strict=True):
                columns.append(np.where(rules.family == 6, of_6, of_4))
        return cls(rules, np.concatenate([rules.source, rules.destination], axis=1), np.stack(columns, axis=1))

    def ports_cover(self, name: str, by: Array, row: Array) -> Array:
        """Whether rule `by[i]` has all ports of rule `row[i]`."""
        low, high = getattr(self.rules, f"{name}_low"), getattr(self.rules, f"{name}_high")
        covers: Array = (low[by] <= low[row]) & (high[row] <= high[by])
        return covers

    def rest_covers(self, by: Array, row: Array) -> Array:
        """Whether rule `by[i]` has the addresses of rule `row[i]`, and all that it has of masked fields."""
        covers: Array = np.ones(len(by), bool)
        for name in EXTRA:
            value, mask = getattr(self.rules, name), getattr(self.rules, f"{name}_mask")
            covers &= ((mask[by] & ~mask[row]) == 0) & (((value[by] ^ value[row]) & mask[by]) == 0)
        for word in range(4):
            mask = self.mask[by, word]
            covers &= ((mask & ~self.mask[row, word]) == 0) & ((self.prefix[row, word] & mask) == self.prefix[by, word])
        return covers


@dataclass
class _Covers:
    """Which rules cover which, as far as one rule, or one more than that for a port, is enough.

    Attributes:
        earlier, later: (n,) int64, the first of the earlier and of the later rules that cover a rule; n for none.
        partial: for each port, pairs of an earlier rule that covers all but some of that port, and the rule: (n, 2).
    """

    boxes: _Boxes
    earlier: Array
    later: Array
    partial: dict[str, list[Array]]

    def add(self, by: Array, row: Array) -> None:
        """Look at pairs of rules of which the first has the addresses of the second."""
        boxes = self.boxes
        rest = boxes.rest_covers(by, row)
        by, row = by[rest], row[rest]
        has = {name: boxes.ports_cover(name, by, row) for name in PORTS}
        whole = has[PORTS[0]] & has[PORTS[1]]
        for first, chosen in ((self.earlier, whole & (by < row)), (self.later, whole & (by > row))):
            np.minimum.at(first, row[chosen], by[chosen])
        for name, other in (PORTS, PORTS[::-1]):
            low, high = getattr(boxes.rules, f"{name}_low"), getattr(boxes.rules, f"{name}_high")
            partly = has[other] & ~has[name] & (by < row) & (low[by] <= high[row]) & (low[row] <= high[by])
            self.partial[name].append(np.stack([by[partly], row[partly]], axis=1))

    def shadowed(self) -> dict[int, tuple[int, ...]]:
        """The rules that earlier ones cover, and which."""
        covered = np.flatnonzero(self.earlier < len(self.earlier))
        found: dict[int, tuple[int, ...]]
        found = {row: (by,) for row, by in zip(covered.tolist(), self.earlier[covered].tolist(), strict=True)}
        for name, pairs in self.partial.items():
            for row, by in _united(self.boxes.rules, name, np.concatenate(pairs)):
                found.setdefault(row, by)
        return found


def _covers(boxes: _Boxes) -> tuple[_Covers, bool]:
    """Which rules cover which, and whether all pairs were compared."""
    rules = len(boxes.rules)
    none = {name: [np.empty((0, 2), np.int64)] for name in PORTS}
    covers = _Covers(boxes, np.full(rules, rules), np.full(rules, rules), none)
    compared = 0
    for by, row in _nested(boxes):
        compared += len(by)
        if compared > MOST_PAIRS:
            return covers, False
        covers.add(by, row)
    return covers, True


def _nested(boxes: _Boxes) -> Iterator[tuple[Array, Array]]:
    """Blocks of pairs of rules, the first of which has, but for collisions of a hash, the addresses of the second."""
    rules = boxes.rules
    shape = np.stack([rules.family, rules.source_length, rules.destination_length], axis=1).astype(np.int64)
    for family, source, destination in np.unique(shape, axis=0).tolist():
        wide = np.flatnonzero((shape == (family, source, destination)).all(axis=1))
        narrow = np.flatnonzero(
            ((shape[:, 0] == family) | (family == 0)) & (shape[:, 1] >= source) & (shape[:, 2] >= destination)
        )
        mask = boxes.mask[wide[0]]
        hashes = mixed(tuple((boxes.prefix[wide] & mask).T))
        order = np.argsort(hashes, kind="stable")
        wanted = mixed(tuple((boxes.prefix[narrow] & mask).T))
        begin = np.searchsorted(hashes[order], wanted)
        counts = np.searchsorted(hashes[order], wanted, side="right") - begin
        ends = np.cumsum(counts)
        start = 0
        while start < len(narrow):
            stop = max(start + 1, int(np.searchsorted(ends, ends[start] - counts[start] + BLOCK_PAIRS, side="right")))
            part = counts[start:stop]
            inner = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            by = wide[order[np.repeat(begin[start:stop], part) + inner]]
            row = np.repeat(narrow[start:stop], part)
            yield by[by != row], row[by != row]
            start = stop


def _united(rules: RuleSet, name: str, pairs: Array) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The rules whose ports the ranges of several earlier rules cover together, and those rules."""
    low, high = (getattr(rules, f"{name}_{end}").astype(np.int64) for end in ("low", "high"))
    pairs = pairs[np.lexsort([low[pairs[:, 0]], pairs[:, 1]])]
    by, row = pairs.T
    if not len(row):
        return
    begins = np.append(True, row[1:] != row[:-1])
    group = np.cumsum(begins) - 1
    # The highest port so far of each rule's ranges: groups are kept apart by more than any port.
    reached = np.maximum.accumulate(high[by] + (group << 17)) - (group << 17)
    before = np.where(begins, -1, np.append(0, reached[:-1]))
    gap = low[by] > np.maximum(before + 1, low[row])
    starts = np.flatnonzero(begins)
    for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(row)], strict=True):
        if not gap[first:last].any() and reached[last - 1] >= high[row[first]]:
            yield int(row[first]), tuple(sorted(by[first:last].tolist()))


def _redundant(boxes: _Boxes, later: Array) -> tuple[dict[int, int], bool]:
    """The rules covered later by one of their label, with none of another label between that has packets of theirs."""
    label = boxes.rules.label
    some = np.flatnonzero(later < len(label))
    some = some[label[some] == label[later[some]]]
    some = some[np.lexsort([some, label[some]])]
    found: dict[int, int] = {}
    compared = 0
    for block in _blocks(some, label[some]):
        end = later[block]
        between = np.arange(block.min() + 1, end.max())
        between = between[label[between] != label[block[0]]]
        compared += len(block) * len(between)
        if compared > MOST_PAIRS:
            return found, False
        hits = _overlaps(boxes, block, between) & (block[:, None] < between) & (between < end[:, None])
        free = ~hits.any(axis=1)
        found |= zip(block[free].tolist(), end[free].tolist(), strict=True)
    return found, True


def _blocks(rows: Array, label: Array) -> Iterator[Array]:
    """Rows, sorted by label, in blocks of one label each."""
    for of_label in np.split(rows, np.flatnonzero(np.diff(label)) + 1):
        for start in range(0, len(of_label), BLOCK_ROWS):
            yield of_label[start : start + BLOCK_ROWS]


def _overlaps(boxes: _Boxes, some: Array, others: Array) -> Array:
    """Whether some packet matches both rules: (some, others) bool."""
    rules = boxes.rules
    family = rules.family[some][:, None]
    both: Array = (family == rules.family[others]) | (family == 0) | (rules.family[others] == 0)
    for word in range(4):
        mask = boxes.mask[some, word][:, None] & boxes.mask[others, word]
        both &= ((boxes.prefix[some, word][:, None] ^ boxes.prefix[others, word]) & mask) == 0
    for name in PORTS:
        low, high = getattr(rules, f"{name}_low"), getattr(rules, f"{name}_high")
        both &= (low[some][:, None] <= high[others]) & (low[others] <= high[some][:, None])
    for name in EXTRA:
        value, mask = getattr(rules, name), getattr(rules, f"{name}_mask")
        both &= ((value[some][:, None] ^ value[others]) & mask[some][:, None] & mask[others]) == 0
    return both

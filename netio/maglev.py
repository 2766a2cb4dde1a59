"""Which back end takes a flow: Maglev tables, which spread flows evenly and move few when back ends come and go.

Source:
    Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, section 3.4.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import NetError
from .packet_index import Array

SLOTS = 65_537
"""A prime, and the paper's smaller table: shares are within 1 % for up to 655 back ends."""


class BadBackends(NetError):
    """The back ends or the size of the table are not allowed. Whoever configured them must change what is named."""

    code = "bad_backends"


@dataclass(frozen=True, eq=False)
class MaglevTable:
    """A table of slots, each of which names a back end. Equal back ends and weights give equal tables, in any order.

    Attributes:
        backends: the names, sorted; those of weight 0 have no slot.
        slots: (a prime number,) int32, into `backends`.
    """

    backends: tuple[str, ...]
    slots: Array

    @classmethod
    def of(cls, weights: Mapping[str, float], size: int = SLOTS) -> MaglevTable:
        """The table of back ends, each of which gets its weight's share of the slots.

        Args:
            weights: by name, 0 for a back end that is to get no flows.
            size: how many slots, a prime; at least 100 times the number of back ends keeps shares within 1 %.

        Raises:
            BadBackends: no back end has a weight, one has none that is allowed, or the size is no prime or too small.
        """
        backends = tuple(sorted(weights))
        for name in backends:
            if not (math.isfinite(weights[name]) and weights[name] >= 0):
                raise BadBackends(
                    f"the weight of {name!r} is {weights[name]}: give it a finite one that is not negative"
                )
        heaviest = max(weights.values(), default=0)
        if heaviest == 0:
            raise BadBackends("no back end has a weight above 0: give one to at least one of them")
        if size < len(backends) or not _is_prime(size):
            raise BadBackends(f"a table of {size} slots: take a prime of at least {100 * len(backends)}")
        return cls(backends, _filled(backends, [weights[name] / heaviest for name in backends], size))

    def lookup(self, hashes: Array) -> Array:
        """The back end of each flow: (n,) int32, into `backends`.

        Args:
            hashes: (n,) uint64, of the flows, evenly spread.
        """
        found: Array = self.slots[hashes % np.uint64(len(self.slots))]
        return found

    def shares(self) -> dict[str, float]:
        """The part of the slots that each back end has."""
        counts = np.bincount(self.slots, minlength=len(self.backends)) / len(self.slots)
        return dict(zip(self.backends, counts.tolist(), strict=True))

    def moved(self, to: MaglevTable) -> float:
        """The part of the slots that another table gives to another back end, though theirs is in both.

        It is disruption beyond what is needed: slots of back ends that left must move.

        Args:
            to: a table of the same size.
        """
        stay = np.isin(self.backends, [to.backends[row] for row in np.unique(to.slots)])
        before, after = np.array(self.backends)[self.slots], np.array(to.backends)[to.slots]
        return float((stay[self.slots] & (before != after)).mean())


def _filled(backends: tuple[str, ...], turns: list[float], size: int) -> Array:
    """Let each back end in turn take the first free slot of its own permutation of the slots, until none is free.

    Args:
        backends: the names; each one's permutation is drawn by hashes of its name.
        turns: how often each has its turn, of the rounds of the heaviest.
        size: how many slots.
    """
    slots = [-1] * size
    at, skips = [], []
    for name in backends:
        digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"maglev").digest()
        at.append(int.from_bytes(digest[:8]) % size)
        skips.append(int.from_bytes(digest[8:]) % (size - 1) + 1)
    credit = [0.0] * len(backends)
    free = size
    while True:
        for row, turn in enumerate(turns):
            credit[row] += turn
            if credit[row] < 1:
                continue
            credit[row] -= 1
            slot, skip = at[row], skips[row]
            while slots[slot] >= 0:
                slot = (slot + skip) % size
            slots[slot] = row
            at[row] = (slot + skip) % size
            free -= 1
            if not free:
                return np.array(slots, np.int32)


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % factor for factor in range(2, math.isqrt(number) + 1))

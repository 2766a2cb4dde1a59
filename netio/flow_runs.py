"""The packets of a batch sorted by flow, and by arrival within each: a run is the packets of one flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from .flow_key import FlowKeys
from .packet_index import Array


@dataclass(frozen=True, slots=True)
class Runs:
    """Where each flow's packets are.

    Attributes:
        order: (n,) int64, the packet in each place.
        start: (runs,) int64, the place of the first packet of each run.
        of_place: (n,) int64, the run of each place.
    """

    order: Array
    start: Array
    of_place: Array

    @classmethod
    def of(cls, keys: FlowKeys, hashes: Array) -> Self:
        """The runs of packets.

        Args:
            keys: of the packets, in the order of their arrival.
            hashes: (n,) uint64, of the keys.
        """
        # Values that hold their own place are sorted four times as fast as places by values.
        low = np.uint64((1 << max(1, (len(keys) - 1).bit_length())) - 1)
        packed = np.sort((hashes & ~low) | np.arange(len(keys), dtype=np.uint64))
        order = (packed & low).astype(np.int64)
        differs = _differs(keys.words, order)
        if (differs & (packed[1:] ^ packed[:-1] <= low)).any():
            # Two keys share the bits of their hashes by which they were sorted.
            order = np.lexsort(keys.words)
            differs = _differs(keys.words, order)
        return cls(order, *starts(np.append(np.ones(min(1, len(keys)), bool), differs)))

    @property
    def is_start(self) -> Array:
        marks = np.zeros(len(self.of_place), bool)
        marks[self.start] = True
        return marks


def starts(marks: Array) -> tuple[Array, Array]:
    """Where segments start, and the segment of each row: int64 each.

    Args:
        marks: (n,) bool, whether a segment starts with this row; the first does.
    """
    return np.flatnonzero(marks), np.cumsum(marks) - 1


def _differs(words: Array, order: Array) -> Array:
    """Whether each key but the first differs from the one before: (n - 1,) bool."""
    differs = np.zeros(max(0, len(order) - 1), bool)
    for word in words:
        placed = word[order]
        differs |= placed[1:] != placed[:-1]
    return differs

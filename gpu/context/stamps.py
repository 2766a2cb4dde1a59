"""Whose word counts: the last writer's, by version and then by writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...bus.columns import Array


@dataclass(frozen=True)
class Stamps:
    """By whom, and in which of their versions, things were written; version and writer 0 for what nobody has written.

    Attributes:
        version: (m,) uint64, from 1 on.
        writer: (m,) uint64.
    """

    version: Array
    writer: Array

    @classmethod
    def none(cls, count: int) -> Stamps:
        """Of what nobody has written."""
        return cls(np.zeros(count, np.uint64), np.zeros(count, np.uint64))

    @classmethod
    def joined(cls, parts: Sequence[Stamps]) -> Stamps:
        """All of them, one part after the other."""
        return cls(np.concatenate([part.version for part in parts]), np.concatenate([part.writer for part in parts]))

    def __len__(self) -> int:
        return len(self.version)

    def __getitem__(self, rows: Array | slice) -> Stamps:
        return Stamps(self.version[rows], self.writer[rows])

    def __setitem__(self, rows: Array | slice, stamps: Stamps) -> None:
        self.version[rows], self.writer[rows] = stamps.version, stamps.writer

    def same(self, other: Stamps) -> Array:
        """(m,) bool, which of them are those of the same place."""
        same: Array = (self.version == other.version) & (self.writer == other.writer)
        return same

    def after(self, other: Stamps) -> Array:
        """(m,) bool, which of them come later than those of the same place."""
        later: Array = (self.version > other.version) | ((self.version == other.version) & (self.writer > other.writer))
        return later

    def last(self, keys: Array) -> Array:
        """(m,) bool, the latest of each key, and of equal ones the first.

        Args:
            keys: (m,) int64, what each is about.
        """
        latest = np.ones(len(keys), bool)
        order = keys.argsort()
        same = np.diff(keys[order]) == 0
        if same.any():  # few are; only those are ordered
            rows = order[np.append(same, False) | np.append(False, same)]
            rows = rows[np.lexsort((-rows, self.writer[rows], self.version[rows], keys[rows]))]
            latest[rows[:-1]] = np.diff(keys[rows]) != 0
        return latest

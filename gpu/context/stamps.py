"""Whose word counts: the last writer's, by version and then by writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIGN = -(1 << 63)
"""The stamp of what nobody has written: version and writer 0, in the order below."""


@dataclass(frozen=True)
class Stamps:
    """By whom, and in which of their versions, things were written.

    Torch orders no unsigned numbers. What is kept here are u8 with the highest bit turned over, which int64 orders
    alike.

    Attributes:
        version: (m,) int64.
        writer: (m,) int64.
    """

    version: Tensor
    writer: Tensor

    @classmethod
    def of(cls, versions: Tensor, writers: Tensor) -> Stamps:
        """The stamps of u8 numbers, given as int64 of the same bits; versions begin at 1."""
        return cls(versions ^ SIGN, writers ^ SIGN)

    def __getitem__(self, rows: Tensor) -> Stamps:
        return Stamps(self.version[rows], self.writer[rows])

    def after(self, other: Stamps) -> Tensor:
        """(m,) bool, which of them come later than those of the same place."""
        return (self.version > other.version) | ((self.version == other.version) & (self.writer > other.writer))

    def last(self, keys: Tensor) -> Tensor:
        """(m,) bool, the latest of each key, and of equal ones the first.

        Args:
            keys: (m,) int64, what each is about.
        """
        import torch

        order = torch.argsort(self.writer, descending=True, stable=True)
        order = order[torch.argsort(self.version[order], descending=True, stable=True)]
        order = order[torch.argsort(keys[order], stable=True)]
        sorted_keys = keys[order]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = sorted_keys[1:] != sorted_keys[:-1]
        return torch.empty_like(first).scatter_(0, order, first)

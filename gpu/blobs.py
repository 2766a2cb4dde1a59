"""Rows of bytes as they lie in memory: one piece of data and where each row ends; an object a row for who asks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..bus.columns import OFFSET, Array


class Blobs:
    """A column of byte strings.

    Args:
        data: (m,) uint8, the rows one after the other.
        offsets: (n + 1,) uint32, rising: row i is `data[offsets[i] : offsets[i + 1]]`.
    """

    def __init__(self, data: Array, offsets: Array) -> None:
        self.data = data
        self.offsets = offsets

    @classmethod
    def of(cls, rows: Sequence[bytes]) -> Blobs:
        """Rows that are objects, copied into one piece."""
        offsets = np.zeros(len(rows) + 1, OFFSET)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.frombuffer(bytearray().join(rows), np.uint8), offsets)

    @classmethod
    def joined(cls, pieces: Sequence[Blobs]) -> Blobs:
        """The rows of all pieces, in their order; one piece is not copied."""
        if len(pieces) == 1:
            return pieces[0]
        offsets = np.zeros(sum(map(len, pieces)) + 1, OFFSET)
        np.cumsum(np.concatenate([np.diff(piece.offsets) for piece in pieces]), out=offsets[1:])
        data = [piece.data[piece.offsets[0] : piece.offsets[-1]] for piece in pieces]
        return cls(np.concatenate(data), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> Blobs:
        """Rows `start` to `stop`, of the same data."""
        return Blobs(self.data, self.offsets[start : stop + 1])

    @cached_property
    def rows(self) -> list[bytes]:
        """The rows as objects."""
        data = self.data.tobytes()
        return [data[start:end] for start, end in itertools.pairwise(self.offsets.tolist())]

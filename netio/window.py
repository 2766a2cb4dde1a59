"""Bytes at computed offsets, and the numbers in them. All reading of packets goes through here."""

from __future__ import annotations

from typing import Any

import numpy as np

from .packet_index import Array


class Window:
    """The same few bytes of many packets, and the numbers in them, big-endian unless they are called little.

    Args:
        rows: (n, width) uint8.
        xp: the array namespace of `rows`.
    """

    __slots__ = ("_rows", "_xp")

    def __init__(self, rows: Array, xp: Any) -> None:
        self._rows = rows
        self._xp = xp

    def __getitem__(self, rows: Any) -> Window:
        return Window(self._rows[rows], self._xp)

    def masked(self, have: Array) -> Window:
        """The same, 0 from byte `have` of each row on; `have` is (n,) int64."""
        inside = self._xp.arange(self._rows.shape[1]) < have[:, None]
        return Window(self._rows * inside, self._xp)

    def u8(self, at: int) -> Array:
        """(n,) uint8, the bytes at `at`."""
        column: Array = self._rows[:, at]
        return column

    def u16(self, at: int) -> Array:
        """(n,) uint16, the numbers that begin at byte `at`."""
        return self._number(at, 2)

    def u32(self, at: int) -> Array:
        """(n,) uint32, the numbers that begin at byte `at`."""
        return self._number(at, 4)

    def u64(self, at: int) -> Array:
        """(n,) uint64, the numbers that begin at byte `at`."""
        return self._number(at, 8)

    def little_u16(self, at: int) -> Array:
        """(n,) uint16, the little-endian numbers that begin at byte `at`."""
        return self._number(at, 2, "<")

    def little_u32(self, at: int) -> Array:
        """(n,) uint32, the little-endian numbers that begin at byte `at`."""
        return self._number(at, 4, "<")

    def _number(self, at: int, size: int, order: str = ">") -> Array:
        if self._xp is np:
            number: Array = self._rows[:, at : at + size].view(f"{order}u{size}")[:, 0]
            return number.astype(f"u{size}")
        places = range(at, at + size) if order == ">" else range(at + size - 1, at - 1, -1)
        number = self._rows[:, places[0]].astype(f"u{size}")
        for place in places[1:]:
            number = number << 8 | self._rows[:, place]
        return number


def window(blob: Array, at: Array, width: int, xp: Any) -> Window:
    """The `width` bytes of `blob` from each offset `at` on, copied; anything where the blob has ended.

    Args:
        blob: (m,) uint8.
        at: (n,) int64, offsets of 0 and more.
        width: bytes a row.
        xp: the array namespace of `blob`.
    """
    room = len(blob) - width + 1
    if xp is np and room > 0 and int(at.max(initial=0)) < room:
        # A void type of stride 1 lets NumPy copy each row as one piece: 11 ns, against 54 for a gather of single bytes.
        every = np.ndarray((room,), np.dtype((np.void, width)), blob, 0, (1,))
        return Window(every[at].view(np.uint8).reshape(-1, width), xp)
    places = at[:, None] + xp.arange(width)
    if not len(blob):
        return Window(xp.zeros(places.shape, xp.uint8), xp)
    return Window(blob[xp.minimum(places, len(blob) - 1)], xp)

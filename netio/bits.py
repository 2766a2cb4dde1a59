"""Sets as rows of bits: (rows, words) uint64, member 64 w + b in bit b of word w: the lowest bit is the first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from .packet_index import Array

WORD = 64
BLOCK_WORDS = 1 << 17
"""Words worked on at once where pairs of rows are looked at: 1 MiB."""


def words_of(members: int) -> int:
    """How many words hold that many members; at least one."""
    return max(1, -(-members // WORD))


def packed(flags: Array) -> Array:
    """Rows of booleans, (rows, members), as rows of bits."""
    rows, members = flags.shape
    padded = np.zeros((rows, words_of(members) * WORD), bool)
    padded[:, :members] = flags
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def lowest(words: Array) -> Array:
    """The lowest set bit of words that are not 0: int64."""
    # A power of two is exact in float64, and its exponent is the bit: NumPy before 2.0 has no count of bits.
    return ((words & (~words + np.uint64(1))).astype(np.float64).view(np.int64) >> 52) - 1023


def first(rows: Array) -> Array:
    """The first member of each set, -1 of an empty one: int64, of the shape of `rows` but its last axis."""
    word = (rows != 0).argmax(axis=-1)
    value = np.take_along_axis(rows, word[..., None], axis=-1)[..., 0]
    member = word * WORD + lowest(np.where(value == 0, np.uint64(1), value))
    return np.where(value == 0, -1, member)


def distinct(rows: Array) -> tuple[Array, Array]:
    """The distinct sets among `rows`.

    Returns:
        (rows,) int32, the number of each row's set, and the sets.
    """
    table, sets = cross(rows, np.full((1, rows.shape[1]), ~np.uint64(0)))
    return table[:, 0], sets


def cross(left: Array, right: Array) -> tuple[Array, Array]:
    """The distinct intersections of a set of `left` and one of `right`.

    They are told apart by a hash and then compared, so equal numbers are equal sets, whatever the sets are.

    Returns:
        (left, right) int32, the number of each pair's intersection, and the intersections.
    """
    pairs = len(left) * len(right)
    for attempt in itertools.count():
        factors = np.random.default_rng(attempt).integers(1 << 63, dtype=np.uint64, size=left.shape[1]) | np.uint64(1)
        hashes = np.empty(pairs, np.uint64)
        for at, block in _intersections(left, right):
            mixed = (block ^ (block >> np.uint64(32))) * factors
            hashes[at] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=-1).reshape(-1)
        _, where, numbers = np.unique(hashes, return_index=True, return_inverse=True)
        sets = left[where // len(right)] & right[where % len(right)]
        numbers = numbers.reshape(-1).astype(np.int32)
        if all(
            np.array_equal(block.reshape(-1, left.shape[1]), sets[numbers[at]])
            for at, block in _intersections(left, right)
        ):
            break
    return numbers.reshape(len(left), len(right)), sets


def _intersections(left: Array, right: Array) -> Iterator[tuple[slice, Array]]:
    """Blocks of rows of `left` with all of `right`: which pairs they are, and (rows, right, words) uint64."""
    step = max(1, BLOCK_WORDS // right.size)
    for start in range(0, len(left), step):
        block = left[start : start + step, None] & right[None]
        yield slice(start * len(right), (start + len(block)) * len(right)), block

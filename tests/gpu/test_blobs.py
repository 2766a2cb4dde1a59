"""Byte strings in one piece: cut, joined, and as objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.columns import Field
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.blobs import Blobs
from aikoryu.gpu.device import Device

ROWS = st.lists(st.binary(max_size=5), max_size=8)


@given(ROWS)
def test_rows_come_back(rows: list[bytes]) -> None:
    blobs = Blobs.of(rows)
    assert (blobs.rows, len(blobs), blobs.offsets.dtype) == (rows, len(rows), np.uint32)


@given(ROWS, st.integers(0, 8), st.integers(0, 8))
def test_parts_are_those_of_a_list(rows: list[bytes], start: int, stop: int) -> None:
    start, stop = min(start, len(rows)), min(stop, len(rows))
    if start <= stop:
        assert Blobs.of(rows).part(start, stop).rows == rows[start:stop]


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 2))
def test_pieces_and_their_parts_are_joined(pieces: list[list[bytes]], start: int) -> None:
    blobs = [Blobs.of(piece) for piece in pieces]
    assert Blobs.joined(blobs).rows == [row for piece in pieces for row in piece]
    cut = [each.part(min(start, len(each)), len(each)) for each in blobs]
    assert Blobs.joined(cut).rows == [row for piece in pieces for row in piece[start:]]


def test_one_piece_is_not_copied() -> None:
    blobs = Blobs.of([b"ab", b"c"])
    assert Blobs.joined([blobs]) is blobs


@pytest.mark.parametrize("column", [Blobs.of([b"a", b"", b"bc"]), [b"a", b"", b"bc"]])
def test_batch_gives_a_column_packed_and_as_objects(column: Blobs | list[bytes]) -> None:
    batch = Batch(3, (("x", Field("bin")),), {"x": column}, None, np.ones(3, bool), Device("cpu", 1))
    packed = batch.packed("x")
    assert (packed.data.tobytes(), packed.offsets.tolist()) == (b"abc", [0, 1, 1, 3])
    assert batch["x"] == [b"a", b"", b"bc"]
    assert batch.part(1, 3).packed("x").rows == [b"", b"bc"]

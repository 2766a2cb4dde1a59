"""Shared memory: arrays over it, and where an array lies in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from aikoryu.gpu.slab import ALIGN, Slab, align


@pytest.fixture
def slab() -> Iterator[Slab]:
    made = Slab.create(4096)
    yield made
    made.close()


def test_array_shares_the_slabs_memory(slab: Slab) -> None:
    array = slab.array(64, np.dtype("<f4"), (2, 3))
    array[...] = 1.5
    assert bytes(slab.view[64:88]) == np.full(6, 1.5, "<f4").tobytes()
    assert bytes(slab.view[88:92]) == bytes(4)


def test_two_maps_of_one_descriptor_see_the_same_bytes(slab: Slab) -> None:
    other = Slab(os.dup(slab.fd), slab.size_bytes)
    other.view[:5] = b"hello"
    assert bytes(slab.view[:5]) == b"hello"
    other.close()


def test_memory_in_the_slab_is_found_where_it_lies(slab: Slab) -> None:
    whole = slab.array(128, np.dtype("<i4"), (8, 2))
    assert slab.offset_of(whole.ctypes.data, whole.nbytes) == 128
    assert slab.offset_of(whole[3:].ctypes.data, 40) == 128 + 3 * 8


def test_memory_elsewhere_is_not_found(slab: Slab) -> None:
    assert slab.offset_of(np.zeros(8, np.int32).ctypes.data, 32) is None
    assert slab.offset_of(slab.address - 1, 4) is None
    assert slab.offset_of(slab.address + slab.size_bytes - 1, 2) is None


def test_empty_array_fits_anywhere(slab: Slab) -> None:
    assert slab.array(4096, np.dtype("<f8"), (3, 0)).shape == (3, 0)


@pytest.mark.parametrize(("offset", "expected"), [(0, 0), (1, ALIGN), (ALIGN, ALIGN), (ALIGN + 1, 2 * ALIGN)])
def test_align_rounds_up(offset: int, expected: int) -> None:
    assert align(offset) == expected


def test_slab_closed_twice_closes_nobody_elses_file(slab: Slab) -> None:
    fd = slab.fd
    slab.close()
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, fd)  # the number is in use again
    slab.close()
    for number in {other, fd}:
        os.close(number)

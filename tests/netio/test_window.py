"""Numbers at any offset, by NumPy's way and by the one of other namespaces."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from aikoryu.netio.window import window

BLOB = np.arange(200, 240, dtype=np.uint8)
OTHER = types.SimpleNamespace(arange=np.arange, minimum=np.minimum, zeros=np.zeros, uint8=np.uint8)


@pytest.mark.parametrize("xp", [np, OTHER])
def test_numbers_of_both_byte_orders(xp: Any) -> None:
    at = np.array([0, 3, 31], np.int64)
    rows = window(BLOB, at, 9, xp)
    parts = [BLOB[place + 1 :].tobytes() for place in at]
    assert rows.u8(1).tolist() == [part[0] for part in parts]
    for size, read in ((2, rows.u16), (4, rows.u32), (8, rows.u64)):
        assert read(1).dtype == np.dtype(f"u{size}")
        assert read(1).tolist() == [int.from_bytes(part[:size], "big") for part in parts]
    for size, read in ((2, rows.little_u16), (4, rows.little_u32)):
        assert read(1).dtype == np.dtype(f"u{size}")
        assert read(1).tolist() == [int.from_bytes(part[:size], "little") for part in parts]


@pytest.mark.parametrize("xp", [np, OTHER])
@pytest.mark.parametrize("blob", [BLOB, BLOB[:3], BLOB[:0]])
def test_what_lies_behind_the_blob_is_masked(xp: Any, blob: Any) -> None:
    at = np.array([0, 2, 39, 10**6], np.int64)
    rows = window(blob, at, 4, xp).masked(np.maximum(len(blob) - at, 0))
    assert [rows.u8(i).tolist() for i in range(4)] == [
        [int(blob[place + i]) if place + i < len(blob) else 0 for place in at] for i in range(4)
    ]

"""Which of several words about the same thing is the last."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.gpu.context.stamps import Stamps

HIGHEST = (1 << 64) - 1
rows = st.lists(
    st.tuples(st.integers(-1, 5), st.sampled_from([1, 2, 1 << 63, HIGHEST]), st.sampled_from([0, 1, HIGHEST])),
    max_size=30,
)


@given(rows=rows)
def test_the_last_of_each_key_is_the_greatest_and_of_equals_the_first(rows: list[tuple[int, int, int]]) -> None:
    keys = np.array([key for key, _, _ in rows], np.int64)
    stamps = Stamps(*(np.array([row[place] for row in rows], np.uint64) for place in (1, 2)))
    best: dict[int, tuple[tuple[int, int], int]] = {}
    for number, (key, *stamp) in enumerate(rows):
        if key not in best or tuple(stamp) > best[key][0]:
            best[key] = ((stamp[0], stamp[1]), number)
    expected = {number for _, number in best.values()}
    assert set(stamps.last(keys).nonzero()[0].tolist()) == expected

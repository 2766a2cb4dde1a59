"""Choosing without a worker: least loaded of those that suit best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.agents.choice import least_loaded

SIMILARITY = np.array([0.9, 0.8, 0.7, 0.1], np.float32)


def test_least_loaded_of_the_most_similar() -> None:
    load = np.array([3.0, 1.0, 2.0, 0.0])
    assert least_loaded(SIMILARITY, load, shortlist=3) == 1
    assert least_loaded(SIMILARITY, load, shortlist=1) == 0
    assert least_loaded(SIMILARITY, load) == 3


def test_shortlist_is_eight_by_default() -> None:
    similarity, load = np.arange(10.0)[::-1], np.arange(10.0)[::-1]
    assert least_loaded(similarity, load) == 7


def test_of_equal_loads_the_more_similar_then_the_first() -> None:
    assert least_loaded(SIMILARITY[::-1], np.ones(4)) == 3
    assert least_loaded(np.ones(4), np.ones(4)) == 0


@pytest.mark.parametrize(("need", "found"), [(0, 0), (1, 0), (2, 1), (3, 2), (1 << 63, 3), (4, -1)])
def test_agent_has_all_that_is_needed(need: int, found: int) -> None:
    capabilities = np.array([1, 2, 3, 1 << 63], np.uint64)
    assert least_loaded(SIMILARITY, np.zeros(4), need=need, capabilities=capabilities) == found


def test_agent_without_room_gets_nothing() -> None:
    assert least_loaded(SIMILARITY, np.zeros(4), capacity=np.array([0, 0, 1, 1], np.uint32)) == 2
    assert least_loaded(SIMILARITY, np.zeros(4), capacity=np.zeros(4, np.uint32)) == -1


def test_agent_of_whom_nothing_is_known_gets_nothing() -> None:
    similarity = np.array([np.nan, 0.2, 0.1])
    assert least_loaded(similarity, np.array([0.0, np.nan, 5.0])) == 2
    assert least_loaded(np.array([]), np.array([])) == -1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 1)), max_size=30),
    st.integers(0, 3),
    st.integers(1, 10),
)
def test_as_sorting_says(agents: list[tuple[int, int, int, int]], need: int, shortlist: int) -> None:
    able = [
        (-similarity, number, load)
        for number, (similarity, load, bits, room) in enumerate(agents)
        if bits & need == need and room
    ]
    best = sorted(able)[:shortlist]
    expected = min(best, key=lambda one: (one[2], one[0], one[1]))[1] if best else -1
    similarity, load, bits, room = (np.array([one[column] for one in agents]) for column in range(4))
    assert (
        least_loaded(
            similarity.astype(np.float32),
            load.astype(np.float32),
            need=need,
            capabilities=bits.astype(np.uint64),
            capacity=room.astype(np.uint32),
            shortlist=shortlist,
        )
        == expected
    )

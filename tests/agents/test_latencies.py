"""Latencies: quantiles as those of the list, within the width of a class."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.agents.latencies import Latencies


@given(st.lists(st.integers(0, 86_400 * 10**9), min_size=1, max_size=50), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_quantiles_are_those_of_the_list(latencies: list[int], share: float) -> None:
    counted = Latencies()
    for latency in latencies:
        counted.add(latency)
    exact = float(np.quantile(np.maximum(latencies, 1), share, method="inverted_cdf")) / 1e9
    assert abs(counted.quantile_s(share) - exact) <= 0.011 * exact + 2e-9
    assert (counted.count, counted.longest_ns) == (len(latencies), max(latencies))


def test_of_none_there_is_none() -> None:
    assert Latencies().quantile_s(0.5) == 0.0

"""Graphs that fail are left alone, for longer each time."""

from __future__ import annotations

import pytest

from aikoryu.gpu.context.rests import FIRST_S, LATEST_S, STEADY_S, Rests


def test_rests_double_up_to_the_longest() -> None:
    rests, now, lasted = Rests(), 0.0, []
    assert rests.left_s("team", now) == 0
    for _ in range(12):
        rests.failed("team", now)
        lasted.append(rests.left_s("team", now))
        now += lasted[-1]
        assert rests.left_s("team", now) == 0
    assert lasted[:4] == pytest.approx([FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S])
    assert lasted[-2:] == [LATEST_S, LATEST_S]
    assert rests.left_s("other", now) == 0


def test_after_a_steady_time_a_failure_is_the_first_again() -> None:
    rests = Rests()
    rests.failed("team", 0.0)
    rests.failed("other", 0.0)
    rests.failed("team", FIRST_S)
    rests.failed("team", FIRST_S + 2 * FIRST_S + STEADY_S)
    assert rests.left_s("team", FIRST_S + 2 * FIRST_S + STEADY_S) == pytest.approx(FIRST_S)
    assert list(rests._rests) == ["team"]  # what did not fail for long is not kept

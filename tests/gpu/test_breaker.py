"""The circuit breaker, driven with numbers."""

from __future__ import annotations

import timeit

from hypothesis import given
from hypothesis import strategies as st

from aikoryu.gpu.breaker import Breaker, BreakerLimits, State

LIMITS = BreakerLimits(failures=3, window_s=10.0, cool_s=5.0)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(LIMITS)
    for _ in range(3):
        breaker.failed(at)
    return breaker


def test_closed_lets_everything_through_until_failures_fill_the_window() -> None:
    breaker = Breaker(LIMITS)
    breaker.failed(0.0)
    breaker.failed(1.0)
    assert breaker.admits(1.0)
    breaker.failed(2.0)
    assert not breaker.admits(2.0)
    assert (breaker.state, breaker.opened) == (State.OPEN, 1)


def test_failures_far_apart_open_nothing() -> None:
    breaker = Breaker(LIMITS)
    for n in range(20):
        breaker.failed(5.1 * n)
    assert breaker.state is State.CLOSED


def test_successes_do_not_hide_failures_of_the_window() -> None:
    breaker = Breaker(LIMITS)
    for n in range(3):
        breaker.failed(float(n))
        breaker.succeeded()
    assert breaker.state is State.OPEN


def test_after_the_pause_one_batch_is_tried() -> None:
    breaker = opened()
    assert not breaker.admits(4.9)
    assert breaker.admits(5.0)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.admits(5.1), "its end is waited for"


def test_trial_that_succeeds_closes_and_forgets() -> None:
    breaker = opened()
    assert breaker.admits(5.0)
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    breaker.failed(5.1)
    breaker.failed(5.2)
    assert breaker.admits(5.3)


def test_trial_that_fails_opens_again_for_the_whole_pause() -> None:
    breaker = opened()
    assert breaker.admits(6.0)
    breaker.failed(7.0)
    assert breaker.opened == 2
    assert not breaker.admits(11.9)
    assert breaker.admits(12.0)


def test_trial_that_never_ends_is_followed_by_another() -> None:
    breaker = opened()
    assert breaker.admits(5.0)
    assert not breaker.admits(9.9)
    assert breaker.admits(10.0)


def test_batch_that_was_running_when_it_opened_does_not_close_it() -> None:
    breaker = opened()
    breaker.succeeded()
    assert not breaker.admits(1.0)


@given(st.lists(st.tuples(st.sampled_from(["admits", "failed", "succeeded"]), st.floats(0, 4)), max_size=60))
def test_open_lets_at_most_one_batch_through_a_pause(steps: list[tuple[str, float]]) -> None:
    breaker, now, trials = opened(), 0.0, [-100.0]
    for step, passed in steps:
        now += passed
        if breaker.state is State.CLOSED:
            break
        if step == "admits" and breaker.admits(now):
            assert now - trials[-1] >= LIMITS.cool_s
            trials.append(now)
        elif step == "failed":
            breaker.failed(now)
        elif step == "succeeded":
            breaker.succeeded()


def test_closed_costs_a_batch_less_than_a_microsecond() -> None:
    breaker = Breaker(LIMITS)

    def batch() -> None:
        breaker.admits(1.0)
        breaker.succeeded()

    assert min(timeit.repeat(batch, number=2000, repeat=7)) / 2000 < 1e-6

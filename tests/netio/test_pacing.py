"""Pacing: never early, never drifting, and the totals right, whatever the plan and however the clock is looked at."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.pacing import SECOND_NS, Pacer, Plan, Run, Speed, Unit
from aikoryu.netio.packet_index import Array

START_NS = 7_000_000_000_123

items = st.lists(st.tuples(st.integers(-50, 10**9), st.integers(0, 12_000)), min_size=1, max_size=40)
speeds = st.one_of(
    st.builds(Speed, st.sampled_from([Unit.TIMES, Unit.ITEMS_S]), st.floats(0.01, 1e6)),
    st.builds(Speed, st.just(Unit.BITS_S), st.floats(1e3, 1e10)),
    st.just(Speed(Unit.TOP)),
)
plans = st.builds(
    Plan,
    speed=speeds,
    loops=st.integers(1, 4),
    delay_s=st.sampled_from([0.0, 0.25, 3.0]),
    limit=st.sampled_from([0, 1, 5, 1000]),
    most=st.integers(1, 64),
)


def columns(recorded: list[tuple[int, int]]) -> tuple[Array, Array]:
    return np.array([time for time, _ in recorded], np.int64), np.array([bits for _, bits in recorded], np.int64)


def exact(recorded: list[tuple[int, int]], plan: Plan, loop: int, row: int) -> Fraction:
    """When an item is due after the start, ns, by the plan's own words."""
    speed, value = plan.speed, Fraction(plan.speed.value)
    if speed.unit is Unit.TIMES:
        times = [max(time for time, _ in recorded[: end + 1]) - recorded[0][0] for end in range(len(recorded))]
        offsets = [max(0, time) / value for time in times]
        span = offsets[-1]
    elif speed.unit is Unit.TOP:
        offsets, span = [Fraction(0)] * len(recorded), Fraction(0)
    else:
        sizes = [bits if speed.unit is Unit.BITS_S else 1 for _, bits in recorded]
        offsets = [sum(sizes[:before]) * SECOND_NS / value for before in range(len(sizes))]
        span = sum(sizes) * SECOND_NS / value
    return loop * (span + Fraction(plan.delay_s) * SECOND_NS) + offsets[row]


def played(pacer: Pacer, late: list[int]) -> list[tuple[int, Run]]:
    """Look at the clock as often as the pacer asks for it, each time late by another of these, ns."""
    pacer.begin(START_NS)
    runs: list[tuple[int, Run]] = []
    now = START_NS
    while (at := pacer.next_at()) is not None:
        now = max(now, at + late[len(runs) % len(late)])
        runs.append((now, pacer.due(now)))
        assert len(runs) < 10_000, "it does not end"
    return runs


@given(items, plans, st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_nothing_is_early_and_every_item_leaves_once(
    recorded: list[tuple[int, int]], plan: Plan, late: list[int]
) -> None:
    pacer = Pacer(*columns(recorded), plan)
    runs = played(pacer, late)
    sent = [(run.loop, run.first + step) for _, run in runs for step in range(run.size)]
    every = [(loop, row) for loop in range(plan.loops) for row in range(len(recorded))]
    assert sent == every[: plan.limit or None]
    assert max(run.size for _, run in runs) <= plan.most
    for now, run in runs:
        last = exact(recorded, plan, run.loop, run.first + run.size - 1)
        assert now - START_NS >= last * (1 - Fraction(1, 2**50))
    assert pacer.paced.sent == len(sent)
    assert pacer.paced.bits == sum(recorded[row][1] for _, row in sent)


@given(items, plans)
def test_who_looks_in_time_sends_in_time(recorded: list[tuple[int, int]], plan: Plan) -> None:
    pacer = Pacer(*columns(recorded), plan)
    runs = played(pacer, [0])
    for now, run in runs:
        due = exact(recorded, plan, run.loop, run.first)
        assert now - START_NS <= due * (1 + Fraction(1, 2**50)) + 1
    assert pacer.paced.late == 0
    assert pacer.paced.worst_ns <= 1


@given(st.integers(1, 10**6), st.integers(0, 10**9))
def test_being_late_delays_nothing_that_is_due_afterwards(rate: int, late: int) -> None:
    pacer = Pacer(np.zeros(100, np.int64), np.zeros(100, np.int64), Plan(Speed(Unit.ITEMS_S, rate)))
    pacer.begin(START_NS)
    assert pacer.due(START_NS + late).size == min(100, late * rate // SECOND_NS + 1)
    at = pacer.next_at()
    if at is not None:
        sent = pacer.paced.sent
        assert at == START_NS + math.ceil(Fraction(sent * SECOND_NS, rate))


def test_a_day_of_odd_intervals_ends_when_it_should() -> None:
    rate, loops = 7.0, 600_000
    pacer = Pacer(np.zeros(1, np.int64), np.zeros(1, np.int64), Plan(Speed(Unit.ITEMS_S, rate), loops=loops))
    last = (loops - 1) * pacer.period_ns
    assert abs(last - Fraction(loops - 1) * SECOND_NS / 7) < 1


def test_what_was_missed_is_counted() -> None:
    pacer = Pacer(np.arange(10) * 10_000_000, np.full(10, 8), Plan())
    pacer.begin(0)
    run = pacer.due(31_500_000)
    assert run == Run(0, 0, 4)
    assert (pacer.paced.late, pacer.paced.worst_ns, pacer.paced.last_ns) == (4, 31_500_000, 1_500_000)
    pacer.due(40_000_000)
    assert (pacer.paced.late, pacer.paced.last_ns, pacer.paced.seconds) == (4, 0, 0.04)


def test_a_duration_ends_it() -> None:
    plan = Plan(Speed(Unit.ITEMS_S, 10), loops=0, duration_s=1.0)
    pacer = Pacer(np.zeros(3, np.int64), np.zeros(3, np.int64), plan)
    runs = played(pacer, [0])
    assert sum(run.size for _, run in runs) == 10
    assert runs[-1][0] == START_NS + 900_000_000


def test_what_a_duration_left_behind_is_counted() -> None:
    plan = Plan(Speed(Unit.ITEMS_S, 10), loops=0, duration_s=1.0)
    pacer = Pacer(np.zeros(3, np.int64), np.zeros(3, np.int64), plan)
    pacer.begin(0)
    assert pacer.due(450_000_000).size == 3
    assert pacer.due(450_000_000).size == 2
    assert pacer.due(SECOND_NS).size == 0
    assert (pacer.next_at(), pacer.paced.unsent) == (None, 5)


def test_top_speed_ends_with_its_duration() -> None:
    pacer = Pacer(np.zeros(3, np.int64), np.zeros(3, np.int64), Plan(Speed(Unit.TOP), loops=0, duration_s=2.0))
    pacer.begin(0)
    assert pacer.due(2 * SECOND_NS - 1).size == 3
    assert pacer.due(2 * SECOND_NS).size == 0
    assert (pacer.next_at(), pacer.paced.late, pacer.paced.unsent) == (None, 0, 0)


def test_nothing_recorded_is_nothing_due() -> None:
    pacer = Pacer(np.zeros(0, np.int64), np.zeros(0, np.int64), Plan(loops=0))
    pacer.begin(0)
    assert pacer.next_at() is None


@pytest.mark.parametrize(
    ("text", "speed"),
    [
        ("1x", Speed(Unit.TIMES, 1)),
        ("0.5x", Speed(Unit.TIMES, 0.5)),
        ("frames=1000/s", Speed(Unit.ITEMS_S, 1000)),
        ("pps=1e6", Speed(Unit.ITEMS_S, 1e6)),
        ("mbit=2.5/s", Speed(Unit.BITS_S, 2.5e6)),
        ("max", Speed(Unit.TOP)),
    ],
)
def test_speeds_are_typed(text: str, speed: Speed) -> None:
    assert Speed.parse(text) == speed


@pytest.mark.parametrize("text", ["", "0x", "x", "-1x", "pps=", "pps=0", "1", "fast", "mbit=1/min", "1e999x"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 1x"):
        Speed.parse(text)

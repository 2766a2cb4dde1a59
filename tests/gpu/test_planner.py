"""The planner, driven with numbers: times are seconds on a clock that only the test moves."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict, deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aikoryu.bus.errors import Busy
from aikoryu.gpu.lane import AGING_S, Lane
from aikoryu.gpu.plan import Limits, Place, Plan, Span, Ticket
from aikoryu.gpu.planner import LEAST_PACED_ROWS, Planner

NEVER = float("inf")
LOAD_S = 0.2
LIMITS = Limits(window_s=0.01, max_rows=100, max_bytes=10_000, target_s=1.0, queue_rows=1000, queue_bytes=100_000)


def planner(slots: int = 2, **changes: float) -> Planner:
    return Planner(replace(LIMITS, **changes), Place("cpu", slots))  # type: ignore[arg-type]


def offer(
    to: Planner,
    rows: int = 1,
    *,
    lane: str = "a",
    now: float = 0.0,
    deadline: float = NEVER,
    priority: int = 0,
    row_bytes: int = 1,
    frame: object = None,
    lane_rows: int = 1 << 16,
    client: int = 0,
) -> Ticket:
    ticket = Ticket(frame, to.lane(lane, lane_rows), rows, row_bytes, priority, now, deadline, client)
    assert to.offer(ticket, now) == []
    return ticket


def keep_busy(p: Planner, batches: int = 1) -> list[Plan]:
    """Occupy slots with batches of a lane of its own."""
    plans = []
    for _ in range(batches):
        offer(p, LIMITS.max_rows, lane="busy")
        plans += p.due(0.0)
    assert p.running == batches
    return plans


def runs(plan: Plan) -> list[tuple[int, int]]:
    return [(span.start, span.count) for span in plan.spans]


def rows_of(spans: list[Span]) -> list[int]:
    return [row for span in spans for row in range(span.start, span.start + span.count)]


def assert_empty(p: Planner) -> None:
    assert (p.waiting_rows, p.waiting_bytes) == (0, 0)
    assert all((lane.rows, lane.bytes) == (0, 0) for lane in p.lanes.values())
    assert not any(queue for lane in p.lanes.values() for queue in lane.queues.values())


class TestWhen:
    def test_idle_engine_dispatches_at_once(self) -> None:
        p = planner()
        offer(p, 1, now=5.0)
        (plan,) = p.due(5.0)
        assert plan.rows == 1
        assert_empty(p)

    def test_frames_that_wait_together_leave_together(self) -> None:
        p = planner()
        first, second = offer(p, 2), offer(p, 3)
        (plan,) = p.due(0.0)
        assert [(s.ticket, s.start, s.count) for s in plan.spans] == [(first, 0, 2), (second, 0, 3)]

    def test_busy_engine_with_a_free_slot_collects_until_the_window_has_passed(self) -> None:
        p = planner()
        keep_busy(p)
        offer(p, now=1.0)
        assert p.due(1.0) == []
        assert p.due(1.009) == []
        assert len(p.due(1.010)) == 1

    def test_window_opens_at_first_row(self) -> None:
        p = planner()
        keep_busy(p)
        offer(p, now=1.0)
        offer(p, now=1.009)
        assert p.next_deadline() == pytest.approx(1.010)
        (plan,) = p.due(1.010)
        assert plan.rows == 2

    def test_window_opens_anew_at_the_oldest_row_left_behind(self) -> None:
        p = planner(slots=3)
        keep_busy(p)
        offer(p, 60, now=1.000)
        offer(p, 60, now=1.004)
        (full,) = p.due(1.004)
        assert full.rows == 100
        assert p.due(1.013) == []
        (rest,) = p.due(1.014)
        assert rest.rows == 20

    def test_full_lane_does_not_wait_for_its_window(self) -> None:
        p = planner()
        keep_busy(p)
        offer(p, 99, now=1.0)
        assert p.due(1.0) == []
        offer(p, 1, now=1.0)
        (plan,) = p.due(1.0)
        assert plan.rows == 100

    def test_lane_full_of_bytes_does_not_wait_for_its_window(self) -> None:
        p = planner()
        keep_busy(p)
        offer(p, 9, now=1.0, row_bytes=1000)
        assert p.due(1.0) == []
        offer(p, 1, now=1.0, row_bytes=1000)
        (plan,) = p.due(1.0)
        assert plan.rows == 10

    def test_near_deadline_closes_the_window_early(self) -> None:
        p = planner()
        keep_busy(p)
        offer(p, now=1.0, deadline=1.015)
        assert p.next_deadline() == pytest.approx(1.005)
        assert p.due(1.004) == []
        (plan,) = p.due(1.0051)
        assert (plan.rows, plan.expired) == (1, [])

    def test_deadline_that_was_met_closes_no_later_window(self) -> None:
        p = planner(slots=3)
        keep_busy(p)
        offer(p, 100, now=1.0, deadline=1.005)
        offer(p, 1, now=1.0)
        assert [plan.rows for plan in p.due(1.0)] == [100]
        assert p.next_deadline() == pytest.approx(1.010)

    def test_nothing_starts_without_a_slot(self) -> None:
        p = planner()
        keep_busy(p, 2)
        offer(p, 100, now=1.0)
        assert p.due(100.0) == []
        assert p.next_deadline() is None

    def test_every_lane_collects_while_no_slot_is_free(self) -> None:
        p = planner()
        first, _ = keep_busy(p, 2)
        for n in range(5):
            offer(p, now=n)
            assert p.due(n) == []
        p.finished(first, 0.1)
        (plan,) = p.due(5.0)
        assert plan.rows == 5

    def test_slots_are_respected_and_given_back(self) -> None:
        p = planner(slots=3)
        for n in range(5):
            offer(p, 100, lane=str(n))
        plans = p.due(0.0)
        assert len(plans) == p.running == 3
        p.finished(plans[0], 0.1)
        assert len(p.due(0.0)) == 1
        assert p.running == 3

    def test_no_next_deadline_while_nothing_waits(self) -> None:
        assert planner().next_deadline() is None

    def test_lanes_are_never_mixed(self) -> None:
        p = planner()
        offer(p, 3, lane="a")
        offer(p, 4, lane="b")
        plans = p.due(1.0)
        assert sorted((plan.lane.key, plan.rows) for plan in plans) == [("a", 3), ("b", 4)]
        assert all(span.ticket.lane is plan.lane for plan in plans for span in plan.spans)


class TestHowMuch:
    def test_large_frame_is_split_over_batches_in_order(self) -> None:
        p = planner(slots=9)
        ticket = offer(p, 250)
        plans = [*p.due(0.0), *p.due(1.0)]
        assert [runs(plan) for plan in plans] == [[(0, 100)], [(100, 100)], [(200, 50)]]
        assert all(span.ticket is ticket for plan in plans for span in plan.spans)
        assert_empty(p)

    def test_operation_bounds_its_batches(self) -> None:
        p = planner()
        offer(p, 10, lane_rows=4)
        assert [plan.rows for plan in p.due(0.0)] == [4, 4]

    def test_batch_is_bounded_by_bytes(self) -> None:
        p = planner(slots=9)
        offer(p, 7, row_bytes=3000)
        assert [plan.rows for plan in [*p.due(0.0), *p.due(1.0)]] == [3, 3, 1]

    def test_bytes_of_different_frames_add_up(self) -> None:
        p = planner(slots=9)
        offer(p, 2, row_bytes=3000)
        offer(p, 2, row_bytes=5000)
        assert [runs(plan) for plan in [*p.due(0.0), *p.due(1.0)]] == [[(0, 2)], [(0, 2)]]

    def test_row_larger_than_a_batch_runs_alone(self) -> None:
        p = planner(slots=9)
        offer(p, 2, row_bytes=20_000)
        assert [plan.rows for plan in [*p.due(0.0), *p.due(1.0)]] == [1, 1]

    def test_batch_is_sized_for_its_target_time_at_the_measured_pace(self) -> None:
        p = planner(slots=9)
        offer(p, 100)
        (plan,) = p.due(0.0)
        p.finished(plan, 5.0)  # 50 ms a row: 20 rows a second
        offer(p, 100)
        assert p.due(0.0)[0].rows == 20

    def test_slow_pace_does_not_shrink_batches_until_each_row_pays_for_a_whole_one(self) -> None:
        p = planner()
        offer(p, 1)
        p.finished(p.due(0.0)[0], 60.0)
        offer(p, 50)
        assert p.due(0.0)[0].rows == LEAST_PACED_ROWS

    def test_pace_follows_the_newest_batches(self) -> None:
        p = planner()
        for run_s in (100.0, *[0.1] * 40):
            offer(p, 1)
            p.finished(p.due(0.0)[0], run_s)
        lane = p.lane("a", 1)
        assert lane.row_s == pytest.approx(0.1, rel=0.01)

    def test_batch_that_failed_says_nothing_of_the_pace(self) -> None:
        p = planner()
        offer(p, 10)
        p.finished(p.due(0.0)[0], 1.0)
        offer(p, 10)
        p.finished(p.due(0.0)[0], 0.0, whole=False)
        assert p.lane("a", 1).row_s == pytest.approx(0.1)
        assert p.running == 0

    @pytest.mark.parametrize("slots", [1, 2, 3])
    def test_batches_do_not_shrink_as_the_load_rises(self, slots: int) -> None:
        """Triton #7271: under rising load batches became smaller, and the device slower with each."""
        means = [mean_batch(rate, slots) for rate in (100, 1000, 5000, 20_000, 80_000)]
        assert all(later >= earlier * 0.999 for earlier, later in itertools.pairwise(means)), means
        assert means[0] < 2
        assert means[-1] > 50

    def test_device_that_serves_batches_faster_keeps_up_where_single_rows_would_not(self) -> None:
        # At 1 ms a batch and 10 µs a row, one by one would take twenty times as long.
        assert finish_s(20_000, slots=2) < LOAD_S + 0.02


def simulate(rate: float, slots: int) -> tuple[list[int], float]:
    """Single rows for `LOAD_S` at an even rate, on a device that takes 1 ms a batch and 10 µs a row, one at a time.

    Returns:
        Rows of each batch, and when the last had run, s.
    """
    p = Planner(Limits(window_s=0.001, max_rows=4096, queue_rows=1 << 20), Place("cpu", slots))
    arrivals = [n / rate for n in range(int(rate * LOAD_S))]
    device: deque[tuple[float, float, Plan]] = deque()  # end, time on the device, batch: in the order started
    sizes: list[int] = []
    now = free_at = 0.0
    next_arrival = 0
    while next_arrival < len(arrivals) or p.waiting_rows or device:
        for plan in p.due(now):
            run_s = 0.001 + 1e-5 * plan.rows
            free_at = max(free_at, now) + run_s
            device.append((free_at, run_s, plan))
            sizes.append(plan.rows)
        events = [arrivals[next_arrival]] if next_arrival < len(arrivals) else []
        events += [device[0][0]] if device else []
        wake = p.next_deadline()
        events += [max(wake, now + 1e-9)] if wake is not None else []
        now = max(now, min(events))
        while next_arrival < len(arrivals) and arrivals[next_arrival] <= now:
            offer(p, now=now)
            next_arrival += 1
        while device and device[0][0] <= now:
            _, run_s, plan = device.popleft()
            p.finished(plan, run_s)
    assert sum(sizes) == len(arrivals)
    return sizes, now


def mean_batch(rate: float, slots: int) -> float:
    sizes, _ = simulate(rate, slots)
    return sum(sizes) / len(sizes)


def finish_s(rate: float, slots: int) -> float:
    return simulate(rate, slots)[1]


class TestWhichFirst:
    def test_higher_priority_goes_first(self) -> None:
        p = planner(slots=1)
        offer(p, lane="low", priority=-1)
        offer(p, lane="normal")
        offer(p, lane="high", priority=1)
        order = []
        while plans := p.due(0.0):
            order += [plan.lane.key for plan in plans]
            p.finished(plans[0], 0.0)
        assert order == ["high", "normal", "low"]

    def test_higher_priority_goes_first_within_a_lane(self) -> None:
        p = planner()
        low, high = offer(p, 60, priority=-1), offer(p, 60, priority=1)
        (plan,) = p.due(0.0)
        assert [(span.ticket, span.count) for span in plan.spans] == [(high, 60), (low, 40)]

    def test_age_raises_priority(self) -> None:
        p = planner(slots=1)
        offer(p, lane="low", priority=-1, now=0.0)
        offer(p, lane="high", priority=1, now=2 * AGING_S + 1e-6)
        assert p.due(2 * AGING_S + 2e-6)[0].lane.key == "low"

    def test_age_below_a_step_raises_nothing(self) -> None:
        p = planner(slots=1)
        offer(p, lane="normal", now=0.0)
        offer(p, lane="high", priority=1, now=AGING_S * 0.9)
        assert p.due(AGING_S * 0.9)[0].lane.key == "high"

    @pytest.mark.parametrize("priority", [-1, 0])
    def test_low_priority_does_not_starve_at_saturation(self, priority: int) -> None:
        """vLLM #40004 and its opposite: urgent rows always first, but nobody waits for ever."""
        p = planner(slots=1)
        waiting = offer(p, lane="patient", priority=priority)
        now = 0.0
        while waiting.waiting:
            offer(p, 100, lane="urgent", priority=1, now=now)
            (plan,) = p.due(now)
            now += 0.02
            p.finished(plan, 0.02)
            assert now < 1.0, "the patient row is never served"
        assert now >= AGING_S, "priority meant nothing"

    def test_lanes_share_the_device_by_time_not_by_rows(self) -> None:
        p = planner(slots=1, target_s=0.1)
        cost_s = {"slow": 0.005, "fast": 0.001}
        used = dict.fromkeys(cost_s, 0.0)
        now = 0.0
        for _ in range(2000):
            for lane in cost_s:
                if p.lane(lane, 1 << 16).rows < 200:
                    offer(p, 200, lane=lane, now=now)
            (plan,) = p.due(now)
            lane = str(plan.lane.key)
            run_s = plan.rows * cost_s[lane]
            used[lane] += run_s
            now += run_s
            p.finished(plan, run_s)
        assert used["slow"] / used["fast"] == pytest.approx(1, rel=0.05)

    @pytest.mark.parametrize("lane", ["flood", "other"])
    def test_priority_holds_behind_a_long_backlog(self, lane: str) -> None:
        """vLLM #40004: rows that have waited long because they are many are not more urgent than an urgent one."""
        p = planner(slots=1)
        now = 0.0
        for _ in range(10):
            offer(p, 100, lane="flood", now=0.0)
        for _ in range(5):
            (plan,) = p.due(now)
            now += 0.15
            p.finished(plan, 0.15)
        urgent = offer(p, 1, lane=lane, now=now, priority=1)
        (plan,) = p.due(now)
        assert plan.spans[0].ticket is urgent

    def test_newcomer_starts_level_with_its_own_priority(self) -> None:
        p = planner(slots=1)
        for lane, run_s in (("urgent", 90.0), ("normal", 10.0)):
            offer(p, lane=lane, priority=lane == "urgent", lane_rows=1)
            p.finished(p.due(0.0)[0], run_s)
        offer(p, 10, lane="normal", lane_rows=1)
        offer(p, lane="urgent", priority=1)
        p.finished(p.due(0.0)[0], 0.01)
        served = []
        offer(p, 10, lane="newcomer", lane_rows=1)
        for _ in range(10):
            (plan,) = p.due(0.0)
            served.append(plan.lane.key)
            p.finished(plan, 1.0)
        assert served.count("newcomer") == pytest.approx(5, abs=1)

    def test_lane_that_was_away_hoards_no_time(self) -> None:
        p = planner(slots=1)
        for _ in range(50):
            offer(p, lane="steady")
            p.finished(p.due(0.0)[0], 1.0)
        served = []
        for _ in range(10):
            for lane in ("steady", "newcomer"):
                if not p.lane(lane, 1).rows:
                    offer(p, lane=lane)
            (plan,) = p.due(0.0)
            served.append(plan.lane.key)
            p.finished(plan, 1.0)
        assert 4 <= served.count("newcomer") <= 6


FLOOD = 1000


class Device:
    """An engine that takes 0.5 ms a batch and `row_s` a row, one batch at a time, on a clock of its own."""

    def __init__(self, p: Planner, row_s: float) -> None:
        self.p = p
        self.now = 0.0
        self.row_s = row_s
        self.free_at = 0.0
        self.running: deque[tuple[float, float, Plan]] = deque()
        self.rows: Counter[int] = Counter()  # served, by client
        self.used_s: dict[int, float] = defaultdict(float)  # time of the device they took
        self.waits: dict[int, list[float]] = defaultdict(list)  # from a frame's arrival to its end

    def pass_time(self, until: float) -> None:
        while self.now < until:
            for plan in self.p.due(self.now):
                run_s = 0.0005 + self.row_s * plan.rows
                self.free_at = max(self.free_at, self.now) + run_s
                self.running.append((self.free_at, run_s, plan))
            self.now = min(until, self.running[0][0] if self.running else until)
            while self.running and self.running[0][0] <= self.now:
                _, run_s, plan = self.running.popleft()
                self.p.finished(plan, run_s)
                for span in plan.spans:
                    client = span.ticket.client
                    self.rows[client] += span.count
                    self.used_s[client] += run_s * span.count / plan.rows
                    if not span.ticket.left:
                        self.waits[client].append(self.now - span.ticket.arrived)


def flood(p: Planner, now: float, rows: int = 512, lanes: int = 1) -> list[Span]:
    """Ask for more until the worker refuses, in turn in so many lanes."""
    displaced: list[Span] = []
    for number in itertools.count():
        lane = p.lane(f"flood {number % lanes}" if number % lanes else "a", 4096)
        try:
            displaced += p.offer(Ticket("flood", lane, rows, 64, 0, now, NEVER, FLOOD), now)
        except Busy:
            return displaced
    raise AssertionError


class TestClients:
    @pytest.mark.parametrize("row_s", [0.5e-6, 10e-6, 100e-6])
    @pytest.mark.parametrize("lanes", [1, 100])
    def test_client_that_floods_holds_others_up_by_few_short_batches(self, row_s: float, lanes: int) -> None:
        """One runs, one is staged, one is their own; each is held to a tenth of what a batch is sized for.

        Its other lanes may be level with theirs for another two.
        """
        p = Planner(Limits(), Place("cpu", 2))
        device = Device(p, row_s)
        while device.now < 2.0:
            for client in range(10):
                offer(p, 1, client=client, now=device.now)
            displaced = flood(p, device.now, lanes=lanes)
            assert not displaced, "it is refused, not let in and thrown out"
            device.pass_time(device.now + 0.01)
        assert p.waiting_rows <= 65536 / 2 + 512 + 10
        for client in range(10):
            late = sorted(device.waits[client][10:])
            assert late[-1] < (3.2 if lanes == 1 else 5.2) * (0.0005 + 0.1 * Limits().target_s)

    @pytest.mark.parametrize("slots", [1, 2])
    def test_client_with_many_lanes_has_no_more_of_the_device_than_one_with_one(self, slots: int) -> None:
        p = Planner(Limits(), Place("cpu", slots))
        device = Device(p, 10e-6)
        while device.now < 2.0:
            while p.lane("one", 4096).rows < 2000:
                offer(p, 100, client=1, lane="one", now=device.now)
            flood(p, device.now, lanes=50)
            device.pass_time(device.now + 0.01)
        assert device.used_s[FLOOD] == pytest.approx(device.used_s[1], rel=0.15)

    def test_lane_of_many_clients_has_more_of_the_device_than_that_of_one(self) -> None:
        p = Planner(Limits(), Place("cpu", 1))
        device = Device(p, 10e-6)
        while device.now < 2.0:
            for client in range(9):
                while client not in p.room.holdings or p.room.holdings[client].rows < 900:
                    offer(p, 100, client=client, lane="many", now=device.now)
            flood(p, device.now)
            device.pass_time(device.now + 0.01)
        many = [device.used_s[client] for client in range(9)]
        assert max(many) == pytest.approx(min(many), rel=0.1)
        assert device.used_s[FLOOD] < 1.5 * max(many)

    def test_client_that_comes_late_has_no_more_than_who_was_there(self) -> None:
        p = Planner(Limits(), Place("cpu", 1))
        device = Device(p, 10e-6)
        while device.now < 3.0:
            if device.now < 1.0:
                device.used_s.clear()
            else:
                while p.lane("late", 4096).rows < 8000:
                    offer(p, 100, client=1, lane="late", now=device.now)
            while p.lane("a", 4096).rows < 8000:
                offer(p, 100, client=FLOOD, now=device.now)
            device.pass_time(device.now + 0.005)
        assert device.used_s[1] < 1.3 * device.used_s[FLOOD]

    def test_lanes_that_wait_for_one_another_are_not_raised_above_urgent_rows(self) -> None:
        p = planner(slots=1)
        now = 0.0
        for lane in range(100):
            offer(p, 1, lane=str(lane), lane_rows=1)
        for _ in range(20):
            (plan,) = p.due(now)
            now += 0.05
            p.finished(plan, 0.05)
        urgent = offer(p, 1, lane="urgent", priority=1, now=now)
        assert p.due(now)[0].spans[0].ticket is urgent

    def test_client_alone_takes_whole_batches(self) -> None:
        p = Planner(Limits(), Place("cpu", 1))
        device = Device(p, 10e-6)
        while device.now < 1.0:
            flood(p, device.now)
            device.pass_time(device.now + 0.01)
        offer(p, 1, client=1, now=device.now)
        (_, _, plan) = device.running[0]
        assert plan.rows == 4096

    def test_part_of_a_batch_does_not_shrink_to_nothing_where_a_batch_costs_much(self) -> None:
        """A batch costs 0.2 s however many rows it has: fewer rows a client would help nobody."""
        p = planner(slots=1, max_rows=1000, queue_rows=10_000)
        now = 0.0
        sizes = []
        for _ in range(50):
            offer(p, 500, client=1, now=now)
            offer(p, 1, client=2, now=now)
            (plan,) = p.due(now)
            sizes.append(plan.rows)
            now += 0.2
            p.finished(plan, 0.2)
            while p.waiting_rows > 400:
                (plan,) = p.due(now)
                sizes.append(plan.rows)
                p.finished(plan, 0.2)
        assert sum(sizes) > 24 * len(sizes)

    def test_rows_that_leave_for_others_are_returned(self) -> None:
        p = planner(slots=0, queue_rows=100)
        kept, left = (offer(p, rows, client=FLOOD) for rows in (60, 40))
        ticket = Ticket(None, p.lane("b", 100), 30, 1, 0, 0.0, NEVER, 1)
        assert p.offer(ticket, 0.0) == [Span(left, 0, 40)]
        assert p.waiting_rows == 90
        assert p.withdraw(left, range(40)) == 0
        p.places[0].slots = 3
        assert {span.ticket for plan in [*p.due(0.0), *p.due(1.0)] for span in plan.spans} == {kept, ticket}
        assert_empty(p)

    def test_rows_of_a_frame_that_were_dispatched_do_not_leave(self) -> None:
        p = planner(slots=1, queue_rows=100)
        frame = offer(p, 200, client=FLOOD)
        (plan,) = p.due(0.0)
        assert p.offer(Ticket(None, p.lane("b", 100), 30, 1, 0, 0.0, NEVER, 1), 0.0) == [Span(frame, 100, 100)]
        assert runs(plan) == [(0, 100)]


class TestBounds:
    def test_queue_full_of_rows_is_busy_with_a_retry_after(self) -> None:
        p = planner(slots=0, queue_rows=10)
        offer(p, 6)
        with pytest.raises(Busy) as refused:
            offer(p, 5)
        assert refused.value.retry_after_s > 0
        assert p.waiting_rows == p.lane("a", 1).rows == 6
        offer(p, 4)

    def test_queue_full_of_bytes_is_busy(self) -> None:
        p = planner(slots=0, queue_bytes=1000)
        offer(p, 6, row_bytes=100)
        with pytest.raises(Busy):
            offer(p, 5, row_bytes=100)
        assert p.waiting_bytes == 600

    def test_retry_after_grows_with_what_waits_up_to_a_second(self) -> None:
        def retry_s(row_s: float) -> float:
            p = planner(queue_rows=100)
            offer(p, 1)
            p.finished(p.due(0.0)[0], row_s)
            p.places[0].slots = 0
            offer(p, 100)
            with pytest.raises(Busy) as refused:
                offer(p, 1)
            return refused.value.retry_after_s

        assert retry_s(1e-6) == 0.005
        assert retry_s(0.004) == pytest.approx(0.2)
        assert retry_s(60.0) == 1.0

    def test_room_comes_back_as_batches_leave(self) -> None:
        p = planner(queue_rows=100)
        offer(p, 100)
        p.due(0.0)
        offer(p, 100)

    def test_lane_explosion_is_busy(self) -> None:
        p = planner(slots=0, lanes=3)
        for lane in "abc":
            offer(p, lane=lane)
        with pytest.raises(Busy, match="3 lanes"):
            p.lane("d", 1)
        offer(p, lane="b")

    def test_empty_lanes_make_room(self) -> None:
        p = planner(slots=1, lanes=3)
        for lane in "abc":
            offer(p, lane=lane)
        p.due(0.0)
        offer(p, lane="d")
        assert set(p.lanes) == {"b", "c", "d"}

    def test_lane_that_is_late_all_the_time_is_not_searched_with_each_batch(self) -> None:
        """Looking for the next deadline among n rows, n / 100 times, would take n² / 100 steps."""
        looks = 0

        class Looked(Ticket):
            __slots__ = ()

            def __getattribute__(self, name: str) -> object:
                nonlocal looks
                looks += name == "deadline"
                return super().__getattribute__(name)

        p = planner(slots=1, queue_rows=1 << 20)
        for n in range(5000):
            p.offer(Looked(None, p.lane("a", 100), 1, 1, 0, 0.0, 0.02 + n * 1e-6, n % 3), 0.0)
        now = 0.015
        while p.waiting_rows:
            for plan in p.due(now):
                if plan.rows:
                    p.finished(plan, 1e-5)
            now += 1e-5
        assert looks < 10 * 5000

    def test_batch_of_an_evicted_lane_finishes(self) -> None:
        p = planner(slots=1, lanes=1)
        offer(p, lane="a")
        (plan,) = p.due(0.0)
        offer(p, lane="b")
        p.finished(plan, 0.1)
        assert p.due(0.0)[0].lane.key == "b"


class TestDeadlines:
    def test_expired_row_is_dropped_not_run(self) -> None:
        p = planner()
        keep_busy(p, 2)
        p.places[0].running = 0
        late = offer(p, 5, deadline=1.0)
        (plan,) = p.due(1.0)
        assert (plan.rows, plan.spans) == (0, [])
        assert plan.expired == [Span(late, 0, 5)]
        assert p.running == 0, "a batch of nothing takes no slot"
        assert_empty(p)

    def test_neighbours_of_an_expired_frame_run(self) -> None:
        p = planner(slots=0)
        late, fine = offer(p, 2, deadline=1.0), offer(p, 3, deadline=9.0)
        p.places[0].slots = 2
        (plan,) = p.due(1.5)
        assert plan.spans == [Span(fine, 0, 3)]
        assert plan.expired == [Span(late, 0, 2)]

    def test_rows_not_dispatched_of_a_split_frame_expire_as_one_span(self) -> None:
        p = planner(slots=1)
        ticket = offer(p, 150, deadline=1.0)
        (plan,) = p.due(0.0)
        p.finished(plan, 0.1)
        (expired,) = p.due(2.0)
        assert (runs(plan), expired.expired) == ([(0, 100)], [Span(ticket, 100, 50)])
        assert_empty(p)

    def test_row_withdrawn_and_expired_is_reported_by_nobody(self) -> None:
        p = planner(slots=0)
        ticket = offer(p, 4, deadline=1.0)
        p.withdraw(ticket, [1])
        p.places[0].slots = 1
        (plan,) = p.due(2.0)
        assert rows_of(plan.expired) == [0, 2, 3]
        assert_empty(p)


class TestWithdraw:
    def test_withdrawn_rows_are_not_dispatched(self) -> None:
        p = planner(slots=0)
        ticket = offer(p, 6)
        assert p.withdraw(ticket, [0, 2, 3]) == 3
        assert (p.waiting_rows, p.waiting_bytes) == (3, 3)
        p.places[0].slots = 1
        (plan,) = p.due(0.0)
        assert (plan.rows, runs(plan)) == (3, [(1, 1), (4, 2)])
        assert_empty(p)

    def test_whole_frame_is_withdrawn(self) -> None:
        p = planner(slots=0)
        assert p.withdraw(offer(p, 6), range(6)) == 6
        assert_empty(p)
        p.places[0].slots = 1
        assert p.due(0.0) == []

    def test_row_is_withdrawn_once_however_often_it_is_named(self) -> None:
        p = planner(slots=0)
        ticket = offer(p, 3)
        assert p.withdraw(ticket, [1, 1, 1]) == 1
        assert p.withdraw(ticket, [1]) == 0
        assert p.waiting_rows == 2

    def test_rows_that_do_not_exist_are_ignored(self) -> None:
        p = planner(slots=0)
        assert p.withdraw(offer(p, 3), [-1, 3, 1 << 70]) == 0
        assert p.waiting_rows == 3

    def test_dispatched_rows_are_not_withdrawn(self) -> None:
        p = planner(slots=1)
        ticket = offer(p, 150)
        p.due(0.0)
        assert p.withdraw(ticket, [0, 99, 100, 149]) == 2
        assert p.waiting_rows == 48

    def test_withdrawn_frame_is_let_go_when_its_lane_is_served(self) -> None:
        p = planner(slots=0)
        offer(p, 100)
        p.withdraw(offer(p, 5), range(5))
        p.places[0].slots = 1
        (plan,) = p.due(0.0)
        assert plan.rows == 100
        assert_empty(p)

    def test_expiry_after_withdrawal_of_all_rows_finds_nothing(self) -> None:
        p = planner(slots=0)
        p.withdraw(offer(p, 2, deadline=1.0), range(2))
        fine = offer(p, 1)
        p.places[0].slots = 1
        (plan,) = p.due(2.0)
        assert (plan.spans, plan.expired) == ([Span(fine, 0, 1)], [])


class Agents(RuleBasedStateMachine):
    """Random agents against one planner: every row leaves once, by one door, and nothing exceeds its bound."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.running: list[Plan] = []
        self.tickets: list[Ticket] = []
        self.left: dict[int, dict[int, str]] = defaultdict(dict)  # by ticket: row -> how it left
        self.last_row: dict[int, int] = {}
        self.last_ticket: dict[object, int] = {}  # dispatched, by client, lane and priority

    @initialize(
        window_s=st.sampled_from([0.0, 0.001, 0.05]),
        max_rows=st.integers(1, 20),
        max_bytes=st.integers(1, 200),
        slots=st.integers(1, 3),
        lanes=st.integers(1, 4),
    )
    def start(self, window_s: float, max_rows: int, max_bytes: int, slots: int, lanes: int) -> None:
        self.p = Planner(Limits(window_s, max_rows, max_bytes, 0.05, 60, 600, lanes), Place("cpu", slots))

    @rule(
        lane=st.sampled_from("abcdef"),
        rows=st.integers(1, 30),
        row_bytes=st.integers(1, 40),
        priority=st.sampled_from([-1, 0, 1]),
        ttl_s=st.sampled_from([0.0, 0.001, 0.02, 0.5, NEVER]),
        client=st.sampled_from([0, 0, 0, 1, 2, 3]),
    )
    def offer(self, lane: str, rows: int, row_bytes: int, priority: int, ttl_s: float, client: int) -> None:
        p = self.p
        mine = p.room.holdings.get(client)
        n = 1 + len(p.room.holdings) + (mine is None)
        before = (p.waiting_rows, p.waiting_bytes)
        try:
            to = p.lane(lane, 15)
            ticket = Ticket(len(self.tickets), to, rows, row_bytes, priority, self.now, self.now + ttl_s, client)
            displaced = p.offer(ticket, self.now)
        except Busy:
            assert (p.waiting_rows, p.waiting_bytes) == before
            of_client = (mine.rows if mine else 0) + rows, (mine.bytes if mine else 0) + rows * row_bytes
            greedy = of_client[0] * n > p.limits.queue_rows or of_client[1] * n > p.limits.queue_bytes
            many = sum(1 for known in p.lanes.values() if known.rows) == p.limits.lanes
            assert greedy or many, "a client within its share was refused"
        else:
            self.tickets.append(ticket)
            for span in displaced:
                assert span.ticket.client != client
                self.leave(span, "displaced")

    @rule()
    def due(self) -> None:
        p = self.p
        for plan in p.due(self.now):
            for span in plan.expired:
                assert span.ticket.deadline <= self.now
                self.leave(span, "expired")
            if plan.rows:
                self.check_batch(plan)
                self.running.append(plan)
        assert p.running == len(self.running) <= p.places[0].slots
        if p.running == 0:
            assert p.waiting_rows == 0, "an idle engine, and rows that wait"
        wake = p.next_deadline()
        if wake is not None:
            # Nothing may be due before the moment it names.
            assert wake > self.now
            assert p.due(math.nextafter(self.now + (wake - self.now) / 2, self.now)) == []

    def check_batch(self, plan: Plan) -> None:
        limits = self.p.limits
        assert plan.rows == sum(span.count for span in plan.spans)
        assert plan.rows <= min(limits.max_rows, 15)
        assert sum(s.count * s.ticket.row_bytes for s in plan.spans) <= limits.max_bytes or plan.rows == 1
        for span in plan.spans:
            assert span.ticket.lane is plan.lane
            assert span.ticket.deadline > self.now
            of_client = (span.ticket.client, span.ticket.lane, span.ticket.priority)
            assert self.last_ticket.get(of_client, -1) <= span.ticket.frame, "a client's frames left out of order"
            self.last_ticket[of_client] = span.ticket.frame
            self.leave(span, "dispatched")

    def leave(self, span: Span, how: str) -> None:
        of = self.left[span.ticket.frame]
        for row in range(span.start, span.start + span.count):
            assert 0 <= row < span.ticket.rows
            assert row not in of, f"row {row} was {of[row]} before it was {how}"
            assert row > self.last_row.get(span.ticket.frame, -1), "rows of a frame left out of order"
            self.last_row[span.ticket.frame] = row
            of[row] = how

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), row_s=st.sampled_from([0.0, 1e-6, 1e-3, 0.1]), whole=st.booleans())
    def finish(self, which: int, row_s: float, whole: bool) -> None:
        plan = self.running.pop(which % len(self.running))
        self.p.finished(plan, row_s * plan.rows, whole)

    @precondition(lambda self: self.tickets)
    @rule(which=st.integers(0, 1 << 16), rows=st.lists(st.integers(-2, 32), max_size=8), whole=st.booleans())
    def withdraw(self, which: int, rows: list[int], whole: bool) -> None:
        ticket = self.tickets[which % len(self.tickets)]
        wanted = list(range(ticket.rows)) if whole else rows
        of = self.left[ticket.frame]
        expected = {row for row in wanted if 0 <= row < ticket.rows and row not in of}
        assert self.p.withdraw(ticket, wanted) == len(expected)
        of.update(dict.fromkeys(expected, "withdrawn"))

    @rule()
    def expire(self) -> None:
        for span in self.p.expire(self.now):
            assert span.ticket.deadline <= self.now
            self.leave(span, "expired")
        assert not any(t.deadline <= self.now and t.rows > len(self.left[t.frame]) for t in self.tickets)

    @rule(by=st.sampled_from([0.0005, 0.01, 0.2, 1.0]))
    def pass_time(self, by: float) -> None:
        self.now += by

    @invariant()
    def counters_agree(self) -> None:
        if not self.tickets:
            return
        p = self.p
        open_rows = [(t, t.rows - len(self.left[t.frame])) for t in self.tickets]
        assert p.waiting_rows == sum(rows for _, rows in open_rows)
        assert p.waiting_bytes == sum(rows * t.row_bytes for t, rows in open_rows)
        of_client: Counter[int] = Counter()
        for ticket, rows in open_rows:
            of_client[ticket.client] += rows
        assert {client: holding.rows for client, holding in p.room.holdings.items()} == +of_client
        within = p.waiting_rows <= p.limits.queue_rows and p.waiting_bytes <= p.limits.queue_bytes
        assert within or sum(1 for _, rows in open_rows if rows) == 1  # an empty queue takes any one frame
        by_lane: dict[Lane, int] = defaultdict(int)
        for ticket, rows in open_rows:
            by_lane[ticket.lane] += rows
        assert all(lane.rows == rows for lane, rows in by_lane.items())
        assert all(p.lanes.get(lane.key) is lane for lane, rows in by_lane.items() if rows)
        assert len(p.lanes) <= p.limits.lanes

    def teardown(self) -> None:
        """At the end everything still open leaves."""
        if not self.tickets:
            return
        self.due()
        while self.running:
            self.finish(0, 1e-6, True)
            self.now += 0.01
            self.due()
        assert_empty(self.p)
        assert all(len(self.left[t.frame]) == t.rows for t in self.tickets)


TestAgents = Agents.TestCase
TestAgents.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

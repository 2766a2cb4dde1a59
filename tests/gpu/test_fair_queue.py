"""The queue in which clients take turns: who goes next, and how many rows of whom."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.gpu.fair_queue import SHARERS, FairQueue
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.plan import Place, Plan, Ticket
from aikoryu.gpu.room import Room

NEVER = float("inf")
FLOOD = 1000


class Queue:
    """A queue, a room, and a lane around it."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.room = Room(1 << 40, 1 << 60)
        self.lane = Lane("a", 1 << 20, Place("cpu"))

    def add(self, client: int, rows: int, row_bytes: int = 1, deadline: float = NEVER, frame: object = None) -> Ticket:
        ticket = Ticket(frame, self.lane, rows, row_bytes, 0, 0.0, deadline, client)
        holding = self.room.enter(client, rows, rows * row_bytes, 0.0)
        assert holding is not None
        ticket.holding = holding
        self.queue.add(ticket)
        return ticket

    def fill(self, rows: int, flow_rows: int = 1 << 30, room_bytes: int = 1 << 40, now: float = 0.0) -> Plan:
        plan = Plan(self.lane, self.lane.place, [], 0, [])
        if self.queue:
            self.queue.fill(plan, rows, flow_rows, room_bytes, now)
        self.room.leave([*plan.spans, *plan.expired])
        assert plan.rows == sum(span.count for span in plan.spans)
        return plan

    def withdraw(self, ticket: Ticket, rows: int) -> None:
        """Its first rows are not wanted any more."""
        ticket.gone = ticket.gone | set(range(ticket.next, ticket.next + rows))
        ticket.left -= rows
        if not ticket.left:
            self.queue.withdrawn(ticket)


@pytest.fixture
def q() -> Queue:
    return Queue()


def rows_by_client(plan: Plan) -> Counter[int]:
    rows: Counter[int] = Counter()
    for span in plan.spans:
        rows[span.ticket.client] += span.count
    return rows


def test_lone_calls_share_a_batch_with_a_frame_that_could_fill_it(q: Queue) -> None:
    large = q.add(FLOOD, 4096)
    lone = [q.add(client, 1) for client in range(64)]
    assert q.fill(4096).rows == 4096
    assert all(not ticket.left for ticket in lone)
    assert large.left == 64


def test_frame_served_in_several_turns_of_a_batch_is_one_span(q: Queue) -> None:
    q.add(FLOOD, 400)
    q.add(1, 10)
    assert [(s.ticket.client, s.start, s.count) for s in q.fill(300).spans] == [(FLOOD, 0, 290), (1, 0, 10)]


def test_turns_of_several_clients_leave_one_span_a_frame(q: Queue) -> None:
    for client in range(3):
        q.add(client, 100)
    q.add(5, 1)
    assert [(s.ticket.client, s.count) for s in q.fill(200, flow_rows=90).spans] == [(0, 90), (1, 59), (2, 50), (5, 1)]


def test_what_a_client_had_while_alone_is_not_held_against_it(q: Queue) -> None:
    q.add(1, 10_000)
    for _ in range(3):
        assert q.fill(1000).rows == 1000
    q.add(2, 10_000)
    assert rows_by_client(q.fill(1000)) == {1: 500, 2: 500}


def test_no_more_than_a_turn_is_made_up_for(q: Queue) -> None:
    """Two that were held to ten rows a batch for long do not keep who comes waiting for what they missed."""
    q.add(1, 10_000)
    q.add(2, 10_000)
    for lone in range(50):
        q.add(100 + lone, 1)
        assert rows_by_client(q.fill(1000, flow_rows=10)) == {1: 10, 2: 10, 100 + lone: 1}
    q.add(3, 10_000)
    assert rows_by_client(q.fill(1000)) == {1: 334, 2: 333, 3: 333}


def test_one_client_is_served_in_order_of_arrival(q: Queue) -> None:
    tickets = [q.add(7, rows) for rows in (3, 200, 1, 50)]
    spans = [*q.fill(100).spans, *q.fill(1000).spans]
    assert [(tickets.index(s.ticket), s.start, s.count) for s in spans] == [
        (0, 0, 3),
        (1, 0, 97),
        (1, 97, 103),
        (2, 0, 1),
        (3, 0, 50),
    ]


def test_turn_cut_short_by_a_batch_goes_on_in_the_next(q: Queue) -> None:
    for client in range(2):
        q.add(client, 100)
    assert [rows_by_client(q.fill(5)) for _ in range(4)] == [{0: 3, 1: 2}, {0: 3, 1: 2}, {0: 2, 1: 3}, {0: 2, 1: 3}]


def test_more_clients_than_share_a_batch_take_longer_turns_over_more_batches(q: Queue) -> None:
    for client in range(2 * SHARERS):
        q.add(client, 64)
    first, second = q.fill(64 * SHARERS), q.fill(64 * SHARERS)
    assert [set(rows_by_client(plan).values()) for plan in (first, second)] == [{64}, {64}]
    assert not q.queue, "frames were cut over batches for no reason"


def test_who_comes_back_stands_last(q: Queue) -> None:
    for client in (1, 2, 3):
        q.add(client, 1)
    q.fill(1)
    q.add(1, 1)
    assert [list(rows_by_client(q.fill(1))) for _ in range(3)] == [[2], [3], [1]]


def test_client_among_others_adds_no_more_than_its_part_of_a_batch(q: Queue) -> None:
    q.add(FLOOD, 1000)
    q.add(1, 5)
    assert rows_by_client(q.fill(500, flow_rows=20)) == {FLOOD: 20, 1: 5}
    q.add(2, 30)
    assert rows_by_client(q.fill(500, flow_rows=20)) == {FLOOD: 20, 2: 20}


def test_batch_ends_with_the_row_that_does_not_fit(q: Queue) -> None:
    wide = q.add(1, 3, row_bytes=60)
    q.add(2, 50)
    assert rows_by_client(q.fill(100, room_bytes=130)) == {1: 2}
    assert wide.left == 1
    assert rows_by_client(q.fill(100, room_bytes=130)) == {1: 1, 2: 50}


def test_expired_rows_take_nothing_of_a_turn(q: Queue) -> None:
    late = [q.add(1, 50, deadline=1.0) for _ in range(3)]
    q.add(1, 4)
    q.add(2, 4)
    plan = q.fill(8, now=2.0)
    assert [span.ticket for span in plan.expired] == late
    assert rows_by_client(plan) == {1: 4, 2: 4}


def test_withdrawn_frames_are_let_go_though_others_wait(q: Queue) -> None:
    """A client that asks and withdraws all the time, behind a batch that is never formed."""

    class Frame:
        pass

    kept: weakref.WeakSet[Frame] = weakref.WeakSet()
    q.add(FLOOD, 1)
    for n in range(1000):
        frame = Frame()
        kept.add(frame)
        q.withdraw(q.add(n % 7 if n % 2 else n, 3, frame=frame), 3)
    assert len(kept) <= 1
    assert len(q.queue._ring) <= 3


def test_withdrawn_frames_between_others_of_their_client_are_let_go(q: Queue) -> None:
    tickets = [q.add(1, 1) for _ in range(1000)]
    for ticket in tickets[1:-1]:
        q.withdraw(ticket, 1)
    (flow,) = q.queue._flows.values()
    assert len(flow.tickets) <= 4
    assert [span.ticket for span in q.fill(10).spans] == [tickets[0], tickets[-1]]


def test_newest_takes_the_last_ticket_with_rows(q: Queue) -> None:
    first, second, third = (q.add(1, 2) for _ in range(3))
    q.withdraw(third, 2)
    q.withdraw(first, 1)
    assert [q.queue.newest(1), q.queue.newest(1), q.queue.newest(1), q.queue.newest(5)] == [second, first, None, None]
    assert not q.queue


FRAMES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    backlogged=st.integers(2, 5),
    bounded=st.booleans(),
    steps=st.lists(st.tuples(FRAMES, st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=30),
)
def test_who_waits_all_the_time_is_served_as_much_as_any_other(
    backlogged: int, bounded: bool, steps: list[tuple[list[tuple[int, int]], int, int]]
) -> None:
    """Whatever others send, and however large batches are, two of them are never further apart than a turn.

    It is two where what a flow may add to a batch changes all the time.
    """
    q = Queue()
    served: Counter[int] = Counter()
    longest = 0
    for client in range(100, 100 + backlogged):
        q.add(client, 1 << 30)
    for frames, batch_rows, flow_rows in steps:
        for client, rows in frames:
            q.add(client, rows)
        longest = max(longest, batch_rows // backlogged, 1)
        flow_rows = flow_rows if bounded else batch_rows
        plan = q.fill(batch_rows, flow_rows)
        served += rows_by_client(plan)
        most = [served[client] for client in range(100, 100 + backlogged)]
        assert max(most) - min(most) <= (2 if bounded else 1) * longest
        cap = rows_by_client(plan)
        assert plan.rows == batch_rows or all(cap[client] == flow_rows for client in range(100, 100 + backlogged))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_each_row_leaves_once_and_in_its_clients_order(data: st.DataObject) -> None:
    q = Queue()
    waiting: dict[int, list[tuple[Ticket, int]]] = {}
    tickets: list[Ticket] = []
    for _ in range(data.draw(st.integers(1, 12))):
        for client, rows in data.draw(FRAMES):
            ticket = q.add(client, rows, row_bytes=data.draw(st.integers(1, 20)))
            tickets.append(ticket)
            waiting.setdefault(client, []).extend((ticket, row) for row in range(rows))
        withdraws = data.draw(st.booleans())
        if tickets and withdraws:
            ticket = data.draw(st.sampled_from(tickets))
            if ticket.left and not ticket.gone:
                count = data.draw(st.integers(1, ticket.left))
                gone = {(ticket, row) for row in range(ticket.next, ticket.next + count)}
                waiting[ticket.client] = [each for each in waiting[ticket.client] if each not in gone]
                q.withdraw(ticket, count)
        room_bytes = data.draw(st.integers(1, 400))
        plan = q.fill(data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50)), room_bytes)
        assert plan.rows == 1 or sum(s.count * s.ticket.row_bytes for s in plan.spans) <= room_bytes
        for span in plan.spans:
            for row in range(span.start, span.start + span.count):
                assert waiting[span.ticket.client].pop(0) == (span.ticket, row)
    for _ in itertools.takewhile(lambda _: bool(q.queue), itertools.count()):
        for span in q.fill(1000).spans:
            for row in range(span.start, span.start + span.count):
                assert waiting[span.ticket.client].pop(0) == (span.ticket, row)
    assert not any(waiting.values())

"""The waiting room: who may come in, and who leaves for whom."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.gpu.lane import Lane
from aikoryu.gpu.plan import Place, Span, Ticket
from aikoryu.gpu.room import TOGETHER_S, Room

FLOOD = 99


class Clients:
    """A room, and the frames in it, whose newest leave first."""

    def __init__(self, rows: int = 100, size: int = 1 << 30) -> None:
        self.most = rows, size
        self.room = Room(rows, size)
        self.frames: list[Ticket] = []
        self.lane = Lane("a", 1, Place("cpu"))

    def ask(self, client: int, rows: int, row_bytes: int = 1, now: float = 0.0) -> list[int] | None:
        """The clients whose frames left for this one; None if it was refused."""
        ticket = Ticket(None, self.lane, rows, row_bytes, 0, now, 0.0, client)
        holding = self.room.enter(client, rows, rows * row_bytes, now)
        if holding is None:
            return None
        ticket.holding = holding
        self.frames.append(ticket)
        left = []
        while (above := self.room.above_share()) is not None:
            newest = next(frame for frame in reversed(self.frames) if frame.client == above.client)
            self.leave(newest)
            left.append(newest.client)
        return left

    def leave(self, frame: Ticket) -> None:
        self.frames.remove(frame)
        self.room.leave([Span(frame, 0, frame.rows)])

    def holds(self, client: int) -> tuple[int, int]:
        mine = [frame for frame in self.frames if frame.client == client]
        return sum(frame.rows for frame in mine), sum(frame.rows * frame.row_bytes for frame in mine)

    def fill(self, client: int, now: float = 0.0, rows: int = 1) -> int:
        """Ask until it is refused."""
        while self.ask(client, rows, now=now) is not None:
            pass
        return self.holds(client)[0]


def test_one_client_may_fill_the_room() -> None:
    assert Clients().fill(FLOOD) == 100


def test_who_floods_beside_others_leaves_them_half() -> None:
    c = Clients()
    c.ask(1, 1)
    assert c.fill(FLOOD) == 49


def test_any_number_that_flood_leave_as_much_as_each_has() -> None:
    c = Clients(1000)
    c.ask(0, 1)
    c.leave(c.frames[0])
    for _ in range(200):
        for client in (1, 2, 3):
            c.ask(client, 5)
    assert [c.holds(client)[0] for client in (1, 2, 3)] == [250, 250, 250]


def test_who_is_alone_again_for_a_while_may_fill_the_room() -> None:
    c = Clients()
    c.ask(1, 1)
    assert c.fill(FLOOD) == 49
    assert c.fill(FLOOD, now=TOGETHER_S / 2) == 49
    assert c.fill(FLOOD, now=TOGETHER_S) == 99


def test_newest_frames_of_who_filled_the_room_leave_for_who_comes() -> None:
    c = Clients()
    c.fill(FLOOD, rows=10)
    assert c.ask(1, 15) == [FLOOD, FLOOD]
    assert (c.holds(FLOOD)[0], c.holds(1)[0]) == (80, 15)


def test_frames_leave_of_whoever_is_above_its_share_at_the_time() -> None:
    c = Clients()
    c.fill(1, rows=10)
    assert c.ask(2, 20) == [1, 1]
    for frame in list(c.frames):
        c.leave(frame)
    c.fill(2, now=10.0, rows=10)
    assert c.ask(3, 20, now=10.0) == [2, 2]


def test_bytes_are_shared_as_rows_are() -> None:
    c = Clients(1000, 1000)
    for _ in range(10):
        c.ask(FLOOD, 1, row_bytes=100)
    assert c.ask(FLOOD, 1, row_bytes=1) is None
    assert c.ask(1, 5, row_bytes=50) == [FLOOD, FLOOD, FLOOD]


def test_empty_room_takes_any_one_frame() -> None:
    c = Clients()
    assert c.ask(1, 1000) == []
    assert c.ask(1, 1) is None
    assert c.ask(2, 1) == [1]


@pytest.mark.parametrize("clients", [1, 3])
def test_nothing_is_kept_of_who_has_nothing_here(clients: int) -> None:
    c = Clients()
    for client in range(clients):
        c.ask(client, 2)
    for frame in list(c.frames):
        c.leave(frame)
    assert (c.room.rows, c.room.bytes, c.room.holdings) == (0, 0, {})


@settings(max_examples=500, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 2, 3, 4, 5, 6]),  # client
            st.integers(1, 30),  # rows
            st.integers(1, 12),  # bytes of one
            st.integers(0, 3),  # frames that are served before
            st.sampled_from([0.0, 0.0, 0.1, 2.0]),  # time that passes before, s
        ),
        max_size=80,
    )
)
def test_client_within_its_share_is_never_refused(steps: list[tuple[int, int, int, int, float]]) -> None:
    c = Clients(60, 400)
    now = 0.0
    for client, rows, row_bytes, served, passed in steps:
        now += passed
        for frame in c.frames[:served]:
            c.leave(frame)
        empty = not c.frames
        held = c.holds(client)
        would = held[0] + rows, held[1] + rows * row_bytes
        n = 1 + len({frame.client for frame in c.frames} | {client})  # and one more
        before = {each: c.holds(each) for each in range(1, 7)}
        left = c.ask(client, rows, row_bytes, now)
        within = would[0] * n <= c.most[0] and would[1] * n <= c.most[1]
        if left is None:
            assert not within, "refused within its share"
            assert {each: c.holds(each) for each in range(1, 7)} == before
        else:
            for other in left:
                rows_held, bytes_held = before[other]
                assert within or empty, "others left for a client above its share"
                assert rows_held * n > c.most[0] or bytes_held * n > c.most[1], "who left was within its share"
            fits = c.room.rows <= c.most[0] and c.room.bytes <= c.most[1]
            assert fits or len(c.room.holdings) == 1
        assert c.room.rows == sum(frame.rows for frame in c.frames)
        assert c.room.bytes == sum(frame.rows * frame.row_bytes for frame in c.frames)
        assert {each.client: (each.rows, each.bytes) for each in c.room.holdings.values()} == {
            client: c.holds(client) for client in {frame.client for frame in c.frames}
        }

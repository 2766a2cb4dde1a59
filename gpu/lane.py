"""Lanes: rows that may share a batch, waiting."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from .fair_queue import FairQueue
from .plan import Place

AGING_S = 0.1
PRIORITIES = (1, 0, -1)
PACE_WEIGHT = 0.3  # of the newest batch in a lane's measured seconds a row


class Lane:
    """Rows that may share a batch, waiting.

    Attributes:
        key: what the rows have in common.
        max_rows: the operation's own bound.
        queues: those that wait, by priority.
        rows, bytes: waiting, those withdrawn not counted.
        opened: when the oldest of them came, or after a batch the oldest of those that go next, s.
        deadline: no later than the earliest of theirs, s.
        passed: rows dispatched since that was last looked for.
        place: where its batches go.
        used_s: device time the lane has used there, over the clients it served, s, on the scale of all lanes.
        row_s: device time of a row there, s, as measured lately; 0 for not yet.
        spec: whatever the front keeps with the lane; the planner does not look inside.
    """

    def __init__(self, key: Hashable, max_rows: int, place: Place) -> None:
        self.key = key
        self.max_rows = max_rows
        self.place = place
        self.queues = {priority: FairQueue() for priority in PRIORITIES}
        self.rows = 0
        self.bytes = 0
        self.opened = 0.0
        self.deadline = float("inf")
        self.passed = 0
        self.used_s = 0.0
        self.row_s = 0.0
        self.spec: Any = None

    def move(self, place: Place) -> None:
        """Let its batches go elsewhere from now on; nothing is known of its pace there."""
        if place is not self.place:
            self.place = place
            self.used_s = place.clock_s
            self.row_s = 0.0

    def waiting(self, now: float) -> list[tuple[int, FairQueue]]:
        """The queues that hold rows, the most urgent first, each with its priority.

        It is raised by the time in which rows of it waited and none was served.
        """
        waiting = [
            (priority + int((now - max(queue.head.arrived, queue.served)) / AGING_S), queue)
            for priority, queue in self.queues.items()
            if queue
        ]
        if len(waiting) > 1:
            waiting.sort(key=lambda each: each[0], reverse=True)
        return waiting

    def ran(self, run_s: float, rows: int) -> None:
        """A batch of it was run whole: learn its pace."""
        pace = run_s / rows
        self.row_s = pace if self.row_s == 0.0 else self.row_s + PACE_WEIGHT * (pace - self.row_s)

    def reopen(self, window_s: float, now: float) -> None:
        """Reset the window, and a deadline that has been met, to those of the rows left behind; there are some.

        All of these are looked at no more often than as many have been dispatched, or a lane that is always late would
        pay for its length with each batch. An old deadline only closes windows early.
        """
        self.opened = min(queue.head.arrived for queue in self.queues.values() if queue)
        if now >= self.deadline - window_s and self.passed >= self.rows:
            self.deadline = min(ticket.deadline for queue in self.queues.values() for ticket in queue)
            self.passed = 0

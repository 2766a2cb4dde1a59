"""Lanes: rows that may share a batch, waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any

from .fair_queue import FairQueue
from .plan import PRIORITIES, Place, Ticket
from .room import Holding

AGING_S = 0.1
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
        used_s: device time the lane has used there, s, on the scale of all lanes.
        neediest: of the clients that came since the last batch, and whoever goes next, the one that used the device
            least.
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
        self.neediest: Holding
        self.spec: Any = None

    def move(self, place: Place) -> None:
        """Let its batches go elsewhere from now on; nothing is known of its pace there."""
        if place is not self.place:
            self.place = place
            self.used_s = place.clock_s
            self.row_s = 0.0

    def add(self, ticket: Ticket, now: float) -> None:
        """Queue a frame; its holding is known."""
        if self.rows == 0:
            self.opened = now
            self.deadline = ticket.deadline
            self.used_s = max(self.used_s, self.place.clock_s)
            self.neediest = ticket.holding
        else:
            if ticket.deadline < self.deadline:
                self.deadline = ticket.deadline
            if ticket.holding.used_s < self.neediest.used_s:
                self.neediest = ticket.holding
        self.queues[ticket.priority].add(ticket)
        self.rows += ticket.rows
        self.bytes += ticket.rows * ticket.row_bytes

    def urgent(self, now: float) -> list[tuple[int, int]]:
        """The priorities of rows that wait, the most urgent first: each as it counts now, and as it was given.

        One is raised by the time in which rows of it waited and none was served, here or in any lane of the place: many
        lanes that wait for one another are not more urgent than one.
        """
        served = self.place.served
        urgent = [
            (priority + int((now - max(queue.head.arrived, served[priority])) / AGING_S), priority)
            for priority, queue in self.queues.items()
            if queue
        ]
        if len(urgent) > 1:
            urgent.sort(reverse=True)
        return urgent

    def ran(self, row_s: float) -> None:
        """A batch of it was run whole, at this pace."""
        self.row_s = row_s if self.row_s == 0.0 else self.row_s + PACE_WEIGHT * (row_s - self.row_s)

    def reopen(self, window_s: float, now: float) -> None:
        """Reset the window, a deadline that has been met, and the client, to those of the rows left behind.

        All of these are looked at no more often than as many have been dispatched, or a lane that is always late would
        pay for its length with each batch. An old deadline only closes windows early.
        """
        heads = [queue.head for queue in self.queues.values() if queue]
        self.opened = min(ticket.arrived for ticket in heads)
        self.neediest = min((ticket.holding for ticket in heads), key=_used_s)
        if now >= self.deadline - window_s and self.passed >= self.rows:
            self.deadline = min(ticket.deadline for queue in self.queues.values() for ticket in queue)
            self.passed = 0


_used_s: Callable[[Holding], float] = attrgetter("used_s")

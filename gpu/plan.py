"""What the planner speaks in: limits, engines' places, frames' tickets, and the plans made of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lane import Lane
    from .room import Holding

PRIORITIES = (1, 0, -1)
_NONE_GONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Limits:
    """What bounds batches and queues.

    Attributes:
        window_s: longest time a lane collects while a slot is free but the engine works, s.
        max_rows, max_bytes: largest batch; bytes count inputs and outputs.
        target_s: time on the device a batch is sized for, s.
        queue_rows, queue_bytes: most that may wait; beyond, frames are refused with `busy`.
        lanes: most lanes with rows waiting.
        limit_s: longest time a batch may run; an engine that takes longer is ended, s.
    """

    window_s: float = 0.001
    max_rows: int = 4096
    max_bytes: int = 32 << 20
    target_s: float = 0.05
    queue_rows: int = 65536
    queue_bytes: int = 256 << 20
    lanes: int = 1024
    limit_s: float = 20.0


class Place:
    """An engine, as far as the planner knows it.

    Attributes:
        name: the engine's.
        slots: batches it takes: one running, the others staged ahead; 0 while it takes none.
        running: batches it has.
        again: batches formed already, which are to run there before any other.
        alone: the batch that runs shares the engine with no other.
        first_rows: most rows of a lane's first batch there, before its pace is known.
        served: when rows of each priority were last dispatched there, s.
        clock_s: least device time of the lanes that competed last: where a lane that comes anew begins, s.
    """

    def __init__(self, name: str, slots: int = 0, first_rows: int = 1 << 30) -> None:
        self.name = name
        self.slots = slots
        self.running = 0
        self.again: deque[Plan] = deque()
        self.alone = False
        self.first_rows = first_rows
        self.served = dict.fromkeys(PRIORITIES, float("-inf"))
        self.clock_s = 0.0


class Ticket:
    """A frame's place in the queue: rows from `next` on have not been dispatched.

    Attributes:
        frame: whose rows; the planner does not look inside.
        rows: of the frame.
        row_bytes: inputs and outputs of one row; of variable width, those of the whole frame over its rows.
        priority: 1, 0 or -1.
        arrived, deadline: s.
        client: whose frame; those that give no number are one client, 0.
        left: rows that will be dispatched, unless they are withdrawn or expire before.
        gone: rows whose caller withdrew while they waited.
        holding: what its client has waiting; set when it is queued.
    """

    __slots__ = (
        "arrived",
        "client",
        "deadline",
        "frame",
        "gone",
        "holding",
        "lane",
        "left",
        "next",
        "priority",
        "row_bytes",
        "rows",
    )

    holding: Holding

    def __init__(
        self,
        frame: Any,
        lane: Lane,
        rows: int,
        row_bytes: int,
        priority: int,
        arrived: float,
        deadline: float,
        client: int = 0,
    ) -> None:
        self.frame = frame
        self.lane = lane
        self.rows = rows
        self.row_bytes = row_bytes
        self.priority = priority
        self.arrived = arrived
        self.deadline = deadline
        self.client = client
        self.next = 0
        self.left = rows
        self.gone = _NONE_GONE

    @property
    def waiting(self) -> int:
        """Rows not dispatched, those withdrawn among them."""
        return self.rows - self.next

    def move(self, most: int, spans: list[Span]) -> int:
        """Take up to `most` rows from the head, as spans without the rows withdrawn.

        Returns:
            How many rows the spans hold.
        """
        first = self.next
        end = first + most if most < self.rows - first else self.rows
        self.next = end
        if not self.gone:
            spans.append(Span(self, first, end - first))
            self.left -= end - first
            return end - first
        moved = 0
        for row in range(first, end):
            if row in self.gone:
                continue
            one = Span(self, row, 1)
            if spans and spans[-1].precedes(one):
                spans[-1].count += 1
            else:
                spans.append(one)
            moved += 1
        self.left -= moved
        return moved


@dataclass(slots=True)
class Span:
    """Consecutive rows of one frame in a batch."""

    ticket: Ticket
    start: int
    count: int

    def precedes(self, other: Span) -> bool:
        """Whether the other's rows come right after these in their frame."""
        return self.ticket is other.ticket and self.start + self.count == other.start


@dataclass(slots=True)
class Plan:
    """A batch to be run now.

    Attributes:
        lane: what its rows have in common.
        place: where it is to run.
        spans: the rows, in order.
        rows: how many.
        expired: tickets whose deadline had passed, with the rows (first, count) that were dropped.
        runs: times it was started before.
        reason: why it does not run where its lane does; empty if it does.
        gone: positions of rows whose caller withdrew after it was formed.
    """

    lane: Lane
    place: Place
    spans: list[Span]
    rows: int
    expired: list[Span]
    runs: int = 0
    reason: str = ""
    gone: set[int] = field(default_factory=set)

    def late(self, now: float) -> bool:
        """Whether nobody waits for any of its rows any more."""
        return all(span.ticket.deadline <= now for span in self.spans)

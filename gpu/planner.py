"""The planner: decides, from what waits and what is free, which rows run together next.

It is pure: the time is an argument, nothing is awaited, no device is known. The rules, in order:

- Only rows of one *lane* share a batch.
- A lane is dispatched at once while the engine is idle: an idle device never waits for company. While it works, and a
  slot is free to stage ahead, a lane collects until its window has passed (counted from its first row), it is full, or
  a deadline is near. While no slot is free every lane collects.
- The highest priority goes first, raised by one for each `AGING_S` in which rows of it waited and none was served, so
  none starves; the age of a backlog raises nothing, or the longest queue would be the most urgent. Within a priority
  the lane that has used the device least goes first, measured in seconds of it.
- A batch is held to `max_rows`, `max_bytes`, and the rows that take about `target_s` on the device at the lane's
  measured pace, so that no lane holds up the others, nor abandoned work the next caller.
- Each lane has a *place*, the engine its batches go to; the front may move it. A batch that runs again goes first, in
  the end alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..bus.errors import Busy

AGING_S = 0.1
PRIORITIES = (1, 0, -1)
LEAST_PACED_ROWS = 16  # a slower pace must not shrink batches below this: smaller ones cost more a row, and so on down
ALONE_RUNS = 2  # a batch that was started so often before, in vain, may be what its engines died of
PACE_WEIGHT = 0.3  # of the newest batch in a lane's measured seconds a row


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
    limit_s: float = 60.0


class Place:
    """An engine, as far as the planner knows it.

    Attributes:
        name: the engine's.
        slots: batches it takes: one running, the others staged ahead; 0 while it takes none.
        running: batches it has.
        again: batches formed already, which are to run there before any other.
        alone: the batch that runs shares the engine with no other.
        first_rows: most rows of a lane's first batch there, before its pace is known.
        clock_s: least device time of the lanes that competed last: where a lane that comes anew begins, s.
    """

    def __init__(self, name: str, slots: int = 0, first_rows: int = 1 << 30) -> None:
        self.name = name
        self.slots = slots
        self.running = 0
        self.again: deque[Plan] = deque()
        self.alone = False
        self.first_rows = first_rows
        self.clock_s = 0.0


class Ticket:
    """A frame's place in the queue: rows from `next` on have not been dispatched.

    Attributes:
        frame: whose rows; the planner does not look inside.
        rows: of the frame.
        row_bytes: inputs and outputs of one row; of variable width, those of the whole frame over its rows.
        priority: 1, 0 or -1.
        arrived, deadline: s.
        gone: rows whose caller withdrew.
    """

    __slots__ = ("arrived", "deadline", "frame", "gone", "lane", "next", "priority", "row_bytes", "rows")

    def __init__(
        self, frame: Any, lane: Lane, rows: int, row_bytes: int, priority: int, arrived: float, deadline: float
    ) -> None:
        self.frame = frame
        self.lane = lane
        self.rows = rows
        self.row_bytes = row_bytes
        self.priority = priority
        self.arrived = arrived
        self.deadline = deadline
        self.next = 0
        self.gone: set[int] = set()

    @property
    def waiting(self) -> int:
        """Rows not dispatched."""
        return self.rows - self.next


@dataclass(slots=True)
class Span:
    """Consecutive rows of one frame in a batch."""

    ticket: Ticket
    start: int
    count: int


class Lane:
    """Rows that may share a batch, waiting.

    Attributes:
        key: what the rows have in common.
        max_rows: the operation's own bound.
        queues: tickets that wait, by priority.
        served: when rows of each priority were last dispatched, s.
        rows, bytes: waiting, those withdrawn not counted.
        opened: when the oldest of them came, s.
        deadline: no later than the earliest of theirs, s.
        place: where its batches go.
        used_s: device time the lane has used there, s, on the scale of all lanes.
        row_s: device time of a row there, s, as measured lately; 0 for not yet.
        spec: whatever the front keeps with the lane; the planner does not look inside.
    """

    def __init__(self, key: Hashable, max_rows: int, place: Place) -> None:
        self.key = key
        self.max_rows = max_rows
        self.place = place
        self.queues: dict[int, deque[Ticket]] = {priority: deque() for priority in PRIORITIES}
        self.served = dict.fromkeys(PRIORITIES, float("-inf"))
        self.rows = 0
        self.bytes = 0
        self.opened = 0.0
        self.deadline = float("inf")
        self.used_s = 0.0
        self.row_s = 0.0
        self.spec: Any = None

    def move(self, place: Place) -> None:
        """Let its batches go elsewhere from now on; nothing is known of its pace there."""
        if place is not self.place:
            self.place = place
            self.used_s = place.clock_s
            self.row_s = 0.0


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


class Planner:
    """Forms batches for the engines of its places; a lane that comes anew belongs to the first."""

    def __init__(self, limits: Limits, *places: Place) -> None:
        self.limits = limits
        self.places = places
        self.waiting_rows = 0
        self.waiting_bytes = 0
        self.lanes: dict[Hashable, Lane] = {}

    def lane(self, key: Hashable, max_rows: int) -> Lane:
        """The lane of this key, new if need be.

        Raises:
            Busy: as many lanes as allowed have rows waiting.
        """
        lane = self.lanes.get(key)
        if lane is None:
            if len(self.lanes) >= self.limits.lanes and not self._evict():
                raise Busy(
                    f"{len(self.lanes)} lanes have rows waiting: send fewer different shapes and parameters at once"
                )
            lane = self.lanes[key] = Lane(key, max_rows, self.places[0])
        return lane

    def offer(self, ticket: Ticket, now: float) -> None:
        """Queue a frame's rows; an empty queue takes any one frame, or a large one could never be served.

        Raises:
            Busy: the queue is full; nothing was queued.
        """
        limits, lane = self.limits, ticket.lane
        size = ticket.rows * ticket.row_bytes
        full = self.waiting_rows + ticket.rows > limits.queue_rows or self.waiting_bytes + size > limits.queue_bytes
        if full and self.waiting_rows:
            raise Busy("the worker's queue is full", retry_after_s=self._retry_after_s())
        if lane.rows == 0:
            lane.opened = now
            lane.deadline = ticket.deadline
            lane.used_s = max(lane.used_s, lane.place.clock_s)
        elif ticket.deadline < lane.deadline:
            lane.deadline = ticket.deadline
        lane.queues[ticket.priority].append(ticket)
        lane.rows += ticket.rows
        lane.bytes += size
        self.waiting_rows += ticket.rows
        self.waiting_bytes += size

    @property
    def running(self) -> int:
        """Batches that engines have."""
        return sum(place.running for place in self.places)

    def due(self, now: float) -> list[Plan]:
        """The batches to start now; each takes a slot of its place until `finished`."""
        return [plan for place in self.places for plan in self._due_at(place, now)]

    def run_again(self, plan: Plan, place: Place, reason: str) -> None:
        """Have a batch that came to nothing run again, there."""
        plan.place = place
        plan.runs += 1
        plan.reason = reason
        place.again.append(plan)

    def redirect(self, plan: Plan, place: Place) -> None:
        """Let a batch that is about to start run elsewhere."""
        plan.place.running -= 1
        place.running += 1
        plan.place = place

    def finished(self, plan: Plan, run_s: float, whole: bool = True) -> None:
        """A batch left the engine after `run_s` seconds on the device; its slot is free.

        Args:
            whole: every row was run; a batch that failed or was abandoned says nothing of the lane's pace.
        """
        plan.place.running -= 1
        plan.place.alone = False
        lane = plan.lane
        if lane.place is not plan.place:
            return
        lane.used_s += run_s
        if not whole:
            return
        pace = run_s / plan.rows
        lane.row_s = pace if lane.row_s == 0.0 else lane.row_s + PACE_WEIGHT * (pace - lane.row_s)

    def withdraw(self, ticket: Ticket, rows: Iterable[int]) -> int:
        """Forget rows whose caller no longer waits.

        Returns:
            How many of them were still waiting, and will not be dispatched.
        """
        gone = {row for row in rows if ticket.next <= row < ticket.rows and row not in ticket.gone}
        ticket.gone.update(gone)
        self._leave(ticket, len(gone))
        _forget_withdrawn(ticket.lane)
        return len(gone)

    def expire(self, now: float) -> list[Span]:
        """Drop every waiting row whose deadline has passed; for when nothing is dispatched that would meet them."""
        expired: list[Span] = []
        for lane in self.lanes.values():
            for queue in lane.queues.values():
                for ticket in [ticket for ticket in queue if ticket.deadline <= now]:
                    self._move(ticket, ticket.waiting, expired)
                    queue.remove(ticket)
        for place in self.places:
            late = [plan for plan in place.again if all(span.ticket.deadline <= now for span in plan.spans)]
            for plan in late:
                place.again.remove(plan)
                expired += plan.spans
        return expired

    def next_deadline(self) -> float | None:
        """When `due` may have something to start although nothing was offered or finished, s; None for never."""
        window_s = self.limits.window_s
        times = [
            min(lane.opened + window_s, lane.deadline - window_s)
            for lane in self.lanes.values()
            if lane.rows and lane.place.running < lane.place.slots
        ]
        return min(times, default=None)

    def _due_at(self, place: Place, now: float) -> Iterator[Plan]:
        while place.running < place.slots and not place.alone:
            if place.again:
                alone = place.again[0].runs >= ALONE_RUNS
                if alone and place.running:
                    break
                place.running += 1
                place.alone = alone
                yield place.again.popleft()
                continue
            ripe = [
                lane for lane in self.lanes.values() if lane.rows and lane.place is place and self._is_ripe(lane, now)
            ]
            if not ripe:
                break
            lane = min(ripe, key=lambda lane: (-self._priority(lane, now), lane.used_s, lane.opened))
            plan = self._take(lane, now)
            if plan.rows:
                place.running += 1
                place.clock_s = min(each.used_s for each in ripe)
            if plan.rows or plan.expired:
                yield plan

    def _is_ripe(self, lane: Lane, now: float) -> bool:
        return (
            lane.place.running == 0
            or lane.rows >= self._batch_rows(lane)
            or lane.bytes >= self.limits.max_bytes
            or now >= lane.opened + self.limits.window_s
            or now >= lane.deadline - self.limits.window_s
        )

    def _batch_rows(self, lane: Lane) -> int:
        rows = min(lane.max_rows, self.limits.max_rows)
        if lane.row_s == 0.0:
            return min(rows, lane.place.first_rows)
        return min(rows, max(LEAST_PACED_ROWS, int(self.limits.target_s / lane.row_s)))

    def _priority(self, lane: Lane, now: float) -> int:
        return max(_raised(lane, priority, now) for priority, queue in lane.queues.items() if queue)

    def _take(self, lane: Lane, now: float) -> Plan:
        """Fill a batch from the lane's queues, the most urgent first."""
        plan = Plan(lane, lane.place, [], 0, [])
        waiting = [priority for priority, queue in lane.queues.items() if queue]
        if len(waiting) > 1:
            waiting.sort(key=lambda priority: _raised(lane, priority, now), reverse=True)
        room_bytes = self.limits.max_bytes
        for priority in waiting:
            before = plan.rows
            room_bytes = self._fill(plan, lane.queues[priority], room_bytes, now)
            if plan.rows > before:
                lane.served[priority] = now
        _forget_withdrawn(lane)
        self._reopen(lane, now)
        return plan

    def _fill(self, plan: Plan, queue: deque[Ticket], room_bytes: int, now: float) -> int:
        """Move rows from the head of a queue into the plan while they fit; the bytes still free."""
        room_rows = self._batch_rows(plan.lane)
        while queue and plan.rows < room_rows:
            ticket = queue[0]
            if ticket.deadline <= now:
                self._move(ticket, ticket.waiting, plan.expired)
            else:
                fit = room_bytes // max(ticket.row_bytes, 1)
                if fit < 1 and plan.rows:
                    break
                taken = self._move(ticket, min(room_rows - plan.rows, max(fit, 1)), plan.spans)
                plan.rows += taken
                room_bytes -= taken * ticket.row_bytes
            if not ticket.waiting:
                queue.popleft()
        return room_bytes

    def _move(self, ticket: Ticket, most: int, spans: list[Span]) -> int:
        """Take up to `most` rows from the head of a ticket, as spans without the rows withdrawn; how many these are."""
        first, end = ticket.next, min(ticket.rows, ticket.next + most)
        ticket.next = end
        moved = 0
        if not ticket.gone:
            spans.append(Span(ticket, first, end - first))
            moved = end - first
        else:
            for row in range(first, end):
                if row in ticket.gone:
                    continue
                last = spans[-1] if spans else None
                if last is not None and last.ticket is ticket and last.start + last.count == row:
                    last.count += 1
                else:
                    spans.append(Span(ticket, row, 1))
                moved += 1
        self._leave(ticket, moved)
        return moved

    def _leave(self, ticket: Ticket, rows: int) -> None:
        size = rows * ticket.row_bytes
        ticket.lane.rows -= rows
        ticket.lane.bytes -= size
        self.waiting_rows -= rows
        self.waiting_bytes -= size

    def _reopen(self, lane: Lane, now: float) -> None:
        """Reset the window, and a deadline that has been met, to those of the rows left behind."""
        heads = [queue[0] for queue in lane.queues.values() if queue]
        if not heads:
            return
        lane.opened = min(ticket.arrived for ticket in heads)
        if now >= lane.deadline - self.limits.window_s:
            lane.deadline = min(ticket.deadline for queue in lane.queues.values() for ticket in queue)

    def _evict(self) -> bool:
        """Make room for a lane by forgetting the empty ones."""
        empty = [key for key, lane in self.lanes.items() if not lane.rows]
        for key in empty:
            del self.lanes[key]
        return bool(empty)

    def _retry_after_s(self) -> float:
        """About how long the rows that wait will take."""
        estimate = sum(lane.rows * lane.row_s for lane in self.lanes.values())
        return min(1.0, max(0.005, estimate / 2))


def _raised(lane: Lane, priority: int, now: float) -> int:
    """A priority, raised by the time in which rows of it waited and none was served."""
    since = max(lane.queues[priority][0].arrived, lane.served[priority])
    return priority + int((now - since) / AGING_S)


def _forget_withdrawn(lane: Lane) -> None:
    """Let go of tickets none of whose rows is wanted, once the lane has nothing else."""
    if lane.rows == 0:
        for queue in lane.queues.values():
            queue.clear()

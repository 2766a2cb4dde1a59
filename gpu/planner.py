"""The planner: decides, from what waits and what is free, which rows run together next.

It is pure: the time is an argument, nothing is awaited, no device is known. The rules, in order:

- Only rows of one *lane* share a batch.
- A lane is dispatched at once while the engine is idle: an idle device never waits for company. While it works, and a
  slot is free to stage ahead, a lane collects until its window has passed (counted from its first row), it is full, or
  a deadline is near. While no slot is free every lane collects.
- The highest priority goes first, raised by one for each `AGING_S` in which rows of it waited and none was served, so
  none starves; the age of a backlog raises nothing, or the longest queue would be the most urgent. Within a priority
  the client that has used the device least goes first, measured in seconds of it, and of its lanes the one that has.
- Clients take turns within a lane (`fair_queue.py`), and none may fill the queue for the others (`room.py`).
- A batch is held to `max_rows`, `max_bytes`, and the rows that take about `target_s` on the device at the lane's
  measured pace, so that no lane holds up the others, nor abandoned work the next caller. Of one client among others it
  takes `CLIENT_SHARE` of that.
- Each lane has a *place*, the engine its batches go to; the front may move it. A batch that runs again goes first, in
  the end alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from ..bus.errors import Busy
from .lane import Lane
from .plan import Limits, Place, Plan, Span, Ticket
from .room import Room

LEAST_PACED_ROWS = 16  # a slower pace must not shrink batches below this: smaller ones cost more a row, and so on down
CLIENT_SHARE = 0.1  # of the time a batch is sized for, to one client among others: they wait behind such batches
LEAST_CLIENT_ROWS = 8
FIRST_CLIENT_ROWS = 64  # of a client among others in a lane whose pace is not known
ALONE_RUNS = 2  # a batch that was started so often before, in vain, may be what its engines died of


class Planner:
    """Forms batches for the engines of its places; a lane that comes anew belongs to the first.

    Attributes:
        limits: of batches and queues.
        places: the engines.
        lanes: by key, those without rows among them.
        room: what waits, and whose it is.
    """

    def __init__(self, limits: Limits, *places: Place) -> None:
        self.limits = limits
        self.places = places
        self.lanes: dict[Hashable, Lane] = {}
        self.room = Room(limits.queue_rows, limits.queue_bytes)
        self._open: dict[Lane, None] = {}  # lanes with rows
        self._retry_s: float | None = None

    @property
    def waiting_rows(self) -> int:
        """Rows that wait."""
        return self.room.rows

    @property
    def waiting_bytes(self) -> int:
        """Their bytes."""
        return self.room.bytes

    @property
    def running(self) -> int:
        """Batches that engines have."""
        return sum(place.running for place in self.places)

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

    def offer(self, ticket: Ticket, now: float) -> list[Span]:
        """Queue a frame's rows; an empty queue takes any one frame, or a large one could never be served.

        Returns:
            Rows of a client that holds more than its share, which left to make room: they will not be dispatched.

        Raises:
            Busy: the queue is full, or its client holds too much of it; nothing was queued, and nothing left.
        """
        room = self.room
        holding = room.enter(ticket.client, ticket.rows, ticket.rows * ticket.row_bytes, now)
        if holding is None:
            raise Busy("the worker's queue is full", retry_after_s=self.retry_after_s())
        ticket.holding = holding
        self._open[ticket.lane] = None
        ticket.lane.add(ticket, now)
        if room.rows > self.limits.queue_rows or room.bytes > self.limits.queue_bytes:
            return self._make_room()
        return []

    def due(self, now: float) -> list[Plan]:
        """The batches to start now; each takes a slot of its place until `finished`."""
        self._retry_s = None
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
        row_s = run_s / plan.rows
        for span in plan.spans:
            span.ticket.holding.used_s += row_s * span.count
        lane = plan.lane
        if lane.place is not plan.place:
            return
        lane.used_s += run_s
        if whole:
            lane.ran(row_s)

    def withdraw(self, ticket: Ticket, rows: Iterable[int]) -> int:
        """Forget rows whose caller no longer waits.

        Returns:
            How many of them were still waiting, and will not be dispatched.
        """
        gone = {row for row in rows if ticket.next <= row < ticket.rows and row not in ticket.gone}
        if gone:
            ticket.gone = ticket.gone | gone
            ticket.left -= len(gone)
            self._leave([Span(ticket, 0, len(gone))])
            if not ticket.left:
                ticket.lane.queues[ticket.priority].withdrawn(ticket)
        return len(gone)

    def expire(self, now: float) -> list[Span]:
        """Drop every waiting row whose deadline has passed; for when nothing is dispatched that would meet them."""
        expired: list[Span] = []
        for lane in list(self._open):
            of_lane: list[Span] = []
            for queue in lane.queues.values():
                queue.expire(now, of_lane)
            self._leave(of_lane)
            expired += of_lane
        for place in self.places:
            late = [plan for plan in place.again if plan.late(now)]
            for plan in late:
                place.again.remove(plan)
                expired += plan.spans
        return expired

    def next_deadline(self) -> float | None:
        """When `due` may have something to start although nothing was offered or finished, s; None for never."""
        window_s = self.limits.window_s
        times = [
            min(lane.opened + window_s, lane.deadline - window_s)
            for lane in self._open
            if lane.place.running < lane.place.slots
        ]
        return min(times, default=None)

    def retry_after_s(self) -> float:
        """About how long the rows that wait will take; looked at once between two looks at what is due."""
        if self._retry_s is None:
            estimate = sum(lane.rows * lane.row_s for lane in self._open)
            self._retry_s = min(1.0, max(0.005, estimate / 2))
        return self._retry_s

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
            ripe = [lane for lane in self._open if lane.place is place and self._is_ripe(lane, now)]
            if not ripe:
                break
            lane = ripe[0]
            if len(ripe) > 1:
                lane = min(ripe, key=lambda lane: _rank(lane, now))
            self.room.clock_s = max(self.room.clock_s, lane.neediest.used_s)
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

    def _client_rows(self, lane: Lane, now: float) -> int:
        """Most rows of one client in a batch.

        Where hardly any would be left, a batch costs much however small it is, or a row does: smaller ones gain little.
        """
        if not self.room.together(now):
            return self.limits.max_rows
        if lane.row_s == 0.0:
            return FIRST_CLIENT_ROWS
        rows = int(CLIENT_SHARE * self.limits.target_s / lane.row_s)
        return rows if rows >= LEAST_CLIENT_ROWS else self.limits.max_rows

    def _take(self, lane: Lane, now: float) -> Plan:
        """Fill a batch from the lane's queues, the most urgent first."""
        plan = Plan(lane, lane.place, [], 0, [])
        batch_rows = self._batch_rows(lane)
        client_rows = self._client_rows(lane, now)
        room_bytes = self.limits.max_bytes
        whole = lane.rows <= min(batch_rows, client_rows) and lane.bytes <= room_bytes
        for _, priority in lane.urgent(now):
            queue, before = lane.queues[priority], plan.rows
            if whole:
                queue.empty(plan, now)
            else:
                room_bytes = queue.fill(plan, batch_rows, client_rows, room_bytes, now)
            if plan.rows > before:
                lane.place.served[priority] = now
        lane.passed += plan.rows
        self._leave(plan.spans)
        self._leave(plan.expired)
        if lane.rows:
            lane.reopen(self.limits.window_s, now)
        return plan

    def _make_room(self) -> list[Span]:
        """Take out the newest frames of clients above their share, until what waits fits."""
        displaced: list[Span] = []
        while (holding := self.room.above_share()) is not None:
            queues = (queue for lane in self._open for queue in lane.queues.values())
            ticket = next(filter(None, (queue.newest(holding.client) for queue in queues)))
            before = len(displaced)
            ticket.move(ticket.rows, displaced)
            self._leave(displaced[before:])
        return displaced

    def _leave(self, spans: list[Span]) -> None:
        """Rows of one lane do not wait any more."""
        if not spans:
            return
        lane = spans[0].ticket.lane
        rows, size = self.room.leave(spans)
        lane.rows -= rows
        lane.bytes -= size
        if not lane.rows:
            del self._open[lane]

    def _evict(self) -> bool:
        """Make room for a lane by forgetting the empty ones."""
        empty = [key for key, lane in self.lanes.items() if not lane.rows]
        for key in empty:
            del self.lanes[key]
        return bool(empty)


def _rank(lane: Lane, now: float) -> tuple[int, float, float, float]:
    """Where a lane stands: the least goes first."""
    return -lane.urgent(now)[0][0], lane.neediest.used_s, lane.used_s, lane.opened

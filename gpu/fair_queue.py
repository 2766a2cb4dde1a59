"""A queue in which clients take turns: deficit round-robin by rows (Shreedhar and Varghese, 1995).

A *flow* is what one client has in the queue, in order of arrival. Flows stand in a ring. A *round* gives each of them
the same rows, its turn: a batch's rows over the flows, of which up to `SHARERS` share a batch. The *level* is what a
flow has had when the round is over; its own account, `had`, says how far it has come, so that a turn cut short by a
batch's end goes on in the next batch. A turn ends to the row, within a frame if need be.

- Between two flows that wait all the time, the rows dispatched since differ by no more than the longest turn; by two if
  what a flow may add to a batch changes meanwhile.
- A flow that comes waits for no more than one turn of each other. One that is alone takes whole batches.
- A step costs the same however many wait, on average over the steps.

A flow that empties is forgotten. When it comes again it stands at the end of the ring: coming and going gains nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .plan import Plan, Span, Ticket
from .room import Holding

_NOTHING = (0, None)
SHARERS = 8  # shorter turns would cut large frames over more batches, each with an answer of its own


class FairQueue:
    """The tickets of one priority in a lane."""

    __slots__ = ("_empty", "_flows", "_level", "_ring", "_turn")

    def __init__(self) -> None:
        self._flows: dict[int, _Flow] = {}
        self._ring: deque[_Flow] = deque()  # who has not had this round's turn stands before who has
        self._empty = 0  # flows in the ring that were withdrawn whole
        self._level = 0
        self._turn = 0  # of this round, rows

    def __bool__(self) -> bool:
        return bool(self._flows)

    def __iter__(self) -> Iterator[Ticket]:
        """The tickets with rows to dispatch."""
        return (ticket for flow in self._flows.values() for ticket in flow.tickets if ticket.left)

    @property
    def head(self) -> Ticket:
        """The ticket that goes next."""
        return self._first().tickets[0]

    def add(self, ticket: Ticket) -> None:
        """Queue a frame; its holding is known."""
        flow = self._flows.get(ticket.client)
        if flow is None:
            flow = self._flows[ticket.client] = _Flow(ticket.holding, self._level)
            self._ring.append(flow)
        flow.tickets.append(ticket)

    def fill(self, plan: Plan, batch_rows: int, flow_rows: int, room_bytes: int, now: float) -> int:
        """Move rows into a batch by turns, while they fit.

        Args:
            plan: the batch. Rows whose deadline has passed go to its `expired`.
            batch_rows: most rows it may have.
            flow_rows: most that a flow may add.
            room_bytes: free in the batch.
            now: s.

        Returns:
            Bytes still free.
        """
        flows, ring = self._flows, self._ring
        added: dict[_Flow, tuple[int, Span | None]] = {}  # of flows that have more: rows in the batch, the last of them
        done: list[_Flow] = []  # flows that may add no more
        while len(done) < len(flows) and plan.rows < batch_rows:
            flow = self._first()
            before = plan.rows
            had, last = added.get(flow, _NOTHING)
            alone = len(flows) == 1
            end = min(batch_rows, before + flow_rows - had)
            if not alone:
                if flow.had >= self._level:
                    self._turn = max(1, batch_rows // min(len(flows), SHARERS))
                    self._level += self._turn
                end = min(end, before + self._level - flow.had)
            room_bytes = flow.dispatch(plan, end, room_bytes, last, now)
            if not flow.tickets:
                ring.popleft()
                self._forget(flow)
                continue
            moved = plan.rows - before
            if plan.spans and plan.spans[-1].ticket.client == flow.holding.client:
                last = plan.spans[-1]
            added[flow] = had + moved, last
            flow.had = self._level if alone else flow.had + moved
            if plan.rows < end:
                break  # its next row does not fit
            if had + moved >= flow_rows:
                done.append(ring.popleft())
            elif flow.had >= self._level:
                ring.rotate(-1)
        for flow in reversed(done):
            # A turn that the bound cut short goes on in the next batch, but no more of them than one are made up for.
            flow.had = max(flow.had, self._level - self._turn)
            if flow.had < self._level:
                ring.appendleft(flow)
            else:
                ring.append(flow)
        return room_bytes

    def empty(self, plan: Plan, now: float) -> None:
        """Move all rows into a batch that has room for them; most batches are so, and it takes half the time."""
        for flow in self._flows.values():
            for ticket in flow.tickets:
                if ticket.deadline <= now:
                    ticket.move(ticket.rows, plan.expired)
                elif ticket.left:
                    plan.rows += ticket.move(ticket.rows, plan.spans)
        self._flows.clear()
        self._ring.clear()
        self._empty = 0

    def withdrawn(self, ticket: Ticket) -> None:
        """Let go of a ticket none of whose rows is left to dispatch."""
        flow = self._flows[ticket.client]
        flow.gone += 1
        flow.trim()
        if not flow.tickets:
            self._leave(flow)

    def newest(self, client: int) -> Ticket | None:
        """Take out a client's newest ticket; None if it has none here."""
        flow = self._flows.get(client)
        if flow is None:
            return None
        ticket = flow.pop_newest()
        if not flow.tickets:
            self._leave(flow)
        return ticket

    def expire(self, now: float, spans: list[Span]) -> None:
        """Move the rows whose deadline has passed to `spans`."""
        for flow in list(self._flows.values()):
            flow.expire(now, spans)
            if not flow.tickets:
                self._leave(flow)

    def _first(self) -> _Flow:
        """The flow whose turn it is."""
        ring = self._ring
        while not ring[0].tickets:
            ring.popleft()
            self._empty -= 1
        return ring[0]

    def _forget(self, flow: _Flow) -> None:
        del self._flows[flow.holding.client]

    def _leave(self, flow: _Flow) -> None:
        """Forget a flow wherever it stands: it leaves the ring with others, once they are most of it."""
        self._forget(flow)
        self._empty += 1
        if 2 * self._empty > len(self._ring):
            self._ring = deque(each for each in self._ring if each.tickets)
            self._empty = 0


class _Flow:
    """What one client has in a queue: tickets, of which the first has rows to dispatch.

    Attributes:
        holding: what its client has waiting, here and elsewhere.
        tickets: in order of arrival.
        had: rows dispatched, on the scale of the queue's level.
        gone: tickets that were withdrawn whole.
    """

    __slots__ = ("gone", "had", "holding", "tickets")

    def __init__(self, holding: Holding, level: int) -> None:
        self.holding = holding
        self.tickets: deque[Ticket] = deque()
        self.had = level
        self.gone = 0

    def dispatch(self, plan: Plan, end: int, room_bytes: int, last: Span | None, now: float) -> int:
        """Move rows into a batch until it has `end`, or the next does not fit.

        Args:
            last: the flow's last rows in the batch; what follows them in their frame joins them.

        Returns:
            Bytes still free.
        """
        tickets, spans = self.tickets, plan.spans
        while tickets and plan.rows < end:
            ticket = tickets[0]
            if ticket.deadline <= now:
                ticket.move(ticket.rows, plan.expired)
            else:
                fit = room_bytes // (ticket.row_bytes or 1)
                if fit < 1 and plan.rows:
                    break
                room_rows = end - plan.rows
                moved = ticket.move(room_rows if room_rows < fit else fit or 1, spans)
                plan.rows += moved
                room_bytes -= moved * ticket.row_bytes
                if last is not None and last.precedes(spans[-1]):
                    last.count += spans.pop().count
            if not ticket.left:
                tickets.popleft()
                if self.gone:
                    self.trim()
        return room_bytes

    def trim(self) -> None:
        """Let go of tickets withdrawn: of those at the head at once, of others when they are most of all."""
        tickets = self.tickets
        while tickets and not tickets[0].left:
            tickets.popleft()
            self.gone -= 1
        if 2 * self.gone > len(tickets):
            self._keep([ticket for ticket in tickets if ticket.left])

    def pop_newest(self) -> Ticket:
        """Take out the newest ticket."""
        while not self.tickets[-1].left:
            self.tickets.pop()
            self.gone -= 1
        return self.tickets.pop()

    def expire(self, now: float, spans: list[Span]) -> None:
        """Move the rows whose deadline has passed to `spans`."""
        for ticket in self.tickets:
            if ticket.deadline <= now:
                ticket.move(ticket.rows, spans)
        self._keep([ticket for ticket in self.tickets if ticket.left])

    def _keep(self, tickets: list[Ticket]) -> None:
        self.tickets.clear()
        self.tickets.extend(tickets)
        self.gone = 0

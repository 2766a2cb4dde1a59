"""The front: takes frames in, lays batches out for the engine, and answers from what it gives back.

It never imports CUDA, and creates no object a row: the unit is a run of rows of one frame. What may run is the
planner's to decide; this module only acts on it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

import structlog

from ..bus.errors import BusError, Busy, Cancelled, EngineLost, Expired, OperationFailed, from_wire
from ..bus.frames import By, row_error
from ..bus.service import Held, Service
from .admission import Admission, LaneSpec
from .engine import Engine
from .job import Done
from .operation import Operation
from .planner import Limits, Plan, Planner, Span, Ticket
from .staging import Answers, stage
from .telemetry import Telemetry

PROBE_S = 0.05  # rows that have waited this long: ask the server whether their caller is still there
PROBE_AGAIN_S = 1.0  # before the same caller is asked again
DOWN_S = 2.0  # the engine has been gone for so long: refuse frames, so that callers turn to other workers
DOWN_LOOK_S = 0.1
BACKLOG_BYTES = 64 << 20  # of answers that the connection has not taken: start nothing that would add to them
BACKLOG_S = 0.005
NEVER = float("inf")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Running:
    """A batch the engine has.

    Attributes:
        plan: its rows.
        spec: what they have in common.
        slab: number of the slab they lie in.
        started: when it was handed over, monotonic time, s.
    """

    plan: Plan
    spec: LaneSpec
    slab: int
    started: float


class Front:
    """Serves operations of one engine over one service.

    Attributes:
        planner: decides what runs; its counters are the queue's statistics.
        telemetry: where measurements go.
    """

    def __init__(
        self, service: Service, engine: Engine, operations: dict[str, Operation], limits: Limits, telemetry: Telemetry
    ) -> None:
        self.planner = Planner(limits, slots=0)
        self.telemetry = telemetry
        self._service = service
        self._engine = engine
        self._admission = Admission(operations, limits.max_bytes)
        self._free = list(range(len(engine.slabs)))
        self._running: dict[int, Running] = {}
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._prober: asyncio.TimerHandle | None = None
        self._batches = 0
        self._down_since = NEVER
        self._stopped = False
        self._asked: dict[int, float] = {}
        engine.on_done = self._on_done
        engine.on_lost = self._on_lost
        engine.on_ready = self._on_ready
        service.on_cancel = self._on_cancel
        telemetry.watch(self.planner, service, engine)

    def accept(self, held: Held) -> None:
        """Queue a frame's rows.

        Raises:
            BadColumn, BadParameter, TooLarge: the frame does not suit the operation.
            Busy: the queue, or the number of lanes, is at its limit.
        """
        if monotonic() - self._down_since > DOWN_S:
            raise Busy(f"the {self._engine.name} engine is down and being started again", retry_after_s=1.0)
        spec = self._admission.admit(held.endpoint.name, held.request)
        lane = self.planner.lane(spec.key, spec.operation.max_rows)
        request = held.request
        sent = held.payload_bytes // request.n  # the whole payload is held, whatever is in it
        row_bytes = max(1, spec.row_bytes + sent if spec.variable else max(spec.row_bytes, sent))
        ticket = Ticket(held, lane, request.n, row_bytes, request.prio, held.arrived, held.deadline)
        self.planner.offer(ticket, held.arrived)
        lane.spec = spec
        held.ticket = ticket
        self._pump_soon()

    def stop(self) -> None:
        """Let go of timers; after the drain."""
        self._stopped = True
        for timer in (self._timer, self._prober):
            if timer is not None:
                timer.cancel()

    def _pump_soon(self) -> None:
        """Look at the end of this loop tick for what may run: frames that came together leave together."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        planner = self.planner
        now = monotonic()
        if self._service.backlog_bytes > BACKLOG_BYTES:  # answers leave more slowly than they are made
            self._wake_in(BACKLOG_S)
            return
        for plan in planner.due(now):
            if plan.expired:
                self._expire(plan.expired)
            if plan.rows:
                self._start(plan, now)
        if planner.waiting_rows:
            self._watch(now)

    def _watch(self, now: float) -> None:
        """Rows wait: wake when a window or deadline passes, and see now and then whether their callers still do."""
        at = self.planner.next_deadline()
        if at is not None:
            self._wake_in(max(0.0, at - now))
        if self._prober is None:
            self._prober = self._loop.call_later(PROBE_S, self._probe)

    def _wake_in(self, delay_s: float) -> None:
        """Look again then, and not when it was meant before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._pump)

    def _start(self, plan: Plan, now: float) -> None:
        slab = self._free.pop()
        spec: LaneSpec = plan.lane.spec
        self._batches += 1
        try:
            job = stage(self._batches, plan, spec, self._engine.slabs[slab], slab)
        except Exception:
            _log.exception("batch not staged", operation=spec.operation.name, rows=plan.rows)
            self._free.append(slab)
            self.planner.finished(plan, 0.0, whole=False)
            self._fail(plan, OperationFailed("the worker could not lay the batch out; its log holds the reason"))
            self._pump_soon()
            return
        self._running[job.id] = Running(plan, spec, slab, now)
        self._engine.submit(job)
        self.telemetry.on_start(spec.operation.name, plan, now, monotonic())

    def _on_done(self, done: Done) -> None:
        running = self._running.pop(done.id, None)
        if running is None:
            return  # of an engine that was given up: its rows have been answered
        self.planner.finished(running.plan, done.run_us / 1e6, whole=not done.failed)
        self._pump()  # the next batch first: the engine works while this one is answered
        before = monotonic()
        if done.failed:
            self._fail(running.plan, from_wire(done.failed, done.message))
        else:
            self._answer(running, done)
        self._free.append(running.slab)
        self.telemetry.on_done(running.spec.operation.name, running.plan, done, monotonic() - before)

    def _answer(self, running: Running, done: Done) -> None:
        """Fan the rows of a batch's result back to their frames."""
        plan = running.plan
        answers = Answers(self._engine.slabs[running.slab], done, plan.rows)
        position = 0
        for spans in _by_frame(plan.spans):
            held: Held = spans[0].ticket.frame
            by = By(self._engine.name, plan.rows, int(1e6 * (running.started - held.arrived)), done.run_us)
            at, columns, errors, gone = answers.take(spans, position)
            position += sum(span.count for span in spans)
            if gone:
                self._service.drop(held, gone)
            if at or errors:
                self._service.answer(held, at, columns, errors, by)

    def _fail(self, plan: Plan, error: BusError) -> None:
        """Answer every row of a batch with one error; those of an abandoned batch are only let go."""
        if isinstance(error, Cancelled):
            for span in plan.spans:
                self._service.drop(span.ticket.frame, span.count)
        else:
            self._refuse(plan.spans, error)

    def _expire(self, spans: list[Span]) -> None:
        self.telemetry.on_drop("expired", sum(span.count for span in spans))
        self._refuse(spans, Expired("the deadline passed while the row waited in the worker's queue"))

    def _refuse(self, spans: list[Span], error: BusError) -> None:
        """Answer rows with one error, each frame once."""
        for of_frame in _by_frame(spans):
            errors = [row_error(error, span.start, span.count) for span in of_frame]
            self._service.answer(of_frame[0].ticket.frame, [], {}, errors)

    def _on_cancel(self, held: Held, rows: list[int]) -> None:
        """A caller withdrew: drop its rows where they wait, mark them where they run."""
        ticket: Ticket = held.ticket
        wanted = rows or range(ticket.rows)
        waiting = self.planner.withdraw(ticket, wanted)
        if waiting:
            self.telemetry.on_drop("cancelled", waiting)
            self._service.drop(held, waiting)
        chosen = set(wanted)
        for running in self._running.values():
            alive = self._engine.slabs[running.slab].view
            position = 0
            for span in running.plan.spans:
                if span.ticket is ticket:
                    for row in chosen.intersection(range(span.start, span.start + span.count)):
                        alive[position + row - span.start] = 0
                position += span.count

    def _on_lost(self) -> None:
        """The engine died: nothing runs, and nothing starts until it is ready again."""
        self.planner.slots = 0
        self._down_since = monotonic()
        self._loop.call_soon(self._while_down)
        lost, self._running = list(self._running.values()), {}
        for running in lost:
            self.planner.finished(running.plan, 0.0, whole=False)
            self._free.append(running.slab)
            self._fail(running.plan, EngineLost(f"the {self._engine.name} engine ended while it ran the batch"))

    def _while_down(self) -> None:
        """Tell callers whose deadline passes; nothing is dispatched that would meet their rows."""
        if self.planner.slots == 0 and not self._stopped:
            expired = self.planner.expire(monotonic())
            if expired:
                self._expire(expired)
            self._loop.call_later(DOWN_LOOK_S, self._while_down)

    def _on_ready(self) -> None:
        self._down_since = NEVER
        self.planner.slots = self._engine.slots
        self._pump_soon()

    def _probe(self) -> None:
        """Ask once a client of rows that have waited long whether it still listens."""
        self._prober = None
        now = monotonic()
        self._asked = {client: at for client, at in self._asked.items() if now - at < PROBE_AGAIN_S}
        for held in self._service.held.values():
            client = held.request.client
            if client and client not in self._asked and now - held.arrived >= PROBE_S:
                self._asked[client] = now
                self._service.probe(held)
        if self._service.held:
            self._prober = self._loop.call_later(PROBE_S, self._probe)


def _by_frame(spans: list[Span]) -> list[list[Span]]:
    """Consecutive spans of one frame together: a frame gets one reply a batch."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and groups[-1][0].ticket is span.ticket:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups

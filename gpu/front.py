"""The front: takes frames in, lays batches out for an engine, and answers from what it gives back.

It never imports CUDA, and creates no object a row: the unit is a run of rows of one frame. What may run is the
planner's to decide, and where the fallback's; this module only acts on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from time import monotonic

import structlog

from ..bus import tracing
from ..bus.errors import BusError, Busy, Cancelled, EngineDown, EngineLost, Expired, OperationFailed, from_wire
from ..bus.frames import By, row_error
from ..bus.service import Held, Service
from .admission import Admission, LaneSpec
from .breaker import DEFAULT as DEFAULT_BREAKER
from .breaker import BreakerLimits
from .engine import Engine
from .fallback import Fallback
from .job import Done
from .operation import Operation
from .parts import by_frame
from .plan import Limits, Place, Plan, Span, Ticket
from .planner import Planner
from .staging import Answers, stage
from .station import Running, Station
from .telemetry import Telemetry

PROBE_S = 0.05  # rows that have waited this long: ask the server whether their caller is still there
PROBE_AGAIN_S = 1.0  # before the same caller is asked again
DOWN_S = 2.0  # the engine has been gone for so long: refuse frames, so that callers turn to other workers
DOWN_AGAIN_S = 0.5  # before a caller should try again
DOWN_LOOK_S = 0.1
BACKLOG_BYTES = 64 << 20  # of answers that the connection has not taken: start nothing that would add to them
BACKLOG_S = 0.005
FIRST_ROWS = 64  # of a lane's first batch on a CPU: its pace there is not known, and may be a hundredth of a GPU's
NEVER = float("inf")

_log = structlog.get_logger(__name__)


class Front:
    """Serves operations over one service.

    Args:
        service: where frames come from.
        engines: the device, and on a GPU the spare behind it.
        operations: by name.
        limits: of batches and queues.
        telemetry: where measurements go.
        breaker: when an operation is kept from the device; where there is a spare.

    Attributes:
        planner: decides what runs; its counters are the queue's statistics.
        fallback: decides where.
        telemetry: where measurements go.
    """

    def __init__(
        self,
        service: Service,
        engines: Sequence[Engine],
        operations: dict[str, Operation],
        limits: Limits,
        telemetry: Telemetry,
        breaker: BreakerLimits = DEFAULT_BREAKER,
    ) -> None:
        self._stations = [
            Station(engine, FIRST_ROWS if engine.name.startswith("cpu") else limits.max_rows) for engine in engines
        ]
        places = [station.place for station in self._stations]
        self.planner = Planner(limits, *places)
        self.fallback = Fallback(places[0], places[1] if places[1:] else None, breaker)
        self.telemetry = telemetry
        self._service = service
        self._admission = Admission(operations, limits.max_bytes)
        self._limit_s = limits.limit_s
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._prober: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._batches = 0
        self._down_since = NEVER
        self._stopped = False
        self._asked: dict[int, float] = {}
        for station in self._stations:
            station.engine.on_done = partial(self._on_done, station)
            station.engine.on_lost = partial(self._on_lost, station)
            station.engine.on_ready = partial(self._on_ready, station)
        service.on_cancel = self._on_cancel
        service.why_unanswered = self._why_unanswered
        telemetry.watch(self.planner, service, engines)
        telemetry.watch_fallback(self.fallback)

    def accept(self, held: Held) -> None:
        """Queue a frame's rows.

        Raises:
            BadColumn, BadParameter, TooLarge: the frame does not suit the operation.
            Busy: the queue, its client's part of it, or the number of lanes is at its limit.
        """
        if monotonic() - self._down_since > DOWN_S:
            raise EngineDown(
                f"the {self.fallback.device.name} engine is being started again", retry_after_s=DOWN_AGAIN_S
            )
        spec = self._admission.admit(held.endpoint.name, held.request)
        lane = self.planner.lane(spec.key, spec.operation.max_rows)
        request = held.request
        sent = held.payload_bytes // request.n  # the whole payload is held, whatever is in it
        row_bytes = max(1, spec.row_bytes + sent if spec.variable else max(spec.row_bytes, sent))
        ticket = Ticket(held, lane, request.n, row_bytes, request.prio, held.arrived, held.deadline, request.client)
        displaced = self.planner.offer(ticket, held.arrived)
        if displaced:
            self._displace(displaced)
        lane.spec = spec
        lane.move(self.fallback.home(spec.operation.name))
        held.ticket = ticket
        self._pump_soon()

    def stop(self) -> None:
        """Let go of timers; after the drain."""
        self._stopped = True
        for timer in (self._timer, self._prober, self._watchdog):
            if timer is not None:
                timer.cancel()

    def _pump_soon(self) -> None:
        """Look at the end of this loop tick for what may run: frames that came together leave together."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._stopped:
            return
        planner = self.planner
        now = monotonic()
        if self._service.backlog_bytes > BACKLOG_BYTES:  # answers leave more slowly than they are made
            self._wake_in(BACKLOG_S)
            return
        for plan in planner.due(now):
            if plan.expired:
                self._expire(plan.expired)
                plan.expired = []  # should it have to run again
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
        spec: LaneSpec = plan.lane.spec
        name = spec.operation.name
        if self.fallback.tries(plan, name, now):
            self.planner.redirect(plan, self.fallback.device)
        elif plan.place is self.fallback.spare and not plan.reason:
            plan.reason = self.fallback.reason(name)
        station = self._station_of(plan)
        slab = station.free.pop()
        self._batches += 1
        try:
            job = stage(self._batches, plan, spec, station.engine.slabs[slab], slab)
        except Exception:
            _log.exception("batch not staged", operation=name, rows=plan.rows)
            station.free.append(slab)
            self.planner.finished(plan, 0.0, whole=False)
            self._fail(plan, OperationFailed("the worker could not lay the batch out; its log holds the reason"))
            self._pump_soon()
            return
        station.running[job.id] = Running(plan, spec, slab, job.began, now)
        station.engine.submit(job)
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._limit_s, self._watch_limits)
        self.telemetry.on_start(name, plan, now, monotonic())

    def _station_of(self, plan: Plan) -> Station:
        return next(station for station in self._stations if station.place is plan.place)

    def _on_done(self, station: Station, done: Done) -> None:
        running = station.running.pop(done.id, None)
        if running is None:
            return  # of an engine that was given up: its rows have been answered
        ended = monotonic()
        plan, operation = running.plan, running.spec.operation
        self.planner.finished(plan, done.run_us / 1e6, whole=not done.failed)
        again = None
        if done.failed == OperationFailed.code:
            again, parts = self.fallback.failed(plan, operation)
            if again is not None:
                self._run_again(parts, again, done.failed)
        elif not done.failed:
            self._ended(plan, operation.name)
        try:
            self._pump()  # the next batch first: the engine works while this one is answered
            before = monotonic()
            if not done.failed:
                self._answer(station, running, done)
            elif again is None:
                self._fail(plan, from_wire(done.failed, done.message))
        finally:
            station.free.append(running.slab)
        self.telemetry.on_done(operation.name, plan, done, monotonic() - before)
        if again is None and tracing.records():
            self._trace(station, running, done, ended, before)

    def _run_again(self, plans: list[Plan], place: Place, reason: str) -> None:
        """Let what is left of a batch that came to nothing run again, there."""
        for plan in plans:
            self.telemetry.on_again(reason, plan.rows)
            self.planner.run_again(plan, place, reason)

    def _ended(self, plan: Plan, operation: str) -> None:
        """A batch ended well: perhaps the device is trusted again, or not any more."""
        before = self.fallback.home(operation)
        self.fallback.ended(plan, operation, monotonic())
        if self.fallback.home(operation) is not before:
            self._move_lanes()

    def _move_lanes(self) -> None:
        """Let every lane's rows go where its operation belongs now."""
        for lane in self.planner.lanes.values():
            if lane.spec is not None:
                lane.move(self.fallback.home(lane.spec.operation.name))
        for station in self._stations:
            place = station.place
            refuge = self.fallback.refuge(place)
            if not place.slots and refuge is not place:
                for plan in place.again:
                    for part in self.fallback.parts(plan, refuge):
                        part.place = refuge
                        refuge.again.append(part)
                place.again.clear()

    def _answer(self, station: Station, running: Running, done: Done) -> None:
        """Fan the rows of a batch's result back to their frames."""
        plan = running.plan
        answers = Answers(station.engine.slabs[running.slab], done, plan.rows)
        position = 0
        for spans in by_frame(plan.spans):
            held: Held = spans[0].ticket.frame
            queue_us = int(1e6 * (running.started - held.arrived))
            by = By(station.engine.name, plan.rows, queue_us, done.run_us, plan.reason)
            at, columns, errors, gone = answers.take(spans, position)
            position += sum(span.count for span in spans)
            if gone:
                self._service.drop(held, gone)
            if at or errors:
                self._service.answer(held, at, columns, errors, by)

    def _trace(self, station: Station, running: Running, done: Done, ended: float, answering: float) -> None:
        """Tell the traces that frames of a batch are part of."""
        plan, callers = running.plan, []
        for spans in by_frame(plan.spans):
            held: Held = spans[0].ticket.frame
            if held.request.trace:
                callers.append(tracing.Caller(held.request.trace, held.arrived, sum(span.count for span in spans)))
        if callers:
            name, engine, run_s = running.spec.operation.name, station.engine.name, done.run_us / 1e6
            told = tracing.Batch(
                name, plan.rows, engine, plan.reason, running.started, ended, answering, run_s, done.failed
            )
            tracing.batch(told, callers)

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

    def _displace(self, spans: list[Span]) -> None:
        """Give rows back that left the queue for those of clients that hold less."""
        self.telemetry.on_drop("displaced", sum(span.count for span in spans))
        retry_after_s = self.planner.retry_after_s()
        self._refuse(spans, Busy("others need the worker's queue: send less at once", retry_after_s=retry_after_s))

    def _refuse(self, spans: list[Span], error: BusError) -> None:
        """Answer rows with one error, each frame once."""
        for of_frame in by_frame(spans):
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
        if not ticket.next:
            return  # no batch has rows of it, and looking through thousands for each of thousands takes seconds
        chosen = set(wanted)
        for station in self._stations:
            for running in station.running.values():
                alive = station.engine.slabs[running.slab].view
                for position in _positions(running.plan, ticket, chosen):
                    alive[position] = 0
                    running.plan.gone.add(position)  # should it have to run again
            for plan in station.place.again:
                plan.gone.update(_positions(plan, ticket, chosen))

    def _why_unanswered(self, held: Held) -> BusError:
        """What a caller is told at the end of a stop: to ask another worker, unless that may be for the second time."""
        ticket: Ticket = held.ticket
        if ticket.next and not ticket.lane.spec.operation.pure:
            return EngineLost("the worker stopped while it ran the batch")
        return Busy("the worker stopped before it had run these rows: ask again")

    def _on_lost(self, station: Station) -> None:
        """An engine died: nothing starts there until it is ready again, and what it had runs elsewhere, or then."""
        station.place.slots = 0
        now = monotonic()
        lost, station.running = list(station.running.values()), {}
        self.fallback.died(station.place, {running.spec.operation.name for running in lost}, now)
        for running in lost:
            self.planner.finished(running.plan, 0.0, whole=False)
            station.free.append(running.slab)
            place, plans = self.fallback.lost(running.plan, running.spec.operation)
            if place is None:
                self._fail(running.plan, EngineLost(f"the {station.engine.name} engine ended while it ran the batch"))
                continue
            for plan in plans:  # by default an engine may hang for longer than callers wait
                if plan.late(now):
                    self._expire(plan.spans)
            self._run_again([plan for plan in plans if not plan.late(now)], place, EngineLost.code)
        self._move_lanes()
        if self.fallback.down:
            self._down_since = now
            self._loop.call_soon(self._while_down)
        self._pump_soon()

    def _while_down(self) -> None:
        """Tell callers whose deadline passes; nothing is dispatched that would meet their rows."""
        if self.fallback.down and not self._stopped:
            expired = self.planner.expire(monotonic())
            if expired:
                self._expire(expired)
            self._loop.call_later(DOWN_LOOK_S, self._while_down)

    def _on_ready(self, station: Station) -> None:
        self._down_since = NEVER
        station.place.slots = station.engine.slots
        self._move_lanes()
        self._pump_soon()

    def _watch_limits(self) -> None:
        """End an engine whose batch runs too long; what it had runs again."""
        self._watchdog = None
        now = monotonic()
        oldest = NEVER
        for station in self._stations:
            for running in station.running.values():
                since = station.since(running)
                if now - since < self._limit_s:
                    oldest = min(oldest, since)
                    continue
                _log.error(
                    "batch exceeds its time limit, its engine is ended",
                    engine=station.engine.name,
                    operation=running.spec.operation.name,
                    rows=running.plan.rows,
                    limit_s=self._limit_s,
                )
                station.engine.kill()
                break
        if oldest < NEVER:
            self._watchdog = self._loop.call_later(oldest + self._limit_s - now, self._watch_limits)

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


def _positions(plan: Plan, ticket: Ticket, rows: set[int]) -> Iterator[int]:
    """Where rows of a frame lie in a batch."""
    position = 0
    for span in plan.spans:
        if span.ticket is ticket:
            for row in rows.intersection(range(span.start, span.start + span.count)):
                yield position + row - span.start
        position += span.count

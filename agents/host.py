"""The host: takes what the agents of this process are asked, and runs it as their mailboxes allow."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

from ..bus import tracing
from ..bus.columns import unpack
from ..bus.errors import BadColumn, BadFrame, BusError, Busy, Cancelled, Closed, Expired, WrongKind
from ..bus.frames import row_error
from ..bus.open_streams import OpenStream
from ..bus.service import Held, Service
from .agent import Resident
from .keyed_call import keyed_calls
from .producer import Producer
from .replies import Asked, Replies
from .run import Run

PROBE_S = 0.5  # a call that has run so long: ask the server whether its caller is still there
PROBE_AGAIN_S = 5.0  # before the same caller is asked again
NEVER = float("inf")


class Host:
    """Serves agents over one service.

    Args:
        service: where frames come from.
        process: this process's name, told with each answer.
        bus: what handlers ask through.

    Attributes:
        residents: the agents that are served, by name.
    """

    def __init__(self, service: Service, process: str, bus: Any) -> None:
        self.residents: dict[str, Resident] = {}
        self._service = service
        self._bus = bus
        self._replies = Replies(service, process)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # the app's: a run inherits nothing of whoever asks, or ran before
        self._context.run(tracing.forget)
        self._running: dict[Run, float] = {}  # since when, monotonic time, s
        self._sweep_at = NEVER
        self._sweeper: asyncio.TimerHandle | None = None
        self._prober: asyncio.TimerHandle | None = None
        self._asked: dict[int, float] = {}
        service.on_cancel = self._on_cancel

    async def serve(self, resident: Resident) -> None:
        """Take calls of an agent's handlers from now on."""
        self.residents[resident.name] = resident
        kind = resident.kind
        if kind.handlers:
            await self._service.serve_handlers(resident.name, self._accept, kind.metadata)

    def give_up(self) -> bool:
        """Refuse what waits, and end what runs, because there is no more time; false if there was nothing."""
        left = list(self._running)
        for run in left:
            self._leave(run, Closed)
        for resident in self.residents.values():
            for run in resident.mailbox.expire(NEVER):
                run.refuse(Busy("the agent's process stopped: ask again"))
                left.append(run)
        return bool(left)

    def stop(self) -> None:
        """Let go of timers; after the drain."""
        for timer in (self._sweeper, self._prober):
            if timer is not None:
                timer.cancel()

    def _accept(self, held: Held) -> None:
        """Take a frame: every row a call; of a stream, its call, or word that more is wanted.

        Raises:
            BadColumn, BadFrame, WrongKind: the frame is not for this handler.
        """
        _, agent, name = held.endpoint.name.split(".")
        resident = self.residents[agent]
        handler = resident.kind.handlers[name]
        stream = held.stream
        if stream is not None and held.request.n != 1:
            raise BadFrame(f"n is {held.request.n}: a part of an agent's stream is one row")
        if stream is not None and stream.ticket is not None:
            stream.ticket.pull(held)
            return
        if handler.streams != (stream is not None):
            how = f"open a stream, peer.{name}.stream(…)" if handler.streams else f"call it, await peer.{name}(…)"
            raise WrongKind(f"{resident.name}.{name} {'streams' if handler.streams else 'answers once'}: {how}")
        messages = _texts(held, "message")
        chains = _texts(held, "chain") if "chain" in held.request.cols else [b""] * held.request.n
        if stream is not None:
            producer = Producer(resident, handler, held, messages[0], chains[0], self._service)
            stream.ticket = producer
            stream.on_close = partial(self._on_close, producer, stream)
            runs: Sequence[Run] = [producer]
        elif resident.ownership is not None:
            runs = held.ticket = keyed_calls(resident, handler, held, messages, chains, self._replies)
        else:
            runs = held.ticket = [
                Asked(resident, handler, held, message, chain, row, self._replies)
                for row, (message, chain) in enumerate(zip(messages, chains, strict=True))
            ]
        if "trace" in held.request.cols:
            for run, trace in zip(runs, _texts(held, "trace"), strict=True):
                run.trace = str(trace)
        self._offer(resident, runs, held.request.prio or handler.priority)
        if resident.ownership is not None:
            resident.ownership.accepted(runs)

    def _offer(self, resident: Resident, runs: Sequence[Run], priority: int) -> None:
        """Run calls, or let them wait; for all of a frame for which there is no room there is one word."""
        mailbox = resident.mailbox
        for number, run in enumerate(runs):
            if mailbox.begin():
                self._begin(run)
                continue
            if len(mailbox) >= mailbox.most_waiting:
                _expire(mailbox.expire(monotonic()))
            try:
                mailbox.offer(run, priority, run.deadline)
            except Busy as busy:
                self._refuse(runs[number:], busy)
                return

    def _refuse(self, runs: Sequence[Run], busy: Busy) -> None:
        self._service.count_rejection(busy.code)
        first = runs[0]
        if isinstance(first, Asked):
            for run in runs:
                run.answered = True  # type: ignore[attr-defined]
            self._service.answer(first.held, [], {}, [row_error(busy, first.row, len(runs))])
        else:
            first.refuse(busy)

    def _start(self, resident: Resident) -> None:
        """Run what waits for an agent, as far as its concurrency goes."""
        taken, late = resident.mailbox.due(monotonic())
        _expire(late)
        for run in taken:
            self._begin(run)

    def _begin(self, run: Run) -> None:
        run.task = self._loop.create_task(self._run(run), context=self._context.copy())
        self._running[run] = monotonic()
        if run.deadline < self._sweep_at:
            self._sweep_no_later_than(run.deadline)
        if self._prober is None:
            self._prober = self._loop.call_later(PROBE_S, self._probe)

    async def _run(self, run: Run) -> None:
        run.began = True
        try:
            if run.left is None:
                with run.traced():
                    await run.work(self._bus)
            else:
                run.refuse(run.ended_early())
        except asyncio.CancelledError:
            run.refuse(run.ended_early())
        finally:
            run.resident.mailbox.finished(monotonic() - self._running.pop(run))
            if run.resident.mailbox:
                self._start(run.resident)

    def _on_cancel(self, held: Held, rows: list[int]) -> None:
        """A caller withdrew."""
        ticket: Producer | Sequence[Asked] = held.ticket
        if isinstance(ticket, Producer):
            ticket.withdraw(held)
            return
        for row in rows or range(len(ticket)):
            if row < len(ticket):
                self._leave(ticket[row], Cancelled)

    def _on_close(self, producer: Producer, stream: OpenStream) -> None:
        """No part of a stream follows; if nobody said so to its caller, what the caller waits for says it."""
        self._leave(producer, BadFrame if stream.forgotten else Cancelled)

    def _leave(self, run: Run, why: type[BusError]) -> None:
        """Nobody waits for a call any more: drop it where it waits, cancel it where it runs."""
        run.left = run.left or why
        if run.began:
            assert run.task is not None
            run.task.cancel()
        elif run.task is None and run.resident.mailbox.withdraw(run):
            run.refuse(run.ended_early())

    def _sweep_no_later_than(self, deadline: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweep_at = deadline
        self._sweeper = self._loop.call_later(max(0.0, deadline - monotonic()), self._sweep)

    def _sweep(self) -> None:
        """End what has passed its deadline, and sleep until the next may; a stream's caller sees to its own."""
        self._sweep_at = NEVER
        now = monotonic()
        calls = [run for run in self._running if isinstance(run, Asked) and run.left is None]
        for run in calls:
            if run.deadline <= now:
                self._leave(run, Expired)
        next_ = min((run.deadline for run in calls if run.left is None), default=NEVER)
        if next_ < NEVER:
            self._sweep_no_later_than(next_)

    def _probe(self) -> None:
        """Ask once a client of calls that run long whether it still listens."""
        self._prober = None
        now = monotonic()
        self._asked = {client: at for client, at in self._asked.items() if now - at < PROBE_AGAIN_S}
        for run, since in self._running.items():
            client = run.held.request.client
            if client and client not in self._asked and now - since >= PROBE_S:
                self._asked[client] = now
                self._service.probe(run.held)
        if self._running:
            self._prober = self._loop.call_later(PROBE_S, self._probe)


def _expire(runs: Sequence[Run]) -> None:
    for run in runs:
        run.refuse(Expired("the deadline passed while the call waited in the agent's mailbox"))


def _texts(held: Held, name: str) -> Any:
    """A column of strings of either kind.

    Raises:
        BadColumn: it is missing, or none.
    """
    column = held.request.cols.get(name)
    values = None if column is None else unpack(column, held.request.n)
    if not isinstance(values, list):
        raise BadColumn(f"column {name!r} is missing, or no strings: a call has its message there, bin or utf8")
    return values

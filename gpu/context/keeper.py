"""One graph while this process owns it: what callers say goes into the log, then into the state, then it is answered.

A window is appended when the one before is applied, a full one while it is; reads see what has been applied. Whatever
ends the ownership ends the keeper and its state: the log has all that was answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Any

import structlog

from ...bus.errors import BusError, Busy, Moved, NotWritten, OperationFailed, TooLarge
from ...bus.frames import By, row_error
from ...bus.jetstream import Refused, Unavailable
from ...bus.leases import Lease
from ...bus.partition_log import PartitionLog
from ...bus.service import Held, Service
from ...bus.transport import Subscription
from ..context_figures import Tally
from .calls import OF_A_GRAPH, SYSTEM, Asked
from .reads import Read
from .recovery import SnapshotTaker
from .said import said_by
from .state import GraphState
from .threads import InThread
from .watchers import Watchers
from .windows import Piece, Waiting, runs_of, sifted, words_of
from .words import Words, encode
from .work import Done, Window, Work

MOST_WAITING_BYTES = 256 << 20
"""Of what is said and not in the log; beyond it callers are told to try again."""
MOST_READS = 4096
"""Rows that are read at once, unless one frame has more."""
MOST_WAITING_READS = 1 << 18
"""Rows that are to be read; beyond them callers are told to try again."""
AHEAD = 2
"""Windows that are in the log and not applied, at most. A second one only if it is full: what could come into it later
would wait for the one after."""
ENTRY_SLACK = 1 / 16  # of a message, for what an entry of the log has beside its rows
FORGET_S = 60.0  # between two looks whether it is time to forget
LEAVE_AGAIN_S = 0.5  # before callers try a graph whose owner gave it up
WRITE_AGAIN_S = 0.5  # after what no caller said, as that something has ended, was refused

_log = structlog.get_logger(__name__)


class GraphKeeper:
    """Serves a graph until it is told to leave it, or has lost it. Whatever it has accepted is answered by then.

    Args:
        name: of the graph.
        state: what the log says, all of it.
        log: claimed.
        lease: by which this process owns it.
        service: answers.
        in_thread: where the state is used.
        window_rows: of a window, at most.
        max_payload: of a message, bytes.
        snapshots: takes them.
        device: what answers call where they come from.
        on_yield: called with the frame of the keeper that follows, which waits for this one's end.

    Attributes:
        ended: set when it serves no more.
        tally: what it has done.
        was_given_up: it ended because of a defect, or of its device.
    """

    def __init__(
        self,
        name: str,
        state: GraphState,
        log: PartitionLog,
        lease: Lease,
        service: Service,
        in_thread: InThread,
        window_rows: int,
        max_payload: int,
        snapshots: SnapshotTaker,
        device: str,
        on_yield: Callable[[Held], None],
    ) -> None:
        self.name = name
        self.state = state
        self.ended = asyncio.Event()
        self.was_given_up = False
        self.tally = Tally()
        self._log = log
        self._lease = lease
        self._service = service
        self._in_thread = in_thread
        self._snapshots = snapshots
        self._device = device
        self._on_yield = on_yield
        self._now_ms = state.now_ms
        self._expiry_ms = state.next_expiry_ms
        self._applied_at = monotonic()
        self._waiting = Waiting(window_rows, int(max_payload * (1 - ENTRY_SLACK)))
        self._writing: list[Piece] = []
        self._logged: deque[Window] = deque()
        self._doing: Work | None = None
        self._forgets = False
        self._forget_at = monotonic() + FORGET_S
        self._ahead = 0
        self._reads: deque[Read] = deque()
        self._read_rows = 0
        self._watchers = Watchers(service, state.spec.dimension)
        self._said = asyncio.Event()
        self._to_do = asyncio.Event()
        self._is_leaving = False
        self._has_written_all = False
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve from now on. Raises as `Service.serve_owned`."""
        accepts = {call: partial(self._accept, call) for call in OF_A_GRAPH}
        self._subscription = await self._service.serve_owned(SYSTEM, accepts, self.name)
        running = {"log": self._write(), "apply": self._apply()}
        self._tasks = [
            asyncio.create_task(self._guarded(task), name=f"aikoryu-context-{what}-{self.name}")
            for what, task in running.items()
        ]
        self._lease.on_lost.append(self._on_lost)
        if not self._lease.held:  # it may have told so before
            self._on_lost("it was lost before the graph was read")

    async def leave(self) -> None:
        """Take no more, answer what was taken, and let others have the graph.

        Cancelled, it leaves that half done: `give_up` follows.
        """
        if not self._is_leaving:
            self._is_leaving = True
            if self._subscription is not None:
                await self._subscription.drain()
            self._watchers.send_away()
            self._said.set()
            self._to_do.set()
            await asyncio.wait(self._tasks)
            if self._ending is None:
                self._ending = asyncio.create_task(self._end())
        await self.ended.wait()

    def give_up(self) -> None:
        """Have all callers ask another owner, and end: soon `ended` is set."""
        self._lose(Moved(f"the owner of graph {self.name} stops: ask again"))

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no more, or will soon not."""
        return self._is_leaving

    async def release(self) -> None:
        """Let others have the graph at once, whatever is under way here: the log takes no more of this keeper's."""
        await self._lease.release()

    @property
    def epoch(self) -> int:
        """Of the last entry of the log."""
        return self._log.last

    @property
    def waiting_rows(self) -> int:
        """What callers have said that is not in the log yet."""
        return self._waiting.rows + sum(map(len, self._writing))

    @property
    def watcher_count(self) -> int:
        """Rows that wait for a change."""
        return len(self._watchers)

    def withdraw(self, held: Held, rows: list[int]) -> None:
        """A caller waits no more for some rows of a frame; none named: for all. What was said has been said."""
        if isinstance(held.ticket, Read):
            held.ticket.is_alive = held.ticket.is_alive and bool(rows)
        else:
            self._watchers.withdraw(held, rows)

    def _accept(self, call: str, held: Held) -> None:
        """Take a frame. Raises a bus error to refuse it whole."""
        if call == "yield":
            self._on_yield(held)
        elif self._ending is not None or not self._lease.held:
            raise Moved(f"graph {self.name} is another's now, or will be: ask again")
        elif call in ("put", "link"):
            self._accept_words(call, held)
        elif call == "watch":
            if self._is_leaving:
                raise Moved(f"graph {self.name} is on its way to another owner: ask again")
            self._watchers.accept(held, monotonic())
            self._to_do.set()
        else:
            self._accept_read(call, held)

    def _accept_read(self, call: str, held: Held) -> None:
        if self._read_rows > MOST_WAITING_READS:
            raise Busy(f"{self._read_rows} rows wait to be read: ask for less at once, or try again", 0.05)
        read, refused = Read.of(call, held, self.state.spec, self.epoch)
        if refused:
            self._service.answer(held, [], {}, refused)
        if len(read):
            held.ticket = read
            self._reads.append(read)
            self._read_rows += len(read)
            self._to_do.set()

    def _accept_words(self, call: str, held: Held) -> None:
        if self._waiting.bytes > MOST_WAITING_BYTES:
            raise Busy(f"{self._waiting.bytes >> 20} MiB wait to be written: say less at once, or try again", 0.05)
        said = said_by(call, Asked(call, held.request), self.state.spec, _wall_ms())
        self._waiting.add(held, said)
        self._said.set()

    async def _write(self) -> None:
        """Append window after window, when the device is about to be idle or one is full."""
        while True:
            await self._snapshots.mark(self._log)
            # What is due by itself may as well be said by the next owner.
            is_due = not self._is_leaving and (self._forgets or self._is_expiry_due())
            has_room = not self._ahead or (self._ahead < AHEAD and self._waiting.is_full)
            if has_room and (self._waiting or is_due):
                await self._append()
            elif self._is_leaving and not self._waiting:
                break
            else:
                self._said.clear()
                await _either(self._said, self._expiry_within_s() if has_room else inf)
        self._has_written_all = True
        self._to_do.set()

    async def _append(self) -> None:
        """Append a window of what waits, which may be nothing."""
        taken = monotonic()
        self._now_ms = max(self._now_ms, _wall_ms())
        self._writing = self._waiting.take()
        words, is_refused = self._window()
        pieces = self._writing
        if is_refused and not pieces:
            await asyncio.sleep(0)  # others have their turn, however much is refused
            return
        data = encode(words)
        try:
            epoch = await self._log.append(data, self._log.last)
        except (Refused, Unavailable, TooLarge) as error:
            self._writing = []
            self._refuse(pieces, NotWritten(f"graph {self.name} cannot be written down: {error}"))
            if not pieces:
                await asyncio.sleep(WRITE_AGAIN_S)
            return
        self._writing = []
        self._expiry_ms = None  # known again when it is applied
        self._forgets = False
        self._snapshots.count(len(data))
        self._logged.append(Window(epoch, words, pieces, taken))
        self._ahead += 1
        self._to_do.set()

    def _window(self) -> tuple[Words, bool]:
        """What is being written, without what a graph cannot take, which is answered so; and whether anything is."""
        spec = self.state.spec
        words = words_of(self._writing, self._now_ms, spec.dimension, self._forgets)
        self._writing, words, refused = sifted(self._writing, words, spec)
        for held, errors in refused:
            self._service.answer(held, [], {}, errors)
        return words, bool(refused)

    async def _apply(self) -> None:
        """Apply what is in the log, read what is asked for, and tell watchers: as much at once as there is."""
        while True:
            now = monotonic()
            self._watchers.answer_ended(now)
            work = self._work(now)
            if work:
                self._doing = work
                done = await self._in_thread(partial(work.run, self.state))
                self._lease.check()
                if work.windows:
                    self._ahead -= len(work.windows)
                    self._said.set()
                    await asyncio.sleep(0)  # what waits is on its way to the log while these are answered
                self._answer(work, done, now)
                self._doing = None
            elif self._has_written_all and not self._logged and not self._reads:
                return
            else:
                self._to_do.clear()
                await _either(self._to_do, min(self._watchers.next_at, self._forget_at) - now)

    def _work(self, now: float) -> Work:
        """What the device's thread is to do next."""
        windows = list(self._logged)
        self._logged.clear()
        counts = {
            "windows": self.tally.windows,
            "rows": self.tally.rows,
            "watchers": len(self._watchers),
            "log_last": self.epoch,
            "device": self._device,
        }
        look = self._watchers.look(now, bool(windows))
        asks_forget = now >= self._forget_at
        if asks_forget:
            self._forget_at = now + FORGET_S
        age_s = now - self._applied_at
        reads = self._next_reads()
        return Work(windows, look, reads, self._snapshots.is_due, asks_forget, age_s, int(1000 * now), counts)

    def _next_reads(self) -> list[Read]:
        """The reads that wait longest, and for which somebody waits."""
        taken: list[Read] = []
        rows = 0
        while self._reads and rows < MOST_READS:
            read = self._reads.popleft()
            self._read_rows -= len(read)
            if read.is_alive:
                taken.append(read)
                rows += len(read)
            else:
                self._service.drop(read.held, len(read))
        return taken

    def _answer(self, work: Work, done: Done, began: float) -> None:
        now = monotonic()
        rows = sum(map(len, work.windows))
        by = By(self._device, rows, 0, int(1e6 * (now - began)))
        for window, applied in zip(work.windows, done.applied, strict=True):
            for held, runs, columns in window.answers(applied):
                self._service.answer(held, runs, columns, [], by)
            self.tally.add(len(window), applied.settled, now - window.taken)
        if work.windows:
            self._applied_at = now
            self._expiry_ms = self.state.next_expiry_ms
            self._said.set()
        for read, found in zip(work.reads, done.read, strict=True):
            if found is None:
                self._refuse([read], OperationFailed("the worker could not answer; its log holds the reason"))
            else:
                self._service.answer(read.held, runs_of(read.rows), found, [], by)
        self._watchers.answer(work.look, done.due, done.seen, self.state.epoch, now)
        if done.is_time_to_forget:
            self._forgets = True
            self._said.set()
        if done.copy is not None:
            self._snapshots.take(done.copy, self.state.epoch, self._said.set)

    def _refuse(self, frames: Iterable[Piece | Read], error: BusError) -> None:
        for each in frames:
            errors = [row_error(error, first, count) for first, count in runs_of(each.rows)]
            self._service.answer(each.held, [], {}, errors)

    async def _guarded(self, running: Coroutine[Any, Any, None]) -> None:
        """Run a task whose end by an error is the end of the ownership."""
        try:
            await running
        except BusError as error:
            self._lose(Moved(f"graph {self.name} is another's now, or will be: {error}"))
        except Exception:
            _log.exception("graph given up", graph=self.name)
            self.was_given_up = True
            self._lose(Moved(f"graph {self.name} was given up by its owner: ask again", LEAVE_AGAIN_S))

    def _lose(self, error: Moved) -> None:
        """Have callers ask the next owner, and end: also those whose words may be in the log, which count once."""
        if self._ending is not None:
            return
        _log.warning("graph lost", graph=self.name, reason=str(error))
        self._is_leaving = True
        self._ending = asyncio.create_task(self._end())
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        doing = self._doing
        windows = [*(doing.windows if doing is not None else ()), *self._logged]
        pieces = [piece for window in windows for piece in window.pieces]
        self._refuse([*pieces, *self._writing, *self._waiting.take_all()], error)
        self._refuse([*(doing.reads if doing is not None else ()), *self._reads], error)
        self._watchers.send_away(doing.look if doing is not None else None)

    def _on_lost(self, reason: str) -> None:
        self._lose(Moved(f"graph {self.name} is another's now: {reason}"))

    async def _end(self) -> None:
        try:
            with suppress(BusError):
                if self._subscription is not None:
                    await self._subscription.unsubscribe()
            await self._lease.release()
            await self._snapshots.stop()
        finally:
            self.ended.set()

    def _is_expiry_due(self) -> bool:
        return self._expiry_ms is not None and self._expiry_ms <= _wall_ms()

    def _expiry_within_s(self) -> float:
        return inf if self._expiry_ms is None else (self._expiry_ms - _wall_ms()) / 1000


def _wall_ms() -> int:
    """ms since 1970: times to live count by it, wherever the graph goes."""
    return time.time_ns() // 10**6


async def _either(event: asyncio.Event, within_s: float) -> None:
    """Return when there is something to do, or the time has passed."""
    try:
        async with asyncio.timeout(None if within_s == inf else max(0.0, within_s)):
            await event.wait()
    except TimeoutError:
        return

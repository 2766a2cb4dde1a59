"""The in-process engine: the same executor over the same slabs, for tests and for a debugger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from .device import Device, DeviceLost
from .engine import no_event
from .executor import Executor, Piece
from .faults import Injector
from .job import Done, Inject, Job
from .operation import Operation
from .slab import TIME, Slab


class InlineEngine:
    """Runs each batch in the event loop's thread, one loop tick after it was handed over. See `engine.Engine`.

    Attributes:
        jobs: every batch it was handed, in order.
        hold: while true batches are kept; `release` runs them. A test forms batches with it, without sleeping.
    """

    def __init__(self, operations: Mapping[str, Operation], *, slots: int = 2, slab_bytes: int = 64 << 20) -> None:
        self.name = "cpu"
        self.slots = slots
        self.slabs = [Slab.create(slab_bytes) for _ in range(slots + 1)]
        self.on_done: Callable[[Done], None] = no_event
        self.on_lost: Callable[[], None] = no_event
        self.on_ready: Callable[[], None] = no_event
        self.restarts = 0
        self.figures: Mapping[str, float] = {}
        self.jobs: list[Job] = []
        self.hold = False
        self._held: list[Job] = []
        self._operations = operations
        self._device = Device("cpu", threads=1)
        self._pulse = Slab.create(TIME.size)
        self._executor = Executor(operations, self._device, self._pulse)
        self._injector: Injector | None = None

    @property
    def began(self) -> float:
        """When it last began a batch, monotonic time, s."""
        return self._pulse.stamped(0)

    async def start(self) -> None:
        """Load the operations."""
        self._executor.load()
        self.on_ready()

    def submit(self, job: Job) -> None:
        """Run a batch in the next loop tick, or keep it while `hold` is set."""
        self.jobs.append(job)
        if self.hold:
            self._held.append(job)
        else:
            asyncio.get_running_loop().call_soon(self._run, job)

    def release(self) -> None:
        """Run what was kept, and from now on everything at once."""
        self.hold = False
        held, self._held = self._held, []
        for job in held:
            self._run(job)

    def lose(self) -> None:
        """Die: what was handed over is never answered; then be ready again."""
        self._held.clear()
        self.on_lost()
        self.restarts += 1
        self.on_ready()

    def kill(self) -> None:
        """Die."""
        asyncio.get_running_loop().call_soon(self.lose)

    def inject(self, order: Inject) -> None:
        """Let operations misbehave. A batch that dies or takes the device costs the engine, one that hangs stays."""
        if self._injector is None:
            self._injector = _InlineInjector(self._operations.values(), self._device)
        self._injector.take(order)

    async def stop(self) -> None:
        """Give the slabs back."""
        for slab in (*self.slabs, self._pulse):
            slab.close()

    def _run(self, job: Job) -> None:
        try:
            (done,) = self._executor.run([Piece(job, self.slabs[job.slab])])
        except DeviceLost:
            self.lose()
        except _Hanging:
            pass
        else:
            self.on_done(done)


class _Hanging(BaseException):
    """Leaves a batch that never ends; nothing but the engine catches it."""


class _InlineInjector(Injector):
    """Spares the process, which is the test's."""

    def hang(self) -> None:
        raise _Hanging

    def die(self) -> None:
        raise DeviceLost("the engine dies")

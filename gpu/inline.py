"""The in-process engine: the same executor over the same slabs, for tests and for a debugger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from .device import Device
from .engine import no_event
from .executor import Executor, Piece
from .job import Done, Job
from .operation import Operation
from .slab import Slab


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
        self._executor = Executor(operations, Device("cpu", threads=1))

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

    async def stop(self) -> None:
        """Give the slabs back."""
        for slab in self.slabs:
            slab.close()

    def _run(self, job: Job) -> None:
        (done,) = self._executor.run([Piece(job, self.slabs[job.slab])])
        self.on_done(done)

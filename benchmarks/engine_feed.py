"""An engine fed as a front does it: columns are laid into slabs, jobs handed over, answers taken from the slabs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from aikoryu.bus.columns import FIXED, Field, pack_strings
from aikoryu.config import LogSettings
from aikoryu.gpu.engine import EngineSpec
from aikoryu.gpu.host import ChildEngine
from aikoryu.gpu.job import Done, Job, Part
from aikoryu.gpu.registry import Catalogue
from aikoryu.gpu.residents import ResidentsSpec
from aikoryu.gpu.slab import align

Columns = Mapping[str, "tuple[Field, NDArray[Any]] | list[str]"]
"""By name the type of a row and all rows (of bf16 the bits), or strings."""

OWN = ResidentsSpec()
"""Residents that go with the engine's process."""


class EngineFeed:
    """The front's end of one engine.

    Attributes:
        slabs: how many there are.
        slab_bytes: size of each.
    """

    def __init__(self, engine: ChildEngine) -> None:
        self.slabs = len(engine.slabs)
        self.slab_bytes = engine.slabs[0].size_bytes
        self._engine = engine
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._last = 0
        engine.on_done = self._on_done
        engine.on_lost = self._on_lost

    def lay(
        self, slab: int, operation: str, columns: Columns, parameters: Mapping[str, Any] = {}, rows: int = 1
    ) -> Job:
        """Lay rows into a slab, and make the job of them; `rows` says how many where there is no column."""
        view = self._engine.slabs[slab].view
        for column in columns.values():
            rows = len(column) if isinstance(column, list) else len(column[1])
        view[:rows] = b"\1" * rows
        free = align(rows)
        parts = []
        for name, column in columns.items():
            if isinstance(column, list):
                packed = pack_strings(column)
                offsets, free = _put(view, free, packed.o or b"")
                data, free = _put(view, free, packed.d)
                parts.append(Part(name, Field("utf8"), data, len(packed.d), offsets))
            else:
                field, values = column
                data, free = _put(view, free, values.reshape(-1).view(np.uint8).data)
                parts.append(Part(name, field, data, values.nbytes))
        return Job(0, slab, operation, rows, parts, msgspec.msgpack.encode(parameters), 0, free)

    async def run(self, job: Job) -> Done:
        """Hand a job over and wait for its end.

        Raises:
            RuntimeError: it failed, or the engine died.
        """
        self._last += 1
        job.id = self._last
        waiting: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[job.id] = waiting
        self._engine.submit(job)
        done = await waiting
        if done.failed or done.errors:
            raise RuntimeError(f"{job.operation}: {done.message or done.errors[0][2]}")
        return done

    def answer(self, job: Job, done: Done) -> NDArray[Any]:
        """The first column of an answer, where it lies."""
        part = done.parts[0]
        slab = self._engine.slabs[job.slab]
        return slab.array(part.data, FIXED[part.field.dtype], (job.rows, *part.field.shape))

    def taken(self, job: Job, done: Done) -> bytes:
        """The first column of an answer, copied as an encoder would."""
        part = done.parts[0]
        return bytes(self._engine.slabs[job.slab].view[part.data : part.data + part.data_bytes])

    async def rate(self, jobs: Sequence[Job], least_s: float) -> float:
        """Rows/s with all these jobs in flight, each again as soon as it ends; each lies in a slab of its own."""
        rows = 0
        await asyncio.gather(*(self.run(job) for job in jobs))
        start = time.perf_counter()

        async def again(job: Job) -> None:
            nonlocal rows
            while time.perf_counter() < start + least_s:
                await self.run(job)
                rows += job.rows

        await asyncio.gather(*map(again, jobs))
        return rows / (time.perf_counter() - start)

    @property
    def figures(self) -> Mapping[str, float]:
        """What the engine last reported of its memory, by name."""
        return self._engine.figures

    def _on_done(self, done: Done) -> None:
        waiting = self._waiting.pop(done.id)
        if not waiting.done():  # nobody waits any more where time has run out
            waiting.set_result(done)

    def _on_lost(self) -> None:
        lost, self._waiting = self._waiting, {}
        for waiting in lost.values():
            if not waiting.done():
                waiting.set_exception(RuntimeError("the engine died"))


def _put(view: memoryview, at: int, data: bytes | memoryview) -> tuple[int, int]:
    """Copy bytes to where there is room; where they lie, and where the next may."""
    end = at + len(data)
    view[at:end] = data
    return at, align(end)


@contextlib.asynccontextmanager
async def feeding(
    device: str, slab_bytes: int, *, streams: int = 3, slots: int = 3, residents: ResidentsSpec = OWN
) -> AsyncIterator[EngineFeed]:
    """An engine process with the built-in operations and `bench.scale`, and its feed.

    Args:
        device: `cpu` or `cuda`.
        slab_bytes: size of each slab.
        streams: batches that run at once; one on the CPU.
        slots: batches handed over at once; there is a slab more.
        residents: where tensors are kept, and how many.
    """
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    catalogue = Catalogue(modules=("benchmarks.operations",), residents=residents)
    name, lanes = ("cpu", 1) if device == "cpu" else ("cuda:0", streams)
    engine = ChildEngine(EngineSpec(name, threads, lanes, catalogue, LogSettings(level="warning")), slots, slab_bytes)
    await engine.start()
    try:
        yield EngineFeed(engine)
    finally:
        await engine.stop()

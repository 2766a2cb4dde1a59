"""The embedding ceiling: the same model called in batches inside the load process, with no server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

from benchmarks import minilm
from benchmarks.contestant import Contestant, Served, Tally
from benchmarks.shapes import Shape
from benchmarks.workloads import Workload

BATCHES = (8, 16, 32, 64)


async def drive_batches(
    clients: Sequence[minilm.Encoder], shape: Shape, workload: Workload, seconds: float, *, chunk: int
) -> Tally:
    """Embed as many texts at a time as there are callers, sorted by length, in forwards of `chunk`."""
    tally = Tally()
    start = time.perf_counter()
    while (asked := time.perf_counter()) < start + seconds:
        texts, numbers = workload.many(shape.callers)
        vectors = clients[0].embed(texts, chunk)
        tally.latencies_s.append(time.perf_counter() - asked)
        tally.mismatches += workload.wrong_many(vectors, numbers)
        tally.answered += shape.callers
    tally.rows = round(tally.answered * seconds / (time.perf_counter() - start))
    return tally


@contextlib.asynccontextmanager
async def serve() -> AsyncIterator[Served]:
    """Nothing to start."""
    yield Served("", {})


@contextlib.asynccontextmanager
async def connect(_: str) -> AsyncIterator[minilm.Encoder]:
    """The model, loaded in this process."""
    yield minilm.Encoder()


CONTESTANTS = tuple(
    Contestant(
        f"in-process-b{batch}",
        serve,
        connect,
        frozenset({"equal64", "mixed64"}),
        needs=minilm.NEEDS,
        drive=partial(drive_batches, chunk=batch),
    )
    for batch in BATCHES
)

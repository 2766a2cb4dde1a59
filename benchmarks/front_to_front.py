"""A batch from a front through the engine and back, against the bare copies and kernel it cannot do without."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from aikoryu.bus.columns import Field
from benchmarks import record
from benchmarks.engine_feed import EngineFeed
from benchmarks.operations import SCALE
from benchmarks.ours import NAME
from benchmarks.record import Samples
from benchmarks.shapes import ROW_BYTES, ROW_FLOATS
from benchmarks.stopwatch import latencies_s, latency_us

ENGINE, BARE = "engine alone", "bare"
ROWS = (1, 16, 64, 256, 1024, 4096)
TIMES = 200
SLAB_BYTES = 2 * ROW_BYTES * max(ROWS)


def shape(rows: int) -> str:
    """Its name in the record."""
    return f"front{rows}"


def shapes() -> dict[str, Any]:
    """What they are, by name."""
    return {
        shape(rows): {"title": f"{rows} rows of 384 f32 to the device, doubled, and back", "rows": rows}
        for rows in ROWS
    }


async def measure(feed: EngineFeed, device: str, samples: Samples, times: int = TIMES) -> None:
    """Add one round to the samples."""
    draw = np.random.default_rng()
    for rows in ROWS:
        # Rows differ from one batch to the next.
        pool = draw.standard_normal((rows + 64, ROW_FLOATS), dtype=np.float32)
        ours, engine, wrong = await _ours(feed, pool, rows, times)
        bare = latencies_s(_bare(device, pool, rows), times)
        for name, found in ((NAME, ours), (ENGINE, engine), (BARE, bare)):
            sample = record.sample(wrong if name == NAME else 0, **latency_us(found))
            samples.setdefault(shape(rows), {}).setdefault(name, []).append(sample)


async def _ours(
    feed: EngineFeed, pool: np.ndarray[Any, np.dtype[np.float32]], rows: int, times: int
) -> tuple[list[float], list[float], int]:
    """Seconds a batch from front to front, of them in the engine, and how many rows came back wrong."""
    found, engine, wrong = [], [], 0
    field = Field("f4", (ROW_FLOATS,))
    for number in range(times + times // 10):
        sent = pool[number % 64 : number % 64 + rows]
        start = time.perf_counter()
        job = feed.lay(number % feed.slabs, "bench.scale", {"x": (field, sent)})
        done = await feed.run(job)
        taken = feed.taken(job, done)
        found.append(time.perf_counter() - start)
        engine.append(done.run_us / 1e6)
        if number % 16 == 0:
            answer = np.frombuffer(taken, np.float32).reshape(sent.shape)
            wrong += int((answer != SCALE * sent).any(axis=1).sum())
    return found[-times:], engine[-times:], wrong


def _bare(device: str, pool: np.ndarray[Any, np.dtype[np.float32]], rows: int) -> Callable[[], object]:
    """The same in plain torch: page-locked memory, one kernel, one stream, one wait."""
    import torch

    source = torch.from_numpy(pool[:rows].copy())
    if device == "cpu":
        return lambda: source * SCALE
    source = source.pin_memory()
    target = torch.empty_like(source, pin_memory=True)
    stream = torch.cuda.Stream()

    def work() -> None:
        with torch.cuda.stream(stream):
            there = source.to(device, non_blocking=True)
            target.copy_(there * SCALE, non_blocking=True)
            stream.synchronize()

    return work

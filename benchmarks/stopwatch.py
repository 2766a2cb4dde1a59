"""Time of work on a device: by events on a GPU, by the clock on the CPU; medians, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

WARM_UP = 3


def synchronize(device: str) -> None:
    """Wait for everything enqueued on the device."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def seconds_each(work: Callable[[], Any], device: str, least_s: float) -> float:
    """Seconds of one call where one follows the other at once: what a device that is kept busy takes.

    Args:
        work: enqueues on the current stream; on the CPU it has done its work when it returns.
        device: `cpu` or `cuda`.
        least_s: how long to keep at it, s.
    """
    for _ in range(WARM_UP):
        work()
    synchronize(device)
    once = _group_s(work, device, 1)
    return _group_s(work, device, max(1, round(least_s / max(once, 1e-7))))


def _group_s(work: Callable[[], Any], device: str, times: int) -> float:
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / times


def latencies_s(work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of so many calls; the work waits for its own end."""
    for _ in range(max(WARM_UP, times // 10)):
        work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def latency_us(found: list[float]) -> dict[str, float]:
    """`p50_us` and `p99_us` of latencies in seconds."""
    ordered = sorted(found)
    last = min(len(ordered) - 1, int(0.99 * len(ordered)))
    return {"p50_us": round(statistics.median(ordered) * 1e6, 2), "p99_us": round(ordered[last] * 1e6, 2)}

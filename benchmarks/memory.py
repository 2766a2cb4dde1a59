"""What a worker's memory does over ten million rows: `python -m benchmarks.memory --json OUT`."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import goals, loop, record
from benchmarks.ours import NEEDS
from benchmarks.ours_echo import CONTESTANTS, EchoClient, serve
from benchmarks.workloads import FloatRows

MILLION = 1_000_000
CALLERS = 4
ROWS_PER_CALL = 128
QUIET_S = 1.0
ROLES = {"front": "service", "engine": "engine"}


async def measure(rows: int, every: int, limit_s: float) -> list[dict[str, Any]]:
    """Echo rows, and look at the worker's memory before the first, after every `every`, and after the last.

    Args:
        rows: how many in all.
        every: rows between two looks.
        limit_s: no further rows are asked after so many seconds.

    Returns:
        What was seen: rows so far, seconds so far, memory in bytes by process.
    """
    workload = FloatRows(seed=0)
    async with serve() as served, CONTESTANTS[0].connect(served.address) as client:
        start = time.perf_counter()
        seen = [await _look(0, start, served.pids)]
        while seen[-1]["rows"] < rows and time.perf_counter() - start < limit_s:
            done = await _echo(client, workload, min(every, rows - seen[-1]["rows"]))
            seen.append(await _look(seen[-1]["rows"] + done, start, served.pids))
        return seen


async def _echo(client: EchoClient, workload: FloatRows, rows: int) -> int:
    """Echo at least so many rows, each checked, and return how many it were."""
    calls = -(-rows // ROWS_PER_CALL)
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            sent, token = workload.many(ROWS_PER_CALL)
            if wrong := workload.wrong_many(await client.call_many(sent), token):
                raise RuntimeError(f"{wrong} of {ROWS_PER_CALL} rows came back changed")

    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(caller())
    return calls * ROWS_PER_CALL


async def _look(rows: int, start: float, pids: Mapping[str, int]) -> dict[str, Any]:
    """Memory by process once the worker has come to rest; pages of the shared slabs count in both."""
    import psutil

    await asyncio.sleep(QUIET_S)
    by = {name: psutil.Process(pids[role]).memory_info().rss for name, role in ROLES.items()}
    return {"rows": rows, "seconds": round(time.perf_counter() - start, 1), **by, "rss": sum(by.values())}


def figure(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Memory after the last row over memory after a million; not measured if the last is not ten million."""
    after = {min(look["rows"] // MILLION, 10): look["rss"] for look in reversed(seen)}
    return goals.line(goals.MEMORY_GOAL, round(after[10] / after[1], 4) if {1, 10} <= set(after) else None)


def table(seen: list[dict[str, Any]]) -> str:
    """What was seen, as text."""
    form = "{:>12}{:>10}{:>12}{:>12}{:>12}"
    rows = [
        form.format(
            f"{look['rows']:,}", *(f"{look[name] / 2**20:.1f}" for name in (*ROLES, "rss")), f"{look['seconds']:.0f}"
        )
        for look in seen
    ]
    return "\n".join([form.format("rows", "front MiB", "engine MiB", "both MiB", "seconds"), *rows])


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=10 * MILLION, help="rows in all (default 10 million)")
    parser.add_argument("--limit-s", type=float, default=600.0, help="ask no more rows after this time (default 600)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()

    async def run() -> None:
        result = record.about("memory", [*NEEDS, "nats-py", "numpy", "psutil"])
        seen = await measure(options.rows, MILLION, options.limit_s)
        result |= {"seen": seen, "figures": [figure(seen)]}
        print(table(seen) + "\n\n" + goals.table(result["figures"]))
        if options.json:
            record.write(result, options.json)

    loop.run(run())


if __name__ == "__main__":
    main()

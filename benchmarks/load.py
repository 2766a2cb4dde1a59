"""A load process: connects, warms up, says "ready"; for each "go" it asks for some seconds and prints a JSON report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import loop
from benchmarks.contestant import Client, Tally, contestants
from benchmarks.shapes import Shape
from benchmarks.workloads import Workload, load_workload

WARM_UP_S = 0.5
DRAIN_S = 10.0
PAUSE_AFTER_ERROR_S = 0.01
HANG_UP_S = 0.05
PROBES = 10


async def drive_callers(clients: Sequence[Client], shape: Shape, workload: Workload, seconds: float) -> Tally:
    """Closed loop: `shape.callers` tasks on each client. Calls answered within the window count, all are checked."""
    tally = Tally()
    start = time.perf_counter() + shape.ramp_s
    window = (start, start + seconds)
    caller = _call_many if shape.rows_per_call > 1 else _call_one
    tasks = [
        asyncio.create_task(caller(client, shape, workload, window, tally))
        for client in clients
        for _ in range(shape.callers)
    ]
    _, late = await asyncio.wait(tasks, timeout=shape.ramp_s + seconds + DRAIN_S)
    tally.unanswered = len(late)
    for task in late:
        task.cancel()
    for task in tasks:
        if task.done():
            task.result()
    return tally


async def _call_one(
    client: Client, shape: Shape, workload: Workload, window: tuple[float, float], tally: Tally
) -> None:
    clock = time.perf_counter
    while (asked := clock()) < window[1]:
        row, token = workload.one()
        try:
            answer = await client.call(row)
        except Exception as error:
            await _failed(tally, error)
            continue
        now = clock()
        tally.mismatches += workload.wrong(answer, token)
        tally.count(1, asked, now, window)


async def _call_many(
    client: Client, shape: Shape, workload: Workload, window: tuple[float, float], tally: Tally
) -> None:
    clock = time.perf_counter
    while (asked := clock()) < window[1]:
        rows, token = workload.many(shape.rows_per_call)
        try:
            answers = await client.call_many(rows)
        except Exception as error:
            await _failed(tally, error)
            continue
        now = clock()
        tally.mismatches += workload.wrong_many(answers, token)
        tally.count(shape.rows_per_call, asked, now, window)


async def _failed(tally: Tally, error: Exception) -> None:
    tally.errors += 1
    tally.first_error = tally.first_error or f"{type(error).__name__}: {error}"
    await asyncio.sleep(PAUSE_AFTER_ERROR_S)


async def drive_hang_up(clients: Sequence[Client], shape: Shape, workload: Workload, seconds: float) -> Tally:
    """What abandoned work costs the next caller: `shape.callers` calls are cancelled after 50 ms, then comes a probe.

    Latencies are the probes'; `alone_ms` is the median probe on an idle server, measured first. Before each repetition
    the server finishes what was abandoned.
    """
    client, tally = clients[0], Tally()
    alone = [await _probe(client, workload, tally) for _ in range(PROBES)]
    tally.more["alone_ms"] = round(statistics.median(alone) * 1e3, 3)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        leaving = [asyncio.create_task(client.call(workload.one()[0])) for _ in range(shape.callers)]
        await asyncio.sleep(HANG_UP_S)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        tally.latencies_s.append(await _probe(client, workload, tally))
        await _settle(client, workload, tally, 1.5 * statistics.median(alone))
    tally.more["after_hang_up_ratio"] = round(statistics.median(tally.latencies_s) / statistics.median(alone), 3)
    return tally


async def _settle(client: Client, workload: Workload, tally: Tally, quiet_s: float) -> None:
    """Probe until the server is as quick as alone again, or for so many probes."""
    for _ in range(5 * PROBES):
        if await _probe(client, workload, tally) <= quiet_s:
            return


async def _probe(client: Client, workload: Workload, tally: Tally) -> float:
    row, token = workload.one()
    asked = time.perf_counter()
    tally.mismatches += workload.wrong(await client.call(row), token)
    return time.perf_counter() - asked


DRIVES = {"callers": drive_callers, "hang_up": drive_hang_up}


async def main(order: dict[str, Any]) -> None:
    """Carry out one order: module and name of the contestant, address, shape, seconds, seed."""
    contestant = next(c for c in contestants(order["module"]) if c.name == order["contestant"])
    shape = Shape(**order["shape"])
    workload = load_workload(shape.workload, order["seed"])
    drive = contestant.drive or DRIVES[shape.load]
    warm_up = contestant.drive or drive_callers
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(contestant.connect(order["address"])) for _ in range(shape.connections)
        ]
        await warm_up(clients, shape, workload, WARM_UP_S)
        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):  # it ends with the harness
            cpu = time.process_time()
            tally = await drive(clients, shape, workload, order["seconds"])
            print(json.dumps({"cpu_s": time.process_time() - cpu, **vars(tally)}), flush=True)


if __name__ == "__main__":
    loop.run(main(json.loads(sys.argv[1])))

"""A load process of `benchmarks.kpi`: says "ready" when it is connected, then reports once for each order it reads.

At a rate, calls begin at times drawn before anything is sent (Poisson), whether or not earlier ones are answered, and
latency counts from that time: what the service delays cannot hide. Without one, so many calls are kept in flight.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import aikoryu
from benchmarks import loop
from benchmarks.contestant import Tally
from benchmarks.kpi_cases import CASES, Asker, Case, Rows
from benchmarks.load import DRAIN_S, PAUSE_AFTER_ERROR_S


class Order(NamedTuple):
    """What to ask.

    Attributes:
        at: when the window begins, on the clock of `time.perf_counter`, which all processes of a machine share.
        seconds: length of the window.
        ramp_s: how long before it the load begins.
        rate: rows a second of this process; None keeps `callers` calls in flight.
        callers: calls in flight without a rate.
        seed: of the times.
    """

    at: float
    seconds: float
    ramp_s: float
    rate: float | None
    callers: int
    seed: int


def times(order: Order, rows_per_call: int) -> Iterator[float]:
    """When calls begin, from the start of the ramp to the end of the window."""
    assert order.rate is not None
    draw = np.random.default_rng(order.seed)
    mean_s = rows_per_call / order.rate
    due, end = order.at - order.ramp_s, order.at + order.seconds
    while (due := due + float(draw.exponential(mean_s))) < end:
        yield due


async def drive(asker: Asker, case: Case, rows: Rows, order: Order) -> dict[str, Any]:
    """Carry out an order.

    Returns:
        A tally: rows answered within the window, latencies of the calls that were due within it (without a rate: that
        were answered within it), faults, and `late_s`, how far behind its times the generator was.
    """
    tally, late = Tally(), list[float]()
    if order.rate is None:
        tasks = [asyncio.create_task(_keep_asking(asker, case, rows, order, tally)) for _ in range(order.callers)]
    else:
        tasks = await _at_times(asker, case, rows, order, tally, late)
    if tasks:
        left_s = order.at + order.seconds - time.perf_counter()
        _, unanswered = await asyncio.wait(tasks, timeout=max(0.0, left_s) + DRAIN_S)
        tally.unanswered = len(unanswered)
        for task in unanswered:
            task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
    return {**vars(tally), "late_s": late}


async def _at_times(
    asker: Asker, case: Case, rows: Rows, order: Order, tally: Tally, late: list[float]
) -> list[asyncio.Task[None]]:
    clock = time.perf_counter
    tasks = []
    for due in times(order, case.rows_per_call):
        if (rest := due - clock()) > 0:
            await asyncio.sleep(rest)
        late.append(max(0.0, clock() - due))
        tasks.append(asyncio.create_task(_ask(asker, case, rows, order, tally, due)))
    return tasks


async def _keep_asking(asker: Asker, case: Case, rows: Rows, order: Order, tally: Tally) -> None:
    if (rest := order.at - order.ramp_s - time.perf_counter()) > 0:
        await asyncio.sleep(rest)
    while (now := time.perf_counter()) < order.at + order.seconds:
        await _ask(asker, case, rows, order, tally, now)


async def _ask(asker: Asker, case: Case, rows: Rows, order: Order, tally: Tally, due: float) -> None:
    sent, token = rows.many(case.rows_per_call)
    try:
        answers = await asker.call_many(sent)
    except Exception as error:
        tally.errors += 1
        tally.first_error = tally.first_error or f"{type(error).__name__}: {error}"
        await asyncio.sleep(PAUSE_AFTER_ERROR_S)
        return
    now = time.perf_counter()
    tally.mismatches += rows.wrong_many(answers, token)
    tally.answered += case.rows_per_call
    end = order.at + order.seconds
    if order.at <= now < end:
        tally.rows += case.rows_per_call
    if order.at <= (now if order.rate is None else due) < end:
        tally.latencies_s.append(now - due)


async def main(setup: dict[str, Any]) -> None:
    """Serve orders until the standard input ends; the harness gives `url`, `case`, `pool` and `seed`."""
    case = CASES[setup["case"]]
    rows = case.rows(setup["seed"], Path(setup["pool"]))
    async with aikoryu.connect(setup["url"]) as bus:
        asker = case.asker(bus)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await drive(asker, case, rows, Order(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    loop.run(main(json.loads(sys.argv[1])))

"""How long faults are felt, and bad neighbours: `python -m benchmarks.recovery --device cpu|cuda`.

From a fault to the first answer of the spare, and until a fresh engine serves, or the one in reserve.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import timeit
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop

from aikoryu.agents.bus import open_transport
from aikoryu.bus.columns import pack
from aikoryu.bus.frames import Request, decode_reply, encode
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message, Transport
from aikoryu.cli.chaos.stage import LIMIT_S, Stage, stage
from aikoryu.config import Settings, configure_logging, load
from aikoryu.gpu.breaker import BreakerLimits
from aikoryu.gpu.fallback import Fallback
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.plan import Place, Plan
from benchmarks import device_run, goals, neighbours, record
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME, NEEDS

CALLERS = 4
STEADY = 50
"""Answers of the device in a row before it counts as well again."""
PATIENCE_S = 60.0
RUNS = 3
RAISES = 3
"""For each of the runs: they cost nothing."""
TOLD_S = 0.3
REST_S = 6.0
"""Between two losses: three within the breaker's window of 10 s would open it."""
SHARE = 0.2
"""Of the batches that raise: one that several fronts share is run again in parts before the spare is asked."""
WELL, FAILED, LOST = ("",), ("operation_failed",), ("engine_lost", "engine_down")


def _felt(name: str, title: str, goal: float, aim: float | None = None) -> Goal:
    return Goal(title, Value("felt", NAME, name), (), goal, aim, "lower")


GOALS = (
    _felt("raise_ms", "a batch raises: from the call to the spare's answer, ms", 50, 5),
    _felt("hang_ms", "a batch hangs: from its time limit to the spare's answer, ms", 100),
    _felt("kill_ms", "the engine is killed: to the spare's first answer, ms", 300),
    _felt("fresh_s", "the engine is killed: to the first answer of a fresh one, s", 6),
    _felt("reserve_s", "the engine is killed: to the first answer of its reserve, s", 0.5),
    _felt("breaker_us", "the breaker's cost a batch, µs", 1),
    *neighbours.GOALS,
)
"""Of each figure the largest sample counts."""


class Answered(NamedTuple):
    """An answer: when it was asked and came, s, and why it was not the device's; empty if it was."""

    asked_s: float
    came_s: float
    reason: str


class Callers:
    """A few callers, each with one call under way at all times, who see who answered.

    Attributes:
        answers: so far, as they came.
    """

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self.answers: list[Answered] = []
        self._came = asyncio.Event()
        self._transport = transport
        self._subject = Subjects(settings.bus.prefix, settings.bus.namespace).operation("matrix.multiply")
        column = pack(np.ones((1, 4)))
        self._payload = encode(Request(v=1, n=1, cols={"a": column, "b": column}, ttl_ms=60_000))

    async def call(self, number: int) -> None:
        """Be one of them."""
        inbox = f"{self._transport.inbox_prefix}.lone.{number}"
        came: asyncio.Queue[Message] = asyncio.Queue()
        await self._transport.subscribe(inbox, came.put_nowait)
        while True:
            asked = time.monotonic()
            await self._transport.publish(self._subject, self._payload, inbox)
            reply = decode_reply((await came.get()).data)
            reason = reply.by.reason if reply.by is not None else reply.err[0].code
            self.answers.append(Answered(asked, time.monotonic(), reason))
            self._came.set()

    async def after(self, moment_s: float, reasons: Collection[str]) -> Answered:
        """The first answer after a moment that came for one of these reasons.

        Raises:
            TimeoutError: there is none for a minute.
        """
        seen = 0
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for answer in self.answers[seen:]:
                    if answer.came_s > moment_s and answer.reason in reasons:
                        return answer
                seen = len(self.answers)
                await self._next()

    async def steady(self) -> None:
        """Return when the device answers, and goes on doing so.

        Raises:
            TimeoutError: it does not for a minute.
        """
        async with asyncio.timeout(PATIENCE_S):
            self.answers.clear()
            while len(self.answers) < STEADY or any(answer.reason for answer in self.answers[-STEADY:]):
                await self._next()

    async def _next(self) -> None:
        """Return when there is another answer."""
        self._came.clear()
        await self._came.wait()


@asynccontextmanager
async def _calling(on: Stage) -> AsyncIterator[Callers]:
    transport = await open_transport(on.settings)
    callers = Callers(transport, on.settings)
    tasks = [asyncio.create_task(callers.call(number)) for number in range(CALLERS)]
    try:
        await callers.steady()
        yield callers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await transport.close()


async def measure(settings: Settings, runs: int) -> dict[str, list[float]]:
    """Samples of every figure, by its name.

    Args:
        settings: all groups.
        runs: of each fault that costs an engine.
    """
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(round(value, 3))

    async with stage(settings) as on, _calling(on) as callers:
        for _ in range(runs * RAISES):
            answer = await _told(on, callers, f"raise:{SHARE}", FAILED)
            note("raise_ms", 1e3 * (answer.came_s - answer.asked_s))
        for _ in range(runs):
            answer = await _told(on, callers, f"hang@{TOLD_S}", LOST)
            note("hang_ms", 1e3 * (answer.came_s - answer.asked_s - LIMIT_S))
        for _ in range(runs):
            first, fresh = await _killed(on, callers)
            note("kill_ms", 1e3 * first)
            note("fresh_s", fresh)
    reserve = replace(settings, worker=replace(settings.worker, reserve=True))
    async with stage(reserve) as on, _calling(on) as callers:
        for _ in range(runs):
            await asyncio.sleep(max(REST_S, 2 * max(found["fresh_s"])))  # the next reserve has to load first
            _, fresh = await _killed(on, callers)
            note("reserve_s", fresh)
    return found


async def _told(on: Stage, callers: Callers, rule: str, reasons: Collection[str]) -> Answered:
    """Have batches fail; the answer of the first caller who felt it."""
    await callers.steady()
    moment = time.monotonic()
    await on.inject(rule)
    answer = await callers.after(moment, reasons)
    await on.inject()
    return answer


async def _killed(on: Stage, callers: Callers) -> tuple[float, float]:
    """Kill the device's engine: time to the first answer, and to the first of a fresh engine, s."""
    await callers.steady()
    moment = time.monotonic()
    on.kill_engine()
    first = await callers.after(moment, LOST)
    fresh = await callers.after(first.came_s, WELL)
    return first.came_s - moment, fresh.came_s - moment


def breaker_us(batches: int = 100_000) -> float:
    """What the breaker costs a batch that ends well, µs: all that a front asks of it, while it is closed."""
    device, spare = Place("cuda:0", slots=2), Place("cpu", slots=2)
    fallback = Fallback(device, spare, BreakerLimits())
    fallback.died(device, {"matrix.multiply"}, 0.0)  # so that there is a breaker, and closed
    plan = Plan(Lane("", 1, device), device, [], 1, [])

    def batch() -> Any:
        fallback.home("matrix.multiply")
        fallback.tries(plan, "matrix.multiply", 1.0)
        fallback.ended(plan, "matrix.multiply", 1.0)

    return min(timeit.repeat(batch, number=batches, repeat=5)) / batches * 1e6


async def _measure(settings: Settings, options: argparse.Namespace) -> None:
    """Measure part after part, and write the record after each: time on a GPU is scarce."""
    felt = {"breaker_us": [round(breaker_us(), 3)]}
    for part in (measure(settings, options.runs), neighbours.measure(settings)):
        felt |= await part
        measured = [(goal, felt[goal.mine.figure]) for goal in GOALS if felt.get(goal.mine.figure)]
        result = record.about("recovery", [*NEEDS, "nats-py", "numpy", "torch", "uvloop"]) | {
            "device": options.device,
            "gpu": record.gpu(options.device),
            "felt": {goal.title: samples for goal, samples in measured},
            "figures": [goals.line(goal, max(samples)) for goal, samples in measured],
        }
        if path := device_run.json_path("recovery", options):
            record.write(result, path)
    print(goals.table(result["figures"]))


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    device_run.add_arguments(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"engines lost in each way (default {RUNS})")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()

    options.runs = 1 if options.quick else options.runs

    settings = load(flags={"log.level": "critical"})
    device = "cpu" if options.device == "cpu" else "cuda:0"
    settings = replace(settings, worker=replace(settings.worker, device=device))
    configure_logging(settings.log)
    uvloop.run(_measure(settings, options))


if __name__ == "__main__":
    main()

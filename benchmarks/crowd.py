"""A crowd: thousands of agents in a few processes, called at random; who is there, what is lost, what each costs.

`python -m benchmarks.crowd URL FIRST COUNT` is one of the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import time
from typing import Any

import aikoryu as ai
from aikoryu.config import Settings
from benchmarks import loop
from benchmarks.goals import Goal, Value, line
from benchmarks.ours import NAME
from benchmarks.processes import nats_server, python
from benchmarks.record import latency_ms

IN_FLIGHT = 64
PER_AGENT_BYTES = 20_000
AIM_BYTES = 5_000
PAGE_BYTES = 4096
THERE_S = 30.0

PRESENT = Goal("crowd: agents found ÷ agents", Value("crowd", NAME), (), 1.0)
ANSWERED = Goal("crowd: calls answered rightly ÷ calls", Value("crowd", NAME), (), 1.0)
MEMORY = Goal("crowd: bytes an agent", Value("crowd", NAME), (), PER_AGENT_BYTES, AIM_BYTES, "lower")


class Ask(ai.Message):
    """What is asked of one of the crowd."""

    number: int


class Member(ai.Agent):
    """Answers with its own name, so that a stray answer shows."""

    def __init__(self, name: str) -> None:
        self._name = name

    @ai.handler(idempotent=True)
    async def ask(self, message: Ask) -> str:
        """Name and number."""
        return f"{self._name} {message.number}"


def name_of(number: int) -> str:
    """An agent's name."""
    return f"member-{number:05}"


async def member_process(url: str, first: int, count: int) -> None:
    """Serve some of them; the figures of this process go to stdout when it is ready."""
    settings = ai.load_settings(flags={"nats.url": url, "log.level": "warning"})
    bare = ai.App(settings=settings)
    bare.add(Member("bare"), f"bare-{first}")
    async with bare as bus:  # everything that a process needs anyway has been loaded and used once
        await bus.agents.get(f"bare-{first}").ask(Ask(0))
        gc.collect()
        before = _resident_bytes()
        app = ai.App(settings=settings)
        for number in range(first, first + count):
            app.add(Member(name_of(number)), name_of(number), capabilities={"member"})
        began = time.perf_counter()
        async with app:
            started_s = time.perf_counter() - began
            gc.collect()
            print("ready", flush=True)
            print((_resident_bytes() - before) / count, started_s, flush=True)
            await asyncio.Event().wait()


async def measure(agents: int, processes: int, seconds: float) -> dict[str, Any]:
    """Start the crowd, look for all of it, and call its members at random."""
    async with nats_server() as (url, _), contextlib.AsyncExitStack() as stack:
        each = agents // processes
        running = [
            await stack.enter_async_context(python("benchmarks.crowd", url, str(number * each), str(each)))
            for number in range(processes)
        ]
        told = []
        for process in running:
            assert process.stdout is not None
            told.append([float(word) for word in (await process.stdout.readline()).split()])
        async with ai.connect(url, settings=Settings()) as bus:
            present = await _present(bus, each * processes)
            called = await _call(bus, each * processes, seconds)
    return {
        "agents": each * processes,
        "processes": processes,
        "present": present,
        "agent_bytes": round(max(bytes_ for bytes_, _ in told)),
        "start_s": round(max(start_s for _, start_s in told), 3),
        **called,
    }


async def _present(bus: ai.Bus, agents: int) -> int:
    """How many are found, once all are or the time is over."""
    end = time.perf_counter() + THERE_S
    found = 0
    while found < agents and time.perf_counter() < end:
        found = len(await bus.agents.entries(capabilities={"member"}))
    return found


async def _call(bus: ai.Bus, agents: int, seconds: float) -> dict[str, Any]:
    """Call members at random, so many at once."""
    dice = random.Random(1)
    end = time.perf_counter() + seconds
    latencies_s: list[float] = []
    counts = {"calls": 0, "wrong": 0, "errors": 0}

    async def caller() -> None:
        while (asked := time.perf_counter()) < end:
            number = dice.randrange(agents)
            counts["calls"] += 1
            try:
                answer = await bus.agents.get(name_of(number), Member).ask(Ask(number))
            except ai.BusError:
                counts["errors"] += 1
                continue
            counts["wrong"] += answer != f"{name_of(number)} {number}"
            latencies_s.append(time.perf_counter() - asked)

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return {**counts, "calls_per_s": round(len(latencies_s) / seconds, 1), **latency_ms(latencies_s)}


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures against what they have to be."""
    right = found["calls"] - found["errors"] - found["wrong"]
    return [
        line(PRESENT, round(found["present"] / found["agents"], 5)),
        line(ANSWERED, round(right / max(1, found["calls"]), 6)),
        line(MEMORY, float(found["agent_bytes"])),
    ]


def table(found: dict[str, Any]) -> str:
    """The crowd in words."""
    return (
        f"{found['agents']:,} agents in {found['processes']} processes: {found['present']:,} found, "
        f"{found['agent_bytes']:,} bytes each, started in {found['start_s']} s; "
        f"{found['calls']:,} calls at random, {found['calls_per_s']:,.0f} a second, p50 {found['p50_ms']} ms, "
        f"{found['errors']} errors, {found['wrong']} wrong"
    )


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as told:
        return int(told.read().split()[1]) * PAGE_BYTES


if __name__ == "__main__":
    loop.run(member_process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

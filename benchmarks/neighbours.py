"""What bad neighbours do to others on the bus: `python -m benchmarks.neighbours`.

A polite client calls at a steady rate, alone and beside a bad one in turns. The ratio is that of the medians of the
99th percentiles. At the same times another calls a plain NATS service, to tell what the machine and the server have to
do with it. All are processes of their own, as the server and the worker with two fronts are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import uvloop

from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli.demo_process import child
from aikoryu.cli.demo_worker import Ready
from aikoryu.cli.up import on_embedded
from aikoryu.config import Settings, configure_logging, load
from benchmarks.goals import Goal, Value
from benchmarks.kpi_meter import family, memory
from benchmarks.ours import NAME
from benchmarks.processes import python

FRONTS = 2
GOOD = ("polite", "plain")
BAD = ("flood", "mute")
ROUNDS = 2
SECONDS = 3.0
LEAD_S = 0.5  # the bad one begins so long before the polite one, and ends as long after
WARM_UP_S = 1.0
LOOK_S = 0.1
ANSWER_S = 60.0


def _goal(name: str, title: str, goal: float) -> Goal:
    return Goal(title, Value("felt", NAME, name), (), goal, None, "lower")


GOALS = (
    _goal("flood_p99_ratio", "a client floods: others' p99 ÷ without it", 2),
    _goal("flood_plain_ratio", "a client floods: others' p99 ÷ that of a plain NATS service beside it", 2),
    _goal("flood_failed", "a client floods: calls of others refused, failed or answered wrongly", 0),
    _goal("flood_memory_ratio", "a client floods: the worker's memory ÷ before", 1.5),
    _goal("mute_p99_ratio", "a client never reads its answers: others' p99 ÷ without it", 2),
    _goal("mute_plain_ratio", "a client never reads its answers: others' p99 ÷ a plain NATS service's", 2),
    _goal("mute_failed", "a client never reads its answers: calls of others that failed", 0),
    _goal("mute_memory_ratio", "a client never reads its answers: the worker's memory ÷ before", 1.5),
)


Window = dict[str, dict[str, Any]]


@dataclass
class Seen:
    """What was seen beside one kind of bad client.

    Attributes:
        bad: its role.
        alone, beside: reports of the good clients by role, a window each, without it and with it.
        told: its own reports.
        worker_bytes: memory of the worker's processes, before the first window and after each.
        server_bytes: the most that the server held while it was at work.
    """

    bad: str
    alone: list[Window] = field(default_factory=list)
    beside: list[Window] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    worker_bytes: list[int] = field(default_factory=list)
    server_bytes: int = 0


class Street:
    """A server, a worker, and clients to be let loose on them.

    Args:
        server, worker: their processes.
        clients: by role.
    """

    def __init__(self, server: int, worker: int, clients: dict[str, Process]) -> None:
        self._server = server
        self._worker = worker
        self._clients = clients

    async def good(self, seconds: float) -> Window:
        """What the good clients report of a window."""
        reports = await asyncio.gather(*(self._ask(role, seconds) for role in GOOD))
        return dict(zip(GOOD, reports, strict=True))

    async def beside(self, seen: Seen, seconds: float) -> None:
        """Add a window in which a bad client is at work, before the good ones begin and until after they have ended."""
        watching = asyncio.create_task(self._watch_server(seen))
        telling = asyncio.create_task(self._ask(seen.bad, seconds + 2 * LEAD_S))
        await asyncio.sleep(LEAD_S)
        seen.beside.append(await self.good(seconds))
        seen.told.append(await telling)
        watching.cancel()

    def worker_bytes(self) -> int:
        """Memory of the worker's processes; what they share counts once."""
        return memory(family(self._worker)).held

    async def _watch_server(self, seen: Seen) -> None:
        while True:
            seen.server_bytes = max(seen.server_bytes, memory([self._server]).held)
            await asyncio.sleep(LOOK_S)

    async def _ask(self, role: str, seconds: float) -> dict[str, Any]:
        process = self._clients[role]
        assert process.stdin is not None, "it was started with pipes"
        assert process.stdout is not None, "it was started with pipes"
        process.stdin.write(f"{seconds}\n".encode())
        line = await asyncio.wait_for(process.stdout.readline(), seconds + ANSWER_S)
        if not line:
            raise RuntimeError(f"the {role} client ended; the reason is above")
        report: dict[str, Any] = json.loads(line)
        return report


@asynccontextmanager
async def street(settings: Settings, bad: Sequence[str]) -> AsyncIterator[Street]:
    """Set it up, warm it up, and take it down at exit."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryDirectory(prefix="aikoryu-neighbours-"))
        server = await stack.enter_async_context(EmbeddedServer(replace(settings.server, port=0, store_dir=store)))
        settings = replace(
            on_embedded(settings, server.url),
            worker=replace(settings.worker, fronts=FRONTS),
            models=replace(settings.models, embed=()),
        )
        worker = await stack.enter_async_context(child("worker", "demo_worker", settings, Ready))
        if await worker.hear() is None:
            raise RuntimeError("the worker ended before it was ready; the reason is above")
        clients = {
            role: await stack.enter_async_context(python("benchmarks.neighbour_clients", role, server.url))
            for role in ("echo", *GOOD, *bad)
        }
        made = Street(server.pid, worker.pid, clients)
        await made.good(WARM_UP_S)
        yield made
        await worker.finished()


async def observe(settings: Settings, bad: Sequence[str], rounds: int, seconds: float) -> list[Seen]:
    """What was seen beside each kind of bad client.

    Args:
        settings: all groups.
        bad: roles of `neighbour_clients`.
        rounds: windows beside each of them; before each there is one without.
        seconds: length of a window.
    """
    async with street(settings, bad) as on:
        seen = []
        for role in bad:
            one = Seen(role, worker_bytes=[on.worker_bytes()])
            for _ in range(rounds):
                one.alone.append(await on.good(seconds))
                await on.beside(one, seconds)
                one.worker_bytes.append(on.worker_bytes())
            seen.append(one)
        return seen


async def measure(settings: Settings) -> dict[str, list[float]]:
    """Samples of every figure, by its name."""
    return figures(await observe(settings, BAD, ROUNDS, SECONDS))


def figures(seen: Sequence[Seen]) -> dict[str, list[float]]:
    """Of each kind of bad client: how much longer polite calls took, how many failed, how much memory grew."""
    found: dict[str, list[float]] = {}
    for one in seen:
        beside, alone = p99_ms(one.beside, "polite"), p99_ms(one.alone, "polite")
        found[f"{one.bad}_p99_ratio"] = [round(beside / alone, 2)]
        found[f"{one.bad}_plain_ratio"] = [round(beside / p99_ms(one.beside, "plain"), 2)]
        found[f"{one.bad}_failed"] = [sum(sum(window["polite"]["errors"].values()) for window in one.beside)]
        found[f"{one.bad}_memory_ratio"] = [round(one.worker_bytes[-1] / one.worker_bytes[0], 2)]
        found[f"{one.bad}_server_mib"] = [round(one.server_bytes / 2**20)]
    return found


def p99_ms(windows: Sequence[Window], role: str) -> float:
    """99th percentile of a client's latencies, ms; the median of those of several windows."""
    return 1e3 * statistics.median(float(np.percentile(window[role]["latencies_s"], 99)) for window in windows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours", description=__doc__)
    parser.add_argument("--bad", nargs="+", default=[*BAD, "messages"], choices=[*BAD, "messages"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    settings = load(flags={"log.level": "critical", "worker.device": "cpu"})
    configure_logging(settings.log)
    seen = uvloop.run(observe(settings, options.bad, options.rounds, options.seconds))
    for one in seen:
        for role in GOOD:
            print(f"{one.bad}: {role} p99 {p99_ms(one.alone, role):.2f}, beside {p99_ms(one.beside, role):.2f} ms")
        print(f"{one.bad}: {one.told}")
    for name, (value,) in figures(seen).items():
        print(f"{name:<24}{value:>10}")


if __name__ == "__main__":
    main()

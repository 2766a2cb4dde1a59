"""One window of `benchmarks.kpi`: a route under a steady load, and what it took of CPUs, GPU and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from benchmarks import kpi_meter, processes, record
from benchmarks.contestant import Served
from benchmarks.gpu_watch import watching
from benchmarks.kpi_load import Order
from benchmarks.kpi_meter import Counter, Processors
from benchmarks.load import DRAIN_S
from benchmarks.record import FAULTS

LEAD_S = 0.1  # for an order to reach its process
WATCH_S = 0.25  # the GPU is watched from so long before a window
REPORT_S = 5.0
MILLION = 1e6
MIB = 2**20
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""NumPy's threads in load processes, whose checks are small."""

T = TypeVar("T")


@dataclass(frozen=True)
class Route:
    """A worker on one device, with a NATS server of its own, and the load processes that ask it.

    Attributes:
        device: `cpu` or `cuda:0`.
        served: the worker.
        loads: connected load processes.
    """

    device: str
    served: Served
    loads: Sequence[Process]


@contextlib.asynccontextmanager
async def routes(case: str, devices: Sequence[str], served: Sequence[Served], pool: Path) -> AsyncIterator[list[Route]]:
    """The routes to these workers, each with load processes that have the same rows in the same order."""
    each = load_processes()
    async with contextlib.AsyncExitStack() as stack:
        setups = [
            {"url": one.address, "case": case, "pool": str(pool), "seed": seed}
            for one in served
            for seed in range(each)
        ]
        loads = await all_of(
            stack.enter_async_context(processes.python("benchmarks.kpi_load", json.dumps(setup), env=ONE_THREAD))
            for setup in setups
        )
        yield [
            Route(device, one, loads[number * each : (number + 1) * each])
            for number, (device, one) in enumerate(zip(devices, served, strict=True))
        ]


def load_processes() -> int:
    """How many ask one worker: enough not to be the limit, and cores are left for it."""
    return max(2, min(8, len(os.sched_getaffinity(0)) // 2))


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of it gave; an error is raised when nothing is under way any more."""
    found = await asyncio.gather(*work, return_exceptions=True)
    if errors := [one for one in found if isinstance(one, BaseException)]:
        raise errors[0]
    return [one for one in found if not isinstance(one, BaseException)]


class Load(NamedTuple):
    """What all load processes of a route ask together.

    Attributes:
        seconds: length of the window.
        ramp_s: how long before it the load begins.
        rate: rows a second; None keeps `callers` calls in flight in each process.
        callers: without a rate.
    """

    seconds: float
    ramp_s: float
    rate: float | None = None
    callers: int = 0

    def order(self, at: float, seed: int, processes: int) -> Order:
        """The part of one of so many processes."""
        rate = None if self.rate is None else self.rate / processes
        return Order(at, self.seconds, self.ramp_s, rate, self.callers, seed)


class Look(NamedTuple):
    """Counters at one time.

    Attributes:
        at: on the clock of `time.perf_counter`, s.
        cpu_s: CPU time by role.
        busy_s: of the whole machine.
        energy: of the processors.
    """

    at: float
    cpu_s: Mapping[str, float]
    busy_s: float
    energy: Sequence[Counter]


class Gauge:
    """Measures windows.

    Args:
        device: `cpu`, or `cuda` where there is a GPU to be watched.
        idle_s: how long the GPU is watched first, while nobody uses it.

    Attributes:
        processors: what CPU time costs.
        idle_watts: what the GPU draws while nobody uses it; None without one, or where it does not count energy.
    """

    def __init__(self, device: str, idle_s: float) -> None:
        self.processors = Processors()
        self._device = device
        with watching(device) as watch:
            began = time.perf_counter()
            time.sleep(idle_s if device != "cpu" else 0)
            seconds = time.perf_counter() - began
        joules = watch.figures.get("gpu_joules")
        self.idle_watts = None if joules is None else round(joules / seconds, 1)
        self._gpu_bytes_before = watch.figures.get("memory_before_bytes", 0.0)

    async def window(self, route: Route, load: Load, seed: int) -> dict[str, Any]:
        """One sample; the load is as steady shortly before and after as in what is measured."""
        at = time.perf_counter() + LEAD_S + load.ramp_s
        for number, process in enumerate(route.loads):
            order = load.order(at, 1000 * seed + number, len(route.loads))
            assert process.stdin is not None, "it is a pipe"
            process.stdin.write(json.dumps(order._asdict()).encode() + b"\n")
        await _sleep_until(at - WATCH_S)
        with watching(self._device) as watch:
            watched_at = time.perf_counter()
            await _sleep_until(at)
            before = self._look(route)
            await _sleep_until(at + load.seconds)
            after = self._look(route)
            watched_s = time.perf_counter() - watched_at
        memory = kpi_meter.memory(kpi_meter.family(route.served.pids["service"]))
        tallies = await asyncio.gather(*(_report(process) for process in route.loads))
        sample = _answered(tallies, load)
        sample |= {"host_mib": round(memory.held / MIB, 1), "host_peak_mib": round(memory.peaks / MIB, 1)}
        sample |= self._of_gpu(watch.figures, watched_s) if route.device != "cpu" else {}
        sample["memory_mib"] = round(sample["host_mib"] + sample.get("gpu_mib", 0.0), 1)
        return sample | (self._costs(sample, before, after, route.device) if sample["rows_per_s"] else {})

    def _look(self, route: Route) -> Look:
        worker = kpi_meter.family(route.served.pids["service"])
        engines = [pid for pid in worker if kpi_meter.is_engine(pid)]
        pids = {
            "engine": engines,
            "front": [pid for pid in worker if pid not in engines],
            "nats": [route.served.pids["nats"]],
            "client": [process.pid for process in route.loads],
        }
        cpu_s = {role: kpi_meter.cpu_seconds(those) for role, those in pids.items()}
        return Look(time.perf_counter(), cpu_s, kpi_meter.busy_seconds(), self.processors.read())

    def _of_gpu(self, seen: Mapping[str, float], seconds: float) -> dict[str, float]:
        """What the GPU did; what the driver does not tell is left out."""
        found = {name: seen[name] for name in ("gpu_busy", "sm_active") if name in seen}
        if "gpu_joules" in seen:
            found["gpu_watts"] = round(seen["gpu_joules"] / seconds, 1)
        if "memory_used_bytes" in seen:
            found["gpu_mib"] = round((seen["memory_used_bytes"] - self._gpu_bytes_before) / MIB, 1)
        return found

    def _costs(self, sample: Mapping[str, Any], before: Look, after: Look, device: str) -> dict[str, float]:
        """CPU-seconds and joules of a million rows.

        To the CPU path the GPU costs nothing; to the whole machine, then, what it draws idle.
        """
        seconds = after.at - before.at
        millions = sample["rows_per_s"] * seconds / MILLION
        spent = {role: after.cpu_s[role] - before.cpu_s[role] for role in before.cpu_s}
        worker_s = spent["engine"] + spent["front"]

        def joules(cpu_s: float) -> float:
            return self.processors.joules(cpu_s, after.busy_s - before.busy_s, before.energy, after.energy)

        found = {f"{role}_cpu_s": cpu_s / millions for role, cpu_s in spent.items()}
        found |= {"worker_cpu_s": worker_s / millions, "cpu_joules": joules(worker_s) / millions}
        if device == "cpu":
            found["joules"] = found["cpu_joules"]
            drawn = (self.idle_watts or 0.0) * seconds
        elif "gpu_watts" in sample:
            drawn = sample["gpu_watts"] * seconds
            found["gpu_joules"] = drawn / millions
            found["joules"] = found["cpu_joules"] + found["gpu_joules"]
        else:
            return found
        return found | {"machine_joules": (joules(sum(spent.values())) + drawn) / millions}


def _answered(tallies: Sequence[Mapping[str, Any]], load: Load) -> dict[str, Any]:
    """The tallies of all load processes as one sample."""
    rows = sum(tally["rows"] for tally in tallies)
    sample = {
        "rows_per_s": round(rows / load.seconds, 1) if rows else None,
        "calls": sum(len(tally["latencies_s"]) for tally in tallies),
        **record.latency_ms(latency for tally in tallies for latency in tally["latencies_s"]),
        **{kind: sum(tally[kind] for tally in tallies) for kind in FAULTS},
        "first_error": next((tally["first_error"] for tally in tallies if tally["first_error"]), None),
    }
    if load.rate is not None:
        sample["offered_rows_per_s"] = round(load.rate, 1)
    if late := record.latency_ms(behind for tally in tallies for behind in tally["late_s"]):
        sample["late_p99_ms"] = late["p99_ms"]
    return sample


async def _report(process: Process) -> dict[str, Any]:
    assert process.stdout is not None, "it is a pipe"
    line = await asyncio.wait_for(process.stdout.readline(), DRAIN_S + REPORT_S)
    if not line:
        raise RuntimeError("a load process ended without a report; its errors are above")
    tally: dict[str, Any] = json.loads(line)
    return tally


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.perf_counter()))

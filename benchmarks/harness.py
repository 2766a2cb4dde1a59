"""Rounds: in each, every contestant runs every one of its shapes, alone on the machine and freshly started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from benchmarks import processes, record, stages
from benchmarks.contestant import Contestant, Served, contestants
from benchmarks.load import DRAIN_S, WARM_UP_S
from benchmarks.record import Samples, latency_ms
from benchmarks.shapes import Shape


def entrants(modules: Sequence[str], only: Sequence[str] = ()) -> tuple[list[tuple[str, Contestant]], dict[str, str]]:
    """Contestants that can run here, with their modules, and the reason for each that cannot.

    Args:
        modules: modules with a `CONTESTANTS` tuple.
        only: names to keep; empty keeps all.
    """
    able, skipped = [], {}
    for module in modules:
        for contestant in contestants(module):
            if only and contestant.name not in only:
                continue
            if missing := contestant.missing():
                skipped[contestant.name] = f"not installed: {', '.join(missing)}"
            else:
                able.append((module, contestant))
    return able, skipped


async def run_rounds(
    able: Sequence[tuple[str, Contestant]], shapes: Sequence[Shape], rounds: int, seconds: float
) -> Samples:
    """Measure every contestant in each of its shapes, once a round.

    Within a round the contestants of one shape run right after one another, so slow drift of the machine hits all
    alike; their order rotates from round to round. A contestant that fails leaves an empty place and a line on stderr.
    """
    samples: Samples = {}
    for number in range(rounds):
        for shape in shapes:
            runners = [entry for entry in able if shape.name in entry[1].shapes]
            shift = number % len(runners) if runners else 0
            for module, contestant in runners[shift:] + runners[:shift]:
                sample = await _measure_or_report(module, contestant, shape, seconds, seed=number)
                samples.setdefault(shape.name, {}).setdefault(contestant.name, []).append(sample)
    return {shape: {c.name: by[c.name] for _, c in able if c.name in by} for shape, by in samples.items()}


async def _measure_or_report(
    module: str, contestant: Contestant, shape: Shape, seconds: float, seed: int
) -> dict[str, Any]:
    try:
        sample = await measure(module, contestant, shape, seconds, seed)
    except (RuntimeError, OSError, TimeoutError, ValueError) as error:
        sample = failed(error)
    show_progress(seed + 1, shape, contestant, sample)
    return sample


def failed(error: Exception) -> dict[str, Any]:
    """The sample of a measurement that came to nothing."""
    return {"mismatches": 0, "errors": 1, "unanswered": 0, "first_error": f"{type(error).__name__}: {error}"}


def show_progress(number: int, shape: Shape, contestant: Contestant, sample: dict[str, Any]) -> None:
    """One line on stderr as each sample comes in; faults by kind, since the table only has their sum."""
    notes = [f"{sample['rows_per_s']:,.0f} rows/s"] if sample.get("rows_per_s") else []
    notes += [f"{sample[kind]} {kind}" for kind in record.FAULTS if sample[kind]]
    notes += [sample["first_error"]] if sample.get("first_error") else []
    print(f"round {number} {shape.name} {contestant.name}: {', '.join(notes)}", file=sys.stderr, flush=True)


async def measure(module: str, contestant: Contestant, shape: Shape, seconds: float, seed: int) -> dict[str, Any]:
    """One sample: start the servers, warm up, measure for `seconds`, end everything."""
    async with contestant.serve() as served:
        if contestant.generator and (sample := await _generated(contestant, served, shape, seconds)):
            return sample
        async with loading(module, contestant, served, shape, seconds, seed) as loads:
            return await window(loads, served, shape, seconds)


@contextlib.asynccontextmanager
async def loading(
    module: str, contestant: Contestant, served: Served, shape: Shape, seconds: float, seed: int
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """The shape's load processes, connected and warm."""
    async with contextlib.AsyncExitStack() as stack:
        orders = [
            {
                "module": module,
                "contestant": contestant.name,
                "address": served.address,
                "shape": shape.as_dict(),
                "seconds": seconds,
                "seed": 1000 * seed + process,
            }
            for process in range(shape.processes)
        ]
        starting = (
            stack.enter_async_context(processes.python("benchmarks.load", json.dumps(order))) for order in orders
        )
        yield await asyncio.gather(*starting)


async def window(
    loads: Sequence[asyncio.subprocess.Process], served: Served, shape: Shape, seconds: float
) -> dict[str, Any]:
    """One sample of load processes that wait for the start; they wait for the next one after it."""
    before, staged = _server_cpu_s(served), await stages.read(served.metrics)
    for load in loads:
        assert load.stdin is not None
        load.stdin.write(b"go\n")
    tallies = await asyncio.gather(*(_report(load, shape.ramp_s + seconds) for load in loads))
    sample = _sample(tallies, seconds, before, _server_cpu_s(served))
    if served.metrics:
        sample["stages"] = stages.between(staged, await stages.read(served.metrics))
    return sample


async def _generated(contestant: Contestant, served: Served, shape: Shape, seconds: float) -> dict[str, Any] | None:
    """A sample from the contestant's own load generator, with the servers' CPU time added."""
    assert contestant.generator is not None
    if await contestant.generator(served, shape, WARM_UP_S) is None:
        return None
    before = _server_cpu_s(served)
    sample = await contestant.generator(served, shape, seconds)
    if sample is None:
        return None
    return sample | _cpu_us(before, _server_cpu_s(served), round(sample["rows_per_s"] * seconds))


async def _report(load: asyncio.subprocess.Process, seconds: float) -> dict[str, Any]:
    assert load.stdout is not None
    line = await asyncio.wait_for(load.stdout.readline(), seconds + DRAIN_S + processes.REPORT_S)
    if not line:
        raise RuntimeError("a load process ended without a report; its errors are above")
    tally: dict[str, Any] = json.loads(line)
    return tally


def _sample(
    tallies: Sequence[dict[str, Any]], seconds: float, before: dict[str, float | None], after: dict[str, float | None]
) -> dict[str, Any]:
    """The tallies of all load processes as one sample."""
    rows = sum(tally["rows"] for tally in tallies)
    answered = sum(tally["answered"] for tally in tallies)
    sample: dict[str, Any] = {
        "generator": "python clients, values checked",
        "rows_per_s": round(rows / seconds, 1) if rows else None,
        "calls": sum(len(tally["latencies_s"]) for tally in tallies),
        **latency_ms(latency for tally in tallies for latency in tally["latencies_s"]),
        **{name: sum(tally[name] for tally in tallies) for name in record.FAULTS},
        "first_error": next((tally["first_error"] for tally in tallies if tally["first_error"]), None),
        **tallies[0]["more"],
    }
    if answered:
        sample["client_cpu_us"] = round(sum(tally["cpu_s"] for tally in tallies) / answered * 1e6, 3)
    return sample | _cpu_us(before, after, answered)


def _server_cpu_s(served: Served) -> dict[str, float | None]:
    return {role: processes.cpu_seconds([pid]) for role, pid in served.pids.items()}


def _cpu_us(before: dict[str, float | None], after: dict[str, float | None], rows: int) -> dict[str, float]:
    """CPU microseconds a row by role: `nats_cpu_us`, and `server_cpu_us` for the service."""
    if not rows:
        return {}
    spent = {role: (before[role], after[role]) for role in before}
    return {
        f"{'server' if role == 'service' else role}_cpu_us": round((end - start) / rows * 1e6, 3)
        for role, (start, end) in spent.items()
        if start is not None and end is not None
    }

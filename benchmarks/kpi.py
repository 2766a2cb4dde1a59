"""What a million rows cost on the GPU path and on the CPU path: `python -m benchmarks.kpi --device cuda --json OUT`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from aikoryu.gpu.nvml import visible
from benchmarks import device_run, goals, kpi_table, loop, processes, record
from benchmarks.embed_model import TRAINED, find_model
from benchmarks.kpi_cases import CASES, SYSTEMS, Case, System
from benchmarks.kpi_table import CPU, GPU, SATURATED
from benchmarks.kpi_window import LEAD_S, Gauge, Load, Route, all_of, load_processes, routes
from benchmarks.ours import NEEDS, serving
from benchmarks.record import FAULTS, Samples

LIMIT_S = 205.0  # of it all, the record aside; what is left of it decides whether a case is begun
START_S = 25.0  # of a system's workers, texts and load processes
AFTER_S = 0.5  # of a window: its last answers and its report
IDLE_S = 2.0
SHARE = 0.8  # of what the CPU path sustains, offered to both


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: windows of each column.
        seconds: length of a window.
        ramp_s: load before it.
        calibration_s: likewise of the one that finds what the CPU path sustains.
        texts: in the pool.
    """

    rounds: int
    seconds: float
    ramp_s: float
    calibration_s: float
    texts: int

    def case_s(self, columns: int) -> float:
        """About how long a case takes whose worker is there."""
        around_s = LEAD_S + self.ramp_s + AFTER_S
        return 2 * (around_s + self.calibration_s) + columns * self.rounds * (around_s + self.seconds)


FULL = Plan(3, 3.0, 0.75, 2.0, 4096)
QUICK = Plan(1, 0.5, 0.25, 0.5, 64)


class Bench:
    """One run: what is measured, and what was found so far.

    Attributes:
        samples, shapes, skipped: as `record.record` has them; a shape is a case.
        gauge: measures the windows.
        model: what kind of encoder there is, once it was looked for.
    """

    def __init__(self, device: str, plan: Plan) -> None:
        self._plan = plan
        self._ends_at = time.perf_counter() + LIMIT_S
        self._device = device
        self._devices = ["cpu"] if device == "cpu" else ["cpu", "cuda:0"]
        self._columns = (CPU,) if device == "cpu" else (CPU, GPU, SATURATED)
        self.gauge = Gauge(device, IDLE_S)
        self.samples: Samples = {}
        self.shapes: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.model: str | None = None

    async def run(self, wanted: Sequence[str]) -> None:
        """Measure these cases, system after system; what fails or finds no time is skipped with the reason."""
        for name, system in SYSTEMS.items():
            cases = {case: found for case, found in system.cases.items() if case in wanted}
            if not cases or not self._has_time(cases, START_S):
                continue
            with device_run.guarded(name, self.skipped):
                async with asyncio.timeout(self._ends_at - time.perf_counter()):
                    await self._system(system, cases)

    def _has_time(self, cases: Mapping[str, Case], start_s: float) -> bool:
        """Whether the first of these cases can be measured before the end; if not, they are skipped."""
        if self._ends_at - time.perf_counter() >= start_s + self._plan.case_s(len(self._columns)):
            return True
        self.skipped |= dict.fromkeys(cases, f"no time left of {LIMIT_S:.0f} s")
        return False

    async def _system(self, system: System, cases: Mapping[str, Case]) -> None:
        """The cases of one system, whose workers stand all the while; one that nobody asks sleeps."""
        with tempfile.TemporaryDirectory() as folder:
            settings, pool = dict(system.settings), Path(folder, "texts.json")
            fronts = min(system.fronts, max(1, len(os.sched_getaffinity(0)) // 4))
            if system.texts:
                _, self.model = find_model(pool.parent)
                settings |= {"models.directory": folder} if self.model != TRAINED else {}
            async with AsyncExitStack() as stack:
                writing = asyncio.create_task(self._write_texts(pool)) if system.texts else None
                served = await all_of(
                    stack.enter_async_context(serving({**settings, "worker.device": device, "worker.fronts": fronts}))
                    for device in self._devices
                )
                if writing:
                    await writing
                for name, case in cases.items():
                    if name in self.samples or not self._has_time({name: case}, 0):
                        continue
                    self.shapes[name] = {
                        "title": case.title,
                        "rows_per_call": case.rows_per_call,
                        "fronts": fronts,
                        "processes": load_processes(),
                    }
                    async with routes(name, self._devices, served, pool) as found:
                        await self._case(name, case, found)

    async def _write_texts(self, pool: Path) -> None:
        order = {"device": self._device, "count": self._plan.texts, "pool": str(pool)}
        async with processes.child(sys.executable, "-m", "benchmarks.kpi_texts", json.dumps(order)) as writer:
            if await asyncio.wait_for(writer.wait(), processes.START_S):
                raise RuntimeError("the sentences and their reference were not made; the errors are above")

    async def _case(self, name: str, case: Case, found: Sequence[Route]) -> None:
        """Find what the CPU path sustains, then measure each column in turn, their order rotating."""
        plan, cpu, gpu = self._plan, found[0], found[-1]
        first = await self.gauge.window(cpu, Load(plan.calibration_s, plan.ramp_s, None, case.cpu_callers), seed=0)
        sustained = first["rows_per_s"]
        if not sustained:
            raise RuntimeError(f"{name}: the CPU path answered nothing: {first['first_error']}")
        self.shapes[name] |= {"sustained_rows_per_s": sustained, "offered_rows_per_s": round(SHARE * sustained, 1)}
        equal = Load(plan.seconds, plan.ramp_s, SHARE * sustained)
        most = Load(plan.seconds, plan.ramp_s, None, case.gpu_callers)
        if gpu is not cpu:  # pools are filled and kernels loaded before the first window
            await self.gauge.window(gpu, most._replace(seconds=plan.calibration_s), seed=0)
        loads = {CPU: (cpu, equal), GPU: (gpu, equal), SATURATED: (gpu, most)}
        for number in range(plan.rounds):
            shift = number % len(self._columns)
            for column in self._columns[shift:] + self._columns[:shift]:
                route, load = loads[column]
                sample = await self.gauge.window(route, load, seed=number + 1)
                self.samples.setdefault(name, {}).setdefault(column, []).append(sample)
                _show(name, column, number, sample)


def _show(case: str, column: str, number: int, sample: Mapping[str, Any]) -> None:
    notes = [f"{sample['rows_per_s']:,.0f} rows/s" if sample["rows_per_s"] else "nothing answered"]
    notes += [f"{sample[kind]} {kind}" for kind in FAULTS if sample[kind]]
    notes += [sample["first_error"]] if sample["first_error"] else []
    print(f"{case}, {column}, window {number + 1}: {', '.join(notes)}", file=sys.stderr, flush=True)


def _finish(bench: Bench, options: argparse.Namespace) -> None:
    """Judge, print the tables, write the record."""
    result = record.record(
        "kpi",
        bench.samples,
        baseline=CPU,
        shapes=bench.shapes,
        distributions=["nats-py", "numpy", "transformers", "uvloop", *NEEDS],
        skipped=bench.skipped | ({GPU: "no GPU was measured"} if options.device == "cpu" else {}),
    )
    medians = kpi_table.medians(bench.samples)
    judged = [goal for case in bench.samples for goal in kpi_table.judged(case)] if options.device != "cpu" else []
    result |= {
        "device": options.device,
        "gpu": record.gpu(options.device),
        "model": bench.model,
        "medians": medians,
        "figures": goals.judge(judged, bench.samples),
        "power": {
            "basis": bench.gauge.processors.basis,
            "assumed_watts": bench.gauge.processors.watts,
            "idle_watts": bench.gauge.idle_watts,
            "even_watts": {case: kpi_table.even_watts(by) for case, by in medians.items()},
        },
    }
    print(kpi_table.text(result))
    if path := device_run.json_path("kpi", options):
        record.write(result, path)


def main() -> None:
    """Measure, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kpi", description=__doc__)
    device_run.add_arguments(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to measure (default all)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    there = bool(visible())
    if options.device == "cuda" and not there:
        parser.error("the driver shows no GPU here; leave --device out to measure the CPU path alone")
    options.device = options.device or ("cuda" if there else "cpu")
    bench = Bench(options.device, QUICK if options.quick else FULL)
    processes.raise_file_limit()
    loop.run(bench.run(options.cases))
    _finish(bench, options)


if __name__ == "__main__":
    main()

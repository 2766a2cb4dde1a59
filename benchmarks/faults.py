"""Faults: how long each is felt, and what becomes of the calls: `python -m benchmarks.faults --device cpu|cuda`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from aikoryu.cli.chaos import report
from aikoryu.cli.chaos.drill import Drill, drill, title
from aikoryu.cli.chaos.faults import FAULTS
from aikoryu.config import Settings, configure_logging, load
from benchmarks import device_run, faults_table, goals, neighbours, record, recovery
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME, NEEDS

CALLS = {"cpu": 100_000, "cuda": 1_000_000}
PROCESSES = {"cpu": 1, "cuda": 4}
QUICK_CALLS = 2_000


def _felt(name: str, title: str, goal: float, aim: float | None = None) -> Goal:
    return Goal(title, Value("felt", NAME, name), (), goal, aim, "lower")


FELT = (
    _felt("raise_ms", "a batch raises: from the call to the spare's answer, ms", 50, 5),
    _felt("hang_ms", "a batch hangs: from its time limit to the spare's answer, ms", 100),
    _felt("kill_ms", "the engine is killed: to the spare's first answer, ms", 300),
    _felt("fresh_s", "the engine is killed: to the first answer of a fresh one, s", 6),
    _felt("reserve_s", "the engine is killed: to the first answer of its reserve, s", 0.5),
    _felt("breaker_us", "the breaker's cost a batch, µs", 1),
    *neighbours.GOALS,
)
CAME = {
    "lost": "calls lost, all faults together",
    "wrong": "calls answered wrongly",
    "twice": "calls answered twice",
}


def figures(felt: dict[str, list[float]], done: Drill) -> list[dict[str, Any]]:
    """The goals, with what was measured: of each time the longest."""
    lines = [goals.line(goal, max(felt[goal.mine.figure], default=None)) for goal in FELT if goal.mine.figure in felt]
    accounts = [outcome.account for outcome in done.outcomes]
    for name, text in CAME.items():
        lines.append(goals.line(_felt(name, text, 0), sum(getattr(account, name) for account in accounts)))
    return lines


def described(done: Drill) -> list[dict[str, Any]]:
    """What became of the calls, fault by fault, as JSON-ready data."""
    return [
        {
            "fault": outcome.fault.name,
            "what": outcome.fault.what,
            "happened": outcome.happened,
            "calls": outcome.account.calls,
            "lost": outcome.account.lost,
            "wrong": outcome.account.wrong,
            "twice": outcome.account.twice,
            "errors": outcome.account.errors,
            "longest_ms": round(1e3 * outcome.account.longest_s, 1),
            "on_spare": outcome.on_spare,
            "recovered_s": None if outcome.recovered_s is None else round(outcome.recovered_s, 2),
        }
        for outcome in done.outcomes
    ]


async def _measure(settings: Settings, options: argparse.Namespace) -> tuple[dict[str, list[float]], Drill]:
    runs, raises = (1, 2) if options.quick else (recovery.RUNS, recovery.RAISES)
    felt = {"breaker_us": [round(recovery.breaker_us(), 3)]}
    if not options.only:
        felt |= await recovery.measure(settings, runs, raises)
        felt |= await neighbours.measure(settings)
    faults = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    calls = options.calls or (QUICK_CALLS if options.quick else CALLS[options.device])
    return felt, await drill(settings, faults, calls, PROCESSES[options.device])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the record and its plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    device_run.add_arguments(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--calls", type=int, help="a fault, at least (default: 100,000 on the CPU, 1,000,000 on a GPU)")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], help="these faults, no times")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args(arguments)

    settings = load(flags={"log.level": "critical"})
    device = "cpu" if options.device == "cpu" else "cuda:0"
    settings = replace(settings, worker=replace(settings.worker, device=device))
    configure_logging(settings.log)
    felt, done = uvloop.run(_measure(settings, options))
    result = record.about("faults", [*NEEDS, "nats-py", "numpy", "torch", "uvloop"]) | {
        "device": options.device,
        "gpu": record.gpu(options.device),
        "title": title(done),
        "felt": felt,
        "capacity": round(done.capacity),
        "faults": described(done),
        "figures": figures(felt, done),
        "timeline": msgspec.to_builtins(done.timeline),
    }
    print(report.figures(done.outcomes), goals.table(result["figures"]), sep="\n\n")
    if path := device_run.json_path("faults", options):
        record.write(result, path)
        if find_spec("matplotlib") is None:
            print(f"No plot beside {path.name}: pip install 'aikoryu[plot]' brings matplotlib.", file=sys.stderr)
        else:
            faults_table.draw(result, path.with_suffix(".svg"))
    sys.exit(not report.well(done.outcomes))


if __name__ == "__main__":
    main()

"""Faults in turn under load, and what becomes of the calls: `python -m benchmarks.faults --device cpu|cuda`."""

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
from aikoryu.config import configure_logging, load
from benchmarks import device_run, faults_table, goals, record
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME, NEEDS

CALLS = {"cpu": 100_000, "cuda": 1_000_000}
PROCESSES = {"cpu": 1, "cuda": 4}
QUICK_CALLS = 2_000


CAME = {
    "lost": "calls lost, all faults together",
    "wrong": "calls answered wrongly",
    "twice": "calls answered twice",
}


def figures(done: Drill) -> list[dict[str, Any]]:
    """The goals, with what came of all faults together."""
    accounts = [outcome.account for outcome in done.outcomes]
    return [
        goals.line(
            Goal(text, Value("drill", NAME, name), (), 0, None, "lower"),
            sum(getattr(account, name) for account in accounts),
        )
        for name, text in CAME.items()
    ]


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


def recorded(done: Drill, device: str) -> dict[str, Any]:
    """The record of a drill, or of as much of it as there has been."""
    return record.about("faults", [*NEEDS, "nats-py", "numpy", "torch", "uvloop"]) | {
        "device": device,
        "gpu": record.gpu(device),
        "title": title(done),
        "capacity": round(done.capacity),
        "faults": described(done),
        "figures": figures(done),
        "timeline": msgspec.to_builtins(done.timeline),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the record and its plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    device_run.add_arguments(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--calls", type=int, help="a fault, at least (default: 100,000 on the CPU, 1,000,000 on a GPU)")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], help="these faults")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args(arguments)

    settings = load(flags={"log.level": "critical"})
    device = "cpu" if options.device == "cpu" else "cuda:0"
    settings = replace(settings, worker=replace(settings.worker, device=device))
    configure_logging(settings.log)
    faults = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    calls = options.calls or (QUICK_CALLS if options.quick else CALLS[options.device])
    path = device_run.json_path("faults", options)

    def write(done: Drill) -> None:
        if path:
            record.write(recorded(done, options.device), path)

    done = uvloop.run(drill(settings, faults, calls, PROCESSES[options.device], write))
    print(report.figures(done.outcomes), goals.table(figures(done)), sep="\n\n")
    if path and find_spec("matplotlib") is None:
        print(f"No plot beside {path.name}: pip install 'aikoryu[plot]' brings matplotlib.", file=sys.stderr)
    elif path:
        faults_table.draw(recorded(done, options.device), path.with_suffix(".svg"))
    sys.exit(not report.well(done.outcomes))


if __name__ == "__main__":
    main()

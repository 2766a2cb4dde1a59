"""Changes a second of agents with state, each written before its reply, beside a key-value bucket and a plain dict.

`python -m benchmarks.state --json OUT`
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import goals, markdown, record
from benchmarks.goals import Goal, Value
from benchmarks.harness import entrants
from benchmarks.ours import NAME
from benchmarks.shapes import Shape
from benchmarks.standing import run_standing

MODULES = ("benchmarks.ours_state", "benchmarks.peers.kv_update")
PEERS = ("kv.update, service", "kv.update, caller", "dict in memory")
BASELINE = "kv.update, service"
SHAPES = tuple(
    Shape(
        f"keys{keys}",
        f"{keys:,} key{'s' if keys > 1 else ''}, one change of each in flight",
        callers=keys,
        workload="keys",
    )
    for keys in (1, 64, 1024)
)

GOALS = tuple(
    goal
    for shape in SHAPES
    for goal in (
        Goal(f"state, {shape.callers:,} in flight: changes/s", Value(shape.name, NAME)),
        *(
            Goal(
                f"state, {shape.callers:,} in flight: changes/s ÷ {name}",
                Value(shape.name, NAME),
                (Value(shape.name, name),),
            )
            for name in PEERS
        ),
    )
)


def section(result: Mapping[str, Any]) -> str:
    """The table of docs/agents-state.md: changes a second, and p50 and p99 of one."""
    names = (NAME, *PEERS)
    rows = [
        (f"{result['shapes'][shape]['callers']:,}", *(_cell(by[name]) for name in names))
        for shape, by in result["medians"].items()
    ]
    machine = result["machine"]
    return "\n\n".join(
        (
            markdown.table(("keys in flight", "agent with state", *PEERS), "rrrrr", rows),
            "Changes a second, with p50 and p99 of one in ms; medians of "
            f"{len(next(iter(result['samples'].values()))[NAME])} rounds, caller, service and server on "
            f"{machine['cores']} cores of {machine['cpu']} "
            f"([`state.json`](../benchmarks/results/state.json), {markdown.stamp(result)}).",
        )
    )


def _cell(figures: Mapping[str, Any]) -> str:
    return f"{figures['rows_per_s']:,.0f} ({figures['p50_ms']:.2f}, {figures['p99_ms']:.2f})"


def main() -> None:
    """Run the rounds, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--seconds", type=float, default=0.75, help="length of one measurement (default 0.75)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="contestants to run (default all)")
    parser.add_argument("--shapes", nargs="+", default=[], metavar="NAME", help="shapes to run (default all)")
    parser.add_argument("--quick", action="store_true", help="one round of 0.1 s, for a first look")
    options = parser.parse_args()
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, options.seconds)
    shapes = [shape for shape in SHAPES if not options.shapes or shape.name in options.shapes]
    able, skipped = entrants(MODULES, options.only)
    samples, failed = asyncio.run(run_standing(able, shapes, rounds, seconds, "cpu"))
    result = record.record(
        "state",
        samples,
        baseline=BASELINE,
        shapes={shape.name: shape.as_dict() | {"rows_in_flight": shape.rows_in_flight} for shape in shapes},
        distributions=["nats-py", "uvloop", *(name for _, one in able for name in one.needs)],
        skipped=skipped | failed,
    )
    result["figures"] = goals.judge(GOALS, samples)
    print(record.table(result) + "\n\n" + goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

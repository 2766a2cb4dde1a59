"""Agents: a handler that echoes, beside what one would use instead, and a crowd of agents in a few processes.

`python -m benchmarks.agents --rounds 3 --seconds 4 --json OUT`
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks import crowd, goals, record
from benchmarks.goals import Goal, Value
from benchmarks.harness import entrants, run_rounds
from benchmarks.ours import NAME
from benchmarks.shapes import BUS_SHAPES

MODULES = (
    "benchmarks.ours_handler",
    "benchmarks.peers.plain_nats",
    "benchmarks.peers.faststream_echo",
    "benchmarks.peers.autogen_echo",
)
BASELINE = "nats-request"
SHAPES = ("row512", "row64", "one")

GOALS = (
    *(
        Goal(
            f"handler, 512 calls in flight: calls/s ÷ {title}",
            Value("row512", NAME),
            (Value("row512", name),),
            goal,
            aim,
        )
        for name, title, goal, aim in (
            ("nats-request", "nc.request to a plain service", 0.6, 0.9),
            ("faststream", "FastStream", 2.5, 4),
            ("autogen-core", "autogen-core in memory", 3, None),
            ("nats-mux", "own mux on nats-py", None, None),
        )
    ),
    Goal(
        "handler, one caller: p50 ÷ nc.request",
        Value("one", NAME, "p50_ms"),
        (Value("one", "nats-request", "p50_ms"),),
        1.5,
        None,
        "lower",
    ),
)


def main() -> None:
    """Run the rounds and the crowd, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (default 4)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="contestants to run (default all)")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="NAME", help="shapes to run (default all)")
    parser.add_argument("--agents", type=int, default=10_000, help="agents of the crowd (default 10,000; 0 for none)")
    parser.add_argument("--processes", type=int, default=8, help="processes of the crowd (default 8)")
    options = parser.parse_args()
    shapes = [shape for shape in BUS_SHAPES if shape.name in options.shapes]
    able, skipped = entrants(MODULES, options.only)
    samples = asyncio.run(run_rounds(able, shapes, options.rounds, options.seconds))
    result = record.record(
        "agents",
        samples,
        baseline=BASELINE,
        shapes={shape.name: shape.as_dict() | {"rows_in_flight": shape.rows_in_flight} for shape in shapes},
        distributions=["nats-py", "numpy", "uvloop", *(name for _, c in able for name in c.needs)],
        skipped=skipped,
    )
    result["figures"] = goals.judge(GOALS, samples)
    print(record.table(result))
    if options.agents:
        gathered = asyncio.run(crowd.measure(options.agents, options.processes, options.seconds))
        result["crowd"] = gathered
        result["figures"] += crowd.judge(gathered)
        print("\n" + crowd.table(gathered))
    print("\n" + goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

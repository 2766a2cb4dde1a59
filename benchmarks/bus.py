"""Echo of 384-float rows over the bus: `python -m benchmarks.bus --rounds 3 --seconds 4 --json OUT`.

With `--device cuda` another shape of it is measured, that of a GPU host: see `bus_device.py`.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from benchmarks import break_even, bus_device, device_run, goals, record
from benchmarks.harness import entrants, run_rounds
from benchmarks.ours import NAME
from benchmarks.shapes import BUS_SHAPES

MODULES = (
    "benchmarks.ours_echo",
    "benchmarks.peers.plain_nats",
    "benchmarks.peers.greedy_batcher",
    "benchmarks.peers.pure_echo",
    "benchmarks.peers.mosec_echo",
    "benchmarks.peers.faststream_echo",
)
BASELINE = "nats-request"


def main() -> None:
    """Run the rounds, print the table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus", description=__doc__)
    device_run.add_arguments(parser)
    parser.add_argument("--rounds", type=int, help="times that everything is measured (default 3; 5 with --device)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default 4; 1.25 with --device)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="contestants to run (default all)")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="shapes to run (default all)")
    parser.add_argument(
        "--skip-break-even", action="store_true", help="do not measure each operation's break-even batch"
    )
    options = parser.parse_args()
    if options.device:
        bus_device.run(options)
    else:
        _run(options)


def _run(options: argparse.Namespace) -> None:
    shapes = [shape for shape in BUS_SHAPES if not options.shapes or shape.name in options.shapes]
    able, skipped = entrants(MODULES, options.only)
    samples = asyncio.run(run_rounds(able, shapes, options.rounds or 3, options.seconds or 4.0))
    result = record.record(
        "bus",
        samples,
        baseline=BASELINE,
        shapes={shape.name: shape.as_dict() | {"rows_in_flight": shape.rows_in_flight} for shape in shapes},
        distributions=["nats-py", "numpy", "uvloop", *(name for _, c in able for name in c.needs)],
        skipped=skipped,
    )
    result["figures"] = goals.judge(goals.BUS_GOALS, samples)
    print(record.table(result))
    if NAME in {contestant.name for _, contestant in able}:
        print("\n" + goals.table(result["figures"]))
    if not options.skip_break_even:
        result["break_even"] = asyncio.run(break_even.measure())
        print("\n" + break_even.table(result["break_even"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

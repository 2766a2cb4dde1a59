"""`aikoryu bench`: the benchmarks of the source tree."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .arguments import Commands, add_command
from .failure import Failed

ROOT = Path(__file__).resolve().parents[3]

BENCHMARKS = {
    "bus": "rows echoed over it, against its peers",
    "matrix": "products, from front to front and beside plain torch",
    "embed": "sentences, against other ways to embed them",
    "kpi": "what a million rows cost on the GPU path and on the CPU path",
}
_HELP = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())

_DESCRIPTION = """\
Measure the bus on this machine, beside what one would use instead. What follows
the benchmark's name goes to it.

  aikoryu bench bus --help
  aikoryu bench bus --rounds 1 --seconds 2
  aikoryu bench matrix --device cuda
  aikoryu bench embed --device cuda --quick
  aikoryu bench kpi --device cuda"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "bench", "measure the bus on this machine", _DESCRIPTION)
    parser.add_argument("benchmark", choices=list(BENCHMARKS), help=_HELP)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments for the benchmark")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Become the benchmark, so that signals and the exit status are its own."""
    if not (ROOT / "benchmarks" / f"{options.benchmark}.py").is_file():
        raise Failed("the benchmarks live in the source tree: clone it, and run `make bench` there")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"benchmarks.{options.benchmark}", *options.arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})

"""Everything that is committed, in one go and about 20 minutes: `python -m benchmarks.figures`.

Each benchmark runs as a process of its own and writes `benchmarks/results/<name>.json`; README and plot follow.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time

from benchmarks.processes import ROOT
from benchmarks.record import RESULTS

# The shortest first: what is broken shows early.
RUNS = {
    "break_even": "",
    "memory": "--limit-s 300",
    "bus": "--rounds 2 --seconds 4 --skip-break-even",
    "embed": "--rounds 2 --seconds 12 --shapes equal64 mixed64 hangup256",
}


def main() -> None:
    """Run them one after another and render; a benchmark that fails ends it, what was written before stays."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, help="benchmarks to run (default all)")
    options = parser.parse_args()
    for name in options.only:
        start = time.perf_counter()
        path = (RESULTS / f"{name}.json").relative_to(ROOT)
        _run(f"benchmarks.{name}", *shlex.split(RUNS[name]), "--json", str(path))
        print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes, {path}\n", file=sys.stderr, flush=True)
    _run("benchmarks.render")


def _run(module: str, *arguments: str) -> None:
    status = subprocess.run((sys.executable, "-m", module, *arguments), cwd=ROOT, check=False).returncode
    if status:
        sys.exit(f"{module} ended with status {status}")


if __name__ == "__main__":
    main()

"""The benchmark runs, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_benchmark_measures_each(tmp_path: Path) -> None:
    out = tmp_path / "coordination.json"
    command = ("--seconds", "0.1", "--tasks", "50", "--kills", "1", "--json", str(out))
    subprocess.run((sys.executable, "-m", "benchmarks.coordination", *command), cwd=ROOT, check=True, timeout=60)
    result = json.loads(out.read_bytes())
    assert result["locks"]["alone_per_s"] > 0
    assert result["locks"]["wanted_per_s"] > 0
    assert (result["tasks"]["lost"], result["tasks"]["tasks"]) == (0, 50)
    assert len(result["failover"]["took_s"]) == 1
    assert result["figures"][0]["got"] == result["failover"]["beyond_ttl_s"]

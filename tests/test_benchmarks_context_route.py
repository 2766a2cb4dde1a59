"""The benchmark of routes runs, and finds no wrong answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .benchmark_runs import run

pytest.importorskip("torch", reason="needs the extra `worker`")


def test_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "route.json"
    done = run("benchmarks.context_route", "--agents", "700", "--rounds", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert {"machine", "commit", "versions", "gpu", "figures"} <= result.keys()
    for shape, by in result["medians"].items():
        assert result["shapes"][shape]["title"] in done.stdout
        assert all(by[name]["p50_ms"] > 0 and by[name]["mismatches"] == 0 for name in ("aikoryu", "torch"))

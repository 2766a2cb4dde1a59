"""The benchmark of assignments runs, and judges by the optimum."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

ROOT = Path(__file__).parents[1]


def test_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "assign.json"
    command = ("benchmarks.assign", "--quick", "--repeats", "0", "--json", str(path))
    done = subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert {"machine", "commit", "versions", "gpu"} <= result.keys()
    for found in result["shapes"]:
        assert found["largest_difference"] < 1e-5, "the peer's scores are the same"
        assert 0 < found["served"] <= found["shape"]["tasks"]
        assert found["short_percent"] is None or found["short_percent"] <= 1
        assert found["title"] in done.stdout


def test_the_committed_record_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import assign_table
    from benchmarks.record import RESULTS

    record = assign_table.load(RESULTS)
    assert record is not None
    text = "\n".join(assign_table.page(record))
    for one in record["shapes"]:
        assert f"| {one['title']} | {one['whole_matrix_ms']:,.1f} | {one['shortlist_ms']:,.1f} |" in text
    assert text.count("| — | — |") == sum(one["short_percent"] is None for one in record["shapes"]) > 0

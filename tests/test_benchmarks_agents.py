"""The benchmark of agents runs, and judges its crowd rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "agents.json"
    command = ("benchmarks.agents", "--rounds", "1", "--seconds", "0.3", "--shapes", "one", "--only", "aikoryu")
    crowd = ("--agents", "20", "--processes", "2", "--json", str(path))
    done = subprocess.run(
        (sys.executable, "-m", *command, *crowd), cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    (sample,) = result["samples"]["one"]["aikoryu"]
    assert sample["rows_per_s"] > 0
    found = result["crowd"]
    assert (found["agents"], found["present"], found["errors"], found["wrong"]) == (20, 20, 0, 0)
    assert found["calls"] > 0


def test_a_crowd_that_loses_falls_short() -> None:
    from benchmarks import crowd

    found = {"agents": 100, "present": 99, "calls": 50, "errors": 1, "wrong": 0, "agent_bytes": 20_001}
    assert {line["verdict"] for line in crowd.judge(found)} == {"short"}
    found = {"agents": 100, "present": 100, "calls": 50, "errors": 0, "wrong": 0, "agent_bytes": 4_000}
    assert [line["verdict"] for line in crowd.judge(found)] == ["goal met", "goal met", "aim reached"]

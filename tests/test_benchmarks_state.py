"""The benchmark of keys with state runs, counts every change, and its table says what the record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .benchmark_runs import ROOT, run, sample


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    done = run("benchmarks.state", "--quick", "--shapes", "keys64", "--only", "aikoryu", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    (found,) = result["samples"]["keys64"]["aikoryu"]
    assert found["rows_per_s"] > 0, done.stderr
    assert (found["mismatches"], found["errors"], found["unanswered"]) == (0, 0, 0), done.stderr
    (rate,) = result["figures"]
    assert rate["got"] == result["medians"]["keys64"]["aikoryu"]["rows_per_s"]


def test_a_key_has_one_change_in_flight_and_a_wrong_total_is_seen() -> None:
    from benchmarks.workloads import Keys

    keys = Keys()
    (first, _), (second, _) = keys.one(), keys.one()
    assert first != second
    assert keys.wrong(1, first) == 0
    assert keys.one()[0] == first
    assert keys.wrong(1, first) == 1, "it was changed twice"


def test_the_table_has_all_in_their_columns() -> None:
    from benchmarks import record, state

    def rounds(rate: float) -> list[dict[str, float]]:
        return [sample(rows_per_s=rate, p50_ms=0.5, p99_ms=2.0)] * 3

    samples = {"keys1024": {name: rounds(1e3 * n) for n, name in enumerate(reversed(("aikoryu", *state.PEERS)), 1)}}
    result = {
        **record.about("state", []),
        "commit": None,
        "samples": samples,
        "medians": {
            shape: {name: record.medians(found) for name, found in by.items()} for shape, by in samples.items()
        },
        "shapes": {shape.name: shape.as_dict() for shape in state.SHAPES},
    }
    cells = [f"{rate},000 (0.50, 2.00)" for rate in (4, 3, 2, 1)]
    assert f"| 1,024 | {' | '.join(cells)} |" in state.section(result)

"""The benchmark of what reaches agents runs without a GPU, and copies a graph whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import benchmark_runs

torch = pytest.importorskip("torch", reason="needs the extra `worker`")


def test_benchmark_runs_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(benchmark_runs.ROOT)
    from benchmarks import context_maths

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # of 200 rows, threads would wait
    path = tmp_path / "context_maths.json"
    context_maths.main(["--agents", "200", "--json", str(path)])
    result = json.loads(path.read_text())
    assert {"machine", "commit", "versions", "gpu"} <= result.keys()
    for by in result["samples"].values():
        for rounds in by.values():
            assert all(one["p50_ms"] > 0 and not one["mismatches"] for one in rounds)
    assert all(cost["measured"] > 0 for cost in result["push_cost"].values())
    titles = {one["title"] for one in result["figures"]}
    assert len(result["figures"]) == len(titles) > 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in titles)


def test_a_copy_goes_on_where_the_graph_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(benchmark_runs.ROOT)
    from benchmarks.context_graphs import Windows, copied, drawn

    from aikoryu.gpu.context.propagate import settle

    place = torch.device("cpu")
    graph = drawn("clustered", 300, 0.3, place)
    settle(graph, 1e-3)
    copy = copied(graph, place)
    windows = Windows(300, place)
    for _ in range(3):
        window = windows.next(20)
        for one in (graph, copy):
            window.put(one)
            settle(one, 1e-3)
    assert graph.table.blended.data_ptr() != copy.table.blended.data_ptr()
    assert torch.equal(graph.table.blended, copy.table.blended)
    assert int(graph.edges.heard.count[:300].min()) > 20

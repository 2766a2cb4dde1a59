"""The benchmarks run, judge rightly, and README says what their results say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from .benchmark_runs import ROOT, run, sample


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_readme_says_what_the_committed_results_say() -> None:
    done = run("benchmarks.render", "--check")
    assert done.returncode == 0, f"python -m benchmarks.render writes what is missing:\n{done.stderr}"


def test_readme_shows_figures_that_are_there() -> None:
    from benchmarks import headlines

    records = headlines.load(ROOT / "benchmarks" / "results")
    for chosen, shown in (
        (headlines.HEADLINES, headlines.section(records)),
        (headlines.PACKETS, headlines.packets(records)),
    ):
        for name, titles in chosen.items():
            assert name in records
            assert all(title in shown for title in titles)
    assert headlines.section({}) == headlines.ABSENT


def test_every_committed_result_names_what_it_was_measured_on() -> None:
    from benchmarks import render

    for name, result in render.load(ROOT / "benchmarks" / "results").items():
        assert {"date", "commit", "command", "machine", "versions"} <= result.keys(), name


def test_section_without_results_says_so() -> None:
    from benchmarks import render

    readme = f"# A\n{render.BEGIN}\nold\n{render.END}\nB\n"
    assert (
        render.with_section(readme, render.section({}, {}))
        == f"# A\n{render.BEGIN}\n{render.ABSENT}\n{render.END}\nB\n"
    )


@pytest.mark.parametrize("readme", ["", "<!-- figures -->", "<!-- /figures --><!-- figures -->"])
def test_section_needs_its_markers(readme: str) -> None:
    from benchmarks import render

    with pytest.raises(ValueError, match="markers"):
        render.with_section(readme, "")


@pytest.mark.parametrize(
    ("better", "got", "verdict"),
    [
        ("higher", 3.0, "aim reached"),
        ("higher", 2.999, "goal met"),
        ("higher", 1.999, "short"),
        ("lower", 2.0, "aim reached"),
        ("lower", 3.0, "goal met"),
        ("lower", 3.001, "short"),
    ],
)
def test_verdict(better: Any, got: float, verdict: str) -> None:
    from benchmarks.goals import Goal, Value

    goal, aim = (2, 3) if better == "higher" else (3, 2)
    assert Goal("", Value("s", "c"), (), goal, aim, better).verdict(got) == verdict


def test_ratio_is_within_rounds_and_against_the_best_peer() -> None:
    from benchmarks.goals import Goal, Value, judge

    samples = {
        "s": {
            "mine": [sample(rows_per_s=20.0), sample(rows_per_s=40.0), sample(rows_per_s=30.0)],
            "peer-slow": [sample(rows_per_s=1.0)] * 3,
            "peer-fast": [sample(rows_per_s=10.0), sample(rows_per_s=10.0), sample(rows_per_s=30.0)],
        }
    }
    (found,) = judge([Goal("", Value("s", "mine"), (Value("s", "peer-*"),), 2)], samples)
    assert (found["got"], found["against"], found["verdict"]) == (2.0, "peer-fast", "goal met")


def test_faults_void_a_figure() -> None:
    from benchmarks.goals import Goal, Value, judge

    samples = {"s": {"mine": [sample(rows_per_s=9.0)], "peer": [sample(rows_per_s=1.0) | {"errors": 1}]}}
    (found,) = judge([Goal("", Value("s", "mine"), (Value("s", "peer"),), 2)], samples)
    assert (found["verdict"], found["faults"]) == ("faults", ["peer"])


def test_a_shape_that_ran_without_the_peer_is_not_measured() -> None:
    from benchmarks.goals import Goal, Value, judge

    samples = {"s": {"mine": [sample(rows_per_s=9.0)]}}
    (found,) = judge([Goal("", Value("s", "mine"), (Value("s", "peer"),), 2)], samples)
    assert (found["got"], found["verdict"]) == (None, "not measured")


@pytest.mark.parametrize(
    ("asked_s", "expected"),
    [
        ({1: 9.0, 2: 4.0, 4: 3.0}, 2),
        ({1: 4.0, 2: 9.0, 4: 3.0}, 4),  # a lucky point below is no break-even
        ({1: 9.0, 2: 4.0, 4: 5.0}, None),
    ],
)
def test_break_even_holds_from_there_on(asked_s: dict[int, float], expected: int | None) -> None:
    from benchmarks.break_even import Case, summary

    case = Case("echo", "echo", {"x": [0] * 4}, "x", (len,))
    assert summary(case, 5.0, asked_s)["break_even"] == expected


def test_memory_figure_needs_ten_million_rows() -> None:
    from benchmarks.memory import figure

    seen = [{"rows": 0, "rss": 50}, {"rows": 1_000_064, "rss": 100}, {"rows": 10_000_000, "rss": 101}]
    assert (figure(seen)["got"], figure(seen)["verdict"]) == (1.01, "goal met")
    assert figure(seen[:2])["got"] is None


def test_bus_benchmark_runs(tmp_path: Path) -> None:
    path = tmp_path / "bus.json"
    only = ("--only", "nats-mux", "aikoryu", "--shapes", "row64", "--skip-break-even")
    done = run("benchmarks.bus", "--rounds", "1", "--seconds", "1", *only, "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["machine"].keys() == {"cpu", "cores", "ram_gib", "kernel", "python"}
    assert {"aikoryu", "nats-py", "nats-server"} <= result["versions"].keys()
    for name in ("nats-mux", "aikoryu"):
        (found,) = result["samples"]["row64"][name]
        assert found["rows_per_s"] > 0, done.stderr
        assert found["p50_ms"] <= found["p99_ms"]
        assert (found["mismatches"], found["errors"], found["unanswered"]) == (0, 0, 0), done.stderr
    (rate, *_) = result["figures"]
    assert (rate["against"], rate["goal"]) == ("nats-mux", 1)
    assert rate["got"] > 0


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [
        (None, None, "—"),
        (0.456, None, "0.46"),
        (298_000.4, None, "298,000"),
        (0.5, "lower", "≤ 0.5"),
        (1_000_000, "higher", "≥ 1,000,000"),
        (150e6, "higher", "≥ 150 M"),
        (24_640_138_449, None, "24.6 G"),
        (0, None, "0"),
        (0.0, None, "0.00"),
    ],
)
def test_numbers_are_for_people(value: float | None, better: str | None, expected: str) -> None:
    from benchmarks.goals import number

    assert number(value, {"better": better} if better else None) == expected


def test_stages_are_those_of_the_batches_between_two_reads() -> None:
    from benchmarks.stages import STAGES, between, line, medians

    def counts(batches: int) -> dict[str, float]:
        spent = {"queue": 2e-6, "window": 1e-6, "staging": 2e-6, "device": 3e-6, "reply": 3e-6}
        found = {f"{stage}_seconds_sum": spent[stage] * batches for stage in STAGES}
        return found | {"batch_rows_count": batches, "batch_rows_sum": 8.0 * batches}

    found = between(counts(5), counts(15))
    assert found["queue"] == {"mean_us": 2.0, "share": 0.2}
    assert found["window"] == {"mean_us": 1.0, "share": 0.1}
    assert (found["batches"], found["rows_a_batch"]) == (10, 8.0)
    assert between(counts(5), counts(5)) == {}
    assert medians([{"stages": found}, {"stages": {}}]) is None
    middle = medians([{"stages": found}, {"stages": found}])
    assert middle is not None
    assert "device 3 µs (30%)" in line("ours", middle)


def test_bus_benchmark_runs_on_a_device(tmp_path: Path) -> None:
    path = tmp_path / "bus.json"
    only = ("--only", "aikoryu, 1 front", "nats-mux", "--shapes", "awaited", "agents")
    done = run("benchmarks.bus", *_QUICKEST, "--seconds", "0.3", *only, "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    for shape in ("awaited", "agents"):
        for name in ("aikoryu, 1 front", "nats-mux"):
            (found,) = result["samples"][shape][name]
            assert (found["mismatches"], found["errors"], found["unanswered"]) == (0, 0, 0), done.stderr
            assert found["rows_per_s"] > 0
    assert result["stages"]["awaited"]["aikoryu, 1 front"]["device"]["mean_us"] > 0
    _renders("bus", result, path)


def test_matrix_benchmark_runs_on_a_device(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    done = run("benchmarks.matrix", *_QUICKEST, "--seconds", "0.01", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert not result["skipped"], result["skipped"]
    for shape, by in result["samples"].items():
        for name, (found,) in by.items():
            assert (found["mismatches"], found["errors"]) == (0, 0), (shape, name)
    by = result["medians"]["f4-64"]
    assert by.keys() == {"aikoryu", "aikoryu with transfers", "torch.bmm", "torch on all cores", "copies alone"}
    assert result["medians"]["oversize"]["aikoryu"]["rows_per_s"] > 0
    _renders("matrix", result, path)


_QUICKEST = ("--device", "cpu", "--quick", "--rounds", "1")


def _renders(name: str, result: dict[str, Any], path: Path) -> None:
    from benchmarks import render_device

    found = {name: result}
    if importlib.util.find_spec("matplotlib") is not None:
        assert path.with_suffix(".svg").read_text().startswith("<?xml")
    assert "| goal | aim | measured |" in render_device.section(found)
    assert all(about["title"] in "".join(render_device.page(found)) for about in result["shapes"].values())


def test_embed_benchmark_measures_the_models_shape_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.embed_model import find_model, sentences

    from aikoryu.gpu.models import store

    monkeypatch.setattr(store, "PACKAGES", {})
    monkeypatch.delenv("AIKORYU_MODELS_DIRECTORY", raising=False)
    model, kind = find_model(tmp_path)
    assert (model.name, kind) == ("all-MiniLM-L6-v2", "random weights")
    from aikoryu.gpu.models.tokenizer import Tokenizer

    assert {len(ids) for ids in Tokenizer(model).encode(sentences(model, 20, 24))} == {24}

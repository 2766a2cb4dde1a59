"""Figures of contexts are rendered whichever records are there, with all that falls short."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .benchmark_runs import ROOT

BUS, CPU_BUS = "context-bus-cuda", "context-bus"


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def committed() -> dict[str, dict[str, Any]]:
    """The committed records of a GPU without the bus, and made-up ones of updates over NATS."""
    from benchmarks import context_figures

    found = context_figures.load(ROOT / "benchmarks" / "results")
    measured = {name: found[name] for name in ("context-maths-cuda", "context-route-cuda")}
    told = bus(found["context-route-cuda"])
    return measured | {BUS: told, CPU_BUS: told | {"gpu": None}}


def bus(like: dict[str, Any]) -> dict[str, Any]:
    """A record of updates over NATS, of the same machine as another."""
    from benchmarks.context_bus import GOALS
    from benchmarks.goals import line

    values = {"device": 900.0, "over_cpu": 3.0, "over_alone": 9.0, "recovery_s": 4.0, "gap_s": 0.5}
    values |= {"beside_cpu": 20.0, "beside_alone": 10.0}
    steps = {
        "device": [step(8, 500, 5, 6), step(32, 900, 19, 20), step(128, 2000, 19, 21)],
        "cpu": [step(8, 100, 50, 60)],
        "alone": [step(8, 90, 15, 16), {**step(32, 100, 99, 0), "told": {}}],
    }
    large = {"agents": 1000, "recovery_s": 4.0, "gap_s": 0.5, "put_p50_ms": 1.0, "moving_s": 2.0}
    figures = [line(goal, values[goal.mine.figure]) for goal in GOALS]
    about = {name: like[name] for name in ("machine", "gpu", "commit", "date", "versions", "command")}
    return about | {"steps": steps, "large": large, "figures": figures}


def step(at_once: int, rate: float, put: float, told: float) -> dict[str, Any]:
    """One step of it, by its p99."""
    return {
        "at_once": at_once,
        "updates_per_s": rate,
        "put": {"p50_ms": put / 2, "p99_ms": put},
        "told": {"p50_ms": told / 2, "p99_ms": told},
        "rounds": [{"stolen": 0.02, "put": {"p99_ms": put}}],
    }


def test_any_record_may_be_missing(tmp_path: Path) -> None:
    from benchmarks import context_figures, context_plot, headlines, render

    every = committed()
    for count in range(len(every) + 1):
        for names in itertools.combinations(every, count):
            results = {name: every[name] for name in names}
            section, page = context_figures.section(results), "\n\n".join(context_figures.page(results))
            for result in results.values():
                for one in result["figures"]:
                    assert section.count(f"| {one['title']} |") >= 1
                    assert f"| {one['title']} |" in page
                assert result["commit"][:12] in section
                assert all(about["title"] in page for about in result.get("shapes", {}).values())
            assert section == "" if not names else section.startswith("### Context\n")
            assert ("not measured yet" in section) == (bool(names) and not {BUS, CPU_BUS} & set(names))
            assert section in render.section({}, {}, context=results)
            assert page in render.page({}, {}, context=results)
            shown = headlines.context(results)
            assert (shown == headlines.ABSENT_CONTEXT) == (not headlines.CONTEXT.keys() & set(names))
            folder = tmp_path / "-".join(["plots", *names])
            folder.mkdir()
            context_plot.draw(results, folder)
            assert {path.name for path in folder.iterdir()} == context_plot.there(results).keys()
            assert all(f"({name})" in page for name in context_plot.there(results))


def test_headlines_are_figures_of_the_benchmarks() -> None:
    pytest.importorskip("torch", reason="needs the extra `worker`")
    from benchmarks import context_bus, context_maths, context_route, headlines

    goals = {
        "context-maths-cuda": context_maths.GOALS,
        "context-route-cuda": list(context_route.aims()),
        BUS: context_bus.GOALS,
    }
    assert goals.keys() == headlines.CONTEXT.keys()
    for name, titles in headlines.CONTEXT.items():
        assert set(titles) <= {goal.title for goal in goals[name]}


def test_readme_shows_whatever_falls_short() -> None:
    from benchmarks import headlines

    results = committed()
    shown = headlines.context(results)
    for name in headlines.CONTEXT:
        for one in results[name]["figures"]:
            is_there = f"| {one['title']} | H100 |" in shown
            assert is_there == (one["title"] in headlines.CONTEXT[name] or one["verdict"] in ("short", "faults"))


@pytest.mark.parametrize(
    ("goal", "aim", "got", "told"),
    [
        (2, 1, 3.0, "*x* 3.00, the goal is ≤ 2."),
        (2, 1, 1.5, "*x* 1.50, the aim is ≤ 1."),
        (2, 1, 0.5, None),
        (2, None, 3.0, "*x* 3.00, the goal is ≤ 2."),
        (2, None, 1.5, None),
        (2, 1, None, "*x* —, the goal is ≤ 2."),
        (None, None, 3, None),
    ],
)
def test_what_misses_its_goal_or_aim_is_told(
    goal: float | None, aim: float | None, got: float | None, told: str | None
) -> None:
    from benchmarks.context_shortfalls import shortfalls
    from benchmarks.goals import Goal, Value, line

    one = line(Goal("x", Value("shape", "aikoryu"), (), goal, aim, "lower"), got)
    assert shortfalls({"context-maths-cuda": {"figures": [one]}}) == ([] if told is None else [told])


def test_reasons_are_told_once_with_the_records_numbers() -> None:
    from benchmarks.context_shortfalls import shortfalls

    results = committed()
    del results[CPU_BUS]  # its figures have the same titles
    lines = shortfalls(results)
    missed = [
        one["title"]
        for result in results.values()
        for one in result["figures"]
        if one["verdict"] == "short" or (one["verdict"] == "goal met" and one["aim"] is not None)
    ]
    for title in missed:
        assert sum(f"*{title}*" in line for line in lines) == 1
    assert "500/s of 8 at once (p99 5.0 ms until answered, 6.0 ms until told)" in lines[-1]
    assert "99.0 ms until answered, — until told" in lines[-1]


def test_a_cpu_that_did_less_is_told() -> None:
    from benchmarks.context_shortfalls import beside

    result = committed()["context-maths-cuda"]
    for kind in ("uniform", "clustered"):
        by = result["samples"][f"window-256-{kind}"]
        by["aikoryu"][0]["edges"], by["torch on all cores"][0]["edges"] = 1000, 500 if kind == "clustered" else 1000
    assert any("1.00 (uniform) and 0.50 (clustered)" in line for line in beside({"context-maths-cuda": result}))
    by["torch on all cores"][0]["edges"] = 990
    assert not any("of the edges that ours" in line for line in beside({"context-maths-cuda": result}))


def test_plots_have_everything_within_them(tmp_path: Path) -> None:
    from benchmarks import context_plot

    context_plot.draw(committed(), tmp_path)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    for path in paths:
        picture = ElementTree.fromstring(path.read_text())
        width, height = (float(value) for value in picture.attrib["viewBox"].split()[2:])
        for x, y, text in _texts(picture):
            assert 0 < y < height
            assert x[0] >= 0, text
            assert x[1] <= width, text


def _texts(picture: ElementTree.Element) -> Iterator[tuple[tuple[float, float], float, str]]:
    """Each text with where it begins and ends, as wide as such letters are on average."""
    for one in picture.iter("{http://www.w3.org/2000/svg}text"):
        about, text = one.attrib, one.text or ""
        wide = 0.58 * float(about["font-size"]) * len(text)
        begin = float(about["x"]) - wide * {"start": 0, "middle": 0.5, "end": 1}[about["text-anchor"]]
        yield (begin, begin + wide), float(about["y"]), text


def test_the_most_updates_that_are_answered_and_told_in_time_are_marked(tmp_path: Path) -> None:
    from benchmarks import context_plot

    context_plot.draw({BUS: committed()[BUS]}, tmp_path)
    picture = ElementTree.fromstring((tmp_path / f"{BUS}.svg").read_text())
    texts = picture.iter("{http://www.w3.org/2000/svg}text")
    marks = [one.text for one in texts if one.attrib["font-weight"] == "bold" and one.attrib["font-size"] == "11"]
    assert marks == ["900", "90", "900", "90"]
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 1, 2, 3, 1, 1]

"""Figures and goals of `benchmarks.kpi`: a million rows on the GPU path beside the CPU path, for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import goals, markdown
from benchmarks.goals import Goal, Value
from benchmarks.record import FAULTS, Samples

CPU, GPU, SATURATED = "CPU path", "GPU path", "GPU path, saturated"

FIGURES: Mapping[str, tuple[str, str]] = {
    "offered_rows_per_s": ("rows/s offered", ",.0f"),
    "rows_per_s": ("rows/s answered", ",.0f"),
    "p50_ms": ("p50, ms", ",.2f"),
    "p99_ms": ("p99, ms", ",.2f"),
    "late_p99_ms": ("generator late, p99, ms", ",.2f"),
    "worker_cpu_s": ("worker, CPU-s", ",.1f"),
    "front_cpu_s": ("… its fronts, CPU-s", ",.1f"),
    "engine_cpu_s": ("… its engines, CPU-s", ",.1f"),
    "nats_cpu_s": ("nats-server, CPU-s", ",.1f"),
    "client_cpu_s": ("clients, CPU-s", ",.1f"),
    "joules": ("worker's CPU and GPU, J", ",.0f"),
    "cpu_joules": ("… worker's CPU, J", ",.0f"),
    "gpu_joules": ("… GPU, J", ",.0f"),
    "machine_joules": ("worker, server, clients, GPU, J", ",.0f"),
    "gpu_watts": ("GPU power, W", ",.0f"),
    "gpu_busy": ("GPU busy", ".0%"),
    "sm_active": ("SMs active", ".0%"),
    "host_mib": ("worker's memory, MiB", ",.0f"),
    "host_peak_mib": ("… peaks of its processes, MiB", ",.0f"),
    "gpu_mib": ("GPU memory, MiB", ",.0f"),
    "memory_mib": ("worker's and GPU memory, MiB", ",.0f"),
}
"""Title and form of each figure of a sample. CPU-s and J are those of a million rows."""

_LEGEND = (
    "The same rows at the same times over NATS, on either path: an open loop at four fifths of what the CPU path "
    "sustains here, latency from the time that a call was due. The last column is a closed loop that saturates the GPU "
    "path. CPU-seconds and joules are those of a million rows. Memory is that of the worker's processes, with shared "
    "pages counted once; their peaks are what each has had resident, shared pages in each."
)


def judged(case: str) -> tuple[Goal, ...]:
    """What the figures of a case have to be."""

    def share(title: str, figure: str, goal: float, aim: float | None, mine: str = GPU) -> Goal:
        return Goal(title, Value(case, mine, figure), (Value(case, CPU, figure),), goal, aim, "lower")

    return (
        Goal("GPU busy, saturated", Value(case, SATURATED, "gpu_busy"), (), 0.8, 0.9),
        Goal("SMs active, saturated", Value(case, SATURATED, "sm_active")),
        share("worker's CPU time a row ÷ CPU path, equal load", "worker_cpu_s", 0.3, 0.1),
        share("worker's CPU time a row ÷ CPU path, saturated", "worker_cpu_s", 0.3, 0.1, SATURATED),
        share("worker's memory ÷ CPU path, equal load", "host_mib", 1.5, None),
        share("worker's and GPU memory ÷ CPU path, equal load", "memory_mib", 1.5, None),
        share("joules a row ÷ CPU path, equal load", "joules", 0.7, 0.5),
        share("joules a row ÷ CPU path, saturated", "joules", 0.7, 0.5, SATURATED),
        Goal(
            "joules of the whole machine a row ÷ CPU path, saturated",
            Value(case, SATURATED, "machine_joules"),
            (Value(case, CPU, "machine_joules"),),
            better="lower",
        ),
        Goal("p99 ÷ CPU path, equal load", Value(case, GPU, "p99_ms"), (Value(case, CPU, "p99_ms"),), better="lower"),
        Goal("rows/s, saturated ÷ load of the CPU path", Value(case, SATURATED), (Value(case, CPU),)),
    )


def medians(samples: Samples) -> dict[str, dict[str, dict[str, float]]]:
    """Median over windows of every figure that all have, and the sums of what must be zero."""
    return {case: {name: _medians(rounds) for name, rounds in by.items()} for case, by in samples.items()}


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {
        figure: statistics.median(one[figure] for one in rounds)
        for figure in FIGURES
        if all(one.get(figure) is not None for one in rounds)
    }
    return found | {kind: sum(one[kind] for one in rounds) for kind in FAULTS}


def even_watts(by: Mapping[str, Mapping[str, float]]) -> float | None:
    """W a busy CPU above which the GPU path needs less energy at equal load; None if it never does.

    It tells what the assumed W of a CPU is worth: GPU energy and CPU time are measured.
    """
    cpu, gpu = by.get(CPU, {}), by.get(GPU, {})
    if not {"worker_cpu_s", "gpu_joules"} <= gpu.keys() or "worker_cpu_s" not in cpu:
        return None
    saved_s = cpu["worker_cpu_s"] - gpu["worker_cpu_s"]
    return round(gpu["gpu_joules"] / saved_s, 2) if saved_s > 0 else None


def load(folder: Path) -> dict[str, Any] | None:
    """The result in a folder; None before anything was measured."""
    path = folder / "kpi-cuda.json"
    return json.loads(path.read_text()) if path.exists() else None


def text(result: Mapping[str, Any]) -> str:
    """The medians for a terminal, a block a case, and the goals."""
    lines = []
    for case, by in result["medians"].items():
        lines.append(f"\n{case}: {result['shapes'][case]['title']}")
        lines += [("{:<34}" + "{:>22}" * len(by)).format(*cells) for cells in (("a million rows", *by), *_lines(by))]
    lines += ["", *_sentences(result)]
    for case in result["medians"]:
        if judged := [one for one in result["figures"] if one["shape"] == case]:
            lines += ["", case, goals.table(judged)]
    lines += [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def section(result: Mapping[str, Any]) -> str:
    """README's part: the goals, a column a case."""
    lines = [one for one in result["figures"] if one["goal"] is not None]
    if not lines:
        return ""
    parts = ["### A million rows, GPU path beside CPU path", _pivot(result, lines)]
    return "\n\n".join([*parts, " ".join([_provenance(result), *_sentences(result), _more()])])


def page(result: Mapping[str, Any]) -> Iterator[str]:
    """The parts of the results' page."""
    yield "# A million rows, GPU path beside CPU path"
    yield " ".join([_provenance(result), _LEGEND, *_sentences(result)])
    if result["figures"]:
        yield _pivot(result, result["figures"])
    for case, by in result["medians"].items():
        yield f"**{result['shapes'][case]['title']}**"
        yield markdown.table(("a million rows", *by), "l" + "r" * len(by), list(_lines(by)))
    if result["skipped"]:
        yield "Not run: " + "; ".join(f"{one} ({why})" for one, why in result["skipped"].items()) + "."
    yield f"`{result['command']}`"


def _lines(by: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """A line a figure that any column has, and the faults."""
    for figure, (title, form) in FIGURES.items():
        if any(figure in found for found in by.values()):
            yield title, *(format(found[figure], form) if figure in found else "—" for found in by.values())
    yield "faults", *(str(sum(int(found[kind]) for kind in FAULTS)) for found in by.values())


def _pivot(result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    """A line a goal, with its verdict in each case."""
    cases = [case for case in result["medians"] if any(one["shape"] == case for one in lines)]
    titles: dict[str, dict[str, Any]] = {}
    for one in lines:
        titles.setdefault(one["title"], {})[one["shape"]] = one
    rows = []
    for title, by in titles.items():
        any_ = dict(next(iter(by.values())))
        cells = [_cell(by.get(case)) for case in cases]
        rows.append((title, goals.number(any_["goal"], any_), goals.number(any_["aim"], any_), *cells))
    return markdown.table(("figure", "goal", "aim", *cases), "lrr" + "r" * len(cases), rows)


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "—"
    faults = [f"faults of the {name}" for name in one.get("faults", [])]
    return ": ".join([f"**{goals.number(one['got'])}**", *(faults or filter(None, [one["verdict"]]))])


def _sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """What the energy figures rest on."""
    power = result["power"]
    yield power["basis"]
    if power["idle_watts"] is not None:
        yield f"The GPU draws {power['idle_watts']:.0f} W idle, which the GPU path's joules include."
    if power["assumed_watts"] is not None and power["even_watts"]:
        even = ", ".join(
            f"{case} {watts:.2f}" if watts else f"{case} never" for case, watts in power["even_watts"].items()
        )
        yield f"At equal load the GPU path needs less energy from so many W a busy CPU on: {even}."


def _provenance(result: Mapping[str, Any]) -> str:
    machine, gpu = result["machine"], result["gpu"]
    on = f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, driver {gpu['driver']}" if gpu else "a machine without a GPU"
    return (
        f"Measured on {on}; {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{markdown.stamp(result)}."
    )


def _more() -> str:
    return "All of it: [benchmarks/results](benchmarks/results/README.md)."

"""What README and the results' page say of a GPU host, from `benchmarks/results/*-cuda.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import device_run, markdown, stages
from benchmarks.record import FAULTS

NAMES = ("bus", "matrix", "embed")
_TITLES = {"bus": "Echo of 384 floats", "matrix": "Matrices", "embed": "Sentences of 24 tokens"}

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results on a GPU in a folder, by benchmark; those that are not there are left out."""
    paths = {name: folder / f"{name}-cuda.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def section(results: Results) -> str:
    """README's part: each figure with a goal, and on what it was measured; empty without results."""
    figures = [one for result in results.values() for one in result["figures"] if one["goal"] is not None]
    if not figures:
        return ""
    about = f"{_provenance(results)} Plots and the peers' numbers: [benchmarks/results](benchmarks/results/README.md)."
    return "\n\n".join(["### One GPU host", markdown.figures_table(figures), about])


def page(results: Results) -> Iterator[str]:
    """The parts of the results' page."""
    if not results:
        return
    yield "# One GPU host"
    yield _provenance(results)
    for name, result in results.items():
        yield f"## {_TITLES[name]}, on the GPU"
        yield f"![Curves and rates]({name}-cuda.svg)"
        yield markdown.figures_table(result["figures"])
        for shape, by in result["medians"].items():
            yield f"**{result['shapes'][shape]['title']}**"
            yield _contestants(by)
            if busy := [f"{one} {found}" for one, figures in by.items() if (found := device_run.cores(figures))]:
                yield "Cores busy: " + "; ".join(busy) + "."
            if staged := result.get("stages", {}).get(shape):
                yield _stages(staged)
        if result["skipped"]:
            yield "Not run: " + "; ".join(f"{one} ({why})" for one, why in result["skipped"].items()) + "."
        yield f"`{result['command']}`"


def _contestants(by: dict[str, dict[str, Any]]) -> str:
    """Every contestant with the figures that any has."""
    columns = [one for one in device_run.FIGURES if any(one in figures for figures in by.values())]
    head = ("contestant", *(device_run.FIGURES[one][0] for one in columns), "faults")
    rows = [
        (
            name,
            *(device_run.cell(figures.get(one), device_run.FIGURES[one][1]) for one in columns),
            str(sum(figures[kind] for kind in FAULTS)),
        )
        for name, figures in by.items()
    ]
    return markdown.table(head, "l" + "r" * (len(columns) + 1), rows)


def _stages(found: dict[str, dict[str, Any]]) -> str:
    """Mean time of a batch by stage, and its share."""
    head = ("a batch: mean µs (share)", "rows", *stages.STAGES)
    rows = [
        (
            name,
            f"{one['rows_a_batch']:,.0f}",
            *(f"{one[stage]['mean_us']:,.0f} ({one[stage]['share']:.0%})" for stage in stages.STAGES),
        )
        for name, one in found.items()
    ]
    return markdown.table(head, "l" + "r" * (1 + len(stages.STAGES)), rows)


def _provenance(results: Results) -> str:
    """On what, when and of what commit; once if all results agree."""
    stamps: dict[str, list[str]] = {}
    for name, result in results.items():
        machine, gpu = result["machine"], result["gpu"] or {"name": "no GPU", "memory_gib": 0, "driver": None}
        stamp = (
            f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, driver {gpu['driver']}, torch {result['versions']['torch']}; "
            f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {markdown.stamp(result)}"
        )
        stamps.setdefault(stamp, []).append(name)
    if len(stamps) == 1:
        return f"Measured on {next(iter(stamps))}."
    return "Measured on " + "; ".join(f"{stamp} ({', '.join(names)})" for stamp, names in stamps.items()) + "."

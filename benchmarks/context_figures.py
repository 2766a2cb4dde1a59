"""What README, docs/figures.md and the results' page say of contexts, from `benchmarks/results/context-*.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import context_plot, context_shortfalls, markdown
from benchmarks.context_shortfalls import WIDTH
from benchmarks.ours import NAME
from benchmarks.record import FAULTS

RECORDS = ("context-maths-cuda", "context-route-cuda", "context-bus-cuda", "context-bus")
BUS = ("context-bus-cuda", "context-bus")

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results in a folder, by the record's name; those that are not there are left out."""
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def section(results: Results) -> str:
    """The part of docs/figures.md: all figures, the plots, and where they fall short."""
    if not results:
        return ""
    parts = ["### Context"]
    for name, result in results.items():
        parts += [f"**{_TITLES[name]}, {_machine(result)}.** {_about(name, result)}", _figures(result)]
    parts += [" ".join(_provenance(results)), *_pictures(results, "benchmarks/results/")]
    for title, lines in (
        ("Where it falls short, and why", [*context_shortfalls.shortfalls(results), *_absent(results)]),
        ("What belongs beside these figures", context_shortfalls.beside(results)),
    ):
        parts += [f"**{title}**", "\n".join(f"- {line}" for line in lines)] if lines else []
    return "\n\n".join(parts)


def page(results: Results) -> Iterator[str]:
    """The parts of the results' page."""
    if not results:
        return
    yield "# Contexts"
    yield from _pictures(results, "")
    for name, result in results.items():
        yield f"## {_TITLES[name]}, {_machine(result)}"
        yield f"Measured on {_origin(result)}."
        yield _figures(result)
        yield from (_steps(result) if name in BUS else _contestants(name, result))
        yield _about(name, result)
        if result.get("skipped"):
            yield "Not run: " + "; ".join(f"{one} ({why})" for one, why in result["skipped"].items()) + "."
        yield f"`{result['command']}`"


_TITLES = {
    "context-maths-cuda": "What reaches agents",
    "context-route-cuda": "Whom a message is for",
    "context-bus-cuda": "Updates over NATS",
    "context-bus": "Updates over NATS",
}
_COLUMNS = {
    "context-maths-cuda": {
        "p50_ms": ("p50 ms", ",.2f"),
        "p99_ms": ("p99 ms", ",.2f"),
        "put_ms": ("puts before, ms", ",.2f"),
        "pushes": ("sweeps", ",.0f"),
        "fulls": ("over all", ",.0f"),
        "edges": ("edges", ",.0f"),
        "told": ("told", ",.0f"),
    },
    "context-route-cuda": {"p50_ms": ("p50 ms", ",.2f"), "temporary_mib": ("MiB beside agents and answer", ",.1f")},
}


def _about(name: str, result: Mapping[str, Any]) -> str:
    """What is measured."""
    if name in BUS:
        agents = result["large"]["agents"]
        return (
            "Agents in processes of their own put, more and more at once, and some wait to be told. The keeper takes "
            "as many puts into a window as there are, on the device and on the CPU, or one. Then a graph of "
            f"{agents:,} agents is recovered, and handed over while it is written to."
        )
    if name == "context-route-cuda":
        agents = max(about["agents"] for about in result["shapes"].values())
        return (
            f"The 16 best of {agents:,} agents, by vectors of {WIDTH} numbers. *Masked*: messages need a capability "
            "that half of the agents have, and load counts. Times end with the answer in host memory."
        )
    return (
        f"{result['agents']:,} agents that hear {result['degree']} others each, vectors of {WIDTH} numbers. *Uniform*: "
        "any others; *clustered*: most of them near ones. Gathering is to read the rows of those that are heard, and "
        "to add them up. A window's time begins after its puts, and ends when it is decided who is told."
    )


def _figures(result: Mapping[str, Any]) -> str:
    return markdown.figures_table([one | {"against": None} for one in result["figures"]])  # titles say it


def _pictures(results: Results, folder: str) -> Iterator[str]:
    for name, title in context_plot.there(results).items():
        yield f"![{title}]({folder}{name})"


def _absent(results: Results) -> Iterator[str]:
    if not any(name in results for name in BUS):
        yield "What goes over NATS is not measured yet: `python -m benchmarks.context_bus`."


def _provenance(results: Results) -> Iterable[str]:
    """On what, when and of what commit; once for records that agree."""
    origins: dict[str, list[str]] = {}
    for name, result in results.items():
        origins.setdefault(_origin(result), []).append(name)
    for origin, names in origins.items():
        of = f" ({', '.join(names)})" if len(origins) > 1 else ""
        yield f"Measured on {origin}{of}."


def _machine(result: Mapping[str, Any]) -> str:
    gpu = result.get("gpu")
    return str(gpu["name"]) if gpu else f"{result['machine']['cores']} cores"


def _origin(result: Mapping[str, Any]) -> str:
    machine, gpu = result["machine"], result.get("gpu")
    on = f"{gpu['name']}, driver {gpu['driver']}, torch {result['versions']['torch']}; " if gpu else ""
    return f"{on}{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; {markdown.stamp(result)}"


def _contestants(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Every contestant in every shape, a table."""
    columns = _COLUMNS[name]
    rows = []
    for shape, by in result["medians"].items():
        for contestant, medians in by.items():
            figures = {**result["samples"][shape][contestant][0], **medians}
            cells = [
                "—" if figures.get(one) is None else format(figures[one], form) for one, (_, form) in columns.items()
            ]
            title = result["shapes"][shape]["title"] if contestant == NAME else ""
            rows.append((title, contestant, *cells, str(sum(figures[kind] for kind in FAULTS))))
    head = ("", "contestant", *(title for title, _ in columns.values()), "faults")
    yield markdown.table(head, "ll" + "r" * (len(columns) + 1), rows)


def _steps(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (_KEEPERS[kind] if not number else "", f"{step['at_once']:,}", f"{step['updates_per_s']:,.0f}", *_times(step))
        for kind, steps in result["steps"].items()
        for number, step in enumerate(steps)
    ]
    head = ("keeper", "at once", "updates/s", "put p50 ms", "p99", "told p50 ms", "p99")
    yield markdown.table(head, "lrrrrrr", rows)
    large = result["large"]
    yield (
        f"A graph of {large['agents']:,} agents: recovered in {large['recovery_s']:.1f} s, with the process's start; "
        f"handed over in {large['moving_s']:.1f} s, in which a put took {large['put_p50_ms']:.1f} ms (p50), and the "
        f"longest {1e3 * large['gap_s']:,.0f} ms."
    )


_KEEPERS = {"device": "on the device", "cpu": "on the CPU", "alone": "on the device, a window for each update"}


def _times(step: Mapping[str, Any]) -> Iterator[str]:
    for what in ("put", "told"):
        for figure in ("p50_ms", "p99_ms"):
            yield f"{step[what][figure]:,.1f}" if figure in step[what] else "—"

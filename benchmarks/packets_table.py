"""What docs/figures.md and the results' page say of packets, from `benchmarks/results/packets*.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import device_run, markdown, packets_acl, packets_plot, stages
from benchmarks.packets_goals import CAPTURES
from benchmarks.record import FAULTS

RECORDS = ("packets", "replay_drift", "packets-cuda")
TOLD = (packets_acl.NAME, "over NATS")
"""Parts of the titles of figures that are told though they have no goal."""

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results in a folder, by the record's name; those that are not there are left out."""
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def section(results: Results) -> str:
    """The part of docs/figures.md: each figure with a goal by machine, the plots, and on what it was measured."""
    parts = ["### Packets"]
    for machine, each in _by_machine(results).items():
        figures = [_named(one) for result in each for one in result["figures"] if _is_told(one)]
        stamps = list(dict.fromkeys(map(markdown.stamp, each)))
        parts += [markdown.figures_table(figures), f"Measured on {machine}; {'; '.join(stamps)}."] if figures else []
    if len(parts) == 1:
        return ""
    return "\n\n".join([*parts, *_pictures(results, "benchmarks/results/")])


def page(results: Results) -> Iterator[str]:
    """The parts of the results' page."""
    if not results:
        return
    yield "# Packets"
    yield from _pictures(results, "")
    for name, result in results.items():
        yield f"## {_TITLES[name]}"
        yield f"Measured on {_machine(result)}; {markdown.stamp(result)}."
        yield markdown.figures_table([_named(one) for one in result["figures"]])
        yield from _measured(result)
        if name in _LEGENDS:
            yield _LEGENDS[name]
        if result["skipped"]:
            yield "Not run: " + "; ".join(f"{one} ({why})" for one, why in result["skipped"].items()) + "."
        yield f"`{result['command']}`"


_TITLES = {
    "packets": "Captures and rules on the CPU",
    "replay_drift": "A replay at 1 ×",
    "packets-cuda": "Packets on the GPU",
}
_LEGENDS = {
    "packets": (
        "Two processes: each walks through the whole file and dissects every second batch; with flows there is one. "
        "Others read the first 0.2 to 10 % of the same packets, so that they take about as long; tshark's start is in "
        "its time, 0.2 s. RawPcapReader reads no headers, nfstream no more than flows need. A capture is repeated, "
        "each time with flows of its own. Rule sets are ClassBench-like; keys are drawn from the rules in random "
        "order, and DPDK asks for the same ones again and again."
    ),
    "packets-cuda": (
        "Keys that stay: all in one batch, each drawn for itself; a part of the answers is compared with the CPU's. "
        "DPDK's library and our CPU path ask on every core for the same million keys again and again. GB/s are those "
        "of whole packets, of which the kernels read the headers. From host memory: copied in, and the answers out, on "
        "three streams. Over NATS the clients bind, each of which fills a core; answers are counted, not compared."
    ),
}
_COLUMNS = (
    "rows_per_s",
    "gb_per_s",
    "p50_ms",
    "p99_ms",
    "cpu_us",
    "client_cpu_us",
    "server_cpu_us",
    "engine_cpu_us",
    "nats_cpu_us",
    "gpu_busy",
)
_MORE = {
    "rows_per_s": ("a second", ",.0f"),
    "engine_cpu_us": ("engine µs", ",.2f"),
    "nats_cpu_us": ("NATS µs", ",.2f"),
    "gb_per_s": ("GB/s", ",.1f"),
}


def _is_told(one: Mapping[str, Any]) -> bool:
    """Whether docs/figures.md has the figure."""
    return one["goal"] is not None or any(part in one["title"] for part in TOLD)


def _named(one: dict[str, Any]) -> dict[str, Any]:
    """A figure that says the whole name of the capture in which it is least."""
    return one | {"against": CAPTURES.get(one["against"], one["against"])}


def _pictures(results: Results, folder: str) -> Iterator[str]:
    for name, title in packets_plot.there(results).items():
        yield f"![{title}]({folder}{name})"


def _by_machine(results: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results.values():
        found.setdefault(_machine(result), []).append(result)
    return found


def _machine(result: Mapping[str, Any]) -> str:
    machine, gpu = result["machine"], result.get("gpu")
    on = f"{gpu['name']}, driver {gpu['driver']}; " if gpu else ""
    return f"{on}{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"


def _measured(result: Mapping[str, Any]) -> Iterator[str]:
    """Every contestant in every shape; of rule sets a table for all."""
    medians, shapes = result["medians"], result["shapes"]
    sets = {shape: by for shape, by in medians.items() if "rules" in shapes[shape]}
    for shape, by in medians.items():
        if shape not in sets:
            yield f"**{shapes[shape]['title']}**"
            yield _contestants(by)
            if busy := [f"{one} {found}" for one, figures in by.items() if (found := device_run.cores(figures))]:
                yield "Cores busy: " + "; ".join(busy) + "."
            for name, found in result.get("stages", {}).get(shape, {}).items():
                yield stages.line(name, found).strip() + "."
    if sets:
        names = list(dict.fromkeys(name for by in sets.values() for name in by))
        rows = [
            (
                f"{shapes[shape]['set']}, {shapes[shape]['rules']:,} rules",
                *(_millions(by.get(name)) for name in names),
            )
            for shape, by in sets.items()
        ]
        yield "**Lookups, million a second**"
        yield markdown.table(("rule set", *names), "l" + "r" * len(names), rows)


def _contestants(by: Mapping[str, Mapping[str, Any]]) -> str:
    forms = {**device_run.FIGURES, **_MORE}
    columns = [one for one in _COLUMNS if any(one in figures for figures in by.values())]
    head = ("contestant", *(forms[one][0] for one in columns), "faults")
    rows = [
        (
            name,
            *(device_run.cell(figures.get(one), forms[one][1]) for one in columns),
            str(sum(figures[kind] for kind in FAULTS)),
        )
        for name, figures in by.items()
    ]
    return markdown.table(head, "l" + "r" * (len(columns) + 1), rows)


def _millions(figures: Mapping[str, Any] | None) -> str:
    if not figures or not figures.get("rows_per_s"):
        return "—"
    millions = figures["rows_per_s"] / 1e6
    return f"{millions:,.0f}" if millions >= 1000 else f"{millions:.3g}"

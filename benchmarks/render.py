"""README's figures, docs/figures.md, a table of docs/agents-state.md and the page of all results.

They come from `benchmarks/results/*.json`: `python -m benchmarks.render`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    assign_table,
    break_even,
    context_figures,
    context_plot,
    device_plot,
    faults_table,
    headlines,
    kpi_table,
    markdown,
    packets_plot,
    packets_table,
    render_device,
    state,
)
from benchmarks.processes import ROOT
from benchmarks.record import FAULTS, RESULTS

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "figures.md"
STATE_PAGE = ROOT / "docs" / "agents-state.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PACKETS_BEGIN, PACKETS_END = "<!-- packets -->", "<!-- /packets -->"
CONTEXT_BEGIN, CONTEXT_END = "<!-- context -->", "<!-- /context -->"
STATE_BEGIN, STATE_END = "<!-- state -->", "<!-- /state -->"
NAMES = ("bus", "embed", "memory", "break_even", "agents", "coordination", "state")
PLOT = "figures.png"
ABSENT = "Not measured yet; `python -m benchmarks.figures` measures, and writes this section."

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results in a folder, by benchmark, in the order of the tables."""
    return {name: json.loads(path.read_text()) for name in NAMES if (path := folder / f"{name}.json").exists()}


def section(
    results: Results,
    on_gpu: Results,
    kpi: dict[str, Any] | None = None,
    failing: Results | None = None,
    packets: Results | None = None,
    context: Results | None = None,
) -> str:
    """The section of docs/figures.md: each figure with a goal, and on what it was measured."""
    parts = [_section(results) if results else "" if on_gpu else ABSENT, render_device.section(on_gpu)]
    parts += [kpi_table.section(kpi) if kpi else "", packets_table.section(packets or {})]
    parts += [context_figures.section(context or {}), faults_table.section(failing or {})]
    return "\n\n".join(filter(None, parts))


def _section(results: Results) -> str:
    figures = [one for one in _figures(results) if one["goal"] is not None]
    parts = [markdown.figures_table(figures)] if figures else []
    parts += [
        f"{_provenance(results)} Ratios are medians over rounds of the ratios within a round: every peer runs in the "
        "same rounds on the same cores. All of it, with the peers' own numbers and each operation's break-even batch, "
        "is in [benchmarks/results](benchmarks/results/README.md)."
    ]
    return "\n\n".join(parts)


def page(
    results: Results,
    on_gpu: Results,
    kpi: dict[str, Any] | None = None,
    failing: Results | None = None,
    packets: Results | None = None,
    assign: dict[str, Any] | None = None,
    context: Results | None = None,
) -> str:
    """The results' own page: all figures, the break-even batches, and every contestant in every shape."""
    parts = [*_parts(results), *render_device.page(on_gpu), *(kpi_table.page(kpi) if kpi else ())]
    parts += [*(assign_table.page(assign) if assign else ()), *faults_table.page(failing or {})]
    parts += [*packets_table.page(packets or {}), *context_figures.page(context or {})]
    return "\n\n".join(parts) + "\n"


def _parts(results: Results) -> list[str]:
    parts = ["# Results", ABSENT if not results else _provenance(results)]
    if "bus" in results or "embed" in results:
        parts.append(f"![Rates and latencies of the contestants]({PLOT})")
    if figures := list(_figures(results)):
        parts += ["## Figures", markdown.figures_table(figures), _LEGEND]
    if found := results.get("break_even", {}).get("break_even"):
        parts += ["## Break-even", _BREAK_EVEN, _break_even_table(found)]
    for name in _TITLES:
        if name in results:
            parts += [f"## {_TITLES[name]}", *_contestants(results[name])]
    if "memory" in results:
        parts += ["## Memory of a worker", _memory_table(results["memory"]["seen"])]
    if results:
        parts += ["## Commands", "\n".join(f"- `{result['command']}`" for result in results.values())]
    return parts


_TITLES = {
    "bus": "Echo of 384 floats",
    "embed": "Sentence embeddings",
    "agents": "Handlers of agents",
    "state": "Keys with state",
}
_LEGEND = (
    "Goal: what has to be reached; aim: what is wanted beyond. Where several peers fit, the one that leaves the worst "
    "ratio counts, and is named."
)
_BREAK_EVEN = (
    "One caller asks for a batch with `call_many` and waits, against computing the same rows one by one in its own "
    "process: NumPy, a copy for echo, the model unbatched with one thread or every core, whichever is faster. The "
    "break-even batch is the smallest from which on the bus is cheaper a row, at every larger size measured too."
)


def _figures(results: Results) -> Iterator[dict[str, Any]]:
    for result in results.values():
        yield from result.get("figures", [])


def _break_even_table(found: Sequence[dict[str, Any]]) -> str:
    head = ("operation", "alone, µs", "bus, 1 row, µs", "bus at best, µs", "break-even batch", "best batch", "bus is")
    return markdown.table(head, "lrrrrrr", [(one["case"], *break_even.cells(one)) for one in found])


def _contestants(result: dict[str, Any]) -> Iterator[str]:
    for shape, by in result["medians"].items():
        about = result["shapes"][shape]
        yield f"**{about['title']}** ({about['rows_in_flight']} rows in flight)"
        yield markdown.table(
            ("contestant", "rows/s", "p50 ms", "p99 ms", "client µs a row", "server µs a row", "faults"),
            "lrrrrrr",
            [(name, *_cells(figures)) for name, figures in by.items()],
        )
        probes = [
            f"{name}: {figures['after_hang_up_ratio']:.1f} × its {figures['alone_ms']:.0f} ms alone"
            for name, figures in by.items()
            if "after_hang_up_ratio" in figures
        ]
        if probes:
            yield "The probe after the hang-up took, " + "; ".join(probes) + "."


def _cells(figures: dict[str, Any]) -> Iterator[str]:
    for name, form in (
        ("rows_per_s", ",.0f"),
        ("p50_ms", ".2f"),
        ("p99_ms", ".2f"),
        ("client_cpu_us", ",.1f"),
        ("server_cpu_us", ",.1f"),
    ):
        yield "—" if figures.get(name) is None else format(figures[name], form)
    yield str(sum(figures[kind] for kind in FAULTS))


def _memory_table(seen: Sequence[dict[str, Any]]) -> str:
    return markdown.table(
        ("rows", "front MiB", "engine MiB", "both MiB"),
        "rrrr",
        [(f"{look['rows']:,}", *(f"{look[name] / 2**20:.1f}" for name in ("front", "engine", "rss"))) for look in seen],
    )


def _provenance(results: Results) -> str:
    """On what, when and of what commit; once if all results agree."""
    stamps: dict[str, list[str]] = {}
    for name, result in results.items():
        machine = result["machine"]
        stamp = (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']:.0f} GiB, {machine['kernel']}, Python "
            f"{machine['python']}; {markdown.stamp(result)}"
        )
        stamps.setdefault(stamp, []).append(name)
    if len(stamps) == 1:
        return f"Measured on {next(iter(stamps))}."
    return "Measured on " + "; ".join(f"{stamp} ({', '.join(names)})" for stamp, names in stamps.items()) + "."


def with_section(readme: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """A page with the section between its markers replaced.

    Raises:
        ValueError: the markers are not there, each once and in order.
    """
    if not (readme.count(begin) == readme.count(end) == 1 and readme.index(begin) < readme.index(end)):
        raise ValueError(f"the page needs the markers {begin} and {end}, each once")
    before, after = readme.split(begin)[0], readme.split(end)[1]
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    """Write all files and the plots, or see whether they are what would be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail with the difference if there is one")
    options = parser.parse_args()

    results, on_gpu, kpi = load(RESULTS), render_device.load(RESULTS), kpi_table.load(RESULTS)
    failing, packets, assign = faults_table.load(RESULTS), packets_table.load(RESULTS), assign_table.load(RESULTS)
    context, records = context_figures.load(RESULTS), headlines.load(RESULTS)
    readme = with_section(README.read_text(), headlines.section(records))
    readme = with_section(readme, headlines.packets(records), PACKETS_BEGIN, PACKETS_END)
    figures = section(results, on_gpu, kpi, failing, packets, context).replace("(benchmarks/", "(../benchmarks/")
    changes = state.section(results["state"]) if "state" in results else ABSENT
    texts = {
        README: with_section(readme, headlines.context(records), CONTEXT_BEGIN, CONTEXT_END),
        PAGE: with_section(PAGE.read_text(), figures),
        STATE_PAGE: with_section(STATE_PAGE.read_text(), changes, STATE_BEGIN, STATE_END),
        RESULTS / "README.md": page(results, on_gpu, kpi, failing, packets, assign, context),
    }
    if options.check:
        sys.exit("".join(_difference(path, text) for path, text in texts.items()) or 0)
    for path, text in texts.items():
        path.write_text(text)
    if "bus" in results or "embed" in results:
        from benchmarks import plot

        plot.draw(results, RESULTS / PLOT)
    for name, result in failing.items():
        if "timeline" in result:
            faults_table.draw(result, RESULTS / f"{name}.svg")
    packets_plot.draw(packets, RESULTS)
    context_plot.draw(context, RESULTS)
    for name, result in on_gpu.items():
        device_plot.draw(name, result, RESULTS / f"{name}-cuda.svg")


def _difference(path: Path, text: str) -> str:
    found = path.read_text() if path.exists() else ""
    lines = difflib.unified_diff(found.splitlines(True), text.splitlines(True), str(path.relative_to(ROOT)), "rendered")
    return "".join(lines)


if __name__ == "__main__":
    main()

"""What README and the results' page say of packets, from `benchmarks/results/packets*.json`, and the plot."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import device_run, markdown, packets_acl, stages
from benchmarks.ours import NAME
from benchmarks.packets_goals import ACL_CORES, CORES
from benchmarks.plot import FAINT, INK, OURS, PEER
from benchmarks.record import FAULTS

RECORDS = ("packets", "replay_drift", "packets-cuda")
BEGIN, END = "<!-- packets -->", "<!-- /packets -->"
PLOT = "packets.svg"
ABSENT = "Not measured yet: see `python -m benchmarks.packets --help`."
THEIRS = "#b3554d"

Results = dict[str, dict[str, Any]]


def load(folder: Path) -> Results:
    """The results in a folder, by the record's name; those that are not there are left out."""
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def section(results: Results) -> str:
    """README's part: each figure with a goal by machine, the plot, and on what it was measured."""
    parts = []
    for machine, each in _by_machine(results).items():
        figures = [one for result in each for one in result["figures"] if _is_told(one)]
        stamps = list(dict.fromkeys(map(_stamp, each)))
        parts += [markdown.figures_table(figures), f"Measured on {machine}; {'; '.join(stamps)}."] if figures else []
    if parts and has_lookups(results):
        parts.append(f"![Lookups a second by number of rules](benchmarks/results/{PLOT})")
    return "\n\n".join(parts) or ABSENT


def page(results: Results) -> Iterator[str]:
    """The parts of the results' page."""
    if not results:
        return
    yield "# Packets"
    if has_lookups(results):
        yield f"![Lookups a second by number of rules]({PLOT})"
    for name, result in results.items():
        yield f"## {_TITLES[name]}"
        yield f"Measured on {_machine(result)}; {_stamp(result)}."
        yield markdown.figures_table(result["figures"])
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
        "DPDK's library and our CPU path ask on every core for the same million keys again and again."
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
)
_MORE = {
    "rows_per_s": ("a second", ",.0f"),
    "engine_cpu_us": ("engine µs", ",.2f"),
    "nats_cpu_us": ("NATS µs", ",.2f"),
    "gb_per_s": ("GB/s", ",.1f"),
}


def _is_told(one: Mapping[str, Any]) -> bool:
    """Whether README has the figure: those with a goal, and lookups beside DPDK's."""
    return one["goal"] is not None or packets_acl.NAME in one["title"]


def _by_machine(results: Results) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results.values():
        found.setdefault(_machine(result), []).append(result)
    return found


def _machine(result: Mapping[str, Any]) -> str:
    machine, gpu = result["machine"], result.get("gpu")
    on = f"{gpu['name']}, driver {gpu['driver']}; " if gpu else ""
    return f"{on}{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"


def _stamp(result: Mapping[str, Any]) -> str:
    commit, _, dirty = (result["commit"] or "unknown").partition("+")
    return f"{result['date'][:10]}, commit {commit[:12]}{' with changes' if dirty else ''}"


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
    return "—" if not figures or not figures.get("rows_per_s") else f"{figures['rows_per_s'] / 1e6:,.3g}"


CURVES = (
    ("packets-cuda", NAME, "Aikoryu, GPU", OURS, "-"),
    ("packets-cuda", CORES, "Aikoryu, {cores} cores", OURS, "--"),
    ("packets", NAME, "Aikoryu, 1 core", OURS, ":"),
    ("packets-cuda", ACL_CORES, f"{packets_acl.NAME}, {{cores}} cores", THEIRS, "--"),
    ("packets", packets_acl.NAME, f"{packets_acl.NAME}, 1 core", THEIRS, ":"),
)
"""Record, contestant, what it is called, colour and style."""


def has_lookups(results: Results) -> bool:
    """Whether there is anything to plot."""
    return any(_points(results, record, contestant) for record, contestant, *_ in CURVES)


def _points(results: Results, record: str, contestant: str) -> dict[int, list[float]]:
    """Lookups/s of a contestant by number of rules, a number a set."""
    result = results.get(record, {"medians": {}, "shapes": {}})
    found: dict[int, list[float]] = {}
    for shape, by in result["medians"].items():
        rate = by.get(contestant, {}).get("rows_per_s")
        if "rules" in result["shapes"][shape] and rate:
            found.setdefault(result["shapes"][shape]["rules"], []).append(rate)
    return dict(sorted(found.items()))


def draw(results: Results, path: Path) -> None:
    """Write the plot of lookups against rules: a line through the worst set of each size, a band up to the best."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    with pyplot.rc_context(
        {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "svg.hashsalt": "packets"}
    ):
        figure, axis = pyplot.subplots(figsize=(7.2, 4.3), layout="constrained")
        ends = []
        for record, contestant, title, colour, style in CURVES:
            if points := _points(results, record, contestant):
                sizes, least = list(points), [min(rates) for rates in points.values()]
                best = [max(rates) for rates in points.values()]
                axis.fill_between(sizes, least, best, color=colour, alpha=0.10, linewidth=0)
                axis.plot(sizes, least, style, color=colour, marker="o", markersize=4, linewidth=1.6)
                ends.append((least[-1], title.format(cores=results[record]["machine"]["cores"]), colour))
        axis.set_xscale("log")
        axis.set_yscale("log")
        every = sorted({size for record, contestant, *_ in CURVES for size in _points(results, record, contestant)})
        axis.set_xticks(every, [f"{size:,}" for size in every])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xlim(every[0] / 1.25, every[-1] * 1.25)
        for place, (_, title, colour) in zip(_apart([end[0] for end in ends]), ends, strict=True):
            at = (every[-1] * 1.2, place)
            axis.annotate(title, at, color=colour, va="center", fontsize=8.5, annotation_clip=False)
        axis.set_xlabel("rules", color=FAINT)
        axis.set_title("Lookups a second", loc="left", fontweight="bold", fontsize=10, pad=20)
        under = "line: the worst of acl1, fw1 and ipc1; band: up to the best; both axes logarithmic"
        axis.annotate(
            under, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=FAINT, fontsize=8
        )
        axis.grid(True, which="major", axis="y", linewidth=0.5, color=PEER)
        axis.tick_params(length=0, colors=INK)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color(FAINT)
        figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _rate(value: float) -> str:
    """A rate on the axis: 100 k, 1 M, 1 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _apart(places: list[float], least: float = 1.35) -> list[float]:
    """Places of labels, none nearer to the next than by this factor; the order stays."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    for below, above in itertools.pairwise(order):
        found[above] = max(found[above], found[below] * least)
    return found

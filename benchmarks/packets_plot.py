"""The plots of packets: lookups by number of rules, and how many packets a second a GPU host takes from where."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import packets_acl
from benchmarks.ours import NAME
from benchmarks.packets_goals import ACL_CORES, CORES
from benchmarks.plot import FAINT, INK, OURS, PEER, plain, rate

LOOKUPS, RATES = "packets.svg", "packets-cuda.svg"
THEIRS = "#b3554d"

Results = Mapping[str, Mapping[str, Any]]


class Curve(NamedTuple):
    """Lookups of a contestant.

    Attributes:
        record, contestant: where they are.
        title: what it is called; `cores` and `gpu` are those of the record.
        colour, style: of the line.
    """

    record: str
    contestant: str
    title: str
    colour: str
    style: str


CURVES = (
    Curve("packets-cuda", NAME, "Aikoryu, {gpu}", OURS, "-"),
    Curve("packets-cuda", CORES, "Aikoryu, {cores} cores", OURS, "--"),
    Curve("packets", NAME, "Aikoryu, 1 core", OURS, ":"),
    Curve("packets-cuda", ACL_CORES, f"{packets_acl.NAME}, {{cores}} cores", THEIRS, "--"),
    Curve("packets", packets_acl.NAME, f"{packets_acl.NAME}, 1 core", THEIRS, ":"),
)
BARS = (
    ("packets that stay: dissect + classify, packets/s", "headers read and classified,\npackets that stay on the GPU"),
    ("host", "headers read and classified,\npackets from host memory"),
    ("flow table, 10 M live flows, uniform: packets/s", "added to a table of 10 M flows,\nall flows alike"),
    ("flow table, 10 M live flows, Zipf 1.1: packets/s", "the same, by Zipf's law:\na few flows have most packets"),
    ("over NATS, 8 processes at top speed: packets/s", "classified over NATS,\n8 processes that send raw packets"),
)
"""Figures, or the shape of which the least counts, and what they are called."""


def there(results: Results) -> dict[str, str]:
    """Which plots there are, by file name, with their titles."""
    found = {LOOKUPS: "Lookups a second by number of rules"} if any(map(_has(results), CURVES)) else {}
    return found | ({RATES: "Packets a second on a GPU host"} if _rates(results) else {})


def draw(results: Results, folder: Path) -> None:
    """Write those that there are."""
    for name in there(results):
        (_draw_lookups if name == LOOKUPS else _draw_rates)(results, folder / name)


def _has(results: Results) -> Any:
    return lambda curve: _points(results, curve)


def _points(results: Results, curve: Curve) -> dict[int, list[float]]:
    """Lookups/s of a contestant by number of rules, a number a set."""
    result = results.get(curve.record, {"medians": {}, "shapes": {}})
    found: dict[int, list[float]] = {}
    for shape, by in result["medians"].items():
        rate = by.get(curve.contestant, {}).get("rows_per_s")
        if "rules" in result["shapes"][shape] and rate:
            found.setdefault(result["shapes"][shape]["rules"], []).append(rate)
    return dict(sorted(found.items()))


def _rates(results: Results) -> list[tuple[str, float, float | None]]:
    """Of each bar what it is called, packets/s, and its goal."""
    result = results.get("packets-cuda", {"figures": [], "medians": {}})
    told = {one["title"]: (one["got"], one["goal"]) for one in result["figures"]}
    host = [by[NAME]["rows_per_s"] for shape, by in result["medians"].items() if shape.startswith("host-")]
    told["host"] = (min(host, default=None), None)
    found = [(title, *told.get(name, (None, None))) for name, title in BARS]
    return [(title, got, goal) for title, got, goal in found if got]


def _draw_lookups(results: Results, path: Path) -> None:
    """A line through the worst set of each size, a band up to the best."""
    under = ["line: the worst of acl1, fw1 and ipc1; band: up to the best; both axes logarithmic"]
    if len({results[curve.record]["machine"]["cpu"] for curve in CURVES if _points(results, curve)}) > 1:
        under.append(
            "on the GPU keys lie there already; many cores are those of its host, 1 core that of another machine"
        )
    with _figure(4.5, "Lookups a second", under) as axis:
        ends = []
        for curve in CURVES:
            if points := _points(results, curve):
                sizes, least = list(points), [min(rates) for rates in points.values()]
                best = [max(rates) for rates in points.values()]
                axis.fill_between(sizes, least, best, color=curve.colour, alpha=0.10, linewidth=0)
                axis.plot(sizes, least, curve.style, color=curve.colour, marker="o", markersize=4, linewidth=1.6)
                ends.append((least[-1], _title(curve, results[curve.record]), curve.colour))
        axis.set_xscale("log")
        axis.set_yscale("log")
        every = sorted({size for curve in CURVES for size in _points(results, curve)})
        plain(axis.yaxis)
        axis.set_xticks(every, [f"{size:,}" for size in every])
        axis.xaxis.minorticks_off()
        axis.set_xlim(every[0] / 1.25, every[-1] * 1.25)
        for place, (_, title, colour) in zip(_apart([end[0] for end in ends]), ends, strict=True):
            at = (every[-1] * 1.2, place)
            axis.annotate(title, at, color=colour, va="center", fontsize=8.5, annotation_clip=False)
        axis.set_xlabel("rules", color=FAINT)
        axis.grid(True, which="major", axis="y", linewidth=0.5, color=PEER)
        axis.spines["left"].set_visible(False)
        axis.figure.savefig(path, **_AS)


def _title(curve: Curve, result: Mapping[str, Any]) -> str:
    gpu = (result.get("gpu") or {"name": "GPU"})["name"].removeprefix("NVIDIA ").split(" ")[0]
    return curve.title.format(cores=result["machine"]["cores"], gpu=gpu)


def _draw_rates(results: Results, path: Path) -> None:
    """Dots, for the axis is logarithmic, each with its goal."""
    rates = _rates(results)
    gpu = (results["packets-cuda"].get("gpu") or {"name": "GPU"})["name"]
    under = [f"{gpu}; logarithmic; of two captures the slower" + "; grey stroke: the goal" * any(r[2] for r in rates)]
    with _figure(0.52 * len(rates) + 1.3, "Packets a second", under) as axis:
        for row, (_, got, goal) in enumerate(rates):
            axis.plot([got], [row], "o", color=OURS, markersize=7)
            axis.annotate(rate(got), (got, row), (8, 0), textcoords="offset points", va="center", color=INK)
            if goal:
                axis.plot([goal, goal], [row - 0.28, row + 0.28], color=FAINT, linewidth=1.6)
        axis.set_xscale("log")
        plain(axis.xaxis)
        axis.set_xlim(1e6, 1e10)
        axis.set_yticks(range(len(rates)), [title for title, *_ in rates])
        axis.set_ylim(len(rates) - 0.5, -0.5)
        axis.grid(True, which="major", axis="x", linewidth=0.5, color=PEER)
        axis.set_axisbelow(True)
        axis.spines["left"].set_visible(False)
        axis.figure.savefig(path, **_AS)


_AS: dict[str, Any] = {"facecolor": "white", "metadata": {"Date": None, "Creator": None}}


@contextmanager
def _figure(inches: float, title: str, under: list[str]) -> Iterator[Any]:
    """Axes of a plot with a title and lines below it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(
        {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "svg.hashsalt": "packets"}
    ):
        figure, axis = pyplot.subplots(figsize=(7.2, inches), layout="constrained")
        axis.set_title(title, loc="left", fontweight="bold", fontsize=10, pad=8 + 12 * len(under))
        axis.annotate(
            "\n".join(under),
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            color=FAINT,
            fontsize=8,
            linespacing=1.35,
        )
        axis.tick_params(length=0, colors=INK)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color(FAINT)
        yield axis
        pyplot.close(figure)


def _apart(places: list[float], least: float = 1.35) -> list[float]:
    """Places of labels, none nearer to the next than by this factor; the order stays."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    for below, above in itertools.pairwise(order):
        found[above] = max(found[above], found[below] * least)
    return found

"""The plot of the results: one panel a question, one bar a contestant, ours in colour; dots where the axis is log."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goals import PEERS
from benchmarks.ours import NAME

OURS, PEER, CEILING, INK, FAINT = "#1f6f8b", "#c3cad1", "#e7d6a8", "#24292f", "#6e7781"
BAR_INCHES = 0.27
FOOTNOTE = "Sand: ceilings, without a service's work: equal frames through a plain echo; the model in the same process."


@dataclass(frozen=True)
class Panel:
    """One question.

    Attributes:
        title, unit: what is shown.
        benchmark, shape, figure: where the bars are.
        ceiling: (shape, contestant) of the ceiling, shown as a bar of its own.
        lower: lower is better, so that order is on top.
        log: whether the axis is logarithmic.
        form: how a value is written.
    """

    title: str
    unit: str
    benchmark: str
    shape: str
    figure: str = "rows_per_s"
    ceiling: tuple[str, str] | None = None
    lower: bool = False
    log: bool = False
    form: Callable[[float], str] = "{:,.0f}".format


PANELS = (
    Panel("512 awaited calls in flight", "rows/s", "bus", "row512", ceiling=("frames64", "pure-echo")),
    Panel("4 × call_many(128 rows)", "rows/s", "bus", "many512", ceiling=("frames128", "pure-echo")),
    Panel("64 awaited calls in flight", "rows/s", "bus", "row64"),
    Panel("512 agents, 512 connections", "rows/s", "bus", "agents512"),
    Panel("64 callers, 16 tokens each", "texts/s", "embed", "equal64"),
    Panel("64 callers, 4 to 128 tokens", "texts/s", "embed", "mixed64"),
    Panel("One caller", "median, ms", "bus", "one", "p50_ms", lower=True, log=True, form="{:.2f}".format),
    Panel(
        "A call after 256 callers hung up",
        "× its time alone",
        "embed",
        "hangup256",
        "after_hang_up_ratio",
        lower=True,
        log=True,
        form="{:.1f} ×".format,
    ),
)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the plot of the results as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [(panel, bars) for panel in PANELS if (bars := _bars(panel, results))]
    columns = 2
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(len(bars) for _, bars in line) + 3.0 for line in lines]
    with pyplot.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK}):
        figure, axes = pyplot.subplots(
            len(lines),
            columns,
            figsize=(10.5, BAR_INCHES * sum(heights)),
            height_ratios=heights,
            squeeze=False,
            layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1),
        )
        figure.supxlabel(FOOTNOTE, x=0.01, ha="left", fontsize=8, color=FAINT)
        for axis in axes.flat:
            axis.axis("off")
        for line, row in zip(lines, axes, strict=True):
            most = max(len(bars) for _, bars in line)
            for (panel, bars), axis in zip(line, row, strict=False):
                _panel(axis, panel, bars, most)
        figure.savefig(path, dpi=144, facecolor="white", metadata={"Software": None})
        pyplot.close(figure)


def _bars(panel: Panel, results: dict[str, dict[str, Any]]) -> list[tuple[str, float, str]]:
    """Name, value and colour of each contestant, best first."""
    medians = results.get(panel.benchmark, {}).get("medians", {})
    bars = [
        (_title(name), figures[panel.figure], OURS if name == NAME else CEILING if "in-process" in name else PEER)
        for name, figures in medians.get(panel.shape, {}).items()
        if figures.get(panel.figure) is not None
    ]
    if bars and panel.ceiling:
        shape, name = panel.ceiling
        if value := medians.get(shape, {}).get(name, {}).get(panel.figure):
            bars.append((_title(name), value, CEILING))
    return sorted(bars, key=lambda bar: bar[1], reverse=not panel.lower)


def _title(name: str) -> str:
    """A contestant's name for people: `mosec-sorted-b64-w2` is mosec, sorted, batch 64, 2 ms."""
    if name == NAME:
        return "Aikoryu"
    if name in PEERS:
        return PEERS[name]
    name = re.sub(r"-b(\d+)", r", batch \1", name)
    return re.sub(r"-w(\d+)", r", \1 ms", name).replace("mosec-", "mosec, ")


def _panel(axis: Any, panel: Panel, bars: list[tuple[str, float, str]], most: int) -> None:
    axis.axis("on")
    names, values, colours = zip(*bars, strict=True)
    places = range(len(bars))
    if panel.log:
        axis.hlines(places, 0, max(values) * 4, color=PEER, linewidth=0.6, zorder=0)
        axis.scatter(values, places, s=70, c=[colour if colour == OURS else FAINT for colour in colours])
    else:
        axis.barh(places, values, color=colours, height=0.72)
    axis.set_ylim(most - 0.4, -0.6)
    axis.set_yticks(places, names)
    for label, colour in zip(axis.get_yticklabels(), colours, strict=True):
        label.set_color(OURS if colour == OURS else INK)
        label.set_fontweight("bold" if colour == OURS else "normal")
    if panel.log:
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 2, max(values) * 4)
        axis.spines["left"].set_visible(False)
    else:
        axis.set_xlim(0, max(values) * 1.18)
    axis.set_xticks([])
    axis.minorticks_off()
    axis.tick_params(length=0)
    for place, value in zip(places, values, strict=True):
        away, lift, va = (7, 1, "bottom") if panel.log else (4, 0, "center")
        axis.annotate(panel.form(value), (value, place), (away, lift), textcoords="offset points", va=va, color=INK)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set(color=FAINT, bounds=(-0.5, len(bars) - 0.5))
    scale = ", log scale" if panel.log else ""
    axis.set_title(panel.title, loc="left", fontweight="bold", fontsize=10, pad=16)
    better = "lower" if panel.lower else "higher"
    axis.annotate(
        f"{panel.unit}{scale}, {better} is better",
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        color=FAINT,
        fontsize=8,
    )


def plain(axis: Any) -> None:
    """Have rates along a logarithmic axis as `rate` writes them, and no strokes between them."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axis.set_minor_locator(NullLocator())


def rate(value: float) -> str:
    """A rate for people: 100 k, 5.14 M, 1 G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"

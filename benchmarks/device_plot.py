"""Plots of results on a device, SVG: curves on logarithmic axes where size decides, bars elsewhere; ours in colour."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ours import NAME
from benchmarks.plot import FAINT, INK, OURS, PEER, plain

OTHERS = ("#b3554d", "#c08a2b", "#8c6bb1", "#5b8c5a", "#6e7781")
COLUMNS = 3
FLAT = 3.0
"""Curves of which the greatest value is not so often the least are drawn from 0 on."""
_FRONTS = re.compile(rf"{NAME}, (\d+) fronts?")
MOST_BARS = 10

Points = dict[str, list[tuple[float, float]]]
"""By the curve's name, where it goes through; a level has one point, without a place."""


@dataclass(frozen=True)
class Curves:
    """One panel of curves.

    Attributes:
        title, across, up: what is shown, and along which axes.
        points: finds them in a result.
    """

    title: str
    across: str
    up: str
    points: Callable[[dict[str, Any]], Points]


def _over(
    number: str, figure: str, chosen: Callable[[str, dict[str, Any]], bool]
) -> Callable[[dict[str, Any]], Points]:
    """A curve a contestant over a number of the chosen shapes' descriptions."""

    def points(result: dict[str, Any]) -> Points:
        found: Points = {}
        for shape, by in result["medians"].items():
            about = result["shapes"][shape]
            for name, figures in by.items():
                if chosen(shape, about) and figures.get(figure):
                    found.setdefault(name, []).append((about[number], figures[figure]))
        return {name: sorted(places) for name, places in found.items()}

    return points


def _sentences(result: dict[str, Any]) -> Points:
    """Ours and bare torch over the batch; beside them the best of the CPU, of `encode` and of text over NATS."""
    found = _over("rows", "rows_per_s", lambda shape, _: shape.startswith("ids"))(result)
    levels = {"cpu": "best on all cores", "encode": "best encode, from text", "texts": f"{NAME}, from text over NATS"}
    for shape, title in levels.items():
        if rates := [one["rows_per_s"] for one in result["medians"].get(shape, {}).values() if one.get("rows_per_s")]:
            found[title] = [(math.nan, max(rates))]
    return found


def _fronts(result: dict[str, Any]) -> Points:
    """A curve a shape over the number of fronts, and the best of plain NATS at the height it has."""
    found: Points = {}
    for shape, by in result["medians"].items():
        if shape in FIGURES:
            continue
        places = [
            (float(match[1]), figures["rows_per_s"])
            for name, figures in by.items()
            if (match := _FRONTS.fullmatch(name)) and figures.get("rows_per_s")
        ]
        if len(places) > 1:
            found[f"{NAME}, {shape}"] = sorted(places)
    plain = [f["rows_per_s"] for by in result["medians"].values() for n, f in by.items() if n.startswith("nats-")]
    return found | ({"plain nats-py at best": [(math.nan, max(plain))]} if plain and found else {})


PANELS = {
    "matrix": (
        Curves("f32 products", "side", "TFLOP/s", _over("side", "tflops", lambda _, about: about.get("dtype") == "f4")),
        Curves(
            "bf16 products", "side", "TFLOP/s", _over("side", "tflops", lambda _, about: about.get("dtype") == "bf16")
        ),
        Curves(
            "Rows of 384 f32 there and back",
            "rows",
            "median µs",
            _over("rows", "p50_us", lambda shape, _: shape.startswith("front")),
        ),
    ),
    "embed": (
        Curves("Sentences of 24 tokens, from ids", "sentences a batch", "sentences/s", _sentences),
        Curves("From text over NATS", "fronts", "sentences/s", _fronts),
    ),
    "bus": (Curves("Echo of 384 floats", "fronts", "rows/s", _fronts),),
}
IN_CURVES = re.compile(r"front\d+|ids\d+|(f4|bf16)-\d+")
"""Shapes that curves show already; the others get a panel of bars each."""
FIGURES = {"one": ("p50_ms", "median ms"), "text64": ("p99_ms", "p99, ms")}


def draw(name: str, result: dict[str, Any], path: Path) -> None:
    """Write the plot of a result: its panels of curves, then bars for every other shape."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [(panel, found) for panel in PANELS[name] if (found := panel.points(result))]
    bars = [
        (shape, of) for shape in result["medians"] if not IN_CURVES.fullmatch(shape) and (of := _bars(shape, result))
    ]
    count = len(curves) + len(bars)
    if not count:
        return
    columns = min(2 if count == 4 else COLUMNS, count)
    lines = -(-count // columns)
    with pyplot.rc_context({"font.family": "DejaVu Sans", "font.size": 8.5, "text.color": INK, "svg.hashsalt": name}):
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(4.3 * columns, 3.4 * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[count:]:
            axis.axis("off")
        for axis, (panel, found) in zip(axes.flat, curves, strict=False):
            _draw_curves(axis, panel, found)
        for axis, (shape, of) in zip(axes.flat[len(curves) :], bars, strict=False):
            _draw_bars(axis, f"{result['shapes'][shape]['title']}: {_figure(shape)[1]}", of)
        figure.savefig(
            path, facecolor="white", metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        )
        pyplot.close(figure)


def _figure(shape: str) -> tuple[str, str]:
    return FIGURES.get(shape, ("rows_per_s", "a second"))


def _bars(shape: str, result: dict[str, Any]) -> list[tuple[str, float]]:
    figure, _ = _figure(shape)
    by = result["medians"][shape]
    if shape not in FIGURES and all(_FRONTS.fullmatch(name) for name in by):
        return []  # nothing beside what the curve over fronts shows
    return [(name, found[figure]) for name, found in by.items() if found.get(figure)][:MOST_BARS]


def _draw_curves(axis: Any, panel: Curves, found: Points) -> None:
    others = iter(OTHERS)
    marks = iter("os^Dv")
    for name, points in found.items():
        ours = name.startswith(NAME)
        colour = OURS if ours else next(others, PEER)
        if math.isnan(points[0][0]):
            axis.axhline(points[0][1], linestyle="--" if ours else ":", color=colour, linewidth=1.2, label=name)
        else:
            style = "-" if ours else ":"
            axis.plot(
                *zip(*points, strict=True), style, marker=next(marks, "o"), markersize=4, color=colour, label=name
            )
    axis.set_xscale("log", base=2)
    values = [value for points in found.values() for _, value in points]
    is_flat = max(values) < FLAT * min(values)
    if not is_flat:
        axis.set_yscale("log")
    plain(axis.yaxis)
    if is_flat:
        axis.set_ylim(0, 1.1 * max(values))
    places = sorted({place for points in found.values() for place, _ in points if not math.isnan(place)})
    axis.set_xticks(places, [f"{place:,.0f}" for place in places])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(panel.across, color=FAINT)
    _dress(axis, f"{panel.title}, {panel.up}{'' if is_flat else ', log scales'}")
    axis.grid(True, which="major", linewidth=0.4, color=PEER)
    axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _draw_bars(axis: Any, title: str, bars: Sequence[tuple[str, float]]) -> None:
    names, values = zip(*bars, strict=True)
    axis.barh(range(len(bars)), values, color=[OURS if name.startswith(NAME) else PEER for name in names], height=0.7)
    axis.set_yticks(range(len(bars)), names)
    axis.set_ylim(max(len(bars), 5) - 0.5, -0.5)
    for place, value in enumerate(values):
        text = f"{value:#.3g}" if value < 1e3 else f"{value:,.0f}"
        axis.annotate(text, (value, place), (3, 0), textcoords="offset points", va="center")
    axis.set_xlim(0, max(values) * 1.3)
    axis.set_xticks([])
    _dress(axis, title)
    axis.spines["bottom"].set_visible(False)
    axis.spines["left"].set_bounds(-0.5, len(bars) - 0.5)
    axis.tick_params(length=0)


def _dress(axis: Any, title: str) -> None:
    axis.set_title("\n".join(textwrap.wrap(title, 36)), loc="left", fontsize=9, fontweight="bold")
    axis.tick_params(length=2, colors=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FAINT)

"""Plots of results on a device, SVG: curves on logarithmic axes where size decides, ours in colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ours import NAME
from benchmarks.plot import FAINT, INK, OURS, PEER

OTHERS = ("#6e7781", "#c08a2b", "#8c6bb1", "#b3554d", "#5b8c5a", "#c3cad1")


@dataclass(frozen=True)
class Curves:
    """One panel: a curve a contestant, over the shapes that it has.

    Attributes:
        title, across, up: what is shown, and along which axes.
        place: the number of a shape's description that decides where it lies, or None if it is not of this panel.
        figure: of the medians.
    """

    title: str
    across: str
    up: str
    place: Callable[[str, dict[str, Any]], float | None]
    figure: str


def _of_dtype(dtype: str) -> Callable[[str, dict[str, Any]], float | None]:
    return lambda name, about: about["side"] if about.get("dtype") == dtype else None


def _starting(prefix: str, key: str) -> Callable[[str, dict[str, Any]], float | None]:
    return lambda name, about: about[key] if name.startswith(prefix) else None


PANELS = {
    "matrix": (
        Curves("Products of f32 matrices", "side", "TFLOP/s", _of_dtype("f4"), "tflops"),
        Curves("Products of bf16 matrices", "side", "TFLOP/s", _of_dtype("bf16"), "tflops"),
        Curves("Rows of 384 f32 there and back", "rows", "median, µs", _starting("front", "rows"), "p50_us"),
    ),
    "embed": (
        Curves(
            "Sentences of 24 tokens, from ids",
            "sentences a batch",
            "sentences/s",
            _starting("ids", "rows"),
            "rows_per_s",
        ),
    ),
    "bus": (),
}


def draw(name: str, result: dict[str, Any], path: Path) -> None:
    """Write the plot of a result: its panels of curves, then bars of every other shape's rates."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [(panel, found) for panel in PANELS[name] if (found := _curves(panel, result))]
    drawn = {
        shape
        for panel in PANELS[name]
        for shape, about in result["shapes"].items()
        if panel.place(shape, about) is not None
    }
    bars = [(shape, by) for shape, by in result["medians"].items() if shape not in drawn]
    count = len(curves) + len(bars)
    if not count:
        return
    columns = min(3, count)
    lines = -(-count // columns)
    with pyplot.rc_context({"font.family": "DejaVu Sans", "font.size": 8.5, "text.color": INK, "svg.hashsalt": name}):
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(4.2 * columns, 3.4 * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[count:]:
            axis.axis("off")
        for axis, (panel, found) in zip(axes.flat, curves, strict=False):
            _draw_curves(axis, panel, found)
        for axis, (shape, by) in zip(axes.flat[len(curves) :], bars, strict=False):
            _draw_bars(axis, result["shapes"][shape]["title"], by)
        figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _curves(panel: Curves, result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Points by contestant."""
    found: dict[str, list[tuple[float, float]]] = {}
    for shape, by in result["medians"].items():
        place = panel.place(shape, result["shapes"][shape])
        for name, figures in by.items():
            if place is not None and figures.get(panel.figure):
                found.setdefault(name, []).append((place, figures[panel.figure]))
    return {name: sorted(points) for name, points in found.items()}


def _draw_curves(axis: Any, panel: Curves, found: dict[str, list[tuple[float, float]]]) -> None:
    for (name, points), colour in zip(found.items(), _colours(list(found)), strict=True):
        style = "-" if name == NAME else "--" if name.startswith(NAME) else ":"
        axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3.5, color=colour, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(panel.across, color=FAINT)
    _dress(axis, f"{panel.title}\n{panel.up}, log scale")
    axis.grid(True, which="major", linewidth=0.4, color=PEER)
    axis.legend(fontsize=7, frameon=False)


def _draw_bars(axis: Any, title: str, by: dict[str, dict[str, Any]]) -> None:
    figure, unit = ("rows_per_s", "rows/s") if any("rows_per_s" in f for f in by.values()) else ("p50_ms", "median, ms")
    bars = [(name, figures[figure]) for name, figures in by.items() if figures.get(figure)]
    if not bars:
        axis.axis("off")
        return
    names, values = zip(*bars, strict=True)
    axis.barh(range(len(bars)), values, color=[OURS if name.startswith(NAME) else PEER for name in names], height=0.7)
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    for place, value in enumerate(values):
        axis.annotate(
            f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}",
            (value, place),
            (3, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_xlim(0, max(values) * 1.25)
    axis.set_xticks([])
    _dress(axis, f"{title}\n{unit}")


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.tick_params(length=2, colors=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FAINT)


def _colours(names: Sequence[str]) -> Iterator[str]:
    others = iter(OTHERS)
    for name in names:
        yield OURS if name.startswith(NAME) else next(others, PEER)

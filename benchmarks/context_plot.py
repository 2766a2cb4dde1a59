"""The plots of contexts, SVG: what windows of puts take on a GPU and beside it, and how long updates over NATS take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ours import NAME
from benchmarks.plot import FAINT, INK, OURS, rate

WINDOWS, BUS = "context-maths-cuda", ("context-bus-cuda", "context-bus")
"""Names of records; a plot has that of its record."""
KINDS = ("uniform", "clustered")
CPU = "torch on all cores"
GOAL_PUTS, LIMIT_MS = 256, 20.0
WIDTH, LEFT, PANEL, GAP, TOP, DEEP = 900, 64, 288, 132, 122, 240
FEW_DECADES = 2.8
GRID, THEIRS, SINGLE = "#e3e6e9", "#b3554d", "#c08a2b"

Results = Mapping[str, Mapping[str, Any]]
Points = tuple[tuple[float, float], ...]


class Line(NamedTuple):
    """A curve.

    Attributes:
        title, colour: of it.
        points: that it goes through.
        marked: of these the one that counts.
    """

    title: str
    colour: str
    points: Points
    marked: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axes:
    """Two logarithmic axes.

    Attributes:
        left: of the panel, px.
        across, up: least and greatest value along each.
    """

    left: float
    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        """Where a value is, px."""
        return self.left + PANEL * _share(value, self.across)

    def y(self, value: float) -> float:
        """Where a value is, px."""
        return TOP + DEEP * (1 - _share(value, self.up))


def there(results: Results) -> dict[str, str]:
    """Which plots there are, by file name, with their titles."""
    found = {f"{WINDOWS}.svg": "Windows of puts on a GPU and on all cores beside it"} if WINDOWS in results else {}
    return found | {f"{name}.svg": "p99 of updates over NATS by updates a second" for name in BUS if name in results}


def draw(results: Results, folder: Path) -> None:
    """Write those that there are."""
    for name in there(results):
        record = name.removesuffix(".svg")
        (folder / name).write_text("\n".join(_windows(results[record]) if record == WINDOWS else _bus(results[record])))


def _windows(result: Mapping[str, Any]) -> Iterator[str]:
    """A panel a kind of graph: ms over puts at once, with the goal."""
    under = (
        "median ms a window, until it is settled and decided who is told, by puts at once; "
        f"{result['agents']:,} agents that hear {result['degree']} each"
    )
    by = {kind: _times(result, kind) for kind in KINDS}
    every = [point for lines in by.values() for line in lines for point in line.points]
    goals = {
        one["title"].partition(":")[0]: one["goal"]
        for one in result["figures"]
        if one["shape"].startswith(f"window-{GOAL_PUTS}-") and one["better"] == "lower" and one["goal"]
    }
    across, up = _ranges(every, goals.values(), 1.9, 2.6)
    yield from _begin("Windows of puts", under)
    more = f"thick stroke: the goal, which is for {GOAL_PUTS} puts; both axes logarithmic"
    yield _text(LEFT - 48, 64, more, fill=FAINT, size=12)
    for number, (kind, lines) in enumerate(by.items()):
        axes = Axes(LEFT + number * (PANEL + GAP), across, up)
        said = {"uniform": "uniform: agents hear anybody", "clustered": "clustered: most hear near ones"}[kind]
        yield from _frame(axes, said, sorted({puts for puts, _ in every}), lambda puts: f"{puts:,.0f}")
        yield _text(axes.left + PANEL / 2, TOP + DEEP + 42, "puts at once", anchor="middle", fill=FAINT)
        ends = {line: axes.y(line.points[-1][1]) for line in lines}
        if goal := goals.get(kind):
            yield _level(axes, goal)
            told = Line(f"goal: {goal:g} ms", FAINT, ())
            ends[told] = axes.y(goal)
            yield _stroke(axes.x(GOAL_PUTS) - 14, axes.y(goal), 28, FAINT, 2.4)
        for line in lines:
            yield from _curve(axes, line)
            is_upper = line is max(lines, key=lambda one: one.points[-1][1])
            away, lift = (-8, -9) if is_upper else (8, 18)  # where a line that rises is not
            for at, value in line.points:
                x, y = axes.x(at) + away, axes.y(value) + lift
                yield _text(x, y, _number(value), anchor="middle", fill=line.colour, size=11)
        for line, y in _apart(ends).items():
            yield _text(axes.left + PANEL + 10, y + 4, line.title, fill=line.colour, size=12)
    yield "</svg>\n"


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _times(result: Mapping[str, Any], kind: str) -> list[Line]:
    """Of the GPU, then of the cores beside it."""
    gpu = (result.get("gpu") or {"name": "GPU"})["name"].removeprefix("NVIDIA ").split(" ")[0]
    titles = {NAME: (gpu, OURS), CPU: (f"torch, {result['machine']['cores']} cores", THEIRS)}
    found = []
    for name, (title, colour) in titles.items():
        points = tuple(
            sorted(
                (float(shape.split("-")[1]), by[name]["p50_ms"])
                for shape, by in result["medians"].items()
                if shape.startswith("window-") and shape.endswith(kind) and name in by
            )
        )
        found += [Line(title, colour, points)] if points else []
    return found


def _bus(result: Mapping[str, Any]) -> Iterator[str]:
    """A panel for puts that are answered, one for those that somebody is told of: p99 over updates/s."""
    device = (result.get("gpu") or {"name": "CPU"})["name"].removeprefix("NVIDIA ").split(" ")[0]
    same = ", again" if device == "CPU" else ""
    titles = {
        "device": (f"keeper on the {device}", OURS),
        "cpu": (f"on the CPU{same}", THEIRS),
        "alone": (f"on the {device}, a window an update", SINGLE),
    }
    by = {
        what: [Line(*titles[kind], *_latencies(steps, what)) for kind, steps in result["steps"].items()]
        for what in ("put", "told")
    }
    every = [point for lines in by.values() for line in lines for point in line.points]
    yield from _begin(
        "Updates over NATS", f"p99, ms, by updates a second; {LIMIT_MS:g} ms are allowed; both axes logarithmic"
    )
    yield from _legend([Line(*title, ()) for kind, title in titles.items() if kind in result["steps"]])
    across, up = _ranges(every, [LIMIT_MS], 1.5, 1.7)
    for number, (what, lines) in enumerate(by.items()):
        axes = Axes(LEFT + number * (PANEL + GAP), across, up)
        yield from _frame(
            axes, {"put": "until it is answered", "told": "until who waits is told"}[what], _ticks(across), rate
        )
        yield _text(axes.left + PANEL / 2, TOP + DEEP + 42, "updates a second", anchor="middle", fill=FAINT)
        yield _level(axes, LIMIT_MS)
        yield _text(axes.left + PANEL + 10, axes.y(LIMIT_MS) + 4, f"{LIMIT_MS:g} ms", fill=FAINT, size=12)
        for line in lines:
            yield from _curve(axes, line)
        for line in lines:
            if line.marked:
                x, y = axes.x(line.marked[0]), axes.y(line.marked[1])
                ring = f'r="6.5" fill="none" stroke="{line.colour}" stroke-width="1.6"'
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" {ring}/>'
                yield _text(x + 8, y + 19, rate(line.marked[0]), fill=line.colour, size=11, weight="bold")
    yield "</svg>\n"


def _latencies(steps: Iterable[Mapping[str, Any]], what: str) -> tuple[Points, tuple[float, float] | None]:
    """p99 by updates/s, as more are at once, and the step of the most updates that are all in time."""
    points: dict[int, tuple[float, float]] = {}
    in_time = []
    for step in steps:
        if "p99_ms" not in step[what] or not step["updates_per_s"]:
            continue
        point = points[step["at_once"]] = (step["updates_per_s"], step[what]["p99_ms"])
        if all(step[each].get("p99_ms", math.inf) <= LIMIT_MS for each in ("put", "told")):
            in_time.append(point)
    return tuple(points.values()), max(in_time, default=None)


def _begin(title: str, under: str) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + DEEP + 58}" '
        f'font-family="DejaVu Sans, sans-serif" font-size="13" fill="{INK}">'
    )
    yield f'<rect width="{WIDTH}" height="{TOP + DEEP + 58}" fill="white"/>'
    yield _text(LEFT - 48, 24, title, weight="bold", size=15)
    yield _text(LEFT - 48, 44, under, fill=FAINT, size=12)


def _frame(axes: Axes, title: str, ticks: Iterable[float], form: Any) -> Iterator[str]:
    """A panel's title, its grid and the values along both axes."""
    yield _text(axes.left, TOP - 16, title, weight="bold")
    for value in _ticks(axes.up):
        yield _stroke(axes.left, axes.y(value), PANEL, GRID)
        yield _text(axes.left - 8, axes.y(value) + 4, f"{value:,g}", anchor="end", fill=FAINT, size=12)
    yield _stroke(axes.left, TOP + DEEP, PANEL, FAINT)
    for value in ticks:
        yield f'<path d="M{axes.x(value):.1f} {TOP + DEEP}v5" stroke="{FAINT}" fill="none"/>'
        yield _text(axes.x(value), TOP + DEEP + 21, form(value), anchor="middle", fill=FAINT, size=12)


def _legend(lines: Iterable[Line]) -> Iterator[str]:
    x = LEFT - 48.0
    for line in lines:
        yield _stroke(x, 68, 22, line.colour, 2.4)
        yield f'<circle cx="{x + 11:.1f}" cy="68" r="3.6" fill="{line.colour}"/>'
        yield _text(x + 30, 72, line.title, fill=line.colour, size=12)
        x += 62 + 7.2 * len(line.title)


def _curve(axes: Axes, line: Line) -> Iterator[str]:
    drawn = " ".join(f"{axes.x(across):.1f},{axes.y(up):.1f}" for across, up in line.points)
    yield f'<polyline points="{drawn}" stroke="{line.colour}" stroke-width="2.2" fill="none"/>'
    for across, up in line.points:
        yield f'<circle cx="{axes.x(across):.1f}" cy="{axes.y(up):.1f}" r="3.6" fill="{line.colour}"/>'


def _level(axes: Axes, value: float) -> str:
    return f'<path d="M{axes.left} {axes.y(value):.1f}h{PANEL}" stroke="{FAINT}" stroke-dasharray="5 4" fill="none"/>'


def _stroke(x: float, y: float, length: float, colour: str, width: float = 1) -> str:
    return f'<path d="M{x:.1f} {y:.1f}h{length}" stroke="{colour}" stroke-width="{width}" fill="none"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK, weight: str = "normal", size: int = 13
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}" '
        f'font-size="{size}">{text}</text>'
    )


def _ranges(points: Iterable[tuple[float, float]], levels: Iterable[float], beside: float, below: float) -> Any:
    """Least and greatest along both axes: so many times beyond the values, that what is written there has room."""
    across, up = zip(*points, strict=True)
    ups = [*up, *levels]
    return (min(across) / beside, max(across) * beside), (min(ups) / below, max(ups) * 1.7)


def _ticks(limits: tuple[float, float]) -> list[float]:
    """Powers of ten, and three times those where they would be few."""
    low, high = (math.log10(limit) for limit in limits)
    steps = (1, 3) if high - low < FEW_DECADES else (1,)
    every = (step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps)
    return [value for value in every if limits[0] <= value <= limits[1]]


def _share(value: float, limits: tuple[float, float]) -> float:
    return math.log(value / limits[0]) / math.log(limits[1] / limits[0])


def _apart(heights: Mapping[Line, float], least: float = 17) -> dict[Line, float]:
    """Labels' heights so far apart that all can be read, in their order."""
    order = sorted(heights, key=heights.__getitem__)
    found = dict(heights)
    for above, below in itertools.pairwise(order):
        found[below] = max(found[below], found[above] + least)
    return found

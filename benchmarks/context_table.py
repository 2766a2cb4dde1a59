"""What docs/context_example.md shows of `benchmarks/results/context_example.json`: tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import markdown

HEARD = {"imports": "hears what it imports", "importers": "hears who imports it", "both": "hears both"}
SCORES = {"dot": "dot product", "cosine": "cosine"}
DEPTHS = ("hits@1", "hits@5", "hits@16")
WIDTH, HEIGHT, LEFT, TOP, PANEL, GAP, DEEP = 900, 330, 62, 64, 270, 150, 200
INK, FAINT, COLOURS = "#24292f", "#6e7781", {"own": "#6e7781", "dot": "#c08a2b", "cosine": "#1f6f8b"}


def tables(result: Mapping[str, Any]) -> list[str]:
    """All figures in Markdown, a table a question."""
    by = result["embeddings"]
    asked = [_ways(f"{name}, {one['title']}", one) for name, each in by.items() for one in each["questions"]]
    parts = [_parts(name, each) for name, each in by.items()]
    return [*asked, _chosen(by), _lengths(by), *parts, _silence(by)]


def shown(result: Mapping[str, Any]) -> list[str]:
    """Those of them that the page shows."""
    first, (name, by) = tables(result)[0], next(iter(result["embeddings"].items()))
    every = result["embeddings"]
    return [first, _others(every), _chosen(every), _lengths({name: by}), _parts(name, by), _silence({name: by})]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the plot as SVG: hits over alpha of all questions, and of questions about who says nothing."""
    by = next(iter(result["embeddings"].values()))
    asked, silent = by["questions"][0], by["silent"][0]
    both = [one for one in asked["blended"] if one["heard"] == "both"]
    left = _panel(LEFT, f"All {asked['questions']:,} questions", asked["own"]["hits@16"], both, "hits@16")
    title = f"{100 * silent['share']:.0f} % of the modules say nothing: questions about them"
    right = _panel(LEFT + PANEL + GAP, title, silent["own"]["silent"], silent["blended"], "silent")
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, sans-serif" '
        f'font-size="13" fill="{INK}">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
        + "\n".join([_text(LEFT - 44, 22, "The right module is among the first 16 (MiniLM, each hears both ways), %")])
        + "\n"
        + "\n".join([*left, *right])
        + "\n</svg>\n"
    )


def _panel(x: float, title: str, own: float, ways: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    """Axes, a level line for agents' own contexts, and a line a score."""
    alphas = sorted({way["alpha"] for way in ways})
    places = {alpha: x + 20 + number * (PANEL - 40) / (len(alphas) - 1) for number, alpha in enumerate(alphas)}
    bottom = TOP + DEEP

    def height(share: float) -> float:
        return bottom - DEEP * share / 0.7

    found = [_text(x, TOP - 14, title, weight="bold")]
    for share in (0.0, 0.2, 0.4, 0.6):
        y = height(share)
        found.append(f'<path d="M{x} {y:.1f}h{PANEL}" stroke="#e3e6e9" fill="none"/>')
        found.append(_text(x - 8, y + 4, f"{100 * share:.0f}", anchor="end", fill=FAINT))
    for alpha, place in places.items():
        found.append(_text(place, bottom + 20, f"{alpha:g}", anchor="middle", fill=FAINT))
    found.append(_text(x + PANEL / 2, bottom + 40, "alpha", anchor="middle", fill=FAINT))
    lines = {"own": [(x + 20, own), (x + PANEL - 20, own)]}
    for score in SCORES:
        lines[score] = [(places[way["alpha"]], way[figure]) for way in ways if way["score"] == score]
    for name, points in lines.items():
        drawn = " ".join(f"{across:.1f},{height(share):.1f}" for across, share in points)
        dashes = ' stroke-dasharray="5 4"' if name == "own" else ""
        found.append(f'<polyline points="{drawn}" stroke="{COLOURS[name]}" stroke-width="2.2" fill="none"{dashes}/>')
        if name != "own":
            found += [
                f'<circle cx="{across:.1f}" cy="{height(share):.1f}" r="3.6" fill="{COLOURS[name]}"/>'
                for across, share in points
            ]
    ends = {name: height(points[-1][1]) for name, points in lines.items()}
    titles = {"own": "own", "dot": "blended, dot", "cosine": "blended, cosine"}
    for name, y in _apart(ends).items():
        found.append(_text(x + PANEL - 8, y + 4, titles[name], fill=COLOURS[name]))
    return found


def _apart(heights: Mapping[str, float], least: float = 16) -> dict[str, float]:
    """Labels' heights so far apart that all can be read, in their order."""
    found: dict[str, float] = {}
    for name in sorted(heights, key=lambda each: heights[each]):
        found[name] = max([heights[name] - 6, *(other + least for other in found.values())])
    return found


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">{text}</text>'


def _ways(title: str, one: Mapping[str, Any]) -> str:
    own = one["own"]
    rows = [("**own**", "", "", *(_percent(own[name]) for name in DEPTHS), f"{own['mrr']:.3f}")]
    for way in one["blended"]:
        cells = (f"{_percent(way[name])} {_more(way['more'][name])}" for name in DEPTHS)
        rows.append((HEARD[way["heard"]], f"{way['alpha']}", SCORES[way["score"]], *cells, f"{way['mrr']:.3f}"))
    return markdown.table((title, "alpha", "score", *DEPTHS, "MRR"), "lrlrrrr", rows)


def _others(embeddings: Mapping[str, Any]) -> str:
    """Hits@5 of agents that hear both ways, a column for each embedding and set of questions but the first."""
    columns = [(name, one) for name, by in embeddings.items() for one in by["questions"]][1:]
    ways = [[way for way in one["blended"] if way["heard"] == "both"] for _, one in columns]
    rows = [("**own**", "", *(_percent(one["own"]["hits@5"]) for _, one in columns))]
    for each in zip(*ways, strict=True):
        cells = (f"{_percent(way['hits@5'])} {_more(way['more']['hits@5'])}" for way in each)
        rows.append((f"{each[0]['alpha']}", SCORES[each[0]["score"]], *cells))
    head = ("hits@5, hears both: alpha", "score", *(f"{name}, {one['title']}" for name, one in columns))
    return markdown.table(head, "ll" + "r" * len(columns), rows)


def _chosen(embeddings: Mapping[str, Any]) -> str:
    rows = []
    for name, by in embeddings.items():
        one = by["chosen"]
        cells = (f"{_percent(one['own'][key])} {_more(one['more'][key])}" for key in DEPTHS)
        rows.append((name, _way(one["configuration"]), str(one["questions"]), *cells))
    return markdown.table(("", "chosen by half of the modules", "questions of the others", *DEPTHS), "llrrrr", rows)


def _lengths(embeddings: Mapping[str, Any]) -> str:
    rows = []
    for name, by in embeddings.items():
        for one in by["lengths"]:
            lengths, alone = one["lengths"], one["hear_at_most_one"]
            firsts = (_percent(alone[key]) for key in ("of_agents", "first_by_own", "first_by_dot", "first_by_cosine"))
            rows.append(
                (name, f"{one['alpha']}", *(f"{lengths[key]:.2f}" for key in ("least", "median", "most")), *firsts)
            )
    head = ("", "alpha", "shortest", "median", "longest", "hear at most one, %", "first by own", "by dot", "by cosine")
    return markdown.table(head, "lrrrrrrrr", rows)


def _parts(name: str, by: Mapping[str, Any]) -> str:
    rows = []
    for one in by["parts"]:
        cells = (f"{_percent(one['own'][key])} {_more(one['more'][key])}" for key in DEPTHS)
        rows.append((one["part"], str(one["modules"]), str(one["questions"]), *cells))
    head = f"{name}: {_way(by['chosen']['configuration'])}"
    return markdown.table((head, "modules", "questions", *(f"own {key}" for key in DEPTHS)), "lrrrrr", rows)


def _silence(embeddings: Mapping[str, Any]) -> str:
    rows = []
    for name, by in embeddings.items():
        for one in by["silent"]:
            ways = [("own", one["own"])]
            ways += [(f"alpha {way['alpha']}, {SCORES[way['score']]}", way) for way in one["blended"]]
            for title, way in ways:
                shares = (_percent(way[key]) for key in ("silent", "others", "all"))
                rows.append((name, f"{100 * one['share']:.0f} %", title, *shares))
    return markdown.table(("", "silent", "hits@16", "of the silent", "of the others", "of all"), "lrlrrr", rows)


def _way(configuration: Mapping[str, Any]) -> str:
    return f"{HEARD[configuration['heard']]}, alpha {configuration['alpha']}, {SCORES[configuration['score']]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _more(difference: Sequence[float]) -> str:
    """A difference in points with its interval; bold where that does not hold 0."""
    middle, low, high = (100 * value for value in difference)
    text = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text

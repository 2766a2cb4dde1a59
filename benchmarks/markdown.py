"""Tables in Markdown: of any rows, and of figures with their goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import goals
from benchmarks.ours import NAME


def figures_table(figures: Sequence[dict[str, Any]]) -> str:
    """Each figure with its goal, its aim and what was measured."""
    return table(
        ("figure", "goal", "aim", "measured", ""),
        "lrrrl",
        [
            (
                one["title"] + (f" ({one['against']})" if _is_news(one) else ""),
                goals.number(one["goal"], one),
                goals.number(one["aim"], one),
                f"**{goals.number(one['got'])}**",
                ", ".join([one["verdict"] or "", *one.get("faults", [])]).strip(", "),
            )
            for one in figures
        ],
    )


def stamp(result: Mapping[str, Any]) -> str:
    """When a record was made, and of which commit."""
    commit, _, dirty = (result["commit"] or "unknown").partition("+")
    return f"{result['date'][:10]}, commit {commit[:12]}{' with changes' if dirty else ''}"


def _is_news(one: dict[str, Any]) -> bool:
    """Whether the title leaves open against whom the figure is."""
    against = one["against"]
    return against not in (None, NAME) and goals.PEERS.get(against, against) not in one["title"]


def table(head: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `align` has l or r a column."""
    marks = ["---" if side == "l" else "---:" for side in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *rows))

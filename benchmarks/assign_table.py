"""What the results' page says of tasks for agents, from `benchmarks/results/assign-cuda.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import markdown

RECORD = "assign-cuda"
_HEAD = ("tasks × agents, room, vectors", "whole matrix, ms", "shortlist, ms", "auction, ms", "rounds", "served")
_EXACT = ("exact, ms", "short of it, %")
_LEGEND = (
    "Shortlists of 16 from vectors of 384, in which half of the agents can do a task; beside them all scores at once, "
    "masked, and `torch.topk`, on the same GPU. The auction works on the shortlists; exact is SciPy's "
    "`linear_sum_assignment` over the same ones, on one core, where it ends in time. *Clusters*: many want the same. "
    "The auction has 8 rounds at least, for the GPU is asked every 8 rounds whether all is done."
)


def load(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, if it is there."""
    path = folder / f"{RECORD}.json"
    return json.loads(path.read_text()) if path.exists() else None


def page(result: Mapping[str, Any]) -> Iterator[str]:
    """The parts of the results' page."""
    machine, gpu = result["machine"], result["gpu"]
    yield "# Tasks for agents"
    yield (
        f"Measured on {gpu['name']}, driver {gpu['driver']}, torch {result['versions']['torch']}; {machine['cpu']}, "
        f"{machine['cores']} cores, Python {machine['python']}; {markdown.stamp(result)}."
    )
    head = (*_HEAD, *_EXACT)
    yield markdown.table(head, "l" + "r" * (len(head) - 1), [_cells(one) for one in result["shapes"]])
    yield _LEGEND
    yield f"`{result['command']}`"


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    times = (f"{one[name]:,.1f}" for name in ("whole_matrix_ms", "shortlist_ms", "auction_ms"))
    exact = ("—", "—") if one["short_percent"] is None else (f"{one['exact_ms']:,.0f}", f"{one['short_percent']:.3f}")
    return one["title"], *times, str(one["rounds"]), f"{one['served']:,}", *exact

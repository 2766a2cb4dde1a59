"""Tasks for agents: `python -m benchmarks.assign [--device cuda] [--quick] [--json OUT]`.

The shortlists against the whole score matrix, masked and sorted by `torch.topk`; the auction against the exact optimum
over the same shortlists, by SciPy, where that ends in time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aikoryu.gpu.auction import Auction
from aikoryu.gpu.device import open_device
from aikoryu.gpu.shortlist import Agents, Shortlist, Tasks, shortlist
from benchmarks import record

if TYPE_CHECKING:
    from torch import Tensor

LISTED = 16
NEEDS = 8  # capabilities, of which a task needs one and an agent has half
CLUSTERS = 64
BLOCK_BYTES = 1 << 27  # of the score matrix that the peer makes at once
MOST_EXACT = 2048  # tasks: the exact optimum of 4,096 takes minutes
DENSE_SEATS = 8192  # beyond them the exact reference has no room


@dataclass(frozen=True)
class Shape:
    """So many tasks for so many agents.

    Attributes:
        tasks, agents: how many.
        capacity: an agent can take 1 to so many.
        clustered: tasks and agents lie about a few centres, so that many want the same.
        width: numbers of a vector.
        half: vectors of 16 bits.
    """

    tasks: int
    agents: int
    capacity: int
    clustered: bool = False
    width: int = 384
    half: bool = False

    @property
    def title(self) -> str:
        """For people."""
        kind = "clusters" if self.clustered else "spread"
        return f"{self.tasks:,} × {self.agents:,}, ≤ {self.capacity}, {kind}, {'f2' if self.half else 'f4'}"


SHAPES = (
    Shape(64, 100_000, 3),
    Shape(1000, 2000, 2),
    Shape(1000, 2000, 2, clustered=True),
    Shape(1000, 1000, 1, clustered=True),
    Shape(4096, 100_000, 3),
    Shape(4096, 100_000, 3, half=True),
    Shape(4096, 100_000, 1, clustered=True),
)
QUICK = (Shape(64, 2000, 2, width=64), Shape(200, 200, 1, clustered=True, width=64))


def made(shape: Shape, place: Any) -> tuple[Tasks, Agents]:
    """Seeded tasks and agents on a device."""
    import torch

    draw = torch.Generator().manual_seed(shape.tasks + shape.agents)
    centres = torch.randn(CLUSTERS, shape.width, generator=draw)

    def vectors(rows: int) -> Tensor:
        found = torch.randn(rows, shape.width, generator=draw)
        if shape.clustered:
            found = 0.5 * found + centres[torch.randint(CLUSTERS, (rows,), generator=draw)]
        found = torch.nn.functional.normalize(found).to(place)
        return found.half() if shape.half else found

    def integers(high: int, rows: int) -> Tensor:
        return torch.randint(high, (rows,), generator=draw).to(place)

    tasks = Tasks(vectors(shape.tasks), 1 << integers(NEEDS, shape.tasks), torch.arange(NEEDS, device=place))
    agents = Agents(
        vectors(shape.agents),
        1 + integers(shape.capacity, shape.agents),
        integers(1 << NEEDS, shape.agents),
        0.1 * torch.rand(shape.agents, generator=draw).to(place),
    )
    return tasks, agents


def whole_matrix(tasks: Tasks, agents: Agents) -> Shortlist:
    """The peer: all scores of as many tasks as there is room for, masked, and `torch.topk`."""
    import torch

    rows = max(1, BLOCK_BYTES // (4 * len(agents.vectors)))
    found = []
    for start in range(0, len(tasks.vectors), rows):
        part = slice(start, start + rows)
        scores = (tasks.vectors[part] @ agents.vectors.T).float() - agents.burden
        unable = (tasks.needs[part, None] & ~agents.capabilities) != 0
        scores.masked_fill_(unable | (agents.capacity == 0), -torch.inf)
        found.append(scores.topk(LISTED, 1))
    return Shortlist(torch.cat([one.indices for one in found]), torch.cat([one.values for one in found]))


def exact(listed: Shortlist, capacity: Tensor) -> tuple[float, int, float] | None:
    """The optimum over the shortlists: its sum, the tasks it serves, and what a task counts that it does not serve.

    None without SciPy, or if it is too large for it.
    """
    import numpy as np

    try:
        solve = importlib.import_module("scipy.optimize").linear_sum_assignment
    except ImportError:
        return None
    agents, utilities = listed.agents.cpu().numpy(), listed.utilities.double().cpu().numpy()
    real = np.isfinite(utilities)
    seats, seat_of = np.unique(agents[real], return_inverse=True)
    rooms = np.minimum(capacity.cpu().numpy()[seats], len(agents))
    if len(agents) > MOST_EXACT or rooms.sum() > DENSE_SEATS or not real.any():
        return None
    worth = np.full((len(agents), len(seats)), -1e6)
    worth[np.nonzero(real)[0], seat_of] = utilities[real]
    without = float(2 * utilities[real].min() - utilities[real].max())
    expanded = np.hstack([np.repeat(worth, rooms, axis=1), np.full((len(agents), len(agents)), without)])
    row, column = solve(expanded, maximize=True)
    served = column < rooms.sum()
    return float(expanded[row, column][served].sum()), int(served.sum()), without


def measure(shape: Shape, device: str, repeats: int) -> dict[str, Any]:
    """Median milliseconds of each part, rounds of the auction, and how far its sum is from the optimum."""
    import torch

    opened = open_device("cuda:0" if device == "cuda" else "cpu", len(os.sched_getaffinity(0)))
    opened.open()

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        times = []
        for number in range(repeats + 1):
            start = time.perf_counter()
            answer = work()
            opened.synchronize()
            if number or not repeats:  # the first one warms up
                times.append(time.perf_counter() - start)
        return round(statistics.median(times) * 1e3, 3), answer

    with opened.stream():
        tasks, agents = made(shape, opened.place)
        whole_ms, whole = timed(lambda: whole_matrix(tasks, agents))
        list_ms, listed = timed(lambda: shortlist(tasks, agents, LISTED, lambda: None))
        rounds: list[int] = []

        def bid() -> Tensor:
            rounds.clear()
            return Auction(listed.agents, listed.utilities, agents.capacity).run(lambda: rounds.append(1))

        auction_ms, place = timed(bid)
        opened.synchronize()
        got = place >= 0
        total = float(listed.utilities.double().gather(1, place.clamp(min=0)[:, None]).squeeze(1)[got].sum())
        served = int(got.sum())
        # A score that is not among the peer's, rounding aside, is a wrong one.
        off = (listed.utilities - whole.utilities).nan_to_num().abs().max()
    start = time.perf_counter()
    best = exact(listed, agents.capacity)
    exact_ms = round((time.perf_counter() - start) * 1e3, 1)
    if device == "cuda":
        torch.cuda.empty_cache()
    return {
        "shape": asdict(shape),
        "title": shape.title,
        "whole_matrix_ms": whole_ms,
        "shortlist_ms": list_ms,
        "auction_ms": auction_ms,
        "rounds": len(rounds),
        "served": served,
        "largest_difference": float(off),
        "exact_ms": None if best is None else exact_ms,
        "exact_served": None if best is None else best[1],
        "short_percent": None if best is None else _short_percent(*best, total, served),
    }


def _short_percent(best: float, most: int, without: float, total: float, served: int) -> float:
    """How far a sum is below the optimum, tasks that are not served counted, in % of the optimum's own sum."""
    return round(100 * (best - total + without * (served - most)) / abs(best), 4)


def table(found: Sequence[dict[str, Any]]) -> str:
    """The shapes as text."""
    form = "{:<44}{:>13}{:>13}{:>12}{:>8}{:>8}{:>12}{:>12}"
    head = ("tasks × agents, room", "whole matrix", "shortlist", "auction", "rounds", "served", "exact", "short of it")
    lines = [form.format(*head)]
    for one in found:
        known = one["short_percent"] is not None
        exact = (f"{one['exact_ms']:,.0f} ms", f"{one['short_percent']:.3f} %") if known else ("—", "—")
        times = (f"{one[name]:,.1f} ms" for name in ("whole_matrix_ms", "shortlist_ms", "auction_ms"))
        lines.append(form.format(one["title"], *times, one["rounds"], one["served"], *exact))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.assign", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of each part after the first, which warms up (default 3)"
    )
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    result = record.about("assign", ["torch", "numpy", "scipy"]) | {"gpu": record.gpu(options.device)}
    # Of half the width a CPU's products are so slow that the peer would take minutes.
    shapes = QUICK if options.quick else [one for one in SHAPES if options.device == "cuda" or not one.half]
    result["shapes"] = [measure(shape, options.device, options.repeats) for shape in shapes]
    print(table(result["shapes"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

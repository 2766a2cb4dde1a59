"""What reaches agents, window by window: `python -m benchmarks.context_maths [--device cuda] [--json OUT]`.

A sweep over all rows beside what only reads them and adds them up, and windows of puts until all who moved are told. On
a GPU the same state is copied to the CPU, whose path by torch on all cores is the peer and the judge. With the default
million of agents a GPU host takes two minutes, and a CPU alone far longer: `--agents 20000`.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aikoryu.gpu.context.notify import due
from aikoryu.gpu.context.propagate import NO_LIMIT, PUSH_COST, Settled, full_step, push, settle
from aikoryu.gpu.device import Device, open_device
from benchmarks import context_floor, goals, record
from benchmarks.context_graphs import DEGREE, Windows, copied, drawn
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME
from benchmarks.record import Samples
from benchmarks.stopwatch import seconds_each

if TYPE_CHECKING:
    from aikoryu.gpu.context.graph import ContextGraph

KINDS = ("uniform", "clustered")
SIZES = (1, 16, 256, 4096)
ALPHA, EPSILON = 0.3, 1e-3
THRESHOLD = 0.02  # all are told who moved by more
ROUNDING = 1e-4
LATER = 1 << 40  # than any version of what is said to a graph on a GPU
CALIBRATED = 16  # one agent in so many says something where the cost of a push is measured
FLOOR, CPU = "only gathered", "torch on all cores"


@dataclass(frozen=True)
class Repeats:
    """How often each thing is measured.

    Attributes:
        rounds: of the sweep over all rows and of the floor, in turns.
        least_s: length of one, s.
        windows: of each size, the first of which warms up.
        most_s: after which no further window of a size is begun, s.
        pushes: for their cost.
    """

    rounds: int
    least_s: float
    windows: int
    most_s: float
    pushes: int


DEVICE_REPEATS, CPU_REPEATS = Repeats(5, 0.2, 41, 10.0, 5), Repeats(2, 0.0, 5, 5.0, 2)


def _goals(kind: str) -> list[Goal]:
    full, window = f"full-{kind}", f"window-256-{kind}"
    found = [
        Goal(
            f"{kind}: a sweep over all rows ÷ gathering them",
            Value(full, NAME, "p50_ms"),
            (Value(full, FLOOR, "p50_ms"),),
            2,
            1.3,
            "lower",
        ),
        Goal(f"{kind}: 256 puts, propagated and decided, ms", Value(window, NAME, "p50_ms"), (), 5, 2, "lower"),
    ]
    for size in SIZES:
        shape = f"window-{size}-{kind}"
        peer, mine = Value(shape, CPU, "p50_ms"), (Value(shape, NAME, "p50_ms"),)
        limits = (10, 30) if size == 256 else (None, None)
        found.append(Goal(f"{kind}: {size:,} put{'s' * (size > 1)}, {CPU} ÷ ours", peer, mine, *limits))
    return found


GOALS = [goal for kind in KINDS for goal in _goals(kind)]


class Measured:
    """One kind of graph on one device.

    Args:
        graph: settled; it goes on from window to window.
        device: its own, on whose current stream everything runs.
        repeats: how often.
        version: of all that has been said to it, at the most.
        now_ms: when agents were told last, at the latest.
    """

    def __init__(
        self, graph: ContextGraph, device: Device, repeats: Repeats, version: int = 1, now_ms: int = 1
    ) -> None:
        self.graph = graph
        self._device = device
        self._repeats = repeats
        self._windows = Windows(graph.slots.used, device.place, version)
        self.now_ms = now_ms

    def full(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
        """Rounds of sweeps over all rows, and of the fastest floor, whose name comes last."""
        name, floor = min(
            context_floor.floors(self.graph).items(),
            key=lambda one: seconds_each(one[1], self._kind, self._repeats.least_s),
        )
        mine, theirs = [], []
        for _ in range(self._repeats.rounds):
            full_step(self.graph)
            mine.append(self._round(lambda: full_step(self.graph, again=True)))
            theirs.append(self._round(floor))
        theirs[0]["mismatches"] += context_floor.misread(self.graph)
        return mine, theirs, name

    def window(self, rows: int) -> dict[str, Any]:
        """Medians over fresh windows: the puts, then propagation and who is told, ms; what one of them did."""
        put_ms: list[float] = []
        rest_ms: list[float] = []
        done: list[Settled] = []
        told: list[int] = []
        start = time.perf_counter()
        while len(done) < self._repeats.windows and (not done or time.perf_counter() - start < self._repeats.most_s):
            window = self._windows.next(rows)
            self._device.synchronize()
            begin = time.perf_counter()
            window.put(self.graph)
            self._device.synchronize()
            middle = time.perf_counter()
            settled = settle(self.graph, EPSILON)
            notices = due(self.graph, self.now_ms)
            self._device.synchronize()
            self.now_ms += 1
            put_ms.append(1e3 * (middle - begin))
            rest_ms.append(1e3 * (time.perf_counter() - middle))
            done.append(settled)
            told.append(len(notices.slots))
        warm = slice(len(done) > 1, None)
        middles = {
            name: statistics.median(one[place] for one in done[warm]) for place, name in enumerate(Settled._fields)
        }
        ordered = sorted(rest_ms[warm])
        return record.sample(
            wrong=sum(one.residual > EPSILON for one in done),
            p50_ms=round(statistics.median(ordered), 4),
            p99_ms=round(record.quantile(ordered, 0.99), 4),
            put_ms=round(statistics.median(put_ms[warm]), 4),
            windows=len(ordered),
            told=statistics.median(told[warm]),
            **{name: middles[name] for name in ("pushes", "fulls", "edges")},
        )

    def push_cost(self) -> float:
        """What an edge costs that is pushed, in such of a sweep over all rows."""
        graph, used = self.graph, self.graph.slots.used
        full_s = seconds_each(lambda: full_step(graph), self._kind, self._repeats.least_s) / (used + len(graph.edges))
        graph.refresh()
        settle(graph, EPSILON)
        found = []
        for _ in range(self._repeats.pushes + 1):
            window = self._windows.next(max(1, used // CALIBRATED))
            window.put(graph)
            self._device.synchronize()
            begin = time.perf_counter()
            done = push(graph, EPSILON, NO_LIMIT, 1)
            self._device.synchronize()
            found.append((time.perf_counter() - begin) / (len(window.agents) + done.edges))
            graph.refresh()
            settle(graph, EPSILON)
        return round(statistics.median(found[1:]) / full_s, 2)

    def truth(self) -> float:
        """How much longer than ε a row of R is when it is computed anew; not above 0 but for rounding."""
        self.graph.refresh()
        return float(self.graph.table.norm[: self.graph.slots.used].max()) - EPSILON

    @property
    def _kind(self) -> str:
        return "cuda" if self._device.is_cuda else "cpu"

    def _round(self, work: Callable[[], Any]) -> dict[str, Any]:
        if self._repeats.least_s:
            return record.sample(p50_ms=round(1e3 * seconds_each(work, self._kind, self._repeats.least_s), 4))
        begin = time.perf_counter()
        work()
        return record.sample(p50_ms=round(1e3 * (time.perf_counter() - begin), 4))


class Run:
    """One run.

    Attributes:
        samples, shapes: as `record.record` has them.
        more: what else belongs into the record.
    """

    def __init__(self, device: Device, agents: int, repeats: Repeats) -> None:
        self.samples: Samples = {}
        self.shapes: dict[str, Any] = {}
        self.more: dict[str, Any] = {"agents": agents, "degree": DEGREE, "push_cost": {}, "floor": {}, "seconds": {}}
        self._device = device
        self._agents = agents
        self._repeats = repeats
        self._start = time.perf_counter()

    def measure(self, kind: str) -> None:
        """One kind of graph: its sweeps, its windows, and the same on the CPU."""
        graph = drawn(kind, self._agents, ALPHA, self._device.place)
        self._lap(f"{kind} drawn")
        begin = settle(graph, EPSILON)
        everybody = np.arange(self._agents)
        graph.watch(everybody, np.full(self._agents, THRESHOLD, np.float32), np.zeros_like(everybody))
        due(graph, 0)
        self._lap(f"{kind} settled by {begin.pushes} pushes and {begin.fulls} fulls")
        mine = Measured(graph, self._device, self._repeats)
        full, floor, self.more["floor"][kind] = mine.full()
        self._add(f"full-{kind}", f"{kind}, a sweep over all rows", {NAME: full, FLOOR: floor})
        settle(graph, EPSILON)
        for size in SIZES:
            self._add(
                self._window(size, kind),
                f"{kind}, windows of {size:,} put{'s' * (size > 1)}",
                {NAME: [mine.window(size)]},
            )
        self.more["push_cost"][kind] = {"used": PUSH_COST, "measured": mine.push_cost()}
        self._lap(f"{kind} measured")
        if self._device.is_cuda:
            self._beside_cpu(kind, mine)
        excess = mine.truth()
        self.samples[f"full-{kind}"][NAME][0]["mismatches"] += int(excess > ROUNDING)
        self.more[f"residual_beyond_epsilon_{kind}"] = excess

    def _beside_cpu(self, kind: str, mine: Measured) -> None:
        import torch

        cpu = Device("cpu", self._device.threads)
        mine.graph.edges.heard.compact()  # which the CPU's sweep over all rows would begin with
        peer = Measured(copied(mine.graph, cpu.place), cpu, CPU_REPEATS, 2 * LATER, mine.now_ms)
        self._lap(f"{kind} copied to the CPU")
        # The same window on both: neither is further than the bound from what is sought.
        window = Windows(self._agents, self._device.place, LATER).next(256)
        for graph, said in ((mine.graph, window), (peer.graph, window.to(cpu.place))):
            said.put(graph)
            settle(graph, EPSILON)
        used = self._agents
        parts = (torch.split(one.graph.table.blended[:used], 1 << 16) for one in (mine, peer))
        apart = max(
            float(torch.linalg.vector_norm(one - other.to(one.device), dim=1).max())
            for one, other in zip(*parts, strict=True)
        )
        self.more[f"apart_{kind}"] = apart
        self.samples[f"full-{kind}"][NAME][0]["mismatches"] += int(apart > 2 * EPSILON / ALPHA + ROUNDING)
        due(peer.graph, mine.now_ms)
        full = [peer._round(lambda: full_step(peer.graph)) for _ in range(CPU_REPEATS.rounds)]
        self._add(f"full-{kind}", "", {CPU: full})
        settle(peer.graph, EPSILON)
        for size in SIZES:
            self._add(self._window(size, kind), "", {CPU: [peer.window(size)]})
        self._lap(f"{kind} measured on the CPU")

    def _window(self, size: int, kind: str) -> str:
        return f"window-{size}-{kind}"

    def _add(self, shape: str, title: str, found: dict[str, list[dict[str, Any]]]) -> None:
        if title:
            self.shapes[shape] = {"title": f"{self._agents:,} agents, {title}"}
        self.samples.setdefault(shape, {}).update(found)

    def _lap(self, what: str) -> None:
        self._device.synchronize()
        passed = time.perf_counter() - self._start
        self.more["seconds"][what] = round(passed, 1)
        print(f"{passed:6.1f} s  {what}", file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> str:
    """The shapes as text."""
    form = "{:<26}{:<20}{:>11}{:>11}{:>9}{:>8}{:>7}{:>12}{:>9}{:>8}"
    lines = [form.format("", "", "p50 ms", "p99 ms", "put ms", "pushes", "fulls", "edges", "told", "faults")]
    for shape, by in result["samples"].items():
        for name, rounds in by.items():
            p50 = statistics.median(one["p50_ms"] for one in rounds)
            cells = [
                "—" if (value := rounds[0].get(figure)) is None else f"{value:,.{digits}f}"
                for figure, digits in (
                    ("p99_ms", 3),
                    ("put_ms", 3),
                    ("pushes", 0),
                    ("fulls", 0),
                    ("edges", 0),
                    ("told", 0),
                )
            ]
            lines.append(form.format(shape, name, f"{p50:,.3f}", *cells, sum(one["mismatches"] for one in rounds)))
    for kind, cost in result["push_cost"].items():
        lines.append(
            f"{kind}: floor with {result['floor'][kind]}; PUSH_COST is {cost['used']}, measured {cost['measured']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_maths", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--agents", type=int, default=1_000_000, help="of a graph (default 1,000,000)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args(arguments)
    device = open_device("cuda:0" if options.device == "cuda" else "cpu", len(os.sched_getaffinity(0)))
    device.open()
    run = Run(device, options.agents, DEVICE_REPEATS if device.is_cuda else CPU_REPEATS)
    for kind in KINDS:
        with device.stream():
            run.measure(kind)
        gc.collect()
        if device.is_cuda:
            import torch

            torch.cuda.empty_cache()
    result = record.record(
        "context_maths",
        run.samples,
        baseline=NAME,
        shapes=run.shapes,
        distributions=("torch", "numpy", "cupy-cuda13x", "cupy-cuda12x"),
        skipped={} if device.is_cuda else {CPU: "it is what runs"},
    )
    result |= run.more | {"device": options.device, "gpu": record.gpu(options.device)}
    result["figures"] = goals.judge(GOALS, run.samples)
    print(table(result) + "\n\n" + goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

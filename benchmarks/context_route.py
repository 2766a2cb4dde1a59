"""Whom a message is for: `python -m benchmarks.context_route [--device cuda] [--agents N] [--rounds N] [--json OUT]`.

The 16 best of many agents, by what they know themselves and by what has reached them, for messages that come together;
by the cosine, beside torch, which multiplies, masks and sorts, and Faiss where it is installed. Each call has messages
of its own and ends when its answer is in host memory. The peers know the lengths of contexts before; ours finds them in
each call.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from aikoryu.gpu.context.graph import ContextGraph
from aikoryu.gpu.context.route import prepare, route
from aikoryu.gpu.device import Device, open_device
from benchmarks import goals, record
from benchmarks.goals import Goal, Value
from benchmarks.ours import NAME

if TYPE_CHECKING:
    from torch import Tensor

K = 16
WIDTH = 384
NEEDS = 8  # capabilities, of which a message needs one and an agent has half
CENTRES = 64  # of agents that know much the same
LOAD_WEIGHT = 0.1
PUT_AT_ONCE = 1 << 16
ROUND_S, MOST_CALLS = 0.1, 10  # a round ends when either is reached
CHECKED = 8  # messages of each shape, against float64
ERROR = 1e-5  # of a cosine, in float32
TORCH, FAISS = "torch", "faiss"

Search: TypeAlias = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""Agents and scores, (b, K) each, of (b, d) messages and (b,) needs."""


@dataclass(frozen=True)
class Shape:
    """What is asked.

    Attributes:
        what: contexts that messages are compared with.
        messages: of a call.
        masked: messages need something.
        clustered: agents lie about a few centres, and messages near them.
    """

    what: Literal["own", "blended"]
    messages: int
    masked: bool = False
    clustered: bool = False

    @property
    def name(self) -> str:
        """Of the record."""
        return f"{self.what}-{self.messages}{'-masked' * self.masked}{'-clustered' * self.clustered}"

    @property
    def title(self) -> str:
        """For people."""
        kind = "own contexts, bf16" if self.what == "own" else "blended contexts, float32"
        many = f"{self.messages} message{'s' * (self.messages > 1)}"
        return f"{many}, {kind}{', masked' * self.masked}{', in clusters' * self.clustered}"


def shapes() -> Iterator[Shape]:
    """Those that are measured, the clustered ones last."""
    for what in ("own", "blended"):
        for masked in (False, True):
            for messages in (1, 64, 256):
                yield Shape(what, messages, masked)
    yield Shape("own", 64, clustered=True)
    yield Shape("blended", 64, clustered=True)


def aims() -> Iterator[Goal]:
    """Figures of a million agents on one H100."""
    for what, goal, aim in (("own", 2.0, 0.5), ("blended", None, None)):
        for masked in (False, True):
            shape = Shape(what, 64, masked)  # type: ignore[arg-type]
            ours = Value(shape.name, NAME, "p50_ms")
            yield Goal(f"{shape.title}: ms", ours, (), goal, aim, "lower")
            yield Goal(
                f"{shape.title}: MiB beside agents and answer",
                ours._replace(figure="temporary_mib"),
                (),
                64,
                None,
                "lower",
            )
            yield Goal(
                f"{shape.title}: torch's time ÷ ours",
                Value(shape.name, TORCH, "p50_ms"),
                (ours,),
            )
            yield Goal(f"{shape.title}: Faiss's time ÷ ours", Value(shape.name, FAISS, "p50_ms"), (ours,))


class Crowd:
    """Seeded agents of a graph.

    Args:
        agents: how many.
        clustered: see `Shape`.
        device: where they are.
    """

    def __init__(self, agents: int, clustered: bool, device: Device) -> None:
        import torch

        self.place = device.place
        self.clustered = clustered
        self._draw = torch.Generator(device.place).manual_seed(agents)
        dice = np.random.default_rng(agents)
        self._centres = self._normal(CENTRES)
        self.graph = ContextGraph(WIDTH, 0.3, device.place)
        for first in range(0, agents, PUT_AT_ONCE):
            numbers = np.arange(first, min(first + PUT_AT_ONCE, agents))
            ones = np.ones(len(numbers), np.uint64)
            said = (
                dice.integers(1 << NEEDS, size=len(numbers), dtype=np.uint64),
                dice.random(len(numbers), np.float32),
            )
            self.graph.put(numbers, self.vectors(len(numbers)), ones, ones, said)
            # How they came to be blended does not matter here.
            self.graph.table.blended[first : first + len(numbers)] = self.vectors(len(numbers))

    def vectors(self, count: int) -> Tensor:
        """(count, d) float32, of length 0.5 to 1.5."""
        import torch

        found = self._normal(count)
        if self.clustered:
            which = torch.randint(CENTRES, (count,), generator=self._draw, device=self.place)
            found = 0.3 * found + self._centres[which]
        sizes = 0.5 + torch.rand(count, 1, generator=self._draw, device=self.place)
        return sizes * torch.nn.functional.normalize(found)

    def needs(self, shape: Shape) -> Tensor:
        """(b,) int64, one capability each, or none."""
        import torch

        if not shape.masked:
            return torch.zeros(shape.messages, dtype=torch.int64, device=self.place)
        return 1 << torch.randint(NEEDS, (shape.messages,), generator=self._draw, device=self.place)

    def contexts(self, shape: Shape) -> Tensor:
        """(n, d), those that messages are compared with."""
        table, used = self.graph.table, self.graph.slots.used
        return (table.own if shape.what == "own" else table.blended)[:used]

    def _normal(self, count: int) -> Tensor:
        import torch

        return torch.randn(count, WIDTH, generator=self._draw, device=self.place)


def ours(crowd: Crowd, shape: Shape) -> Search:
    """Aikoryu."""
    return lambda queries, needs: route(
        crowd.graph, queries, needs, K, LOAD_WEIGHT if shape.masked else 0.0, shape.what, lambda: None
    )


def torch_alone(crowd: Crowd, shape: Shape) -> Search:
    """The peer: all scores at once, those of own contexts rounded to bf16 on a GPU; a CPU is slow with bf16."""
    import torch

    contexts, table, used = crowd.contexts(shape), crowd.graph.table, crowd.graph.slots.used
    if not contexts.is_cuda:
        contexts = contexts.float()
    scale = torch.linalg.vector_norm(contexts, dim=1).reciprocal()

    def search(queries: Tensor, needs: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.nn.functional.normalize(queries).to(contexts.dtype) @ contexts.T
        scores *= scale
        if shape.masked:
            scores -= LOAD_WEIGHT * table.load[:used]
            scores.masked_fill_((needs[:, None] & ~table.capabilities[:used]) != 0, float("-inf"))
        best = scores.topk(K, 1)
        return best.indices, best.values

    return search


def faiss_alone(crowd: Crowd, shape: Shape) -> Search | None:
    """A flat index, on the CPU and without masks; None where it is not installed."""
    import torch

    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        return None
    index = faiss.IndexFlatIP(WIDTH)
    index.add(torch.nn.functional.normalize(crowd.contexts(shape).float().cpu()).numpy())

    def search(queries: Tensor, needs: Tensor) -> tuple[Tensor, Tensor]:
        scores, numbers = index.search(torch.nn.functional.normalize(queries.cpu()).numpy(), K)
        return torch.from_numpy(numbers), torch.from_numpy(scores)

    return search


def measure(
    crowd: Crowd, shape: Shape, searches: dict[str, Search], device: Device, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Samples by contestant, who take turns."""
    wrong = _wrong(crowd, shape, searches[NAME])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in searches}
    for number in range(rounds):
        for name, search in searches.items():
            figures = _timed(crowd, shape, search, device)
            found[name].append(record.sample(wrong if name == NAME and not number else 0, **figures))
    return found


def _timed(crowd: Crowd, shape: Shape, search: Search, device: Device) -> dict[str, float]:
    import torch

    def call() -> float:
        queries, needs = crowd.vectors(shape.messages), crowd.needs(shape)
        device.synchronize()
        start = time.perf_counter()
        for tensor in search(queries, needs):
            tensor.cpu()
        device.synchronize()
        return time.perf_counter() - start

    call()  # what is compiled, and the pool's memory
    figures = {}
    if device.is_cuda:
        queries, needs = crowd.vectors(shape.messages), crowd.needs(shape)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer = search(queries, needs)
        answer_bytes = sum(tensor.nbytes for tensor in answer if tensor.is_cuda)
        figures["temporary_mib"] = round((torch.cuda.max_memory_allocated() - before - answer_bytes) / 2**20, 1)
    times: list[float] = []
    while len(times) < MOST_CALLS and (sum(times) < ROUND_S or not times):
        times.append(call())
    return figures | {"p50_ms": round(statistics.median(times) * 1e3, 4)}


def _wrong(crowd: Crowd, shape: Shape, search: Search) -> int:
    """Messages whose answer is not that of float64, but for rounding."""
    import torch

    queries, needs = crowd.vectors(shape.messages), crowd.needs(shape)
    agents, scores = search(queries, needs)
    contexts, table = crowd.contexts(shape), crowd.graph.table
    some, weight = slice(CHECKED), LOAD_WEIGHT if shape.masked else 0.0
    found = []
    for first in range(0, len(contexts), PUT_AT_ONCE):
        part = slice(first, min(first + PUT_AT_ONCE, len(contexts)))
        near, far = (torch.nn.functional.normalize(each.double()) for each in (queries[some], contexts[part]))
        exact = near @ far.T - weight * table.load[part].double()
        exact.masked_fill_((needs[some, None] & ~table.capabilities[part]) != 0, float("-inf"))
        found.append(exact)
    exact = torch.cat(found, 1)
    off = (scores[some] - exact.topk(K, 1).values).abs() > ERROR
    off |= (scores[some] - exact.gather(1, agents[some])).abs() > ERROR
    return int(off.any(1).sum())


def run(device: Device, agents: int, rounds: int) -> tuple[record.Samples, dict[str, str]]:
    """Samples by shape and contestant, and who did not run."""
    samples: record.Samples = {}
    skipped: dict[str, str] = {}
    crowd: Crowd | None = None
    for shape in shapes():
        if crowd is None or crowd.clustered != shape.clustered:
            crowd = None  # gives its memory back before the next takes as much
            crowd = Crowd(agents, shape.clustered, device)
            prepare(crowd.graph)
        searches = {NAME: ours(crowd, shape), TORCH: torch_alone(crowd, shape)}
        if not shape.masked and not shape.clustered:
            peer = faiss_alone(crowd, shape)
            if peer is None:
                skipped[FAISS] = "faiss is not installed"
            else:
                searches[FAISS] = peer
        samples[shape.name] = measure(crowd, shape, searches, device, rounds)
    return samples, skipped


def table(result: dict[str, Any]) -> str:
    """The medians as text."""
    form = "{:<58}{:>12}{:>12}{:>12}{:>12}{:>8}"
    lines = [form.format("shape", "contestant", "ms", "MiB", "× ours", "faults")]
    for shape, by in result["medians"].items():
        title = result["shapes"][shape]["title"]
        for contestant, figures in by.items():
            mib = figures.get("temporary_mib")
            cells = (f"{figures['p50_ms']:,.3f}", "—" if mib is None else f"{mib:,.1f}")
            times = f"{figures['p50_ms'] / by[NAME]['p50_ms']:.2f}"
            faults = sum(figures[kind] for kind in record.FAULTS)
            lines.append(form.format(title, contestant, *cells, times, faults))
            title = ""
    return "\n".join([*lines, *(f"skipped {name}: {reason}" for name, reason in result["skipped"].items())])


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_route", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--agents", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="in which all take turns (default 3)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    opened = open_device("cuda:0" if options.device == "cuda" else "cpu", len(os.sched_getaffinity(0)))
    opened.open()
    with opened.stream():
        samples, skipped = run(opened, options.agents, options.rounds)
    described = {shape.name: asdict(shape) | {"title": shape.title, "agents": options.agents} for shape in shapes()}
    result = record.record(
        "context_route",
        samples,
        baseline=TORCH,
        shapes=described,
        distributions=["torch", "triton", "faiss-cpu", "numpy"],
        skipped=skipped,
    )
    result["gpu"] = record.gpu(options.device)
    result["figures"] = goals.judge(list(aims()), samples)
    for shape, by in result["medians"].items():
        for contestant, figures in by.items():
            mib = [sample["temporary_mib"] for sample in samples[shape][contestant] if "temporary_mib" in sample]
            figures |= {"temporary_mib": statistics.median(mib)} if mib else {}
    print(table(result))
    print()
    print(goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

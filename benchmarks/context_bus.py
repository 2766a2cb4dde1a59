"""Context updates over NATS: `python -m benchmarks.context_bus [--device cuda] [--quick] [--json OUT]`.

Agents in several processes put, and some of them wait to be told, at more and more at once. The keeper computes on the
device, on the CPU, and on the device with a window for each update. Then a large graph is recovered from its snapshot,
and handed over while it is written to.

`python -m benchmarks.context_bus client URL GRAPH FIRST` is one of the processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

import aikoryu
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.jetstream import JetStream
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import PartitionLog
from aikoryu.bus.pipeline import Pipeline
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.snapshots import Snapshots
from aikoryu.bus.subjects import Subjects
from aikoryu.cli.up import on_embedded
from aikoryu.config import Settings, configure_logging, load
from aikoryu.gpu.child_process import ChildProcess
from aikoryu.gpu.context_host import MODULE, KeeperSpec
from benchmarks import record
from benchmarks.goals import Goal, Value, line
from benchmarks.ours import NAME
from benchmarks.processes import python

DIMENSION = 384
DEGREE = 32
P99_MS = 20.0
AT_ONCE = (1, 4, 16, 32, 64, 128, 256, 1024)
"""Agents of a process that put at the same time."""
TOLD = 4  # more of a process, each of which waits to be told what it has put before it puts again
THRESHOLD = 0.02
ROUNDS = 3  # of each step, of which medians are told
WARM_UP_S = 0.5
START_S = 120.0
HAND_OVER_S = 60.0  # `worker.drain_s` of who hands a large graph over: the next keeper reads it meanwhile
BLOCK = 1 << 16  # agents that are put at once when a graph is made

KINDS = ("device", "cpu", "alone")


def _goal(figure: str, title: str, goal: float | None, aim: float | None = None, better: Any = "higher") -> Goal:
    return Goal(title, Value("bus", NAME, figure), (), goal, aim, better)


GOALS = (
    _goal("device", f"updates/s with p99 ≤ {P99_MS:g} ms, put to told", None),
    _goal("over_cpu", "the same ÷ on the CPU, there at any p99 if it never keeps that", 2, 5),
    _goal("over_alone", "the same ÷ a window for each update, likewise", 20),
    _goal("beside_cpu", "updates/s with a p99 no longer than the CPU's at its least load ÷ the CPU's there", None),
    _goal("beside_alone", "the same beside a window for each update", None),
    _goal("recovery_s", "recovery from a snapshot, with the process's start, s", 20, None, "lower"),
    _goal("gap_s", "hand-over under load: longest time without an update, s", 2, None, "lower"),
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        agents: of the graph that is updated.
        large: of the graph that is recovered.
        processes: with agents.
        seconds: of each round of a step.
    """

    agents: int
    large: int
    processes: int
    seconds: float


SIZES = {
    "cpu": Size(100_000, 100_000, 1, 3.0),
    "cuda": Size(100_000, 1_000_000, 8, 2.0),
    "quick": Size(2000, 5000, 1, 0.5),
}


async def measure(device: str, size: Size) -> dict[str, Any]:
    """All of it."""
    place = "cuda:0" if device == "cuda" else "cpu"
    async with _bus() as settings:
        found: dict[str, Any] = {"agents": size.agents, "processes": size.processes, "steps": {}}
        for kind in KINDS:
            graph = f"bench-{kind}"
            await _seed(settings, graph, size.agents, place)
            rows = {"alone": 1}.get(kind, settings.context.window_rows)
            ours = replace(settings, context=replace(settings.context, window_rows=rows))
            async with _keeper(ours, "cpu" if kind == "cpu" else place):
                found["steps"][kind] = await _steps(settings.nats.url, graph, size)
            print(f"{kind}: {_sustained(found['steps'][kind]):,.0f} updates/s", file=sys.stderr, flush=True)
        patient = replace(settings, worker=replace(settings.worker, drain_s=HAND_OVER_S))
        found["large"] = await _large(patient, place, size.large)
    found["values"] = {**_rates(found["steps"]), **found["large"]}
    return found


def _rates(steps: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """What the steps amount to."""
    found = {kind: _sustained(each) for kind, each in steps.items()}
    for kind in ("cpu", "alone"):
        found[f"over_{kind}"] = _over(found["device"], steps[kind])
        found[f"beside_{kind}"] = _beside(steps["device"], steps[kind][0])
    return found


def _beside(mine: Sequence[dict[str, Any]], theirs: dict[str, Any]) -> float:
    rate: float = theirs["updates_per_s"]
    return round(_sustained(mine, _p99_ms(theirs)) / rate, 2)


def _over(mine: float, theirs: Sequence[dict[str, Any]]) -> float:
    return round(mine / (_sustained(theirs) or max(step["updates_per_s"] for step in theirs)), 2)


def _sustained(steps: Sequence[dict[str, Any]], limit_ms: float = P99_MS) -> float:
    """The most updates a second of which, and of whose tellings, 99 of 100 take no longer; 0 for none.

    By the median of the rounds.
    """
    return max((step["updates_per_s"] for step in steps if _p99_ms(step) <= limit_ms), default=0.0)


def _p99_ms(step: dict[str, Any]) -> float:
    """Of updates or of tellings, whichever is longer; infinite if nobody was told."""
    p99s: list[float] = [step[what].get("p99_ms", inf) for what in ("put", "told")]
    return max(p99s)


@asynccontextmanager
async def _bus() -> AsyncIterator[Settings]:
    settings = load(environ={})
    settings = replace(settings, log=replace(settings.log, level="warning"))
    configure_logging(settings.log)
    with tempfile.TemporaryDirectory() as store:
        async with EmbeddedServer(replace(settings.server, port=0, store_dir=store)) as server:
            yield on_embedded(settings, server.url)


@asynccontextmanager
async def _keeper(settings: Settings, device: str, name: str = "keeper") -> AsyncIterator[ChildProcess]:
    spec = KeeperSpec(settings, device, name)
    process = await ChildProcess.start(MODULE, spec, name, start_within_s=START_S, end_within_s=START_S)
    try:
        yield process
    finally:
        await process.end()


async def _seed(settings: Settings, graph: str, agents: int, place: str) -> None:
    """Store a random graph as a snapshot, and a log that begins with it."""
    from aikoryu.gpu.context.recovery import SnapshotMark
    from aikoryu.gpu.context.snapshot import frozen, parts
    from aikoryu.gpu.context.words import Links, Puts, Spec, Words, encode

    spec = Spec(DIMENSION)
    transport = await NatsConnection.open(ConnectOptions.of(settings.nats))
    subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
    async with JetStream(transport) as jetstream, Pipeline(transport) as pipeline:
        log = await PartitionLog.open(jetstream, subjects, f"context.{graph}")
        await log.claim(1)
        words = Words(0, Puts.none(DIMENSION), Links.none(), spec)
        epoch = await log.append(encode(words), log.last)
        state = await asyncio.to_thread(_random_state, spec, agents, epoch, place)
        snapshots = await Snapshots.open(jetstream, pipeline, subjects)
        id_ = await snapshots.put(f"context.{graph}", parts(await asyncio.to_thread(frozen, state)))
        await log.mark(msgspec.msgpack.encode(SnapshotMark(id_, epoch)), log.last)
    await transport.close()


def _random_state(spec: Any, agents: int, epoch: int, place: str) -> Any:
    """Each hears `DEGREE` others; vectors of length 1."""
    import torch

    from aikoryu.gpu.context.names import Names
    from aikoryu.gpu.context.state import GraphState
    from aikoryu.gpu.device import open_device

    device = open_device(place, 16)
    device.open()
    state = GraphState(spec, device)
    state.names = Names(f"a{number}" for number in range(agents))
    state.epoch = epoch
    dice = np.random.default_rng(agents)
    for part in np.split(np.arange(agents), range(BLOCK, agents, BLOCK)):
        ones = np.ones(len(part), np.uint64)
        vectors = torch.randn(len(part), DIMENSION, device=device.place)
        state.graph.put(part, vectors / vectors.norm(dim=1, keepdim=True), ones, ones)
        targets = part.repeat(DEGREE)
        sources = (targets + dice.integers(1, agents, len(targets))) % agents
        ones = np.ones(len(targets), np.uint64)
        state.graph.link(sources, targets, ones.astype(np.float32), ones, ones)
    return state


async def _steps(url: str, graph: str, size: Size) -> list[dict[str, Any]]:
    """The processes put at more and more at once, until it takes too long."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(python("benchmarks.context_bus", "client", url, graph, str(number)))
            for number in range(size.processes)
        ]
        found = []
        for at_once in AT_ONCE:
            rounds = [await _round(clients, at_once, size) for _ in range(ROUNDS)]
            found.append({"at_once": (at_once + TOLD) * size.processes, **_medians(rounds), "rounds": rounds})
            if found[-1]["put"]["p99_ms"] > 4 * P99_MS:
                break
    return found


async def _round(clients: Sequence[asyncio.subprocess.Process], at_once: int, size: Size) -> dict[str, Any]:
    before = _cpu_s()
    told = await asyncio.gather(*(_ask(client, at_once, size) for client in clients))
    used, stolen = (after - was for after, was in zip(_cpu_s(), before, strict=True))
    puts, tellings = ([latency for each in told for latency in each[what]] for what in ("put", "told"))
    return {
        "updates_per_s": round(len(puts) / size.seconds, 1),
        "put": record.latency_ms(puts),
        "told": record.latency_ms(tellings),
        "stolen": round(stolen / (used + stolen), 4) if used else 0.0,
    }


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure."""
    found: dict[str, Any] = {
        name: statistics.median(one[name] for one in rounds) for name in ("updates_per_s", "stolen")
    }
    for what in ("put", "told"):
        names = set.intersection(*(set(one[what]) for one in rounds))
        found[what] = {name: statistics.median(one[what][name] for one in rounds) for name in sorted(names)}
    return found


def _cpu_s() -> tuple[float, float]:
    """What this machine's cores have worked, and what a hypervisor gave to others when they would have, s."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, stolen = ticks
    second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / second, stolen / second


async def _ask(client: asyncio.subprocess.Process, at_once: int, size: Size) -> dict[str, list[float]]:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{at_once} {size.seconds} {size.agents}\n".encode())
    found: dict[str, list[float]] = json.loads(await client.stdout.readline())
    return found


async def client_process(url: str, graph: str, number: int) -> None:
    """One process of agents: for each line, so many at once, seconds and agents there are, its latencies."""
    vectors = np.random.default_rng(number).standard_normal((4096, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with aikoryu.connect(url) as bus:
        context = bus.context(graph)
        await context.get("a0", timeout_s=START_S)
        print("ready", flush=True)
        while asked := await reader.readline():
            at_once, seconds, agents = asked.split()
            print(
                json.dumps(await _put_all(context, number, int(at_once), float(seconds), int(agents), vectors)),
                flush=True,
            )


async def _put_all(
    context: Any, number: int, at_once: int, seconds: float, agents: int, vectors: np.ndarray[Any, Any]
) -> dict[str, list[float]]:
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds
    found: dict[str, list[float]] = {"put": [], "told": []}
    dice = np.random.default_rng((number, at_once))
    mine = [f"a{one}" for one in dice.choice(agents, at_once + TOLD, replace=False)]

    async def putting(agent: str, turn: int) -> None:
        while (asked := time.perf_counter()) < end:
            turn += 1
            await context.put(agent, vectors[turn % len(vectors)])
            if begin <= asked:
                found["put"].append(time.perf_counter() - asked)

    async def waiting(agent: str, turn: int) -> None:
        async with aclosing(context.watch(agent, THRESHOLD)) as changes:
            await anext(changes)  # what holds now
            while (asked := time.perf_counter()) < end:
                turn += 1
                telling = asyncio.ensure_future(anext(changes))  # it waits before anything has moved
                epoch = (await context.put(agent, vectors[turn % len(vectors)])).epoch
                done = time.perf_counter()
                while (await telling).epoch < epoch:
                    telling = asyncio.ensure_future(anext(changes))
                if begin <= asked:
                    found["put"].append(done - asked)
                    found["told"].append(time.perf_counter() - asked)

    firsts = dice.integers(len(vectors), size=len(mine)).tolist()
    kinds = [putting] * at_once + [waiting] * TOLD
    await asyncio.gather(*(kind(agent, first) for kind, agent, first in zip(kinds, mine, firsts, strict=True)))
    return found


async def _large(settings: Settings, place: str, agents: int) -> dict[str, float]:
    """Recover a large graph, then hand it over to another process while it is written to."""
    await _seed(settings, "large", agents, place)
    async with aikoryu.connect(settings.nats.url) as bus:
        began = time.perf_counter()
        async with _keeper(settings, place, "first") as first:
            context = bus.context("large")
            await context.get("a0", timeout_s=START_S)
            recovery_s = time.perf_counter() - began
            async with _keeper(settings, place, "second"):
                ending = asyncio.create_task(first.end())
                gaps: list[float] = []
                vectors = np.random.default_rng(1).standard_normal((256, DIMENSION)).astype(np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                while not ending.done():
                    asked = time.perf_counter()
                    await context.put(f"a{len(gaps) % agents}", vectors[len(gaps) % 256], timeout_s=START_S)
                    gaps.append(time.perf_counter() - asked)
    return {
        "agents": agents,
        "recovery_s": round(recovery_s, 2),
        "gap_s": round(max(gaps), 3),
        "put_p50_ms": round(1000 * statistics.median(gaps), 3),
        "moving_s": round(sum(gaps), 2),
    }


def table(found: dict[str, Any]) -> str:
    """The steps as text."""
    form = "{:<10}{:>10}{:>14}{:>12}{:>12}{:>13}{:>13}"
    lines = [form.format("keeper", "at once", "updates/s", "put p50", "put p99", "told p50", "told p99")]
    for kind, steps in found["steps"].items():
        for step in steps:
            times = (
                f"{step[what].get(name, float('nan')):.2f} ms"
                for what in ("put", "told")
                for name in ("p50_ms", "p99_ms")
            )
            lines.append(form.format(kind, step["at_once"], f"{step['updates_per_s']:,.0f}", *times))
    large = found["large"]
    lines.append(
        f"{large['agents']:,} agents: recovered in {large['recovery_s']} s, handed over in {large['moving_s']} s, the "
        f"longest put meanwhile {large['gap_s']} s"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write the record; or be one of the processes."""
    if sys.argv[1:2] == ["client"]:
        url, graph, number = sys.argv[2:]
        uvloop.run(client_process(url, graph, int(number)))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_bus", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    parser.add_argument("--quick", action="store_true", help="small graphs, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    result = record.about("context_bus", ["torch", "numpy", "nats-py"]) | {"gpu": record.gpu(options.device)}
    found = uvloop.run(measure(options.device, SIZES["quick" if options.quick else options.device]))
    values = found.pop("values")
    # On the CPU the device's keeper is the CPU's.
    goals = [goal for goal in GOALS if options.device == "cuda" or not goal.mine.figure.endswith("_cpu")]
    figures = [line(goal, values[goal.mine.figure]) for goal in goals]
    result |= {"device": options.device, **found, "figures": figures}
    print(table(found))
    for one in figures:
        print(f"{one['title']:<70}{one['got']!s:>14}  {one['verdict'] or ''}")
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()

"""Metrics of context graphs: what owners count, what is told of it, and what Prometheus gets."""

from __future__ import annotations

import asyncio
import math
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aikoryu.bus.columns import Values
from aikoryu.bus.discovery import KEEPERS, discover
from aikoryu.bus.frames import encode
from aikoryu.gpu import context_figures
from aikoryu.gpu import worker as workers
from aikoryu.gpu.context.keepers import Keepers
from aikoryu.gpu.context.propagate import Settled
from aikoryu.gpu.context_figures import BUCKETS_S, GraphFigures, HostFigures, KeeperFigures, Tally, figures_of
from aikoryu.gpu.context_metrics import ContextMetrics
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

from .context_kept import WAIT_S, Kept, Latch, drawn, frame_of, keeper, puts, until

Samples = dict[tuple[str, ...], float]
"""By name and the labels' values, in the order of their names: device, graph, kind, le."""

TEAM = GraphFigures("team", 2, 30, 5, 1, 70, 2.25, [1, 0, 1] + [0] * 10, 0.004, 0.0005, 9, 3, 4)
EMPTY = GraphFigures("empty", 0, 0, 0, 0, 0, None, [0] * 13, 0.0, None, 1, 0, 0)


def samples(text: str) -> Samples:
    """Every sample of an exposition, each once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found, "Prometheus would take nothing"
            found[key] = sample.value
    return found


def exposed(*hosts: HostFigures) -> Samples:
    registry = CollectorRegistry()
    registry.register(ContextMetrics(lambda: hosts))
    return samples(generate_latest(registry).decode())


# --- what is counted -------------------------------------------------------------------------------------------------


def test_a_tally_adds_up() -> None:
    tally = Tally()
    assert tally.push_cost is None
    tally.add(3, Settled(2, 0, 10, 1e-3, 2.0), 0.001)
    tally.add(4, Settled(1, 1, 20, 1e-3, 5.0), 0.0011)
    tally.add(0, Settled(0, 0, 0, 0.0, 5.0), 60.0)
    assert (tally.windows, tally.rows, tally.pushes, tally.fulls, tally.swept_edges) == (3, 7, 3, 1, 30)
    assert tally.push_cost == 5.0
    assert tally.waits == [1, 1] + [0] * (len(BUCKETS_S) - 2) + [1]
    assert tally.waited_s == pytest.approx(60.0021)


def owner(name: str, rows: int) -> Any:
    """What stands in for a graph's owner."""
    tally = Tally()
    tally.add(rows, Settled(0, 0, 0, 0.0, 2.0), 0.0)
    return SimpleNamespace(
        name=name, tally=tally, state=SimpleNamespace(residual=math.nan, epoch=1), waiting_rows=0, watcher_count=0
    )


def test_graphs_that_most_was_said_in_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_figures, "MOST_TOLD", 2)
    told = figures_of("cpu", [owner("b", 5), owner("c", 1), owner("a", 7)])
    assert (told.device, told.graphs) == ("cpu", 3)
    assert [graph.name for graph in told.told] == ["a", "b"]


def test_what_is_no_number_goes_over_the_pipe() -> None:
    line = msgspec.json.encode(figures_of("cpu", [owner("a", 7)]))
    (graph,) = msgspec.json.decode(line, type=KeeperFigures).told
    assert graph.residual is None
    assert graph.rows == 7


def test_a_line_is_bounded() -> None:
    most = 1 << 63
    graph = GraphFigures("g" * 64, most, most, most, most, most, 1 / 3, [most] * 13, 1e9 / 3, 1 / 3, most, most, most)
    keeper = KeeperFigures("cuda:0", most, [graph] * context_figures.MOST_TOLD)
    assert len(msgspec.json.encode([HostFigures({}, [keeper] * 3)])) < 1 << 18


# --- what Prometheus gets --------------------------------------------------------------------------------------------


def test_every_figure_is_exposed() -> None:
    found = exposed(HostFigures({"cuda:0": False, "cpu": True}, [KeeperFigures("cpu", 5, [TEAM])]))
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    buckets = dict(zip(bounds, [1.0, 1.0] + [2.0] * 11, strict=True))
    expected: Samples = {
        ("keeper_up", "cuda:0"): 0,
        ("keeper_up", "cpu"): 1,
        ("graphs", "cpu"): 5,
        ("graphs_left_out", "cpu"): 4,
        ("windows_total", "cpu", "team"): 2,
        ("rows_total", "cpu", "team"): 30,
        ("sweeps_total", "cpu", "team", "push"): 5,
        ("sweeps_total", "cpu", "team", "full"): 1,
        ("swept_edges_total", "cpu", "team"): 70,
        ("push_cost", "cpu", "team"): 2.25,
        ("residual", "cpu", "team"): 0.0005,
        ("epoch", "cpu", "team"): 9,
        ("waiting_rows", "cpu", "team"): 3,
        ("watchers", "cpu", "team"): 4,
        ("window_seconds_count", "cpu", "team"): 2,
        ("window_seconds_sum", "cpu", "team"): 0.004,
    }
    expected |= {("window_seconds_bucket", "cpu", "team", bound): count for bound, count in buckets.items()}
    assert found == {(f"aikoryu_context_{name}", *labels): value for (name, *labels), value in expected.items()}


def test_what_is_not_known_yet_is_left_out() -> None:
    found = exposed(HostFigures({"cpu": True}, [KeeperFigures("cpu", 1, [EMPTY])]))
    assert not {name for name, *_ in found} & {"aikoryu_context_push_cost", "aikoryu_context_residual"}
    assert found["aikoryu_context_epoch", "cpu", "empty"] == 1
    assert exposed(HostFigures({"cpu": False}, [])) == {("aikoryu_context_keeper_up", "cpu"): 0}
    assert exposed() == {}


def test_graphs_on_their_way_between_processes_are_told_once_a_device() -> None:
    later = msgspec.structs.replace(TEAM, windows=7)
    told = [KeeperFigures("cpu", 1, [TEAM]), KeeperFigures("cpu", 1, [later]), KeeperFigures("cuda:0", 1, [TEAM])]
    found = exposed(HostFigures({"cuda:0": True}, told))
    assert found["aikoryu_context_windows_total", "cpu", "team"] == 7
    assert found["aikoryu_context_windows_total", "cuda:0", "team"] == 2
    assert found["aikoryu_context_graphs", "cpu"] == 2


# --- an owner, and a worker ------------------------------------------------------------------------------------------


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    async with Kept() as kept:
        yield kept


async def test_an_owner_counts_what_it_does(kept: Kept) -> None:
    keepers: Keepers = await kept.keepers()
    team = (await kept.bus()).context("team", dimension=4)
    assert keepers.figures == KeeperFigures("cpu", 0, [])
    await team.put_many([*"abcde"], np.stack([*drawn("abcde", 4, 1).values()]))
    await team.link_many([*"abcd"], [*"bcde"])
    said = await team.put("a", np.ones(4, np.float32))
    (graph,) = keepers.figures.told
    assert (graph.name, graph.windows, graph.rows, graph.epoch) == ("team", 3, 10, said.epoch)
    assert graph.push_cost is not None
    assert graph.residual == keeper(keepers).state.residual
    assert 0 < graph.waited_s < WAIT_S
    assert sum(graph.waits) == 3
    stats = await team.stats()
    assert (stats["windows"], stats["rows"]) == (3, 10)
    sweeps = (graph.pushes, graph.fulls, graph.swept_edges)
    assert sweeps == (stats["pushes"], stats["fulls"], stats["edges_pushed"])
    assert min(sweeps) > 0


async def test_what_waits_is_told(kept: Kept) -> None:
    keepers = await kept.keepers()
    await (await kept.bus()).context("team", dimension=4).put("a", np.ones(4, np.float32))
    wire = await kept.wire()
    far: dict[str, Values] = {
        "agent": [*"ab"],
        "threshold": np.full(2, 1e6, np.float32),
        "min_interval_ms": np.zeros(2, np.uint32),
        "cursor": np.zeros(2, np.uint64),
    }
    await wire.send("context.watch.team", encode(frame_of(far)))
    await until(lambda: keepers.figures.told[0].watchers == 2)
    latch, before = Latch(keepers), keeper(keepers).epoch
    saying = [asyncio.create_task(wire.ask("context.put.team", puts(["b"], np.ones((1, 4)))))]
    await until(lambda: keeper(keepers).epoch > before)  # the next window waits until this one is applied
    saying.append(asyncio.create_task(wire.ask("context.put.team", puts([*"cde"], np.ones((3, 4))))))
    await until(lambda: keepers.figures.told[0].waiting_rows == 3)
    latch.release()
    await asyncio.gather(*saying)
    (graph,) = keepers.figures.told
    assert (graph.rows, graph.waiting_rows, graph.watchers) == (5, 0, 2)


async def test_a_worker_exposes_what_its_keeper_tells(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        workers, "own_engines", lambda given, *_: [InlineEngine(load(catalogue_of(given)), slab_bytes=1 << 20)]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker_settings = replace(kept.settings.worker, device="cpu", metrics_port=port)
    models = replace(kept.settings.models, embed=())
    connection = await kept.connect()
    worker = Worker(connection, replace(kept.settings, worker=worker_settings, models=models))
    found: Samples = {}

    def fetch() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            found.clear()
            found.update(samples(response.read().decode()))

    async def until_told(rows: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while found.get(("aikoryu_context_rows_total", "cpu", "team")) != rows:
                await asyncio.sleep(0.05)
                await asyncio.to_thread(fetch)

    await worker.start()
    try:
        team = (await kept.bus()).context("team", dimension=4)
        await team.put_many([*"abc"], np.stack([*drawn("abc", 4, 1).values()]))
        await until_told(3)
        await team.link("a", "b")
        await until_told(4)
        (told,) = await discover(connection, 0.5, KEEPERS)
    finally:
        assert await worker.stop()
    assert found["aikoryu_context_keeper_up", "cpu"] == 1
    assert found["aikoryu_context_graphs", "cpu"] == 1
    assert found["aikoryu_context_windows_total", "cpu", "team"] == 2
    assert found["aikoryu_context_window_seconds_count", "cpu", "team"] == 2
    assert found["aikoryu_context_push_cost", "cpu", "team"] > 0
    sweeps = [found["aikoryu_context_sweeps_total", "cpu", "team", kind] for kind in ("push", "full")]
    assert sum(sweeps) > 0
    assert told["endpoints"][0]["data"]["graphs"] == ["team"]

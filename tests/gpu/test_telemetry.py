"""What is measured: every stage of every batch, and what was refused or dropped."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aikoryu.gpu import telemetry as telemetries
from aikoryu.gpu.nvml import READINGS
from aikoryu.gpu.plan import Limits, Place
from aikoryu.gpu.planner import Planner
from aikoryu.gpu.telemetry import Telemetry

StartRig = Callable[..., Awaitable[Any]]
JOBS: Any = SimpleNamespace(taken=21, stored=6, known=5, retried=4, buried=3, in_flight=2)
STAGES = ("queue", "window", "staging", "device", "reply")


def samples(rig: Any) -> dict[tuple[str, str], float]:
    """Every sample of the exposition, by name and label."""
    text = generate_latest(rig.telemetry.registry).decode()
    return {
        (sample.name, next(iter(label for name, label in sample.labels.items() if name != "le"), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }


def x(rows: int) -> Any:
    return np.zeros((rows, 2), np.float32)


async def test_every_stage_of_a_batch_is_observed_once(start_rig: StartRig) -> None:
    rig = await start_rig(Limits(max_rows=4))
    caller = await rig.caller()
    await caller.send("echo", {"x": x(10)})
    await caller.send("test.scale", {"x": x(1)})
    await rig.settle()
    found = samples(rig)
    for stage in STAGES:
        assert found[f"aikoryu_{stage}_seconds_count", "echo"] == 3
        assert found[f"aikoryu_{stage}_seconds_count", "test.scale"] == 1
        assert 0 <= found[f"aikoryu_{stage}_seconds_sum", "echo"] < 60
    assert found["aikoryu_batch_rows_count", "echo"] == 3
    assert found["aikoryu_batch_rows_sum", "echo"] == 10


async def test_figures_of_discovery_are_right(start_rig: StartRig) -> None:
    rig = await start_rig(Limits(max_rows=4))
    caller = await rig.caller()
    await caller.send("echo", {"x": x(10)})
    await rig.settle()
    telemetry = rig.telemetry
    assert (telemetry.batches, telemetry.rows, telemetry.largest) == ({"echo": 3}, {"echo": 10}, {"echo": 4})


async def test_queue_lengths_are_read_when_somebody_asks(start_rig: StartRig) -> None:
    rig = await start_rig(slots=1)
    rig.engine.hold = True
    caller = await rig.caller()
    await caller.send("echo", {"x": x(1)})
    await rig.settle()
    await caller.send("echo", {"x": x(3)})
    await caller.send("test.scale", {"x": x(2)})
    await rig.settle()
    found = samples(rig)
    gauges = ("lanes", "waiting_rows", "running_batches", "held_frames")
    assert [found[f"aikoryu_{name}", ""] for name in gauges] == [2, 5, 1, 3]
    assert found["aikoryu_waiting_bytes", ""] >= 5 * 16  # what is held is the whole payload
    rig.engine.release()
    await rig.settle()
    found = samples(rig)
    assert [found[f"aikoryu_{name}", ""] for name in gauges[1:]] == [0, 0, 0]


async def test_engine_that_is_lost_is_seen(rig: Any) -> None:
    on_ready, rig.engine.on_ready = rig.engine.on_ready, lambda: None
    assert samples(rig)["aikoryu_engine_up", "cpu"] == 1
    rig.engine.lose()
    assert samples(rig)["aikoryu_engine_up", "cpu"] == 0
    on_ready()
    found = samples(rig)
    assert (found["aikoryu_engine_up", "cpu"], found["aikoryu_engine_restarts", "cpu"]) == (1, 1)


async def test_engines_are_told_apart() -> None:
    engines: list[Any] = [
        SimpleNamespace(name=name, restarts=restarts, figures={"residents_count": count})
        for name, restarts, count in (("cpu", 3, 10.0), ("cpu-spare", 0, 20.0))
    ]
    planner = Planner(Limits(), Place("cpu", 0), Place("cpu-spare", 2))
    watched: Any = SimpleNamespace(telemetry=Telemetry())
    watched.telemetry.watch(planner, SimpleNamespace(held={}, rejected={}), engines)
    found = samples(watched)
    for metric, values in {"engine_up": (0, 1), "engine_restarts": (3, 0), "residents_count": (10, 20)}.items():
        assert (found[f"aikoryu_{metric}", "cpu"], found[f"aikoryu_{metric}", "cpu-spare"]) == values


async def test_refused_frames_are_counted_by_code(rig: Any) -> None:
    caller = await rig.caller()
    for _ in range(3):
        await caller.send("test.scale", {"z": x(1)})
    await caller.publish("echo", b"garbage")
    await rig.settle()
    found = samples(rig)
    assert found["aikoryu_frames_rejected_total", "bad_column"] == 3
    assert found["aikoryu_frames_rejected_total", "bad_frame"] == 1


async def test_rows_dropped_are_counted_by_reason(start_rig: StartRig) -> None:
    rig = await start_rig(slots=1)
    rig.engine.hold = True
    caller = await rig.caller()
    await caller.send("echo", {"x": x(1)})
    await rig.settle()
    await caller.send("echo", {"x": x(5)})
    await rig.settle()
    await caller.cancel(2, [0, 4])
    await rig.settle()
    assert samples(rig)["aikoryu_rows_dropped_total", "cancelled"] == 2


@pytest.mark.parametrize("how", ["raises", "dtype"])
async def test_batch_that_failed_is_observed_too(rig: Any, how: str) -> None:
    caller = await rig.caller()
    await caller.send("test.wrong", {"x": x(2)}, {"how": how})
    await rig.settle()
    assert samples(rig)["aikoryu_device_seconds_count", "test.wrong"] == 1


async def test_figures_of_the_engine_are_gauges(rig: Any) -> None:
    assert ("aikoryu_device_allocated_bytes", "cpu") not in samples(rig)
    rig.engine.figures = {"device_allocated_bytes": 5.0, "what_comes_later": 1.5}
    found = samples(rig)
    assert (found["aikoryu_device_allocated_bytes", "cpu"], found["aikoryu_what_comes_later", "cpu"]) == (5, 1.5)


class TestHealth:
    @pytest.fixture
    def health(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
        """What each GPU would say of itself, by device."""
        given: dict[str, dict[str, float]] = {"cuda:1": {"gpu_power_watts": 350.5}}
        monkeypatch.setattr(telemetries, "Health", lambda device: SimpleNamespace(read=lambda: given[device]))
        return given

    def watched(self, rig: Any, device: str) -> Any:
        rig.engine.name = device
        rig.telemetry = Telemetry()
        rig.telemetry.watch(rig.planner, rig.service, [rig.engine])
        return rig

    async def test_gpu_of_the_engine_is_asked(self, rig: Any, health: dict[str, dict[str, float]]) -> None:
        watched = self.watched(rig, "cuda:1")
        assert samples(watched)["aikoryu_gpu_power_watts", ""] == 350.5
        health["cuda:1"] = {"gpu_power_watts": 99.0}
        assert samples(watched)["aikoryu_gpu_power_watts", ""] == 99

    async def test_cpu_has_no_gpu_to_ask(self, rig: Any, health: dict[str, dict[str, float]]) -> None:
        assert not [name for name, _ in samples(self.watched(rig, "cpu")) if name.startswith("aikoryu_gpu")]


async def test_jobs_are_counted_by_what_became_of_them(rig: Any) -> None:
    rig.telemetry.watch_jobs(JOBS)
    told = {name: value for (name, _), value in samples(rig).items() if name.startswith("aikoryu_jobs_")}
    assert told == {
        "aikoryu_jobs_taken_total": 21,
        "aikoryu_jobs_stored_total": 6,
        "aikoryu_jobs_known_total": 5,
        "aikoryu_jobs_retried_total": 4,
        "aikoryu_jobs_dead_lettered_total": 3,
        "aikoryu_jobs_in_flight": 2,
    }


async def test_every_metric_is_documented_and_no_other(rig: Any) -> None:
    rig.telemetry.watch_connection(lambda: {"reconnects": 0})
    rig.telemetry.watch_jobs(JOBS)
    rig.telemetry.watch_contexts(list)
    rig.engine.figures = dict.fromkeys(telemetries._OF_ENGINES, 0.0)
    exposed = {
        line.split()[2] for line in generate_latest(rig.telemetry.registry).decode().splitlines() if "# TYPE" in line
    }
    exposed = {name for name in exposed if not name.endswith("_created")} | {f"aikoryu_{name}" for name in READINGS}
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(aikoryu_\w+)`", text, re.M)) == exposed

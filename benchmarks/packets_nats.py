"""Packets over NATS: a capture that several processes replay at top speed, classified by a worker on the device."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import aikoryu
from aikoryu.agents.replay import replay_capture
from aikoryu.netio.capture import open_capture
from aikoryu.netio.capture_frames import CaptureFrames
from aikoryu.netio.pacing import Plan, Speed, Unit
from benchmarks.contestant import Contestant, Served, Tally
from benchmarks.ours import DEVICE_NEEDS, NAME, serving
from benchmarks.packets_rules import load
from benchmarks.shapes import Shape
from benchmarks.workloads import Workload

MODULE = "benchmarks.packets_nats"
DEVICE, FRONTS, CAPTURE, RULES = (f"BENCH_PACKETS_{name}" for name in ("DEVICE", "FRONTS", "CAPTURE", "RULES"))
"""Variables by which load processes and the worker are told: device, number of fronts, path, and size of the rules."""

SET = "fw1"
NAMED = "bench"


def shape(processes: int) -> Shape:
    """The shape of so many processes."""
    return Shape("nats", f"a capture replayed at top speed by {processes} processes", processes=processes)


@asynccontextmanager
async def _serve() -> AsyncIterator[Served]:
    device = os.environ[DEVICE]
    settings = {"models.embed": "", "worker.device": device, "worker.fronts": int(os.environ[FRONTS])}
    async with serving(settings, measured=True) as served:
        async with aikoryu.connect(served.address) as bus:
            await bus.packets.rules.put(NAMED, load(SET, int(os.environ[RULES]))[0], timeout_s=60)
        yield served


@asynccontextmanager
async def _connect(url: str) -> AsyncIterator[Any]:
    async with aikoryu.connect(url) as bus:
        yield bus


async def _replay(clients: Sequence[Any], shape: Shape, workload: Workload, seconds: float) -> Tally:
    """Packets that were answered, as of so many seconds; the answers that come after the last request count."""
    plan = Plan(Speed(Unit.TOP), loops=0, duration_s=seconds)
    (bus,) = clients
    report = await replay_capture(bus, _packets(), "packets.classify", {"rules": NAMED}, plan)
    (tally,) = report.operations.values()
    errors = sum(tally.errors.values())
    found = Tally(rows=round(report.rows * seconds / report.seconds), answered=report.rows, errors=errors)
    found.unanswered = tally.frames - tally.answered
    found.more = {"rows_a_frame": round(report.rows / tally.frames, 1)}
    return found


@lru_cache(maxsize=1)
def _packets() -> CaptureFrames:
    return CaptureFrames(open_capture(os.environ[CAPTURE]))


CONTESTANTS = (Contestant(NAME, _serve, _connect, frozenset({"nats"}), DEVICE_NEEDS, _replay),)

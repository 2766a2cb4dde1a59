"""Aikoryu's operation `echo` on the device that `BENCH_DEVICE` names, with one, two and four fronts."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.contestant import Contestant, Served
from benchmarks.ours import DEVICE_NEEDS, connecting, fronts_name, serving
from benchmarks.ours_echo import EchoClient

DEVICE_VARIABLE = "BENCH_DEVICE"
SHAPES = {
    1: frozenset({"awaited", "many", "one", "agents"}),
    2: frozenset({"awaited", "many"}),
    4: frozenset({"awaited", "many", "agents"}),
}


def _serve(fronts: int) -> Callable[[], AbstractAsyncContextManager[Served]]:
    def serve() -> AbstractAsyncContextManager[Served]:
        device = "cpu" if os.environ[DEVICE_VARIABLE] == "cpu" else "cuda:0"
        settings = {"models.embed": "", "worker.device": device, "worker.fronts": fronts}
        return serving(settings, measured=True)

    return serve


CONTESTANTS = tuple(
    Contestant(fronts_name(fronts), _serve(fronts), connecting(EchoClient), shapes, needs=DEVICE_NEEDS)
    for fronts, shapes in SHAPES.items()
)

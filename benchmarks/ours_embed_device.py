"""Aikoryu's operation `models.embed` on the device that `BENCH_DEVICE` names, with one, two and four fronts."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.contestant import Contestant, Served
from benchmarks.ours import DEVICE_NEEDS, connecting, fronts_name, serving
from benchmarks.ours_echo_device import DEVICE_VARIABLE
from benchmarks.ours_embed import MODEL, EmbedClient

DIRECTORY_VARIABLE = "BENCH_MODELS_DIRECTORY"
SHAPES = {
    1: frozenset({"texts", "sentences", "text64"}),
    2: frozenset({"texts"}),
    4: frozenset({"texts", "sentences", "text64"}),
}


def _serve(fronts: int) -> Callable[[], AbstractAsyncContextManager[Served]]:
    def serve() -> AbstractAsyncContextManager[Served]:
        settings: dict[str, object] = {
            "models.embed": MODEL,
            "worker.device": "cpu" if os.environ[DEVICE_VARIABLE] == "cpu" else "cuda:0",
            "worker.fronts": fronts,
        }
        if directory := os.environ.get(DIRECTORY_VARIABLE):
            settings["models.directory"] = directory
        return serving(settings, measured=True)

    return serve


CONTESTANTS = tuple(
    Contestant(fronts_name(fronts), _serve(fronts), connecting(EmbedClient), shapes, needs=DEVICE_NEEDS)
    for fronts, shapes in SHAPES.items()
)

"""Aikoryu's operation `models.embed`, with as many torch threads as every contestant has."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager

import numpy as np
from numpy.typing import NDArray

from aikoryu import Bus
from benchmarks import minilm
from benchmarks.contestant import Contestant, Served
from benchmarks.ours import NAME, NEEDS, connecting, serving

MODEL = "all-MiniLM-L6-v2"

Vectors = NDArray[np.float32]


class EmbedClient:
    """Sentences, as an agent's program asks for them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def call(self, row: str) -> Vectors:
        """Embed one sentence."""
        return await self._bus.models.embed(row, model=MODEL)

    async def call_many(self, rows: list[str]) -> Vectors:
        """Embed sentences in one call."""
        return await self._bus.models.embed(rows, model=MODEL)


def serve() -> AbstractAsyncContextManager[Served]:
    """A worker with the model and `BENCH_TORCH_THREADS` threads."""
    return serving({"models.embed": MODEL, "cpu.threads": os.environ[minilm.THREADS_VARIABLE]})


CONTESTANTS = (
    Contestant(
        NAME,
        serve,
        connecting(EmbedClient),
        frozenset({"equal64", "mixed64", "one", "hangup256"}),
        needs=(*NEEDS, *minilm.NEEDS),
    ),
)

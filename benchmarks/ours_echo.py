"""Aikoryu's operation `echo`, asked row by row and by `call_many`."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from aikoryu import Bus
from benchmarks.contestant import Contestant
from benchmarks.ours import NAME, NEEDS, connecting, serving

Rows = NDArray[np.float32]

serve = partial(serving, {"models.embed": ""})


class EchoClient:
    """Rows of floats, as an agent's program asks for them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def call(self, row: Rows) -> Rows:
        """Echo one row."""
        answer: Rows = (await self._bus.call("echo", {"x": row}))["x"]
        return answer

    async def call_many(self, rows: Rows) -> Rows:
        """Echo rows in one call."""
        answer: Rows = (await self._bus.call_many("echo", {"x": rows}))["x"]
        return answer


CONTESTANTS = (
    Contestant(
        NAME,
        serve,
        connecting(EchoClient),
        frozenset({"row512", "many512", "row64", "one", "agents512"}),
        needs=NEEDS,
    ),
)

"""What becomes of an agent's context, change after change, whoever keeps the graph meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..bus.deadline import inherited_s
from ..bus.errors import Busy, Disconnected, EngineLost, Expired, NoWorker
from .context_graph import Graph, Spec, backoff_s

Vector: TypeAlias = NDArray[np.float32]

WAIT_S = 10.0  # longest that the owner holds a question that has no answer yet
AGAIN_S = 2.0  # longest between two tries while nobody keeps the graph


class Change(NamedTuple):
    """A blended context that has moved.

    Attributes:
        epoch: of the graph; the cursor that says what was seen.
        version: of what the agent itself has put last, 0 if nothing.
        vector: (d,) float32, the blended context as it is now.
        moved: how far it is from what was told before, by the Euclidean distance.
    """

    epoch: int
    version: int
    vector: Vector
    moved: float


async def changes(
    graph: Graph, spec: Spec, agent: str, threshold: float, min_interval_s: float, cursor: int
) -> AsyncGenerator[Change, None]:
    """See `Context.watch`."""
    row = {
        "agent": agent,
        "threshold": np.float32(threshold),
        "min_interval_ms": np.uint32(round(1000 * min_interval_s)),
    }
    parameters = {"wait_ms": round(1000 * WAIT_S)}
    heard, tries = False, 0
    while True:
        inherited_s(WAIT_S)  # it raises where nobody waits for this any more, who would else ask in vain for ever
        try:
            answer = await graph.ask(
                "watch",
                row | {"cursor": np.uint64(cursor)},
                parameters,
                spec=spec,
                timeout_s=WAIT_S + graph.timeout_s,
            )
        except (Busy, Disconnected, EngineLost, Expired, NoWorker) as error:
            if isinstance(error, NoWorker) and not heard:
                raise
            tries += 1
            await asyncio.sleep(backoff_s(tries, AGAIN_S))
            continue
        heard, tries = True, 0
        if answer["changed"]:
            cursor = int(answer["epoch"])
            yield Change(cursor, int(answer["version"]), answer["vector"], float(answer["moved"]))

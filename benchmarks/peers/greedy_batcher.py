"""A 30-line greedy batcher on nats-py: what users write when they want batches. Asked with an own mux inbox."""

from __future__ import annotations

import asyncio
import sys

import nats
import numpy as np
from nats.aio.msg import Msg

from benchmarks import loop
from benchmarks.contestant import Contestant
from benchmarks.peers.plain_nats import SUBJECT, connect_mux, served_by

MAX_ROWS = 256


async def main(url: str) -> None:
    """The service: the callback enqueues; one task takes all that is queued, runs it as one batch and replies."""
    nc = await nats.connect(url)
    queue: asyncio.Queue[Msg] = asyncio.Queue()

    async def enqueue(msg: Msg) -> None:
        queue.put_nowait(msg)

    await nc.subscribe(SUBJECT, queue="echo", cb=enqueue)
    await nc.flush()
    print("ready", flush=True)
    while True:
        batch = [await queue.get()]
        while len(batch) < MAX_ROWS and not queue.empty():
            batch.append(queue.get_nowait())
        rows = np.stack([np.frombuffer(msg.data, np.float32) for msg in batch])
        for msg, row in zip(batch, rows, strict=True):
            await nc.publish(msg.reply, row.tobytes())


CONTESTANTS = (
    Contestant(
        "greedy-batcher",
        served_by("benchmarks.peers.greedy_batcher"),
        connect_mux,
        frozenset({"row512", "many512", "row64", "one", "agents512"}),
        needs=("nats-py",),
    ),
)

if __name__ == "__main__":
    loop.run(main(sys.argv[1]))

"""The ceiling: raw frames of a given size through the plain service, with no codec, no futures and no tasks a frame."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from benchmarks.contestant import Contestant, Tally
from benchmarks.peers.plain_nats import SUBJECT, served_by
from benchmarks.shapes import FRAME_ROWS, Shape, frame_shape
from benchmarks.workloads import Workload

DRAIN_S = 5.0


async def drive_frames(clients: Sequence[Nats], shape: Shape, workload: Workload, seconds: float) -> Tally:
    """Keep `shape.callers` frames of `shape.rows_per_call` rows in flight; each reply sends the next frame."""
    nc, tally = clients[0], Tally()
    frame = workload.many(shape.rows_per_call)[0].tobytes()
    inbox = nc.new_inbox()
    asked: deque[float] = deque()
    idle = asyncio.Event()
    start = time.perf_counter() + shape.ramp_s
    window = (start, start + seconds)

    async def send() -> None:
        asked.append(time.perf_counter())
        await nc.publish(SUBJECT, frame, reply=inbox)

    async def answered(msg: Msg) -> None:
        now = time.perf_counter()
        tally.count(shape.rows_per_call, asked.popleft(), now, window)
        tally.mismatches += len(msg.data) != len(frame)
        if now < window[1]:
            await send()
        elif not asked:
            idle.set()

    subscription = await nc.subscribe(inbox, cb=answered)
    for _ in range(shape.callers):
        await send()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(idle.wait(), shape.ramp_s + seconds + DRAIN_S)
    tally.unanswered = len(asked)
    await subscription.unsubscribe()
    return tally


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Nats]:
    """A bare connection."""
    nc = await nats.connect(url)
    yield nc
    await nc.close()


CONTESTANTS = (
    Contestant(
        "pure-echo",
        served_by("benchmarks.peers.plain_nats"),
        connect,
        frozenset(frame_shape(rows).name for rows in FRAME_ROWS),
        needs=("nats-py",),
        drive=drive_frames,
    ),
)

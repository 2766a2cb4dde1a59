"""A plain NATS echo service on nats-py, asked with `nc.request` and with an own mux inbox."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import nats
import numpy as np
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from numpy.typing import NDArray

from benchmarks import loop
from benchmarks.contestant import Contestant, Served
from benchmarks.processes import nats_server, python

SUBJECT = "peer.echo"
TIMEOUT_S = 30.0

Rows = NDArray[np.float32]


async def main(url: str) -> None:
    """The service: answers from the callback."""
    nc = await nats.connect(url)

    async def echo(msg: Msg) -> None:
        await nc.publish(msg.reply, msg.data)

    await nc.subscribe(SUBJECT, queue="echo", cb=echo)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


class RequestClient:
    """What most users write: `nc.request` a row."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc

    async def call(self, row: Rows) -> Rows:
        """Echo one row."""
        reply = await self._nc.request(SUBJECT, row.tobytes(), timeout=TIMEOUT_S)
        return np.frombuffer(reply.data, np.float32)

    async def call_many(self, rows: Rows) -> Rows:
        """Echo rows, a request each."""
        return np.stack(await asyncio.gather(*map(self.call, rows)))


class MuxClient:
    """What a careful user writes: one inbox subscription, a dict of futures, no `wait_for`."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._loop = asyncio.get_running_loop()
        self._prefix = nc.new_inbox() + "."
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._next = 0

    async def open(self) -> None:
        """Subscribe the inbox."""
        await self._nc.subscribe(self._prefix + "*", cb=self._answered)
        await self._nc.flush()

    async def _answered(self, msg: Msg) -> None:
        future = self._waiting.pop(msg.subject[len(self._prefix) :], None)
        if future is not None and not future.done():
            future.set_result(msg.data)

    async def call(self, row: Rows) -> Rows:
        """Echo one row."""
        self._next += 1
        token = str(self._next)
        future = self._waiting[token] = self._loop.create_future()
        await self._nc.publish(SUBJECT, row.tobytes(), reply=self._prefix + token)
        return np.frombuffer(await future, np.float32)

    async def call_many(self, rows: Rows) -> Rows:
        """Echo rows, a message each."""
        return np.stack(await asyncio.gather(*map(self.call, rows)))


@contextlib.asynccontextmanager
async def connect_request(url: str) -> AsyncIterator[RequestClient]:
    """An `nc.request` client on a connection of its own."""
    nc = await nats.connect(url)
    yield RequestClient(nc)
    await nc.close()


@contextlib.asynccontextmanager
async def connect_mux(url: str) -> AsyncIterator[MuxClient]:
    """A mux client on a connection of its own."""
    nc = await nats.connect(url)
    client = MuxClient(nc)
    await client.open()
    yield client
    await nc.close()


def served_by(module: str) -> Any:
    """The `serve` of a peer whose service is `python -m module URL` behind a NATS server of its own."""

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[Served]:
        async with nats_server() as (url, nats_pid), python(module, url) as service:
            yield Served(url, {"nats": nats_pid, "service": service.pid})

    return serve


_SHAPES = frozenset({"row512", "many512", "row64", "one", "agents512"})
_SERVE = served_by("benchmarks.peers.plain_nats")

CONTESTANTS = (
    Contestant("nats-request", _SERVE, connect_request, _SHAPES, needs=("nats-py",)),
    Contestant("nats-mux", _SERVE, connect_mux, _SHAPES, needs=("nats-py",)),
)

if __name__ == "__main__":
    loop.run(main(sys.argv[1]))

"""Totals in a JetStream key-value bucket on nats-py: by a service that owns the keys, or by the caller itself."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from benchmarks import loop
from benchmarks.contestant import Contestant, Served
from benchmarks.coordination import server
from benchmarks.ours_state import SHAPES, served

SUBJECT = "peer.add"
BUCKET = "totals"
TIMEOUT_S = 30.0


class Totals:
    """Totals whose only writer this is: the revision of each is remembered, and every update names it."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket
        self._known: dict[str, tuple[int, int]] = {}

    async def add(self, key: str, n: int) -> int:
        """Add to a key's total, and give it once the server has it."""
        total, revision = self._known.get(key) or await self._read(key)
        total += n
        revision = await self._bucket.update(key, b"%d" % total, revision)
        self._known[key] = total, revision
        return total

    async def _read(self, key: str) -> tuple[int, int]:
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError:
            return 0, 0
        return int(entry.value or b"0"), entry.revision or 0


async def opened(nc: Nats) -> Totals:
    """The totals of the bucket, which is made."""
    return Totals(await nc.jetstream().create_key_value(bucket=BUCKET))


async def main(url: str) -> None:
    """The service: a task for each message, since nats-py awaits the callback of one before that of the next."""
    nc = await nats.connect(url)
    totals = await opened(nc)
    running: set[asyncio.Task[None]] = set()

    async def answer(msg: Msg) -> None:
        await msg.respond(b"%d" % await totals.add(msg.data.decode(), 1))

    async def received(msg: Msg) -> None:
        task = asyncio.create_task(answer(msg))
        running.add(task)
        task.add_done_callback(running.discard)

    await nc.subscribe(SUBJECT, cb=received)
    await nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


class ServiceClient:
    """Asks the service with `nc.request`."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc

    async def call(self, key: str) -> int:
        """Add one to a key."""
        return int((await self._nc.request(SUBJECT, key.encode(), timeout=TIMEOUT_S)).data)


class OwnClient:
    """Updates the bucket itself: nobody else may know of the keys."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    async def call(self, key: str) -> int:
        """Add one to a key."""
        return await self._totals.add(key, 1)


@contextlib.asynccontextmanager
async def serve_bucket() -> AsyncIterator[Served]:
    """The server alone."""
    async with server() as (url, nats_pid):
        yield Served(url, {"nats": nats_pid})


@contextlib.asynccontextmanager
async def connect_service(url: str) -> AsyncIterator[ServiceClient]:
    """A client of the service on a connection of its own."""
    nc = await nats.connect(url)
    yield ServiceClient(nc)
    await nc.close()


@contextlib.asynccontextmanager
async def connect_bucket(url: str) -> AsyncIterator[OwnClient]:
    """A caller with the bucket on a connection of its own."""
    nc = await nats.connect(url)
    yield OwnClient(await opened(nc))
    await nc.close()


CONTESTANTS = (
    Contestant("kv.update, service", served("benchmarks.peers.kv_update"), connect_service, SHAPES, needs=("nats-py",)),
    Contestant("kv.update, caller", serve_bucket, connect_bucket, SHAPES, needs=("nats-py",)),
)

if __name__ == "__main__":
    loop.run(main(sys.argv[1]))

"""An agent's handler that echoes its message: `python -m benchmarks.ours_handler URL` serves it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import aikoryu as ai
from benchmarks.contestant import Contestant
from benchmarks.ours import NAME, connecting
from benchmarks.peers.plain_nats import served_by

Rows = NDArray[np.float32]


class Row(ai.Message):
    """A row of floats, as its bytes."""

    data: bytes


class Echo(ai.Agent):
    """Answers what it is asked; as many calls at once as come, as the peers' services do."""

    @ai.handler(idempotent=True)
    async def echo(self, message: Row) -> Row:
        """Give the message back."""
        return message


class HandlerClient:
    """Rows of floats, as an agent asks another."""

    def __init__(self, bus: ai.Bus) -> None:
        self._echo = bus.agents.get("echo", Echo).echo

    async def call(self, row: Rows) -> Rows:
        """Echo one row."""
        answer: Row = await self._echo(Row(row.tobytes()))
        return np.frombuffer(answer.data, np.float32)


def app(url: str) -> ai.App:
    """The app with the one agent."""
    settings = ai.load_settings(flags={"nats.url": url, "log.level": "warning"})
    made = ai.App(settings=replace(settings))
    made.add(Echo, "echo", concurrency=1024, mailbox=65536)
    return made


async def main(url: str) -> None:
    """Serve until the end."""
    import asyncio

    async with app(url):
        print("ready", flush=True)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[HandlerClient]:
    """A client on a connection of its own."""
    async with connecting(HandlerClient)(url) as client:
        yield client


CONTESTANTS = (
    Contestant(
        NAME, served_by("benchmarks.ours_handler"), connect, frozenset({"row512", "row64", "one"}), needs=("msgspec",)
    ),
)

if __name__ == "__main__":
    from benchmarks import loop

    loop.run(main(sys.argv[1]))

"""FastStream on NATS, request and reply; asked with the own-mux client, which favours it over `broker.request`."""

from __future__ import annotations

import asyncio
import logging
import sys

from benchmarks import loop
from benchmarks.contestant import Contestant
from benchmarks.peers.plain_nats import SUBJECT, connect_mux, served_by


async def main(url: str) -> None:
    """The service, with the options that make FastStream fastest: no validation of types, no log line a message."""
    from faststream.nats import NatsBroker, NatsMessage

    broker = NatsBroker(url, apply_types=False, logger=None)

    async def raw(msg: NatsMessage) -> bytes:
        return msg.body

    @broker.subscriber(SUBJECT, queue="echo", decoder=raw)
    async def echo(body: bytes) -> bytes:
        return body

    async with broker:
        await broker.start()
        print("ready", flush=True)
        await asyncio.Event().wait()


CONTESTANTS = (
    Contestant(
        "faststream",
        served_by("benchmarks.peers.faststream_echo"),
        connect_mux,
        frozenset({"row512", "row64", "one", "agents512"}),
        needs=("faststream", "nats-py"),
    ),
)

if __name__ == "__main__":
    logging.disable()
    loop.run(main(sys.argv[1]))

"""An agent of a test as a process: it does what each line of its input says, and prints what came of it."""

from __future__ import annotations

import asyncio
import sys

from aikoryu.agents.coordination import Coordination, Fenced
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import OwnershipLost, PartitionLog
from aikoryu.bus.subjects import Subjects
from aikoryu.config import LogSettings, configure_logging


async def main(url: str) -> None:
    connection = await NatsConnection.open(ConnectOptions(url))
    coordination = Coordination(connection, Subjects(), name="member")
    shared = coordination.shared("state")
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["lead", ttl_s]:
                term = await coordination.elect("office", ttl_s=int(ttl_s)).campaign()
                log = await PartitionLog.open(await coordination._jetstream(), Subjects(), "office")
                last = await log.claim(term.number)
                print("leads", term.number, flush=True)
            case ["lost"]:
                await term.lost()
                print("lost", flush=True)
            case ["put", value]:
                try:
                    await shared.put("state", value, token=term.number)
                    print("put", flush=True)
                except Fenced:
                    print("fenced", flush=True)
            case ["append", value]:
                try:
                    last = await log.append(value.encode(), last)
                    print("appended", flush=True)
                except OwnershipLost:
                    print("owner lost", flush=True)
            case ["claim", ack_wait_s]:
                async with coordination.tasks("work", ack_wait_s=float(ack_wait_s)).claim() as task:
                    print("claimed", task.id, flush=True)
                    await asyncio.Event().wait()


configure_logging(LogSettings(level="critical"))
asyncio.run(main(sys.argv[1]))

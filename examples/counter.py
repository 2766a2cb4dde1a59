"""A counter that keeps its state: it moves from process to process while callers count, and no update is lost.

    python examples/counter.py                      # starts a server of its own
    python examples/counter.py --nats nats://host   # on a server that runs already; it needs JetStream

Each key of the counter has one owner among the processes. A state is written before its call is answered; whoever takes
a key over begins with what was written. A call that is sent again because its owner went is counted once.
"""

import argparse
import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter as Tally
from contextlib import AsyncExitStack
from uuid import uuid4

import aikoryu as ai
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

KEYS = [f"key-{number}" for number in range(8)]
MOVES = 3


class Counted(ai.Message):
    total: int
    by: int  # the process, as the system numbers it


class Counter(ai.Stateful[int]):
    """Counts; there is one for each key."""

    @ai.handler
    async def add(self, number: int) -> Counted:
        self.state += number
        return Counted(self.state, os.getpid())


def serve(url: str) -> None:
    """A process with the counter: as many as you like share its keys."""
    app = ai.App(url)
    app.add(Counter, "counter")
    app.run()


async def start(url: str, stack: AsyncExitStack) -> Process:
    """Such a process, once it serves; it does not outlive the stack."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", "--nats", url, stderr=PIPE)
    stack.callback(lambda: process.returncode is None and process.kill())
    words = await process.stderr.readline()
    if b"agents ready" not in words:
        sys.exit(f"the counter did not start: {words.decode()}")
    return process


async def stop(process: Process) -> None:
    """End a process: it answers what it has accepted, and hands over its keys."""
    process.terminate()
    await process.communicate()
    if process.returncode != 0:
        sys.exit(f"the counter's process ended with status {process.returncode}")


async def count(bus: ai.Bus, key: str, done: asyncio.Event, by: Tally[int]) -> int:
    """Call until it is enough; how often that was."""
    counter, calls = bus.agents.get("counter", Counter, key=key), 0
    while not done.is_set():
        counted = await counter.add(1)
        by[counted.by] += 1
        calls += 1
        await asyncio.sleep(0.005)  # so that a process which starts has its turn on a small machine
    return calls


async def main(url: str) -> None:
    async with AsyncExitStack() as stack:
        if not url:
            url = (await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))).url
        bus = await stack.enter_async_context(ai.connect(url))
        keys = [f"{key}-{uuid4()}" for key in KEYS]  # what was counted before is there still

        process = await start(url, stack)
        done, by = asyncio.Event(), Tally[int]()
        callers = [asyncio.create_task(count(bus, key, done, by)) for key in keys]
        for _ in range(MOVES):
            before, process = process, await start(url, stack)  # both have their share of the keys now
            await stop(before)
        done.set()
        calls = await asyncio.gather(*callers)

        totals = [(await bus.agents.get("counter", Counter, key=key).add(0)).total for key in keys]
        print(f"{len(by)} processes answered {sum(calls)} calls of {len(keys)} keys")
        if totals != calls:
            sys.exit(f"{sum(totals)} are counted, by key {totals} of {calls}: that is wrong")
        print(f"{sum(totals)} are counted: none was lost, none counted twice")
        await stop(process)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", metavar="URL", default="", help="a server that runs already")
    parser.add_argument("--serve", action="store_true", help="be one of the counter's processes, until a signal")
    options = parser.parse_args()
    if options.serve:
        serve(options.nats)
    else:
        asyncio.run(main(options.nats))

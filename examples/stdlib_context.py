"""Who knows? Each module of Python's library is an agent that hears the modules it imports, and those that import it.

    python examples/stdlib_context.py                       # starts a server of its own, and a worker
    python examples/stdlib_context.py --nats nats://host    # on a server that runs already, with its workers

A module knows its name and its docstring. Asked is what one of its functions or classes does, in the words of that;
is the module found by what it knows, or by what reaches it? docs/context_example.md has the figures for all questions.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np
from stdlib_modules import bags_of_words, library

import aikoryu as ai
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

DIMENSION = 384
SILENT = 10  # every so manieth says nothing


async def main(url: str) -> None:
    modules = library()
    names = list(modules)
    asked = {name: module.questions[0] for name, module in modules.items() if module.questions}
    imports = [(one, name) for name, module in modules.items() for one in sorted(module.imports)]
    heard, hearers = map(list, zip(*imports, strict=True))

    async with AsyncExitStack() as stack:
        if not url:
            url = (await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))).url
            await start_worker(url, stack)
        bus = await stack.enter_async_context(ai.connect(url))
        known, queries = await embed(bus, [module.says for module in modules.values()], list(asked.values()))

        team = bus.context("stdlib", dimension=DIMENSION, alpha=0.5)
        await team.put_many(names, known)
        await asyncio.gather(team.link_many(heard, hearers), team.link_many(hearers, heard))
        print(f"{len(names)} modules, {len(imports)} imports, {len(asked)} questions")
        await tell(team, list(asked), queries)

        silent = list(asked)[::SILENT]
        await team.put_many(silent, np.zeros((len(silent), DIMENSION), np.float32))
        print(f"{len(silent)} modules say nothing any more, and are asked")
        await tell(team, silent, queries[::SILENT])


async def tell(team, right: Sequence[str], queries) -> None:
    """Print how often the right module comes first, and is among 5 and 16."""
    print(f"  {'':<8}{'first':>10}{'of 5':>10}{'of 16':>10}")
    for what in ("own", "blended"):
        found = await team.route_many(queries, k=16, what=what)
        shares = (
            np.mean([name in [route.agent for route in routes[:k]] for name, routes in zip(right, found, strict=True)])
            for k in (1, 5, 16)
        )
        print(f"  {what:<8}" + "".join(f"{share:>10.0%}" for share in shares))


async def embed(bus: ai.Bus, *texts: list[str]) -> list:
    """Vectors of each list: by a model where a worker has it, else by words."""
    try:
        return [await bus.models.embed(each, timeout_s=300) for each in texts]
    except ai.NoWorker:
        print("no worker has the model: words are compared, not meanings")
        return [bags_of_words(each, texts[0], DIMENSION) for each in texts]


async def start_worker(url: str, stack: AsyncExitStack) -> None:
    """A worker as a process of its own, as on another machine; the first start loads torch, which takes seconds."""
    command = [sys.executable, "-m", "aikoryu.cli", "worker", "--nats", url]
    worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    if not await worker.stdout.readline():  # it says when it serves
        sys.exit("the worker did not start: its words are above")
    stack.push_async_callback(worker.wait)
    stack.callback(worker.terminate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", metavar="URL", default="", help="a server that runs already")
    asyncio.run(main(parser.parse_args().nats))

"""`aikoryu demo`: a NATS server, a worker and many agents, with every answer checked."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import uvloop

from ..agents import Bus, connect
from ..bus.server import EmbeddedServer
from ..bus.subjects import Subjects
from ..config import ServerSettings, Settings, configure_logging
from ..gpu.models.store import Model, ModelMissing, find
from . import demo_report
from .arguments import Commands, add_command, add_settings, settings_of
from .demo_agents import SENTENCES, AgentsTask, Tally
from .demo_process import Child, child
from .demo_reference import Made, ReferenceTask
from .demo_text import sentences
from .demo_worker import Ready
from .failure import Failed
from .ls import Operated, operations_of
from .progress import Progress, say
from .stopping import Stop, stopping
from .up import on_embedded

PROCESSES = 4
LOOK_S = 0.3
GRACE_S = 30.0

_DESCRIPTION = """\
Start a NATS server on a free port, a worker and many agents in several
processes. Each agent embeds sentences (of the standard library's docstrings)
and multiplies matrices, one call at a time; the worker makes batches of what
they ask in the same moment. Every answer is checked. The table at the end says
what it came to; the exit status is 0 only if no answer is wrong or missing.
Ctrl-C ends the load early.

With --faults one fault after the other happens under load: engines, fronts and
the server are killed, batches raise and hang, messages are dropped. The table
says what became of the calls; the picture shows who answered them, when.

  aikoryu demo
  aikoryu demo --agents 256 --seconds 60
  aikoryu demo --faults --picture faults.svg"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", "many agents against one worker, every answer checked", _DESCRIPTION)
    parser.add_argument("--agents", type=_count, default=64, metavar="N", help="how many (default 64)")
    parser.add_argument("--seconds", type=_seconds, default=20.0, metavar="S", help="how long they ask (default 20)")
    parser.add_argument("--faults", action="store_true", help="let one fault after the other happen instead")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw their timeline there, .svg or .png")
    add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it, print the table, and return 1 if an answer is wrong or missing."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    if options.faults:
        from .chaos.drill import demonstrate

        return uvloop.run(demonstrate(settings, options.picture))
    if options.picture:
        raise Failed("--picture is of faults: add --faults")
    return uvloop.run(Demo(settings, options.agents, options.seconds).run())


class Demo:
    """One run of the demo."""

    def __init__(self, settings: Settings, agents: int, seconds: float) -> None:
        self._model = _model(settings)
        embed = settings.models.embed[:1] if self._model else ()
        self._settings = dataclasses.replace(settings, models=dataclasses.replace(settings.models, embed=embed))
        self._agents = agents
        self._seconds = seconds
        self._progress = Progress()
        self._subjects = Subjects(settings.bus.prefix, settings.bus.namespace)

    async def run(self) -> int:
        """Start everything, let the agents ask, end everything, print what came of it."""
        with stopping() as stop, tempfile.TemporaryDirectory(prefix="aikoryu-demo-") as folder:
            try:
                async with AsyncExitStack() as stack:
                    server = await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))
                    settings = on_embedded(self._settings, server.url)
                    texts = sentences(self._agents * SENTENCES) if self._model else []
                    reference = str(Path(folder, "reference.npy"))
                    worker = await self._prepare(stack, settings, texts, reference)
                    stop.drains = True
                    tasks = self._tasks(settings, texts, reference)
                    tallies, operations = await self._load(stack, settings, tasks, stop)
                    self._progress.show("the worker ends ...")
                    await worker.finished()
            finally:
                self._progress.close()
        print(demo_report.figures(tallies, operations), demo_report.how_checked(tallies), sep="\n\n")
        print(f"\n{demo_report.verdict(tallies)}")
        return 0 if demo_report.well(tallies) else 1

    async def _prepare(
        self, stack: AsyncExitStack, settings: Settings, texts: list[str], reference: str
    ) -> Child[Ready]:
        """Start the worker and, beside it, make the embeddings that its answers are compared with."""
        self._progress.show("starting a NATS server and a worker ...")
        worker = await stack.enter_async_context(child("worker", "demo_worker", settings, Ready))
        if self._model:
            task = ReferenceTask(settings.models.embed[0], settings.models.directory, texts, reference)
            making = await stack.enter_async_context(child("reference", "demo_reference", task, Made))
            while made := await making.hear():
                self._progress.show(
                    f"embedding without the bus, to compare: {made.sentences} of {len(texts)} sentences"
                )
        if await worker.hear() is None:
            raise Failed("the demo's worker ended before it was ready: its words are above")
        return worker

    def _tasks(self, settings: Settings, texts: list[str], reference: str) -> list[AgentsTask]:
        model = self._model.name if self._model else ""
        numbers = [list(range(first, self._agents, PROCESSES)) for first in range(min(PROCESSES, self._agents))]
        return [AgentsTask(settings, self._seconds, own, texts, model, reference) for own in numbers]

    async def _load(
        self, stack: AsyncExitStack, settings: Settings, tasks: list[AgentsTask], stop: Stop
    ) -> tuple[dict[str, Tally], list[Operated]]:
        """Let the agents ask, and show what the worker makes of it; returns its figures at the end."""
        processes = [
            await stack.enter_async_context(child("agents", "demo_agents", task, dict[str, Tally])) for task in tasks
        ]
        hearing = asyncio.gather(*(process.hear() for process in processes))
        started_s = time.monotonic()
        forming = demo_report.Forming()
        operations: list[Operated] = []
        async with connect(settings=settings) as bus:
            while not hearing.done():
                if stop.asked.is_set():
                    for process in processes:
                        process.finish()
                elapsed_s = time.monotonic() - started_s
                if elapsed_s > self._seconds + settings.bus.timeout_s + GRACE_S:
                    raise Failed("the agents did not end in time: this is a defect, tell it to Aikoryu's authors")
                # A worker that has gone tells nothing: what it told last stands.
                operations = await self._operations(bus) or operations
                if line := forming.line(operations, elapsed_s):
                    self._progress.show(f"{self._agents} agents, {elapsed_s:2.0f} s: {line}")
            return demo_report.merged(filter(None, await hearing)), await self._operations(bus) or operations

    async def _operations(self, bus: Bus) -> list[Operated]:
        return list(operations_of(await bus.workers(LOOK_S), self._subjects))


def _model(settings: Settings) -> Model | None:
    """The model to embed with, the first of the settings; None, and a word about it, where that cannot be."""
    if not settings.models.embed:
        say("No embeddings: models.embed names no model. The agents multiply matrices only.")
        return None
    if missing := [name for name in ("tokenizers", "safetensors") if find_spec(name) is None]:
        say(
            f"No embeddings: {missing[0]} is missing, pip install 'aikoryu[models]'. The agents multiply matrices only."
        )
        return None
    try:
        return find(settings.models.embed[0], Path(settings.models.directory) if settings.models.directory else None)
    except ModelMissing as error:
        say(f"No embeddings: {error}. The agents multiply matrices only.")
        return None


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds

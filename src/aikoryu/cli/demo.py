"""`aikoryu demo`: a NATS server, a worker and many agents, with every answer checked."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import uvloop

from ..agents import Bus, connect
from ..bus.server import EmbeddedServer
from ..bus.subjects import Subjects
from ..config import ModelSettings, ServerSettings, Settings, configure_logging
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
LOOK_EVERY_S = 0.3

_DESCRIPTION = """\
Start a NATS server on a free port, a worker and many agents in several
processes. Each agent embeds sentences (of the standard library's docstrings)
and multiplies matrices, one call at a time; the worker makes batches of what
they ask in the same moment. Every answer is checked. The table at the end says
what it came to; the exit status is 0 only if no answer is wrong or missing.
Ctrl-C ends the load early.

  aikoryu demo
  aikoryu demo --agents 256 --seconds 60"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", "many agents against one worker, every answer checked", _DESCRIPTION)
    parser.add_argument("--agents", type=_positive(int), default=64, metavar="N", help="how many (default 64)")
    parser.add_argument(
        "--seconds", type=_positive(float), default=20.0, metavar="S", help="how long they ask (default 20)"
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run it, print the table, and return 1 if an answer is wrong or missing."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    model = _model(settings)
    models = ModelSettings(embed=(model.name,) if model else (), directory=settings.models.directory)
    demo = Demo(dataclasses.replace(settings, models=models), options.agents, options.seconds)
    return uvloop.run(demo.run())

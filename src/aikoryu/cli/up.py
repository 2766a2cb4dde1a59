"""`aikoryu up`: a NATS server and a worker, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

import uvloop

from ..bus.server import EmbeddedServer
from ..config import VERSION, NatsSettings, Settings, configure_logging
from .arguments import Commands, add_command, add_settings, add_worker, settings_of
from .progress import say
from .serving import serve_until
from .stopping import stopping

if TYPE_CHECKING:
    from ..gpu.fleet import Fleet
    from ..gpu.worker import Worker

_DESCRIPTION = """\
Run a NATS server and a worker, on loopback; either is started again if it dies.
Ctrl-C or SIGTERM stops both after the requests the worker has accepted are
answered, a second one at once.

  aikoryu up
  aikoryu up --set server.port=4333 --set cpu.threads=2
  aikoryu up --set server.store_dir=data --set server.sync_interval=always
  aikoryu up --operations examples/own_operation.py"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "up", "run a NATS server and a worker on this machine", _DESCRIPTION)
    add_worker(parser)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until a signal."""
    settings = settings_of(options)
    configure_logging(settings.log)
    return uvloop.run(_up(settings))


async def _up(settings: Settings) -> int:
    with stopping() as stop:
        say("Starting a NATS server and a worker ...")
        async with EmbeddedServer(settings.server) as server:
            own = on_embedded(settings, server.url)
            asked_anyway = settings.nats.url == server.url
            return await serve_until(stop, own, lambda worker: _what_next(worker, own, asked_anyway=asked_anyway))


def on_embedded(settings: Settings, url: str) -> Settings:
    """The settings for an embedded server: it asks for no user, whatever is set for another server."""
    return dataclasses.replace(settings, nats=NatsSettings(url=url, inbox_prefix=settings.nats.inbox_prefix))


def _what_next(worker: Worker | Fleet, settings: Settings, *, asked_anyway: bool) -> str:
    """What the person can type now; `asked_anyway` if commands find this server by themselves."""
    where = "" if asked_anyway else f" --nats {settings.nats.url}"
    examples = ["ls", "call matrix.matmul a='[[1,2],[3,4]]' b='[[1,0],[0,1]]'"]
    examples += [f"call {name} text='hello'" for name in worker.operations if name.startswith("models.embed.")]
    kept = settings.server.store_dir
    durable = (
        f"in {kept}" if kept else "in a temporary folder, and go with it: --set server.store_dir=FOLDER keeps them"
    )
    return "\n".join(
        [
            f"Aikoryu {VERSION} is up: NATS at {settings.nats.url}, {len(worker.operations)} operations.",
            f"Jobs, their results and context graphs are {durable}.",
            "",
            "In another terminal:",
            *(f"  aikoryu {example}{where}" for example in examples),
            "",
        ]
    )

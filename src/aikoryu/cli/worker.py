"""`aikoryu worker`: a worker for a NATS server that runs already."""

from __future__ import annotations

import argparse

import uvloop

from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, add_worker, settings_of
from .progress import say
from .serving import serve_until
from .stopping import stopping

_DESCRIPTION = """\
Run a worker for a NATS server that runs already. Any number of them share the
requests. Ctrl-C or SIGTERM stops it after the requests it has accepted are
answered, a second one at once.

  aikoryu worker --nats nats://10.0.0.1:4222
  aikoryu worker --operations examples/own_operation.py
  aikoryu worker --set batch.window_s=0.002 --set worker.metrics_port=9100"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "worker", "run a worker for an existing NATS server", _DESCRIPTION)
    add_worker(parser)
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until a signal."""
    settings = settings_of(options)
    configure_logging(settings.log)
    return uvloop.run(_worker(settings))


async def _worker(settings: Settings) -> int:
    with stopping() as stop:
        say(f"Starting a worker on {settings.nats.url} ...")
        return await serve_until(
            stop,
            settings,
            lambda worker: f"Worker {worker.id} serves {len(worker.operations)} operations on {settings.nats.url}.",
        )

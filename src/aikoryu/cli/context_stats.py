"""`aikoryu context stats`: the figures of a graph of contexts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import uvloop

from ..agents import Bus, connect
from ..agents.context import Context
from ..config import configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .table import table

_DESCRIPTION = """\
The figures of a graph as its owner has them: agents, edges, epoch, the longest
residual, the device and what it has done.

  aikoryu context stats team
  aikoryu context stats team --json | jq .residual"""

T = TypeVar("T")


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "stats", "figures of a graph", _DESCRIPTION)
    add_graph(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def add_graph(parser: argparse.ArgumentParser) -> None:
    """Let a command name a graph."""
    parser.add_argument("graph", metavar="GRAPH", help="the graph's name")


def run(options: argparse.Namespace) -> int:
    """Ask, and print."""
    figures = asked(options, lambda _, graph: graph.stats())
    print(json.dumps(figures, indent=2) if options.json else lines(figures))
    return 0


def asked(options: argparse.Namespace, ask: Callable[[Bus, Context], Awaitable[T]]) -> T:
    """What is answered about the graph that a command names.

    Raises:
        Failed: this is no name of one.
    """
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)

    async def connected() -> T:
        async with connect(settings=settings) as bus:
            try:
                graph = bus.context(options.graph)
            except ValueError as error:
                raise Failed(str(error)) from None
            return await ask(bus, graph)

    return uvloop.run(connected())


def lines(figures: Mapping[str, Any]) -> str:
    """A line a figure."""
    return table([[name.replace("_", " "), _shown(value)] for name, value in figures.items()], "<>")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

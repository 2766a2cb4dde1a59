"""`aikoryu context route`: which agents a text, or a vector, suits best."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agents.bus import Bus
from ..agents.context import Context
from ..agents.context_answers import Route
from .arguments import Commands, add_command, add_settings
from .context_stats import add_graph, asked
from .failure import Failed
from .table import table

_DESCRIPTION = """\
Which agents' contexts are most like a text, which a worker embeds, or like a
vector in a file of NumPy's.

  aikoryu context route team --text 'Who can mend the router?'
  aikoryu context route team --vector query.npy -k 3"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "route", "agents that suit a text", _DESCRIPTION)
    add_graph(parser)
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", metavar="TEXT", help="what is asked for, in words")
    query.add_argument("--vector", metavar="FILE", help="a vector, .npy")
    parser.add_argument("-k", type=int, default=16, metavar="N", help="how many agents, at most 256 (16)")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print a line an agent."""
    vector = None if options.vector is None else _vector_of(options.vector)

    async def ask(bus: Bus, graph: Context) -> list[Route]:
        return await graph.route(await bus.models.embed(options.text) if vector is None else vector, k=options.k)

    found = asked(options, ask)
    if not found:
        raise Failed(f"no agent of graph {options.graph} has put anything")
    print(table([["AGENT", "SCORE"], *([route.agent, f"{route.score:.4f}"] for route in found)], "<>"))
    return 0


def _vector_of(path: str) -> NDArray[Any]:
    try:
        found: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failed(f"{path} cannot be read: {error}: give a file of numpy.save") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        raise Failed(f"{path} holds no vector: save one of a single axis")
    return found

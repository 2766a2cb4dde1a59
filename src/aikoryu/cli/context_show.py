"""`aikoryu context show`: an agent's context, whom it hears, and who hears it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from ..agents.context import Context
from ..agents.context_answers import Links, Seen
from .arguments import Commands, add_command, add_settings
from .context_reach import cosine
from .context_stats import add_graph, asked, lines
from .failure import Failed
from .table import table

_DESCRIPTION = """\
Show an agent's context: the version of what it has put, how long its vectors
are, whom it hears and who hears it, the heaviest first. Without an agent, the
figures of the graph.

  aikoryu context show team
  aikoryu context show team ada"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "show", "an agent's context and its links", _DESCRIPTION)
    add_graph(parser)
    parser.add_argument("agent", metavar="AGENT", nargs="?", help="the agent's name")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print."""
    print(asked(options, lambda _, graph: _figures(graph) if options.agent is None else _agent(graph, options.agent)))
    return 0


async def _figures(graph: Context) -> str:
    return lines(await graph.stats())


async def _agent(graph: Context, agent: str) -> str:
    own, blended = await graph.get(agent, what="own"), await graph.get(agent)
    links = await graph.links(agent)
    if not own.version and not links.heard and not links.hearers:
        raise Failed(f"graph {graph.name} knows no agent {agent!r}: it has put nothing, and has no links")
    return "\n\n".join([_context(own, blended), *_linked(links)])


def _context(own: Seen, blended: Seen) -> str:
    alike = cosine(blended.vector, own.vector)
    return table(
        [
            ["version", str(own.version) if own.version else "-, it has put nothing"],
            ["own context", f"length {np.linalg.norm(own.vector):.4f}"],
            [
                "blended",
                f"length {np.linalg.norm(blended.vector):.4f}" + ("" if alike is None else f", {alike:.4f} alike"),
            ],
            ["epoch", f"{blended.epoch:,}, {blended.age_s:.3g} s old, residual {blended.residual:.2g}"],
        ],
        "<<",
    )


def _linked(links: Links) -> list[str]:
    found = []
    for title, ends in (("HEARS", links.heard), ("HEARD BY", links.hearers)):
        if ends:
            found.append(table([[title, "WEIGHT"], *_heaviest(ends)], "<>"))
    return found


def _heaviest(ends: Sequence[tuple[str, float]]) -> list[list[str]]:
    return [[name, f"{weight:.4g}"] for name, weight in sorted(ends, key=lambda end: (-end[1], end[0]))]

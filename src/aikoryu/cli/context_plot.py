"""`aikoryu context plot`: a picture of whom an agent's context reaches."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command, add_settings
from .context_picture import draw
from .context_reach import HOPS, MOST_AGENTS, reach_of
from .context_stats import add_graph, asked
from .failure import Failed

_DESCRIPTION = f"""\
Draw whom an agent's context reaches: those who hear it, and those who hear
these, over at most {HOPS} links and {MOST_AGENTS[-1]} agents, those of the heaviest links first. Colours
say how like the agent's own context each one's is by what has reached it.

  aikoryu context plot team ada -o ada.svg"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "plot", "a picture of whom a context reaches", _DESCRIPTION)
    add_graph(parser)
    parser.add_argument("agent", metavar="AGENT", help="the agent in the middle")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the picture, .svg")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, draw and write."""
    if options.output.suffix != ".svg":
        raise Failed(f"{options.output} would hold an SVG: give it a name that ends in .svg")
    reach = asked(options, lambda _, graph: reach_of(graph, options.agent))
    if len(reach.hops) == 1 and reach.alike[options.agent] is None:
        raise Failed(f"graph {options.graph} has no context of {options.agent!r}, and nobody hears it")
    try:
        options.output.write_text(draw(reach))
    except OSError as error:
        raise Failed(f"{options.output} cannot be written: {error.strerror}") from None
    found = len(reach.hops) - 1
    who = "1 agent hears" if found == 1 else f"{found:,} agents hear"
    more = f"; {reach.left_out:,} more are left out" if reach.left_out else ""
    print(f"{options.output}: {who} {options.agent}, directly or over others{more}")
    return 0

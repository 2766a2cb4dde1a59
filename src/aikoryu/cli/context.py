"""`aikoryu context`: what a graph of contexts holds, who suits a text, and a picture of whom a context reaches."""

from __future__ import annotations

from . import context_plot, context_route, context_show, context_stats
from .arguments import Commands, add_command

_DESCRIPTION = """\
Look at what agents know of one another: a graph of contexts, kept by a worker.

  aikoryu context stats team
  aikoryu context show team ada
  aikoryu context route team --text 'Who can mend the router?'
  aikoryu context plot team ada -o ada.svg"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "context", "what agents know, and what of it reaches whom", _DESCRIPTION)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action in (context_show, context_route, context_stats, context_plot):
        action.add(actions)

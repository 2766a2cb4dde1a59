"""`aikoryu agents`: which agents there are, asking one of them, and hearing what they publish."""

from __future__ import annotations

from . import agents_call, agents_ls, agents_tail
from .arguments import Commands, add_command

_DESCRIPTION = """\
Look at the agents of a bus, ask one, or hear what they publish.

  aikoryu agents ls
  aikoryu agents call greeter.greet name=Ada
  aikoryu agents tail 'market.>'"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "agents", "list agents, ask them, hear what they publish", _DESCRIPTION)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action in (agents_ls, agents_call, agents_tail):
        action.add(actions)

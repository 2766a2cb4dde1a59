"""`aikoryu packets`: captures and interfaces as people look at them, and what rules say of their packets."""

from __future__ import annotations

from . import packet_classes, packet_flows, packet_inspect, packet_record, packet_rules
from .arguments import Commands, add_command

_DESCRIPTION = """\
Look at captures, pcap or pcapng, gzipped or not, at interfaces, at the flows of
their packets, and at what rules say. A bus is needed only where one is named.

  aikoryu packets inspect trace.pcap
  aikoryu packets inspect --live eth0 --filter 'tcp port 80'
  aikoryu packets record eth0 trace.pcapng
  aikoryu packets flows trace.pcap
  aikoryu packets rules check edge.rules
  aikoryu packets classify trace.pcap --rules edge.rules"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "packets", "look at captures, interfaces and rules", _DESCRIPTION)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action in (packet_inspect, packet_record, packet_flows, packet_classes, packet_rules):
        action.add(actions)

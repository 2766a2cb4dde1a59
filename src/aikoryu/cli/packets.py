"""`aikoryu packets`: captures as people look at them, and what rules say of them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..bus.columns import Array
from . import packet_classes, packet_rules
from .arguments import Commands, add_command
from .captures import Part, complain_if_cut, opened, parts
from .packet_lines import ALIGN, HEADING, WIDTHS, Line, lines, objects
from .progress import Progress

BATCH_PACKETS = 4096  # the first lines are there at once, whatever the size of the capture

_DESCRIPTION = """\
Look at captures, pcap or pcapng, gzipped or not, and at what rules say of their
packets. A bus is needed only where one is named.

  aikoryu packets inspect trace.pcap
  aikoryu packets rules check edge.rules
  aikoryu packets classify trace.pcap --rules edge.rules"""

_INSPECT = """\
Print a line a packet, about its innermost IP header. Times count from the first
packet, in s; lengths are bytes on the wire. On a terminal lines are cut at its
edge. With --json an object a packet, with all that was read of it.

  aikoryu packets inspect trace.pcapng.gz
  aikoryu packets inspect trace.pcap --limit 20
  aikoryu packets inspect trace.pcap --json | jq 'select(.error)'"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "packets", "look at captures and rules", _DESCRIPTION)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    inspect = add_command(actions, "inspect", "a line a packet", _INSPECT)
    inspect.add_argument("file", type=Path, metavar="FILE", help="a capture")
    inspect.add_argument("--json", action="store_true", help="an object a packet, one a line")
    inspect.add_argument("--limit", type=_count, metavar="N", help="the first N packets only")
    inspect.set_defaults(run=inspect_file)
    packet_classes.add(actions)
    packet_rules.add(actions)


def inspect_file(options: argparse.Namespace) -> int:
    """Print the packets of a capture; 1 if it is cut."""
    progress = Progress() if _goes_to_a_file() else None
    with opened(options.file) as capture:
        found = parts(capture, BATCH_PACKETS, options.limit, progress)
        try:
            if options.json:
                _print_objects(found)
            else:
                _print_table(capture.blob, found)
        finally:
            if progress is not None:
                progress.close()
        return complain_if_cut(options.file, capture)


def _print_objects(found: Iterable[Part]) -> None:
    for part in found:
        for each in objects(part.index, part.packets, part.first):
            print(json.dumps(each))


def _print_table(blob: Array, found: Iterable[Part]) -> None:
    """Print lines as they come; a column becomes wider when it must."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    widths = list(WIDTHS)
    since_ns = 0
    for part in found:
        if part.first == 1:
            since_ns = int(part.index.time_ns[0])
        printed: list[Line] = list(lines(blob, part.index, part.packets, part.first, since_ns))
        if part.first == 1:
            printed.insert(0, HEADING)
        widths = [max(width, *map(len, cells)) for width, cells in zip(widths, zip(*printed, strict=True), strict=True)]
        for line in printed:
            print(_padded(line, widths)[:edge])


def _padded(line: Line, widths: Sequence[int]) -> str:
    cells = [f"{cell:{side}{width}}" for cell, side, width in zip(line[:-1], ALIGN, widths, strict=False)]
    return "  ".join([*cells, line[-1]]).rstrip()


def _goes_to_a_file() -> bool:
    """Whether nobody sees what is printed: on a terminal, or before a pager, lines themselves tell how far it is."""
    try:
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except OSError:
        return False


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of packets: write 1 or more")
    return int(text)

"""`aikoryu packets inspect`: a line a packet, of a capture or of an interface."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .arguments import Commands, add_command
from .captures import Part, complain_if_cut, opened, parts
from .failure import Failed
from .packet_files import write_packets
from .packet_lines import ALIGN, HEADING, WIDTHS, Line, lines, objects
from .packet_live import add_live, live_parts, said_of, watched
from .progress import Progress, say

BATCH_PACKETS = 4096  # the first lines are there at once, whatever the size of the capture
FILE_PACKETS = 65536

_DESCRIPTION = """\
Print a line a packet, about its innermost IP header. Its protocol is what the
first bytes of its payload say. Times count from the first packet, in s; lengths
are bytes on the wire. On a terminal lines are cut at its edge.

With --json an object a packet, with all that was read of it; with --arrow a
file of columns, Parquet or Arrow by its name. With --live packets of an
interface until Ctrl-C, which root may do, or CAP_NET_RAW lets do.

  aikoryu packets inspect trace.pcapng.gz
  aikoryu packets inspect trace.pcap --limit 20
  aikoryu packets inspect trace.pcap --json | jq 'select(.error)'
  aikoryu packets inspect trace.pcap --arrow trace.parquet
  aikoryu packets inspect --live eth0 --filter 'tcp port 80' --limit 20"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "inspect", "a line a packet", _DESCRIPTION)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a capture")
    source.add_argument("--live", metavar="IFACE", help="an interface, instead of a capture")
    add_live(parser)
    to = parser.add_mutually_exclusive_group()
    to.add_argument("--json", action="store_true", help="an object a packet, one a line")
    to.add_argument("--arrow", type=Path, metavar="OUT", help="write to a file instead: .parquet, .arrow or .feather")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print or write the packets; 1 if a capture is cut."""
    if options.live:
        with watched(options.live, options.filter) as live:
            _put(live_parts(live, options.limit), options)
            say(said_of(live.counts))
        return 0
    if options.filter:
        raise Failed("--filter goes with --live: captures are classified by rules, see aikoryu packets classify --help")
    size = FILE_PACKETS if options.arrow else BATCH_PACKETS
    with opened(options.file) as capture:
        with _progress(to_file=options.arrow is not None) as progress:
            _put(parts(capture, size, options.limit, progress), options)
        return complain_if_cut(options.file, capture)


def _put(found: Iterable[Part], options: argparse.Namespace) -> None:
    if options.arrow:
        rows = write_packets(options.arrow, found)
        print(f"{options.arrow}: {rows:,} packets")
    elif options.json:
        _print_objects(found)
    else:
        _print_table(found)


def _print_objects(found: Iterable[Part]) -> None:
    for part in found:
        for each in objects(part.blob, part.index, part.packets, part.first):
            print(json.dumps(each))
        sys.stdout.flush()


def _print_table(found: Iterable[Part]) -> None:
    """Print lines as they come; a column becomes wider when it must."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    widths = list(WIDTHS)
    since_ns = 0
    for part in found:
        if part.first == 1:
            since_ns = int(part.index.time_ns[0])
        printed: list[Line] = list(lines(part.blob, part.index, part.packets, part.first, since_ns))
        if part.first == 1:
            printed.insert(0, HEADING)
        widths = [max(width, *map(len, cells)) for width, cells in zip(widths, zip(*printed, strict=True), strict=True)]
        for line in printed:
            print(_padded(line, widths)[:edge])
        sys.stdout.flush()


def _padded(line: Line, widths: Sequence[int]) -> str:
    cells = [f"{cell:{side}{width}}" for cell, side, width in zip(line[:-1], ALIGN, widths, strict=False)]
    return "  ".join([*cells, line[-1]]).rstrip()


@contextmanager
def _progress(*, to_file: bool) -> Iterator[Progress | None]:
    """Tell how far it is where nothing else does: on a terminal, or before a pager, lines themselves do."""
    if not to_file and not _goes_to_a_file():
        yield None
        return
    progress = Progress()
    try:
        yield progress
    finally:
        progress.close()


def _goes_to_a_file() -> bool:
    try:
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except OSError:
        return False

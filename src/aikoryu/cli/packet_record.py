"""`aikoryu packets record`: packets of an interface to a capture file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from ..netio.packet_index import empty
from ..netio.writer import write_pcapng
from .arguments import Commands, add_command
from .failure import Failed
from .packet_live import add_live, blocks, said_of, watched
from .progress import Progress, say

_DESCRIPTION = """\
Write packets of an interface to a pcapng file, until Ctrl-C. Times are in ns;
frames may be longer than the MTU where the interface joins them. Root may do
this, or who has CAP_NET_RAW.

  aikoryu packets record eth0 trace.pcapng --filter 'tcp port 80'
  aikoryu packets record eth0 trace.pcapng --seconds 60"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "record", "packets of an interface to a file", _DESCRIPTION)
    parser.add_argument("interface", metavar="IFACE", help="its name, as `ip link` lists them")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to; it must not be there yet")
    add_live(parser)
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="how long (default: until Ctrl-C)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record, and say what is in the file."""
    packets = size = 0
    progress = Progress()
    with watched(options.interface, options.filter) as live:
        try:
            with options.file.open("xb") as file:
                for block in blocks(live, options.limit, options.seconds):
                    write_pcapng(file, block.blob, block.index)
                    packets, size = packets + len(block.index), file.tell()
                    progress.show(f"{packets:,} packets, {size / 2**20:,.1f} MiB")
                if not packets:
                    write_pcapng(file, np.empty(0, np.uint8), empty(0))  # a capture all the same
        except FileExistsError:
            raise Failed(f"{options.file} is there already: name another file, or remove it") from None
        except OSError as error:
            raise Failed(f"{options.file} cannot be written: {error.strerror}") from None
        finally:
            progress.close()
        say(said_of(live.counts))
    print(f"{options.file}: {packets:,} packets, {size / 2**20:,.1f} MiB")
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds

"""A process that reads a capture as a user of netio does: `python -m benchmarks.packets_reader WHAT FILE [PART PARTS]`.

Of several processes each walks through the whole file and dissects every so many-th batch: finding where packets lie is
the smaller part of the work, and nothing has to be agreed on.
"""

from __future__ import annotations

import sys

from aikoryu.netio.capture import open_capture
from aikoryu.netio.capture_flows import capture_flows
from aikoryu.netio.dissect import dissect
from benchmarks.peers.capture_readers import Read, serve


def columns(part: int, parts: int) -> Read:
    """Headers of packets as columns, of each `parts`-th batch."""

    def read(path: str) -> int:
        packets = 0
        with open_capture(path) as capture:
            for number, index in enumerate(capture.batches()):
                if number % parts == part:
                    packets += len(dissect(capture.blob, index.offset, index.captured, index.link, index.wire))
        return packets

    return read


def flows(path: str) -> int:
    """Flows; how many of the packets they hold."""
    with open_capture(path) as capture:
        return sum(int(ended.packets.sum()) for ended in capture_flows(capture))


def main(what: str, path: str, part: str = "0", parts: str = "1") -> None:
    """Serve one reading."""
    serve(flows if what == "flows" else columns(int(part), int(parts)), path)


if __name__ == "__main__":
    main(*sys.argv[1:])

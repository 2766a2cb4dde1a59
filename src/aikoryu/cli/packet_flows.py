"""`aikoryu packets flows`: the flows of a capture, here or kept by a worker."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path

import numpy as np
import uvloop

from ..agents import connect
from ..config import configure_logging
from ..netio.address_text import address_texts
from ..netio.capture import Capture
from ..netio.conn_log import ConnLog
from ..netio.flow_cuts import MOST_S, BadTable, Timeouts
from ..netio.flow_key import KeyChoice
from ..netio.flow_table import FlowTable
from ..netio.flows import Flows
from ..netio.packet_index import Array
from ..netio.tcp_state import ConnState
from .arguments import Commands, add_command, add_settings, settings_of
from .captures import complain_if_cut, opened, parts
from .failure import Failed
from .packet_files import write_flows
from .packet_lines import PROTOCOLS, SECOND, WITH_PORTS
from .progress import Progress

BATCH_PACKETS = 65536

_DESCRIPTION = """\
Print a line a flow, as they end: both directions of a conversation, the
originator first, times UTC, states and histories those of Zeek. On a terminal
lines are cut at its edge. With --conn-log what Zeek would write, with --json the
same as an object a flow; with --arrow a file of all columns, Parquet or Arrow by
its name. With --nats a worker keeps the flows.

  aikoryu packets flows trace.pcap
  aikoryu packets flows trace.pcap --conn-log > conn.log
  aikoryu packets flows trace.pcap --idle 5 --json | jq 'select(.conn_state == "REJ")'
  aikoryu packets flows trace.pcap --arrow flows.parquet
  aikoryu packets flows trace.pcap --nats nats://127.0.0.1:4222"""

Line = tuple[str, ...]

HEADING: Line = (
    *("Start", "Duration", "Protocol", "Originator", "Responder"),
    *("Packets", "Back", "Bytes", "Back", "State", "History"),
)
ALIGN = "<><<<>>>><<"
WIDTHS = (26, 11, 8, 21, 21, 7, 5, 9, 9, 6, 0)
"""The least, so that flows that come later seldom need more."""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "flows", "a line a flow", _DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="a capture")
    parser.add_argument(
        "--header", choices=("inner", "outer"), default="inner", help="the IP header whose ends count (default inner)"
    )
    parser.add_argument(
        "--idle",
        type=float,
        default=120.0,
        metavar="S",
        help="a flow silent for so long has ended (120; 0: never)",
    )
    parser.add_argument(
        "--active", type=float, default=1800.0, metavar="S", help="a flow this long is cut (1800; 0: never)"
    )
    to = parser.add_mutually_exclusive_group()
    to.add_argument("--conn-log", action="store_true", help="Zeek's conn.log")
    to.add_argument("--json", action="store_true", help="the same as an object a flow, one a line")
    to.add_argument("--arrow", type=Path, metavar="OUT", help="write to a file instead: .parquet, .arrow or .feather")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print or write the flows; 1 if the capture is cut.

    Raises:
        Failed: a time-out is none.
    """
    timeouts = _timeouts(options)
    progress = Progress() if options.arrow else None
    with opened(options.file) as capture:
        try:
            if options.nats:
                _put(_asked(options, capture, timeouts, progress), options)
            else:
                _put(_kept_here(options, capture, timeouts, progress), options)
        finally:
            if progress is not None:
                progress.close()
        return complain_if_cut(options.file, capture)


def _timeouts(options: argparse.Namespace) -> Timeouts:
    try:
        return Timeouts(options.idle or None, options.active or None)
    except BadTable:
        raise Failed(
            f"--idle {options.idle:g} --active {options.active:g}: give seconds, 1e-9 to {MOST_S}, or 0 for no time-out"
        ) from None


def _kept_here(
    options: argparse.Namespace, capture: Capture, timeouts: Timeouts, progress: Progress | None
) -> Iterator[Flows]:
    """The flows, kept in this process."""
    table = FlowTable(KeyChoice(options.header), timeouts)
    for part in parts(capture, BATCH_PACKETS, progress=progress):
        index = part.index
        yield table.update(part.packets, index.time_ns, index.wire)
        if index.timed.any():
            yield table.expire(int(index.time_ns[index.timed].min()))
    yield table.flush()


def _asked(
    options: argparse.Namespace, capture: Capture, timeouts: Timeouts, progress: Progress | None
) -> Iterator[Flows]:
    """The flows, kept by a worker."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)

    async def asked() -> AsyncGenerator[Flows, None]:
        count = 0
        async with connect(settings=settings) as bus:
            async for flows in bus.packets.flows(capture, key=KeyChoice(options.header), timeouts=timeouts):
                count += len(flows)
                if progress is not None:
                    progress.show(f"{count:,} flows")
                yield flows

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = asked()
        try:
            while True:
                try:
                    yield runner.run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            runner.run(found.aclose())


def _put(found: Iterable[Flows], options: argparse.Namespace) -> None:
    if options.arrow:
        rows = write_flows(options.arrow, found)
        print(f"{options.arrow}: {rows:,} flows")
    elif options.conn_log or options.json:
        with ConnLog(sys.stdout, "json" if options.json else "tsv") as log:
            for flows in found:
                log.write(flows)
    else:
        _print_table(found)


def _print_table(found: Iterable[Flows]) -> None:
    """Print lines as flows end; a column becomes wider when it must."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    widths = list(WIDTHS)
    printed = [HEADING]
    for flows in found:
        printed += lines(flows)
        widths = [max([width, *map(len, cells)]) for width, *cells in zip(widths, *printed, strict=True)]
        for line in printed:
            cells = (f"{cell:{side}{width}}" for cell, side, width in zip(line, ALIGN, widths, strict=True))
            print("  ".join(cells).rstrip()[:edge])
        printed = []


def lines(flows: Flows) -> Iterator[Line]:
    """A line a flow; times are UTC."""
    start, end = flows.start_ns, flows.end_ns
    columns: tuple[Iterable[str], ...] = (
        [text.replace("T", " ") for text in np.datetime_as_string(start.astype("M8[ns]"), unit="us").tolist()],
        [f"{(last - first) / SECOND:.6f}" for first, last in zip(start.tolist(), end.tolist(), strict=True)],
        [PROTOCOLS.get(number, f"IP {number}") for number in flows.protocol.tolist()],
        _ends(flows, flows.source_high, flows.source_low, flows.source_port),
        _ends(flows, flows.destination_high, flows.destination_low, flows.destination_port),
        *(map(str, column.tolist()) for column in (*flows.packets.T, *flows.wire_bytes.T)),
        [ConnState(state).name for state in flows.state.tolist()],
        flows.history.tolist(),
    )
    return zip(*columns, strict=True)


def _ends(flows: Flows, high: Array, low: Array, port: Array) -> Iterator[str]:
    """An end of each flow, with its port where the protocol has ports."""
    texts, which = address_texts(flows.version, high, low)
    has_port = np.isin(flows.protocol, WITH_PORTS) & ~flows.is_fragment
    for address, number, is_told in zip(texts[which].tolist(), port.tolist(), has_port.tolist(), strict=True):
        ends = f"[{address}]" if ":" in address else address
        yield f"{ends}:{number}" if is_told else address

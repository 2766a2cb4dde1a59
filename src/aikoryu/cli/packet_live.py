"""Packets of an interface for a command, until it is enough or Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..netio.dissect import dissect
from ..netio.errors import NetError
from .captures import Part
from .failure import Failed

if TYPE_CHECKING:
    from ..netio.live import Block, Counts, LiveCapture

LOOK_S = 0.1


def add_live(parser: argparse.ArgumentParser) -> None:
    """Let a command choose packets of an interface."""
    parser.add_argument(
        "--filter", default="", metavar="TEXT", help="of the interface, only packets that pass it, as in tcpdump"
    )
    parser.add_argument("--limit", "--count", type=_count, metavar="N", help="the first N packets only")


@contextmanager
def watched(interface: str, filter: str) -> Iterator[LiveCapture]:  # noqa: A002 - as the option
    """The packets of an interface, for a command.

    Raises:
        Failed: they cannot be had.
    """
    try:
        from ..netio.live import LiveCapture
    except ImportError:
        raise Failed("packets of interfaces can be had on Linux only") from None
    try:
        with LiveCapture(interface, filter) as live:
            yield live
    except NetError as error:
        raise Failed(str(error)) from None


def blocks(live: LiveCapture, most: int | None = None, seconds: float | None = None) -> Iterator[Block]:
    """Blocks as they come, until there are enough packets, the time has passed, or Ctrl-C; the last one is cut to that.

    Args:
        live: an open one.
        most: packets of all blocks together.
        seconds: how long.
    """
    end = float("inf") if seconds is None else time.monotonic() + seconds
    with _stop_asked() as asked:
        while (most is None or most > 0) and not asked.is_set() and time.monotonic() < end:
            block = live.take(LOOK_S)
            if block is None or not len(block.index):
                continue
            if most is not None:
                block.index = block.index[:most]
                most -= len(block.index)
            yield block


def live_parts(live: LiveCapture, most: int | None = None) -> Iterator[Part]:
    """The same, dissected."""
    first = 1
    for block in blocks(live, most):
        index = block.index
        packets = dissect(block.blob, index.offset, index.captured, index.link, index.wire)
        yield Part(first, block.blob, index, packets)
        first += len(index)


def said_of(counts: Counts) -> str:
    """A sentence on what was received and dropped."""
    return f"{counts.received:,} packets passed the filter, {counts.dropped:,} of them were dropped for want of time"


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second does what it always does."""
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(*_: object) -> None:
        asked.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of packets: write 1 or more")
    return int(text)

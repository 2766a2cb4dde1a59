"""Captures, read batch after batch for a command, with a word on how far it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..netio.capture import Capture, open_capture
from ..netio.dissect import dissect
from ..netio.errors import NetError
from ..netio.packet_index import Array, PacketIndex
from ..netio.packets import Packets
from .failure import Failed
from .progress import Progress


@dataclass(frozen=True, slots=True)
class Part:
    """Some packets of a capture.

    Attributes:
        first: number of the first one, from 1.
        blob: in which they lie.
        index: where.
        packets: what they are.
    """

    first: int
    blob: Array
    index: PacketIndex
    packets: Packets


@contextmanager
def opened(path: Path) -> Iterator[Capture]:
    """A capture, for a command.

    Raises:
        Failed: it cannot be read, or is none.
    """
    try:
        capture = open_capture(path)
    except NetError as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from None
    with capture:
        yield capture


def parts(capture: Capture, size: int, most: int | None = None, progress: Progress | None = None) -> Iterator[Part]:
    """The packets of a capture, dissected, `size` at once.

    Args:
        capture: an open one.
        size: packets of a part.
        most: packets of all parts together; all of the capture if None.
        progress: where to tell how far it is.
    """
    first = 1
    for index in capture.batches(size):
        if most is not None:
            index = index[: most - first + 1]
        if len(index):
            packets = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
            yield Part(first, capture.blob, index, packets)
            first += len(index)
            if progress is not None:
                done = int(index.offset[-1]) + int(index.captured[-1])
                progress.show(f"{first - 1:,} packets, {done / len(capture.blob):.0%}")
        if most is not None and first > most:
            return


def complain_if_cut(path: Path, capture: Capture) -> int:
    """Say so where a capture ends inside a packet; the exit status that follows from it."""
    if capture.truncated:
        print(f"aikoryu: {path} ends inside a packet, or is damaged: this is what comes before", file=sys.stderr)
    return int(capture.truncated)

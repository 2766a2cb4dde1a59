"""Where the packets of a capture lie: one row a packet, one array a property."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

NO_LINK = 0xFFFF
"""Link type of a packet whose interface the file does not describe."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Rows of a capture's index; offsets count from the start of `Capture.blob`.

    Attributes:
        offset: (n,) uint64, first byte of each packet.
        captured: (n,) uint32, bytes that lie in the file.
        wire: (n,) uint32, bytes the packet had on the wire.
        time_ns: (n,) int64, nanoseconds since 1970; 0 where the file has no time.
        timed: (n,) bool, whether the file has a time.
        link: (n,) uint16, link type (https://www.tcpdump.org/linktypes.html); `NO_LINK` where it is not known.
        interface: (n,) uint32, number of the interface in its section of the file; 0 in pcap.
    """

    offset: Array
    captured: Array
    wire: Array
    time_ns: Array
    timed: Array
    link: Array
    interface: Array

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, rows: Any) -> PacketIndex:
        """The rows of a slice, of row numbers or of a mask."""
        return PacketIndex(*(getattr(self, name)[rows] for name in NAMES))


DTYPES: dict[str, np.dtype[Any]] = {
    "offset": np.dtype("u8"),
    "captured": np.dtype("u4"),
    "wire": np.dtype("u4"),
    "time_ns": np.dtype("i8"),
    "timed": np.dtype("?"),
    "link": np.dtype("u2"),
    "interface": np.dtype("u4"),
}
NAMES = tuple(field.name for field in fields(PacketIndex))


def empty(rows: int) -> PacketIndex:
    """An index of zeros."""
    return PacketIndex(*(np.zeros(rows, DTYPES[name]) for name in NAMES))


def joined(parts: Iterable[PacketIndex]) -> PacketIndex:
    """The rows of all parts, in their order."""
    whole = [empty(0), *parts]
    return PacketIndex(*(np.concatenate([getattr(part, name) for part in whole]) for name in NAMES))

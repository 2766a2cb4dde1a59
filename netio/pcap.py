"""The pcap file format: 24 bytes of header, then packets, each behind 16 bytes of its own.

Source: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Literal

import numpy as np

from .chain import Chain
from .errors import BadCapture
from .packet_index import Array, PacketIndex
from .records import headers

MAGIC: dict[bytes, tuple[Literal["<", ">"], int]] = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""First bytes of a file: its byte order, and nanoseconds in a unit of its times' fraction."""

FILE_BYTES = 24
RECORD_BYTES = 16
LENGTH_AT = 8
LARGEST_PACKET = 2**18


class PcapScan:
    """Walks from packet to packet and says where they lie.

    Args:
        blob: (n,) uint8, the whole file.

    Attributes:
        truncated: the file ended inside a packet. True only once the scan came to that end.

    Raises:
        BadCapture: the file has no whole pcap header.
    """

    def __init__(self, blob: Array) -> None:
        head = blob[:FILE_BYTES].tobytes()
        if head[:4] not in MAGIC or len(head) < FILE_BYTES:
            raise BadCapture(f"a pcap file begins with {FILE_BYTES} bytes of header; this one does not: name another")
        order, self._unit_ns = MAGIC[head[:4]]
        # The upper bits say whether frames end with a check sequence.
        self._link = Struct(order + "I").unpack(head[20:])[0] & 0xFFFF
        self._records = PcapRecords(blob, FILE_BYTES, order)
        self._chain = Chain(self._records)
        self.truncated = False

    def take(self, limit: int) -> PacketIndex:
        """The next packets, `limit` of them, or fewer where the file ends."""
        places = self._chain.take(limit)
        rows = len(places)
        self.truncated = rows < limit and self._records.at != len(self._records.blob)
        heads = self._records.heads(places)
        time_ns = heads["seconds"].astype(np.int64)
        time_ns *= 1_000_000_000
        time_ns += heads["fraction"].astype(np.int64) * self._unit_ns
        return PacketIndex(
            offset=(places + RECORD_BYTES).astype(np.uint64),
            captured=heads["captured"].astype(np.uint32),
            wire=heads["wire"].astype(np.uint32),
            time_ns=time_ns,
            timed=np.ones(rows, bool),
            link=np.full(rows, self._link, np.uint16),
            interface=np.zeros(rows, np.uint32),
        )


class PcapRecords:
    """The records of a pcap file, all of them packets; see `chain.Records`."""

    head_bytes = RECORD_BYTES

    def __init__(self, blob: Array, at: int, order: Literal["<", ">"]) -> None:
        self.blob = blob
        self.at = at
        self._head = np.dtype([(name, order + "u4") for name in ("seconds", "fraction", "captured", "wire")])
        self._length = np.dtype(order + "u4")
        self._unpack = Struct(order + "I").unpack_from
        # The upper half of a time in seconds, which changes every 18 hours.
        self._mark_at = 2 if order == "<" else 0

    def heads(self, places: Array) -> Array:
        """What stands before each packet."""
        return headers(self.blob, places, self._head)

    def plain(self, until: int) -> Iterator[int]:
        """The packets one after the other."""
        blob, length_at = self.blob.data, self._unpack
        last = len(blob) - RECORD_BYTES
        at, end = self.at, min(until, last + 1)
        while at < end:
            (length,) = length_at(blob, at + LENGTH_AT)
            if length > last - at:
                break
            yield at
            at += RECORD_BYTES + length
        self.at = at

    def mark(self) -> tuple[int, bytes]:
        """The upper half of the time."""
        first = self.at + self._mark_at
        return self._mark_at, self.blob[first : first + 2].tobytes()

    def likely(self, places: Array) -> Array:
        """A time like that of the packet at hand, and lengths that can be."""
        heads, (now,) = self.heads(places), self.heads(np.array([self.at]))
        recent = heads["seconds"] >> 16 == now["seconds"] >> 16
        likely: Array = recent & (heads["captured"] <= heads["wire"]) & (heads["wire"] <= LARGEST_PACKET)
        return likely

    def following(self, places: Array) -> Array:
        """Where the next packets begin."""
        following: Array = places + headers(self.blob, places + LENGTH_AT, self._length)
        return following + RECORD_BYTES

    def packets(self, places: Array) -> int:
        """All of them, but for the last if it goes beyond the file."""
        return len(places) - int(self.following(places[-1:])[0] > len(self.blob))

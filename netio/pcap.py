"""The pcap file format: 24 bytes of header, then packets, each behind 16 bytes of its own.

Source: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

from struct import Struct
from typing import Literal

import numpy as np

from .chain import RECORD_BYTES, Chain
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
        self._record = np.dtype([(name, order + "u4") for name in ("seconds", "fraction", "captured", "wire")])
        self._blob = blob
        self._chain = Chain(blob, FILE_BYTES, order)
        self.truncated = False

    def take(self, limit: int) -> PacketIndex:
        """The next packets, `limit` of them, or fewer where the file ends."""
        places = self._chain.take(limit)
        self.truncated = len(places) < limit and self._chain.at != len(self._blob)
        records = headers(self._blob, places, self._record)
        rows = len(places)
        time_ns = records["seconds"].astype(np.int64)
        time_ns *= 1_000_000_000
        time_ns += records["fraction"].astype(np.int64) * self._unit_ns
        return PacketIndex(
            offset=(places + RECORD_BYTES).astype(np.uint64),
            captured=records["captured"].astype(np.uint32),
            wire=records["wire"].astype(np.uint32),
            time_ns=time_ns,
            timed=np.ones(rows, bool),
            link=np.full(rows, self._link, np.uint16),
            interface=np.zeros(rows, np.uint32),
        )

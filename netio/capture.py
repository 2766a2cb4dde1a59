"""Captures of packets in files, read through a memory map."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from . import pcap, pcapng
from .errors import BadCapture
from .packet_index import Array, PacketIndex, joined

BATCH_PACKETS = 65536

GZIP_MAGIC = b"\x1f\x8b"


class Scan(Protocol):
    """A walk over the packets of a file of one format."""

    truncated: bool

    def take(self, limit: int) -> PacketIndex: ...


class Capture:
    """The bytes of a capture and where its packets lie.

    A context manager. Slices of `blob` stay valid after `close`: the map goes with the last of them. A file must not be
    cut shorter while it is open, because the operating system ends a process that reads a map beyond its file.

    Args:
        blob: (n,) uint8, a whole pcap or pcapng file.

    Attributes:
        blob: (n,) uint8, read-only.
        truncated: the file ended inside a packet, or is damaged; what came before is given. Known once `index` was
            asked for or `batches` came to its end.

    Raises:
        BadCapture: the bytes begin neither as pcap nor as pcapng.
    """

    def __init__(self, blob: Array) -> None:
        self.blob = blob
        self.truncated = False
        self._scan()

    @cached_property
    def index(self) -> PacketIndex:
        """All packets of the file, about 31 bytes of memory each."""
        return joined(self.batches())

    def batches(self, limit: int = BATCH_PACKETS) -> Iterator[PacketIndex]:
        """The packets in runs of `limit`, the last one shorter: memory is bounded whatever the size of the file."""
        scan = self._scan()
        while len(part := scan.take(limit)):
            yield part
        self.truncated |= scan.truncated

    def packet(self, row: int) -> bytes:
        """The captured bytes of one packet of `index`."""
        first = int(self.index.offset[row])
        return self.blob[first : first + int(self.index.captured[row])].tobytes()

    def close(self) -> None:
        """Lets go of the file; may be called again."""
        self.blob = np.zeros(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> Scan:
        if self.blob[:4].tobytes() == pcapng.MAGIC:
            return pcapng.PcapngScan(self.blob)
        return pcap.PcapScan(self.blob)


def open_capture(path: str | Path) -> Capture:
    """Opens a pcap or pcapng file, gzipped or not; only a gzipped one is read into memory.

    Raises:
        BadCapture: the file is no capture.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        magic = file.read(2)
        if magic == GZIP_MAGIC:
            blob, cut = _inflated(magic + file.read())
        elif not magic:
            raise BadCapture(f"{path} is empty: name a pcap or pcapng file")
        else:
            blob, cut = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8), False
    try:
        capture = Capture(blob)
    except BadCapture as error:
        raise BadCapture(f"{path}: {error}") from None
    capture.truncated = cut
    return capture


def _inflated(packed: bytes) -> tuple[Array, bool]:
    """What gzip members hold, and whether the last of them is cut or damaged."""
    parts = []
    while packed:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(packed))
        except zlib.error:
            return np.frombuffer(b"".join(parts), np.uint8), True
        if not member.eof:
            return np.frombuffer(b"".join(parts), np.uint8), True
        packed = member.unused_data
    return np.frombuffer(b"".join(parts), np.uint8), False

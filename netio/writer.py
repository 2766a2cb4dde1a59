"""Captures written to files: packets that lie anywhere in a byte array, as an index says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from struct import pack
from typing import BinaryIO

import numpy as np

from . import pcap, pcapng
from .errors import BadCapture
from .packet_index import Array, PacketIndex

SNAP_BYTES = 262144
NANOSECONDS = 9
BILLION = 1_000_000_000


def write_pcap(file: BinaryIO, blob: Array, index: PacketIndex, *, unit_ns: int = 1) -> None:
    """Writes packets as a little-endian pcap file.

    Args:
        file: where to write.
        blob: (m,) uint8 in which the packets lie.
        index: the packets; interfaces are not kept, and a packet without a time gets 1970.
        unit_ns: 1 for nanoseconds, 1000 for microseconds, to which times are rounded down.

    Raises:
        BadCapture: pcap cannot hold these packets, which have several link types, or times before 1970 or after 2106.
            Nothing was written; write pcapng.
    """
    links = np.unique(index.link)
    seconds, fraction_ns = np.divmod(index.time_ns, BILLION)
    if len(links) > 1:
        raise BadCapture(f"a pcap file has one link type, these packets have {links.tolist()}: write pcapng")
    if len(index) and (seconds.min() < 0 or seconds.max() >= 2**32):
        raise BadCapture("a pcap file has times between 1970 and 2106, these packets have others: write pcapng")
    magic = next(magic for magic, form in pcap.MAGIC.items() if form == ("<", unit_ns))
    file.write(magic + pack("<HHiIII", 2, 4, 0, 0, SNAP_BYTES, int(links[0]) if len(links) else 1))
    records = np.empty((len(index), 4), "<u4")
    records[:, 0] = seconds
    records[:, 1] = fraction_ns // unit_ns
    records[:, 2] = index.captured
    records[:, 3] = index.wire
    file.writelines(chain.from_iterable(zip(_rows(records), _packets(blob, index), strict=True)))


def write_pcapng(file: BinaryIO, blob: Array, index: PacketIndex) -> None:
    """Writes packets as a little-endian pcapng file in nanoseconds.

    A packet without a time gets 1970. A new section begins where an interface changes its link type.

    Args:
        file: where to write.
        blob: (m,) uint8 in which the packets lie.
        index: the packets.
    """
    if not len(index):
        file.write(_section_header())
    for section in _sections(index):
        _write_section(file, blob, section)


def _sections(index: PacketIndex) -> Iterator[PacketIndex]:
    while len(index):
        _, first, which = np.unique(index.interface, return_index=True, return_inverse=True)
        changed = np.flatnonzero(index.link != index.link[first][which])
        end = int(changed[0]) if len(changed) else len(index)
        yield index[:end]
        index = index[end:]


def _write_section(file: BinaryIO, blob: Array, index: PacketIndex) -> None:
    offset_s = min(0, int(index.time_ns.min()) // BILLION)
    links = np.zeros(int(index.interface.max()) + 1, np.uint16)
    links[index.interface] = index.link
    file.write(_section_header() + b"".join(_interface(int(link), offset_s) for link in links))
    # Modulo 2**64, as the sum is when it is read.
    units = index.time_ns.view(np.uint64) + np.uint64(-offset_s * BILLION % 2**64)
    padding = -index.captured.astype(np.int64) % 4
    heads = np.empty(len(index), pcapng.BLOCKS[pcapng.ENHANCED_PACKET].newbyteorder("<"))
    heads["kind"] = pcapng.ENHANCED_PACKET
    heads["length"] = index.captured + padding + pcapng.LEAST_BYTES[pcapng.ENHANCED_PACKET]
    heads["interface"] = index.interface
    heads["high"] = units >> np.uint64(32)
    heads["low"] = units & np.uint64(0xFFFFFFFF)
    heads["captured"] = index.captured
    heads["wire"] = index.wire
    lengths = np.ascontiguousarray(heads["length"])
    pads = (bytes(count) for count in padding.tolist())
    file.writelines(
        chain.from_iterable(zip(_rows(heads), _packets(blob, index), pads, _rows(lengths), strict=True)),
    )


def _section_header() -> bytes:
    return pack("<IIIHHqI", pcapng.SECTION, 28, 0x1A2B3C4D, 1, 0, -1, 28)


def _interface(link: int, offset_s: int) -> bytes:
    options = pack(
        "<HHB3xHHqHH", pcapng.OPTION_TIME_RESOLUTION, 1, NANOSECONDS, pcapng.OPTION_TIME_OFFSET, 8, offset_s, 0, 0
    )
    length = 20 + len(options)
    return pack("<IIHHI", pcapng.INTERFACE, length, link, 0, 0) + options + pack("<I", length)


def _packets(blob: Array, index: PacketIndex) -> Iterator[memoryview]:
    view = blob.data
    for first, length in zip(index.offset.tolist(), index.captured.tolist(), strict=True):
        yield view[first : first + length]


def _rows(array: Array) -> Iterator[memoryview]:
    """The bytes of each row of a contiguous array."""
    size = array.nbytes // max(len(array), 1)
    view = array.reshape(-1).view(np.uint8).data
    return (view[at : at + size] for at in range(0, array.nbytes, size or 1))

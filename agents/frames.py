"""Whatever holds packets, as columns that workers take: captures, bytes, scapy's packets, Arrow's columns.

scapy and Arrow are never loaded here: who gives us theirs has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..bus.columns import Array, Values
from ..bus.errors import BadColumn
from ..netio.capture import Capture, open_capture
from ..netio.packet_index import NO_LINK, PacketIndex

PacketSource: TypeAlias = "str | Path | Capture | Sequence[bytes] | Any"
"""Path of a capture, an open one, bytes of packets, packets of scapy, or an Arrow table, batch or array."""

ETHERNET = 1
BATCH_PACKETS = 16384

Columns: TypeAlias = dict[str, Values]


def batches(source: PacketSource, link: int = ETHERNET) -> Iterator[Columns]:
    """The packets of a source, in runs, as the columns `frame`, and `link` and `wire` where they say something.

    Args:
        source: see `PacketSource`. An Arrow table has a column `frame`, and `link` and `wire` if it knows them.
        link: link type of packets that come without one.

    Raises:
        BadColumn: it holds no packets.
        BadCapture, OSError: the file is no capture, or cannot be read.
    """
    if isinstance(source, str | Path):
        with open_capture(source) as capture:
            yield from batches(capture)
    elif isinstance(source, Capture):
        for index in source.batches(BATCH_PACKETS):
            yield captured(source.blob, index)
    elif type(source).__module__.partition(".")[0] == "pyarrow":
        yield from _parts(_of_arrow(source), link)
    else:
        packets = _listed(source)
        yield from _parts(_of_scapy(packets) if packets and is_scapy(packets[0]) else {"frame": _bytes(packets)}, link)


def captured(blob: Array, index: PacketIndex) -> Columns:
    """Packets of a capture."""
    if not len(index):
        return {"frame": []}
    first = int(index.offset.min())
    begin = (index.offset - np.uint64(first)).astype(np.int64)
    end = begin + index.captured
    data = blob[first : first + int(end.max())].tobytes()
    frames = [data[start:stop] for start, stop in zip(begin.tolist(), end.tolist(), strict=True)]
    columns: Columns = {"frame": frames}
    if (index.link != ETHERNET).any():
        columns["link"] = index.link
    if (index.wire != index.captured).any():
        columns["wire"] = index.wire
    return columns


def is_scapy(given: Any) -> bool:
    """Whether it is a packet of scapy."""
    return any(each.__module__ == "scapy.packet" for each in type(given).__mro__)


def _parts(columns: Columns, link: int) -> Iterator[Columns]:
    """Columns in runs; those that come without a link type get one, unless it is what workers take them for."""
    rows = len(columns["frame"])
    if link != ETHERNET and "link" not in columns:
        columns["link"] = np.full(rows, link, np.uint16)
    for start in range(0, rows, BATCH_PACKETS):
        yield {name: values[start : start + BATCH_PACKETS] for name, values in columns.items()}


def _listed(source: Any) -> list[Any]:
    try:
        return list(source)
    except TypeError:
        raise _no_packets(source) from None


def _bytes(packets: list[Any]) -> list[bytes]:
    try:
        return [bytes(memoryview(packet)) for packet in packets]
    except TypeError:
        raise _no_packets(packets) from None


def _no_packets(source: Any) -> BadColumn:
    return BadColumn(
        f"{type(source).__name__} holds no packets: give bytes of packets, packets of scapy, an Arrow table, or the "
        "path of a capture"
    )


def _of_scapy(packets: Sequence[Any]) -> Columns:
    """Packets as scapy would write them; the link type is that of the outermost layer."""
    number_of = sys.modules["scapy.config"].conf.l2types.layer2num
    frames = [bytes(packet) for packet in packets]
    links = np.array([number_of.get(type(packet), NO_LINK) for packet in packets], np.uint16)
    sizes = zip(packets, frames, strict=True)
    wire = [max(packet.wirelen or 0, len(frame)) for packet, frame in sizes]
    return {"frame": frames, "link": links, "wire": np.array(wire, np.uint32)}


def _of_arrow(table: Any) -> Columns:
    names = getattr(table, "column_names", None) or getattr(getattr(table, "schema", None), "names", None)
    if names is None:  # an array, of the packets themselves
        return {"frame": _bytes(table.to_pylist())}
    if "frame" not in names:
        raise BadColumn(f"the table has the columns {', '.join(names)}: call that of the packets `frame`")
    columns: Columns = {"frame": _bytes(table.column("frame").to_pylist())}
    for name, dtype in (("link", np.uint16), ("wire", np.uint32)):
        if name in names:
            columns[name] = np.array(table.column(name).to_pylist(), dtype)
    return columns

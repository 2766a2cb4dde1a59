"""Packets of a command, written to a file of columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..netio.labels import label
from .captures import Part
from .failure import Failed


def write_packets(path: Path, found: Iterable[Part]) -> int:
    """Write packets with their labels, Parquet or Arrow by the end of the name, and give their number.

    Raises:
        Failed: the name says nothing, pyarrow is not there, or the file cannot be written.
    """
    try:
        from ..netio import arrow
    except ImportError:
        raise Failed("--arrow needs pyarrow: pip install 'aikoryu[arrow]'") from None
    if path.suffix not in arrow.WRITERS:
        raise Failed(f"{path} says no format: end its name in {', '.join(arrow.WRITERS)}")
    tables = (
        arrow.packet_table(part.packets, part.index, label(part.blob, part.index.offset, part.packets.inner))
        for part in found
    )
    try:
        return arrow.WRITERS[path.suffix](path, arrow.PACKET_SCHEMA, tables)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror or error}") from None

"""Packets and flows of a command, written to a file of columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..netio.flows import Flows
from ..netio.labels import label
from .captures import Part
from .failure import Failed


def write_packets(path: Path, found: Iterable[Part]) -> int:
    """Write packets with their labels, Parquet or Arrow by the end of the name, and give their number.

    Raises:
        Failed: the name says nothing, pyarrow is not there, or the file cannot be written.
    """
    arrow = _arrow(path)
    tables = (
        arrow.packet_table(part.packets, part.index, label(part.blob, part.index.offset, part.packets.inner))
        for part in found
    )
    return _write(path, arrow.PACKET_SCHEMA, tables)


def write_flows(path: Path, found: Iterable[Flows]) -> int:
    """Write flows likewise, and give their number.

    Raises:
        Failed: as `write_packets`.
    """
    arrow = _arrow(path)
    return _write(path, arrow.FLOW_SCHEMA, map(arrow.flow_table, found))


def _arrow(path: Path) -> ModuleType:
    """What makes tables, and writes files of this name."""
    try:
        from ..netio import arrow
    except ImportError:
        raise Failed("--arrow needs pyarrow: pip install 'aikoryu[arrow]'") from None
    if path.suffix not in arrow.WRITERS:
        raise Failed(f"{path} says no format: end its name in {', '.join(arrow.WRITERS)}")
    return arrow


def _write(path: Path, schema: Any, tables: Iterable[Any]) -> int:
    try:
        rows: int = _arrow(path).WRITERS[path.suffix](path, schema, tables)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror or error}") from None
    return rows

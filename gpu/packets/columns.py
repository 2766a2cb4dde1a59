"""Columns of dissected packets by the names they have on the bus: `error`, `outer.dport`, `inner.src_low`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...bus.columns import Array, Field, Schema, wire_dtype
from ...bus.errors import BadParameter
from ...netio.packets import HEADER_DTYPES, PACKET_DTYPES, Packets

OUTER, INNER = "outer", "inner"

DTYPES = PACKET_DTYPES | {f"{side}.{name}": dtype for side in (OUTER, INNER) for name, dtype in HEADER_DTYPES.items()}
"""The dtype of each column, in the order in which all are given. What they mean says `netio/packets.py`."""

FIELDS = {name: Field(wire_dtype(np.empty(0, dtype))) for name, dtype in DTYPES.items()}
"""The same as the bus has it."""


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The columns asked for, each once; all where none is named.

    Raises:
        BadParameter: one is not known.
    """
    found = tuple(dict.fromkeys(names)) or tuple(DTYPES)
    for name in found:
        if name not in DTYPES:
            also = f"'{OUTER}.{name}'" if name in HEADER_DTYPES else "'error', 'outer.dport' or 'inner.src_low'"
            raise BadParameter(f"columns has {name[:40]!r}, which packets do not have: write names such as {also}")
    return found


def schema_of(names: Iterable[str]) -> Schema:
    """Name and type of columns."""
    return tuple((name, FIELDS[name]) for name in names)


def column_of(packets: Packets, name: str) -> Array:
    """A column of packets: (n,)."""
    side, _, header = name.rpartition(".")
    column: Array = getattr(getattr(packets, side), header) if side else getattr(packets, name)
    return column

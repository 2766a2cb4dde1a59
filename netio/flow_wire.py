"""Flows as bytes that any language can read: a MessagePack map of columns in the form that frames have them in."""

from __future__ import annotations

import msgspec
import numpy as np

from ..bus.columns import Column, field_of, pack_array, unpack
from ..bus.errors import BadColumn
from .flows import NAMES, Flows

_NONE = Flows.joined([])
FIELDS = {name: field_of(getattr(_NONE, name)) for name in NAMES}
"""Wire type of each column of `Flows`."""
FLOW_BYTES = sum(field.row_bytes for field in FIELDS.values())
"""Of one flow, without the names of columns."""
ONCE = "once-"
"""Begins the name of a table that one run alone has."""
MOST_ANSWER_BYTES = 16 << 20
"""Of flows in one answer of a worker's."""


def packed(flows: Flows) -> bytes:
    """The columns of flows by name, `{name: {t, s, d}}`; nothing at all where there are no flows."""
    if not len(flows):
        return b""
    return _encoder.encode({name: pack_array(getattr(flows, name)) for name in NAMES})


def unpacked(blob: bytes) -> Flows:
    """What `packed` made these bytes of; its arrays are read-only.

    Raises:
        BadColumn: they are of something else.
    """
    if not blob:
        return _NONE
    try:
        columns = _decoder.decode(blob)
        rows = (columns["version"].s or (0,))[0]
        found = Flows(**{name: np.asarray(unpack(columns[name], rows)) for name in NAMES})
    except (msgspec.DecodeError, KeyError) as error:
        raise BadColumn(f"these are no flows of this version: {error}") from None
    wrong = [name for name in NAMES if field_of(getattr(found, name)) != FIELDS[name]]
    if wrong:
        raise BadColumn(f"column {wrong[0]!r} of flows is {field_of(getattr(found, wrong[0]))}, not {FIELDS[wrong[0]]}")
    return found


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Column])

"""Frames of `put` and `link` as words. Pure."""

from __future__ import annotations

import numpy as np

from ...bus.columns import FIXED, Array
from ...bus.errors import BadColumn
from .calls import Asked
from .words import Links, Puts, Spec, until_ms


def said_by(call: str, asked: Asked, spec: Spec, now_ms: int) -> Puts | Links:
    """What a frame says; vectors are as they came, and whether a graph can take them is seen window by window.

    Args:
        call: `put` or `link`.
        asked: the frame.
        spec: of the graph.
        now_ms: ms since 1970, from which times to live count.

    Raises:
        BadColumn: vectors are of another dimension.
        BadValue: a name is not UTF-8.
    """
    return _puts(asked, spec, now_ms) if call == "put" else _links(asked, now_ms)


def vectors_of(asked: Asked, name: str, spec: Spec) -> Array:
    """A column of vectors, (m, d) in f2 or f4, or bits of bf16 as uint16.

    Raises:
        BadColumn: they are of another dimension.
    """
    column = asked.column(name)
    shape = column.s or (asked.rows,)
    if shape[1:] != (spec.dimension,):
        raise BadColumn(
            f"column {name!r} has {list(shape[1:])} numbers a row, this graph {spec.dimension}: send so many"
        )
    return np.frombuffer(column.d, FIXED[column.t]).reshape(shape)


def _puts(asked: Asked, spec: Spec, now_ms: int) -> Puts:
    return Puts(
        asked.texts("agent"),
        vectors_of(asked, "vector", spec),
        asked.array("version"),
        asked.array("writer"),
        until_ms(asked.array("ttl_ms", "i8"), now_ms),
        asked.array("capabilities", "u8"),
        asked.array("load", "f4"),
    )


def _links(asked: Asked, now_ms: int) -> Links:
    return Links(
        asked.texts("source"),
        asked.texts("target"),
        asked.array("weight"),
        asked.array("version"),
        asked.array("writer"),
        until_ms(asked.array("ttl_ms", "i8"), now_ms),
    )

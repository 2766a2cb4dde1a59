"""Values that people type, as the columns an operation takes; and its answers as JSON."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bus.columns import FIXED, Array
from ..bus.errors import BadColumn

_ITEM = re.compile(r"([^\s:,]+): ([\w|]+)")
_FLOATS = ("f4", "f8", "f2", "c8", "c16")
_INTEGERS = ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1")
_TEXT = {"utf8", "bin"}
_PREFERRED = {
    "f": _FLOATS,
    "u": ("u8", *_FLOATS),  # what NumPy makes of integers from 2⁶³ on
    "i": (*_INTEGERS, *_FLOATS),
    "b": ("bool", *_INTEGERS, *_FLOATS),
}


@dataclass(frozen=True)
class Input:
    """What an operation takes in a column: one of some dtypes; columns of one letter are of one dtype."""

    dtypes: tuple[str, ...]
    letter: str = ""


def inputs_of(metadata: Mapping[str, str]) -> dict[str, Input]:
    """An operation's columns, from what discovery tells of it."""
    types = dict(_ITEM.findall(metadata.get("types", "")))
    found: dict[str, str] = dict(_ITEM.findall(metadata.get("inputs", "")))
    return {
        name: Input(tuple(types.get(dtype, dtype).split("|")), dtype if dtype in types else "")
        for name, dtype in found.items()
    }


def value_of(text: str, takes: Input | None = None) -> Any:
    """What an argument means: JSON, or the text itself where that is no JSON or the column takes text.

    Raises:
        BadColumn: it is no JSON, and the column takes no text.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        if takes is None or not _TEXT.isdisjoint(takes.dtypes):
            return text
        raise BadColumn(f"{_short(text)} is invalid JSON ({error}), and text is not taken here: give numbers") from None
    is_text = takes is not None and _TEXT.issuperset(takes.dtypes)
    return text if is_text and not isinstance(value, str) else value


def row_of(values: Mapping[str, Any], inputs: Mapping[str, Input]) -> dict[str, Any]:
    """A row as `call` takes it, from JSON values.

    Args:
        values: by column.
        inputs: what the operation takes; of a column it does not know, numbers become float32 or int64.

    Raises:
        BadColumn: a list is ragged, or holds something else than numbers.
    """
    row: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name, value in values.items():
        if isinstance(value, str):
            row[name] = _bytes(name, value) if inputs.get(name, Input(())).dtypes == ("bin",) else value
        else:
            row[name] = arrays[name] = _numbers(name, value)
    for name, array in arrays.items():
        takes = inputs.get(name, Input(()))
        together = [arrays[other] for other in arrays if other == name or _share(takes, inputs.get(other))]
        row[name] = sent = array.astype(_dtype(together, takes))
        if sent.dtype.kind in "ui" and bool(np.any(sent != array)):
            raise BadColumn(f"column {name!r}: a number does not fit {sent.dtype}, which {name!r} takes: give others")
    return row


def plain(value: Any) -> Any:
    """An answer's value as JSON has it: complex numbers as [re, im], bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    if array.dtype.itemsize < 8 and array.dtype.kind == "f":
        # Through its shortest decimal form: 0.1, not 0.10000000149011612.
        array = array.astype(np.str_).astype(np.float64)
    return array.tolist()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _share(one: Input, other: Input | None) -> bool:
    return bool(one.letter) and other is not None and one.letter == other.letter


def _dtype(arrays: list[Array], takes: Input) -> np.dtype[Any]:
    """The dtype these numbers are sent in: the first that fits them among those the operation takes."""
    kinds = {array.dtype.kind for array in arrays}
    preferred = next(dtypes for kind, dtypes in _PREFERRED.items() if kind in kinds)
    return FIXED[next((name for name in preferred if name in takes.dtypes), preferred[0])]


def _numbers(name: str, value: Any) -> Array:
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise BadColumn(f"column {name!r}: lists of unequal length make no array: give them equal lengths") from None
    if array.dtype.kind not in "fuib":
        raise BadColumn(f"column {name!r}: give a text, a number, true or false, or lists of numbers of equal length")
    return array


def _bytes(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise BadColumn(f"column {name!r} takes bytes: give them in base64") from None

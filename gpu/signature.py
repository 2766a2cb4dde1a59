"""Signatures: what columns an operation takes and gives, written once and used for checks, messages and sizes.

`"T[i,k]"` reads: rows of some dtype T, each of shape (i, k). Equal names must be equal among all columns of a row, so
`{"a": "T[i,k]", "b": "T[k,j]"} -> {"c": "T[i,j]"}` is the matrix product and `"T[...]"` any one shape. A dtype is a
wire name (`f4`), a choice of them (`f4|f8`), or a capital letter bound to whatever of its choice the caller sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bus.columns import FIXED, VARIABLE, Field, Schema
from ..bus.errors import BadColumn

_SPEC = re.compile(r"(?P<dtype>[\w|]+)(\[(?P<dims>[\w,. ]*)\])?$")
_ALL = "..."

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pattern:
    """One column's pattern: the dtypes it admits, the letter they bind, and the dimensions of a row."""

    text: str
    dtypes: tuple[str, ...]
    letter: str
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Signature:
    """The columns of an operation.

    Attributes:
        inputs: pattern of each column a request must have, by name.
        outputs: pattern of each column the answer has; every name in it is bound by an input or is a number.
        types: the dtypes each capital letter may stand for, as `"f4|f8"`.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_in", {name: self._parse(spec) for name, spec in self.inputs.items()})
        object.__setattr__(self, "_out", {name: self._parse(spec) for name, spec in self.outputs.items()})

    def bind(self, schema: Schema) -> Schema:
        """The schema of the answer to a request of this schema.

        Raises:
            BadColumn: a column is missing, unknown, or does not match its pattern; the message says which and why.
        """
        patterns: dict[str, Pattern] = self._in  # type: ignore[attr-defined]
        fields = dict(schema)
        missing = [name for name in patterns if name not in fields]
        unknown = [name for name in fields if name not in patterns]
        if missing or unknown:
            what = f"column {missing[0]!r} is missing" if missing else f"column {unknown[0]!r} is not known here"
            raise BadColumn(f"{what}: send {self}")
        sizes: Sizes = {}
        letters: dict[str, str] = {}
        for name, pattern in patterns.items():
            _match(name, pattern, fields[name], sizes, letters)
        answers: dict[str, Pattern] = self._out  # type: ignore[attr-defined]
        return tuple((name, _resolve(pattern, sizes, letters)) for name, pattern in answers.items())

    def __str__(self) -> str:
        return ", ".join(f"{name}: {spec}" for name, spec in self.inputs.items())

    def _parse(self, spec: str) -> Pattern:
        match = _SPEC.match(spec)
        if match is None:
            raise ValueError(f"signature {spec!r}: write dtype[dims], such as 'f4[384]', 'T[i,k]' or 'utf8'")
        dtype = match["dtype"]
        letter = dtype if len(dtype) == 1 and dtype.isupper() else ""
        if letter and letter not in self.types:
            raise ValueError(f"signature {spec!r}: say in `types` what {letter} may stand for")
        dtypes = tuple((self.types[letter] if letter else dtype).split("|"))
        for name in dtypes:
            if name not in FIXED and name not in VARIABLE:
                raise ValueError(f"signature {spec!r}: {name!r} is no dtype of the bus")
        dims = tuple(dim.strip() for dim in (match["dims"] or "").split(",") if dim.strip())
        if _ALL in dims and len(dims) > 1:
            raise ValueError(f"signature {spec!r}: '...' stands for the whole shape, alone")
        return Pattern(spec, dtypes, letter, dims)


def _match(name: str, pattern: Pattern, found: Field, sizes: Sizes, letters: dict[str, str]) -> None:
    """Check one column, and bind its dimensions and letter."""
    if found.dtype not in pattern.dtypes:
        raise BadColumn(f"column {name!r} is {found.dtype}: send {' or '.join(pattern.dtypes)}")
    bound = letters.setdefault(pattern.letter, found.dtype) if pattern.letter else found.dtype
    if bound != found.dtype:
        raise BadColumn(f"column {name!r} is {found.dtype}, but another column is {bound}: send both in one dtype")
    if pattern.dims == (_ALL,):
        _bind(name, pattern, _ALL, found.shape, sizes)
        return
    if len(found.shape) != len(pattern.dims):
        raise BadColumn(
            f"a row of column {name!r} has {len(found.shape)} dimensions {list(found.shape)}: "
            f"send {pattern.text}, {len(pattern.dims)} dimensions a row"
        )
    for dim, size in zip(pattern.dims, found.shape, strict=True):
        if dim.isdigit():
            if int(dim) != size:
                raise BadColumn(f"a row of column {name!r} is {found}: send {pattern.text}")
        else:
            _bind(name, pattern, dim, (size,), sizes)


def _bind(name: str, pattern: Pattern, dim: str, size: tuple[int, ...], sizes: Sizes) -> None:
    bound = sizes.setdefault(dim, size)
    if bound != size:
        what = "the shape" if dim == _ALL else f"dimension {dim}"
        raise BadColumn(
            f"column {name!r} ({pattern.text}): {what} is {_show(size)}, but another column has {_show(bound)}"
        )


def _show(size: tuple[int, ...]) -> str:
    return str(size[0]) if len(size) == 1 else str(list(size))


def _resolve(pattern: Pattern, sizes: Sizes, letters: dict[str, str]) -> Field:
    dtype = letters[pattern.letter] if pattern.letter else pattern.dtypes[0]
    shape: tuple[int, ...] = ()
    for dim in pattern.dims:
        shape += (int(dim),) if dim.isdigit() else sizes[dim]
    return Field(dtype, shape)

"""Signatures: what columns an operation takes and gives, written once and used for checks, messages and sizes.

`"T[i,k]"` reads: rows of some dtype T, each of shape (i, k). Equal names must be equal among all columns of a row, so
`{"a": "T[i,k]", "b": "T[k,j]"} -> {"c": "T[i,j]"}` is the matrix product. A dtype is a wire name (`f4`), a choice of
them (`f4|f8`), or a capital letter bound to whatever of its choice the caller sends. Dimensions are names, numbers, or

    k?        one that a row may do without: `T[n,k?]` is a matrix or a vector
    *         first of all, any number of them, which broadcast among the columns as NumPy's do: `T[*,i,k]`, `T[*]`
    ...       alone, any shape, one for all columns that say so
    ...name   the same, one for all columns of that name
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..bus.columns import FIXED, VARIABLE, Field, Schema
from ..bus.errors import BadColumn

_SPEC = re.compile(r"(?P<dtype>[\w|]+)(\[(?P<dims>[\w,.*? ]*)\])?$")
_ALL = "..."
_BROADCAST = "*"

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pattern:
    """One column's pattern: the dtypes it admits, the letter they bind, and the dimensions of a row."""

    text: str
    dtypes: tuple[str, ...]
    letter: str
    dims: tuple[str, ...]

    @property
    def broadcasts(self) -> bool:
        """Any number of dimensions may come before those that have names."""
        return self.dims[:1] == (_BROADCAST,)

    @property
    def core(self) -> tuple[str, ...]:
        """The dimensions that have names or are numbers."""
        return self.dims[1:] if self.broadcasts else self.dims


@dataclass(frozen=True)
class Signature:
    """The columns of an operation.

    Attributes:
        inputs: pattern of each column a request must have, by name.
        outputs: pattern of each column the answer has. An operation that leaves them to `bind` has every dimension of
            them bound by an input, or a number.
        types: the dtypes each capital letter may stand for, as `"f4|f8"`.
        optional: the inputs that a request may leave out.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "_in", {name: self._parse(spec) for name, spec in self.inputs.items()})
        for spec in self.inputs.values():
            if spec.count("?") > 1:
                raise ValueError(f"signature {spec!r}: a row may do without one dimension, not more")
        object.__setattr__(self, "_out", {name: self._parse(spec) for name, spec in self.outputs.items()})

    def bind(self, schema: Schema) -> Schema:
        """The schema of the answer to a request of this schema.

        Raises:
            BadColumn: a column is missing, unknown, or does not match its pattern; the message says which and why.
        """
        sizes, letters = self._match(schema)
        answers: dict[str, Pattern] = self._out  # type: ignore[attr-defined]
        return tuple((name, _resolve(pattern, sizes, letters)) for name, pattern in answers.items())

    def check(self, schema: Schema) -> None:
        """Check the columns of a request; `bind` without the answer, for an operation that works that out itself.

        Raises:
            BadColumn: as `bind`.
        """
        self._match(schema)

    def __str__(self) -> str:
        columns = ((f"{name}?" if name in self.optional else name, spec) for name, spec in self.inputs.items())
        return ", ".join(f"{name}: {spec}" for name, spec in columns)

    def _match(self, schema: Schema) -> tuple[Sizes, dict[str, str]]:
        """What the columns bind: sizes by name of dimension, dtypes by letter."""
        patterns: dict[str, Pattern] = self._in  # type: ignore[attr-defined]
        fields = dict(schema)
        missing = [name for name in patterns if name not in fields and name not in self.optional]
        unknown = [name for name in fields if name not in patterns]
        if missing or unknown:
            what = f"column {missing[0]!r} is missing" if missing else f"column {unknown[0]!r} is not known here"
            raise BadColumn(f"{what}: send {self}")
        sizes: Sizes = {}
        letters: dict[str, str] = {}
        for name, pattern in patterns.items():
            if name in fields:
                _match_column(name, pattern, fields[name], sizes, letters)
        return sizes, letters

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
        if len(dims) > 1 and any(dim.startswith(_ALL) for dim in dims):
            raise ValueError(f"signature {spec!r}: '...' stands for the whole shape, alone")
        if _BROADCAST in dims[1:]:
            raise ValueError(f"signature {spec!r}: '*' comes first")
        return Pattern(spec, dtypes, letter, dims)


def _match_column(name: str, pattern: Pattern, found: Field, sizes: Sizes, letters: dict[str, str]) -> None:
    """Check one column, and bind its dimensions and letter."""
    if found.dtype not in pattern.dtypes:
        raise BadColumn(f"column {name!r} is {found.dtype}: send {' or '.join(pattern.dtypes)}")
    bound = letters.setdefault(pattern.letter, found.dtype) if pattern.letter else found.dtype
    if bound != found.dtype:
        raise BadColumn(f"column {name!r} is {found.dtype}, but another column is {bound}: send both in one dtype")
    if pattern.dims and pattern.dims[0].startswith(_ALL):
        _bind(name, pattern, pattern.dims[0], found.shape, sizes)
        return
    split = len(found.shape) - len(core := _present(name, pattern, found))
    if pattern.broadcasts:
        _broadcast(name, pattern, found.shape[:split], sizes)
    for dim in pattern.core:
        if dim not in core:
            _bind(name, pattern, dim, (), sizes)
    for dim, size in zip(core, found.shape[split:], strict=True):
        if dim.isdigit():
            if int(dim) != size:
                raise BadColumn(f"a row of column {name!r} is {found}: send {pattern.text}")
        else:
            _bind(name, pattern, dim, (size,), sizes)


def _present(name: str, pattern: Pattern, found: Field) -> tuple[str, ...]:
    """The named dimensions that a row has: a row too short for all does without the one it may."""
    core, rank = pattern.core, len(found.shape)
    needed = tuple(dim for dim in core if not dim.endswith("?"))
    if rank < len(needed) or (rank > len(core) and not pattern.broadcasts):
        numbers = str(len(core)) if needed == core else f"{len(needed)} or {len(core)}"
        raise BadColumn(
            f"a row of column {name!r} has {rank} dimensions {list(found.shape)}: "
            f"send {pattern.text}, {f'{len(needed)} or more' if pattern.broadcasts else numbers} dimensions a row"
        )
    return needed if rank < len(core) else core


def _bind(name: str, pattern: Pattern, dim: str, size: tuple[int, ...], sizes: Sizes) -> None:
    bound = sizes.setdefault(dim, size)
    if bound != size:
        what = "the shape" if dim.startswith(_ALL) else f"dimension {dim}"
        raise BadColumn(
            f"column {name!r} ({pattern.text}): {what} is {_show(size)}, but another column has {_show(bound)}"
        )


def _broadcast(name: str, pattern: Pattern, found: tuple[int, ...], sizes: Sizes) -> None:
    """Fold dimensions into those of the columns before, as NumPy does."""
    bound = sizes.get(_BROADCAST, ())
    rank = max(len(bound), len(found))
    folded = []
    for one, other in zip(_pad(bound, rank), _pad(found, rank), strict=True):
        if one != other and 1 not in (one, other):
            raise BadColumn(
                f"column {name!r} ({pattern.text}): {list(found)} does not broadcast with {list(bound)} of another "
                "column: from the last to the first, dimensions must be equal or 1"
            )
        folded.append(other if one == 1 else one)
    sizes[_BROADCAST] = tuple(folded)


def _pad(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + shape


def _show(size: tuple[int, ...]) -> str:
    return str(size[0]) if len(size) == 1 else str(list(size))


def _resolve(pattern: Pattern, sizes: Sizes, letters: dict[str, str]) -> Field:
    dtype = letters[pattern.letter] if pattern.letter else pattern.dtypes[0]
    shape: tuple[int, ...] = ()
    for dim in pattern.dims:
        shape += (int(dim),) if dim.isdigit() else sizes[dim]
    return Field(dtype, shape)

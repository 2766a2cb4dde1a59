"""Where two answers to the same request differ: exactly for integers, text and bytes, within a tolerance for floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .columns import Array, Values
from .exchange import OPEN, SETTLED, TRANSIENT, Outcome

# The order in which a thousand terms are summed may cost f4 1e-4 and f2 more than it has digits, so that sums of it are
# made in f4; f8 has digits to spare.
RTOL = {"f2": 1e-2, "bf16": 5e-2, "f4": 1e-4, "c8": 1e-4, "f8": 1e-9, "c16": 1e-9}

_SHOWN = 60  # characters of a value


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far floats may be apart: `abs(now - then) <= atol + rtol * abs(then)`.

    Attributes:
        rtol: None = `RTOL` of the column's dtype.
        atol: None = rtol times the largest magnitude in the value's row, because what a sum cancels to has an error of
            the size of its terms.
    """

    rtol: float | None = None
    atol: float | None = None

    def allows(self, kind: str, then: Array, now: Array) -> Array:
        """Which elements are equal within this: (n, ...) bool of two arrays of (n, ...) floats. NaN equals NaN."""
        rtol = RTOL[kind] if self.rtol is None else self.rtol
        with np.errstate(invalid="ignore", over="ignore"):
            wide = np.complex128 if then.dtype.kind == "c" else np.float64
            then, now = then.astype(wide), now.astype(wide)
            magnitude = np.abs(then)
            finite = np.where(np.isfinite(magnitude), magnitude, 0.0)
            largest = finite.reshape(len(then), -1).max(axis=1, initial=0.0).reshape((-1,) + (1,) * (then.ndim - 1))
            atol = rtol * largest if self.atol is None else self.atol
            near = np.isfinite(magnitude) & (np.abs(now - then) <= atol + rtol * finite)
        allowed: Array = near | (now == then) | (np.isnan(now) & np.isnan(then))
        return allowed


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that was answered otherwise than before.

    Attributes:
        number: of the request, in the recording.
        operation: its subject below the root.
        row: of the request.
        column: which differs, with the element's place in the row, `y[1,2]`; empty where an error does.
        then: what was recorded, as text.
        now: what came.
    """

    number: int
    operation: str
    row: int
    column: str
    then: str
    now: str

    def __str__(self) -> str:
        where = f" {self.column}" if self.column else ""
        return f"request {self.number} {self.operation}, row {self.row}{where}: recorded {self.then}, now {self.now}"


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing the answers to one request.

    Attributes:
        rows: that were compared.
        untold: rows not compared, because the recording has no answer to them.
        differing: (rows,) numbers of rows that differ.
        found: (row, column, then, now) of each difference: the first of a row in a column.
    """

    rows: int
    untold: int
    differing: Array
    found: Iterator[tuple[int, str, str, str]]


def compare(then: Outcome, now: Outcome, tolerance: Tolerance) -> Compared:
    """Compare what was recorded with what came.

    A row of which the recording has no answer, or an error that says nothing of the operation (`exchange.TRANSIENT`),
    is not compared. Of errors the codes count, not the words.
    """
    told = _told(then)
    apart = [_Apart("", np.flatnonzero(told & _failed_otherwise(then, now)), None)]
    both = np.flatnonzero(told & then.valued & now.valued)
    if len(both):
        for name in dict.fromkeys((*then.columns, *now.columns)):
            apart.append(_column(name, then, now, both, tolerance))
    differing = np.unique(np.concatenate([each.rows for each in apart]))
    found = (difference for each in apart for difference in _shown(each, then, now))
    return Compared(int(np.count_nonzero(told)), int(np.count_nonzero(~told)), differing, found)


@dataclass(frozen=True, slots=True)
class _Apart:
    """A column, the rows in which it differs, and the first element of each that does; None for the whole row."""

    column: str
    rows: Array
    first: Array | None


def _told(outcome: Outcome) -> Array:
    told: Array = outcome.state == SETTLED
    if outcome.errors:
        told[[row for row, (code, _) in outcome.errors.items() if code in TRANSIENT]] = False
    return told


def _failed_otherwise(then: Outcome, now: Outcome) -> Array:
    """Rows with another error than before, or with one only once, or of which nothing is known now."""
    otherwise: Array = now.state == OPEN
    for row in then.errors.keys() | now.errors.keys():
        otherwise[row] = then.errors.get(row, ("",))[0] != now.errors.get(row, ("",))[0]
    return otherwise


def _column(name: str, then: Outcome, now: Outcome, rows: Array, tolerance: Tolerance) -> _Apart:
    old, new = then.columns.get(name), now.columns.get(name)
    if old is None or new is None or then.types[name] != now.types[name]:
        return _Apart(name, rows, None)
    if isinstance(old, list) or isinstance(new, list):
        return _Apart(name, np.array([row for row in rows.tolist() if old[row] != new[row]], np.int64), None)
    if old.shape[1:] != new.shape[1:]:
        return _Apart(name, rows, None)
    old, new, kind = old[rows], new[rows], then.types[name]
    if np.array_equal(old, new):  # as nearly always
        return _Apart(name, rows[:0], None)
    if then.json and kind in RTOL:
        new = np.where(np.isfinite(new), new, np.nan)
    same = tolerance.allows(kind, old, new) if kind in RTOL else old == new
    wrong = ~same.reshape(len(rows), -1)
    apart = np.flatnonzero(wrong.any(axis=1))
    return _Apart(name, rows[apart], wrong[apart].argmax(axis=1) if wrong.shape[1] else np.zeros(0, np.int64))


def _shown(apart: _Apart, then: Outcome, now: Outcome) -> Iterator[tuple[int, str, str, str]]:
    for position, row in enumerate(apart.rows.tolist()):
        if not apart.column:
            yield row, "", _word(then, row), _word(now, row)
        elif apart.first is None:
            yield row, apart.column, *_around(_text(then, apart.column, row), _text(now, apart.column, row))
        else:
            old, new = then.columns[apart.column], now.columns[apart.column]
            assert isinstance(old, np.ndarray)
            assert isinstance(new, np.ndarray)
            place = np.unravel_index(int(apart.first[position]), old.shape[1:])
            where = f"[{','.join(map(str, place))}]" if place else ""
            yield row, f"{apart.column}{where}", str(old[row][place]), str(new[row][place])


def _word(outcome: Outcome, row: int) -> str:
    """What became of a row: the code of its error with its message, or that it has values."""
    if row in outcome.errors:
        code, message = outcome.errors[row]
        return f"{code} ({message[:_SHOWN]})"
    return "values" if outcome.state[row] == SETTLED else "nothing"


def _text(outcome: Outcome, column: str, row: int) -> str:
    values: Values | None = outcome.columns.get(column)
    if values is None:
        return "no such column"
    if isinstance(values, list):
        return repr(values[row])
    return f"{outcome.types[column]}{list(values.shape[1:])}"


def _around(then: str, now: str) -> tuple[str, str]:
    """Two long texts from shortly before they part."""
    parting = next((at for at, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    first = max(0, parting - _SHOWN // 3) if max(len(then), len(now)) > _SHOWN else 0
    return _cut(then, first), _cut(now, first)


def _cut(text: str, first: int) -> str:
    end = first + _SHOWN
    return f"{'…' if first else ''}{text[first:end]}{'…' if end < len(text) else ''}"

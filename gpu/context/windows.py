"""What callers have said and the log has not: rows of frames, taken window by window. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from ...bus.columns import Array
from ...bus.errors import BadValue
from ...bus.frames import RowError, Run, row_error
from ...bus.service import Held
from .words import Links, Puts, Spec, Words, refused_links, refused_puts, rounded

BF16_BYTES = 2
NUMBER_BYTES = 40  # of the numbers of a row, at most
NAME_BYTES = 3  # before each name in the log, at most

Said = TypeVar("Said", bound=Puts | Links)


@dataclass(slots=True)
class Piece:
    """Rows of one frame that say something, all of which go into one window.

    Attributes:
        held: the frame.
        rows: (m,) int64, ascending, which of its rows.
        said: m of them; vectors are in f4 or f2 yet, or bits of bf16 as uint16.
        bytes: in the log, at most.
    """

    held: Held
    rows: Array
    said: Puts | Links
    bytes: int

    def __len__(self) -> int:
        return len(self.rows)


class Waiting:
    """Pieces that no window has taken, in the order they came.

    Args:
        most_rows: of a window.
        most_bytes: of a window in the log, unless one row has more.

    Attributes:
        rows, bytes: what waits.
    """

    def __init__(self, most_rows: int, most_bytes: int) -> None:
        self.rows = 0
        self.bytes = 0
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._pieces: deque[Piece] = deque()

    def add(self, held: Held, said: Puts | Links) -> None:
        """Let the rows of a frame wait, cut into as many pieces as windows need."""
        self._add(held, np.arange(len(said)), said)

    def take(self) -> list[Piece]:
        """The pieces of the next window, those that wait longest; none if none wait."""
        taken: list[Piece] = []
        rows = size = 0
        while self._pieces:
            piece = self._pieces[0]
            if taken and (rows + len(piece) > self._most_rows or size + piece.bytes > self._most_bytes):
                break
            taken.append(self._pieces.popleft())
            rows, size = rows + len(piece), size + piece.bytes
        self.rows -= rows
        self.bytes -= size
        return taken

    @property
    def is_full(self) -> bool:
        """Whether what waits is a window of the largest size, or more."""
        return self.rows >= self._most_rows or self.bytes >= self._most_bytes

    def take_all(self) -> list[Piece]:
        """All pieces."""
        taken, self._pieces = list(self._pieces), deque()
        self.rows = self.bytes = 0
        return taken

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def _add(self, held: Held, rows: Array, said: Puts | Links) -> None:
        size = _bytes_of(said)
        if len(rows) > 1 and (len(rows) > self._most_rows or size > self._most_bytes):
            for half in np.array_split(np.arange(len(rows)), 2):
                self._add(held, rows[half], rows_of(said, half))
            return
        self._pieces.append(Piece(held, rows, said, size))
        self.rows += len(rows)
        self.bytes += size


def rows_of(said: Said, rows: Array) -> Said:
    """Some rows, (m,) int64, of what was said."""
    numbers = rows.tolist()
    columns = (getattr(said, each.name) for each in fields(said))
    make: Any = type(said)
    found: Said = make(*([each[row] for row in numbers] if isinstance(each, list) else each[rows] for each in columns))
    return found


def words_of(pieces: list[Piece], now_ms: int, dimension: int, forget: bool) -> Words:
    """One window, whose vectors are rounded to bf16, so that a few calls of NumPy do for all frames.

    Args:
        pieces: puts and links in the order they came; which of both came first does not matter to a graph.
        now_ms: ms since 1970.
        dimension: of the graph's vectors.
        forget: as of `Words`.
    """
    said = [piece.said for piece in pieces if isinstance(piece.said, Puts)]
    if len({each.vectors.dtype for each in said}) > 1:
        said = [replace(each, vectors=rounded(each.vectors)) for each in said]
    puts = _joined(said, Puts.none(dimension))
    links = _joined([piece.said for piece in pieces if isinstance(piece.said, Links)], Links.none())
    return Words(now_ms, replace(puts, vectors=rounded(puts.vectors)), links, forget=forget)


def sifted(
    pieces: list[Piece], words: Words, spec: Spec
) -> tuple[list[Piece], Words, list[tuple[Held, list[RowError]]]]:
    """A window without the rows that a graph cannot take, and the errors of these by frame.

    Args:
        pieces: of the window.
        words: made of them.
        spec: of the graph.
    """
    bad = {Puts: refused_puts(words.puts, spec), Links: refused_links(words.links)}
    if not any(bad.values()):
        return pieces, words, []
    ends: dict[type, int] = dict.fromkeys(bad, 0)
    kept: list[Piece] = []
    refused: list[tuple[Held, list[RowError]]] = []
    for piece in pieces:
        reasons, begin = bad[type(piece.said)], ends[type(piece.said)]
        ends[type(piece.said)] += len(piece)
        fit = np.array([begin + row not in reasons for row in range(len(piece))])
        if not fit.all():
            rows = (~fit).nonzero()[0].tolist()
            errors = [row_error(BadValue(reasons[begin + row]), int(piece.rows[row]), 1) for row in rows]
            refused.append((piece.held, errors))
        if fit.any():
            kept.append(replace(piece, rows=piece.rows[fit], said=rows_of(piece.said, fit.nonzero()[0])))
    puts, links = _without(words.puts, bad[Puts]), _without(words.links, bad[Links])
    return kept, replace(words, puts=puts, links=links), refused


def runs_of(rows: Array) -> list[Run]:
    """Ascending rows as runs."""
    if not len(rows):
        return []
    cuts = (np.diff(rows) != 1).nonzero()[0] + 1
    firsts = [0, *cuts.tolist()]
    return [(int(rows[first]), end - first) for first, end in zip(firsts, [*firsts[1:], len(rows)], strict=True)]


def _without(said: Said, rows: Collection[int]) -> Said:
    return rows_of(said, np.delete(np.arange(len(said)), list(rows)))


def _bytes_of(said: Puts | Links) -> int:
    """What it takes in the log, at most."""
    names = said.agents if isinstance(said, Puts) else said.sources + said.targets
    vectors = BF16_BYTES * said.vectors.size if isinstance(said, Puts) else 0
    return len("".join(names).encode()) + NAME_BYTES * len(names) + NUMBER_BYTES * len(said) + vectors


def _joined(parts: list[Said], none: Said) -> Said:
    if len(parts) < 2:
        return parts[0] if parts else none
    joined: list[object] = []
    for each in fields(none):
        columns = [getattr(part, each.name) for part in parts]
        is_list = isinstance(columns[0], list)
        joined.append([row for column in columns for row in column] if is_list else np.concatenate(columns))
    make: Any = type(none)
    whole: Said = make(*joined)
    return whole

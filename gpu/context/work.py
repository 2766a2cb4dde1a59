"""What the device's thread does in one go: windows applied, agents looked at, rows read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...bus.columns import Column, pack_array
from ...bus.frames import Run
from ...bus.service import Held
from .reads import Columns, Read, answers
from .snapshot import Frozen, frozen
from .state import Applied, Due, GraphState, wants_forget
from .state import Read as Known
from .watchers import Look
from .windows import Piece, runs_of
from .words import Puts, Words


@dataclass(eq=False, slots=True)
class Window:
    """What the log has under an epoch, and who said it.

    Attributes:
        epoch: sequence of the log's entry.
        words: what was said.
        pieces: whose rows these are, in order; of puts and of links.
        taken: when these were taken from those that wait, monotonic time, s.
    """

    epoch: int
    words: Words
    pieces: list[Piece]
    taken: float

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def answers(self, applied: Applied) -> Iterator[tuple[Held, list[Run], Columns]]:
        """What each piece is answered once the window is applied."""
        puts = links = 0
        for piece in self.pieces:
            rows = len(piece)
            columns: dict[str, Column] = {"epoch": pack_array(np.full(rows, self.epoch, np.uint64))}
            if isinstance(piece.said, Puts):
                part, puts = slice(puts, puts + rows), puts + rows
                columns["applied"] = pack_array(applied.put_holds[part])
                columns["version"] = pack_array(applied.put_versions[part])
            else:
                part, links = slice(links, links + rows), links + rows
                columns["applied"] = pack_array(applied.link_holds[part])
            yield piece.held, runs_of(piece.rows), columns


class Done(NamedTuple):
    """What came of it.

    Attributes:
        applied: of each window.
        due: whom to tell that what reaches them has moved.
        seen: what reaches those whose watchers are answered at once.
        read: the answer of each read; None for one that fails.
        copy: of the state, if one was wanted.
        is_time_to_forget: whether the next window is to say `forget`; false unless that was asked.
    """

    applied: list[Applied]
    due: Due | None
    seen: Known | None
    read: list[Columns | None]
    copy: Frozen | None
    is_time_to_forget: bool


@dataclass(eq=False, slots=True)
class Work:
    """What is to be done, in this order.

    Attributes:
        windows: to apply.
        look: at whom, if at anybody.
        reads: frames.
        wants_copy: whether a snapshot is to be taken.
        asks_forget: whether to see if it is time to forget.
        age_s: since the newest window before these was applied, s.
        now_ms: on a clock that never goes back.
        more: what `stats` tells besides the state's figures.
    """

    windows: list[Window]
    look: Look
    reads: list[Read]
    wants_copy: bool
    asks_forget: bool
    age_s: float
    now_ms: int
    more: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.windows or self.look or self.reads or self.wants_copy or self.asks_forget)

    def run(self, state: GraphState) -> Done:
        """Do it; in the device's thread."""
        applied = [state.apply(window.epoch, window.words) for window in self.windows]
        look = self.look
        if look.changed:
            state.watch(look.changed, look.thresholds, look.intervals_ms)
        due = state.due(self.now_ms) if look.is_due else None
        seen = state.tell(look.fresh) if look.fresh else None
        read = answers(self.reads, state, 0.0 if applied else self.age_s, self.more) if self.reads else []
        copy = frozen(state) if self.wants_copy else None
        return Done(applied, due, seen, read, copy, self.asks_forget and wants_forget(state, state.now_ms))

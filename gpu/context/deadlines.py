"""When words end that were to hold for a while, the next first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from ...bus.columns import Array

LEAST_SIFTED = 1 << 14  # of a run that is searched for those that hold no more


@dataclass(frozen=True)
class Ends:
    """Words that end.

    Attributes:
        at_ms: (m,) int64.
        what: (m, c) int64, the numbers of what they are about: an agent, or an edge's source and target.
        version, writer: (m,) uint64, the words' stamps.
    """

    at_ms: Array
    what: Array
    version: Array
    writer: Array

    @classmethod
    def none(cls, columns: int) -> Ends:
        """No words; each is about so many numbers."""
        nothing: Array = np.empty(0, np.int64)
        return cls(nothing, nothing.reshape(0, columns), nothing.astype(np.uint64), nothing.astype(np.uint64))

    @classmethod
    def joined(cls, parts: list[Ends]) -> Ends:
        """All of them, at least one part."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def __len__(self) -> int:
        return len(self.at_ms)

    def __getitem__(self, rows: Array | slice) -> Ends:
        return Ends(self.at_ms[rows], self.what[rows], self.version[rows], self.writer[rows])


class Deadlines:
    """The ends of words, of which some hold no more when they are reached: whoever asks knows that from the stamps.

    Runs in the order of time, each at least twice as long as the next; so a word is moved a few times, however many
    there are. Those that hold no more are dropped from long runs as these are made.

    Args:
        columns: numbers that a word is about.
        holding: (m,) bool, which of some words hold yet.
    """

    def __init__(self, columns: int, holding: Callable[[Ends], Array]) -> None:
        self._columns = columns
        self._holding = holding
        self._runs: list[Ends] = []

    def __len__(self) -> int:
        """How many, with some that hold no more."""
        return sum(map(len, self._runs))

    def add(self, ends: Ends) -> None:
        """Keep more."""
        if not len(ends):
            return
        run = _in_time(ends)
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = _in_time(Ends.joined([self._runs.pop(), run]))
            if len(run) >= LEAST_SIFTED:
                run = run[self._holding(run)]
        if len(run):
            self._runs.append(run)

    def take(self, now_ms: int) -> Ends:
        """Those that end by now and hold yet; they are kept no more."""
        taken = [Ends.none(self._columns)]
        for place, run in enumerate(self._runs):
            due = int(np.searchsorted(run.at_ms, now_ms, "right"))
            if due:
                taken.append(run[:due])
                self._runs[place] = run[due:]
        if len(taken) == 1:
            return taken[0]
        self._runs = [run for run in self._runs if len(run)]
        found = Ends.joined(taken)
        return _in_time(found[self._holding(found)])

    def first_ms(self) -> int | None:
        """When the first ends that holds yet; those before it are dropped."""
        size = 64
        while self._runs:
            place = min(range(len(self._runs)), key=lambda run: int(self._runs[run].at_ms[0]))
            run = self._runs[place]
            # Of the earliest run no more than comes before the others' first, which may be the sooner end.
            others = [int(each.at_ms[0]) for each in self._runs if each is not run]
            size = min(2 * size, len(run))
            count = min(size, int(np.searchsorted(run.at_ms, min(others), "right"))) if others else size
            holding = self._holding(run[:count]).nonzero()[0]
            dropped = int(holding[0]) if len(holding) else count
            if dropped:
                self._runs[place] = run[dropped:]
                self._runs = [each for each in self._runs if len(each)]
            if len(holding):
                return int(run.at_ms[holding[0]])
        return None

    def sift(self) -> Ends:
        """Drop all that hold no more, and see what is left."""
        if not self._runs:
            return Ends.none(self._columns)
        run = Ends.joined(self._runs)
        run = _in_time(run[self._holding(run)])
        self._runs = [run] if len(run) else []
        return run


def _in_time(ends: Ends) -> Ends:
    return ends[np.argsort(ends.at_ms, kind="stable")]

"""When each item of a replay leaves: counted from the start, so that what one is late by delays no other.

Pure: the time is an argument, in ns of whatever clock. An item is a packet of a capture, or a request of a recording.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from .packet_index import Array

SECOND_NS = 1_000_000_000
LATE_NS = 1_000_000  # from when on an item counts as late
MOST_ITEMS = 1024  # that leave together


class Unit(StrEnum):
    """What the number of a `Speed` counts."""

    TIMES = "x"
    ITEMS_S = "items/s"
    BITS_S = "bit/s"
    TOP = "max"


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast items leave.

    Attributes:
        unit: `TIMES` their own times, divided; `ITEMS_S` and `BITS_S` evenly; `TOP` as fast as they are taken.
        value: above 0; of no meaning for `TOP`.
    """

    unit: Unit
    value: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Speed:
        """A speed as it is typed: `1x`, `0.5x`, `frames=1000/s`, `pps=1000`, `mbit=100/s`, `max`.

        Raises:
            ValueError: it is none of these.
        """
        if text == "max":
            return cls(Unit.TOP)
        found = _TYPED.fullmatch(text)
        value = float(found["times"] or found["rate"]) if found else 0.0
        if found is None or not 0 < value < math.inf:
            raise ValueError(f"speed {text!r}: write 1x, 10x, frames=1000/s, pps=1000, mbit=100 or max")
        if found["times"]:
            return cls(Unit.TIMES, value)
        return cls(Unit.BITS_S, value * 1e6) if found["what"] == "mbit" else cls(Unit.ITEMS_S, value)


_NUMBER = r"\d+(?:\.\d+)?(?:e\d+)?"
_TYPED = re.compile(rf"(?P<times>{_NUMBER})x|(?P<what>frames|packets|pps|mbit)=(?P<rate>{_NUMBER})(?:/s)?")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a replay goes.

    Attributes:
        speed: how fast.
        loops: times that all items are sent; 0 = without end.
        delay_s: rest between the last item of a loop and the first of the next.
        limit: most items, all loops together; 0 = no limit.
        duration_s: what is due later than this after the start is not sent, nor anything at all after it; 0 = no end.
        most: items that leave together.
    """

    speed: Speed = Speed(Unit.TIMES)
    loops: int = 1
    delay_s: float = 0.0
    limit: int = 0
    duration_s: float = 0.0
    most: int = MOST_ITEMS


class Run(NamedTuple):
    """Consecutive items of one loop: number of the loop from 0, first item, how many."""

    loop: int
    first: int
    size: int


@dataclass
class Paced:
    """What became of a plan.

    Attributes:
        sent: items.
        bits: of these.
        seconds: from the start to the last of them.
        late: those that left more than 1 ms after they were due.
        worst_ns: most that one was late by.
        last_ns: what the last one was late by: the drift.
        unsent: items that were due before the end of `duration_s`, and had no time to leave.
    """

    sent: int = 0
    bits: int = 0
    seconds: float = 0.0
    late: int = 0
    worst_ns: int = 0
    last_ns: int = 0
    unsent: int = 0

    @property
    def items_s(self) -> float:
        """Items a second."""
        return self.sent / self.seconds if self.seconds else 0.0


class Pacer:
    """Says when the next item is due, and which may leave now.

    Args:
        times_ns: (n,) int64, when each item was recorded; one that is earlier than those before it leaves with them.
        bits: (n,) integers, size of each item.
        plan: how they shall leave.

    Attributes:
        paced: what has left so far.
        period_ns: from the first item of a loop to the first of the next.
    """

    def __init__(self, times_ns: Array, bits: Array, plan: Plan) -> None:
        self.paced = Paced()
        self._plan = plan
        self._bits = bits
        self._offsets, span_ns = _offsets(times_ns, bits, plan.speed)
        self.period_ns = span_ns + plan.delay_s * SECOND_NS
        self._end_ns = plan.duration_s * SECOND_NS or math.inf
        whole = len(times_ns) * plan.loops if plan.loops else math.inf
        self._left = min(whole, plan.limit or math.inf) if len(times_ns) else 0
        self._loop = 0
        self._row = 0
        self._start_ns = 0

    def begin(self, now_ns: int) -> None:
        """The first item is due now."""
        self._start_ns = now_ns

    def next_at(self) -> int | None:
        """When the next item is due; None if there is none any more."""
        if self._left <= 0:
            return None
        due = self._loop * self.period_ns + float(self._offsets[self._row])
        return None if due >= self._end_ns else self._start_ns + math.ceil(due)

    def due(self, now_ns: int) -> Run:
        """The items that leave now: of one loop, at most `Plan.most`. They count as sent; of none the count is 0."""
        elapsed = now_ns - self._start_ns
        first, base = self._row, self._loop * self.period_ns
        ahead = self._offsets[first : first + int(min(self._left, self._plan.most))]
        count = int(np.searchsorted(ahead, min(elapsed, math.nextafter(self._end_ns, 0)) - base, side="right"))
        if elapsed >= self._end_ns:
            self._close(elapsed)
            count = 0
        run = Run(self._loop, first, count)
        if count:
            self._account(run, elapsed, elapsed - base - ahead[:count])
            self._row += count
            self._left -= count
            if self._row == len(self._offsets):
                self._loop, self._row = self._loop + 1, 0
        return run

    def _account(self, run: Run, elapsed: int, lateness: Array) -> None:
        paced = self.paced
        paced.sent += run.size
        paced.bits += int(self._bits[run.first : run.first + run.size].sum())
        paced.seconds = elapsed / SECOND_NS
        if self._plan.speed.unit is not Unit.TOP:
            paced.late += int(np.count_nonzero(lateness > LATE_NS))
            paced.worst_ns = max(paced.worst_ns, int(lateness.max()))
            paced.last_ns = int(lateness[-1])

    def _close(self, elapsed: int) -> None:
        """The time is over: nothing leaves any more."""
        while self._left > 0 and self._plan.speed.unit is not Unit.TOP:
            base = self._loop * self.period_ns
            rest = self._offsets[self._row :]
            due = int(min(self._left, np.searchsorted(rest, self._end_ns - base, side="left")))
            self.paced.unsent += due
            self._left -= due
            if due < len(rest) or not self.period_ns:
                break
            self._loop, self._row = self._loop + 1, 0
        self._left = 0


def _offsets(times_ns: Array, bits: Array, speed: Speed) -> tuple[Array, float]:
    """When each item of a loop is due after the first, float64 ns, never falling; and how long a loop takes."""
    rows = len(times_ns)
    if speed.unit is Unit.TOP or not rows:
        return np.zeros(rows), 0.0
    if speed.unit is Unit.TIMES:
        # Exact below 104 days: 2**53 ns.
        offsets = np.maximum.accumulate(times_ns - times_ns[0]).astype(np.float64) / speed.value
        return offsets, float(offsets[-1])
    ends = np.cumsum(bits.astype(np.float64)) if speed.unit is Unit.BITS_S else np.arange(1.0, rows + 1)
    ends *= SECOND_NS / speed.value
    return np.concatenate([[0.0], ends[:-1]]), float(ends[-1])

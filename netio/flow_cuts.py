"""Where the packets of a batch begin another record: by time-outs, judged on each flow's own clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import NetError
from .flow_runs import Runs
from .packet_index import Array

SECOND_NS = 10**9
MOST_S = 2**33 - 1


class BadTable(NetError):
    """A table of flows cannot be as asked. Whoever made it must change what is named."""

    code = "bad_table"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """When a record ends; None switches a time-out off.

    Attributes:
        idle_s: a flow without packets for so long has ended.
        active_s: a flow that goes on for so long is cut; what follows is another record of it, and keeps its direction.

    Raises:
        BadTable: a time is not allowed.
    """

    idle_s: float | None = 120.0
    active_s: float | None = 1800.0

    def __post_init__(self) -> None:
        for name in ("idle_s", "active_s"):
            value = getattr(self, name)
            if value is not None and not 1e-9 <= value <= MOST_S:
                raise BadTable(f"{name} is {value}: give seconds, 1e-9 to {MOST_S}, or None for no time-out")

    @property
    def idle_ns(self) -> np.uint64 | None:
        return None if self.idle_s is None else np.uint64(round(self.idle_s * SECOND_NS))

    @property
    def active_ns(self) -> np.uint64 | None:
        return None if self.active_s is None else np.uint64(round(self.active_s * SECOND_NS))

    def cut_by_active(self, begun: Array, latest: Array) -> Array:
        """Of records that are past their idle time-out: which of them the active one had ended before: (n,) bool."""
        idle, active = self.idle_ns, self.active_ns
        if active is None:
            return np.zeros(len(begun), bool)
        if idle is None:
            return np.ones(len(begun), bool)
        return elapsed(begun, latest) + idle > active


def elapsed(earlier: Array, later: Array) -> Array:
    """Nanoseconds between times that lie in this order: uint64, which holds what int64 does not."""
    return later.view(np.uint64) - earlier.view(np.uint64)


def clocks(runs: Runs, times: Array, latest: Array, is_known: Array) -> Array:
    """The clock of its flow at each packet: the latest time so far, so that it never goes back: (n,) int64.

    Args:
        runs: the packets.
        times: (n,) int64.
        latest: (runs,) int64, the clock before the batch, where the flow is known.
        is_known: (runs,) bool.
    """
    now = times.copy()
    known = runs.start[is_known]
    now[known] = np.maximum(now[known], latest[is_known])
    within = ~runs.is_start[1:]
    if not (within & (now[1:] < now[:-1])).any():
        return now
    first = runs.start[runs.of_place]
    rows = np.arange(len(now))
    span = 1
    while True:
        reaching = np.flatnonzero(rows - span >= first)
        if not len(reaching):
            return now
        now[reaching] = np.maximum(now[reaching], now[reaching - span])
        span *= 2


def active_cuts(is_first: Array, clock: Array, begun: Array, limit: np.uint64) -> Array:
    """Which packets begin a record because the one before has lasted for `limit`: (n,) bool.

    Args:
        is_first: (n,) bool, where a segment begins that no other time-out cuts; the first row is one.
        clock: (n,) int64, not falling within a segment.
        begun: (segments,) int64, when the record of each segment's first packet began.
        limit: nanoseconds.
    """
    cuts = np.zeros(len(clock), bool)
    segment = np.cumsum(is_first) - 1
    start = np.flatnonzero(is_first)
    end = np.append(start[1:], len(clock))
    long = np.flatnonzero(elapsed(begun, clock[end - 1]) >= limit)
    if not len(long):
        return cuts
    # The first packet that is past the limit of each record, were one to begin at each packet of these segments.
    rows = np.flatnonzero(np.isin(segment, long))
    following = _first_past(clock, rows, end[segment[rows]], clock[rows], limit)
    reached = _first_past(clock, start[long], end[long], begun[long], limit)
    # One past the last row stands for none.
    jump = np.full(len(clock) + 1, len(clock))
    jump[rows] = following
    jumps = []
    while (jump[rows] < len(clock)).any():
        jumps.append(jump)
        jump = jump[jump]
    for jump in reversed(jumps):
        reached = np.union1d(reached, jump[reached])
    cuts[reached[reached < len(clock)]] = True
    return cuts


def _first_past(clock: Array, low: Array, end: Array, begun: Array, limit: np.uint64) -> Array:
    """The first row from `low` on and before `end` whose clock is past the limit; `len(clock)` where none is."""
    low, high = low.copy(), end.copy()
    while (low < high).any():
        middle = (low + high) // 2
        past = elapsed(begun, clock[np.minimum(middle, len(clock) - 1)]) >= limit
        high = np.where((low < high) & past, middle, high)
        low = np.where((low < high) & ~past, middle + 1, low)
    return np.where(low < end, low, len(clock))

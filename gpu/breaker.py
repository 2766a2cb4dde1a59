"""The circuit breaker: whether an operation may run on a device, judged by how its last batches ended there.

Pure: the time is an argument. Closed, everything runs; `failures` within `window_s` open it, and for `cool_s` nothing
does; then one batch is let through, and its end closes or opens it again. After Nygard 2018, Release It!, chapter 5.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    """What a breaker lets through: everything, nothing, or one batch to see."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


@dataclass(frozen=True)
class BreakerLimits:
    """When a breaker opens, and for how long.

    Attributes:
        failures: within the window that open it.
        window_s: length of the window, s.
        cool_s: how long it stays open before a batch is tried, s.
    """

    failures: int = 3
    window_s: float = 10.0
    cool_s: float = 5.0


DEFAULT = BreakerLimits()


@dataclass(slots=True)
class Breaker:
    """The breaker of one operation on one engine.

    Attributes:
        limits: when it opens.
        state: what it lets through.
        opened: times it was opened.
    """

    limits: BreakerLimits
    state: State = State.CLOSED
    opened: int = 0
    _failed: deque[float] = field(default_factory=deque)
    _since: float = 0.0

    def admits(self, now: float) -> bool:
        """Whether a batch may run now; of an open one that has cooled, this batch is the trial."""
        if self.state is State.CLOSED:
            return True
        if now - self._since < self.limits.cool_s:
            return False
        # A trial that never ended, because its rows were let go, is not waited for for ever.
        self.state, self._since = State.HALF_OPEN, now
        return True

    def succeeded(self) -> None:
        """A batch ended well."""
        if self.state is State.HALF_OPEN:
            self.state = State.CLOSED
            self._failed.clear()

    def failed(self, now: float) -> None:
        """A batch ended badly, through no fault of its rows."""
        self._failed.append(now)
        while now - self._failed[0] > self.limits.window_s:
            self._failed.popleft()
        if self.state is State.HALF_OPEN or (self.state is State.CLOSED and len(self._failed) >= self.limits.failures):
            self.state, self._since = State.OPEN, now
            self.opened += 1

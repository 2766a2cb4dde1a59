"""The mailbox of an agent: how much of it runs at once, what waits, and who comes next. Pure: time is an argument."""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

from ..bus.errors import Busy

T = TypeVar("T")

FIRST_RUN_S = 0.01  # taken for a run's length until one has been seen
LONGEST_RETRY_S = 10.0
WEIGHT = 0.2  # of the latest run in the mean

_count = itertools.count()


class Mailbox(Generic[T]):
    """Keeps what an agent has been asked: those of higher priority first, then whose deadline is nearest, then in turn.

    Under a flood of high priority the others wait until their deadline; then they are dropped.

    Args:
        concurrency: how many may run at once.
        most_waiting: how many may wait.

    Attributes:
        running: how many run.
    """

    __slots__ = ("_mean_s", "_waiting", "concurrency", "most_waiting", "running")

    def __init__(self, concurrency: int, most_waiting: int) -> None:
        self.concurrency = concurrency
        self.most_waiting = most_waiting
        self.running = 0
        self._mean_s = FIRST_RUN_S
        # Few agents of thousands have anything waiting.
        self._waiting: list[tuple[int, float, int, T]] | None = None

    def __len__(self) -> int:
        return len(self._waiting) if self._waiting else 0

    @property
    def load(self) -> float:
        """What runs and waits, in parts of what may run at once; above 1 something waits."""
        return (self.running + len(self)) / self.concurrency

    @property
    def retry_after_s(self) -> float:
        """When there will be room, at the pace seen so far, s."""
        return min(self._mean_s * max(1, len(self)) / self.concurrency, LONGEST_RETRY_S)

    def begin(self) -> bool:
        """Let something run at once; false if it has to wait, behind others or because as many run as may."""
        if self._waiting or self.running >= self.concurrency:
            return False
        self.running += 1
        return True

    def offer(self, item: T, priority: int, deadline: float) -> None:
        """Let an item wait that may not begin.

        Raises:
            Busy: as many wait as may; nothing was kept.
        """
        if len(self) >= self.most_waiting:
            raise Busy("the agent's mailbox is full: ask again later, or less at once", self.retry_after_s)
        if self._waiting is None:
            self._waiting = []
        heapq.heappush(self._waiting, (-priority, deadline, next(_count), item))

    def due(self, now: float) -> tuple[list[T], list[T]]:
        """What runs from now on, and what is dropped on the way because its deadline has passed."""
        taken: list[T] = []
        late: list[T] = []
        waiting = self._waiting
        while waiting and self.running < self.concurrency:
            _, deadline, _, item = heapq.heappop(waiting)
            if deadline <= now:
                late.append(item)
            else:
                self.running += 1
                taken.append(item)
        return taken, late

    def expire(self, now: float) -> list[T]:
        """Drop all whose deadline has passed, and return it; at the end of time that is all."""
        late = [entry for entry in self._waiting or () if entry[1] <= now]
        if late and self._waiting:
            self._waiting = [entry for entry in self._waiting if entry[1] > now]
            heapq.heapify(self._waiting)
        return [entry[3] for entry in late]

    def withdraw(self, item: T) -> bool:
        """Drop an item; false if it does not wait."""
        for position, entry in enumerate(self._waiting or ()):
            if entry[3] is item:
                assert self._waiting is not None
                del self._waiting[position]
                heapq.heapify(self._waiting)
                return True
        return False

    def finished(self, run_s: float) -> None:
        """One that was taken runs no longer; it took so long, s."""
        self.running -= 1
        self._mean_s += WEIGHT * (run_s - self._mean_s)

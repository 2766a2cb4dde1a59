"""Who waits for what reaches an agent to change. Pure: time is an argument, s of a monotonic clock.

A watcher asks again and again, each time with the epoch of the change that it saw last. What an agent was told last is
known here as long as somebody asks; a watcher that saw something else gets what holds now.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

FORGET_S = 120.0
"""An agent for which nobody has asked for so long is watched no more."""
LEAST_SIFTED = 1024  # ends of questions, before those that were answered are looked for


class Question(NamedTuple):
    """What a watcher asks.

    Attributes:
        agent: whose context.
        threshold: τ, how far it must have moved.
        min_interval_s: between two changes told.
        cursor: epoch of the change seen last, 0 for none.
        until: when it wants an answer even without a change, s.
    """

    agent: str
    threshold: float
    min_interval_s: float
    cursor: int
    until: float


@dataclass(eq=False, slots=True)
class Watcher:
    """A question, which `waits` or was answered; whoever accepted it keeps what answers it in `row`."""

    question: Question
    row: object
    waits: bool = True


@dataclass(slots=True)
class _Agent:
    """An agent that is watched.

    Attributes:
        told: epoch of what it was told last; 0 for nothing.
        threshold, interval_s: of the watchers, the least of each; infinite for what nobody has said.
        watchers: those that wait, in the order they came.
        asked_at: when somebody asked last.
    """

    told: int = 0
    threshold: float = inf
    interval_s: float = inf
    watchers: dict[Watcher, None] = field(default_factory=dict)
    asked_at: float = 0.0


class Watching:
    """The watchers of one graph.

    Attributes:
        changed: agents whose threshold or interval has changed since they were taken, or who are watched no more.
    """

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self._agents: dict[str, _Agent] = {}
        self._ends: list[tuple[float, int, Watcher]] = []
        self._looks: list[float] = []
        self._number = 0
        self._sift_at = LEAST_SIFTED
        self._forget_at = -inf

    def __len__(self) -> int:
        """Agents that are watched."""
        return len(self._agents)

    def ask(self, question: Question, row: object, now: float) -> Watcher | None:
        """Let a question wait; None if it is to be answered at once with what holds now."""
        agent = self._agents.get(question.agent)
        if agent is None:
            agent = self._agents[question.agent] = _Agent()
        agent.asked_at = now
        if question.threshold < agent.threshold or question.min_interval_s < agent.interval_s:
            agent.threshold = min(agent.threshold, question.threshold)
            agent.interval_s = min(agent.interval_s, question.min_interval_s)
            self.changed.add(question.agent)
        if question.cursor != agent.told:
            return None
        watcher = Watcher(question, row)
        agent.watchers[watcher] = None
        self._number += 1
        heapq.heappush(self._ends, (question.until, self._number, watcher))
        if len(self._ends) > self._sift_at:
            self._sift()
        return watcher

    def limits(self, agent: str) -> tuple[float, float]:
        """The threshold and interval, s, by which an agent is watched; infinite and 0 if it is watched no more."""
        found = self._agents.get(agent)
        return (found.threshold, found.interval_s) if found is not None else (inf, 0.0)

    def told(self, agents: Iterable[str], epoch: int, now: float) -> list[list[Watcher]]:
        """Agents are told what holds at an epoch: the watchers of each, which wait no more.

        Who is between two questions hears of it with the next.
        """
        found: list[list[Watcher]] = []
        for name in agents:
            agent = self._agents.get(name)
            if agent is None:
                found.append([])
                continue
            agent.told = epoch
            if 0 < agent.interval_s < inf:
                heapq.heappush(self._looks, now + agent.interval_s)
            found.append(list(agent.watchers))
            agent.watchers.clear()
            for watcher in found[-1]:
                watcher.waits = False
        return found

    def withdraw(self, watcher: Watcher) -> None:
        """It waits no more, if it did."""
        if watcher.waits:
            watcher.waits = False
            del self._agents[watcher.question.agent].watchers[watcher]

    def ended(self, now: float) -> list[Watcher]:
        """Those that have waited long enough; they wait no more."""
        found = []
        while self._ends and self._ends[0][0] <= now:
            watcher = heapq.heappop(self._ends)[2]
            if watcher.waits:
                self.withdraw(watcher)
                found.append(watcher)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S
            self._forget(now - FORGET_S)
        return found

    def is_look_due(self, now: float) -> bool:
        """Whether an interval has ended since the last look: what moved meanwhile may be told now."""
        is_due = False
        while self._looks and self._looks[0] <= now:
            heapq.heappop(self._looks)
            is_due = True
        return is_due

    @property
    def next_at(self) -> float:
        """When `ended` or `is_look_due` has something to say; infinite for never."""
        while self._ends and not self._ends[0][2].waits:
            heapq.heappop(self._ends)
        return min(self._ends[0][0] if self._ends else inf, self._looks[0] if self._looks else inf)

    def _sift(self) -> None:
        """Let go of questions that were answered: who asks often would fill the time until they end with them."""
        self._ends = [end for end in self._ends if end[2].waits]
        heapq.heapify(self._ends)
        self._sift_at = max(LEAST_SIFTED, 2 * len(self._ends))

    def _forget(self, before: float) -> None:
        for name in [name for name, agent in self._agents.items() if agent.asked_at < before and not agent.watchers]:
            del self._agents[name]
            self.changed.add(name)

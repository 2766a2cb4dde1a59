"""How long a graph that could not be kept is left alone. Pure: time is an argument, s of a monotonic clock."""

from __future__ import annotations

from typing import NamedTuple

FIRST_S = 0.2
LATEST_S = 60.0
STEADY_S = 60.0
"""After so long without a failure the next counts as the first."""


class _Rest(NamedTuple):
    """Failures one soon after the other, and until when the graph is left alone."""

    failures: int
    until: float


class Rests:
    """The graphs that failed in this process: they could not be opened, or were given up."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}

    def failed(self, graph: str, now: float) -> None:
        """It failed, once more if it has before: then it is left alone for twice as long."""
        self._rests = {name: rest for name, rest in self._rests.items() if now < rest.until + STEADY_S}
        failures = self._rests[graph].failures + 1 if graph in self._rests else 1
        self._rests[graph] = _Rest(failures, now + min(LATEST_S, FIRST_S * 2.0 ** min(failures - 1, 30)))

    def left_s(self, graph: str, now: float) -> float:
        """How long it is left alone yet, s."""
        rest = self._rests.get(graph)
        return max(0.0, rest.until - now) if rest is not None else 0.0

"""What one process has told of its agents, and has to tell next. Pure: it makes messages and sends none."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from .announcements import MAX_LOAD, PER_LOAD, Announced, Beat, Goodbye, Kind, Part, cut, encode

LOADS_A_BEAT = 2000  # those that changed most; a beat stays below 16 KB, and the others leave with the next

_HEAD = 256  # of a beat beside its loads, bytes at most
_LOAD = 8  # a load and its place, bytes at most


class Announcer:
    """Keeps the list of a process's agents by version, and their loads as others know them.

    Args:
        process: one subject token, unique on the bus.
        incarnation: greater than that of any process that had the name before.
        ttl_s: how long others count the process as there after each message, s.
        most_bytes: largest message, bytes.

    Attributes:
        version: of the list; 0 before the first.
    """

    def __init__(self, process: str, incarnation: int, ttl_s: float, most_bytes: int) -> None:
        self.version = 0
        self._process = process
        self._incarnation = incarnation
        self._ttl_ms = round(1000 * ttl_s)
        self._most_bytes = most_bytes
        self._most_loads = min(LOADS_A_BEAT, (most_bytes - _HEAD) // _LOAD)
        self._agents: tuple[Announced, ...] = ()
        self._places: dict[str, int] = {}
        self._told = 0
        self._loads: dict[int, int] = {}
        self._parts: list[bytes] = []

    def describe(self, agents: Sequence[Announced]) -> bool:
        """Take the list as it is now; whether it differs from the one before.

        Raises:
            ValueError: two agents have one name.
        """
        agents = tuple(agents)
        if agents == self._agents and self.version:
            return False
        places = {agent.name: place for place, agent in enumerate(agents)}
        if len(places) < len(agents):
            twice = next(agent.name for place, agent in enumerate(agents) if places[agent.name] != place)
            raise ValueError(f"two agents of this process are called {twice!r}: rename one")
        loads = {self._agents[place].name: load for place, load in self._loads.items()}
        self._agents, self._places = agents, places
        self._loads = {places[name]: load for name, load in loads.items() if name in places}
        self._parts = []
        self.version += 1
        return True

    def beat(self, loads: Mapping[str, float]) -> bytes:
        """The message that the process is there.

        Args:
            loads: by name, rows that run and wait over what may run at once; an agent that is not in it has none.
        """
        now = {self._places[name]: _hundredths(load) for name, load in loads.items() if name in self._places}
        changed = self._changed(now)
        if changed:
            self._told += 1
            self._loads |= changed
            self._loads = {place: load for place, load in self._loads.items() if load}
            self._parts = []
        return encode(
            Beat(
                process=self._process,
                incarnation=self._incarnation,
                version=self.version,
                told=self._told,
                ttl_ms=self._ttl_ms,
                at=list(changed),
                loads=list(changed.values()),
            )
        )

    def listing(self) -> list[bytes]:
        """The messages that make up the list; made once for as long as they hold."""
        if not self._parts:
            runs = cut(self._agents, self._most_bytes)
            self._parts = [encode(self._part(run, number, len(runs))) for number, run in enumerate(runs)]
        return self._parts

    def goodbye(self) -> bytes:
        """The message that the process takes no more calls."""
        return encode(Goodbye(process=self._process, incarnation=self._incarnation))

    def _changed(self, now: Mapping[int, int]) -> dict[int, int]:
        """The loads that others do not know yet, at most as many as a beat has."""
        places = [place for place in now.keys() | self._loads.keys() if now.get(place, 0) != self._loads.get(place, 0)]
        if len(places) > self._most_loads:
            places = heapq.nlargest(
                self._most_loads, places, key=lambda place: abs(now.get(place, 0) - self._loads.get(place, 0))
            )
        return {place: now.get(place, 0) for place in sorted(places)}

    def _part(self, run: range, number: int, parts: int) -> Part:
        agents = self._agents[run.start : run.stop]
        kinds: dict[tuple[frozenset[str], tuple[str, ...], str, bool], int] = {}
        of = [kinds.setdefault(agent[1:], len(kinds)) for agent in agents]
        return Part(
            process=self._process,
            incarnation=self._incarnation,
            version=self.version,
            told=self._told,
            ttl_ms=self._ttl_ms,
            part=number,
            parts=parts,
            kinds=[
                Kind(sorted(capabilities), list(handlers), about, keyed)
                for capabilities, handlers, about, keyed in kinds
            ],
            names=[agent.name for agent in agents],
            of=of,
            loads=[self._loads.get(place, 0) for place in run],
        )


def _hundredths(load: float) -> int:
    return min(MAX_LOAD, max(0, round(load * PER_LOAD)))

"""The agents of one process, by place in its list, and what is told of one of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .announcements import PER_LOAD, Part

Kind = tuple[frozenset[str], tuple[str, ...], str, bool]

ANSWERS = 64  # to "who of them can do all this?" that are kept

_NONE: array[int] = array("I")


class Entry(NamedTuple):
    """One agent in one process.

    Attributes:
        name: of the agent.
        process: where it runs.
        capabilities: what it can do.
        load: rows that run and wait over what may run at once, as last told: from 0, above 1 when some wait.
        handlers: names of what it can be asked.
        stale: its process was not heard for its time to live; it is kept because this process itself heard nothing.
        about: in words, what it is for.
        keyed: it has state, and is asked by key.
    """

    name: str
    process: str
    capabilities: frozenset[str]
    load: float
    handlers: tuple[str, ...] = ()
    stale: bool = False
    about: str = ""
    keyed: bool = False


class Listing:
    """A process's agents as of one version of its list, by place in it.

    Attributes:
        names: of the agents.
        kinds: capabilities, handlers, words and whether it is of keys, of each; shared among all that have the same.
        loads: in hundredths; the only thing here that changes.
        places: by name.
    """

    def __init__(self, names: list[str], kinds: list[Kind], loads: Iterable[int]) -> None:
        self.names = names
        self.kinds = kinds
        self.loads = array("H", loads)
        self.places = {name: place for place, name in enumerate(names)}
        self._by_capability: dict[str, array[int]] = {}
        self._able: dict[frozenset[str], array[int]] = {}
        for place, (capabilities, *_) in enumerate(kinds):
            for capability in capabilities:
                self._by_capability.setdefault(capability, array("I")).append(place)

    @classmethod
    def of(cls, parts: Iterable[Part], shared: Callable[[Kind], Kind]) -> Listing:
        """A list from all its parts; `shared` gives the one copy of a kind that is kept."""
        names: list[str] = []
        kinds: list[Kind] = []
        loads: list[int] = []
        for part in parts:
            own = [
                shared((frozenset(kind.capabilities), tuple(kind.handlers), kind.about, kind.keyed))
                for kind in part.kinds
            ]
            names += part.names
            kinds += map(own.__getitem__, part.of)
            loads += part.loads
        return cls(names, kinds, loads)

    def able(self, wanted: frozenset[str]) -> Sequence[int]:
        """The places of those that can do all that is wanted."""
        if not wanted:
            return range(len(self.names))
        able = self._able.get(wanted)
        if able is None:
            # Of the rarest capability, those that have the others.
            able = min((self._by_capability.get(capability, _NONE) for capability in wanted), key=len)
            if len(wanted) > 1:
                able = array("I", (place for place in able if wanted <= self.kinds[place][0]))
            if len(self._able) >= ANSWERS:
                self._able.clear()
            self._able[wanted] = able
        return able

    def entry(self, place: int, process: str, *, stale: bool = False) -> Entry:
        """The agent at a place, as others see it."""
        capabilities, handlers, about, keyed = self.kinds[place]
        load = self.loads[place] / PER_LOAD
        return Entry(self.names[place], process, capabilities, load, handlers, stale, about, keyed)

"""Who is there, as far as this process has heard. Pure: time is an argument, s of a monotonic clock.

A process counts as there for its time to live after each message of it, or until it says goodbye. Its list of agents
and their loads are numbered; a listener that has missed something sees it from the next message's numbers, and asks.

Nothing shows that who announces a process is that process. So there is room for so many, and for so much of their
lists: what is beyond is refused, and those who are there stay.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from .announcements import Announcement, Beat, Goodbye, Part, kept_bytes, kind_bytes
from .listing import Entry, Kind, Listing

# At least so many agents are drawn, of which the least loaded are taken: the exact choice among a few. Of many, all who
# ask at once would choose the same least loaded one, whose load they hear of a beat later.
DRAWN = 8
CHOICES = 2  # drawn for each that is wanted
LOOKS = 1024  # drawn where too few names are among those: agents that are in many processes
POOLS = 256  # answers to "who can do this?" that are kept until a list changes
SHARED_BYTES = 16 << 20  # of kinds of agents of which each process's list need not keep its own copy
MOST_PROCESSES = 4096
MOST_BYTES = 64 << 20  # of their lists, about, in memory: 10,000 agents take 2 MB


class NoRoom(Exception):
    """More processes announce themselves, or more agents, than are kept; nothing was taken in."""


class Change(NamedTuple):
    """An agent has come, or has gone."""

    joined: bool
    entry: Entry


class Roster:
    """The agents of all processes, found by name and by what they can do.

    Args:
        seed: of the draw among equals; different ones in different processes spread their calls.

    Attributes:
        edition: grows whenever a process's list has changed, or it has gone.
    """

    def __init__(self, seed: int) -> None:
        self.edition = 0
        self._random = random.Random(seed)
        self._processes: dict[str, _Process] = {}
        self._gone: dict[str, _Gone] = {}
        self._next_expiry = float("inf")
        self._pools: dict[frozenset[str], _Pool] = {}
        self._kinds: dict[Kind, Kind] = {}
        self._kinds_bytes = 0
        self._bytes = 0

    def __len__(self) -> int:
        return sum(len(process.listing.names) for process in self._processes.values())

    @property
    def next_expiry(self) -> float:
        """Before then nobody is gone by expiry, s; infinite if nobody is there."""
        return self._next_expiry

    def apply(self, announcement: Announcement, now: float) -> bool:
        """Take in what a process tells; whether it must be asked for its list, because something was missed.

        What comes late (of a version, a life or a process that is over) changes nothing.

        Raises:
            NoRoom: it is one process, or one list, too many; it changes nothing.
        """
        self.expire(now)
        name, incarnation = announcement.process, announcement.incarnation
        gone = self._gone.get(name)
        if gone is not None and incarnation == gone.incarnation:
            return False
        process = self._processes.get(name)
        if process is not None and incarnation < process.incarnation:
            return False
        if isinstance(announcement, Goodbye):
            self._drop(name)
            if process is not None:  # a message of it may still be on its way
                if len(self._gone) >= MOST_PROCESSES:
                    del self._gone[next(iter(self._gone))]
                self._gone[name] = _Gone(incarnation, now + process.ttl_s)
                self._next_expiry = min(self._next_expiry, now + process.ttl_s)
            return False
        size = kept_bytes(announcement) if isinstance(announcement, Part) else 0
        if process is None and len(self._processes) >= MOST_PROCESSES:
            raise NoRoom(f"{name} is one process more than the {MOST_PROCESSES} that are kept")
        if self._bytes + size > MOST_BYTES:
            raise NoRoom(f"the list of {name} and all others are more than the {MOST_BYTES} bytes that are kept")
        if process is None or incarnation > process.incarnation:
            self._drop(name)
            process = self._processes[name] = _Process(name, incarnation)
        process.heard(announcement.ttl_ms / 1000, now)
        self._next_expiry = min(self._next_expiry, process.until)
        if isinstance(announcement, Beat):
            return process.beat(announcement)
        before = process.bytes
        if process.gather(announcement, size, self._shared):
            self._changed()
        self._bytes += process.bytes - before
        return False

    def expire(self, now: float) -> None:
        """Forget the processes whose time is over."""
        if now < self._next_expiry:
            return
        for name in [name for name, process in self._processes.items() if process.until <= now]:
            self._drop(name)
        for name in [name for name, gone in self._gone.items() if gone.until <= now]:
            del self._gone[name]
        ends = [process.until for process in self._processes.values()]
        ends += [gone.until for gone in self._gone.values()]
        self._next_expiry = min(ends, default=float("inf"))

    def renew(self, now: float) -> None:
        """Nothing could be heard until now: give every process its whole time to live."""
        for process in self._processes.values():
            process.until = max(process.until, now + process.ttl_s)

    def excuse(self, late_s: float) -> None:
        """This process stood still for `late_s`, and has not read yet what came meanwhile."""
        for process in self._processes.values():
            process.until += late_s

    def find(
        self,
        now: float,
        name: str | None = None,
        capabilities: Iterable[str] = frozenset(),
        k: int | None = None,
    ) -> list[Entry]:
        """The agents of a name, or those that have all capabilities, the least loaded first.

        Args:
            now: the time, s.
            name: of the agent; one entry for each process that has it.
            capabilities: all of which it must have.
            k: how many at most. Of more than `DRAWN` (and twice `k`) that suit, so many are drawn, and the least loaded
                of these are given: the power of two choices. Without `k` all are given, by load, process and name.

        Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001; and "How Useful Is Old
            Information?", 2000, on why the least loaded of all is the wrong choice when loads are told late.
        """
        _check(k)
        self.expire(now)
        wanted = frozenset(capabilities)
        pool = self._pool(wanted) if name is None else self._named(name, wanted)
        if k is None:
            every = [process.entry(place, now) for process, place in pool.all()]
            return sorted(every, key=lambda entry: (entry.load, entry.process, entry.name))
        return [process.entry(place, now) for process, place in self._drawn(pool, max(DRAWN, CHOICES * k))[:k]]

    def names(self, now: float, capabilities: Iterable[str] = frozenset(), k: int | None = None) -> list[str]:
        """The names of agents that have all capabilities, each once, the least loaded first.

        Args:
            now, capabilities: as for `find`.
            k: how many at most, drawn as for `find`. Where one agent is in many processes, 1,024 places are drawn.
        """
        _check(k)
        if k is None:
            return list(dict.fromkeys(entry.name for entry in self.find(now, capabilities=capabilities)))
        self.expire(now)
        pool = self._pool(frozenset(capabilities))
        for most in (max(DRAWN, CHOICES * k), LOOKS):
            found = dict.fromkeys(process.listing.names[place] for process, place in self._drawn(pool, most))
            if len(found) >= k:
                break
        return list(found)[:k]

    def changes(self, seen: dict[str, Listing], now: float) -> list[Change]:
        """Who has come and who has gone since `seen`, which is brought up to date; states, not events."""
        self.expire(now)
        found: list[Change] = []
        for name in seen.keys() - self._processes.keys():
            found += _left(name, seen.pop(name), ())
        for name, process in self._processes.items():
            before = seen.get(name, _NOBODY)
            if process.listing is not before:
                seen[name] = process.listing
                found += _left(name, before, process.listing.places)
                found += (
                    Change(True, process.entry(place, now))
                    for agent, place in process.listing.places.items()
                    if agent not in before.places
                )
        return found

    def _drawn(self, pool: _Pool, most: int) -> list[tuple[_Process, int]]:
        """Some of a pool, the least loaded first; equals stay in the order drawn, so that they take turns."""
        drawn = self._random.sample(range(pool.size), min(pool.size, most))
        return sorted(map(pool.at, drawn), key=lambda found: found[0].listing.loads[found[1]])

    def _shared(self, kind: Kind) -> Kind:
        known = self._kinds.get(kind)
        if known is None:
            self._kinds_bytes += kind_bytes(*kind[:3])
            if self._kinds_bytes > SHARED_BYTES:
                self._kinds.clear()
                self._kinds_bytes = 0
            known = self._kinds[kind] = kind
        return known

    def _drop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            self._bytes -= process.bytes
            self._changed()

    def _changed(self) -> None:
        self.edition += 1
        self._pools.clear()

    def _named(self, name: str, wanted: frozenset[str]) -> _Pool:
        places = ((process, process.listing.places.get(name)) for process in self._processes.values())
        return _Pool(
            [
                (process, (place,))
                for process, place in places
                if place is not None and wanted <= process.listing.kinds[place][0]
            ]
        )

    def _pool(self, wanted: frozenset[str]) -> _Pool:
        pool = self._pools.get(wanted)
        if pool is None:
            if len(self._pools) >= POOLS:
                self._pools.clear()
            runs = [(process, process.listing.able(wanted)) for process in self._processes.values()]
            pool = self._pools[wanted] = _Pool([run for run in runs if run[1]])
        return pool


_NOBODY = Listing([], [], ())


class _Process:
    """What is known of one process in one life of it."""

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.listing = _NOBODY
        self.ttl_s = 0.0
        self.until = 0.0
        self._heard = 0.0
        self._known = (0, 0)  # version and loads of the listing; versions count from 1
        self._parts: dict[int, Part] = {}
        self._listing_bytes = self._parts_bytes = 0

    @property
    def bytes(self) -> int:
        """What is kept of it, about."""
        return self._listing_bytes + self._parts_bytes

    def heard(self, ttl_s: float, now: float) -> None:
        self.ttl_s, self._heard = ttl_s, now
        self.until = max(self.until, now + ttl_s)

    def beat(self, beat: Beat) -> bool:
        """Take in its loads; whether something before them is missing."""
        version, told = self._known
        if (beat.version, beat.told) <= self._known:
            return False
        # Without loads it repeats the number of the beat that had them.
        if beat.version != version or beat.told != told + 1 or not beat.at:
            return True
        if max(beat.at) >= len(self.listing.loads):
            return True
        for place, load in zip(beat.at, beat.loads, strict=True):
            self.listing.loads[place] = load
        self._known = (version, beat.told)
        return False

    def gather(self, part: Part, size: int, shared: Callable[[Kind], Kind]) -> bool:
        """Keep one part of a list, of `size` bytes; whether with it the list is whole and newer than the one before."""
        stated = (part.version, part.told)
        if stated <= self._known:
            return False
        if self._parts:
            first = next(iter(self._parts.values()))
            if stated < (first.version, first.told):
                return False
            if stated > (first.version, first.told) or part.parts != first.parts:
                self._parts.clear()
                self._parts_bytes = 0
        if part.part in self._parts:
            return False
        self._parts[part.part] = part
        self._parts_bytes += size
        if len(self._parts) < part.parts:
            return False
        listing = Listing.of((self._parts[number] for number in range(part.parts)), shared)
        self._parts = {}
        self._listing_bytes, self._parts_bytes = self._parts_bytes, 0
        if stated[0] == self._known[0] and listing.names == self.listing.names:
            self.listing.loads = listing.loads  # nobody came or went: it stays the same for whoever watches
        else:
            self.listing = listing
        self._known = stated
        return True

    def entry(self, place: int, now: float) -> Entry:
        return self.listing.entry(place, self.name, stale=now - self._heard > self.ttl_s)


class _Gone(NamedTuple):
    """A life of a process that is over, and until when a late message of it is to be expected."""

    incarnation: int
    until: float


class _Pool:
    """Agents to draw from: runs of places in processes' lists. One draw takes as long among many as among few."""

    def __init__(self, runs: list[tuple[_Process, Sequence[int]]]) -> None:
        self._runs = runs
        self._ends = list(accumulate(len(places) for _, places in runs))
        self.size = self._ends[-1] if self._ends else 0

    def at(self, index: int) -> tuple[_Process, int]:
        """The one of a number below `size`."""
        run = bisect_right(self._ends, index)
        process, places = self._runs[run]
        return process, places[index - self._ends[run]]

    def all(self) -> Iterable[tuple[_Process, int]]:
        return ((process, place) for process, places in self._runs for place in places)


def _check(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k is {k}: ask for 1 agent or more")


def _left(process: str, listing: Listing, still: Container[str]) -> list[Change]:
    """Those of a listing that are not among `still`."""
    gone = (place for name, place in listing.places.items() if name not in still)
    return [Change(False, listing.entry(place, process)) for place in gone]

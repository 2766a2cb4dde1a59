"""Who is believed to be there, at which time, and who is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from aikoryu.agents.announcements import Announced, Kind, Part, cut, decode, encode
from aikoryu.agents.announcer import Announcer
from aikoryu.agents.listing import Entry, Listing
from aikoryu.agents.roster import DRAWN, MOST_BYTES, MOST_PROCESSES, NoRoom, Roster
from aikoryu.bus.errors import BadFrame

TTL_S = 5.0
PLAN = (frozenset({"plan"}), ("plan",))
SEARCH = (frozenset({"retrieve", "search"}), ("search", "ask"))
WEB = (frozenset({"retrieve", "web"}), ("fetch",))


class Teller(Announcer):
    """A process, whose messages go to a roster as the test says.

    Attributes:
        roster: who listens.
    """

    def __init__(self, roster: Roster, name: str, agents: Iterable[Announced], incarnation: int = 1) -> None:
        super().__init__(name, incarnation, TTL_S, most_bytes=1024)
        self.roster = roster
        self.describe(list(agents))

    def list(self, now: float) -> None:
        for part in self.listing():
            assert not self.roster.apply(decode(part), now)

    def tell(self, now: float, **loads: float) -> bool:
        return self.roster.apply(decode(self.beat(loads)), now)

    def leave(self, now: float) -> None:
        assert not self.roster.apply(decode(self.goodbye()), now)


@pytest.fixture
def roster() -> Roster:
    return Roster(seed=1)


def names(entries: Iterable[Entry]) -> list[str]:
    return [entry.name for entry in entries]


# --- who is there ---------------------------------------------------------------------------------------------------


def test_who_is_listed_is_found_with_all_that_was_told(roster: Roster) -> None:
    Teller(roster, "p1", [Announced("searcher", *SEARCH)]).list(0.0)
    assert roster.find(1.0) == [
        Entry("searcher", "p1", frozenset({"retrieve", "search"}), 0.0, ("search", "ask"), stale=False)
    ]
    assert len(roster) == 1


def test_ghosts_are_gone_when_their_time_to_live_is_over(roster: Roster) -> None:
    ghost = Teller(roster, "p1", [Announced("ghost", *PLAN)])
    alive = Teller(roster, "p2", [Announced("alive", *PLAN)])
    ghost.list(0.0)
    alive.list(0.0)
    alive.tell(3.0)
    assert names(roster.find(TTL_S - 0.001)) == ["ghost", "alive"]
    assert names(roster.find(TTL_S)) == ["alive"]
    assert roster.next_expiry == 3.0 + TTL_S
    assert roster.find(3.0 + TTL_S) == []


def test_goodbye_is_heard_at_once_and_nothing_late_undoes_it(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("planner", *PLAN)])
    process.list(0.0)
    process.leave(1.0)
    assert roster.find(1.0) == []
    assert not process.tell(1.1)
    process.list(1.2)
    assert roster.find(1.3) == []


def test_a_process_started_again_after_its_goodbye_is_there_at_once(roster: Roster) -> None:
    first = Teller(roster, "p1", [Announced("planner", *PLAN)], incarnation=5)
    first.list(0.0)
    first.leave(1.0)
    Teller(roster, "p1", [Announced("critic", *PLAN)], incarnation=3).list(1.1)  # on another machine
    assert names(roster.find(1.2)) == ["critic"]


def test_paused_process_that_returns_is_asked_for_its_list(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("planner", *PLAN)])
    process.list(0.0)
    assert roster.find(60.0) == []
    assert process.tell(60.0)
    assert roster.find(60.1) == []
    process.list(60.2)
    assert names(roster.find(60.3)) == ["planner"]


def test_older_life_changes_nothing_while_the_newer_lives(roster: Roster) -> None:
    old = Teller(roster, "p1", [Announced("old", *PLAN)], incarnation=1)
    new = Teller(roster, "p1", [Announced("new", *PLAN)], incarnation=2)
    old.list(0.0)
    new.list(1.0)
    assert names(roster.find(1.0)) == ["new"]
    old.list(2.0)
    assert not old.tell(2.0)
    old.leave(2.0)
    assert names(roster.find(2.0)) == ["new"]
    # Whose time is not prolonged by the old one's messages.
    assert roster.find(1.0 + TTL_S) == []


def test_older_version_changes_nothing(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("a", *PLAN)])
    old_list, old_beat = process.listing(), process.beat({"a": 1.0})
    process.describe([Announced("b", *PLAN)])
    process.list(0.0)
    for late in (*old_list, old_beat):
        assert not roster.apply(decode(late), 0.1)
    assert [(entry.name, entry.load) for entry in roster.find(0.2)] == [("b", 0.0)]


def test_missed_list_and_missed_loads_are_asked_for(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("a", *PLAN)])
    assert process.tell(0.0)
    process.list(0.1)
    assert not process.tell(0.2, a=1.0)
    process.beat({"a": 2.0})  # lost
    assert process.tell(0.4, a=2.0)
    assert roster.find(0.4)[0].load == 1.0
    process.list(0.5)
    assert roster.find(0.5)[0].load == 2.0
    assert not process.tell(0.6, a=3.0)
    process.describe([Announced("a", *PLAN), Announced("b", *PLAN)])
    assert process.tell(0.7, a=3.0)


def test_list_counts_when_its_last_part_has_come(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced(f"agent-{number}", *PLAN) for number in range(100)])
    first, *others = process.listing()
    assert len(others) > 1
    for part in others:
        roster.apply(decode(part), 0.0)
    assert len(roster) == 0
    roster.apply(decode(first), 0.0)
    assert len(roster.find(0.0, capabilities={"plan"})) == 100


def test_parts_of_an_older_list_do_not_complete_a_newer_one(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced(f"old-{number}", *PLAN) for number in range(100)])
    old = process.listing()
    process.describe([Announced(f"new-{number}", *PLAN) for number in range(100)])
    new = process.listing()
    for part in (old[0], *new[1:], old[0]):
        roster.apply(decode(part), 0.0)
    assert len(roster) == 0
    roster.apply(decode(new[0]), 0.0)
    assert {name[:3] for name in names(roster.find(0.0))} == {"new"}


def test_while_nothing_can_be_heard_all_are_kept_and_marked_stale(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("planner", *PLAN)])
    process.list(0.0)
    for now in (2.0, 4.0, 6.0):
        roster.renew(now)
    (entry,) = roster.find(6.0)
    assert entry.stale
    process.tell(7.0)
    assert not roster.find(7.0)[0].stale
    assert roster.find(7.0 + TTL_S) == []


def test_time_in_which_the_listener_stood_still_counts_against_nobody(roster: Roster) -> None:
    Teller(roster, "p1", [Announced("planner", *PLAN)]).list(0.0)
    roster.excuse(60.0)
    assert names(roster.find(60.0 + TTL_S - 0.001)) == ["planner"]
    assert roster.find(60.0 + TTL_S) == []


# --- who says too much ----------------------------------------------------------------------------------------------


def beat(process: str, incarnation: int = 1) -> bytes:
    return Announcer(process, incarnation, TTL_S, most_bytes=1024).beat({})


def test_processes_beyond_those_kept_are_refused_and_those_who_are_there_stay(roster: Roster) -> None:
    Teller(roster, "real", [Announced("planner", *PLAN)]).list(0.0)
    for number in range(MOST_PROCESSES - 1):
        roster.apply(decode(beat(f"forged-{number}")), 0.0)
    with pytest.raises(NoRoom, match="forged is one process more than the 4096 that are kept"):
        roster.apply(decode(beat("forged")), 0.0)
    roster.apply(decode(beat("real")), 1.0)
    roster.apply(decode(beat("forged")), TTL_S)  # the others are gone
    assert names(roster.find(TTL_S)) == ["planner"]


def test_lists_beyond_those_kept_are_refused(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.agents.roster.MOST_BYTES", 50_000)
    forged = Teller(roster, "forged", [Announced(f"agent-{number}", *PLAN) for number in range(1000)])
    with pytest.raises(NoRoom, match="the list of forged and all others are more than the 50000 bytes"):
        forged.list(0.0)  # of its parts, those that fit are kept
    with pytest.raises(NoRoom):
        Teller(roster, "late", [Announced(f"late-{number}", *PLAN) for number in range(40)]).list(0.0)
    assert len(roster) == 0
    forged.leave(0.1)
    for version in range(20):  # a list that follows another takes its place
        real = Teller(roster, "real", [Announced(f"agent-{version}-{number}", *PLAN) for number in range(100)], version)
        real.list(0.2)
    assert len(roster) == 100


def test_parts_of_a_list_that_never_ends_are_not_kept_twice(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.agents.roster.MOST_BYTES", 50_000)
    process = Teller(roster, "p1", [Announced(f"agent-{number}", *PLAN) for number in range(100)])
    first, *others = process.listing()
    for _ in range(100):
        roster.apply(decode(first), 0.0)
    for part in others:
        roster.apply(decode(part), 0.0)
    assert len(roster) == 100


def test_lives_that_ended_are_forgotten_beyond_so_many(roster: Roster) -> None:
    for number in range(MOST_PROCESSES + 10):
        teller = Teller(roster, f"forged-{number}", [])
        teller.list(0.0)
        teller.leave(0.0)
    assert len(roster._gone) == MOST_PROCESSES


def test_kinds_that_change_all_the_time_are_not_kept(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.agents.roster.SHARED_BYTES", 10_000)
    process = Teller(roster, "p1", [])
    for number in range(1000):
        process.describe([Announced("a", frozenset({f"skill-{number}"}))])
        process.list(0.0)
    assert len(roster._kinds) < 50


@pytest.mark.parametrize(("processes", "agents"), [(8, 1250), (1000, 4)])
def test_large_fleets_fit_many_times_over(roster: Roster, processes: int, agents: int) -> None:
    for process in range(processes):
        told = [Announced(f"agent-{process}-{number}", *SEARCH) for number in range(agents)]
        Teller(roster, f"p{process}", told).list(0.0)
    assert len(roster) == processes * agents
    assert roster._bytes < MOST_BYTES / 10


def test_announcements_too_large_or_for_too_long_are_none() -> None:
    agents = [Announced(f"agent-{number}", frozenset(map(str, range(700)))) for number in range(400)]
    announcer = Announcer("p1", 1, 61.0, most_bytes=1 << 20)
    with pytest.raises(BadFrame, match="60000"):
        decode(announcer.beat({}))
    assert len(cut(agents, 1 << 20)) == 2  # 280,000 capabilities
    announcer = Announcer("p1", 1, TTL_S, most_bytes=1 << 20)
    announcer.describe(agents)
    assert len([decode(part) for part in announcer.listing()]) == 2
    part = Part(process="p1", incarnation=1, version=1, told=0, ttl_ms=1000)
    part.names, part.of, part.loads = ["a"] * 400, [0] * 400, [0] * 400
    part.kinds = [Kind([str(number) for number in range(700)], [])]
    with pytest.raises(BadFrame, match="more than 262144 capabilities together: tell it in parts"):
        decode(encode(part))
    part.names = ["a" * 100] * 3000
    with pytest.raises(BadFrame, match=r"an announcement of 3\d+ bytes: tell 262144 at once"):
        decode(encode(part))


# --- who is found ---------------------------------------------------------------------------------------------------


@pytest.fixture
def three(roster: Roster) -> Roster:
    first = Teller(roster, "p1", [Announced("searcher", *SEARCH), Announced("fetcher", *WEB)])
    second = Teller(roster, "p2", [Announced("searcher", *SEARCH), Announced("planner", *PLAN)])
    first.list(0.0)
    second.list(0.0)
    first.tell(0.1, searcher=0.75, fetcher=0.5)
    second.tell(0.1, searcher=0.25)
    return roster


def test_all_are_given_by_load_process_and_name(three: Roster) -> None:
    found = [(entry.name, entry.process, entry.load) for entry in three.find(1.0)]
    assert found == [
        ("planner", "p2", 0.0),
        ("searcher", "p2", 0.25),
        ("fetcher", "p1", 0.5),
        ("searcher", "p1", 0.75),
    ]


def test_name_gives_one_entry_a_process(three: Roster) -> None:
    assert [entry.process for entry in three.find(1.0, "searcher")] == ["p2", "p1"]
    assert [entry.process for entry in three.find(1.0, "searcher", k=1)] == ["p2"]
    assert three.find(1.0, "searcher", {"web"}) == []
    assert three.find(1.0, "nobody") == []


def test_capabilities_must_all_be_there(three: Roster) -> None:
    assert names(three.find(1.0, capabilities={"retrieve"})) == ["searcher", "fetcher", "searcher"]
    assert names(three.find(1.0, capabilities={"retrieve", "web"}, k=5)) == ["fetcher"]
    assert three.find(1.0, capabilities={"retrieve", "plan"}) == []
    assert three.find(1.0, capabilities={"cook"}, k=2) == []
    for ask in (three.find, three.names):
        with pytest.raises(ValueError, match="k is 0: ask for 1 agent or more"):
            ask(1.0, k=0)


def test_among_a_few_the_least_loaded_is_found_for_sure(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced(f"agent{number}", *PLAN) for number in range(DRAWN)])
    process.list(0.0)
    process.tell(0.1, **{f"agent{number}": float(DRAWN - number) for number in range(DRAWN)})
    for _ in range(20):
        assert names(roster.find(0.2, capabilities={"plan"}, k=2)) == [f"agent{DRAWN - 1}", f"agent{DRAWN - 2}"]


def test_equals_are_found_evenly_and_the_loaded_seldom(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced(f"agent{number}", *PLAN) for number in range(100)])
    process.list(0.0)
    process.tell(0.1, **{f"agent{number}": 1.0 for number in range(50)})
    found = Counter(names(entry for _ in range(5000) for entry in roster.find(0.2, capabilities={"plan"}, k=1)))
    idle = [found[f"agent{number}"] for number in range(50, 100)]
    # 5,000 draws over 50: 100 each, with a deviation of 10; a busy one needs 8 busy ones drawn, one draw in 350.
    assert min(idle) > 50
    assert max(idle) < 150
    assert sum(idle) > 4950


def test_the_same_seed_draws_the_same(three: Roster) -> None:
    def drawn(seed: int) -> list[list[str]]:
        roster = Roster(seed)
        Teller(roster, "p1", [Announced(f"agent{number}", *PLAN) for number in range(100)]).list(0.0)
        return [names(roster.find(0.1, k=3)) for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_what_is_found_follows_lists_that_change(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("a", *PLAN)])
    process.list(0.0)
    assert names(roster.find(0.0, capabilities={"plan"}, k=4)) == ["a"]
    process.describe([Announced("a", *PLAN), Announced("b", *PLAN)])
    process.list(0.1)
    assert sorted(names(roster.find(0.1, capabilities={"plan"}, k=4))) == ["a", "b"]
    process.leave(0.2)
    assert roster.find(0.2, capabilities={"plan"}, k=4) == []


def test_names_are_given_once_also_where_one_is_in_many_processes(roster: Roster) -> None:
    for number in range(100):
        agents = [Announced("everywhere", *PLAN)]
        agents += [Announced("somewhere", *PLAN)] if number % 10 == 0 else []
        Teller(roster, f"p{number}", agents).list(0.0)
    for _ in range(20):
        assert set(roster.names(0.0, {"plan"}, 2)) == {"everywhere", "somewhere"}
    assert sorted(roster.names(0.0)) == ["everywhere", "somewhere"]
    assert roster.names(0.0, {"cook"}, 2) == []


def test_one_find_among_100_000_looks_at_a_few(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured once, on a core of an AMD EPYC: k=3 takes 15 µs among 100,000 agents in 80 processes, 13 µs among 10,000
    # in 8, and 60 or 24 µs right after a list has changed; a name 14 or 5 µs, it grows with the processes. All 100,000,
    # in order, take 0.2 s. An agent costs the listener 130 bytes. Here what is looked at is counted.
    for number in range(80):
        agents = [Announced(f"agent-{number}-{each}", *(SEARCH, WEB)[each % 2]) for each in range(1250)]
        Teller(roster, f"p{number}", agents).list(0.0)
    assert len(roster) == 100_000
    roster.find(0.0, capabilities={"retrieve", "web"}, k=3)
    looked = 0

    class Counted(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(index)

    for process in roster._processes.values():
        process.listing.names = Counted(process.listing.names)
        process.listing.kinds = Counted(process.listing.kinds)
    assert len(roster.find(0.0, capabilities={"retrieve", "web"}, k=3)) == 3
    assert looked == 6  # the name and the kind of each that is given
    assert len(roster.find(0.0, "agent-7-8")) == 1
    assert looked <= 10


# --- who comes and goes ---------------------------------------------------------------------------------------------


def changes(roster: Roster, seen: dict[str, Listing], now: float) -> list[tuple[bool, str, str]]:
    return [(change.joined, change.entry.name, change.entry.process) for change in roster.changes(seen, now)]


def test_changes_are_told_once(roster: Roster) -> None:
    seen: dict[str, Listing] = {}
    first = Teller(roster, "p1", [Announced("a", *PLAN), Announced("b", *PLAN)])
    second = Teller(roster, "p2", [Announced("a", *PLAN)])
    first.list(0.0)
    assert changes(roster, seen, 0.0) == [(True, "a", "p1"), (True, "b", "p1")]
    first.tell(0.1, a=0.5)
    assert changes(roster, seen, 0.1) == []
    first.describe([Announced("b", *PLAN), Announced("c", *PLAN)])
    first.list(0.2)
    second.list(0.2)
    assert changes(roster, seen, 0.2) == [(False, "a", "p1"), (True, "c", "p1"), (True, "a", "p2")]
    second.leave(0.3)
    assert changes(roster, seen, TTL_S) == [(False, "a", "p2")]
    assert changes(roster, seen, TTL_S + 0.2) == [(False, "b", "p1"), (False, "c", "p1")]
    assert changes(roster, seen, TTL_S + 1) == []


def test_loads_that_were_asked_for_are_no_change(roster: Roster) -> None:
    process = Teller(roster, "p1", [Announced("a", *PLAN)])
    process.list(0.0)
    seen: dict[str, Listing] = {}
    changes(roster, seen, 0.0)
    process.beat({"a": 1.0})
    process.list(0.1)
    assert roster.find(0.1)[0].load == 1.0
    assert changes(roster, seen, 0.1) == []

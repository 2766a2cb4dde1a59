"""What a process tells of its agents, and how large it is."""

from __future__ import annotations

import msgspec
import pytest

from aikoryu.agents.announcements import (
    MOST_BYTES,
    Announced,
    Beat,
    Goodbye,
    Part,
    Question,
    decode,
    decode_question,
    encode,
)
from aikoryu.agents.announcer import LOADS_A_BEAT, Announcer
from aikoryu.bus.errors import BadFrame

SEARCH = (frozenset({"retrieve", "search"}), ("search", "ask"))


def searchers(count: int, first: int = 0) -> list[Announced]:
    return [Announced(f"searcher-{number:06}", *SEARCH) for number in range(first, first + count)]


def announcer(*agents: Announced, most_bytes: int = MOST_BYTES) -> Announcer:
    made = Announcer("p1", 7, 5.0, most_bytes)
    made.describe(agents)
    return made


def beat(of: Announcer, **loads: float) -> Beat:
    decoded = decode(of.beat({name.replace("_", "-"): load for name, load in loads.items()}))
    assert isinstance(decoded, Beat)
    return decoded


def parts(of: Announcer) -> list[Part]:
    return [part for payload in of.listing() if isinstance(part := decode(payload), Part)]


def test_version_grows_only_when_the_list_differs() -> None:
    made = announcer(*searchers(2))
    assert made.version == 1
    assert not made.describe(searchers(2))
    assert made.describe(searchers(3))
    assert not made.describe(searchers(3))
    assert made.version == 2


def test_first_list_has_a_version_though_nobody_is_in_it() -> None:
    (part,) = parts(announcer())
    assert (part.version, part.names, part.ttl_ms) == (1, [], 5000)


def test_two_agents_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two agents of this process are called 'searcher-000000'"):
        announcer(*searchers(2), *searchers(1))


def test_beat_tells_loads_that_changed_and_numbers_them() -> None:
    made = announcer(*searchers(3))
    first = beat(made)
    assert (first.version, first.told, first.at, first.loads) == (1, 0, [], [])
    second = beat(made, searcher_000002=1.25, searcher_000000=0.5, nobody=3)
    assert (second.told, second.at, second.loads) == (1, [0, 2], [50, 125])
    third = beat(made, searcher_000002=1.251)
    assert (third.told, third.at, third.loads) == (2, [0], [0])
    assert beat(made, searcher_000002=1.25).told == 2


def test_loads_stay_within_what_the_wire_takes() -> None:
    assert beat(announcer(*searchers(2)), searcher_000000=1e9, searcher_000001=-1).loads == [65535]


def test_most_changed_loads_go_first_when_a_beat_cannot_have_all() -> None:
    agents = searchers(LOADS_A_BEAT + 3)
    made = announcer(*agents)
    loads = {agent.name: 0.01 for agent in agents} | {agents[-1].name: 5.0}
    first, second, third = (decode(made.beat(loads)) for _ in range(3))
    assert isinstance(first, Beat)
    assert isinstance(second, Beat)
    assert isinstance(third, Beat)
    assert len(first.at) == LOADS_A_BEAT
    assert first.at[-1] == LOADS_A_BEAT + 2
    assert sorted(first.at + second.at) == list(range(LOADS_A_BEAT + 3))
    assert (third.at, third.told) == ([], 2)


def test_list_has_the_loads_as_told_also_after_places_have_changed() -> None:
    made = announcer(*searchers(3))
    beat(made, searcher_000002=0.5)
    made.describe(searchers(2, first=1))
    (part,) = parts(made)
    assert (part.version, part.told, part.loads) == (2, 1, [0, 50])


def test_list_has_a_kind_once_and_its_agents_by_number() -> None:
    (part,) = parts(announcer(*searchers(2), Announced("planner", frozenset({"plan"}), ("plan",))))
    assert part.names == ["searcher-000000", "searcher-000001", "planner"]
    assert part.of == [0, 0, 1]
    assert [(kind.capabilities, kind.handlers) for kind in part.kinds] == [
        (["retrieve", "search"], ["search", "ask"]),
        (["plan"], ["plan"]),
    ]


def test_messages_of_a_process_among_8_that_have_10_000_agents_are_small() -> None:
    made = announcer(*searchers(1250))
    assert len(made.beat({})) < 100
    (listing,) = made.listing()
    assert len(listing) < 30_000
    assert len(made.beat({agent.name: 0.5 for agent in searchers(1250)})) < 5_500


def test_a_full_beat_stays_below_16_kb() -> None:
    agents = searchers(100_000)[-LOADS_A_BEAT:]
    made = announcer(*searchers(100_000))
    assert len(made.beat({agent.name: 600.0 for agent in agents})) < 16_384


@pytest.mark.parametrize("most_bytes", [1024, 4096, MOST_BYTES])
def test_parts_fit_and_hold_every_agent_once_in_order(most_bytes: int) -> None:
    agents = [
        Announced(
            f"agent-{number}",
            frozenset({f"can-{number % 7}" * 9}),
            (f"do-{number % 3}",),
            f"about {number % 2}",
            number % 5 == 0,
        )
        for number in range(3000)
    ]
    made = announcer(*agents, most_bytes=most_bytes)
    assert max(map(len, made.listing())) <= most_bytes
    assert len(made.beat({agent.name: 600.0 for agent in agents})) <= most_bytes
    found = parts(made)
    assert [(part.part, part.parts) for part in found] == [(number, len(found)) for number in range(len(found))]
    kinds = [part.kinds[of] for part in found for of in part.of]
    assert [name for part in found for name in part.names] == [agent.name for agent in agents]
    told = [(frozenset(kind.capabilities), tuple(kind.handlers), kind.about, kind.keyed) for kind in kinds]
    assert told == [agent[1:] for agent in agents]


def test_goodbye_names_the_life_that_ends() -> None:
    goodbye = decode(announcer().goodbye())
    assert isinstance(goodbye, Goodbye)
    assert (goodbye.process, goodbye.incarnation) == ("p1", 7)


TOLD = {"process": "p", "incarnation": 1, "version": 1, "told": 0, "ttl_ms": 5000}


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "beat"},
        {"kind": "other", **TOLD},
        {"kind": "beat", **TOLD, "at": [0]},
        {"kind": "beat", **TOLD, "at": [0], "loads": [65536]},
        {"kind": "beat", **TOLD, "ttl_ms": 0},
        {"kind": "beat", **TOLD, "process": ""},
        {"kind": "beat", **TOLD, "process": "a.b"},
        {"kind": "list", **TOLD, "names": ["a b"], "kinds": [[[], []]], "of": [0], "loads": [0]},  # nobody can ask it
        {"kind": "list", **TOLD, "names": ["a"], "of": [0], "loads": [0]},
        {"kind": "list", **TOLD, "names": ["a"], "kinds": [[[], []]], "of": [], "loads": [0]},
        {"kind": "list", **TOLD, "part": 1, "parts": 1},
        [],
    ],
)
def test_what_is_no_announcement_is_refused(body: object) -> None:
    with pytest.raises(BadFrame):
        decode(msgspec.msgpack.encode(body))


def test_question_is_to_all_or_to_one() -> None:
    assert decode_question(encode(Question())).process == ""
    assert decode_question(encode(Question("p1"))).process == "p1"
    with pytest.raises(BadFrame, match="no question who is there"):
        decode_question(b"")

"""What processes tell of their agents, as it goes over the wire: MessagePack maps, told apart by `kind`.

Many agents of a process are of one class, so a list has each kind of agent once, and of each agent a name, the number
of its kind and a load: 1,250 agents are 25 KB.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, NamedTuple

import msgspec

from ..bus.errors import BadFrame

PER_LOAD = 100  # loads are whole hundredths on the wire
MAX_LOAD = 0xFFFF
MOST_BYTES = 256 * 1024  # of a message: a list in larger parts would hold up what else the connection carries
MOST_CAPABILITIES = 1 << 18  # of a part, those of each agent counted: a listener has a place for each

_COST = 5 + 5 + 3  # of an agent beside its name's bytes, at most: the name's length, its kind, its load
_KEPT = 160  # of an agent, and of a name in its kind, beside their characters: what Python's objects take, bytes
_HEAD = 512  # of a part beside its agents, at most: all other fields, and the lengths of its arrays

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 20) - 1)]
Load = Annotated[int, msgspec.Meta(ge=0, le=MAX_LOAD)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Token = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_\-]+\Z")]  # of a subject
About = Annotated[str, msgspec.Meta(max_length=1024)]
Parts = Annotated[int, msgspec.Meta(ge=1, le=4096)]
TtlMs = Annotated[int, msgspec.Meta(ge=100, le=60_000)]  # as `bus.presence_ttl_s` allows


class Announced(NamedTuple):
    """One agent of a process: its name, what it can do, its handlers, what it is for in words, if it is of keys."""

    name: str
    capabilities: frozenset[str] = frozenset()
    handlers: tuple[str, ...] = ()
    about: str = ""
    keyed: bool = False


class Kind(msgspec.Struct, array_like=True):
    """What agents of one class have in common."""

    capabilities: list[Name]
    handlers: list[Name]
    about: About = ""
    keyed: bool = False


class Beat(msgspec.Struct, omit_defaults=True, kw_only=True, tag_field="kind", tag="beat"):
    """A process is there, with the agents of `version`; some of their loads may have changed.

    Attributes:
        process: one subject token.
        incarnation: of the process; a later one of the same name has a greater number.
        version: of its list of agents, from 1.
        told: how often it has told changed loads, this time included; a listener that missed one sees it here.
        ttl_ms: how long it counts as there, ms.
        at: places in the list of the agents whose load has changed.
        loads: theirs, in hundredths.
    """

    process: Token
    incarnation: Count
    version: Count
    told: Count
    ttl_ms: TtlMs
    at: list[Index] = []
    loads: list[Load] = []


class Part(msgspec.Struct, omit_defaults=True, kw_only=True, tag_field="kind", tag="list"):
    """One part of a process's list of agents, whole in itself.

    Attributes:
        process, incarnation, version, told, ttl_ms: as in a `Beat`.
        part: its number, from 0.
        parts: how many there are.
        kinds: of the agents in this part.
        names: theirs.
        of: the place in `kinds` of each.
        loads: the load of each as of `told`, in hundredths.
    """

    process: Token
    incarnation: Count
    version: Count
    told: Count
    ttl_ms: TtlMs
    part: Count = 0
    parts: Parts = 1
    kinds: list[Kind] = []
    names: list[Token] = []
    of: list[Index] = []
    loads: list[Load] = []


class Goodbye(msgspec.Struct, kw_only=True, tag_field="kind", tag="bye"):
    """A process takes no more calls."""

    process: Token
    incarnation: Count


class Question(msgspec.Struct, omit_defaults=True):
    """Who is there: the lists of every process, or of the one named, to the reply subject."""

    process: str = ""


Announcement = Beat | Part | Goodbye

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Announcement] = msgspec.msgpack.Decoder(Announcement)
_question_decoder = msgspec.msgpack.Decoder(Question)


def decode(payload: bytes) -> Announcement:
    """Raises BadFrame unless the payload is an announcement, of this size, whose arrays are as long as each other."""
    if len(payload) > MOST_BYTES:
        raise BadFrame(f"an announcement of {len(payload)} bytes: tell {MOST_BYTES} at once")
    try:
        announcement = _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"no announcement of agents: {error}") from None
    if isinstance(announcement, Beat) and len(announcement.at) != len(announcement.loads):
        raise BadFrame("at and loads of a beat are of unequal length")
    if isinstance(announcement, Part):
        _check(announcement)
    return announcement


def decode_question(payload: bytes) -> Question:
    """Raises BadFrame unless the payload is a question."""
    try:
        return _question_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"no question who is there: {error}") from None


def cut(agents: Sequence[Announced], most_bytes: int) -> list[range]:
    """Runs of agents whose parts, encoded, are no larger than `most_bytes`; one agent too large is alone."""
    runs: list[range] = []
    first, size, able, kinds = 0, _HEAD, 0, set[tuple[frozenset[str], tuple[str, ...], str, bool]]()
    for index, agent in enumerate(agents):
        kind = agent[1:]
        cost = _COST + len(agent.name.encode()) + (0 if kind in kinds else _kind_bytes(agent))
        able += len(agent.capabilities)
        if (size + cost > most_bytes or able > MOST_CAPABILITIES) and index > first:
            runs.append(range(first, index))
            first, size, able, kinds = index, _HEAD, len(agent.capabilities), set()
            cost = _COST + len(agent.name.encode()) + _kind_bytes(agent)
        kinds.add(kind)
        size += cost
    return [*runs, range(first, len(agents))]


def kept_bytes(part: Part) -> int:
    """What keeping a part takes, bytes, about."""
    kinds = sum(kind_bytes(kind.capabilities, kind.handlers, kind.about) for kind in part.kinds)
    return _KEPT * len(part.names) + sum(map(len, part.names)) + 4 * _capabilities(part) + kinds


def kind_bytes(capabilities: Collection[str], handlers: Collection[str], about: str) -> int:
    """What keeping a kind of agents takes, bytes, about."""
    names = len(capabilities) + len(handlers)
    return _KEPT * (1 + names) + sum(map(len, capabilities)) + sum(map(len, handlers)) + len(about)


def _capabilities(part: Part) -> int:
    able = [len(kind.capabilities) for kind in part.kinds]
    return sum(map(able.__getitem__, part.of))


def _check(part: Part) -> None:
    agents = len(part.names)
    if len(part.of) != agents or len(part.loads) != agents:
        raise BadFrame("names, of and loads of a list are of unequal length")
    if part.of and max(part.of) >= len(part.kinds):
        raise BadFrame("a list names a kind of agent that it does not have")
    if _capabilities(part) > MOST_CAPABILITIES:
        raise BadFrame(
            f"the agents of a list have more than {MOST_CAPABILITIES} capabilities together: tell it in parts"
        )
    if part.part >= part.parts:
        raise BadFrame(f"part {part.part} of a list of {part.parts}")


def _kind_bytes(agent: Announced) -> int:
    return len(encode(Kind(sorted(agent.capabilities), list(agent.handlers), agent.about, agent.keyed)))

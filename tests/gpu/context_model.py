"""Windows of a graph's log said to dicts, and what they amount to in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from aikoryu.bus.columns import Array, widen_bf16
from aikoryu.gpu.context.state import Applied, GraphState
from aikoryu.gpu.context.words import LAST_WRITER, Links, Puts, Spec, Words, rounded

D = 4
SPEC = Spec(D, 0.3, 1e-3)
ROUNDING = 2e-5  # of vectors of length 2 or so, in float32


class Put(NamedTuple):
    """A row of `Puts`; the vector follows from the stamp, as what a writer says in a version is one thing."""

    agent: str
    version: int
    writer: int = 1
    until_ms: int = 0
    capabilities: int = 0
    load: float = 0.0

    @property
    def vector(self) -> Array:
        """(d,) float32 that bf16 has."""
        seed = [*self.agent.encode(), self.version & 0xFFFF, self.writer & 0xFFFF]
        drawn = np.random.default_rng(seed).standard_normal((1, D)).astype(np.float32)
        found: Array = widen_bf16(rounded(drawn))[0]
        return found


class Link(NamedTuple):
    """A row of `Links`."""

    source: str
    target: str
    weight: float
    version: int
    writer: int = 1
    until_ms: int = 0


def puts_of(rows: Sequence[Put]) -> Puts:
    """Rows as columns."""
    if not rows:
        return Puts.none(D)
    agents, versions, writers, until_ms, capabilities, load = zip(*rows, strict=True)
    return Puts(
        list(agents),
        rounded(np.array([row.vector for row in rows])),
        np.array(versions, np.uint64),
        np.array(writers, np.uint64),
        np.array(until_ms, np.int64),
        np.array(capabilities, np.uint64),
        np.array(load, np.float32),
    )


def links_of(rows: Sequence[Link]) -> Links:
    """Rows as columns."""
    if not rows:
        return Links.none()
    sources, targets, weights, versions, writers, until_ms = zip(*rows, strict=True)
    return Links(
        list(sources),
        list(targets),
        np.array(weights, np.float32),
        np.array(versions, np.uint64),
        np.array(writers, np.uint64),
        np.array(until_ms, np.int64),
    )


def window(now_ms: int, puts: Sequence[Put] = (), links: Sequence[Link] = (), *, forget: bool = False) -> Words:
    """What is said at a time."""
    return Words(now_ms, puts_of(puts), links_of(links), forget=forget)


@dataclass
class Model:
    """What holds, by name.

    Attributes:
        puts: the word that holds, also of who has ended.
        there: who has put something that has not ended.
        links: the word that holds, of weight 0 if it has ended.
    """

    puts: dict[str, Put] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    links: dict[tuple[str, str], Link] = field(default_factory=dict)

    def apply(self, now_ms: int, puts: Sequence[Put], links: Sequence[Link], *, forget: bool) -> tuple[Any, Any, Any]:
        """Say a window; which puts hold, the versions that do, and which links hold."""
        self._expire(now_ms)
        for put in puts:
            held = self.puts.get(put.agent)
            if held is None or (put.version, put.writer) > (held.version, held.writer):
                self.puts[put.agent] = put
                self.there.add(put.agent)
        for link in links:
            known = self.links.get(link[:2])
            if known is None or (link.version, link.writer) > (known.version, known.writer):
                self.links[link[:2]] = link
        put_holds = [self.puts[put.agent][1:3] == put[1:3] for put in puts]
        versions = [self.puts[put.agent].version for put in puts]
        link_holds = [self.links[link[:2]][2:5] == link[2:5] for link in links]
        if forget:
            self.links = {ends: link for ends, link in self.links.items() if link.weight}
            linked = {end for ends in self.links for end in ends}
            self.puts = {agent: put for agent, put in self.puts.items() if agent in self.there | linked}
        return put_holds, versions, link_holds

    @property
    def names(self) -> list[str]:
        """All who are kept."""
        return sorted({*self.puts, *(end for ends in self.links for end in ends)})

    @property
    def next_expiry_ms(self) -> int | None:
        """When the next word ends."""
        ends = [self.puts[agent].until_ms for agent in self.there]
        ends += [link.until_ms for link in self.links.values()]
        return min((end for end in ends if end), default=None)

    def blended(self, alpha: float) -> dict[str, Array]:
        """Z* by a dense solve, (d,) float64 each."""
        names = self.names
        number = {name: row for row, name in enumerate(names)}
        own, weights = np.zeros((len(names), D)), np.eye(len(names))
        for agent in self.there:
            own[number[agent]] = self.puts[agent].vector
        for link in self.links.values():
            weights[number[link.target], number[link.source]] += np.float32(link.weight)
        weights /= weights.sum(axis=1, keepdims=True)
        found = np.linalg.solve(np.eye(len(names)) - (1 - alpha) * weights, alpha * own)
        return dict(zip(names, found, strict=True))

    def _expire(self, now_ms: int) -> None:
        for agent in list(self.there):
            if 0 < self.puts[agent].until_ms <= now_ms:
                self.there.remove(agent)
                self.puts[agent] = self.puts[agent]._replace(writer=LAST_WRITER, until_ms=0)
                for ends, link in self.links.items():
                    if agent in ends:
                        self.links[ends] = link._replace(weight=0.0)
        for ends, link in self.links.items():
            if 0 < link.until_ms <= now_ms:
                self.links[ends] = link._replace(weight=0.0, writer=LAST_WRITER, until_ms=0)


class Pair:
    """A state and a model to which the same is said."""

    def __init__(self, state: GraphState, model: Model | None = None) -> None:
        self.state = state
        self.model = model or Model()
        self.log: list[tuple[int, Words]] = []

    def say(
        self, now_ms: int, puts: Sequence[Put] = (), links: Sequence[Link] = (), *, forget: bool = False
    ) -> Applied:
        """Say a window to both, and compare the answers."""
        words, epoch = window(now_ms, puts, links, forget=forget), self.state.epoch + 1
        self.log.append((epoch, words if epoch > 1 else replace(words, spec=SPEC)))
        applied = self.state.apply(epoch, words)
        put_holds, versions, link_holds = self.model.apply(now_ms, puts, links, forget=forget)
        assert applied.put_holds.tolist() == put_holds
        assert applied.put_versions.tolist() == versions
        assert applied.link_holds.tolist() == link_holds
        return applied

    def check(self) -> None:
        """Compare all that is kept; what is blended is as near as promised."""
        check(self.state, self.model)


def check(state: GraphState, model: Model) -> None:
    """Compare a state with a model."""
    names = model.names
    assert len(state.names) == len(state.graph.slots) == len(names)
    assert all(name in state.names for name in names)
    own = state.read(names, "own")
    stood = [name in model.there for name in names]
    vectors = [model.puts[name].vector if there else np.zeros(D) for name, there in zip(names, stood, strict=True)]
    np.testing.assert_array_equal(own.vectors, np.array(vectors, np.float32).reshape(-1, D))
    versions = [model.puts[name].version if there else 0 for name, there in zip(names, stood, strict=True)]
    assert own.versions.tolist() == versions
    for name in names:
        heard, hearers = state.links(name)
        links = [link for link in model.links.values() if link.weight]
        assert sorted(heard) == sorted((each.source, each.weight) for each in links if each.target == name)
        assert sorted(hearers) == sorted((each.target, each.weight) for each in links if each.source == name)
    assert state.next_expiry_ms == model.next_expiry_ms
    counts = state.counts()
    assert counts.agents == len(model.there)
    assert counts.edges == len(model.links)
    assert counts.tombstones == sum(not link.weight for link in model.links.values())
    assert state.residual <= state.spec.epsilon
    blended, expected = state.read(names, "blended").vectors, model.blended(state.spec.alpha)
    for name, vector in zip(names, blended, strict=True):
        assert np.linalg.norm(vector - expected[name]) <= state.spec.epsilon / state.spec.alpha + ROUNDING

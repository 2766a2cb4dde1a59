"""Histories of a graph: whatever is said, ends, is said again, forgotten, restored or handed over, the same holds."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Array  # noqa: E402 - only where torch is
from aikoryu.gpu.context.snapshot import frozen, parts, restored  # noqa: E402
from aikoryu.gpu.context.state import GraphState  # noqa: E402
from aikoryu.gpu.context.words import decode, encode  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

from .context_model import ROUNDING, SPEC, Link, Pair, Put, check  # noqa: E402

NAMES = [f"agent {number}" for number in range(7)]
AGREED = 2 * SPEC.epsilon / SPEC.alpha + ROUNDING
BF16 = 0.02  # of what agents are told, of vectors of length 2 or so

name = st.sampled_from(NAMES)
version = st.integers(1, 9)
writer = st.integers(1, 2)
ttl_ms = st.sampled_from([0, 0, 3, 10, 40])
put = st.tuples(name, version, writer, ttl_ms)
# What a writer says in a version is one thing: the weight and the end follow from the stamp.
link = st.tuples(name, name, version, writer).filter(lambda row: row[0] != row[1])


class History(RuleBasedStateMachine):
    """A graph, dicts beside it, and once it is handed over a second owner that reads the same log."""

    device: Device
    other: Device

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1
        self.pair = Pair(GraphState(SPEC, self.device))
        self.second: GraphState | None = None
        self.said: list[tuple[list[Put], list[Link]]] = []
        self.forgotten = 0
        self.watched: dict[str, float] = {}
        self.told: dict[str, Array] = {}

    @rule(puts=st.lists(put, max_size=6), links=st.lists(link, max_size=10))
    def say(self, puts: list[Any], links: list[Any]) -> None:
        """A window; each stamp has one time to live, counted from when it is said first."""
        until = {each[:3]: each[3] and self.now_ms + each[3] for each in reversed(puts)}
        before = {each[:3]: each.until_ms for said, _ in self.said for each in said}
        rows = [Put(agent, at, by, before.get((agent, at, by), until[agent, at, by])) for agent, at, by, _ in puts]
        ends = {each[:2] + each[3:5]: each.until_ms for _, said in self.said for each in said}
        edges = [
            Link(a, b, (0.0, 0.5, 1.0, 7.25)[(at + by) % 4], at, by, ends.get((a, b, at, by), self._end(at)))
            for a, b, at, by in links
        ]
        self.said.append((rows, edges))
        self._say(rows, edges)

    def _end(self, at: int) -> int:
        return self.now_ms + 5 * at if at % 3 == 0 else 0

    @rule(later_ms=st.integers(1, 30))
    def wait(self, later_ms: int) -> None:
        """What has ended ends with the next window."""
        self.now_ms += later_ms
        self._say()

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def say_again(self, data: st.DataObject) -> None:
        """Anything said since it was last forgotten changes nothing."""
        count = data.draw(st.integers(0, len(self.said)))
        before = deepcopy(self.pair.model)
        for rows, edges in self.said[self.forgotten : count]:
            self._say(rows, edges)
            assert self.pair.model == before
            assert self.pair.state.now_ms == self.now_ms

    @rule()
    def forget(self) -> None:
        """What is said after it is as if the ended had never been."""
        self._say(forget=True)
        self.forgotten = len(self.said)

    @rule()
    def restart(self) -> None:
        """The owner comes back from a copy; nobody watches."""
        self.pair.state = restored(parts(frozen(self.pair.state)), self.device)
        self.pair.check()
        self.watched.clear()

    @rule(from_log=st.booleans())
    def hand_over(self, from_log: bool) -> None:
        """A second owner has the same, from the whole log or from a copy, and follows the log."""
        if from_log:
            self.second = GraphState(SPEC, self.other)
            for epoch, words in self.pair.log:
                self.second.apply(epoch, decode(encode(words)))
        else:
            self.second = restored(parts(frozen(self.pair.state)), self.other)
        self._compare()

    @rule(agent=name, threshold=st.sampled_from([0.01, 0.3, 1.0]))
    def watch(self, agent: str, threshold: float) -> None:
        """From now on it is told."""
        if agent not in self.watched:
            self.told[agent] = np.zeros(SPEC.dimension, np.float32)
        self.watched[agent] = threshold
        self.pair.state.watch([agent], np.array([threshold], np.float32), np.array([0], np.int64))

    def _say(self, rows: list[Put] | None = None, edges: list[Link] | None = None, *, forget: bool = False) -> None:
        self.pair.say(self.now_ms, rows or [], edges or [], forget=forget)
        self.pair.check()
        if self.second is not None:
            epoch, words = self.pair.log[-1]
            self.second.apply(epoch, decode(encode(words)))
            self._compare()
        due = self.pair.state.due(self.now_ms)
        self.told.update(zip(due.names, due.vectors, strict=True))
        names = list(self.watched)
        for agent, vector in zip(names, self.pair.state.read(names, "blended").vectors, strict=True):
            # Who is forgotten is told nothing more; what reaches it was near 0.
            if agent in self.pair.state.names:
                assert np.linalg.norm(vector - self.told[agent]) <= self.watched[agent] + BF16
            else:
                self.told[agent] = np.zeros(SPEC.dimension, np.float32)

    def _compare(self) -> None:
        assert self.second is not None
        check(self.second, self.pair.model)
        names = self.pair.model.names
        one, other = (state.read(names, "blended").vectors for state in (self.pair.state, self.second))
        assert np.linalg.norm(one - other, axis=1).max(initial=0) <= AGREED


def test_whatever_is_said_the_same_holds(device: Device) -> None:
    class Here(History):
        """On the device; handed over to the CPU."""

    Here.device, Here.other = device, Device("cpu", 1)
    run_state_machine_as_test(Here, settings=settings(max_examples=25, stateful_step_count=20, deadline=None))

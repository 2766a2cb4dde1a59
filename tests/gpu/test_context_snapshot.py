"""A copy of a graph in parts, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.gpu.context import snapshot  # noqa: E402 - only where torch is
from aikoryu.gpu.context.snapshot import FORMAT, PART_BYTES, frozen, parts, restored  # noqa: E402
from aikoryu.gpu.context.state import GraphState  # noqa: E402
from aikoryu.gpu.context.words import Links, Puts, Spec, Words, rounded  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402

from .context_model import SPEC, D, Link, Pair, Put, check  # noqa: E402


@pytest.fixture
def pair(device: Device) -> Pair:
    """A graph with something of each kind: words that end, tombstones, and numbers in another order than slots."""
    made, names = Pair(GraphState(SPEC, device)), "pqrabcdefgh"
    until_ms = {**dict.fromkeys("pqrcf", 10), **dict.fromkeys("eg", 11)}
    made.say(1, [Put(name, 2, 3, until_ms=until_ms.get(name, 0)) for name in names])
    made.say(2, links=[Link(a, b, 1.5, 4, 5) for a in names for b in names if a < b])
    made.say(10, forget=True)
    puts = [Put("c", 1, 1, until_ms=90, capabilities=1 << 63, load=2.5), Put("z", 1 << 63), Put("b", 7, until_ms=70)]
    made.say(11, puts, [Link("z", "a", 2.0, 1, until_ms=80), Link("only", "b", 0.25, 9)])
    made.say(12, [Put("b", 8)], forget=True)
    made.say(
        13,
        [Put("s", 1), Put("t", 2, until_ms=78), Put("u", 3, until_ms=79), Put("h", 5, until_ms=75)],
        [Link("a", "b", 0.0, 9), Link("u", "t", 1.0, 1)],
    )
    numbers = made.state.graph.slots.agents[made.state.graph.slots.taken()].tolist()
    assert numbers != sorted(numbers)
    assert max(numbers) >= len(numbers)
    return made


def again(state: GraphState, device: Device) -> GraphState:
    return restored(parts(frozen(state)), device)


def twin(pair: Pair, device: Device) -> Pair:
    """The same graph, restored."""
    model = replace(pair.model, puts=dict(pair.model.puts), there=set(pair.model.there), links=dict(pair.model.links))
    return Pair(again(pair.state, device), model)


def test_a_graph_comes_back(pair: Pair, device: Device) -> None:
    back = again(pair.state, device)
    check(back, pair.model)
    assert (back.spec, back.epoch, back.now_ms) == (SPEC, pair.state.epoch, 13)
    assert back.next_expiry_ms == 75
    assert back.ended_ms == pair.state.ended_ms == 13
    slots = back.graph.slots
    assert slots.used == len(slots) == len(back.names), "laid out anew"
    query, needs = np.ones((1, D), np.float32), np.array([1 << 63], np.uint64)
    for state in (pair.state, back):
        routed = state.route(query, needs, 3, 1.0, "own", lambda: None)
        assert routed.names == [["c"]]
        vector = Put("c", 1, 1).vector
        cosine = vector.sum() / np.linalg.norm(vector) / np.sqrt(D)
        np.testing.assert_allclose(routed.scores[0, 0], cosine - 2.5, rtol=1e-5)


def test_what_is_said_next_has_the_same_answers(pair: Pair, device: Device) -> None:
    back = twin(pair, device)
    for now, puts, links in (
        (14, [Put("a", 2, 2), Put("a", 2, 3), Put("z", 1 << 62), Put("f", 1)], [Link("a", "b", 1.0, 8)]),
        (15, [Put("new", 1, until_ms=20)], [Link("only", "b", 3.0, 9), Link("only", "new", 3.0, 9)]),
        (16, [], [Link("a", "d", 0.0, 4, 6), Link("a", "e", 0.0, 4, 5)]),
        (75, [Put("a", 3)], []),
        (80, [], [Link("z", "a", 1.0, 1), Link("z", "a", 1.0, 1, 1 << 63)]),
        (95, [Put("c", 1, 9)], []),
    ):  # fmt: skip
        here, there = (each.say(now, puts, links) for each in (pair, back))
        for one, other in zip(here[:3], there[:3], strict=True):
            np.testing.assert_array_equal(one, other)
        pair.check()
        back.check()
    back.say(96, forget=True)
    back.check()
    check(again(back.state, device), back.model)


def test_a_copy_stays_what_it_was_while_windows_go_on(pair: Pair, device: Device) -> None:
    copy, whole = frozen(pair.state), b"".join(parts(frozen(pair.state)))
    before = replace(pair.model, puts=dict(pair.model.puts), there=set(pair.model.there), links=dict(pair.model.links))
    pair.say(
        500, [Put(name, 50) for name in "abcdefghz"], [Link("a", "z", 9.0, 9), Link("h", "a", 1.0, 1)], forget=True
    )
    assert b"".join(parts(copy)) == whole
    check(restored(parts(copy), device), before)


def test_a_graph_without_agents_comes_back(device: Device) -> None:
    pair = Pair(again(GraphState(SPEC, device), device))
    pair.check()
    pair.say(1, [Put("a", 1)], [Link("a", "b", 1.0, 1)])
    pair.check()
    pair = Pair(again(pair.state, device), pair.model)
    pair.check()


def test_names_of_any_kind_come_back(device: Device) -> None:
    pair = Pair(GraphState(SPEC, device))
    pair.say(1, [Put(name, 1) for name in ("x" * 255, " ", "ünïcødé", "日本", "\u2028", "a\u00a0b")])
    check(again(pair.state, device), pair.model)


def big(device: Device, agents: int, degree: int) -> GraphState:
    """A graph of many parts, whose slots are not in the order of its agents' numbers."""
    draw = np.random.default_rng(3)
    spec, names = Spec(D, 0.3, 0.5), [f"agent {number}" for number in range(agents)]
    ones, zeros = np.ones(agents, np.uint64), np.zeros(agents, np.int64)
    state = GraphState(spec, device)
    vectors = rounded(draw.standard_normal((agents, D)).astype("f4"))
    until = zeros + np.where(np.arange(agents) % 3 == 0, 5, 0)
    state.apply(1, Words(1, Puts(names, vectors, ones, ones, until, ones, ones.astype("f4")), Links.none()))
    state.apply(2, Words(5, Puts.none(D), Links.none(), forget=True))
    fresh = [f"fresh {number}" for number in range(agents // 2)]
    half = agents // 2
    puts = Puts(
        fresh, vectors[:half], ones[:half], ones[:half], zeros[:half] + 99, ones[:half], ones[:half].astype("f4")
    )
    ends = draw.choice(agents // 2, (agents * degree, 2))
    ends = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    count = len(ends)
    columns = (draw.uniform(0, 1, count).astype("f4"), np.arange(1, count + 1).astype("u8"), np.ones(count, np.uint64))
    sources, targets = ([fresh[number] for number in side] for side in ends.T.tolist())
    links = Links(sources, targets, *columns, np.zeros(count, np.int64))
    state.apply(3, Words(6, puts, links))
    return state


def test_many_parts(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "FETCHED_BYTES", 300_000)
    state = big(device, 6000, 8)
    made = list(parts(frozen(state)))
    assert len(made) > 2
    assert {len(part) for part in made[:-1]} == {PART_BYTES}
    assert len(made[-1]) <= PART_BYTES
    assert sum(map(len, made)) < 1.01 * frozen(state).bytes
    back = restored(iter(made), device)
    names = state.names.of(state.graph.slots.agents[state.graph.slots.taken()])
    here, there = (each.read(names, "blended") for each in (state, back))
    apart = np.linalg.norm(here.vectors - there.vectors, axis=1)
    assert apart.max() <= 2 * state.spec.epsilon / state.spec.alpha + 1e-4
    np.testing.assert_array_equal(here.versions, there.versions)
    np.testing.assert_array_equal(state.read(names, "own").vectors, back.read(names, "own").vectors)
    for name in names[::97]:
        for one, other in zip(state.links(name), back.links(name), strict=True):
            assert sorted(one) == sorted(other)
    assert back.counts() == state.counts()
    assert back.next_expiry_ms == state.next_expiry_ms == 99
    # What is computed from the edges is what was kept of them.
    kept = back.graph.table.residual.clone()
    back.graph.refresh()
    torch.testing.assert_close(back.graph.table.residual, kept, atol=1e-5, rtol=0)
    assert not back.apply(4, Words(99, Puts.none(D), Links.none())).settled.residual > state.spec.epsilon


def cut(made: list[bytes]) -> Iterator[bytes]:
    """The parts, the last byte missing."""
    yield from made[:-1]
    yield made[-1][:-1]


def test_what_is_not_whole_is_told(pair: Pair, device: Device) -> None:
    made = list(parts(frozen(pair.state)))
    for damaged, told in (
        (cut(made), "too early"),
        ([], "too early"),
        ([*made, b"x"], "goes on"),
        ([made[0] + b"x"], "goes on"),
        ([b"\x04\x00\x00\x00abcd"], "no header"),
        ([b"\xff" * PART_BYTES * 2], "no header"),
    ):
        given: Iterable[bytes] = damaged
        with pytest.raises(ValueError, match=told):
            restored(given, device)


@pytest.mark.parametrize("form", [FORMAT - 1, FORMAT + 1])
def test_another_form_is_told(pair: Pair, device: Device, form: int) -> None:
    whole = b"".join(parts(frozen(pair.state)))
    length = int.from_bytes(whole[:4], "little")
    header = msgspec.msgpack.decode(whole[4 : 4 + length])
    other = msgspec.msgpack.encode([form, *header[1:]])
    with pytest.raises(ValueError, match=f"has format {form}, known is {FORMAT}: use the aikoryu that made it"):
        restored([len(other).to_bytes(4, "little") + other + whole[4 + length :]], device)


@pytest.mark.gpu
def test_a_graph_is_handed_from_a_gpu_to_the_cpu_and_back(device: Device) -> None:
    if not device.is_cuda:
        pytest.skip("needs both")
    pair, cpu = Pair(GraphState(SPEC, device)), Device("cpu", 1)
    for now in range(1, 40):
        puts = [Put(f"agent {number}", now) for number in range(now % 7, 30, 5)]
        links = [
            Link(put.agent, f"agent {now % 11}", 1.0 + now % 3, now)
            for put in puts[1:]
            if put.agent != f"agent {now % 11}"
        ]
        pair.say(now, puts, links)
        pair = twin(pair, cpu if now % 2 else device)
        pair.check()

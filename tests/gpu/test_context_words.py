"""Words on a graph in a log's entries, what is refused before it gets there, and names and deadlines."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.bus.columns import Array, widen_bf16
from aikoryu.gpu.context import deadlines as deadlines_module
from aikoryu.gpu.context.deadlines import Deadlines, Ends
from aikoryu.gpu.context.names import Names
from aikoryu.gpu.context.words import (
    LARGEST_WEIGHT,
    LAST_MS,
    LAST_WRITER,
    Links,
    Puts,
    Spec,
    Words,
    decode,
    encode,
    refused_links,
    refused_names,
    refused_puts,
    refused_vectors,
    rounded,
    until_ms,
)

u8 = st.integers(0, (1 << 64) - 1)
i8 = st.integers(0, LAST_MS)
f4 = st.floats(width=32, allow_nan=False)


def puts(rows: int, d: int = 3, **changed: Any) -> Puts:
    ones = np.ones(rows, np.uint64)
    made = Puts(
        [f"agent {row}" for row in range(rows)],
        rounded(np.ones((rows, d), np.float32)),
        ones,
        ones,
        np.zeros(rows, np.int64),
        ones,
        np.ones(rows, np.float32),
    )
    return replace(made, **changed)


def links(rows: int, **changed: Any) -> Links:
    ones = np.ones(rows, np.uint64)
    names = [f"agent {row}" for row in range(rows + 1)]
    made = Links(names[:-1], names[1:], np.ones(rows, np.float32), ones, ones, np.zeros(rows, np.int64))
    return replace(made, **changed)


def drawn(draw: Any, kind: type[Any], rows: int, d: int) -> Any:
    """Rows of anything."""
    columns = []
    for each in fields(kind):
        if each.name in ("agents", "sources", "targets"):
            columns.append(draw(st.lists(st.text(max_size=8), min_size=rows, max_size=rows)))
        elif each.name == "vectors":
            values = draw(st.lists(st.integers(0, 65535), min_size=rows * d, max_size=rows * d))
            columns.append(np.array(values, np.uint16).reshape(rows, d))
        else:
            kinds = {"weights": (f4, "f4"), "load": (f4, "f4"), "until_ms": (i8, "i8")}
            strategy, dtype = kinds.get(each.name, (u8, "u8"))
            columns.append(np.array(draw(st.lists(strategy, min_size=rows, max_size=rows)), dtype))
    return kind(*columns)


def assert_same(found: Any, given: Any) -> None:
    assert type(found) is type(given)
    for each in fields(given):
        one, other = getattr(found, each.name), getattr(given, each.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        elif isinstance(other, Puts | Links):
            assert_same(one, other)
        else:
            assert one == other


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.tuples(st.integers(0, 4), st.integers(0, 4)), d=st.integers(1, 5))
def test_an_entry_has_all_that_was_said(data: st.DataObject, rows: tuple[int, int], d: int) -> None:
    spec = data.draw(st.none() | st.builds(Spec, st.integers(1, 9), st.floats(0.01, 1), st.floats(1e-9, 1)))
    said = (drawn(data.draw, Puts, rows[0], d), drawn(data.draw, Links, rows[1], d))
    words = Words(data.draw(i8), *said, spec, data.draw(st.booleans()))
    assert_same(decode(encode(words)), words)


def test_nothing_said_is_a_few_bytes() -> None:
    words = Words(1_700_000_000_000, Puts.none(384), Links.none())
    assert len(encode(words)) < 50
    assert decode(encode(words)).puts.vectors.shape == (0, 384)


def test_a_window_takes_little_more_than_its_vectors() -> None:
    draw = np.random.default_rng(1)
    said = puts(256, vectors=rounded(draw.standard_normal((256, 384)).astype("f4")))
    assert len(encode(Words(1, said, Links.none()))) < 256 * (768 + 64)
    assert len(encode(Words(1, Puts.none(1), links(4096)))) < 4096 * 64


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"a": 1}),
        encode(Words(1, puts(3), links(2)))[:-1],
        encode(Words(1, puts(3), links(2))).replace(b"agent 1", b"agent\xff1"),
    ],
)
def test_what_is_no_window_is_told(entry: bytes) -> None:
    with pytest.raises(ValueError, match="no window"):
        decode(entry)


def test_windows_of_a_later_form_and_damaged_ones_are_told() -> None:
    found = msgspec.msgpack.decode(encode(Words(1, puts(3), links(2))))
    with pytest.raises(ValueError, match="has format 2"):
        decode(msgspec.msgpack.encode([2, *found[1:]]))
    found[7][0] = found[7][0][:-8]
    with pytest.raises(ValueError, match="2 numbers for 3 rows"):
        decode(msgspec.msgpack.encode(found))


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=30))
def test_rounding_is_that_of_torch(bits: list[int]) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `worker`")
    halves = [(x & 0xFFFF0000) | half for x in bits for half in (0x7FFF, 0x8000, 0x8001)]
    values = np.array([*bits, *halves], np.uint32).view(np.float32)[None]
    expected = torch.from_numpy(values).bfloat16()
    found = widen_bf16(rounded(values))
    np.testing.assert_array_equal(found, expected.float().numpy())  # NaN equals NaN, whichever
    halves16 = values.view(np.float16)
    expected = torch.from_numpy(halves16).bfloat16()
    np.testing.assert_array_equal(widen_bf16(rounded(halves16)), expected.float().numpy())


def test_bits_stay_as_they_are() -> None:
    given = np.arange(6, dtype=np.uint16).reshape(2, 3)
    np.testing.assert_array_equal(rounded(given), given)
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(widen_bf16(rounded(strided)), strided)


def test_the_time_to_live_counts_from_now_and_has_an_end() -> None:
    found = until_ms(np.array([0, 1, 500, LAST_MS, -7]), 1000)
    assert found.tolist() == [0, 1001, 1500, LAST_MS, -7]


def long_vectors(*lengths: float) -> Array:
    return rounded(np.array([[length, 0, 0] for length in lengths], np.float32))


def test_a_put_that_would_spoil_a_graph_is_refused() -> None:
    spec = Spec(3, epsilon=1e-3)
    assert refused_puts(puts(5), spec) == {}
    assert refused_puts(Puts.none(3), spec) == {}

    def reasons(**changed: Any) -> dict[int, str]:
        return refused_puts(puts(4, **changed), spec)

    found = reasons(vectors=long_vectors(4000, 4400, np.inf, np.nan))
    assert found.keys() == {1, 2, 3}
    assert "greater epsilon" in found[1]
    assert refused_puts(puts(2, vectors=long_vectors(2.0**48, 2.0**49)), Spec(3, epsilon=1e9)).keys() == {1}
    assert reasons(vectors=rounded(np.full((4, 3), 3e38, np.float32))).keys() == {0, 1, 2, 3}
    assert "version 0" in reasons(versions=np.array([1, 0, 1, 1], "u8"))[1]
    assert "ends what has expired" in reasons(writers=np.array([1, 2, 3, LAST_WRITER], "u8"))[3]
    assert "time to live" in reasons(until_ms=until_ms(np.array([1, 0, -1, 1]), 99))[2]
    assert reasons(load=np.array([1, np.nan, np.inf, -1], "f4")).keys() == {1, 2}
    assert reasons(agents=["a", "", "b\n", "ü" * 127]).keys() == {1, 2}


def test_a_link_that_would_spoil_a_graph_is_refused() -> None:
    assert refused_links(links(5)) == {}
    assert refused_links(Links.none()) == {}

    def reasons(**changed: Any) -> dict[int, str]:
        return refused_links(links(4, **changed))

    weights = np.array([0, LARGEST_WEIGHT, -1, 2 * LARGEST_WEIGHT], "f4")
    assert reasons(weights=weights).keys() == {2, 3}
    assert reasons(weights=np.array([np.nan, np.inf, -0.0, 1], "f4")).keys() == {0, 1}
    assert "hears itself" in reasons(targets=["a", "agent 1", "b", "c"])[1]
    assert reasons(sources=["", "a", "b", "x" * 256], targets=["q", "r\x7f", "s", "t"]).keys() == {0, 1, 3}
    assert "version 0" in reasons(versions=np.array([1, 0, 1, 1], "u8"))[1]
    assert reasons(writers=np.array([1, 2, 3, LAST_WRITER], "u8")).keys() == {3}
    assert reasons(until_ms=np.array([1, -2, 0, 5])).keys() == {1}


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text(min_size=0, max_size=70) | st.sampled_from(["x" * 255, "x" * 256, "\ud800", "\x85"])))
def test_names_are_short_printable_utf8(names: list[str]) -> None:
    def is_name(name: str) -> bool:
        fits = not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in name)
        return fits and 1 <= len(name.encode()) <= 255

    assert refused_names(names).keys() == {row for row, name in enumerate(names) if not is_name(name)}


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(f4, min_size=2, max_size=2), min_size=1, max_size=5), longest=st.floats(1e-3, 1e6))
def test_lengths_of_vectors_in_each_type(rows: list[list[float]], longest: float) -> None:
    values = np.array(rows, np.float32)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    for vectors, wide in ((values, values), (half, half), (rounded(values), widen_bf16(rounded(values)))):
        length = np.linalg.norm(wide.astype(np.float64), axis=1)
        found = refused_vectors(vectors, longest)
        near = np.isclose(length, longest, rtol=1e-5)
        assert {row for row in found if not near[row]} == set(((length > longest) & ~near).nonzero()[0].tolist())


def test_names_get_numbers_in_their_order() -> None:
    names = Names()
    assert names.take(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert names.find(["c", "x", "a"]).tolist() == [2, -1, 1]
    assert names.drop(np.array([2, 0])) == ["c", "b"]
    assert names.find(["a", "b"]).tolist() == [1, -1]
    assert len(names) == 1
    assert names.take(["z", "a", "y", "x"]).tolist() == [0, 1, 2, 3], "the lowest first"
    assert names.of(np.array([3, 0])) == ["x", "z"]
    assert "b" not in names
    assert Names(["p", "q"]).find(["q"]).tolist() == [1]


class Held:
    """Words that end, those that were taken back, and the model: a plain list."""

    def __init__(self) -> None:
        self.count = 0
        self.gone: set[int] = set()
        self.model: list[tuple[int, int]] = []
        self.deadlines = Deadlines(1, lambda ends: ~np.isin(ends.what[:, 0], list(self.gone)))

    def add(self, at_ms: list[int]) -> None:
        numbers = list(range(self.count, self.count + len(at_ms)))
        self.count += len(at_ms)
        self.model += zip(at_ms, numbers, strict=True)
        stamps = np.array(numbers, np.int64)
        self.deadlines.add(Ends(np.array(at_ms, np.int64), stamps[:, None], stamps, -stamps))

    def alive(self) -> list[tuple[int, int]]:
        return sorted(entry for entry in self.model if entry[1] not in self.gone)


@pytest.mark.parametrize("sifted", [1, 1 << 14])
@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.lists(st.integers(1, 50), max_size=9)),
            st.tuples(st.just("take"), st.integers(0, 60)),
            st.tuples(st.just("drop"), st.integers(0, 9)),
            st.tuples(st.just("sift"), st.none()),
        ),
        max_size=30,
    )
)
def test_what_ends_comes_once_and_in_time(sifted: int, steps: list[tuple[str, Any]]) -> None:
    held = Held()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlines_module, "LEAST_SIFTED", sifted)
        for step, value in steps:
            if step == "add":
                held.add(value)
            elif step == "take":
                due = [entry for entry in held.alive() if entry[0] <= value]
                taken = held.deadlines.take(value)
                assert sorted(zip(taken.at_ms.tolist(), taken.what[:, 0].tolist(), strict=True)) == due
                assert taken.at_ms.tolist() == sorted(taken.at_ms.tolist())
                assert (taken.writer == -taken.version).all()
                held.model = [entry for entry in held.model if entry[0] > value]
            elif step == "drop":
                held.gone.update(entry[1] for entry in held.alive()[value::3])
            else:
                assert sorted(held.deadlines.sift().what[:, 0].tolist()) == sorted(n for _, n in held.alive())
                assert len(held.deadlines) == len(held.alive())
            assert held.deadlines.first_ms() == min((at_ms for at_ms, _ in held.alive()), default=None)


def test_words_that_are_said_again_and_again_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines_module, "LEAST_SIFTED", 64)
    latest = np.full(32, -1)

    def holding(ends: Ends) -> Array:
        held: Array = latest[ends.what[:, 0]] == ends.version
        return held

    deadlines = Deadlines(1, holding)
    agents = np.arange(32)
    for version in range(500):
        latest[:] = version
        deadlines.add(Ends(agents + 10_000 + version, agents[:, None], np.full(32, version), agents))
        assert len(deadlines) < 32 * 8
        assert deadlines.first_ms() == 10_000 + version

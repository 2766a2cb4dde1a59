"""What callers say becomes windows: rows of frames, bad ones refused alone, cut and joined in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aikoryu.bus.columns import Values, pack, widen_bf16
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue
from aikoryu.bus.frames import Request, decode_request, encode
from aikoryu.gpu.context.calls import Asked, Routing, is_graph
from aikoryu.gpu.context.said import said_by
from aikoryu.gpu.context.windows import Waiting, rows_of, runs_of, sifted, words_of
from aikoryu.gpu.context.words import Links, Puts, Spec, Words, rounded
from aikoryu.gpu.context.words import encode as written

SPEC = Spec(3)
HELD: Any = object()  # frames are only passed through


def frame(columns: dict[str, Values], **parameters: Any) -> Request:
    rows = len(next(iter(columns.values())))
    raw: Any = {"v": 1, "n": rows, "cols": {name: pack(values) for name, values in columns.items()}, "p": parameters}
    return decode_request(encode(raw))


def put_columns(names: list[str], vectors: Any = None, **more: Values) -> dict[str, Values]:
    count = len(names)
    found = np.ones((count, 3), np.float32) if vectors is None else np.asarray(vectors)
    ones = np.ones(count, np.uint64)
    return {"agent": names, "vector": found, "version": ones, "writer": ones} | more


def puts(names: list[str], vectors: Any = None, now_ms: int = 0, **more: Values) -> Puts:
    asked = Asked("put", frame(put_columns(names, vectors, **more)))
    said = said_by("put", asked, SPEC, now_ms)
    assert isinstance(said, Puts)
    return said


def window(*said: Puts | Links) -> tuple[list[list[int]], Words, list[dict[int, str]]]:
    """What is left of each frame, the window, and what is refused of each that something is refused of."""
    waiting = Waiting(4096, 1 << 20)
    for each in said:
        waiting.add(HELD, each)
    pieces = waiting.take()
    kept, words, refused = sifted(pieces, words_of(pieces, 0, 3, forget=False), SPEC)
    assert [(type(piece.said), len(piece)) for piece in kept] == [(type(piece.said), len(piece.said)) for piece in kept]
    told = [{error.row: error.msg for error in errors} for held, errors in refused if held is HELD]
    return [piece.rows.tolist() for piece in kept], words, told


def links(pairs: list[tuple[str, str]], weights: list[float]) -> Links:
    ones = np.ones(len(pairs), np.uint64)
    columns: dict[str, Values] = {
        "source": [source for source, _ in pairs],
        "target": [target for _, target in pairs],
        "weight": np.array(weights, np.float32),
        "version": ones,
        "writer": ones,
    }
    said = said_by("link", Asked("link", frame(columns)), SPEC, 0)
    assert isinstance(said, Links)
    return said


def test_bad_rows_are_refused_alone() -> None:
    vectors = np.ones((5, 3), np.float32)
    vectors[3, 1] = np.nan
    versions = np.array([1, 2, 3, 4, 0], np.uint64)
    bad = puts(["ada", "", "bo", "cy", "di"], vectors, version=versions)
    pairs = [("ada", "bo"), ("bo", "bo")]
    kept, words, errors = window(puts(["x"]), bad, links(pairs, [1.0, 1.0]), puts([""]), puts(["y", "z"]))
    assert kept == [[0], [0, 2], [0], [0, 1]]
    assert (words.puts.agents, words.puts.versions.tolist()) == (["x", "ada", "bo", "y", "z"], [1, 1, 3, 1, 1])
    assert (words.links.sources, words.links.targets) == (["ada"], ["bo"])
    assert [sorted(each) for each in errors] == [[1, 3, 4], [1], [0]]
    assert "name" in errors[0][1]
    assert "not finite" in errors[0][3]
    assert "version 0" in errors[0][4]
    assert "hears itself" in errors[1][1]


def test_of_a_window_nothing_may_be_left() -> None:
    kept, words, errors = window(puts([""]), puts(["a\n"]))
    assert (kept, len(words.puts), len(words.links)) == ([], 0, 0)
    assert [list(each) for each in errors] == [[0], [0]]


@pytest.mark.parametrize("wire", ["f4", "f2", "bf16"])
def test_vectors_of_each_type_are_the_same_words(wire: str) -> None:
    given = np.array([[1.5, -2, 0.25], [0, 3, 4]])
    vectors = rounded(given.astype(np.float32)) if wire == "bf16" else given.astype(wire)
    request = frame(put_columns(["ada", "bo"], vectors))
    request.cols["vector"].t = wire  # NumPy has no bf16, only its bits
    said = said_by("put", Asked("put", request), SPEC, 0)
    others = np.array([[7, 8, 9]], np.float32)
    for more, expected in (((), given), ((puts(["cy"], others),), np.concatenate([given, others]))):
        kept, words, errors = window(said, *more)
        assert (len(kept), errors) == (1 + len(more), [])
        np.testing.assert_array_equal(widen_bf16(words.puts.vectors), expected)


def test_what_is_left_out_is_zero_and_times_to_live_count_from_now() -> None:
    said = puts(["ada"], now_ms=1000)
    assert (said.until_ms.tolist(), said.capabilities.tolist(), said.load.tolist()) == ([0], [0], [0.0])
    ttl: dict[str, Any] = {"ttl_ms": np.array([50, 0], np.int64), "load": np.ones(2, np.float32)}
    said = puts(["ada", "bo"], now_ms=1000, **ttl)
    assert (said.until_ms.tolist(), said.load.tolist()) == ([1050, 0], [1.0, 1.0])
    _, _, errors = window(puts(["ada"], ttl_ms=np.array([-1], np.int64)))
    assert [list(each) for each in errors] == [[0]]


def test_another_dimension_is_refused_whole() -> None:
    with pytest.raises(BadColumn, match=r"\[4\] numbers a row, this graph 3"):
        puts(["ada"], np.ones((1, 4), np.float32))


def test_frames_that_do_not_suit_are_refused() -> None:
    columns = put_columns(["ada"])
    del columns["version"]
    with pytest.raises(BadColumn, match="version"):
        Asked("put", frame(columns))
    with pytest.raises(BadColumn):
        Asked("put", frame(put_columns(["ada"], np.ones((1, 3)))))
    with pytest.raises(BadParameter, match="these parameters: what"):
        Asked("get", frame({"agent": ["ada"]}, which="own"))
    with pytest.raises(BadParameter):
        Asked("route", frame({"query": np.ones((1, 3), np.float32)}, k=0))
    request = frame(put_columns(["ada"]))
    request.cols["agent"].d = memoryview(b"\xff\xff\xff")
    asked = Asked("put", request)
    with pytest.raises(BadValue, match="UTF-8"):
        said_by("put", asked, SPEC, 0)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e39])
def test_a_load_weight_is_a_number_of_float32(weight: float) -> None:
    query: dict[str, Values] = {"query": np.ones((1, 3), np.float32)}
    with pytest.raises(BadParameter, match="load_weight"):
        Asked("route", frame(query, load_weight=weight))
    assert Asked("route", frame(query, load_weight=-1)).parameters == Routing(load_weight=-1)


def test_names_of_graphs_end_subjects() -> None:
    assert is_graph("Team-1_x")
    assert is_graph("a" * 64)
    assert not any(map(is_graph, ["", "a" * 65, "a.b", "a*", "a b", "ä", "a\n"]))


def test_rows_wait_in_order_and_leave_together() -> None:
    waiting = Waiting(100, 1 << 20)
    assert not waiting
    assert waiting.take() == []
    waiting.add(HELD, puts(["ada", "bo"]))
    said = links([("ada", "bo")], [2.0])
    waiting.add(HELD, said)
    waiting.add(HELD, puts(["ada"]))
    assert waiting
    assert waiting.rows == 4
    pieces = waiting.take()
    assert [piece.rows.tolist() for piece in pieces] == [[0, 1], [0], [0]]
    assert (waiting.rows, waiting.bytes, bool(waiting)) == (0, 0, False)
    words = words_of(pieces, 7, 3, forget=True)
    assert (words.puts.agents, words.links.sources, words.now_ms, words.forget) == (
        ["ada", "bo", "ada"],
        ["ada"],
        7,
        True,
    )
    nothing = words_of([], 8, 3, forget=False)
    assert (len(nothing.puts), len(nothing.links), nothing.puts.vectors.shape) == (0, 0, (0, 3))


def test_windows_end_at_their_rows() -> None:
    waiting = Waiting(4, 1 << 20)
    for count in (3, 2, 9):
        waiting.add(HELD, puts([f"a{number}" for number in range(count)]))
    taken = []
    while waiting:
        taken.append([len(piece) for piece in waiting.take()])
    assert all(sum(sizes) <= 4 for sizes in taken)
    assert sum(map(sum, taken)) == 14
    assert taken[0] == [3]


def test_a_frame_larger_than_a_window_goes_into_several() -> None:
    waiting = Waiting(4096, 1000)
    names = [f"agent {number}" for number in range(40)]
    waiting.add(HELD, puts(names))
    seen: list[str] = []
    while waiting:
        words = words_of(waiting.take(), 0, 3, forget=False)
        assert len(written(words)) < 1000 + 100
        seen += words.puts.agents
    assert seen == names
    assert waiting.bytes == 0


def test_windows_are_cut_by_bytes_of_names_and_not_their_letters() -> None:
    most = 60_000
    waiting = Waiting(4096, most)
    for frame_number in range(4):
        # The long names come last: no average says what a piece has.
        pairs = [(f"{number}", "b") for number in range(100)]
        pairs += [("語" * 80 + f"{number}", "話" * 80) for number in range(50 + frame_number)]
        waiting.add(HELD, links(pairs, [1.0] * len(pairs)))
    rows = 0
    while waiting:
        words = words_of(waiting.take(), 0, 3, forget=False)
        assert len(written(words)) < most + 100
        rows += len(words.links)
    assert rows == 4 * 150 + 6


def test_a_row_larger_than_a_window_goes_alone() -> None:
    waiting = Waiting(4096, 10)
    waiting.add(HELD, puts(["ada", "bo"]))
    assert [[piece.rows.tolist() for piece in waiting.take()] for _ in range(2)] == [[[0]], [[1]]]


def test_all_that_waits_can_be_taken_at_once() -> None:
    waiting = Waiting(1, 1 << 20)
    waiting.add(HELD, puts(["ada", "bo"]))
    assert [piece.said.versions.tolist() for piece in waiting.take_all()] == [[1], [1]]
    assert (bool(waiting), waiting.rows, waiting.bytes) == (False, 0, 0)


def test_rows_as_runs() -> None:
    assert runs_of(np.array([], np.int64)) == []
    assert runs_of(np.array([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 1), (7, 2)]
    assert rows_of(puts(["ada", "bo", "cy"]), np.array([2, 0])).agents == ["cy", "ada"]

"""Packed rows on the CPU: what a graph reads and computes, with attention row by row in place of the GPU's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra `worker`")
pytest.importorskip("safetensors", reason="needs the extra `models`")

from aikoryu.gpu.models.bert import Bert  # noqa: E402 - only where the extras are
from aikoryu.gpu.models.graphs import SIZES, Size, groups, pack  # noqa: E402
from aikoryu.gpu.models.pooling import mean, packed_mean  # noqa: E402

from .test_bert import CPU, write_model  # noqa: E402

Array = np.ndarray[Any, Any]
ROOM = Size(128, 8)
rows_of_tokens = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=16), min_size=1, max_size=ROOM.rows)


def packed(rows: list[list[int]]) -> tuple[Any, Any, Any]:
    """Ids, positions and starts, laid over what a batch before left."""
    room = np.full(2 * ROOM.tokens + ROOM.rows + 1, -7, np.int32)
    ids = np.array([token for row in rows for token in row], np.int32)
    pack(ids, np.array([len(row) for row in rows]), ROOM, room)
    numbers, positions = torch.from_numpy(room[: 2 * ROOM.tokens]).view(2, -1)
    return numbers, positions, torch.from_numpy(room[2 * ROOM.tokens :])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Bert:
    return Bert(write_model(tmp_path_factory.mktemp("models") / "small"), CPU, torch.float32)


@settings(deadline=None, max_examples=40)
@given(rows=rows_of_tokens)
def test_vectors_are_those_of_padded_rows(bert: Bert, rows: list[list[int]]) -> None:
    ids, positions, starts = packed(rows)

    def attention(query: Any, key: Any, value: Any) -> Any:
        found = torch.full_like(query, float("nan"))  # as the GPU leaves what belongs to no row
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            q, k, v = (part[start:stop].transpose(0, 1) for part in (query, key, value))
            share = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
            found[start:stop] = (share @ v).transpose(0, 1)
        return found

    found = packed_mean(bert.packed(ids, positions, attention), starts)
    padded = torch.zeros(len(rows), 16, dtype=torch.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    (hidden,) = bert([(padded, lengths)], lambda number: True)
    assert hidden is not None
    torch.testing.assert_close(found[: len(rows)], mean(hidden, lengths), atol=2e-6, rtol=0)
    assert not found[len(rows) :].any()


@given(rows=rows_of_tokens)
def test_pack_fills_all_of_its_room(rows: list[list[int]]) -> None:
    ids, positions, starts = (part.tolist() for part in packed(rows))
    used = sum(map(len, rows))
    assert ids == [token for row in rows for token in row] + [0] * (ROOM.tokens - used)
    assert positions == [place for row in rows for place in range(len(row))] + [0] * (ROOM.tokens - used)
    ends = np.cumsum([0, *map(len, rows)]).tolist()
    assert starts == ends + [used] * (ROOM.rows - len(rows))


@given(lengths=st.lists(st.integers(1, 40), max_size=60))
def test_groups_are_the_rows_in_order_and_fit(lengths: list[int]) -> None:
    largest = Size(40, 5)
    found = list(groups(np.array(lengths, np.int64), [largest]))
    assert [row for group in found for row in range(len(lengths))[group]] == list(range(len(lengths)))
    for group in found:
        assert sum(lengths[group]) <= largest.tokens
        assert 1 <= len(lengths[group]) <= largest.rows
    for group, after in pairwise(found):
        assert len(lengths[group]) == largest.rows or sum(lengths[group]) + lengths[after.start] > largest.tokens


@given(lengths=st.lists(st.integers(1, 256), max_size=2000))
def test_groups_of_many_sizes_are_few_and_fill_theirs(lengths: list[int]) -> None:
    found = list(groups(np.array(lengths, np.int64), SIZES))
    assert [row for group in found for row in range(len(lengths))[group]] == list(range(len(lengths)))
    for group in found:
        tokens, rows = sum(lengths[group]), len(lengths[group])
        assert any(tokens <= size.tokens and rows <= size.rows for size in SIZES)
    if sum(lengths) >= 16 * len(lengths):  # no size runs out of rows first
        assert len(found) <= 1 + sum(lengths) // (SIZES[-1].tokens - 2 * 256)


def test_groups_of_one_length_leave_no_room_unused() -> None:
    found = list(groups(np.full(1024, 24), SIZES))
    assert [group.stop - group.start for group in found] == [512, 512]


def test_sizes_rise() -> None:
    assert all(a.tokens < b.tokens and a.rows <= b.rows for a, b in pairwise(SIZES))


def test_write_random_minilm(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra `models`")
    from aikoryu.gpu.models.store import find
    from aikoryu.gpu.models.tokenizer import Tokenizer

    from .random_minilm import write

    words = write(tmp_path / "random-minilm")
    model = find(str(tmp_path / "random-minilm"))
    Bert(model, CPU, torch.float32)
    (ids,) = Tokenizer(model).encode([" ".join(words[:9])])
    assert len(ids) == 11
    assert model.max_tokens == 256

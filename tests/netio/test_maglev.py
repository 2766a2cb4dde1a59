"""Maglev tables: shares, what moves when back ends change, and the paper's algorithm itself."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from aikoryu.netio.maglev import BadBackends, MaglevTable

SIZE = 10_007


def table(count: int, size: int = SIZE, changed: dict[str, float] | None = None) -> MaglevTable:
    return MaglevTable.of({f"10.0.0.{number}": 1.0 for number in range(count)} | (changed or {}), size)


def test_equal_weights_have_equal_shares() -> None:
    counts = np.bincount(table(50).slots)
    assert counts.max() - counts.min() <= 1


def test_weights_are_shares() -> None:
    shares = MaglevTable.of({"a": 1, "b": 2, "c": 5, "d": 0}, SIZE).shares()
    assert shares == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8, "d": 0}, abs=0.001)


def test_the_order_of_back_ends_does_not_matter() -> None:
    left = MaglevTable.of({"a": 1, "b": 2, "c": 3}, SIZE)
    right = MaglevTable.of({"c": 3, "a": 1, "b": 2}, SIZE)
    assert left.backends == right.backends
    np.testing.assert_array_equal(left.slots, right.slots)


@pytest.mark.parametrize("leaving", ["10.0.0.0", "10.0.0.7", "10.0.0.49"])
def test_few_flows_of_others_move_when_one_back_end_leaves(leaving: str) -> None:
    whole = table(50)
    without = MaglevTable.of({name: 1.0 for name in whole.backends if name != leaving}, SIZE)
    # A table filled anew would move 98 % of the slots.
    assert 0 < whole.moved(without) < 0.03
    assert leaving not in without.backends


def test_a_drained_back_end_moves_as_few_as_one_that_left() -> None:
    whole = table(50)
    assert whole.moved(table(50, changed={"10.0.0.7": 0.0})) < 0.03


def test_few_flows_move_when_one_back_end_comes() -> None:
    before, after = table(50), table(51)
    changed = np.array(before.backends)[before.slots] != np.array(after.backends)[after.slots]
    assert 1 / 51 <= changed.mean() < 1 / 51 + 0.03


def test_a_weight_that_changes_a_little_moves_little() -> None:
    assert table(50).moved(table(50, changed={"10.0.0.7": 0.9})) < 0.05


def test_slots_are_taken_in_turn_by_each_ones_permutation() -> None:
    size = 13
    filled = table(3, size)
    taken: dict[int, int] = {}
    for turn in range(size):
        row = turn % 3
        mine = [slot for slot in permutation(filled.backends[row], size) if slot not in taken]
        taken[mine[0]] = row
    assert filled.slots.tolist() == [taken[slot] for slot in range(size)]


def permutation(name: str, size: int) -> list[int]:
    digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"maglev").digest()
    offset, skip = int.from_bytes(digest[:8]) % size, int.from_bytes(digest[8:]) % (size - 1) + 1
    return [(offset + turn * skip) % size for turn in range(size)]


def test_flows_are_looked_up_by_their_hash() -> None:
    filled = table(5)
    hashes = np.random.default_rng(1).integers(1 << 64, size=20_000, dtype=np.uint64)
    found = filled.lookup(hashes)
    assert found.tolist() == [int(filled.slots[value % SIZE]) for value in hashes.tolist()]
    assert np.bincount(found) / len(found) == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize(
    ("weights", "size", "message"),
    [
        ({}, SIZE, "no back end has a weight above 0"),
        ({"a": 0.0}, SIZE, "no back end has a weight above 0"),
        ({"a": -1.0}, SIZE, "the weight of 'a' is -1.0"),
        ({"a": float("nan")}, SIZE, "the weight of 'a' is nan"),
        ({"a": 1.0}, 10_005, "a table of 10005 slots: take a prime of at least 100"),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 3, "a table of 3 slots"),
    ],
)
def test_what_is_not_allowed_is_said(weights: dict[str, float], size: int, message: str) -> None:
    with pytest.raises(BadBackends, match=message):
        MaglevTable.of(weights, size)

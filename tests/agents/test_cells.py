"""What is remembered of keys: one call of a key at a time, and in all so much."""

from __future__ import annotations

import asyncio

import pytest

from aikoryu.agents import cells as module
from aikoryu.agents.cells import Cell, Cells
from aikoryu.agents.saved import Saved


async def use(cells: Cells, among: dict[str, Cell], key: str, size: int = 1) -> None:
    async with cells.turn(among, key) as cell:
        cell.fill(Saved(key), 1, size)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Cells:
    monkeypatch.setattr(module, "MOST_STATES", 3)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    return Cells()


async def test_keys_used_longest_ago_go_first_whatever_their_partition(few: Cells) -> None:
    one: dict[str, Cell] = {}
    other: dict[str, Cell] = {}
    await use(few, one, "a")
    await use(few, other, "a")
    await use(few, one, "b")
    await use(few, one, "a")
    await use(few, other, "c")
    assert (set(one), set(other), len(few), few.bytes) == ({"a", "b"}, {"c"}, 3, 3)
    await use(few, other, "d", 99)
    assert (set(one), set(other), few.bytes) == (set(), {"c", "d"}, 100)
    await use(few, other, "d", 101)  # too large to be kept
    assert (set(other), few.bytes) == (set(), 0)


async def test_keys_in_use_stay(few: Cells) -> None:
    among: dict[str, Cell] = {}
    async with few.turn(among, "a") as cell:
        cell.fill(Saved("a"), 1, 1000)
        for number in range(10):
            await use(few, among, str(number))
        assert set(among) == {"a", "8", "9"}
    assert (set(among), few.bytes) == ({"8", "9"}, 2)


async def test_partition_that_goes_takes_its_cells_along_those_in_use_too(few: Cells) -> None:
    one: dict[str, Cell] = {}
    other: dict[str, Cell] = {}
    await use(few, other, "a")
    await use(few, one, "a")
    async with few.turn(one, "b") as cell:
        cell.fill(Saved("b"), 1, 50)
        few.forget(one)
        assert (one, len(few), few.bytes) == ({}, 1, 1)
    assert (set(other), len(few), few.bytes) == ({"a"}, 1, 1)


async def test_one_call_of_a_key_runs_at_a_time(few: Cells) -> None:
    among: dict[str, Cell] = {}
    running = 0

    async def call() -> None:
        nonlocal running
        async with few.turn(among, "a"):
            running += 1
            await asyncio.sleep(0)
            assert running == 1
            running -= 1

    await asyncio.gather(*(call() for _ in range(10)))

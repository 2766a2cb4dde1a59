"""Waiting for what other tasks do, without a clock; a bus in memory, and an owner of context graphs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from aikoryu.bus.memory import MemoryBus

from .fake_context import FakeGraph, FakeOwner


async def until(condition: Callable[[], object]) -> None:
    """Let others run until a condition holds; fail after 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is a handler's own state
            await asyncio.sleep(0)


async def turns(count: int = 60) -> None:
    """Let others run for so many turns of the loop: enough for a call and its answer in memory."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def memory() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def log() -> dict[str, FakeGraph]:
    return {}


@pytest.fixture
async def owner(memory: MemoryBus, log: dict[str, FakeGraph]) -> FakeOwner:
    made = FakeOwner(memory.connect(), log)
    await made.start()
    return made

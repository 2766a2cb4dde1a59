"""Changes of what a worker keeps, tensors and rule sets: in several rows, and again if the engine is lost meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..bus.client import Client
from ..bus.errors import EngineLost
from ..bus.pending import RowsFailed

TRIES = 3

T = TypeVar("T")


async def again_if_lost(change: Callable[[], Awaitable[T]]) -> T:
    """Make a change that is the same made twice: an engine that is lost meanwhile is followed by another."""
    for _ in range(TRIES - 1):
        with suppress(EngineLost):
            return await change()
    return await change()


async def rows_of_one(
    client: Client, operation: str, columns: dict[str, Any], parameters: dict[str, Any], timeout_s: float | None
) -> dict[str, Any]:
    """Ask for rows that are all about one thing: what befalls the first befalls it, and is raised."""
    try:
        return await client.call_many(operation, columns, parameters, timeout_s=timeout_s, idempotent=True)
    except RowsFailed as error:
        raise next(iter(error.errors.values())) from None

"""What is made when it is first needed, and then kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Makes something at the first call; those that call meanwhile wait for it. What failed is tried by the next."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._made: list[T] = []
        self._making = asyncio.Lock()

    async def __call__(self) -> T:
        if not self._made:
            async with self._making:
                if not self._made:
                    self._made.append(await self._make())
        return self._made[0]

    def forget(self) -> None:
        """Make it again at the next call."""
        self._made.clear()

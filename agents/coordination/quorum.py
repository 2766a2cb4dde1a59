"""The first answers of several: as many as are needed, and no waiting for the rest."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterable
from typing import Generic, TypeVar

from ...bus.errors import BadParameter
from .errors import NoQuorum

T = TypeVar("T")


async def gather(
    awaitables: Iterable[Awaitable[T]], *, quorum: int | None = None, timeout_s: float | None = None
) -> list[T]:
    """Wait until `quorum` of them have succeeded; cancel the rest, and wait until they have ended.

    Args:
        awaitables: calls, tasks, coroutines.
        quorum: how many must succeed, 1 or more; by default all.
        timeout_s: longest wait, s; by default none but those of the awaitables.

    Returns:
        The first `quorum` results that came, in the order in which their awaitables were given.

    Raises:
        NoQuorum: too many failed, or the time is over; it has what came. Nothing goes on.
        BadParameter: there are fewer than `quorum`; nothing was begun.
    """
    waiting = list(awaitables)
    needed = len(waiting) if quorum is None else quorum
    if not 1 <= needed <= len(waiting):
        for each in waiting:
            if inspect.iscoroutine(each):
                each.close()
        raise BadParameter(f"quorum is {needed} of {len(waiting)}: ask for 1 or more, and no more than there are")
    count: _Count[T] = _Count(needed, len(waiting))
    futures = [asyncio.ensure_future(each) for each in waiting]
    for future in futures:
        future.add_done_callback(count.ended)
    try:
        await asyncio.wait({count.decided}, timeout=timeout_s)
    finally:
        for future in futures:
            future.remove_done_callback(count.ended)
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    if len(count.results) < needed:
        silent = len(waiting) - len(count.results) - len(count.errors)
        raise NoQuorum(
            f"{len(count.results)} of {needed} needed succeeded: {len(count.errors)} failed, {silent} did not answer"
            + (f" within {timeout_s:g} s" if timeout_s is not None else "")
            + (f"; the first error was {count.errors[0]!r}" if count.errors else ""),
            count.results,
            count.errors,
        )
    return [future.result() for future in futures if future in count.succeeded]


class _Count(Generic[T]):
    """What has come so far; `decided` is done when the rest cannot change the outcome."""

    def __init__(self, needed: int, asked: int) -> None:
        self.results: list[T] = []
        self.succeeded: set[asyncio.Future[T]] = set()
        self.errors: list[BaseException] = []
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._needed = needed
        self._spare = asked - needed

    def ended(self, future: asyncio.Future[T]) -> None:
        if self.decided.done():
            return
        if future.cancelled():
            self.errors.append(asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self.errors.append(error)
        else:
            self.results.append(future.result())
            self.succeeded.add(future)
        if len(self.results) == self._needed or len(self.errors) > self._spare:
            self.decided.set_result(None)

"""Streams, calling side: asks for items a few answers ahead, and gives them one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np

from ..bus.client import MAX_TIMEOUT_S, Client
from ..bus.errors import BadFrame, Expired
from ..bus.pending import RowsFailed
from .message import Codec, Encoded, codec

WINDOW = 4  # answers asked for and not taken: one is on its way while another is read


async def consume(
    client: Client, name: str, row: dict[str, Any], reply: Codec, limit_s: float, priority: int
) -> AsyncGenerator[Any, None]:
    """The items of a handler's stream.

    Args:
        client: asks.
        name: of the handler.
        row: the columns of the call.
        reply: type of an item.
        limit_s: longest wait for an item, s.
        priority: of the call.

    Raises:
        BusError: what the generator raised, when the items before it have been taken; or no item came in time.
    """
    pulls = _Pulls(row)
    array = codec(list[reply.type])  # type: ignore[name-defined]
    # A part waits for the answers before its own: each is sent as far ahead as the window goes.
    timeout_s = min(limit_s * (WINDOW + 1), MAX_TIMEOUT_S)
    taken = 0
    try:
        async with aclosing(client.stream(name, pulls.sent(), timeout_s=timeout_s, priority=priority)) as answers:
            while True:
                async with asyncio.timeout(limit_s):
                    answer = await anext(answers)
                encoded, seq, end = _part(answer)
                if seq != taken:
                    raise BadFrame(f"item {taken} of the stream is missing: the next is {seq}")
                items = array.decode(encoded)
                taken += len(items)
                for item in items:
                    yield item
                if end:
                    return
                pulls.took()
    except RowsFailed as error:
        raise next(iter(error.errors.values())) from None
    except TimeoutError:
        raise Expired(f"no item of {name} within {limit_s:g} s") from None


class _Pulls:
    """What is sent: the call, then rows that ask for more, as answers are taken."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._call = {name: [value] for name, value in row.items()}
        self._room = asyncio.Semaphore(WINDOW - 1)

    def took(self) -> None:
        self._room.release()

    async def sent(self) -> AsyncIterator[dict[str, Any]]:
        yield self._call
        while True:
            await self._room.acquire()
            yield {"more": np.ones(1, bool)}


def _part(answer: dict[str, Any]) -> tuple[Encoded, int, bool]:
    """The items of a part, encoded, the number of the first, and whether they are the last."""
    try:
        items, seq, end = answer["items"][0], int(answer["seq"][0]), bool(answer["end"][0])
        if isinstance(items, bytes | str):
            return items, seq, end
    except (LookupError, TypeError, ValueError):
        pass
    raise BadFrame("a part of the stream lacks 'items', 'seq' or 'end': whoever serves the handler must change it")

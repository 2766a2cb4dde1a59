"""The first answers of several: who is waited for, who is not, and what becomes of the rest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aikoryu.agents.coordination import NoQuorum, gather
from aikoryu.bus.errors import BadParameter


class Peer:
    """Answers when it is told to.

    Attributes:
        ended: how its call ended: `answered`, `failed`, `cancelled`; empty while it is under way.
    """

    def __init__(self, answer: Any) -> None:
        self.ended = ""
        self._answer = answer
        self._may = asyncio.Event()

    def answer(self) -> None:
        self._may.set()

    async def call(self) -> Any:
        try:
            await self._may.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # ending takes a while
            self.ended = "cancelled"
            raise
        if isinstance(self._answer, Exception):
            self.ended = "failed"
            raise self._answer
        self.ended = "answered"
        return self._answer


def peers(*answers: Any) -> list[Peer]:
    return [Peer(answer) for answer in answers]


async def begun(asked: list[Peer], **how: Any) -> asyncio.Task[list[Any]]:
    task = asyncio.create_task(gather([peer.call() for peer in asked], **how))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_it_returns_the_first_in_the_order_given_and_cancels_the_rest() -> None:
    asked = peers("a", "b", "c", "d")
    task = await begun(asked, quorum=2)
    asked[2].answer()
    await asyncio.sleep(0)
    asked[1].answer()
    assert await task == ["b", "c"]
    assert [peer.ended for peer in asked] == ["cancelled", "answered", "answered", "cancelled"]


async def test_all_are_needed_by_default() -> None:
    asked = peers("a", "b")
    task = await begun(asked)
    asked[1].answer()
    await asyncio.sleep(0)
    assert not task.done()
    asked[0].answer()
    assert await task == ["a", "b"]


async def test_errors_do_not_matter_while_enough_may_still_succeed() -> None:
    asked = peers(ValueError("x"), "b", "c")
    task = await begun(asked, quorum=2)
    for peer in asked:
        peer.answer()
    assert await task == ["b", "c"]


async def test_it_fails_as_soon_as_it_cannot_succeed() -> None:
    error = ValueError("x")
    asked = peers(error, "b", error, "d")
    task = await begun(asked, quorum=3)
    for peer in asked[:3]:
        peer.answer()
    with pytest.raises(
        NoQuorum, match=r"1 of 3 needed succeeded: 2 failed, 1 did not answer; .* ValueError\('x'\)"
    ) as no:
        await task
    assert (no.value.results, no.value.errors) == (("b",), (error, error))
    assert asked[3].ended == "cancelled"


async def test_who_is_cancelled_has_not_succeeded() -> None:
    asked = peers("a", "b")
    calls = [asyncio.create_task(peer.call()) for peer in asked]
    task = asyncio.create_task(gather(calls, quorum=2))
    await asyncio.sleep(0)
    calls[0].cancel()
    with pytest.raises(NoQuorum) as no:
        await task
    assert [type(error) for error in no.value.errors] == [asyncio.CancelledError]


async def test_the_time_is_over() -> None:
    asked = peers("a", "b", "c")
    asked[0].answer()
    with pytest.raises(NoQuorum, match=r"1 of 2 needed succeeded: 0 failed, 2 did not answer within 0\.01 s$"):
        await gather([peer.call() for peer in asked], quorum=2, timeout_s=0.01)
    assert [peer.ended for peer in asked] == ["answered", "cancelled", "cancelled"]


async def test_who_stops_waiting_stops_all() -> None:
    asked = peers("a", "b")
    task = await begun(asked, quorum=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [peer.ended for peer in asked] == ["cancelled", "cancelled"]


@pytest.mark.parametrize(("count", "quorum"), [(2, 3), (2, 0), (2, -1), (0, None)])
async def test_a_quorum_that_cannot_be_is_refused_and_nothing_begins(count: int, quorum: int | None) -> None:
    asked = peers(*range(count))
    with pytest.raises(BadParameter, match=f"of {count}: ask for 1 or more"):
        await gather([peer.call() for peer in asked], quorum=quorum)
    assert [peer.ended for peer in asked] == [""] * count

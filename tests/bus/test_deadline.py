"""What a client asks while something is answered waits no longer than who asked for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.deadline import until
from aikoryu.bus.errors import Expired
from aikoryu.bus.frames import Request, decode_request
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects


@pytest.fixture
def requests() -> list[Request]:
    return []


@pytest.fixture
async def client(requests: list[Request]) -> AsyncIterator[Client]:
    """Asks a worker that keeps what it was asked, and says nothing."""
    bus = MemoryBus()
    await bus.connect().subscribe(
        "aikoryu.v1.default.echo", lambda message: requests.append(decode_request(message.data))
    )
    made = Client(bus.connect(), Subjects(), timeout_s=30.0, frame_bytes=65536)
    await made.start()
    yield made
    await made.close()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["call", "call_many", "stream"])
async def test_every_way_to_ask_inherits(client: Client, requests: list[Request], how: str) -> None:
    async def ask(timeout_s: float | None) -> None:
        if how == "call":
            await client.call("echo", {"x": "a"}, timeout_s=timeout_s)
        elif how == "call_many":
            await client.call_many("echo", {"x": ["a"]}, timeout_s=timeout_s)
        else:
            await anext(client.stream("echo", [{"x": np.ones(1)}], timeout_s=timeout_s))

    tasks = [asyncio.create_task(ask(None))]
    until.set(monotonic() + 2.0)
    tasks += [asyncio.create_task(ask(timeout_s)) for timeout_s in (None, 1.0, 5.0)]
    await turns()
    assert sorted(request.ttl_ms for request in requests) in ([1000, 1900, 1900, 30000], [1000, 1900, 30000])
    until.set(monotonic() - 1)
    with pytest.raises(Expired, match="nothing was sent"):
        await ask(None)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_of_one_moment_share_a_frame_though_each_has_less_left(
    client: Client, requests: list[Request]
) -> None:
    until.set(monotonic() + 2.0)
    answers = [client.call("echo", {"x": "a"}) for _ in range(100)]
    await turns()
    assert [request.n for request in requests] == [100]
    for answer in answers:
        answer.cancel()

"""Writes to JetStream that leave together, on a bus in memory where a test answers for the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aikoryu.bus import pipeline as module
from aikoryu.bus.errors import TooLarge
from aikoryu.bus.jetstream import EXPECTED_LAST, NoAnswer, Refused, Unavailable
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.pipeline import Full, Occupied, Pipeline, PipelinedJetStream
from aikoryu.bus.transport import Message

from .conftest import Eventually


class Stream:
    """The server's end: a stream that takes messages of `kept.>` and answers as it is told.

    Attributes:
        taken: what came.
        answer: in place of an acknowledgement; None: silence.
    """

    def __init__(self, connection: MemoryConnection) -> None:
        self.taken: list[Message] = []
        self.answer: dict[str, Any] | None = {}
        self._connection = connection

    def take(self, message: Message) -> None:
        self.taken.append(message)
        if self.answer is not None:
            told = {"stream": "S", "seq": len(self.taken), **self.answer}
            self._connection.send(message.reply, json.dumps(told).encode())


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(max_payload=4096)


@pytest.fixture
def writer(bus: MemoryBus) -> MemoryConnection:
    return bus.connect()


@pytest.fixture
async def stream(bus: MemoryBus) -> Stream:
    connection = bus.connect()
    made = Stream(connection)
    await connection.subscribe("kept.>", made.take)
    return made


@pytest.fixture
async def pipeline(writer: MemoryConnection) -> AsyncIterator[Pipeline]:
    async with Pipeline(writer) as made:
        yield made


async def test_writes_of_one_tick_leave_together_and_each_hears_its_sequence(
    pipeline: Pipeline, stream: Stream, writer: MemoryConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = 0

    def push() -> bool:
        nonlocal pushes
        pushes += 1
        return True

    monkeypatch.setattr(writer, "push", push)
    writes = [pipeline.write(f"kept.{number}", b"", {EXPECTED_LAST: str(number)}) for number in range(64)]
    assert await asyncio.gather(*writes) == list(range(1, 65))
    assert pushes == 1
    assert [message.headers for message in stream.taken] == [{EXPECTED_LAST: str(number)} for number in range(64)]


@pytest.mark.parametrize(
    ("answer", "error", "err_code"),
    [
        ({"error": {"code": 400, "err_code": 10071, "description": "wrong last sequence: 9"}}, Refused, 10071),
        ({"error": {"code": 400, "err_code": 10164, "description": "wrong last sequence"}}, Refused, 10164),
        ({"error": {"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}}, Full, 10077),
        ({"error": {"code": 503, "err_code": 10008, "description": "no leader"}}, Unavailable, None),
        ({"duplicate": True}, Occupied, 0),
    ],
)
async def test_what_the_server_refuses_is_raised(
    pipeline: Pipeline, stream: Stream, answer: dict[str, Any], error: type[Exception], err_code: int | None
) -> None:
    stream.answer = answer
    with pytest.raises(error) as raised:
        await pipeline.write("kept.a", b"")
    assert type(raised.value) is error
    assert getattr(raised.value, "err_code", None) == err_code


async def test_what_no_stream_takes_or_no_message_holds_was_not_written(pipeline: Pipeline) -> None:
    with pytest.raises(Unavailable):
        await pipeline.write("elsewhere", b"")
    with pytest.raises(TooLarge):
        await pipeline.write("kept.a", bytes(5000))


async def test_of_a_write_that_is_not_answered_nothing_is_known(
    pipeline: Pipeline,
    stream: Stream,
    bus: MemoryBus,
    writer: MemoryConnection,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream.answer = None
    lost = asyncio.ensure_future(pipeline.write("kept.a", b""))
    await eventually(lambda: bool(stream.taken))
    bus.drop_connection(writer)
    bus.restore(writer)
    with pytest.raises(NoAnswer, match="the connection was lost before JetStream answered"):
        await lost
    monkeypatch.setattr(module, "ANSWER_S", 0.0)
    monkeypatch.setattr(module, "SWEEP_S", 0.001)
    with pytest.raises(NoAnswer, match="did not answer within 0 s"):
        await pipeline.write("kept.a", b"")


async def test_who_leaves_its_write_holds_up_nobody(pipeline: Pipeline, stream: Stream) -> None:
    left = asyncio.ensure_future(pipeline.write("kept.a", b""))
    await asyncio.sleep(0)
    left.cancel()
    assert await pipeline.write("kept.b", b"") == 2
    assert pipeline._asked == {}


async def test_an_answer_that_makes_no_sense_is_none(
    pipeline: Pipeline, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    monkeypatch.setattr(module, "SWEEP_S", 0.001)
    stranger = bus.connect()
    await stranger.subscribe("kept.>", lambda message: stranger.send(message.reply, b"?"))
    with pytest.raises(NoAnswer):
        await pipeline.write("kept.a", b"")


async def test_jetstream_that_is_pipelined_publishes_together_and_gives_up_in_time(
    writer: MemoryConnection, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes: list[bool] = []
    monkeypatch.setattr(writer, "push", lambda: not pushes.append(True))  # type: ignore[func-returns-value]
    async with PipelinedJetStream(writer) as jetstream:
        assert await asyncio.gather(*(jetstream.publish("kept.a", b"") for _ in range(10))) == list(range(1, 11))
        assert len(pushes) == 1
        stream.answer = {"error": {"code": 400, "err_code": 10071, "description": "wrong last sequence: 9"}}
        with pytest.raises(Refused):
            await jetstream.publish("kept.a", b"", {EXPECTED_LAST: "3"})
        stream.answer = None
        with pytest.raises(NoAnswer, match=r"within 0.001 s: find out"):
            await jetstream.publish("kept.a", b"", timeout_s=0.001)
    assert writer.subscriptions == []

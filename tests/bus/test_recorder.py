"""The recorder over the in-memory bus: what a client asks and a worker answers is in the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from aikoryu.bus import recorder as module
from aikoryu.bus.client import Client
from aikoryu.bus.columns import cut
from aikoryu.bus.errors import BadParameter, Busy
from aikoryu.bus.exchange import Exchange
from aikoryu.bus.frames import Reply, Request, RowError, decode_request, encode
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.recorder import AGAIN, GAPS, STREAMS, UNANSWERED, UNREADABLE, Recorder, steady_clock
from aikoryu.bus.recording import Recording, RecordingFull, RecordingWriter
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message

SUBJECTS = Subjects()

Answering = Callable[[Request], Iterable[Reply | bytes]]


def echo(request: Request) -> Iterable[Reply]:
    yield Reply(id=request.id, at=[(0, request.n)], cols=request.cols, last=True)


def halved(request: Request) -> Iterable[Reply]:
    """The second half of the rows first."""
    half = request.n // 2
    for first, end, last in ((half, request.n, False), (0, half, True)):
        columns = {name: cut(column, request.n, first, end) for name, column in request.cols.items()}
        yield Reply(id=request.id, at=[(first, end - first)], cols=columns, last=last)


def refusing(times: int) -> Answering:
    """Says `busy` so many times, and then answers."""
    left = count(times, -1)

    def answer(request: Request) -> Iterable[Reply]:
        if next(left) > 0:
            error = RowError(0, Busy.code, "full", 0, 1)
            yield Reply(id=request.id, err=[error], again=request.again, last=True)
        else:
            yield from echo(request)

    return answer


class Bus:
    """A client, a worker and a recorder, each with a connection of its own.

    Attributes:
        answering: what the worker does.
        sent: every reply of the worker.
    """

    def __init__(self, path: Path, patterns: list[str], most_bytes: int = 1 << 20) -> None:
        self.memory = MemoryBus()
        self.answering: Answering = echo
        self.sent: list[bytes] = []
        self.path = path
        clock = count(1000)
        self.writer = RecordingWriter(path, SUBJECTS.root, tuple(patterns), next(clock), most_bytes)
        self.connection = self.memory.connect()
        self.recorder = Recorder(
            self.connection, SUBJECTS, self.writer, patterns, ["_INBOX"], clock=lambda: next(clock)
        )

    async def start(self) -> None:
        await self.recorder.start()
        self.worker = self.memory.connect()
        for operation in ("echo", "matrix.add"):
            await self.worker.subscribe(SUBJECTS.operation(operation), self._on_request, queue="test")
        self.client = Client(self.memory.connect(), SUBJECTS, timeout_s=5, frame_bytes=65536)
        await self.client.start()

    async def recorded(self) -> list[Exchange]:
        """End the recording; what is in it."""
        await self.recorder.stop(0.0)
        self.writer.close()
        recording = Recording(self.path)
        assert not recording.truncated
        assert recording.ended is not None
        assert recording.ended.counts == self.recorder.counts
        return [recording.exchange(number) for number in range(len(recording))]

    def _on_request(self, message: Message) -> None:
        for reply in self.answering(decode_request(message.data)):
            payload = reply if isinstance(reply, bytes) else encode(reply)
            self.sent.append(payload)
            self.worker.send(message.reply, payload)


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    made = Bus(tmp_path / "bus.rec", ["echo", "matrix.>"])
    await made.start()
    yield made
    await made.client.close()
    made.writer.close()


async def test_what_was_asked_and_answered_is_in_the_file(bus: Bus) -> None:
    x = np.arange(4.0)
    for operation in ("echo", "matrix.add"):
        await bus.client.call_many(operation, {"x": x})
    first, second = await bus.recorded()
    assert [first.operation, second.operation] == ["echo", "matrix.add"]
    np.testing.assert_array_equal(first.columns["x"], x)
    assert [payload for _, payload in first.answers] == bus.sent[:1]
    np.testing.assert_array_equal(second.answer.columns["x"], x)
    assert 1000 < first.time_ns < first.answers[0][0] < second.time_ns
    assert bus.recorder.counts.total() == 0


async def test_parts_are_kept_as_they_came(bus: Bus) -> None:
    bus.answering = halved
    await bus.client.call_many("echo", {"x": np.arange(5)})
    (exchange,) = await bus.recorded()
    assert [payload for _, payload in exchange.answers] == bus.sent
    assert len(bus.sent) == 2
    np.testing.assert_array_equal(exchange.answer.columns["x"], np.arange(5))


async def test_other_operations_are_not_recorded(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "bus.rec", ["matrix.>"])
    await bus.start()
    await bus.client.call("echo", {"x": 1})
    await bus.client.call("matrix.add", {"x": 1})
    assert [each.operation for each in await bus.recorded()] == ["matrix.add"]
    await bus.client.close()


async def test_of_everything_operations_are_recorded_once(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "bus.rec", [">", "echo", "*"])
    await bus.start()
    await bus.client.call("echo", {"x": 1})
    frame = encode(Request(v=1, n=1, client=1, id=1))
    for subject in ("topic.news", "ctl", "job.7.echo", "faults"):
        bus.worker.send(f"{SUBJECTS.root}.{subject}", frame, "_INBOX.x.1")
    assert [each.operation for each in await bus.recorded()] == ["echo"]
    assert bus.recorder.counts.total() == 0
    await bus.client.close()


async def test_a_request_that_was_refused_and_sent_again_is_one(bus: Bus) -> None:
    bus.answering = refusing(1)
    await bus.client.call("echo", {"x": 7})
    (exchange,) = await bus.recorded()
    assert exchange.asked.again == 0
    assert [payload for _, payload in exchange.answers] == bus.sent
    assert list(exchange.answer.columns["x"]) == [7]
    assert exchange.answer.errors == {}
    assert bus.recorder.counts == {AGAIN: 1, UNANSWERED: 0}


async def test_two_answers_to_one_request_are_both_kept(bus: Bus) -> None:
    requests: list[Message] = []
    silent = bus.memory.connect()
    await silent.subscribe(SUBJECTS.operation("matrix.slow"), requests.append)
    subject, inbox = SUBJECTS.operation("matrix.slow"), "_INBOX.x.1"
    for again in (0, 1):
        bus.worker.send(subject, encode(Request(v=1, n=2, client=1, id=1, again=again)), inbox)
    parts = [encode(Reply(id=1, at=[(0, 1)], again=again)) for again in (0, 1)]
    for part in (*parts, encode(Reply(id=1, at=[(1, 1)], again=1, last=True))):
        bus.worker.send(inbox, part)
    await bus.worker.flush()
    (exchange,) = await bus.recorded()
    assert (len(exchange.answers), exchange.answer.open) == (3, 0)
    assert len(requests) == 2


async def test_what_comes_after_the_answer_is_not_recorded(bus: Bus) -> None:
    answer = await bus.client.call("echo", {"x": 7})
    assert answer == {"x": 7}
    inbox = f"{bus.client._inbox}.1"
    bus.worker.send(inbox, bus.sent[0])
    bus.worker.send(inbox, b"")
    (exchange,) = await bus.recorded()
    assert len(exchange.answers) == 1


async def test_questions_are_no_answers(bus: Bus) -> None:
    bus.answering = lambda request: (b"", *echo(request))
    await bus.client.call("echo", {"x": 7})
    (exchange,) = await bus.recorded()
    assert [payload for _, payload in exchange.answers] == bus.sent[1:]


async def test_what_cannot_be_replayed_is_counted(bus: Bus) -> None:
    subject = SUBJECTS.operation("echo")
    bus.answering = lambda request: ()
    for payload, reply in (
        (encode(Request(v=1, n=0, client=1, id=1, stream=1)), "_INBOX.x.1"),
        (b"no frame", "_INBOX.x.2"),
        (encode(Request(v=1, n=1)), "elsewhere"),
        (encode(Request(v=1, n=1, id=1, client=1, again=2)), "_INBOX.x.3"),
        (encode(Request(v=1, n=1)), ""),
    ):
        bus.connection.send(subject, payload, reply)
    assert await bus.recorded() == []
    assert bus.recorder.counts == {STREAMS: 1, UNREADABLE: 2, AGAIN: 1, UNANSWERED: 0}


async def test_a_stop_waits_for_the_answers(bus: Bus) -> None:
    bus.answering = lambda request: ()
    asked = bus.client.call("echo", {"x": 7})
    await bus.worker.flush()
    await bus.worker.flush()
    stopping = asyncio.create_task(bus.recorder.stop(5.0))
    await bus.worker.flush()
    assert not stopping.done()
    bus.worker.send(f"{bus.client._inbox}.1", encode(Reply(id=1, at=[(0, 1)], last=True)))
    await stopping
    await asked
    assert bus.recorder.counts == {UNANSWERED: 0}
    assert len(Recording(bus.path).exchange(0).answers) == 1


async def test_what_is_never_answered_is_counted_and_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 3)
    bus.answering = lambda request: ()
    for number in range(5):
        payload = encode(Request(v=1, n=1, id=number, client=1))
        bus.worker.send(SUBJECTS.operation("echo"), payload, f"_INBOX.x.{number}")
    await bus.worker.flush()
    bus.worker.send("_INBOX.x.0", encode(Reply(id=0, at=[(0, 1)], last=True)))
    bus.worker.send("_INBOX.x.4", encode(Reply(id=4, at=[(0, 1)], last=True)))
    await bus.worker.flush()
    exchanges = await bus.recorded()
    assert [len(each.answers) for each in exchanges] == [0, 0, 0, 0, 1]
    assert bus.recorder.counts == {UNANSWERED: 4}


async def test_a_full_file_ends_it(tmp_path: Path) -> None:
    bus = Bus(tmp_path / "bus.rec", ["echo"], most_bytes=1000)
    await bus.start()
    while not bus.recorder.over.is_set():
        await bus.client.call("echo", {"x": 7})
    assert isinstance(bus.recorder.failure, RecordingFull)
    size = bus.writer.bytes
    await bus.client.call("echo", {"x": 7})
    assert bus.writer.bytes == size <= 1000
    assert len(await bus.recorded()) == bus.writer.requests > 2
    await bus.client.close()


async def test_a_gap_is_counted(bus: Bus) -> None:
    bus.memory.drop_connection(bus.connection)
    bus.memory.restore(bus.connection)
    await bus.client.call("echo", {"x": 7})
    assert len(await bus.recorded()) == 1
    assert bus.recorder.counts[GAPS] == 1


@pytest.mark.parametrize("pattern", ["", "a b", "topic.>", "ctl", "matrix..add", ">.x"])
def test_patterns_of_other_things_are_refused(pattern: str) -> None:
    with pytest.raises(BadParameter):
        module.check_pattern(SUBJECTS, pattern)


def test_the_clock_does_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = steady_clock()
    before = clock()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert clock() >= before > 1_600_000_000_000_000_000

"""Streams between the real client and the real service over the in-memory bus; each test answers as it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import aclosing
from typing import Any

import msgpack
import numpy as np
import pytest

from aikoryu.bus import open_streams as open_streams_module
from aikoryu.bus import stream as stream_module
from aikoryu.bus.client import Client
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadColumn, BadFrame, BadValue, Busy, Closed, Expired, NoWorker
from aikoryu.bus.frames import RowError
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.pending import RowsFailed
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message

SUBJECTS = Subjects()
MAX_PAYLOAD = 64 * 1024
CREDIT = 10


class Worker:
    """A service whose frames are answered at once, or kept until `answer`.

    Attributes:
        held: frames accepted and not answered.
        rows: of every frame accepted, in order.
        most_open: most rows that were unanswered at once.
        withdrawn: numbers of frames whose caller withdrew them.
    """

    def __init__(self, connection: MemoryConnection, name: str) -> None:
        self.connection = connection
        self.service = Service(connection, SUBJECTS, name, reply_prefixes=("_INBOX",))
        self.service.on_cancel = lambda held, rows: self._cancel(held)
        self.keep = False
        self.fail_at: int | None = None
        self.held: list[Held] = []
        self.rows: list[int] = []
        self.sequence: list[int] = []
        self.most_open = 0
        self.withdrawn: list[int] = []

    async def start(self) -> None:
        await self.service.start()
        await self.service.serve("double", self._accept)

    def answer(self, held: Held) -> None:
        """The column `x`, doubled."""
        self.held.remove(held)
        values: Any = unpack(held.request.cols["x"], held.request.n)
        bad = [row for row in range(held.request.n) if values[row] == self.fail_at]
        good = [row for row in range(held.request.n) if row not in bad]
        errors = [RowError(row, "bad_value", f"{int(values[row])} is not allowed") for row in bad]
        self.service.answer(held, [(row, 1) for row in good], {"y": pack(values[good] * 2)} if good else {}, errors)

    async def answer_all(self) -> None:
        """Answer what is held, and what comes of that, until nothing more comes."""
        while self.held:
            for held in list(self.held):
                self.answer(held)
            await turns()

    def _accept(self, held: Held) -> None:
        self.held.append(held)
        self.rows.append(held.request.n)
        self.sequence.append(held.request.seq)
        self.most_open = max(self.most_open, sum(each.open for each in self.held))
        if not self.keep:
            asyncio.get_running_loop().call_soon(self._answer_if_held, held)

    def _answer_if_held(self, held: Held) -> None:
        if held in self.held:
            self.answer(held)

    def _cancel(self, held: Held) -> None:
        self.withdrawn.append(held.request.id)
        self.held.remove(held)
        self.service.drop(held, held.open)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def within(awaitable: Awaitable[Any], seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        return await awaitable


@pytest.fixture(autouse=True)
def small_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_streams_module, "CREDIT_ROWS", CREDIT)


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(max_payload=MAX_PAYLOAD)


@pytest.fixture
async def worker(bus: MemoryBus) -> Worker:
    made = Worker(bus.connect(), "w1")
    await made.start()
    return made


@pytest.fixture
async def client(bus: MemoryBus, worker: Worker) -> AsyncIterator[Client]:
    made = Client(bus.connect(), SUBJECTS, timeout_s=5, frame_bytes=16_384)
    await made.start()
    yield made
    await made.close()


def chunk(first: int, rows: int) -> dict[str, Any]:
    return {"x": np.arange(first, first + rows, dtype=np.float64)}


def chunks(count: int, rows: int) -> Iterator[dict[str, Any]]:
    return (chunk(number * rows, rows) for number in range(count))


async def gather(answers: AsyncIterator[dict[str, Any]], found: list[Any] | None = None) -> list[Any]:
    """Every answer until the end; into `found` those before an error."""
    found = [] if found is None else found
    async for answer in answers:
        found.append(answer["y"].tolist())
    return found


def open_streams(worker: Worker) -> int:
    return len(worker.service._streams)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True], ids=["iterable", "async iterable"])
async def test_answers_come_in_the_order_of_the_chunks(client: Client, worker: Worker, live: bool) -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for each in chunks(20, 3):
            yield each

    found = await within(gather(client.stream("double", source() if live else chunks(20, 3))))
    assert found == [[2.0 * (number * 3 + row) for row in range(3)] for number in range(20)]
    assert worker.sequence == list(range(20))


async def test_answers_that_come_out_of_order_are_put_in_order(client: Client, worker: Worker) -> None:
    worker.keep = True
    found = asyncio.create_task(gather(client.stream("double", chunks(4, 2))))
    await turns()
    assert worker.rows == [2, 2, 2, 2]
    for held in reversed(list(worker.held)):
        worker.answer(held)
    assert await within(found) == [[0, 2], [4, 6], [8, 10], [12, 14]]


async def test_stream_of_no_chunks_ends(client: Client, worker: Worker) -> None:
    assert await within(gather(client.stream("double", []))) == []
    await turns()
    assert open_streams(worker) == 0


async def test_chunk_of_no_rows_has_an_empty_answer(client: Client) -> None:
    answers = client.stream("double", [chunk(0, 1), {"x": np.zeros(0)}, {"x": [3.0]}])
    assert [{name: values.tolist() for name, values in found.items()} async for found in answers] == [
        {"y": [0]},
        {},
        {"y": [6]},
    ]


async def test_parts_go_to_the_worker_that_took_the_stream(client: Client, worker: Worker, bus: MemoryBus) -> None:
    second = Worker(bus.connect(), "w2")
    await second.start()
    for _ in range(2):
        await within(gather(client.stream("double", chunks(6, 2))))
    assert [len(worker.rows), len(second.rows)] == [6, 6]


# --- credit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, CREDIT - 1, CREDIT, CREDIT + 1, 3 * CREDIT + 4])
async def test_never_more_rows_are_unanswered_than_granted(client: Client, worker: Worker, rows: int) -> None:
    worker.keep = True
    found = asyncio.create_task(gather(client.stream("double", chunks(12, rows))))
    await turns()
    # As many as the credit holds were sent without a single answer, and not one more.
    assert CREDIT - min(rows, CREDIT) < worker.most_open <= CREDIT
    await worker.answer_all()
    assert [len(values) for values in await within(found)] == [rows] * 12
    assert CREDIT - min(rows, CREDIT) < worker.most_open <= CREDIT
    assert max(worker.rows) <= CREDIT
    assert worker.service.rejected == {}


async def test_chunk_larger_than_a_message_is_cut(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_streams_module, "CREDIT_ROWS", 1_000_000)
    found = await within(gather(client.stream("double", chunks(2, 50_000))))
    assert found == [(2 * chunk(first, 50_000)["x"]).tolist() for first in (0, 50_000)]
    assert len(worker.rows) > 10


async def test_part_beyond_the_credit_is_refused(bus: MemoryBus, worker: Worker) -> None:
    worker.keep = True
    rude = bus.connect()
    inbox: list[Message] = []
    await rude.subscribe(f"{rude.inbox_prefix}.>", inbox.append)

    def send(subject: str, id_: int, rows: int) -> None:
        columns = {"x": {"t": "f8", "s": [rows], "d": bytes(8 * rows)}}
        request = {"v": 1, "client": 5, "id": id_, "n": rows, "stream": 9, "cols": columns if rows else {}}
        rude.send(subject, msgpack.packb(request), f"{rude.inbox_prefix}.{id_}")

    send(SUBJECTS.operation("double"), 1, 0)
    await turns()
    opened = msgpack.unpackb(inbox[0].data)
    assert (opened["ctl"], opened["credit"], opened["last"]) == (SUBJECTS.worker_control("w1"), CREDIT, True)
    send(opened["ctl"], 2, CREDIT - 1)
    send(opened["ctl"], 3, 2)
    await turns()
    refused = msgpack.unpackb(inbox[1].data)
    assert (refused["id"], refused["err"][0]["code"]) == (3, Busy.code)
    worker.answer(worker.held[0])
    send(opened["ctl"], 4, CREDIT)
    await turns()
    assert worker.rows == [CREDIT - 1, CREDIT]


async def test_slow_reader_stops_the_source(client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "AHEAD_CHUNKS", 4)
    taken: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            taken.append(number)
            yield chunk(number, 1)

    async with aclosing(client.stream("double", source())) as answers:
        for read in range(1, 10):
            await within(anext(answers))
            await turns()
            assert read <= len(taken) <= read + 5


# --- live sources ----------------------------------------------------------------------------------------------------


async def test_answers_flow_while_the_source_pauses(client: Client) -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield chunk(1, 2)
        await more.wait()
        yield chunk(3, 1)

    async with aclosing(client.stream("double", source())) as answers:
        assert (await within(anext(answers)))["y"].tolist() == [2, 4]
        more.set()
        assert (await within(anext(answers)))["y"].tolist() == [6]
        with pytest.raises(StopAsyncIteration):
            await within(anext(answers))


async def test_source_may_answer_to_what_it_reads(client: Client) -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()

    async def source() -> AsyncIterator[dict[str, Any]]:
        value = 1.0
        for _ in range(5):
            yield {"x": np.array([value])}
            value = await seen.get()

    found: list[float] = []
    async for answer in client.stream("double", source()):
        found.append(answer["y"][0])
        seen.put_nowait(answer["y"][0])
    assert found == [2, 4, 8, 16, 32]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_leaving_the_iterator_withdraws_what_is_under_way_and_closes_the_stream(
    client: Client, worker: Worker
) -> None:
    ended: list[str] = []

    async def source() -> AsyncIterator[dict[str, Any]]:
        try:
            yield chunk(0, 1)
            yield chunk(1, 2)
            yield chunk(3, 3)
            await asyncio.Event().wait()
        finally:
            ended.append("source")

    async with aclosing(client.stream("double", source())) as answers:
        await within(anext(answers))
        worker.keep = True
        await turns()
        assert open_streams(worker) == 1
    await turns()
    assert ended == ["source"]
    assert open_streams(worker) == 0
    assert worker.held == []
    assert worker.service.held == {}
    assert client._pending == {}


async def test_cancelled_reader_withdraws_what_is_under_way(client: Client, worker: Worker) -> None:
    worker.keep = True
    reader = asyncio.create_task(gather(client.stream("double", chunks(3, 2))))
    await turns()
    assert len(worker.held) == 3
    reader.cancel()
    await asyncio.wait({reader})
    await turns()
    assert reader.cancelled()
    assert len(worker.withdrawn) == 3
    assert worker.service.held == {}
    assert open_streams(worker) == 0


async def test_reader_cancelled_while_the_stream_opens_leaves_none_open(client: Client, worker: Worker) -> None:
    reader = asyncio.create_task(gather(client.stream("double", chunks(1, 1))))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait({reader})
    await turns()
    assert open_streams(worker) == 0


async def test_worker_forgets_the_stream_idle_longest(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_streams_module, "MAX_STREAMS", 2)
    taps: list[asyncio.Queue[int]] = [asyncio.Queue() for _ in range(3)]

    async def source(tap: asyncio.Queue[int]) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield chunk(await tap.get(), 1)

    async def more(number: int) -> list[float]:
        taps[number].put_nowait(1)
        values: list[float] = (await within(anext(streams[number])))["y"].tolist()
        return values

    streams = [client.stream("double", source(tap)) for tap in taps]
    await more(0)
    await more(1)
    await more(0)
    assert open_streams(worker) == 2
    await more(2)
    assert open_streams(worker) == 2
    assert await more(0) == [2]
    with pytest.raises(RowsFailed, match="open it again"):
        await more(1)
    for stream in streams:
        await stream.aclose()


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_row_error_ends_the_stream_at_its_chunk(client: Client, worker: Worker) -> None:
    worker.fail_at = 5
    found: list[Any] = []
    with pytest.raises(RowsFailed, match="row 1 first: 5 is not allowed") as caught:
        await within(gather(client.stream("double", chunks(10, 2)), found))
    assert found == [[0, 2], [4, 6]]
    assert caught.value.columns["y"].tolist() == [8, 0]
    assert isinstance(caught.value.errors[1], BadValue)
    await turns()
    assert open_streams(worker) == 0


@pytest.mark.parametrize("live", [False, True], ids=["iterable", "async iterable"])
async def test_error_of_the_source_comes_after_the_answers_before_it(
    client: Client, worker: Worker, live: bool
) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield chunk(0, 1)
        raise LookupError("the source's own")

    async def live_broken() -> AsyncIterator[dict[str, Any]]:
        for each in broken():
            yield each

    found: list[Any] = []
    with pytest.raises(LookupError, match="the source's own"):
        await within(gather(client.stream("double", live_broken() if live else broken()), found))
    assert found == [[0]]
    await turns()
    assert open_streams(worker) == 0


@pytest.mark.parametrize("bad", [{"x": [object()]}, {"x": np.zeros(2), "z": ["a"]}, {}, {"x": 5.0}])
async def test_chunk_that_is_no_columns_ends_the_stream(client: Client, bad: dict[str, Any]) -> None:
    found: list[Any] = []
    with pytest.raises(BadColumn):
        await within(gather(client.stream("double", [chunk(0, 1), bad, chunk(1, 1)]), found))
    assert found == [[0]]


async def test_nobody_to_take_the_stream_raises(client: Client) -> None:
    with pytest.raises(NoWorker):
        await within(gather(client.stream("nothing", chunks(1, 1))))


async def test_worker_lost_between_chunks_is_an_error_at_once(client: Client, worker: Worker) -> None:
    more = asyncio.Event()

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield chunk(0, 1)
        await more.wait()
        yield chunk(1, 2)

    async with aclosing(client.stream("double", source())) as answers:
        await within(anext(answers))
        await worker.connection.close()
        more.set()
        with pytest.raises(RowsFailed, match="2 rows failed") as caught:
            await within(anext(answers), seconds=1)
    assert {type(error) for error in caught.value.errors.values()} == {NoWorker}


async def test_worker_that_falls_silent_is_an_error_at_the_deadline(client: Client, worker: Worker) -> None:
    worker.keep = True
    with pytest.raises(RowsFailed) as caught:
        await within(gather(client.stream("double", chunks(2, 2), timeout_s=0.05)))
    assert {type(error) for error in caught.value.errors.values()} == {Expired}


async def test_lost_connection_is_an_error(client: Client, worker: Worker, bus: MemoryBus) -> None:
    worker.keep = True
    reader = asyncio.create_task(gather(client.stream("double", chunks(2, 2))))
    await turns()
    connection: Any = client._transport
    bus.drop_connection(connection)
    bus.restore(connection)
    with pytest.raises(RowsFailed, match="may or may not have run"):
        await within(reader)


async def test_close_of_the_client_ends_its_streams(client: Client, worker: Worker) -> None:
    worker.keep = True
    reader = asyncio.create_task(gather(client.stream("double", chunks(2, 2))))
    await turns()
    await client.close()
    with pytest.raises(RowsFailed) as caught:
        await within(reader)
    assert {type(error) for error in caught.value.errors.values()} == {Closed}
    await turns()
    assert worker.service.held == {}


@pytest.mark.parametrize("grant", [{"credit": 10}, {"ctl": "somewhere"}, {"ctl": "somewhere", "credit": -1}, {}])
async def test_stream_that_grants_nothing_is_refused(client: Client, bus: MemoryBus, grant: dict[str, Any]) -> None:
    other = bus.connect()

    def open_badly(message: Message) -> None:
        request = msgpack.unpackb(message.data)
        other.send(message.reply, msgpack.packb({"id": request["id"], "last": True, **grant}))

    await other.subscribe(SUBJECTS.operation("odd"), open_badly)
    with pytest.raises(BadFrame, match="grants nothing"):
        await within(gather(client.stream("odd", chunks(1, 1))))


async def test_many_streams_of_one_client_do_not_mix(client: Client, worker: Worker) -> None:
    async def one(number: int) -> Any:
        return await gather(client.stream("double", (chunk(100 * number + part, 1) for part in range(5))))

    found = await within(asyncio.gather(*(one(number) for number in range(8))))
    assert found == [[[2.0 * (100 * number + part)] for part in range(5)] for number in range(8)]
    await turns()
    assert open_streams(worker) == 0


async def test_part_of_a_stream_nobody_opened_is_refused(worker: Worker, bus: MemoryBus) -> None:
    inbox: list[Message] = []
    other = bus.connect()
    await other.subscribe(f"{other.inbox_prefix}.>", inbox.append)
    request = {"v": 1, "client": 5, "id": 3, "n": 1, "stream": 77, "cols": {}}
    other.send(SUBJECTS.worker_control("w1"), msgpack.packb(request), f"{other.inbox_prefix}.1")
    await turns()
    reply = msgpack.unpackb(inbox[0].data)
    assert (reply["id"], reply["err"][0]["code"]) == (3, BadFrame.code)
    assert worker.rows == []

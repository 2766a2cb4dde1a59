"""The request client over the in-memory bus, against a worker that answers as each test says."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from structlog.testing import capture_logs

from aikoryu.bus import client as module
from aikoryu.bus.client import Client
from aikoryu.bus.columns import Array, Column, pack, unpack
from aikoryu.bus.errors import (
    BadColumn,
    BadParameter,
    BadValue,
    BusError,
    Busy,
    Closed,
    Disconnected,
    Expired,
    NoWorker,
    TooLarge,
)
from aikoryu.bus.frames import (
    Cancel,
    Reply,
    Request,
    RowError,
    decode_cancel,
    decode_parameters,
    decode_request,
    encode,
)
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.pending import RowsFailed
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.testing import Clock
from aikoryu.testing import clock as stopped

SUBJECTS = Subjects()
MAX_PAYLOAD = 64 * 1024
FRAME_BYTES = 16 * 1024

Answering = Callable[[Request], Iterable[Reply]]


def silent(request: Request) -> Iterable[Reply]:
    return ()


def echo(request: Request) -> Iterable[Reply]:
    yield Reply(id=request.id, at=[(0, request.n)], cols=request.cols, last=True)


class Worker:
    """Keeps every frame it gets, and answers as it was told.

    Attributes:
        requests, sizes: frames in the order in which they came, and their payloads' bytes.
        cancels: what callers withdrew.
        answering: gives the replies to a frame.
    """

    def __init__(self, connection: MemoryConnection) -> None:
        self.requests: list[Request] = []
        self.sizes: list[int] = []
        self.cancels: list[Cancel] = []
        self.answering: Answering = echo
        self._connection = connection
        self._inboxes: list[str] = []

    async def serve(self, *operations: str) -> None:
        for operation in operations:
            await self._connection.subscribe(SUBJECTS.operation(operation), self._on_request, queue="test")

    async def listen(self) -> None:
        await self._connection.subscribe(SUBJECTS.control, lambda message: self.cancels.append(read_cancel(message)))

    def reply(self, to: int, payload: Reply | bytes) -> None:
        """Answer the frame of this number in `requests`."""
        self._connection.send(self._inboxes[to], payload if isinstance(payload, bytes) else encode(payload))

    def no_worker(self, to: int) -> None:
        """Answer as the server does when nobody listens."""
        self._connection.send(self._inboxes[to], b"", "", {"Status": "503"})

    @property
    def rows(self) -> list[int]:
        return [request.n for request in self.requests]

    def _on_request(self, message: Message) -> None:
        request = decode_request(message.data)
        self.requests.append(request)
        self.sizes.append(len(message.data))
        self._inboxes.append(message.reply)
        for reply in self.answering(request):
            self.reply(len(self.requests) - 1, reply)


def read_cancel(message: Message) -> Cancel:
    return decode_cancel(message.data)


async def turns(count: int = 20) -> None:
    """Let the loop run what is ready, and what that makes ready."""
    for _ in range(count):
        await asyncio.sleep(0)


MakeClient = Callable[..., Awaitable[Client]]


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(max_payload=MAX_PAYLOAD)


@pytest.fixture
async def worker(bus: MemoryBus) -> Worker:
    """A worker that echoes."""
    made = Worker(bus.connect())
    await made.listen()
    await made.serve("echo")
    return made


@pytest.fixture
def connection(bus: MemoryBus) -> MemoryConnection:
    """The client's connection."""
    return bus.connect()


@pytest.fixture
async def make_client(connection: MemoryConnection) -> AsyncIterator[MakeClient]:
    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Client:
            client = Client(connection, SUBJECTS, **{"timeout_s": 5.0, "frame_bytes": FRAME_BYTES, **options})
            await client.start()
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
async def client(make_client: MakeClient, worker: Worker) -> Client:
    return await make_client()


@pytest.fixture
def clock() -> Iterator[Callable[[], Clock]]:
    """Stops the loop's time when it is called."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(stopped())


def x(value: float, size: int = 3) -> dict[str, Array]:
    return {"x": np.full(size, value, np.float32)}


def answer(rows: Iterable[int], **columns: Any) -> dict[str, Any]:
    """Fields of a reply that answers these rows."""
    return {"at": [(row, 1) for row in rows], "cols": {name: pack(values) for name, values in columns.items()}}


async def within(awaitable: Awaitable[Any], seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        return await awaitable


# --- frames ----------------------------------------------------------------------------------------------------------


async def test_rows_of_one_tick_become_one_frame(client: Client, worker: Worker) -> None:
    calls = [client.call("echo", x(n), {"k": 1}, timeout_s=2.0, priority=1) for n in range(10)]
    answers = await within(asyncio.gather(*calls))
    (request,) = worker.requests
    assert (request.v, request.client, request.n, request.ttl_ms, request.prio) == (1, client.number, 10, 2000, 1)
    assert decode_parameters(request.p) == {"k": 1}
    assert [row["x"].tolist() for row in answers] == [[n] * 3 for n in range(10)]


async def test_rows_of_many_tasks_become_one_frame(client: Client, worker: Worker) -> None:
    async def agent(number: int) -> float:
        return float((await client.call("echo", x(number)))["x"][0])

    assert await within(asyncio.gather(*(agent(number) for number in range(50)))) == [float(n) for n in range(50)]
    assert worker.rows == [50]


async def test_rows_of_the_next_tick_become_another_frame(client: Client, worker: Worker) -> None:
    await within(client.call("echo", x(1)))
    await within(client.call("echo", x(2)))
    assert worker.rows == [1, 1]
    assert worker.requests[0].id != worker.requests[1].id


async def test_rows_that_differ_in_more_than_values_become_different_frames(client: Client, worker: Worker) -> None:
    await worker.serve("other")
    calls = [
        client.call("echo", x(1)),
        client.call("other", x(1)),
        client.call("echo", x(1, size=4)),
        client.call("echo", {"x": np.zeros(3)}),
        client.call("echo", {"x": "text"}),
        client.call("echo", {"x": b"bytes"}),
        client.call("echo", {"y": np.zeros(3, np.float32)}),
        client.call("echo", x(1), {"k": 1}),
        client.call("echo", x(1), {"k": 2}),
        client.call("echo", x(1), timeout_s=1.0),
        client.call("echo", x(1), priority=1),
        client.call("echo", x(1), priority=-1),
        client.call("echo", x(1), idempotent=True),
    ]
    calls += [client.call("echo", x(2)), client.call("echo", x(2), {"k": 2})]
    await within(asyncio.gather(*calls))
    assert sorted(worker.rows) == [1] * 11 + [2, 2]


async def test_frames_stay_below_their_size(make_client: MakeClient, worker: Worker) -> None:
    client = await make_client(frame_bytes=1000)
    await within(asyncio.gather(*(client.call("echo", x(n, size=100)) for n in range(7))))
    assert worker.rows == [2, 2, 2, 1]
    await within(asyncio.gather(*(client.call("echo", {"s": "x" * size}) for size in (10, 990, 20, 30, 3000, 5))))
    assert worker.rows[4:] == [1, 1, 2, 1, 1]


async def test_rows_that_fit_one_message_are_never_too_large_together(make_client: MakeClient, worker: Worker) -> None:
    client = await make_client(frame_bytes=2**20)
    sizes = [20_000] * 5
    answers = await within(asyncio.gather(*(client.call("echo", {"x": np.zeros(size, np.uint8)}) for size in sizes)))
    assert [len(row["x"]) for row in answers] == sizes
    assert max(worker.sizes) <= MAX_PAYLOAD
    assert worker.rows == [3, 2]


async def test_row_too_large_for_any_message_fails_alone(client: Client, worker: Worker) -> None:
    calls = [client.call("echo", {"s": text}) for text in ("a", "x" * MAX_PAYLOAD, "b")]
    first, large, last = await within(asyncio.gather(*calls, return_exceptions=True))
    assert isinstance(large, TooLarge)
    assert "max_payload" in str(large)
    assert (first["s"], last["s"]) == ("a", "b")


async def test_caller_may_change_its_array_after_the_call(client: Client, worker: Worker) -> None:
    mine = np.ones(4)
    call = client.call("echo", {"x": mine})
    mine[:] = 99
    assert (await within(call))["x"].tolist() == [1] * 4


async def test_answer_is_the_callers_own(client: Client) -> None:
    first, second = await within(asyncio.gather(client.call("echo", x(1)), client.call("echo", x(2))))
    first["x"][:] = 7
    assert second["x"].tolist() == [2] * 3
    # A view would keep its whole frame alive.
    assert first["x"].base is None
    assert first["x"].flags.owndata


async def test_one_subscription_and_no_task_a_request(client: Client, connection: MemoryConnection) -> None:
    tasks = len(asyncio.all_tasks())
    calls = [client.call("echo", x(n, size=1 + n % 5)) for n in range(500)]
    await turns(2)
    assert len(asyncio.all_tasks()) == tasks
    await within(asyncio.gather(*calls))
    assert len(connection.subscriptions) == 1


async def test_row_of_numbers_lists_and_strings(client: Client) -> None:
    row = await within(
        client.call("echo", {"n": 5, "f": 1.5, "l": [[1, 2], [3, 4]], "s": "é", "b": b"\xff", "t": True})
    )
    assert (row["n"], row["f"], row["l"].tolist(), row["s"], row["b"]) == (5, 1.5, [[1, 2], [3, 4]], "é", b"\xff")
    assert row["t"]
    assert row["n"].dtype == np.int64


async def test_row_that_cannot_be_sent_raises_and_its_neighbours_are_answered(client: Client) -> None:
    first = client.call("echo", {"n": 1, "s": "a"})
    with pytest.raises(BadValue):
        client.call("echo", {"n": 2, "s": "\ud800"})
    last = client.call("echo", {"n": 3, "s": "c"})
    answers = await within(asyncio.gather(first, last))
    assert [(int(row["n"]), row["s"]) for row in answers] == [(1, "a"), (3, "c")]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"row": {"x": None}}, BadColumn),
        ({"row": {"x": np.array(["a"])}}, BadColumn),
        ({"row": {"s": "\ud800"}}, BadValue),
        ({"parameters": {"k": object()}}, BadParameter),
        ({"timeout_s": math.inf}, BadParameter),
        ({"timeout_s": math.nan}, BadParameter),
        ({"timeout_s": 1e300}, BadParameter),
        ({"priority": 2}, BadParameter),
        ({"priority": 2**70}, BadParameter),
        ({"operation": "no good"}, ValueError),
    ],
)
async def test_call_that_cannot_be_sent_raises_at_once_and_the_client_goes_on(
    client: Client, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.call(**{"operation": "echo", "row": x(1), **arguments})
    assert (await within(client.call("echo", x(2))))["x"][0] == 2


async def test_column_name_that_cannot_be_encoded_fails_its_own_call(client: Client) -> None:
    broken, fine = client.call("echo", {"\ud800": 1}), client.call("echo", x(2))
    assert (await within(fine))["x"][0] == 2
    with pytest.raises(BusError):
        await within(broken)


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_replies_in_parts_and_any_order_find_their_rows(client: Client, worker: Worker) -> None:
    def parts(request: Request) -> Iterable[Reply]:
        yield Reply(id=request.id, **answer([4, 1], y=np.array([40, 10])))
        yield Reply(id=request.id, err=[RowError(0, "bad_value", "NaN")])
        yield Reply(id=request.id, **answer([2, 3], y=np.array([20, 30])), last=True)

    worker.answering = parts
    calls = [client.call("echo", x(n)) for n in range(5)]
    found = await within(asyncio.gather(*calls, return_exceptions=True))
    assert [int(row["y"]) for row in found[1:]] == [10, 20, 30, 40]
    assert isinstance(found[0], BadValue)


async def test_errors_are_by_row_with_the_class_of_their_code(client: Client, worker: Worker) -> None:
    errors = [
        RowError(0, "bad_column", "one"),
        RowError(2, "operation_failed", "two", n=2),
        RowError(4, "new_code", "x"),
    ]
    worker.answering = lambda request: [Reply(id=request.id, **answer([1], y=["fine"]), err=errors, last=True)]
    found = await within(asyncio.gather(*(client.call("echo", x(n)) for n in range(5)), return_exceptions=True))
    assert found[1] == {"y": "fine"}
    assert [getattr(each, "code", "") for each in found] == [
        "bad_column",
        "",
        "operation_failed",
        "operation_failed",
        "new_code",
    ]
    assert [str(found[n]) for n in (0, 2, 4)] == ["one", "two", "x"]


async def test_an_error_without_a_count_is_of_all_rows_that_follow(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: [Reply(id=request.id, err=[RowError(1, "expired", "late", n=0)])]
    calls = [client.call("echo", x(n)) for n in range(3)]
    await turns()
    assert [call.done() for call in calls] == [False, True, True]
    worker.reply(0, Reply(id=1, **answer([0], y=[b"x"]), last=True))
    found = await within(asyncio.gather(*calls, return_exceptions=True))
    assert found[0] == {"y": b"x"}
    assert all(isinstance(each, Expired) for each in found[1:])


async def test_second_answer_is_ignored(client: Client, worker: Worker) -> None:
    worker.answering = silent
    calls = [client.call("echo", x(n)) for n in range(2)]
    await turns()
    # Two workers answer a frame that was sent again, each in its own batches.
    for rows, value in [([0], 1), ([0], 2), ([0], 3), ([1], 4), ([0, 1], 5)]:
        worker.reply(0, Reply(id=1, **answer(rows, y=np.full(len(rows), value))))
    worker.reply(0, Reply(id=1, err=[RowError(0, "busy", "full", n=0)]))
    found = await within(asyncio.gather(*calls))
    assert [int(row["y"]) for row in found] == [1, 4]


async def test_second_answer_of_many_rows_is_ignored(client: Client, worker: Worker) -> None:
    worker.answering = silent
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(3)}))
    await turns()
    worker.reply(0, Reply(id=1, **answer([0, 1], y=np.array([10, 20])), err=[]))
    worker.reply(0, Reply(id=1, **answer([0, 1], y=np.array([0, 0]))))
    worker.reply(0, Reply(id=1, err=[RowError(0, "busy", "full", 2)]))
    await turns()
    assert not many.done()
    worker.reply(0, Reply(id=1, **answer([2], y=np.array([30])), last=True))
    assert (await within(many))["y"].tolist() == [10, 20, 30]


async def test_reply_that_closes_the_frame_early_fails_the_rows_left(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: [Reply(id=request.id, **answer([1], y=["b"]), last=True)]
    found = await within(asyncio.gather(*(client.call("echo", x(n)) for n in range(3)), return_exceptions=True))
    assert found[1] == {"y": "b"}
    assert all(isinstance(found[n], BusError) and "every row" in str(found[n]) for n in (0, 2))


ONE = {"t": "f4", "s": [1], "d": bytes(4)}


def garbage(**fields: Any) -> bytes:
    """A reply to frame 1 whose fields make no sense for it."""
    payload: bytes = msgpack.packb({"id": 1, **fields})
    return payload


GARBAGE = {
    "bytes": b"\xff\xfe",
    "text": b"hello",
    "json": b'{"v":1,"id":1}',
    "nil": b"\xc0",
    "deep": b"\x82\xa2id\x01\xa1z" + b"\x91" * 60_000 + b"\xc0",
    "not UTF-8": b"\x82\xa2id\x01\xa3ctl\xa1\xff",
    "later version": garbage(v=2, id="x"),
    "too few rows in a column": garbage(at=[[0, 2]], cols={"y": ONE}),
    "run beyond the frame": garbage(at=[[1, 1], [2, 1]]),
    "run of 2**62": garbage(at=[[0, 2**62]]),
    "run before the frame": garbage(at=[[-1, 1]], cols={"y": ONE}),
    "run of minus one": garbage(at=[[1, -1]]),
    "error beyond the frame": garbage(err=[{"row": 2, "code": "busy", "msg": "x"}]),
    "error before the frame": garbage(err=[{"row": -2, "code": "busy", "msg": "x"}]),
    "errors of 2**62": garbage(err=[{"row": 0, "code": "expired", "msg": "x", "n": 2**62}]),
    "column of another size": garbage(at=[[0, 1]], cols={"y": {**ONE, "d": b"abc"}}),
    "column of no type": garbage(at=[[0, 1]], cols={"y": {**ONE, "t": "q"}}),
    "column of a big shape": garbage(at=[[0, 1]], cols={"y": {"t": "f4", "s": [1, 2**62, 2**62, 0], "d": b""}}),
    "offsets that fall": garbage(
        at=[[0, 2]], cols={"y": {"t": "bin", "o": bytes(4) + b"\xff" * 4 + bytes(4), "d": b""}}
    ),
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("many", [False, True], ids=["call", "call_many"])
async def test_garbage_for_a_reply_fails_its_frame_and_not_the_client(
    client: Client, worker: Worker, payload: bytes, many: bool
) -> None:
    worker.answering = silent
    asked: asyncio.Future[Any]
    if many:
        asked = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(2)}))
    else:
        asked = asyncio.gather(client.call("echo", x(0)), client.call("echo", x(1)), return_exceptions=True)
    await turns()
    assert worker.rows == [2]
    with capture_logs() as logs:
        worker.reply(0, payload)
        await turns()
    assert logs == []
    found = (await within(asyncio.gather(asked, return_exceptions=True)))[0]
    errors = list(found.errors.values()) if many else found
    assert len(errors) == 2
    assert all(isinstance(error, BusError) and type(error) is not Expired for error in errors[1:])
    worker.answering = echo
    assert (await within(client.call("echo", x(2))))["x"][0] == 2


async def test_answer_without_columns_is_an_empty_row(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: [Reply(id=request.id, at=[(0, request.n)], last=True)]
    assert await within(asyncio.gather(client.call("echo", x(0)), client.call("echo", x(1)))) == [{}, {}]
    assert await within(client.call_many("echo", {"x": np.zeros(3)})) == {}


async def test_reply_nobody_waits_for_is_ignored(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection
) -> None:
    inbox = f"{connection.inbox_prefix}.{client.number:x}"
    with capture_logs() as logs:
        for tail in ("999", "abc", "-1", "9" * 3900, "²"):
            for payload in (encode(Reply(id=1, last=True)), b"\xff", b""):
                await bus.connect().publish(f"{inbox}.{tail}", payload)
        await turns()
        await within(client.call("echo", x(1)))
    assert logs == []


async def test_empty_message_is_a_question_not_an_answer(client: Client, worker: Worker) -> None:
    worker.answering = silent
    call = client.call("echo", x(1))
    await turns()
    worker.reply(0, b"")
    await turns()
    assert not call.done()
    worker.reply(0, Reply(id=1, **answer([0], y=["here"]), last=True))
    assert await within(call) == {"y": "here"}


# --- deadlines and cancellation --------------------------------------------------------------------------------------


async def test_call_expires_at_its_deadline_and_not_before(
    client: Client, worker: Worker, clock: Callable[[], Clock]
) -> None:
    time = clock()
    worker.answering = silent
    short, long = client.call("echo", x(1), timeout_s=10), client.call("echo", x(2), timeout_s=30)
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(2)}, timeout_s=20))
    await turns()
    await time.advance(9)
    assert not short.done()
    await time.advance(1.5)
    with pytest.raises(Expired):
        short.result()
    assert not many.done()
    await time.advance(10)
    with pytest.raises(RowsFailed, match="2 rows failed") as caught:
        await within(many)
    assert all(isinstance(error, Expired) for error in caught.value.errors.values())
    assert not long.done()
    await time.advance(10)
    with pytest.raises(Expired):
        long.result()


async def test_deadline_that_passes_without_a_connection_says_so(
    bus: MemoryBus, connection: MemoryConnection, client: Client, worker: Worker, clock: Callable[[], Clock]
) -> None:
    time = clock()
    bus.drop_connection(connection)
    call = client.call("echo", x(1), timeout_s=1, idempotent=True)
    await time.advance(2)
    with pytest.raises(Expired, match="the connection to the server is lost"):
        await call


async def test_deadlines_of_many_calls_need_one_timer(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def counted(when: float, *arguments: Any, **context: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **context)

    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(20):
        await asyncio.gather(*(client.call("echo", x(n, size=n % 4)) for n in range(50)))
    assert len(timers) == 1


async def test_answer_after_the_deadline_is_ignored(client: Client, worker: Worker, clock: Callable[[], Clock]) -> None:
    time = clock()
    worker.answering = silent
    call = client.call("echo", x(1), timeout_s=1)
    await time.advance(2)
    worker.reply(0, Reply(id=1, **answer([0], y=["late"]), last=True))
    await turns()
    with pytest.raises(Expired):
        await call


async def test_cancelled_future_withdraws_exactly_its_row(client: Client, worker: Worker) -> None:
    worker.answering = silent
    calls = [client.call("echo", x(n)) for n in range(4)]
    await turns()
    assert calls[2].cancel()
    assert not calls[2].cancel()
    await turns()
    assert worker.cancels == [Cancel(client.number, worker.requests[0].id, [2])]
    worker.reply(0, Reply(id=1, **answer([0, 1, 3], y=np.array([0, 10, 30])), last=True))
    found = await within(asyncio.gather(*calls, return_exceptions=True))
    assert [int(found[n]["y"]) for n in (0, 1, 3)] == [0, 10, 30]
    assert isinstance(found[2], asyncio.CancelledError)


async def test_cancelled_task_withdraws_its_row(client: Client, worker: Worker) -> None:
    worker.answering = silent

    async def ask(number: int) -> Any:
        return await client.call("echo", x(number))

    tasks = [asyncio.create_task(ask(number)) for number in range(3)]
    await turns()
    tasks[1].cancel()
    await turns()
    assert [(cancel.id, cancel.rows) for cancel in worker.cancels] == [(worker.requests[0].id, [1])]
    worker.reply(0, Reply(id=1, **answer([0, 2], y=["a", "c"]), last=True))
    assert await within(asyncio.gather(tasks[0], tasks[2])) == [{"y": "a"}, {"y": "c"}]


async def test_rows_withdrawn_in_one_tick_leave_in_one_message(client: Client, worker: Worker) -> None:
    worker.answering = silent
    calls = [client.call("echo", x(n)) for n in range(5)]
    await turns()
    for row in (4, 0, 3):
        calls[row].cancel()
    await turns()
    assert [cancel.rows for cancel in worker.cancels] == [[4, 0, 3]]


async def test_answered_row_cannot_be_withdrawn(client: Client, worker: Worker) -> None:
    call = client.call("echo", x(1))
    await within(call)
    assert not call.cancel()
    await turns()
    assert worker.cancels == []


async def test_frame_of_cancelled_rows_only_is_not_sent(client: Client, worker: Worker) -> None:
    for call in [client.call("echo", x(n)) for n in range(3)]:
        call.cancel()
    some = [client.call("echo", x(n, size=9)) for n in range(3)]
    some[0].cancel()
    await within(asyncio.gather(*some[1:]))
    assert worker.rows == [3]
    assert [(cancel.id, cancel.rows) for cancel in worker.cancels] == [(worker.requests[0].id, [0])]


async def test_frame_whose_rows_were_all_withdrawn_is_forgotten(client: Client, worker: Worker) -> None:
    worker.answering = silent
    calls = [client.call("echo", x(n)) for n in range(3)]
    await turns()
    answer = weakref.ref(calls[0])
    for call in calls:
        call.cancel()
    del call, calls
    await turns()
    gc.collect()
    # A worker answers no row that was withdrawn, so nothing else would ever end it before its deadline.
    assert answer() is None


async def test_timeout_around_a_call_withdraws_it(client: Client, worker: Worker) -> None:
    worker.answering = silent
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.call("echo", x(1))
    await turns()
    assert [cancel.rows for cancel in worker.cancels] == [[0]]


# --- busy, nobody there, connection lost -----------------------------------------------------------------------------


def busy(request: Request, retry_ms: int = 40) -> Iterable[Reply]:
    # As a worker refuses a frame: all of its rows, by their number.
    yield Reply(id=request.id, err=[RowError(0, "busy", "full", request.n, retry_ms)], again=request.again, last=True)


async def test_busy_frame_is_sent_again_twice_and_then_raises(
    client: Client, worker: Worker, clock: Callable[[], Clock]
) -> None:
    time = clock()
    worker.answering = busy
    calls = [client.call("echo", x(n)) for n in range(3)]
    await turns()
    await time.advance(0.019)  # before half the time that it was told
    assert worker.rows == [3]
    await time.advance(0.2)
    assert worker.rows == [3, 3, 3]
    assert len({request.id for request in worker.requests}) == 1
    for found in await within(asyncio.gather(*calls, return_exceptions=True)):
        assert isinstance(found, Busy)
        assert found.retry_after_s == 0.04


@pytest.mark.parametrize(("jitter", "shortest"), [(0.0, 0.5), (1.0, 1.5)])
async def test_busy_frame_waits_as_told_with_jitter(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch, jitter: float, shortest: float
) -> None:
    waits: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def at_once(delay: float, *arguments: Any) -> asyncio.TimerHandle:
        waits.append(delay)
        return call_later(0, *arguments)

    monkeypatch.setattr(loop, "call_later", at_once)
    monkeypatch.setattr(random, "random", lambda: jitter)
    worker.answering = busy
    call = client.call("echo", x(1))
    while not call.done():
        await turns(1)
    assert isinstance(call.exception(), Busy)
    assert waits == pytest.approx([0.04 * shortest, 0.08 * shortest])


async def test_busy_frame_is_answered_when_there_is_room(
    client: Client, worker: Worker, clock: Callable[[], Clock]
) -> None:
    time = clock()
    worker.answering = lambda request: busy(request) if len(worker.requests) < 3 else echo(request)
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.arange(4.0)}))
    await turns()
    await time.advance(0.2)
    await time.advance(0.2)
    assert (await within(many))["x"].tolist() == [0, 1, 2, 3]
    assert len(worker.requests) == 3


async def test_busy_frame_is_not_sent_again_after_its_deadline(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: busy(request, retry_ms=60_000)
    with pytest.raises(Busy):
        await within(client.call("echo", x(1)))
    assert len(worker.requests) == 1


async def test_frame_busy_in_part_is_not_sent_again(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: [
        Reply(id=request.id, err=[RowError(1, "busy", "full", 1, 1)]),
        Reply(id=request.id, **answer([0], y=["a"]), last=True),
    ]
    found = await within(asyncio.gather(*(client.call("echo", x(n)) for n in range(2)), return_exceptions=True))
    assert found[0] == {"y": "a"}
    assert isinstance(found[1], Busy)
    assert len(worker.requests) == 1


async def test_operation_nobody_serves_fails_at_once(client: Client) -> None:
    with pytest.raises(NoWorker, match=r"aikoryu\.v1\.default\.nothing\.here: start a worker"):
        await within(client.call("nothing.here", x(1)), seconds=1)
    with pytest.raises(RowsFailed) as caught:
        await within(client.call_many("nothing.here", {"x": np.zeros(3)}), seconds=1)
    assert [type(error) for error in caught.value.errors.values()] == [NoWorker] * 3


async def test_idempotent_calls_are_sent_again_after_a_lost_connection_and_others_fail(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection
) -> None:
    worker.answering = silent
    again = client.call("echo", x(1), idempotent=True)
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(2)}, idempotent=True))
    once = client.call("echo", x(3))
    await turns()
    first = {request.id: request.n for request in worker.requests}
    assert len(first) == 3
    bus.drop_connection(connection)
    worker.answering = echo
    bus.restore(connection)
    with pytest.raises(Disconnected, match="may or may not have run"):
        await within(once)
    assert (await within(again))["x"].tolist() == [1] * 3
    assert len((await within(many))["x"]) == 2
    # The same frame, under the number by which a worker knows it again.
    assert len(worker.requests) == 5
    assert all(first[request.id] == request.n for request in worker.requests[3:])


async def test_idempotent_call_made_while_disconnected_is_answered(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection
) -> None:
    bus.drop_connection(connection)
    call = client.call("echo", x(1), idempotent=True)
    await turns()
    assert not call.done()
    bus.restore(connection)
    assert (await within(call))["x"].tolist() == [1] * 3


async def test_calls_that_do_not_fit_the_buffer_of_a_lost_connection_wait_for_it(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection
) -> None:
    bus.drop_connection(connection)
    calls = [client.call("echo", {"x": np.zeros(50_000, np.uint8)}, idempotent=True) for _ in range(60)]
    await turns()
    assert not any(call.done() for call in calls)
    bus.restore(connection)
    assert len(await within(asyncio.gather(*calls))) == 60


async def test_call_that_may_not_run_twice_fails_at_once_without_a_connection_and_is_not_sent(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection
) -> None:
    bus.drop_connection(connection)
    one = client.call("echo", x(1), timeout_s=1000)
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(2)}, timeout_s=1000))
    await turns()
    with pytest.raises(Disconnected, match="the call was not sent"):
        one.result()
    with pytest.raises(RowsFailed) as raised:
        many.result()
    assert [type(error) for error in raised.value.errors.values()] == [Disconnected] * 2
    bus.restore(connection)
    await turns()
    assert worker.requests == []
    assert (await within(client.call("echo", x(1))))["x"].tolist() == [1] * 3


async def test_call_sent_again_waits_for_a_worker_that_comes_back_later(
    client: Client, worker: Worker, bus: MemoryBus, connection: MemoryConnection, clock: Callable[[], Clock]
) -> None:
    time = clock()
    worker.answering = silent
    again = client.call("echo", x(1), idempotent=True)
    await turns()
    bus.drop_connection(connection)
    bus.restore(connection)
    await turns()
    worker.no_worker(0)
    await turns()
    assert not again.done()
    worker.answering = echo
    await time.advance(0.2)
    assert (await within(again))["x"].tolist() == [1] * 3


# --- close -----------------------------------------------------------------------------------------------------------


async def test_close_fails_what_waits_and_withdraws_it(client: Client, worker: Worker) -> None:
    worker.answering = silent
    calls = [client.call("echo", x(n)) for n in range(3)]
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros(2)}))
    await turns()
    calls[1].cancel()
    await client.close()
    await turns()
    found = await within(asyncio.gather(*calls, many, return_exceptions=True))
    assert [type(each) for each in found] == [Closed, asyncio.CancelledError, Closed, RowsFailed]
    assert {(cancel.id, tuple(cancel.rows)) for cancel in worker.cancels} == {(1, ()), (2, ())}


async def test_close_fails_what_was_not_sent_yet(client: Client, worker: Worker) -> None:
    call = client.call("echo", x(1))
    await client.close()
    with pytest.raises(Closed, match="before the call was sent"):
        await within(call)
    assert worker.requests == []


async def test_closed_client_refuses_calls(client: Client, connection: MemoryConnection) -> None:
    await client.close()
    await client.close()
    with pytest.raises(Closed):
        client.call("echo", x(1))
    with pytest.raises(Closed):
        await client.call_many("echo", {"x": np.zeros(1)})
    with pytest.raises(Closed):
        client.stream("echo", [])
    assert connection.subscriptions == []
    assert connection.on_reconnect == []


async def test_calls_nobody_awaited_make_no_noise_at_close(client: Client, worker: Worker) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context))
    worker.answering = silent
    for number in range(3):
        client.call("echo", x(number))
    await turns()
    client.call("echo", x(3))
    with capture_logs() as logs:
        await client.close()
        await turns()
        gc.collect()
        await turns()
    assert noise == []
    assert logs == []


async def test_closed_connection_fails_the_call_and_not_the_client(
    client: Client, connection: MemoryConnection
) -> None:
    await connection.close()
    with pytest.raises(Closed):
        await within(client.call("echo", x(1)))


# --- many rows -------------------------------------------------------------------------------------------------------


async def test_many_rows_come_back_in_the_order_asked(client: Client, worker: Worker) -> None:
    worker.answering = silent
    rows = np.arange(300 * 3_000, dtype=np.float32).reshape(-1, 300)
    many = asyncio.ensure_future(client.call_many("echo", {"x": rows}))
    await turns()
    assert len(worker.requests) > 5
    assert max(worker.sizes) <= MAX_PAYLOAD
    for to, request in reversed(list(enumerate(worker.requests))):
        values = unpack(request.cols["x"], request.n)
        half = request.n // 2
        second = answer(range(half, request.n), x=values[half:])
        worker.reply(to, Reply(id=request.id, **second))
        worker.reply(to, Reply(id=request.id, at=[(0, half)], cols={"x": pack(values[:half])}, last=True))
    found = await within(many)
    np.testing.assert_array_equal(found["x"], rows)
    assert found["x"].flags.writeable


async def test_many_strings_of_uneven_sizes_come_back_in_order(client: Client, worker: Worker) -> None:
    chooser = random.Random(5)
    texts = ["漢x"[n % 2] * chooser.choice([0, 1, 10, 1000, 5000]) for n in range(300)]
    columns: dict[str, Any] = {"s": texts, "b": [text.encode() for text in texts], "n": np.arange(300)}
    found = await within(client.call_many("echo", columns))
    assert found["s"] == texts
    assert found["b"] == columns["b"]
    np.testing.assert_array_equal(found["n"], columns["n"])
    assert max(worker.sizes) <= MAX_PAYLOAD
    assert len(worker.requests) > 10


async def test_many_rows_take_what_makes_an_array(client: Client) -> None:
    found = await within(client.call_many("echo", {"n": [1, 2], "l": [[1.0, 2.0], [3.0, 4.0]], "t": ("a", "b")}))
    assert found["n"].tolist() == [1, 2]
    assert found["l"].tolist() == [[1, 2], [3, 4]]
    assert found["t"] == ["a", "b"]


@pytest.mark.parametrize(
    "columns",
    [
        {"x": np.float32(1)},
        {"x": np.zeros(2), "y": ["a"]},
        {},
        {"x": ["a", b"b"]},
        {"x": [object()]},
        {"x": [[1], [1, 2]]},
    ],
)
async def test_many_rows_that_are_no_columns_raise_at_once(client: Client, columns: dict[str, Any]) -> None:
    with pytest.raises(BadColumn):
        await within(client.call_many("echo", columns))


@pytest.mark.parametrize("nothing", [np.zeros((0, 3)), []])
async def test_no_rows_are_no_request(client: Client, worker: Worker, nothing: Any) -> None:
    assert await within(client.call_many("echo", {"x": nothing})) == {}
    assert worker.requests == []


async def test_rows_that_fail_are_named_beside_the_others_answers(client: Client, worker: Worker) -> None:
    def some_fail(request: Request) -> Iterable[Reply]:
        values: Any = unpack(request.cols["x"], request.n)
        values = values[:, 0]
        good = [row for row in range(request.n) if values[row] % 50]
        bad = [RowError(row, "bad_value", f"{int(values[row])} is bad") for row in range(request.n) if row not in good]
        yield Reply(id=request.id, **answer(good, y=np.array([values[row] for row in good])), err=bad, last=True)

    worker.answering = some_fail
    rows = np.arange(20_000)
    asked = np.stack([rows] * 4, axis=1)
    with pytest.raises(RowsFailed, match="400 rows failed, row 0 first: 0 is bad") as caught:
        await within(client.call_many("echo", {"x": asked}))
    assert len(worker.requests) > 1
    assert sorted(caught.value.errors) == list(range(0, 20_000, 50))
    assert all(isinstance(error, BadValue) for error in caught.value.errors.values())
    np.testing.assert_array_equal(caught.value.columns["y"], np.where(rows % 50, rows, 0))
    assert caught.value.code == "rows_failed"


async def test_row_too_large_among_many_fails_alone(client: Client) -> None:
    with pytest.raises(RowsFailed) as caught:
        await within(client.call_many("echo", {"s": ["a", "x" * MAX_PAYLOAD, "b"]}))
    assert {row: type(error) for row, error in caught.value.errors.items()} == {1: TooLarge}
    assert caught.value.columns["s"] == ["a", None, "b"]


async def test_many_rows_keep_a_bound_in_flight(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_IN_FLIGHT_BYTES", 200_000)
    worker.answering = silent
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros((1000, 250), np.float32)}))
    answered = 0
    while not many.done():
        await turns()
        open_bytes = sum(worker.sizes[answered:])
        assert open_bytes <= 200_000 + MAX_PAYLOAD
        if answered == 0:
            assert open_bytes > 100_000
        if answered < len(worker.requests):
            for reply in echo(worker.requests[answered]):
                worker.reply(answered, reply)
            answered += 1
    assert sum(worker.rows) == 1000
    assert len((await many)["x"]) == 1000


async def test_cancelled_call_of_many_rows_withdraws_what_is_unanswered(client: Client, worker: Worker) -> None:
    worker.answering = lambda request: echo(request) if request.id == 1 else ()
    many = asyncio.create_task(client.call_many("echo", {"x": np.zeros((100, 500))}))
    await turns()
    assert len(worker.requests) > 2
    many.cancel()
    await asyncio.wait({many})
    await turns()
    assert [(cancel.id, cancel.rows) for cancel in worker.cancels] == [(n.id, []) for n in worker.requests[1:]]


async def test_closed_client_sends_no_more_of_many_rows(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_IN_FLIGHT_BYTES", 200_000)
    worker.answering = silent
    many = asyncio.ensure_future(client.call_many("echo", {"x": np.zeros((1000, 250), np.float32)}))
    await turns()
    sent = len(worker.requests)
    await client.close()
    with pytest.raises(RowsFailed) as caught:
        await within(many)
    assert {type(error) for error in caught.value.errors.values()} == {Closed}
    assert len(caught.value.errors) == 1000
    assert len(worker.requests) == sent


async def test_answers_of_different_types_are_an_error(client: Client, worker: Worker) -> None:
    def differ(request: Request) -> Iterable[Reply]:
        values: Any = [np.zeros((request.n, 2)), np.zeros((request.n, 3)), ["a"] * request.n][request.id % 3]
        yield Reply(id=request.id, at=[(0, request.n)], cols={"y": pack(values)}, last=True)

    worker.answering = differ
    with pytest.raises(RowsFailed, match="of the answer is"):
        await within(client.call_many("echo", {"x": np.zeros((100, 500))}))


async def test_bf16_answers_are_float32(client: Client, worker: Worker) -> None:
    column = Column("bf16", memoryview(b"\x80\x3f\x00\xc0"), (2,))
    worker.answering = lambda request: [Reply(id=request.id, at=[(0, 2)], cols={"y": column}, last=True)]
    found = await within(asyncio.gather(client.call("echo", x(0)), client.call("echo", x(1))))
    assert [float(row["y"]) for row in found] == [1.0, -2.0]


async def test_clients_of_one_bus_do_not_mix_their_answers(bus: MemoryBus, worker: Worker) -> None:
    async with AsyncExitStack() as stack:
        shared = bus.connect()
        clients = [Client(c, SUBJECTS, timeout_s=5, frame_bytes=1000) for c in (shared, shared, bus.connect())]
        for each in clients:
            await each.start()
            stack.push_async_callback(each.close)
        calls = [each.call("echo", x(n)) for n, each in enumerate(clients) for _ in range(3)]
        found = await within(asyncio.gather(*calls))
        assert [int(row["x"][0]) for row in found] == [0] * 3 + [1] * 3 + [2] * 3
        assert len({request.client for request in worker.requests}) == 3


async def test_callbacks_error_reaches_nobody_else(client: Client, worker: Worker) -> None:
    # A future's callback may do anything: it runs after the replies have been handed out.
    call = client.call("echo", x(1))
    other = client.call("echo", x(2))
    call.add_done_callback(lambda done: client.call("echo", x(3)).cancel())
    with suppress(asyncio.CancelledError):
        await within(call)
    assert (await within(other))["x"][0] == 2

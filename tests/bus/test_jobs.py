"""Durable work from the worker's side, over a real server: what is run, how often, and what is left in the streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.agents.jobs import Jobs, NoResult
from aikoryu.bus import job_puller, job_runs
from aikoryu.bus.columns import pack_array
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BadColumn, BadFrame, BadParameter, Busy, EngineLost, OperationFailed
from aikoryu.bus.frames import Reply, Request, RowError, decode_reply, encode, row_error
from aikoryu.bus.jetstream import JetStream
from aikoryu.bus.job_puller import Puller
from aikoryu.bus.job_worker import JobWorker
from aikoryu.bus.jobs import (
    CALLER,
    DELIVERED,
    REASON,
    REASON_CODE,
    JobSubjects,
    Next,
    Outcome,
    after,
    check_id,
    consumer_name,
    delivery_of,
    outcome_of,
    retry_s,
    streams,
)
from aikoryu.bus.loopback import Loopback
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.pipeline import Occupied, Pipeline, settle
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message, Transport
from aikoryu.config import JobSettings, ServerSettings

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

NAMES = JobSubjects(Subjects())
OPERATION = "test.double"
X = np.arange(3.0)


class Worker:
    """Doubles `x`, unless the test says otherwise; a service and a job worker on one connection.

    Attributes:
        asked: the frames of jobs, in order.
        outcomes: errors to answer with first; None doubles.
        silent: keep frames unanswered in `asked`.
    """

    def __init__(self, transport: Transport, settings: JobSettings) -> None:
        self.transport = transport
        loopback = Loopback(transport, "_INBOX")
        self.service = Service(loopback, Subjects(), "w1", reply_prefixes=("_INBOX",))
        self.jobs = JobWorker(transport, loopback, Subjects(), settings, self.service.may_answer)
        self.asked: list[Held] = []
        self.outcomes: list[Exception | None] = []
        self.silent = False
        self.stopped = False

    async def start(self) -> None:
        await self.service.start()
        await self.service.serve(OPERATION, self.accept)
        await self.jobs.start([OPERATION])

    def accept(self, held: Held) -> None:
        self.asked.append(held)
        error = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(error, Busy | BadColumn):
            raise error
        if error is not None:
            self.service.answer(held, [], {}, [row_error(error, 0, 1)])  # type: ignore[arg-type]
        elif not self.silent:
            self.double(held)

    def double(self, held: Held) -> None:
        request = held.request
        column = pack_array(2 * np.frombuffer(request.cols["x"].d).reshape(request.n, -1))
        self.service.answer(held, [(0, request.n)], {"y": column}, [])

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.jobs.pause()
            await self.service.drain(0.0)
            await self.jobs.stop()


class Killable:
    """A server on a store that stays; it can be killed and started again on its port."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._port = 0
        self.server: EmbeddedServer
        self.url = ""

    async def start(self) -> None:
        self.server = EmbeddedServer(ServerSettings(port=self._port, store_dir=str(self._store)))
        await self.server.start()
        self.url = self.server.url
        self._port = int(self.url.rpartition(":")[2])

    async def kill(self) -> None:
        process = self.server._process
        assert process is not None
        process.kill()
        await process.wait()
        await self.server.stop()


class Bench:
    """A server, and what is made on it."""

    def __init__(self, server: Killable, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack

    async def connect(self, inbox_prefix: str = "_INBOX") -> NatsConnection:
        connection = await NatsConnection.open(ConnectOptions(url=self.server.url, inbox_prefix=inbox_prefix))
        self._stack.push_async_callback(connection.close)
        return connection

    async def worker(self, **settings: Any) -> Worker:
        made = Worker(await self.connect(), JobSettings(**{"retry_s": 0.01, "max_bytes": 1 << 20, **settings}))
        await made.start()
        self._stack.push_async_callback(made.stop)
        return made

    async def jobs(self) -> Jobs:
        made = Jobs(await self.connect(), Subjects(), 10)
        self._stack.push_async_callback(made.close)
        return made

    async def jetstream(self) -> JetStream:
        return await self._stack.enter_async_context(JetStream(await self.connect()))

    async def pipeline(self) -> Pipeline:
        return await self._stack.enter_async_context(Pipeline(await self.connect()))

    async def left(self, stream: str) -> int:
        """Messages in a stream."""
        count: int = (await (await self.jetstream()).api(f"STREAM.INFO.{stream}"))["state"]["messages"]
        return count

    async def empty(self, stream: str) -> None:
        """Return when a stream is empty: acknowledgements are not answered."""
        jetstream = await self.jetstream()
        async with asyncio.timeout(5):
            while (await jetstream.api(f"STREAM.INFO.{stream}"))["state"]["messages"]:  # noqa: ASYNC110 - the server's
                await asyncio.sleep(0.01)


async def until_done(jobs: Jobs, id_: str) -> dict[str, Any]:
    """The answer of a job that was published just now, and may not have arrived."""
    while True:
        try:
            return await (await jobs.job(id_))
        except NoResult:
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        server = Killable(tmp_path / "store")
        await server.start()
        stack.push_async_callback(lambda: server.server.stop())
        yield Bench(server, stack)


# --- what becomes of a job -------------------------------------------------------------------------------------------


def failed(code: str) -> Outcome:
    return Outcome(err=[RowError(0, code, "why")], last=True)


@pytest.mark.parametrize(
    ("outcome", "delivered", "waited_s", "expected"),
    [
        (Outcome(last=True), 1, 0, Next.STORE),
        (Outcome(last=True), 9, 0, Next.STORE),
        (failed("bad_column"), 1, 0, Next.STORE),
        (failed("no_tensor"), 1, 0, Next.STORE),
        (failed("engine_lost"), 1, 0, Next.RETRY),
        (failed("engine_lost"), 3, 0, Next.BURY),
        (failed("operation_failed"), 2, 0, Next.RETRY),
        (failed("a code of tomorrow"), 3, 0, Next.BURY),
        (failed("busy"), 1, 0, Next.WAIT),
        (failed("busy"), 1, 10, Next.RETRY),
        (failed("busy"), 3, 1000, Next.WAIT),
    ],
)
def test_fate_of_a_job(outcome: Outcome, delivered: int, waited_s: float, expected: Next) -> None:
    assert after(outcome, delivered, 3, waited_s, 10) is expected


def test_rest_doubles_up_to_a_minute_and_is_moved_by_chance() -> None:
    assert [retry_s(n, 1.0, 0.5) for n in (1, 2, 3, 7, 1000)] == [1, 2, 4, 60, 60]
    assert (retry_s(1, 1.0, 0.0), retry_s(1, 1.0, 1.0)) == (0.5, 1.5)


@pytest.mark.parametrize(
    "ack", ["$JS.ACK.S.C.7.1.1.1795368682628212041.3", "$JS.ACK._.hash.S.C.7.1.1.1795368682628212041.3.token"]
)
def test_number_of_a_delivery_is_read_from_either_form(ack: str) -> None:
    assert delivery_of(ack) == 7


@given(st.lists(st.from_regex(r"[a-z_\-]{1,4}(\.[a-z_\-]{1,4}){0,2}", fullmatch=True), min_size=2, unique=True))
def test_operations_have_consumers_of_their_own(operations: list[str]) -> None:
    names = [consumer_name(operation) for operation in operations]
    assert len(set(names)) == len(names)
    assert not any("." in name for name in names)


@pytest.mark.parametrize("id_", ["", "a.b", "a b", "*", ">", "ü", "x" * 129])
def test_id_is_one_token(id_: str) -> None:
    with pytest.raises(BadParameter):
        check_id(id_)


def test_outcome_is_read_from_either_encoding() -> None:
    reply = Reply(id=1, err=[RowError(0, "busy", "", 1, 7)], last=True)
    assert outcome_of(encode(reply)) == outcome_of(
        b'{"id":1,"err":[{"row":0,"code":"busy","msg":"","n":1,"retry_ms":7}],"last":true}'
    )


# --- run, stored, acknowledged ---------------------------------------------------------------------------------------


async def test_job_is_run_and_its_result_stays_when_it_is_gone(bench: Bench) -> None:
    worker, jobs = await bench.worker(), await bench.jobs()
    job = await jobs.submit(OPERATION, {"x": X}, id="one")
    np.testing.assert_array_equal((await job)["y"], 2 * X)
    await bench.empty(NAMES.jobs)
    assert await bench.left(NAMES.results) == 1
    assert worker.jobs.runs.stored == 1


async def test_jobs_go_to_the_service_as_ordinary_frames(bench: Bench) -> None:
    worker, jobs = await bench.worker(), await bench.jobs()
    submitted = await asyncio.gather(*(jobs.submit(OPERATION, {"x": X + n}) for n in range(200)))
    answers = await asyncio.gather(*submitted)
    np.testing.assert_array_equal([row["y"] for row in answers], [2 * (X + n) for n in range(200)])
    assert worker.service.endpoints[OPERATION].requests == len(worker.asked) == 200


async def test_worker_whose_own_inbox_may_not_be_answered_takes_jobs(bench: Bench) -> None:
    worker, jobs = Worker(await bench.connect("_INBOX_worker.own"), JobSettings()), await bench.jobs()
    worker.service._reply_prefixes = ("_INBOX.",)
    await worker.start()
    np.testing.assert_array_equal((await (await jobs.submit(OPERATION, {"x": X})))["y"], 2 * X)
    await worker.stop()


async def test_workers_share_one_consumer(bench: Bench) -> None:
    workers, jobs = [await bench.worker(in_flight=4) for _ in range(2)], await bench.jobs()
    await asyncio.gather(*await asyncio.gather(*(jobs.submit(OPERATION, {"x": X}) for _ in range(100))))
    counts = [len(worker.asked) for worker in workers]
    assert sum(counts) == 100
    assert min(counts) > 0


async def test_worker_holds_no_more_jobs_than_it_may(bench: Bench, eventually: Eventually) -> None:
    worker, jobs = await bench.worker(in_flight=8), await bench.jobs()
    worker.silent = True
    submitted = await asyncio.gather(*(jobs.submit(OPERATION, {"x": X}) for _ in range(30)))
    await eventually(lambda: len(worker.asked) == 8)
    await worker.transport.flush()
    assert len(worker.asked) == 8
    worker.silent = False
    for held in list(worker.asked):
        worker.double(held)
    assert len(await asyncio.gather(*submitted)) == 30


async def test_job_of_a_plain_client_in_json_gets_its_result_in_json(bench: Bench) -> None:
    await bench.worker()
    pipeline, jobs = await bench.pipeline(), await bench.jobs()
    stored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    frame = b'{"v": 1, "n": 1, "cols": {"x": {"t": "f8", "d": [[1, 2]]}}}'
    pipeline.publish(NAMES.job("typed", OPERATION), frame, lambda error: settle(stored, error))
    assert await stored is None
    with pytest.raises(BadFrame):
        await (await jobs.job("typed"))
    found = await (await bench.jetstream()).last(NAMES.results, NAMES.result("typed"))
    assert found is not None
    assert json.loads(found.data)["cols"] == {"y": {"t": "f8", "d": [[2.0, 4.0]]}}


@pytest.mark.parametrize("frame", [b"garbage", msgpack.packb({"v": 1, "n": 0, "client": 3, "stream": 4})])
async def test_what_is_no_job_gets_its_error_as_result(bench: Bench, frame: bytes) -> None:
    await bench.worker()
    pipeline, jobs = await bench.pipeline(), await bench.jobs()
    pipeline.publish(NAMES.job("odd", OPERATION), frame, lambda error: None)
    with pytest.raises(BadFrame):
        await until_done(jobs, "odd")


async def test_frame_answered_in_parts_is_no_job(bench: Bench, eventually: Eventually) -> None:
    worker, pipeline, jobs = await bench.worker(), await bench.pipeline(), await bench.jobs()
    worker.silent = True
    two = encode(Request(v=1, n=2, cols={"x": pack_array(np.stack([X, X]))}))
    pipeline.publish(NAMES.job("two", OPERATION), two, lambda error: None)
    await eventually(lambda: len(worker.asked) == 1)
    worker.service.answer(worker.asked[0], [(0, 1)], {"y": pack_array(X[None])}, [])
    with pytest.raises(BadFrame, match="one row"):
        await until_done(jobs, "two")


async def test_result_is_not_sent_to_a_subject_that_is_no_inbox(bench: Bench) -> None:
    await bench.worker()
    pipeline, connection, jobs = await bench.pipeline(), await bench.connect(), await bench.jobs()
    seen: list[Message] = []
    await connection.subscribe("victim", seen.append)
    await connection.flush()
    frame = encode(Request(v=1, n=1, cols={"x": pack_array(X[None])}))
    pipeline.publish(NAMES.job("evil", OPERATION), frame, lambda error: None, {CALLER: "victim"})
    await until_done(jobs, "evil")
    await connection.flush()
    assert seen == []


# --- once, for who looks ---------------------------------------------------------------------------------------------


async def test_trap_18_job_sent_again_within_the_window_is_run_once(bench: Bench) -> None:
    worker, jobs = await bench.worker(), await bench.jobs()
    await (await jobs.submit(OPERATION, {"x": X}, id="one"))
    again = await jobs.submit(OPERATION, {"x": X + 1}, id="one")
    np.testing.assert_array_equal((await again)["y"], 2 * X)
    assert len(worker.asked) == 1
    assert worker.jobs.runs.known == 0  # the server itself knew


async def test_job_sent_again_beyond_the_window_is_not_run_while_its_result_is_there(bench: Bench) -> None:
    worker, jobs, pipeline = await bench.worker(), await bench.jobs(), await bench.pipeline()
    await (await jobs.submit(OPERATION, {"x": X}, id="one"))
    await bench.empty(NAMES.jobs)
    frame = encode(Request(v=1, n=1, cols={"x": pack_array(X[None] + 1)}))
    pipeline.publish(NAMES.job("one", OPERATION), frame, lambda error: None)  # without its number, as after the window
    await pipeline.drain()
    other = await (await jobs.submit(OPERATION, {"x": X}, id="two"))
    assert other["y"].tolist() == (2 * X).tolist()
    await bench.empty(NAMES.jobs)
    np.testing.assert_array_equal((await jobs.result("one"))["y"], 2 * X)
    assert (len(worker.asked), worker.jobs.runs.known) == (2, 1)


async def test_job_that_waits_is_not_queued_twice_however_long(bench: Bench) -> None:
    worker = await bench.worker()
    await worker.stop()
    pipeline, jobs = await bench.pipeline(), await bench.jobs()
    frame = encode(Request(v=1, n=1, cols={"x": pack_array(X[None])}))
    stored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pipeline.publish(NAMES.job("one", OPERATION), frame, lambda error: None)
    pipeline.publish(NAMES.job("one", OPERATION), frame, lambda error: settle(stored, error))
    assert isinstance(await stored, Occupied)
    job = await jobs.submit(OPERATION, {"x": X}, id="one")  # accepted: it is there
    assert await bench.left(NAMES.jobs) == 1
    await bench.worker()
    np.testing.assert_array_equal((await job)["y"], 2 * X)


async def test_first_result_stays(bench: Bench, eventually: Eventually) -> None:
    """At least once: a worker that was too slow may have run it, too."""
    slow, jobs = await bench.worker(), await bench.jobs()
    slow.silent = True
    job = await jobs.submit(OPERATION, {"x": X}, id="one")
    await eventually(lambda: len(slow.asked) == 1)
    result = encode(Reply(id=0, at=[(0, 1)], cols={"y": pack_array(X[None])}, last=True))
    await (await bench.jetstream()).publish(NAMES.result("one"), result)
    slow.double(slow.asked[0])
    await bench.empty(NAMES.jobs)
    np.testing.assert_array_equal((await job)["y"], X)
    np.testing.assert_array_equal((await jobs.result("one"))["y"], X)
    assert (slow.jobs.runs.stored, slow.jobs.runs.known) == (0, 1)


# --- tried again, given up -------------------------------------------------------------------------------------------


async def test_lost_engine_is_tried_again(bench: Bench) -> None:
    worker, jobs = await bench.worker(), await bench.jobs()
    worker.outcomes = [EngineLost("gone"), EngineLost("gone again")]
    job = await jobs.submit(OPERATION, {"x": X})
    np.testing.assert_array_equal((await job)["y"], 2 * X)
    assert (len(worker.asked), worker.jobs.runs.retried) == (3, 2)


@pytest.mark.parametrize("error", [BadColumn("column 'y' is missing"), BadParameter("no")])
async def test_fault_of_the_caller_is_final(bench: Bench, error: Exception) -> None:
    worker, jobs = await bench.worker(), await bench.jobs()
    worker.outcomes = [error]
    with pytest.raises(type(error), match=str(error)):
        await (await jobs.submit(OPERATION, {"x": X}, id="one"))
    with pytest.raises(type(error)):
        await jobs.result("one")
    assert len(worker.asked) == 1
    assert await bench.left(NAMES.dead) == 0


async def test_busy_is_no_failure(bench: Bench) -> None:
    worker, jobs = await bench.worker(max_deliver=1), await bench.jobs()
    worker.outcomes = [Busy("full", 0.001)] * 4
    np.testing.assert_array_equal((await (await jobs.submit(OPERATION, {"x": X})))["y"], 2 * X)
    assert (len(worker.asked), worker.jobs.runs.retried) == (5, 0)


async def test_worker_that_stays_busy_lets_others_try(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runs, "BUSY_S", 0.0)
    worker, jobs = await bench.worker(), await bench.jobs()
    worker.outcomes = [Busy("full", 0.001)] * 3
    np.testing.assert_array_equal((await (await jobs.submit(OPERATION, {"x": X})))["y"], 2 * X)
    assert worker.jobs.runs.retried > 0


async def test_trap_17_job_given_up_is_a_dead_letter_and_leaves_the_queue(bench: Bench) -> None:
    worker, jobs = await bench.worker(max_deliver=2), await bench.jobs()
    worker.outcomes = [OperationFailed("first"), EngineLost("second")]
    job = await jobs.submit(OPERATION, {"x": X}, id="one")
    with pytest.raises(EngineLost, match="given up after 2 deliveries: second"):
        await job
    await bench.empty(NAMES.jobs)
    letter = await (await bench.jetstream()).last(NAMES.dead, NAMES.dead_letter("one", OPERATION))
    assert letter is not None
    assert letter.headers[REASON_CODE] == "engine_lost"
    assert letter.headers[REASON] == "given up after 2 deliveries: second"
    assert letter.headers[DELIVERED] == "2"
    assert letter.data == encode(Request(v=1, n=1, cols={"x": pack_array(X[None])}))


async def test_trap_17_job_whose_worker_dies_each_time_is_given_up_without_being_run(
    bench: Bench, eventually: Eventually
) -> None:
    dying, jobs = await bench.worker(max_deliver=1, ack_wait_s=0.5), await bench.jobs()
    dying.silent = True
    job = await jobs.submit(OPERATION, {"x": X}, id="one")
    await eventually(lambda: len(dying.asked) == 1)
    await dying.transport.close()  # nothing of it is heard any more
    dying.stopped = True
    other = await bench.worker(max_deliver=1, ack_wait_s=0.5)
    with pytest.raises(EngineLost, match="given up after 1 deliveries: the worker ended"):
        await job
    assert other.asked == []
    assert await bench.left(NAMES.dead) == 1


async def test_long_job_keeps_its_worker(bench: Bench, eventually: Eventually) -> None:
    worker, jobs = await bench.worker(ack_wait_s=0.5), await bench.jobs()
    other = await bench.worker(ack_wait_s=0.5)
    worker.silent = other.silent = True
    job = await jobs.submit(OPERATION, {"x": X})
    await eventually(lambda: len(worker.asked + other.asked) == 1)
    await asyncio.sleep(1.2)  # more than twice the server's patience, which is in real seconds
    held = (worker.asked + other.asked)[0]
    (worker if worker.asked else other).double(held)
    np.testing.assert_array_equal((await job)["y"], 2 * X)
    assert len(worker.asked + other.asked) == 1


# --- stops and losses ------------------------------------------------------------------------------------------------


async def test_stop_gives_back_what_was_not_run_and_stores_what_was(bench: Bench, eventually: Eventually) -> None:
    first, jobs = await bench.worker(in_flight=2), await bench.jobs()
    first.silent = True
    submitted = [await jobs.submit(OPERATION, {"x": X + n}) for n in range(3)]
    await eventually(lambda: len(first.asked) == 2)
    first.double(first.asked[0])
    await first.stop()
    assert first.jobs.runs.stored == 1
    second = await bench.worker()
    async with asyncio.timeout(5):  # not after the 30 s that a dead worker's jobs rest
        answers = await asyncio.gather(*submitted)
    np.testing.assert_array_equal([row["y"] for row in answers], [2 * (X + n) for n in range(3)])
    assert len(second.asked) == 2


async def test_server_killed_and_back_on_its_store_loses_no_job(bench: Bench, eventually: Eventually) -> None:
    worker, jobs = await bench.worker(ack_wait_s=1), await bench.jobs()
    worker.silent = True
    submitted = await asyncio.gather(*(jobs.submit(OPERATION, {"x": X + n}) for n in range(50)))
    waiting = asyncio.gather(*submitted)
    await eventually(lambda: len(worker.asked) == 50)
    for held in worker.asked[:25]:
        worker.double(held)
    await bench.server.kill()
    worker.silent = False
    for held in worker.asked[25:50]:
        worker.double(held)  # answered while there is no server
    await bench.server.start()
    async with asyncio.timeout(15):
        answers = await waiting
    np.testing.assert_array_equal([row["y"] for row in answers], [2 * (X + n) for n in range(50)])


async def test_server_that_lost_its_store_gets_its_streams_again(tmp_path: Path, bench: Bench) -> None:
    await bench.worker()
    jobs = await bench.jobs()
    await (await jobs.submit(OPERATION, {"x": X}))
    await bench.server.kill()
    bench.server._store = tmp_path / "another"
    await bench.server.start()
    async with asyncio.timeout(10):
        job = await jobs.submit(OPERATION, {"x": X})
        np.testing.assert_array_equal((await job)["y"], 2 * X)


async def test_streams_of_an_operator_are_taken_as_they_are(bench: Bench) -> None:
    theirs = JobSettings(max_bytes=2 << 20, results_ttl_s=60)
    async with JetStream(await bench.connect()) as jetstream:
        for config in streams(NAMES, theirs):
            await jetstream.ensure_stream(config)
        await bench.worker()
        found = (await jetstream.api(f"STREAM.INFO.{NAMES.jobs}"))["config"]
    assert found["max_bytes"] == 2 << 20
    jobs = await bench.jobs()
    np.testing.assert_array_equal((await (await jobs.submit(OPERATION, {"x": X})))["y"], 2 * X)


async def test_without_jetstream_the_worker_serves_all_the_same() -> None:
    bus = MemoryBus()
    worker = Worker(bus.connect(), JobSettings())
    await worker.start()
    caller, answers = bus.connect(), list[Message]()
    await caller.subscribe("_INBOX.me", answers.append)
    frame = encode(Request(v=1, n=1, id=3, cols={"x": pack_array(X[None])}))
    await caller.publish(Subjects().operation(OPERATION), frame, "_INBOX.me")
    await caller.flush()
    assert decode_reply(answers[0].data).at == [(0, 1)]
    await worker.stop()


async def test_trap_16_pull_that_the_server_forgot_is_made_again(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(job_puller, "HEARTBEAT_S", 0.01)
    bus = MemoryBus()
    transport, server = bus.connect(), bus.connect()
    pulls: list[Message] = []
    await server.subscribe("$JS.API.CONSUMER.MSG.NEXT.S.C", pulls.append)
    async with Pipeline(transport) as pipeline:
        puller = Puller(transport, pipeline, ("S", "C"), 8, lambda message, by: None, lambda: puller.resume())
        await puller.start()
        puller.resume()
        await eventually(lambda: len(pulls) == 2)
        assert [json.loads(pull.data)["batch"] for pull in pulls] == [8, 8]
        await puller.stop()

"""Calls over a bus that loses, doubles, delays and reorders messages, to workers that die; no test waits."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest

from aikoryu.bus.client import Client
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BusError, Busy, EngineDown, Expired, NoWorker
from aikoryu.bus.frames import Question, Reply, Request, RowError, decode_question, decode_request, encode
from aikoryu.bus.memory import MemoryBus, MemoryConnection, MemoryMessage
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects

SUBJECTS = Subjects()
DOUBLE = SUBJECTS.operation("double")

Fate = Callable[[MemoryMessage], Iterable[float]]
"""When a message arrives, in seconds from now: never, once, or more often."""


def at_once(message: MemoryMessage) -> Iterable[float]:
    return (0.0,)


class UnreliableBus(MemoryBus):
    """A bus that does with each message what a test says.

    Attributes:
        fate: what becomes of the next message.
        sent: all of them, in the order in which they were sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fate: Fate = at_once
        self.sent: list[MemoryMessage] = []

    def route(self, sender: MemoryConnection, message: MemoryMessage) -> None:
        self.sent.append(message)
        for delay_s in self.fate(message):
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, super().route, sender, message)
            else:
                super().route(sender, message)

    @property
    def requests(self) -> list[Request]:
        return [decode_request(message.data) for message in self.sent if message.subject == DOUBLE]

    @property
    def questions(self) -> list[Question]:
        return [
            decode_question(message.data)
            for message in self.sent
            if message.subject == SUBJECTS.control and message.reply
        ]


class Worker:
    """Doubles `x` of each row, so many seconds after it came.

    Attributes:
        held: the frames that came.
        run_s: time a frame takes.
        answering: gives the answer of a frame; `answer` unless a test says otherwise.
    """

    def __init__(self, bus: UnreliableBus, number: int) -> None:
        self.held: list[Held] = []
        self.run_s = 0.0
        self.answering: Callable[[Held], None] = self.answer
        self.service: Service
        self.connection = bus.connect()
        self._bus = bus
        self._number = number

    async def start(self) -> None:
        self.service = Service(self.connection, SUBJECTS, f"w{self._number}", reply_prefixes=("_INBOX",))
        await self.service.start()
        await self.service.serve("double", self._accept)

    def die(self) -> None:
        """As by `kill -9`: what it holds is never answered."""
        self._bus.drop_connection(self.connection)

    def answer(self, held: Held, first: int = 0, count: int = 0) -> None:
        """Answer the rows from `first` on, or `count` of them."""
        count = count or held.request.n - first
        x: Any = unpack(held.request.cols["x"], held.request.n)
        self.service.answer(held, [(first, count)], {"y": pack(2 * x[first : first + count])}, [])

    def _accept(self, held: Held) -> None:
        self.held.append(held)
        asyncio.get_running_loop().call_later(self.run_s, self.answering, held)


class Clock:
    """The loop's time, which jumps to the next timer instead of waiting for it."""

    def __init__(self, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._select = loop._selector.select
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop._selector, "select", self._jump)

    def _jump(self, timeout: float | None) -> Any:
        if timeout is None:
            return self._select(None)
        self.now += timeout
        return self._select(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(asyncio.get_running_loop(), monkeypatch)


@pytest.fixture
async def bus(clock: Clock) -> UnreliableBus:
    return UnreliableBus()


@pytest.fixture
async def workers(bus: UnreliableBus) -> list[Worker]:
    made = [Worker(bus, number) for number in range(2)]
    for worker in made:
        await worker.start()
    return made


@pytest.fixture
async def connection(bus: UnreliableBus) -> MemoryConnection:
    return bus.connect()


@pytest.fixture
async def client(connection: MemoryConnection) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        made = Client(connection, SUBJECTS, timeout_s=30.0, frame_bytes=16 * 1024)
        await made.start()
        stack.push_async_callback(made.close)
        yield made


def ask(client: Client, number: float, idempotent: bool = True, **options: Any) -> Awaitable[dict[str, Any]]:
    return client.call("double", {"x": np.float64(number)}, idempotent=idempotent, **options)


async def value(answer: Awaitable[dict[str, Any]]) -> float:
    return float((await answer)["y"])


def replies_to_lose(count: int, of: UnreliableBus) -> Fate:
    """Lose the first replies to a frame."""
    left = [count]

    def fate(message: MemoryMessage) -> Iterable[float]:
        if message.subject.startswith("_INBOX") and message.subject[-1].isdigit() and left[0]:
            left[0] -= 1
            return ()
        return (0.0,)

    return fate


# --- silence ---------------------------------------------------------------------------------------------------------


async def test_frames_of_a_front_that_died_are_answered_by_another(
    client: Client, workers: list[Worker], clock: Clock
) -> None:
    began = clock.now
    dead, alive = workers
    dead.run_s = 60.0
    calls = [ask(client, number) for number in range(3)]
    await asyncio.sleep(0.001)
    many = asyncio.ensure_future(client.call_many("double", {"x": np.arange(5.0)}, idempotent=True))
    await asyncio.sleep(0.5)
    assert (len(dead.held), len(alive.held)) == (1, 1)
    dead.die()
    assert [await value(call) for call in calls] == [0, 2, 4]
    assert (await many)["y"].tolist() == [0, 2, 4, 6, 8]
    assert clock.now - began < 2.0


async def test_slow_worker_is_asked_and_gets_nothing_twice(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock
) -> None:
    for worker in workers:
        worker.run_s = 10.0
    answers = await asyncio.gather(*(value(ask(client, number)) for number in range(3)))
    assert answers == [0, 2, 4]
    assert [request.again for request in bus.requests] == [0]
    assert 7 <= len(bus.questions) <= 10  # about one a second
    assert all(question.ids == [1] and question.client == client.number for question in bus.questions)


async def test_question_names_the_silent_frames_only(client: Client, workers: list[Worker], bus: UnreliableBus) -> None:
    for worker in workers:
        worker.run_s = 1.3
    first = ask(client, 1)
    await asyncio.sleep(0.9)
    workers[1].run_s = 0.1
    second, third = ask(client, 2), ask(client, 3, idempotent=False)
    assert [await value(each) for each in (first, second, third)] == [2, 4, 6]
    assert [question.ids for question in bus.questions] == [[1]]


@pytest.mark.parametrize("lost", [1, 3])
async def test_lost_answers_cost_a_second_and_a_half_each(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock, lost: int
) -> None:
    began = clock.now
    bus.fate = replies_to_lose(lost, bus)
    assert await value(ask(client, 3)) == 6
    assert 1.5 * lost <= clock.now - began <= 2.0 * lost
    requests = bus.requests
    assert [request.again for request in requests] == list(range(lost + 1))
    assert len({request.id for request in requests}) == 1
    assert requests[0].ttl_ms == 30_000
    assert requests[-1].ttl_ms == pytest.approx(30_000 - 1000 * (clock.now - began), abs=2)


async def test_lost_request_is_sent_again(client: Client, workers: list[Worker], bus: UnreliableBus) -> None:
    bus.fate = lambda message: () if message.subject == DOUBLE and len(bus.requests) < 3 else (0.0,)
    assert await value(ask(client, 3)) == 6
    assert sum(len(worker.held) for worker in workers) == 1


async def test_worker_has_half_a_second_to_say_what_it_holds(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    for worker in workers:
        worker.run_s = 3.0
    bus.fate = lambda message: (0.45,) if message.subject.endswith(".held") else (0.0,)
    assert await value(ask(client, 3)) == 6
    assert len(bus.requests) == 1


async def test_lost_holding_costs_a_run_and_no_answer(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    for worker in workers:
        worker.run_s = 3.0
    bus.fate = lambda message: () if message.subject.endswith(".held") else (0.0,)
    assert await value(ask(client, 3)) == 6
    assert 2 <= len(bus.requests) <= 3


async def test_call_that_may_run_once_only_is_never_sent_again(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    bus.fate = replies_to_lose(1, bus)
    with pytest.raises(Expired):
        await ask(client, 3, idempotent=False)
    assert len(bus.requests) == 1
    assert bus.questions == []


async def test_silent_call_expires_at_its_deadline(client: Client, workers: list[Worker], bus: UnreliableBus) -> None:
    bus.fate = lambda message: () if message.subject == DOUBLE else (0.0,)
    with pytest.raises(Expired):
        await ask(client, 3, timeout_s=4.0)
    assert len(bus.requests) == 3
    await asyncio.sleep(5.0)
    assert len(bus.requests) == 3


async def test_nothing_is_looked_for_when_answers_come_at_once(
    client: Client, workers: list[Worker], bus: UnreliableBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def counted(when: float, *arguments: Any, **context: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **context)

    monkeypatch.setattr(loop, "call_at", counted)
    for number in range(50):
        await ask(client, number, idempotent=False)
        await ask(client, number)
    # One for deadlines and one for silence, besides the workers' own of 0 s.
    assert len([when for when in timers if when > loop.time()]) == 2
    await asyncio.sleep(1.0)
    assert bus.questions == []
    timers.clear()
    await asyncio.sleep(10.0)
    assert len(timers) == 1  # the sleep itself


async def test_nothing_is_asked_while_the_connection_is_lost(
    client: Client, workers: list[Worker], bus: UnreliableBus, connection: MemoryConnection
) -> None:
    for worker in workers:
        worker.run_s = 60.0
    call = ask(client, 3)
    await asyncio.sleep(0.5)
    bus.drop_connection(connection)
    await asyncio.sleep(5.0)
    assert connection.outbox == []
    for worker in workers:
        worker.run_s = 0.0
        worker.answer(worker.held[0]) if worker.held else None
    bus.restore(connection)
    assert await value(call) == 6


async def test_loop_that_was_blocked_reads_before_it_sends_again(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock
) -> None:
    for worker in workers:
        worker.run_s = 1.6
    bus.fate = lambda message: () if message.subject.endswith(".held") else (0.0,)
    call = ask(client, 3)
    await asyncio.sleep(1.3)
    assert len(bus.questions) == 1
    bus.fate = lambda message: (0.05,)  # what came meanwhile is still in the socket
    clock.now += 0.7
    assert await value(call) == 6
    assert len(bus.requests) == 1


async def test_garbage_about_what_is_held_is_ignored(client: Client, workers: list[Worker], bus: UnreliableBus) -> None:
    inbox = f"{client._inbox}.held"
    bus.fate = replies_to_lose(1, bus)
    call = ask(client, 3)
    await asyncio.sleep(1.3)
    for payload in (b"", b"\xff", b"\x80", encode(Reply(id=1, last=True)), b'{"ids": [1]}'):
        bus.connect().send(inbox, payload)
    assert await value(call) == 6


# --- nobody there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True], ids=["call", "call_many"])
async def test_call_waits_for_a_worker_that_is_started_again(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock, many: bool
) -> None:
    assert await value(ask(client, 1)) == 2
    for worker in workers:
        worker.die()
    began = clock.now
    if many:
        call: asyncio.Future[Any] = asyncio.ensure_future(
            client.call_many("double", {"x": np.ones(3)}, idempotent=True)
        )
    else:
        call = asyncio.ensure_future(ask(client, 1))
    await asyncio.sleep(4.0)
    assert not call.done()
    bus.restore(workers[0].connection)
    assert np.all((await call)["y"] == 2)
    assert clock.now - began < 4.5
    assert 15 < len(bus.requests) < 60  # at 0.05 s at first, then at 0.25 s


async def test_no_worker_is_said_after_fifteen_seconds_or_at_the_deadline(
    client: Client, workers: list[Worker], clock: Clock
) -> None:
    assert await value(ask(client, 1)) == 2
    for worker in workers:
        worker.die()
    for timeout_s, least_s, most_s in ((30.0, 15.0, 15.5), (3.0, 2.5, 3.0)):
        began = clock.now
        with pytest.raises(NoWorker):
            await ask(client, 1, timeout_s=timeout_s)
        assert least_s <= clock.now - began <= most_s


async def test_subject_that_nobody_ever_served_is_told_at_once(
    client: Client, workers: list[Worker], clock: Clock
) -> None:
    assert await value(ask(client, 1)) == 2
    began = clock.now
    with pytest.raises(NoWorker):
        await client.call("typo", {"x": np.ones(1)}, idempotent=True)
    for worker in workers:
        worker.die()
    with pytest.raises(NoWorker):
        await ask(client, 1, idempotent=False)
    assert clock.now == began


async def test_word_of_nobody_that_comes_twice_sends_a_frame_once(
    client: Client, workers: list[Worker], bus: UnreliableBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert await value(ask(client, 1)) == 2
    for worker in workers:
        worker.die()
    call = asyncio.ensure_future(ask(client, 1))
    await asyncio.sleep(0.01)
    for _ in range(5):
        client._transport.send("nobody", b"", f"{client._inbox}.2")
    before = len(bus.requests)
    await asyncio.sleep(0.08)
    assert len(bus.requests) == before + 1
    call.cancel()


# --- the last word ---------------------------------------------------------------------------------------------------


def in_parts(worker: Worker, first_s: float) -> Callable[[Held], None]:
    """Answer in two parts, the last of them at once and the first later."""

    def answering(held: Held) -> None:
        inbox, x = held.reply, np.asarray(unpack(held.request.cols["x"], held.request.n))
        for at, last, delay_s in ((1, True, 0.0), (0, False, first_s)):
            part = Reply(id=held.request.id, at=[(at, 1)], cols={"y": pack(2 * x[at : at + 1])}, last=last)
            asyncio.get_running_loop().call_later(delay_s, worker.connection.send, inbox, encode(part))
        worker.service.drop(held, held.request.n)

    return answering


async def test_parts_that_come_after_the_last_are_waited_for_a_second(
    client: Client, workers: list[Worker], clock: Clock, bus: UnreliableBus
) -> None:
    for worker in workers:
        worker.answering = in_parts(worker, 0.9)
    calls = [ask(client, number, idempotent=False) for number in range(2)]
    assert await asyncio.gather(*map(value, calls)) == [0, 2]
    for worker in workers:
        worker.answering = in_parts(worker, 1.1)
    began = clock.now
    calls = [ask(client, number, idempotent=False) for number in range(2)]
    first, second = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, BusError)
    assert "every row" in str(first)
    assert isinstance(second, dict)
    assert 1.0 <= clock.now - began < 1.1
    assert len(bus.requests) == 2


async def test_lost_part_of_an_idempotent_frame_is_asked_for_again_soon(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock
) -> None:
    began = clock.now
    workers[0].answering = in_parts(workers[0], 100.0)
    calls = [ask(client, number) for number in range(2)]
    assert await asyncio.gather(*map(value, calls)) == [0, 2]
    assert clock.now - began < 1.3
    assert [request.again for request in bus.requests] == [0, 1]


async def test_rows_that_have_an_answer_keep_it(client: Client, workers: list[Worker]) -> None:
    dead = workers[0]

    def answer_some(held: Held) -> None:
        dead.service.answer(held, [(1, 1)], {"y": pack(np.array([20.0]))}, [RowError(2, "bad_value", "no")])
        asyncio.get_running_loop().call_later(0.01, dead.die)

    dead.answering = answer_some
    many = client.call_many("double", {"x": np.arange(5.0)}, idempotent=True)
    answers = await asyncio.gather(many, return_exceptions=True)
    found: Any = answers[0]
    assert found.columns["y"].tolist() == [0, 20, 0, 6, 8]
    assert list(found.errors) == [2]


# --- busy ------------------------------------------------------------------------------------------------------------


def refuse(worker: Worker, retry_s: float) -> Callable[[Held], None]:
    return lambda held: worker.service.fail(held, Busy("full", retry_after_s=retry_s))


async def test_refusal_that_comes_twice_sends_a_frame_once(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    # At once, and when the frame has been sent again: else one that may run once would run twice.
    bus.fate = lambda message: (0.0, 0.0, 0.5) if message.subject.startswith("_INBOX") else (0.0,)

    def refuse_two(worker: Worker, held: Held) -> None:
        if held.request.again < 2:
            refuse(worker, 0.04)(held)
        else:
            asyncio.get_running_loop().call_later(2.0, worker.answer, held)

    for worker in workers:
        worker.answering = partial(refuse_two, worker)
    assert await value(ask(client, 3, idempotent=False)) == 6
    assert [request.again for request in bus.requests] == [0, 1, 2]


async def test_frame_whose_worker_was_lost_is_tried_while_those_left_are_busy(
    client: Client, workers: list[Worker], clock: Clock, bus: UnreliableBus
) -> None:
    dead, left = workers
    dead.run_s = 60.0
    left.answering = refuse(left, 0.1)
    call = asyncio.ensure_future(ask(client, 3))
    await asyncio.sleep(0.5)
    dead.die()
    await asyncio.sleep(6.0)
    assert not call.done()
    assert 5 < len(bus.requests) < 20
    left.answering = left.answer
    assert await value(call) == 6


async def test_idempotent_frame_is_tried_until_an_engine_is_there_again(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    for worker in workers:
        worker.answering = partial(worker.service.fail, error=EngineDown("being started", retry_after_s=0.5))
    call = asyncio.ensure_future(ask(client, 3))
    other = asyncio.ensure_future(ask(client, 4, idempotent=False))
    await asyncio.sleep(8.0)
    assert isinstance(other.exception(), EngineDown)
    assert not call.done()
    assert 10 < len(bus.requests) < 40
    for worker in workers:
        worker.answering = worker.answer
    assert await value(call) == 6


async def test_silence_counts_from_when_a_busy_frame_is_sent_again(
    client: Client, workers: list[Worker], bus: UnreliableBus
) -> None:
    for worker in workers:
        worker.answering = refuse(worker, 5.0)
    call = asyncio.ensure_future(ask(client, 3))
    await asyncio.sleep(2.0)
    for worker in workers:
        worker.answering = worker.answer
    assert await value(call) == 6
    assert bus.questions == []


# --- everything at once ----------------------------------------------------------------------------------------------


def anything(chooser: random.Random, rate: float) -> Fate:
    """Lose, double and delay messages of all kinds; what is delayed is overtaken."""

    def fate(message: MemoryMessage) -> Iterable[float]:
        kind = chooser.random() / rate
        if kind < 1:
            return ()
        if kind < 2:
            return (0.0, 0.0)
        if kind < 3:
            return (0.0, chooser.uniform(0.0, 3.0))
        if kind < 4:
            return (chooser.expovariate(10.0),)
        return (0.0,)

    return fate


def any_parts(worker: Worker, chooser: random.Random) -> Callable[[Held], None]:
    """Answer a frame at once, or in two parts at different times; sometimes it takes seconds."""

    def answering(held: Held) -> None:
        half = held.request.n // 2
        loop = asyncio.get_running_loop()
        if half and chooser.random() < 0.5:
            loop.call_later(chooser.expovariate(10.0), worker.answer, held, 0, half)
            loop.call_later(chooser.expovariate(10.0), worker.answer, held, half, held.request.n - half)
        else:
            loop.call_later(chooser.choice((0.0, 0.1, 4.0)), worker.answer, held)

    return answering


@pytest.mark.parametrize("seed", range(6))
async def test_every_idempotent_call_is_answered_once_and_right_whatever_becomes_of_messages(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock, seed: int
) -> None:
    chooser = random.Random(seed)
    random.seed(seed)
    bus.fate = anything(chooser, 0.05)
    for worker in workers:
        worker.answering = any_parts(worker, chooser)
    asked: list[tuple[Any, asyncio.Future[Any]]] = []
    for number in range(120):
        for row in range(chooser.randrange(6)):
            asked.append((number + row, asyncio.ensure_future(ask(client, number + row))))
        if chooser.random() < 0.4:
            rows = np.arange(float(chooser.randrange(1, 9000)))
            asked.append((rows, asyncio.ensure_future(client.call_many("double", {"x": rows}, idempotent=True))))
        ask(client, number, idempotent=False)  # may be lost
        await asyncio.sleep(chooser.expovariate(20.0))
        if number == 60:
            workers[0].die()
        if number == 80:
            workers[0] = Worker(bus, 2)
            workers[0].answering = any_parts(workers[0], chooser)
            await workers[0].start()
    for given, answer in asked:
        np.testing.assert_array_equal((await answer)["y"], 2 * given)
    assert len(bus.requests) > len(asked) / 6
    await asyncio.sleep(60.0)
    assert client._pending == {}
    assert [worker.service.held for worker in workers] == [{}, {}]


async def test_no_memory_is_kept_of_lost_messages(
    client: Client, workers: list[Worker], bus: UnreliableBus, clock: Clock
) -> None:
    chooser = random.Random(1)

    def lose(message: MemoryMessage) -> Iterable[float]:
        bus.sent.clear()
        return () if chooser.random() < 0.05 else (0.0,)

    async def ask_many(ticks: int) -> int:
        for _ in range(ticks):
            waiting = [ask(client, 1) for _ in range(250)]
            del waiting  # they are answered whether somebody looks or not
            await asyncio.sleep(0.02)
        await asyncio.sleep(20.0)
        for worker in workers:
            worker.held.clear()
            worker.service._copies = type(worker.service._copies)()  # bounded, and not full yet
        gc.collect()
        return len(gc.get_objects())

    bus.fate = lose
    before = await ask_many(40)
    after = await ask_many(400)
    assert after - before < 200
    assert client._pending == {}
    assert [worker.service.held for worker in workers] == [{}, {}]

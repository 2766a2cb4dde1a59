"""Calls that come to a process of agents: what runs, what waits, what is refused and with which code."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from structlog.testing import capture_logs

import aikoryu as ai
from aikoryu.agents import host as host_module
from aikoryu.agents.app import App
from aikoryu.bus.errors import BusError, Busy, HandlerFailed
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.transport import Message
from aikoryu.config import NatsSettings, ServerSettings, Settings, WorkerSettings

from .conftest import turns, until

ROOT = "aikoryu.v1.default"


class Ask(ai.Message):
    text: str


class Gate(ai.Agent):
    """Lets its handlers wait until they are let through.

    Attributes:
        began, ended: what was asked, in the order in which it began to run and ended.
        through: what may go through.
    """

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.through: dict[str, asyncio.Event] = {}
        self.calls: list[ai.Call] = []

    def let(self, text: str) -> None:
        self.through.setdefault(text, asyncio.Event()).set()

    async def _wait(self, message: Ask, call: ai.Call) -> str:
        self.began.append(message.text)
        self.calls.append(call)
        try:
            await self.through.setdefault(message.text, asyncio.Event()).wait()
        finally:
            self.ended.append(message.text)
        return message.text

    @ai.handler
    async def wait(self, message: Ask, call: ai.Call) -> str:
        return await self._wait(message, call)

    @ai.handler(idempotent=True, deadline_s=0.05)
    async def hurry(self, message: Ask, call: ai.Call) -> str:
        return await self._wait(message, call)

    @ai.handler(priority="interactive")
    async def first(self, message: Ask, call: ai.Call) -> str:
        return await self._wait(message, call)


class Faulty(ai.Agent):
    @ai.handler
    async def fail(self, kind: str) -> object:
        if kind == "bug":
            raise ZeroDivisionError("by zero")
        if kind == "own":
            raise ai.Declined("no_stock", "nothing left: ask tomorrow")
        if kind == "busy":
            raise Busy("my own peer is busy", 0.001)
        if kind == "bus":
            raise ai.BadValue("x is negative")
        if kind == "cancelled":
            raise asyncio.CancelledError
        return object()

    @ai.handler(idempotent=True)
    async def cancels(self) -> None:
        raise asyncio.CancelledError

    @ai.handler(idempotent=True)
    async def idempotent(self, times: int) -> int:
        self.tried = getattr(self, "tried", 0) + 1
        if self.tried < times:
            raise Busy("not yet", 0.001)
        return self.tried


class Asker:
    """A plain client: publishes requests, keeps the replies."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.inbox: list[Message] = []
        self.connection = connection

    def ask(self, subject: str, **fields: Any) -> None:
        payload = msgpack.packb({"v": 1, "client": 7, "id": 1, "n": 1, **fields})
        self.connection.send(f"{ROOT}.{subject}", payload, f"{self.connection.inbox_prefix}.1")

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(message.data) for message in self.inbox]


def texts(*values: object) -> dict[str, Any]:
    """A column of MessagePack, by an encoder that is not ours."""
    blobs: list[bytes] = [msgpack.packb(value) for value in values]
    ends = [sum(map(len, blobs[:n])) for n in range(len(blobs) + 1)]
    return {"t": "bin", "o": b"".join(end.to_bytes(4, "little") for end in ends), "d": b"".join(blobs)}


def decoded(column: dict[str, Any]) -> list[Any]:
    ends = [int.from_bytes(column["o"][i : i + 4], "little") for i in range(0, len(column["o"]), 4)]
    return [msgpack.unpackb(column["d"][a:b]) for a, b in itertools.pairwise(ends)]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def bus(memory: MemoryBus, gate: Gate) -> AsyncIterator[ai.Bus]:
    app = App.in_memory(memory, settings=Settings(worker=WorkerSettings(name="p1")))
    app.add(gate, "gate", concurrency=2, mailbox=2)
    app.add(Faulty, "faulty")
    async with app as bus:
        yield bus


@pytest.fixture
async def asker(memory: MemoryBus, bus: ai.Bus) -> Asker:
    made = Asker(memory.connect())
    await made.connection.subscribe(f"{made.connection.inbox_prefix}.>", made.inbox.append)
    return made


def ask(bus: ai.Bus, text: str, handler: str = "wait", **options: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(bus.agents.get("gate", Gate)[handler](Ask(text), **options))


async def code_of(answer: asyncio.Future[Any]) -> str:
    with pytest.raises(BusError) as caught:
        await answer
    return caught.value.code


# --- what runs, and what waits ---------------------------------------------------------------------------------------


async def test_as_many_run_at_once_as_may_then_the_next(bus: ai.Bus, gate: Gate) -> None:
    answers = [ask(bus, text) for text in "abcd"]
    await until(lambda: len(gate.began) == 2)
    await turns()
    assert gate.began == ["a", "b"]
    gate.let("b")
    assert await answers[1] == "b"
    await until(lambda: gate.began == ["a", "b", "c"])
    for text in "acd":
        gate.let(text)
    assert await asyncio.gather(*answers) == ["a", "b", "c", "d"]


async def test_full_mailbox_answers_busy_and_takes_what_it_can(bus: ai.Bus, gate: Gate) -> None:
    answers = [ask(bus, str(number)) for number in range(6)]  # one frame: two run, two wait
    codes = [await code_of(answer) for answer in answers[4:]]
    assert codes == ["busy", "busy"]
    with pytest.raises(Busy) as caught:
        await answers[5]
    assert caught.value.retry_after_s > 0
    for number in range(4):
        gate.let(str(number))
    assert await asyncio.gather(*answers[:4]) == ["0", "1", "2", "3"]


async def test_frame_that_found_no_room_at_all_is_sent_again(bus: ai.Bus, gate: Gate) -> None:
    answers = [ask(bus, text) for text in "abcd"]
    await until(lambda: len(gate.began) == 2)
    late = ask(bus, "late")
    await turns()
    for text in ("a", "b", "c", "d", "late"):
        gate.let(text)
    assert await late == "late"
    await asyncio.gather(*answers)


async def test_higher_priority_comes_first_by_caller_or_by_handler(bus: ai.Bus, gate: Gate) -> None:
    running = [ask(bus, text) for text in "ab"]
    await until(lambda: len(gate.began) == 2)
    waiting = [ask(bus, "low", priority="background"), ask(bus, "high", "first")]
    await turns()
    gate.let("a")
    await until(lambda: len(gate.began) == 3)
    assert gate.began[2] == "high"
    for text in ("b", "low", "high"):
        gate.let(text)
    await asyncio.gather(*running, *waiting)


async def test_answers_of_one_tick_leave_as_one_reply(bus: ai.Bus, gate: Gate, asker: Asker) -> None:
    asker.ask("agent.faulty.fail", n=3, cols={"message": texts("bus", "bug", "own")})
    await until(lambda: asker.inbox)
    await turns()
    (reply,) = asker.replies
    assert [(error["row"], error["code"]) for error in reply["err"]] == [
        (0, "bad_value"),
        (1, "handler_failed"),
        (2, "no_stock"),
    ]
    assert reply["last"]


async def test_one_error_of_all_rows_is_one_entry(asker: Asker) -> None:
    asker.ask("agent.faulty.fail", n=3, cols={"message": texts(1, 2, 3)})
    await until(lambda: asker.inbox)
    ((error,),) = (reply["err"] for reply in asker.replies)
    assert (error["row"], error["n"], error["code"]) == (0, 3, "bad_message")


async def test_rows_that_end_together_are_answered_in_their_order(asker: Asker, gate: Gate) -> None:
    asker.ask("agent.gate.wait", n=2, cols={"message": texts({"text": "a"}, {"text": "b"})})
    await until(lambda: len(gate.began) == 2)
    gate.let("b")
    gate.let("a")
    await until(lambda: asker.inbox)
    (reply,) = asker.replies
    assert (reply["at"], decoded(reply["cols"]["reply"])) == ([[0, 2]], ["a", "b"])


async def test_rows_are_answered_as_they_end(bus: ai.Bus, gate: Gate, asker: Asker) -> None:
    asker.ask("agent.gate.wait", n=2, cols={"message": texts({"text": "a"}, {"text": "b"})})
    await until(lambda: len(gate.began) == 2)
    gate.let("b")
    await until(lambda: asker.inbox)
    gate.let("a")
    await until(lambda: len(asker.inbox) == 2)
    assert [(reply["at"], decoded(reply["cols"]["reply"]), reply.get("last", False)) for reply in asker.replies] == [
        ([[1, 1]], ["b"], False),
        ([[0, 1]], ["a"], True),
    ]
    assert {reply["by"]["engine"] for reply in asker.replies} == {"p1"}


# --- each refusal has its code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "fields", "code", "says"),
    [
        (
            "agent.gate.wait",
            {"cols": {"message": texts({"text": 1})}},
            "bad_message",
            "Expected `str`, got `int` - at `$.text`",
        ),
        ("agent.gate.wait", {"cols": {"message": texts({"test": ""})}}, "bad_message", "missing required field `text`"),
        ("agent.gate.nothing", {"cols": {"message": texts(1)}}, "no_handler", "it has first, hurry, wait"),
        ("agent.gate.wait", {"cols": {"other": texts(1)}}, "bad_column", "'message' is missing"),
        ("agent.gate.wait", {"cols": {"message": {"t": "u1", "d": b"1"}}}, "bad_column", "no strings"),
        ("agent.gate.wait", {"cols": {"message": texts({"text": ""}), "chain": texts(5)}}, "bad_message", "chain"),
        ("agent.gate.wait", {"cols": {}, "n": 0}, "bad_frame", "at least one row"),
    ],
)
async def test_what_is_wrong_with_a_call_is_said(
    asker: Asker, subject: str, fields: dict[str, Any], code: str, says: str
) -> None:
    asker.ask(subject, **fields)
    await until(lambda: asker.inbox)
    (reply,) = asker.replies
    assert reply["err"][0]["code"] == code
    assert says in reply["err"][0]["msg"]


@pytest.mark.parametrize(
    ("kind", "code", "says"),
    [
        ("bug", "handler_failed", "faulty.fail: ZeroDivisionError: by zero"),
        ("own", "no_stock", "ask tomorrow"),
        ("busy", "handler_failed", "Busy: my own peer is busy"),  # it has run: `busy` would have it asked again
        ("bus", "bad_value", "x is negative"),
        ("cancelled", "handler_failed", "cancelled"),
        ("unsendable", "bad_message", "object cannot be sent"),
    ],
)
async def test_exception_of_a_handler_becomes_its_callers(bus: ai.Bus, kind: str, code: str, says: str) -> None:
    with capture_logs() as logs, pytest.raises(BusError, match=says) as caught:
        await bus.agents.get("faulty", Faulty).fail(kind)
    assert caught.value.code == code
    assert len([entry for entry in logs if entry["log_level"] == "error"]) == (kind == "bug")
    assert "Traceback" not in str(caught.value)


async def test_busy_of_a_handler_that_may_run_twice_has_it_asked_again(bus: ai.Bus) -> None:
    assert await bus.agents.get("faulty", Faulty).idempotent(3) == 3


async def test_handler_that_cancels_itself_has_failed_though_it_may_run_twice(bus: ai.Bus) -> None:
    with pytest.raises(HandlerFailed, match="cancelled itself"):
        await bus.agents.get("faulty", Faulty).cancels()


async def test_call_of_an_unknown_agent_finds_nobody(bus: ai.Bus) -> None:
    assert await code_of(asyncio.ensure_future(bus.agents.get("nobody").ask())) == "no_worker"


# --- deadlines and cancelling ----------------------------------------------------------------------------------------


async def test_handler_ends_at_its_deadline_whatever_its_caller_says(bus: ai.Bus, gate: Gate) -> None:
    with pytest.raises(ai.Expired, match="while the handler ran"):
        await bus.agents.get("gate").hurry(Ask("a"), timeout_s=30)
    assert gate.ended == ["a"]
    assert gate.calls[0].cancelled


async def test_call_that_waits_past_its_deadline_never_runs(bus: ai.Bus, gate: Gate) -> None:
    running = [ask(bus, text) for text in "ab"]
    await until(lambda: len(gate.began) == 2)
    late = asyncio.ensure_future(bus.agents.get("gate").hurry(Ask("late"), timeout_s=30))
    await asyncio.sleep(0.06)
    for text in "ab":
        gate.let(text)
    with pytest.raises(ai.Expired, match="mailbox"):
        await late
    await asyncio.gather(*running)
    assert gate.began == ["a", "b"]


async def test_late_ones_leave_a_full_mailbox_to_others(bus: ai.Bus, gate: Gate) -> None:
    running = [ask(bus, text) for text in "ab"]
    await until(lambda: len(gate.began) == 2)
    hurry = bus.agents.get("gate").hurry
    late = [asyncio.ensure_future(hurry(Ask(text), timeout_s=30)) for text in ("late 1", "late 2")]
    await asyncio.sleep(0.06)
    after = [ask(bus, text) for text in "cd"]
    assert [await code_of(answer) for answer in late] == ["expired", "expired"]
    for text in "abcd":
        gate.let(text)
    assert await asyncio.gather(*running, *after) == ["a", "b", "c", "d"]


async def test_withdrawn_call_is_cancelled_where_it_runs_and_dropped_where_it_waits(bus: ai.Bus, gate: Gate) -> None:
    answers = [ask(bus, text) for text in "abc"]
    await until(lambda: len(gate.began) == 2)
    answers[2].cancel()
    answers[0].cancel()
    await until(lambda: gate.ended == ["a"])
    gate.let("b")
    assert await answers[1] == "b"
    await turns()
    assert gate.began == ["a", "b"]
    assert gate.ended == ["a", "b"]


async def test_withdrawn_calls_leave_their_room_to_others(bus: ai.Bus, gate: Gate) -> None:
    answers = [ask(bus, text) for text in "abcd"]
    await until(lambda: len(gate.began) == 2)
    for answer in answers[2:]:
        answer.cancel()
    await turns()
    after = [ask(bus, text) for text in "ef"]
    for text in "abef":
        gate.let(text)
    assert await asyncio.gather(*answers[:2], *after) == ["a", "b", "e", "f"]


async def test_call_withdrawn_before_its_task_begins_never_runs_and_is_not_answered(asker: Asker, gate: Gate) -> None:
    asker.ask("agent.gate.wait", cols={"message": texts({"text": "a"})})
    asker.connection.send(f"{ROOT}.ctl", msgpack.packb({"v": 1, "client": 7, "id": 1}))  # in the same turn of the loop
    await turns()
    gate.let("a")
    await turns()
    assert (gate.began, asker.inbox) == ([], [])


async def test_withdrawn_call_that_runs_is_not_answered(asker: Asker, gate: Gate) -> None:
    asker.ask("agent.gate.wait", cols={"message": texts({"text": "a"})})
    await until(lambda: gate.began)
    asker.connection.send(f"{ROOT}.ctl", msgpack.packb({"v": 1, "client": 7, "id": 1}))
    await until(lambda: gate.ended)
    await turns()
    assert asker.inbox == []


async def test_caller_that_is_gone_has_its_calls_cancelled(
    memory: MemoryBus, bus: ai.Bus, gate: Gate, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "PROBE_S", 0.001)
    asker.ask("agent.gate.wait", cols={"message": texts({"text": "a"})})
    await until(lambda: gate.began)
    for subscription in list(asker.connection.subscriptions):
        await subscription.unsubscribe()
    async with asyncio.timeout(5):
        while not gate.ended:  # noqa: ASYNC110 - a timer of the host's is waited for
            await asyncio.sleep(0.001)
    assert gate.ended == ["a"]


# --- people, and other languages -------------------------------------------------------------------------------------


async def test_text_is_answered_in_text(asker: Asker, gate: Gate) -> None:
    gate.let("é")
    column = {"t": "utf8", "o": bytes([0, 0, 0, 0, 13, 0, 0, 0]), "d": '{"text":"é"}'.encode()}
    asker.ask("agent.gate.wait", cols={"message": column})
    await until(lambda: asker.inbox)
    assert asker.replies[0]["cols"]["reply"]["t"] == "utf8"
    assert json.loads(asker.replies[0]["cols"]["reply"]["d"]) == "é"


async def test_person_may_type_a_call(asker: Asker, gate: Gate) -> None:
    gate.let("hi")
    typed = json.dumps({"v": 1, "n": 1, "cols": {"message": [json.dumps({"text": "hi"})]}}).encode()
    asker.connection.send(f"{ROOT}.agent.gate.wait", typed, f"{asker.connection.inbox_prefix}.1")
    await until(lambda: asker.inbox)
    assert json.loads(asker.inbox[0].data)["cols"]["reply"]["d"] == ['"hi"']


# --- over a server ---------------------------------------------------------------------------------------------------


async def test_each_refusal_has_its_code_over_a_server(gate: Gate) -> None:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(nats=NatsSettings(url=server.url))
        app = App(settings=settings)
        app.add(gate, "gate", concurrency=1, mailbox=0)
        app.add(Faulty, "faulty")
        async with app, ai.connect(settings=settings) as bus:
            running = ask(bus, "a")
            async with asyncio.timeout(5):
                while not gate.began:  # noqa: ASYNC110 - the server is waited for
                    await asyncio.sleep(0.001)
            peer, faulty = bus.agents.get("gate"), bus.agents.get("faulty")
            codes = [
                await code_of(asyncio.ensure_future(asked))
                for asked in (
                    peer.wait(Ask("b"), timeout_s=0.5),
                    peer.nothing(),
                    faulty.fail(5),
                    faulty.fail("bug"),
                    faulty.fail("own"),
                    bus.agents.get("nobody").ask(),
                )
            ]
            assert codes == ["busy", "no_handler", "bad_message", "handler_failed", "no_stock", "no_worker"]
            gate.let("a")
            assert await running == "a"
            assert await code_of(asyncio.ensure_future(peer.hurry(Ask("late")))) == "expired"
            assert gate.ended == ["a", "late"]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_stop_answers_all_that_was_accepted(memory: MemoryBus, gate: Gate) -> None:
    app, other = App.in_memory(memory, settings=Settings()), App.in_memory(memory)
    app.add(gate, "gate", concurrency=1)
    async with other as bus:
        await app.__aenter__()
        answers = [ask(bus, text) for text in "abc"]
        await until(lambda: gate.began == ["a"])
        stopping = asyncio.create_task(app.__aexit__())
        await turns()
        assert await code_of(ask(bus, "late")) == "no_worker"
        for text in "abc":
            gate.let(text)
        assert await asyncio.gather(*answers) == ["a", "b", "c"]
        await stopping


async def test_stop_that_has_no_more_time_ends_what_runs(memory: MemoryBus, gate: Gate) -> None:
    settings = Settings(worker=WorkerSettings(drain_s=0.0))
    app, other = App.in_memory(memory, settings=settings), App.in_memory(memory)
    app.add(gate, "gate", concurrency=1)
    async with other as bus:
        await app.__aenter__()
        answers = [ask(bus, text) for text in "ab"]
        await until(lambda: gate.began == ["a"])
        with capture_logs():
            await app.__aexit__()
        assert [await code_of(answer) for answer in answers] == ["handler_failed", "busy"]
        assert gate.ended == ["a"]

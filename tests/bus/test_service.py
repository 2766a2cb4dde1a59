"""The service side over the in-memory bus, asked by a client that knows nothing of the SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import nats
import numpy as np
import pytest
from structlog.testing import capture_logs

from aikoryu.bus import copies
from aikoryu.bus.columns import Column, pack, unpack
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.errors import BadColumn, Busy
from aikoryu.bus.frames import By, RowError
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message, Transport

SUBJECTS = Subjects()
ECHO = SUBJECTS.operation("echo")
MAX_PAYLOAD = 8192

StartServer = Callable[..., Awaitable[Any]]
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]
X: dict[str, Any] = {"t": "f4", "s": [2], "d": np.array([1, 2], "<f4").tobytes()}


def frame(**fields: Any) -> bytes:
    """A request of two rows, by an encoder that is not ours."""
    payload: bytes = msgpack.packb({"v": 1, "client": 7, "id": 1, "n": 2, "cols": {"x": X}, **fields})
    return payload


class Operation:
    """Accepts frames and answers none until it is told to.

    Attributes:
        held: the frames accepted, in order.
        refuse: raised instead of accepting, if set.
        cancelled: frames and rows whose caller withdrew.
    """

    def __init__(self, service: Service) -> None:
        self.held: list[Held] = []
        self.refuse: Exception | None = None
        self.cancelled: list[tuple[Held, list[int]]] = []
        self._service = service
        service.on_cancel = lambda held, rows: self.cancelled.append((held, rows))

    def accept(self, held: Held) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.held.append(held)

    def echo(self, held: Held) -> None:
        self._service.answer(held, [(0, held.request.n)], held.request.cols, [], By("cpu", 1, 2, 3))


class Asker:
    """A plain client: publishes requests, keeps the messages it gets."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.inbox: list[Message] = []
        self.connection = connection

    def ask(self, payload: bytes, reply: str | None = None, subject: str = ECHO, **headers: str) -> None:
        reply = f"{self.connection.inbox_prefix}.1" if reply is None else reply
        self.connection.send(subject, payload, reply, headers or None)

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(message.data) for message in self.inbox]


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus(max_payload=MAX_PAYLOAD)


@pytest.fixture
def connection(bus: MemoryBus) -> MemoryConnection:
    """The service's connection."""
    return bus.connect()


@pytest.fixture
async def service(connection: MemoryConnection) -> Service:
    made = Service(connection, SUBJECTS, "w1", reply_prefixes=("_INBOX",))
    await made.start()
    return made


@pytest.fixture
async def operation(service: Service) -> Operation:
    made = Operation(service)
    await service.serve("echo", made.accept)
    return made


@pytest.fixture
async def asker(bus: MemoryBus) -> Asker:
    made = Asker(bus.connect())
    await made.connection.subscribe(f"{made.connection.inbox_prefix}.>", made.inbox.append)
    return made


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def error_of(reply: dict[str, Any]) -> tuple[int, str, int]:
    (error,) = reply["err"]
    return error["row"], error["code"], error.get("n", 1)


# --- accepting and answering -----------------------------------------------------------------------------------------


async def test_frame_is_accepted_whole_and_answered_once(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(frame(ttl_ms=500))
    await turns()
    (held,) = operation.held
    assert (held.key, held.open, held.json, held.endpoint.name) == ((7, 1), 2, False, "echo")
    assert held.deadline - held.arrived == pytest.approx(0.5)
    assert list(service.held.values()) == [held]
    assert asker.inbox == []
    operation.echo(held)
    await turns()
    (reply,) = asker.replies
    assert (reply["id"], reply["at"], reply["last"]) == (1, [[0, 2]], True)
    assert reply["cols"]["x"] == X
    assert reply["by"] == {"engine": "cpu", "batch": 1, "queue_us": 2, "run_us": 3}
    assert service.held == {}


async def test_frame_without_a_ttl_has_no_deadline(operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    await turns()
    assert operation.held[0].deadline == float("inf")


async def test_rows_answered_in_parts_close_the_frame_with_the_last(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame(n=4, cols={}))
    await turns()
    (held,) = operation.held
    service.answer(held, [(2, 1)], {"y": pack(["c"])}, [])
    service.answer(held, [], {}, [RowError(0, "bad_value", "no", 2)])
    service.drop(held, 0)
    await turns()
    assert [reply.get("last", False) for reply in asker.replies] == [False, False]
    assert len(service.held) == 1
    service.answer(held, [(3, 1)], {"y": pack(["d"])}, [])
    await turns()
    assert asker.replies[-1]["last"] is True
    assert error_of(asker.replies[1]) == (0, "bad_value", 2)
    assert service.held == {}


async def test_dropped_rows_close_the_frame_without_a_word(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    await turns()
    service.drop(operation.held[0], 2)
    await turns()
    assert service.held == {}
    assert asker.inbox == []


async def test_answer_is_copied_before_answer_returns(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    await turns()
    slab = bytearray(b"\1\2")
    service.answer(operation.held[0], [(0, 2)], {"y": Column("u1", memoryview(slab), (2,))}, [])
    slab[:] = b"\xff\xff"
    await turns()
    assert asker.replies[0]["cols"]["y"]["d"] == b"\1\2"


async def test_copy_of_a_frame_is_dropped_while_it_is_held_and_after(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    asker.ask(frame())
    asker.ask(frame(id=2))
    asker.ask(frame(client=8))
    await turns()
    assert [held.key for held in operation.held] == [(7, 1), (7, 2), (8, 1)]
    for held in operation.held:
        operation.echo(held)
    asker.ask(frame())
    await turns()
    assert len(asker.inbox) == 3
    assert len(operation.held) == 3
    assert service.rejected == {"copy": 2}
    assert service.held == {}


async def test_frame_sent_again_is_run_again_once_it_was_answered(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    asker.ask(frame(again=1))  # its rows are under way
    await turns()
    (held,) = operation.held
    operation.echo(held)
    await turns()
    assert [reply["again"] for reply in asker.replies] == [1]
    for again in (2, 2, 1, 0):  # the answer was lost: sent again, a copy of that, and two that were delayed
        asker.ask(frame(again=again))
    await turns()
    assert len(operation.held) == 2
    operation.echo(operation.held[1])
    await turns()
    assert [reply["again"] for reply in asker.replies] == [1, 2]
    assert service.held == {}


async def test_frame_sent_again_while_it_is_partly_answered_runs_whole(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    await turns()
    (first,) = operation.held
    service.answer(first, [(0, 1)], {}, [])
    for again in (0, 1):
        asker.ask(frame(again=again))
    await turns()
    assert len(operation.held) == 2
    operation.echo(operation.held[1])
    service.answer(first, [(1, 1)], {}, [])
    await turns()
    assert [reply["last"] for reply in asker.replies if "last" in reply] == [True, True]
    assert service.held == {}


async def test_copies_are_known_for_a_bounded_number_of_frames(
    service: Service, operation: Operation, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST_FRAMES", 10)
    for number in range(35):
        asker.ask(frame(id=number))
        asker.ask(frame(id=max(0, number - 9)))
        await turns(3)
        operation.echo(operation.held[-1])
    assert len(operation.held) == 35
    asker.ask(frame(id=2))  # nobody remembers
    await turns()
    assert len(operation.held) == 36


# --- questions -------------------------------------------------------------------------------------------------------


def question(*ids: int, **fields: Any) -> bytes:
    payload: bytes = msgpack.packb({"client": 7, "ids": ids, **fields})
    return payload


async def test_question_is_answered_with_the_frames_held_after_the_answers_given(
    service: Service, operation: Operation, asker: Asker
) -> None:
    for number in range(5):
        asker.ask(frame(id=number))
    asker.ask(frame(id=5, client=8))
    await turns()
    operation.echo(operation.held[1])
    asker.ask(question(*range(9)), subject=SUBJECTS.control)
    await turns()
    answer, holding = asker.replies
    assert answer["id"] == 1
    assert holding == {"ids": [0, 2, 3, 4]}


async def test_question_about_nothing_held_is_not_answered(operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    await turns()
    asker.ask(question(3, 4), subject=SUBJECTS.control)
    asker.ask(question(1, client=9), subject=SUBJECTS.control)
    await turns()
    assert asker.inbox == []


async def test_frame_of_a_caller_that_was_gone_is_not_held(operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    asker.ask(frame(id=2))
    await turns()
    for withdrawn in ({"client": 7, "id": 1}, {"client": 7, "id": 2, "rows": [1]}):
        asker.ask(msgpack.packb(withdrawn), reply="", subject=SUBJECTS.control)
    asker.ask(question(1, 2), subject=SUBJECTS.control)
    await turns()
    assert asker.replies == [{"ids": [2]}]  # somebody waits for its other row


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "bad_frame"),
        (b"garbage", "bad_frame"),
        (question(-1), "bad_frame"),
        (question(*range(513)), "bad_frame"),
        (question(1, v=2), "bad_version"),
    ],
)
async def test_bad_question_is_counted(
    service: Service, operation: Operation, asker: Asker, payload: bytes, code: str
) -> None:
    with capture_logs() as logs:
        asker.ask(payload, subject=SUBJECTS.control)
        await turns()
    assert service.rejected == {code: 1}
    assert asker.inbox == []
    assert logs == []


async def test_question_that_wants_its_answer_elsewhere_is_counted(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    asker.ask(question(1), reply="somewhere.else", subject=SUBJECTS.control)
    await turns()
    assert service.rejected == {"bad_reply": 1}


async def test_nameless_clients_are_told_apart(operation: Operation, asker: Asker) -> None:
    for _ in range(3):
        asker.ask(msgpack.packb({"v": 1, "n": 1, "cols": {}}))
    await turns()
    assert len({held.key for held in operation.held}) == 3


async def test_trap_01_frames_of_one_read_are_all_accepted_before_any_is_answered(
    operation: Operation, asker: Asker
) -> None:
    # A callback that awaited its answer would see the second frame only after the first had been answered.
    for number in range(50):
        asker.ask(frame(id=number))
    await turns(3)
    assert len(operation.held) == 50
    assert asker.inbox == []


async def test_trap_02_headers_of_a_request_are_not_in_its_reply(operation: Operation, asker: Asker) -> None:
    asker.ask(frame(), Large="x" * 4096, Trace="7")
    asker.ask(b"garbage", Large="x" * 4096)
    await turns()
    operation.echo(operation.held[0])
    await turns()
    errors = {"Nats-Service-Error", "Nats-Service-Error-Code"}
    assert [set(message.headers or ()) for message in asker.inbox] == [errors, set()]


# --- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "bad_frame"),
        (b"garbage", "bad_frame"),
        (msgpack.packb([1, 2]), "bad_frame"),
        (msgpack.packb({"v": 1, "rows": 3}), "bad_frame"),
        (frame(v=2), "bad_version"),
        (msgpack.packb({"v": 9, "id": "uuid"}), "bad_version"),
        (frame(n=0), "bad_frame"),
        (frame(n=2**40), "bad_frame"),
        (b"\x83\xa1v\x01\xa1n\x01\xa1p" + b"\x91" * 5000 + b"\xc0", "bad_frame"),
    ],
)
async def test_bad_frame_is_answered_with_its_code_and_counted(
    service: Service, operation: Operation, asker: Asker, payload: bytes, code: str
) -> None:
    asker.ask(payload)
    asker.ask(frame(id=2))
    await turns()
    assert len(operation.held) == 1
    (reply,) = asker.replies
    assert error_of(reply) == (0, code, 0)  # no count: of every row the frame may have
    assert reply["last"] is True
    assert service.rejected == {code: 1}
    assert (service.endpoints["echo"].requests, service.endpoints["echo"].errors) == (2, 1)
    assert service.endpoints["echo"].last_error == reply["err"][0]["msg"]


@pytest.mark.parametrize(
    "payload", [b"{", b'{"v":1}', b'{"v":2,"n":1}', b'{"v":1,"n":0}', b'{"v":1,"n":1,"cols":{"x":5}}']
)
async def test_bad_json_is_answered_in_json(operation: Operation, asker: Asker, payload: bytes) -> None:
    asker.ask(payload)
    await turns()
    reply = json.loads(asker.inbox[0].data)
    assert reply["err"][0]["code"] in ("bad_frame", "bad_version", "bad_column")
    assert operation.held == []


@pytest.mark.parametrize("reply", ["", "steal.this", "_INBOXES.a", "INBOX.a", ECHO, "$SYS.x", "_INBOX"])
async def test_frame_with_a_reply_elsewhere_is_counted_and_answered_nowhere(
    service: Service, operation: Operation, asker: Asker, bus: MemoryBus, reply: str
) -> None:
    seen: list[Message] = []
    everything = bus.connect()
    await everything.subscribe(">", seen.append)
    for payload in (frame(), b"garbage"):
        asker.ask(payload, reply=reply)
    with capture_logs() as logs:
        await turns()
    assert [message.subject for message in seen] == [ECHO, ECHO]
    assert operation.held == []
    assert service.rejected == {"bad_reply": 2}
    assert {entry["event"] for entry in logs} == {"frame dropped"}


async def test_inboxes_of_every_allowed_prefix_are_answered(bus: MemoryBus) -> None:
    service = Service(bus.connect(), SUBJECTS, "w1", reply_prefixes=("_INBOX", "mine.inbox"))
    operation = Operation(service)
    await service.serve("echo", operation.accept)
    asker = Asker(bus.connect())
    for id_, reply in enumerate(["_INBOX.a.b", "_INBOX_bob.c", "mine.inbox.d", "mine.inboxes.e", "yours.inbox.f"]):
        asker.ask(frame(id=id_), reply=reply)
    await turns()
    assert [held.reply for held in operation.held] == ["_INBOX.a.b", "_INBOX_bob.c", "mine.inbox.d"]


async def test_refused_frame_gets_its_error_for_all_rows(service: Service, operation: Operation, asker: Asker) -> None:
    operation.refuse = BadColumn("column 'x' is missing: send x: f4")
    asker.ask(frame())
    await turns()
    operation.refuse = Busy("the queue is full", retry_after_s=0.2)
    asker.ask(frame(id=2))
    await turns()
    first, second = asker.replies
    assert error_of(first) == (0, "bad_column", 2)
    assert error_of(second) == (0, "busy", 2)
    assert second["err"][0]["retry_ms"] == 200
    assert service.held == {}
    assert service.rejected == {"bad_column": 1, "busy": 1}


async def test_trap_04_and_13_a_defect_is_answered_and_not_shown(
    service: Service, operation: Operation, asker: Asker
) -> None:
    operation.refuse = ZeroDivisionError("secret of the worker")
    with capture_logs() as logs:
        asker.ask(frame())
        await turns()
    (reply,) = asker.replies
    assert error_of(reply) == (0, "operation_failed", 2)
    assert not any(word in str(reply) for word in ("secret", "ZeroDivision", "Traceback"))
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert service.held == {}


# --- JSON ------------------------------------------------------------------------------------------------------------


async def test_json_frame_gets_a_json_reply(operation: Operation, asker: Asker) -> None:
    asker.ask(b'{"v": 1, "n": 2, "cols": {"x": [[0.5, 1], [2, 3]], "s": ["a", "b"]}}')
    await turns()
    operation.echo(operation.held[0])
    await turns()
    reply = json.loads(asker.inbox[0].data)
    assert reply["cols"] == {"x": {"t": "f4", "d": [[0.5, 1.0], [2.0, 3.0]]}, "s": {"t": "utf8", "d": ["a", "b"]}}
    assert reply["last"] is True


# --- answers larger than a message -----------------------------------------------------------------------------------


def collect(replies: list[dict[str, Any]]) -> tuple[dict[int, Any], dict[int, str]]:
    rows: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for reply in replies:
        total = sum(count for _, count in reply["at"]) if "at" in reply else 0
        numbers = [row for first, count in reply.get("at", []) for row in range(first, first + count)]
        for column in reply.get("cols", {}).values():
            made = Column(column["t"], memoryview(column["d"]), tuple(column["s"]) if "s" in column else None)
            made.o = memoryview(column["o"]) if "o" in column else None
            rows.update(zip(numbers, unpack(made, total), strict=True))
        for error in reply.get("err", []):
            errors.update(dict.fromkeys(range(error["row"], error["row"] + error.get("n", 1)), error["code"]))
    return rows, errors


async def test_answer_larger_than_a_message_leaves_in_parts(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame(n=100, cols={}))
    await turns()
    values = np.arange(90 * 100, dtype=np.float32).reshape(90, 100)
    errors = [RowError(row, "bad_value", "no") for row in range(90, 100)]
    service.answer(operation.held[0], [(0, 90)], {"y": pack(values)}, errors)
    await turns()
    assert len(asker.inbox) > 4
    assert max(len(message.data) for message in asker.inbox) <= MAX_PAYLOAD
    assert [reply.get("last", False) for reply in asker.replies] == [False] * (len(asker.inbox) - 1) + [True]
    rows, failed = collect(asker.replies)
    np.testing.assert_array_equal(np.stack([rows[row] for row in range(90)]), values)
    assert failed == dict.fromkeys(range(90, 100), "bad_value")


async def test_only_the_row_that_fits_no_message_is_too_large(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame(n=4, cols={}))
    await turns()
    texts = ["a", "x" * MAX_PAYLOAD, "b", "y" * 5000]
    service.answer(operation.held[0], [(0, 2), (2, 2)], {"y": pack(texts)}, [])
    await turns()
    rows, failed = collect(asker.replies)
    assert rows == {0: "a", 2: "b", 3: "y" * 5000}
    assert failed == {1: "too_large"}
    assert service.endpoints["echo"].errors == 1
    assert str(MAX_PAYLOAD) in service.endpoints["echo"].last_error
    assert asker.replies[-1]["last"] is True


async def test_thousands_of_errors_leave_in_parts(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(frame(n=1000, cols={}))
    await turns()
    service.answer(operation.held[0], [], {}, [RowError(row, "bad_value", f"row {row}") for row in range(1000)])
    await turns()
    assert collect(asker.replies) == ({}, dict.fromkeys(range(1000), "bad_value"))
    assert max(len(message.data) for message in asker.inbox) <= MAX_PAYLOAD


async def test_json_too_large_stays_json(operation: Operation, asker: Asker, service: Service) -> None:
    asker.ask(b'{"v": 1, "n": 2, "cols": {"s": ["a", "b"]}}')
    await turns()
    service.answer(operation.held[0], [(0, 2)], {"y": pack(["x" * MAX_PAYLOAD, "b"])}, [])
    await turns()
    first, second = (json.loads(message.data) for message in asker.inbox)
    assert first["err"][0]["code"] == "too_large"
    assert second["cols"]["y"]["d"] == ["b"]


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_cancel_names_the_rows_of_a_frame_that_is_held(operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    asker.ask(frame(id=2))
    await turns()
    for cancel in ({"client": 7, "id": 2, "rows": [1]}, {"client": 7, "id": 1}, {"client": 7, "id": 99}):
        asker.ask(msgpack.packb(cancel), reply="", subject=SUBJECTS.control)
    await turns()
    first, second = operation.held
    assert operation.cancelled == [(second, [1]), (first, [])]


@pytest.mark.parametrize(
    "payload", [b"", b"garbage", b"\x91" * 5000, msgpack.packb({"client": 7}), b"\x81\xa6client\xa1\xff"]
)
async def test_garbage_for_a_cancel_is_counted(
    service: Service, operation: Operation, asker: Asker, payload: bytes
) -> None:
    with capture_logs() as logs:
        asker.ask(payload, reply="", subject=SUBJECTS.control)
        await turns()
    assert service.rejected == {"bad_frame": 1}
    assert logs == []


async def test_trap_09_word_that_nobody_listens_withdraws_the_callers_frames(
    service: Service, operation: Operation, bus: MemoryBus
) -> None:
    gone, here = Asker(bus.connect()), Asker(bus.connect())
    inbox = await gone.connection.subscribe(f"{gone.connection.inbox_prefix}.>", gone.inbox.append)
    await here.connection.subscribe(f"{here.connection.inbox_prefix}.>", here.inbox.append)
    gone.ask(frame())
    gone.ask(frame(id=2))
    here.ask(frame(client=8))
    await turns()
    first, second, third = operation.held
    service.probe(first)
    service.probe(third)
    await turns()
    assert operation.cancelled == []
    assert [len(asker.inbox) for asker in (gone, here)] == [1, 1]
    await inbox.unsubscribe()
    service.probe(first)
    service.probe(third)
    await turns()
    assert operation.cancelled == [(first, []), (second, [])]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_trap_05_drain_takes_nothing_new_and_waits_for_what_was_accepted(
    service: Service, operation: Operation, asker: Asker
) -> None:
    asker.ask(frame())
    await turns()
    drain = asyncio.create_task(service.drain(timeout_s=5))
    asker.ask(frame(id=2))  # on its way when the drain begins
    await turns()
    asker.ask(frame(id=3))
    await turns()
    assert not drain.done()
    assert [held.key for held in operation.held] == [(7, 1), (7, 2)]
    for held in operation.held:
        operation.echo(held)
    assert await drain is True
    assert len(asker.inbox) == 3  # two answers, and word that nobody serves the third


async def test_trap_05_drain_returns_when_the_last_reply_has_left(
    service: Service, operation: Operation, asker: Asker
) -> None:
    large = pack([b"x" * (MAX_PAYLOAD - 200)] * 2)
    for number in range(80):
        asker.ask(frame(id=number))
    await turns()
    drain = asyncio.create_task(service.drain(timeout_s=5))
    await turns()
    for held in operation.held:  # more than leaves in one burst
        service.answer(held, [(0, 2)], {"y": large}, [])
    assert await drain is True
    assert len(asker.inbox) == 160


async def test_drain_ends_at_its_timeout(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    await turns()
    with capture_logs() as logs:
        assert await service.drain(timeout_s=0.01) is False
    assert [entry["frames"] for entry in logs] == [1]


async def test_drain_over_a_lost_connection_returns(
    service: Service, operation: Operation, bus: MemoryBus, connection: MemoryConnection
) -> None:
    bus.drop_connection(connection)
    assert await service.drain(timeout_s=1) is False


async def test_trap_13_requests_queued_at_stop_are_all_answered(
    start_server: StartServer, eventually: Eventually
) -> None:
    server = await start_server()
    connection = await NatsConnection.open(ConnectOptions(server.url))
    service = Service(connection, SUBJECTS, "w1", reply_prefixes=("_INBOX",))
    operation = Operation(service)
    await service.start()
    await service.serve("echo", operation.accept)
    await connection.flush()
    client = await nats.connect(server.url)
    asked = [asyncio.ensure_future(client.request(ECHO, frame(id=n), timeout=10)) for n in range(50)]
    await eventually(lambda: bool(operation.held))
    await client.flush()  # the others have reached the server; how far they came, nobody knows
    drain = asyncio.create_task(service.drain(timeout_s=10))
    answered = 0
    async with asyncio.timeout(10):
        while not drain.done():
            for held in operation.held[answered:]:
                operation.echo(held)
                answered += 1
            await asyncio.sleep(0)
    assert await drain is True
    replies = [msgpack.unpackb((await reply).data) for reply in asked]
    assert all(reply["cols"]["x"] == X for reply in replies)
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request(ECHO, frame(), timeout=10)
    await client.close()
    await connection.close()


async def test_statistics_count_frames_and_time(service: Service, operation: Operation, asker: Asker) -> None:
    for number in range(3):
        asker.ask(frame(id=number))
    await turns()
    operation.echo(operation.held[0])
    service.fail(operation.held[1], BadColumn("no"))
    endpoint = service.endpoints["echo"]
    assert (endpoint.requests, endpoint.errors, endpoint.answered, endpoint.last_error) == (3, 1, 2, "no")
    assert 0 < endpoint.processing_s < 10


async def test_operations_of_one_system_share_a_queue_group(bus: MemoryBus) -> None:
    asker = Asker(bus.connect())
    operations: list[Operation] = []
    for number in range(2):
        transport: Transport = bus.connect()
        service = Service(transport, SUBJECTS, f"w{number}", reply_prefixes=("_INBOX",))
        operations.append(Operation(service))
        await service.serve("matrix.matmul", operations[-1].accept)
        await service.serve("matrix.add", operations[-1].accept)
    for number in range(10):
        asker.ask(frame(id=number), subject=SUBJECTS.operation("matrix.add"))
    await turns()
    assert [len(operation.held) for operation in operations] == [5, 5]


async def test_frame_sent_again_after_rows_were_let_go_runs_again(
    service: Service, operation: Operation, asker: Asker
) -> None:
    request = frame(client=3, id=1)
    asker.ask(request)
    await turns()
    asker.ask(msgpack.packb({"client": 3, "id": 1, "v": 1}), reply="", subject=SUBJECTS.control)
    asker.ask(frame(client=3, id=1, again=1))
    await turns()
    first, second = operation.held
    assert service.held[3, 1] is second
    operation.echo(second)
    operation.echo(first)
    await turns()
    assert [reply["last"] for reply in asker.replies] == [True, True]
    assert service.held == {}


async def test_clients_of_one_number_are_told_apart_by_their_inbox(
    service: Service, operation: Operation, asker: Asker
) -> None:
    for inbox in ("a", "b"):
        asker.ask(frame(client=3, id=1), f"{asker.connection.inbox_prefix}.{inbox}")
    await turns()
    assert len(operation.held) == 2
    for held in operation.held:
        operation.echo(held)
    await turns()
    assert {message.subject.rpartition(".")[2] for message in asker.inbox} == {"a", "b"}


async def test_drain_that_runs_out_of_time_answers_busy(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(frame())
    await turns()
    assert not await service.drain(0.0)
    await turns()
    assert [error_of(reply)[1] for reply in asker.replies] == ["busy"]
    assert service.held == {}


async def test_long_names_and_long_messages_are_bounded(service: Service, operation: Operation, asker: Asker) -> None:
    asker.ask(msgpack.packb({"v": 1, "n": 1, "cols": {"x" * 7_000: {"t": "f4", "d": b"1234"}}}))
    await turns()
    assert error_of(asker.replies[0])[1] == "bad_frame"
    assert len(asker.inbox[0].data) < 1000
    assert len(service.endpoints["echo"].last_error) < 1000

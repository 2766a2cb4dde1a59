"""What an agent calls, against a worker that keeps what it was asked."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

import aikoryu
from aikoryu.agents import Bus, Matrix, Models, connect, session
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BadColumn, Closed, ConnectionFailed, Disconnected, NoWorker
from aikoryu.bus.frames import Reply, Request, decode_request, encode
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.pending import Answer
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.transport import Message, Transport
from aikoryu.config import BusSettings, ConfigError, NatsSettings, ServerSettings, Settings

PAIRS = {"matmul": np.matmul, "add": np.add, "subtract": np.subtract, "multiply": np.multiply}
MODEL = "models.embed.all-MiniLM-L6-v2"


class Worker:
    """Answers the systems' operations with NumPy, one row at a time.

    Attributes:
        requests: operation and frame, in the order in which they came.
        silent: keep requests unanswered.
    """

    def __init__(self, transport: Transport, root: str = "aikoryu.v1.default") -> None:
        self.requests: list[tuple[str, Request]] = []
        self.silent = False
        self._transport = transport
        self._root = root

    async def serve(self) -> None:
        for name in (*(f"matrix.{pair}" for pair in PAIRS), MODEL, "models.embed.other.v2", "echo"):
            await self._transport.subscribe(f"{self._root}.{name}", self._on_request, queue="test")

    def _on_request(self, message: Message) -> None:
        name = message.subject.removeprefix(f"{self._root}.")
        request = decode_request(message.data)
        self.requests.append((name, request))
        if not self.silent:
            columns = {key: pack(values) for key, values in self._answer(name, request).items()}
            reply = Reply(id=request.id, at=[(0, request.n)], cols=columns, last=True)
            self._transport.send(message.reply, encode(reply))
            self._transport.push()

    def _answer(self, name: str, request: Request) -> dict[str, Any]:
        values: dict[str, Any] = {key: unpack(column, request.n) for key, column in request.cols.items()}
        if name == "echo":
            return values
        if name.startswith("models."):
            return {"embedding": np.array([[len(text), 1] for text in values["text"]], np.float32)}
        return {"c": PAIRS[name.removeprefix("matrix.")](values["a"], values["b"])}


@pytest.fixture
def memory() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def connection(memory: MemoryBus) -> MemoryConnection:
    """The agent's connection."""
    return memory.connect()


@pytest.fixture
async def worker(memory: MemoryBus) -> Worker:
    made = Worker(memory.connect())
    await made.serve()
    return made


@pytest.fixture
async def bus(connection: MemoryConnection, worker: Worker) -> AsyncIterator[Bus]:
    async with session(connection, Settings()) as made:
        yield made


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """A real server with a worker on it; its address."""
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        transport = await aikoryu.agents.open_transport(Settings(nats=NatsSettings(url=server.url)))
        await Worker(transport).serve()
        await transport.flush()
        yield server.url
        await transport.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- matrix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
async def test_matrix_operation_is_numpys(bus: Bus, worker: Worker, name: str) -> None:
    a, b = np.arange(4.0).reshape(2, 2), np.ones((2, 2))
    found = await getattr(bus.matrix, name)(a, b)
    np.testing.assert_array_equal(found, PAIRS[name](a, b))
    ((asked, request),) = worker.requests
    assert asked == f"matrix.{name}"
    assert sorted(request.cols) == ["a", "b"]
    assert request.n == 1


async def test_matrix_takes_what_makes_an_array(bus: Bus) -> None:
    assert (await bus.matrix.add([1, 2], (3, 4))).tolist() == [4, 6]
    assert await bus.matrix.multiply(3.0, 4.0) == 12
    with pytest.raises(BadColumn, match="'b'"):
        await bus.matrix.add([1, 2], [[1], [2, 3]])


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        ([[1]], [[2]], "f4"),
        ([[1]], [[2.5]], "f4"),
        ([[True]], 2, "f4"),
        ([[1]], [[2j]], "c8"),
        ([[1]], np.ones((1, 1), "f2"), "f2"),
        (np.ones((1, 1), "i4"), [[2]], "i4"),
        (np.float64(1), 2, "f8"),
        (np.ones((1, 1), "f8"), np.ones((1, 1), "f4"), None),
    ],
)
async def test_matrix_numbers_and_lists_take_the_dtype_of_the_array_beside_them(
    bus: Bus, worker: Worker, a: Any, b: Any, dtype: str | None
) -> None:
    found = await bus.matrix.multiply(a, b)
    np.testing.assert_array_equal(found, np.multiply(a, b))
    ((_, request),) = worker.requests
    assert [column.t for column in request.cols.values()] == ([dtype, dtype] if dtype else ["f8", "f4"])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1 << 24 | 1], [1]),
        ([1.5], np.ones(1, "i8")),
        ([1 << 40], np.ones(1, "i4")),
        ([1j], np.ones(1, "f4")),
        (["x"], np.ones(1, "f4")),
        ([1 << 70], 1),
    ],
)
async def test_matrix_refuses_numbers_that_would_become_others(bus: Bus, worker: Worker, a: Any, b: Any) -> None:
    with pytest.raises(BadColumn, match="'a'"):
        await bus.matrix.add(a, b)
    assert worker.requests == []


async def test_matrix_answer_keeps_dtype_and_can_be_written(bus: Bus) -> None:
    found = await bus.matrix.matmul(np.ones((2, 3), np.float16), np.ones((3, 2), np.float16))
    assert found.dtype == np.float16
    found[0, 0] = 7


async def test_calls_of_many_agents_share_a_frame(bus: Bus, worker: Worker) -> None:
    found = await asyncio.gather(*(bus.matrix.add(np.full(3, n), np.ones(3, int)) for n in range(20)))
    assert [row.tolist() for row in found] == [[n + 1] * 3 for n in range(20)]
    assert [request.n for _, request in worker.requests] == [20]


async def test_timeout_reaches_the_worker(bus: Bus, worker: Worker) -> None:
    await bus.matrix.add([1], [2], timeout_s=1.5)
    await bus.models.embed("a", timeout_s=2.5)
    await bus.models.embed(["a"], timeout_s=3.5)
    await bus.matrix.add([1], [2])
    assert [request.ttl_ms for _, request in worker.requests] == [1500, 2500, 3500, 30_000]


# --- models ----------------------------------------------------------------------------------------------------------


async def test_one_text_gives_one_vector_and_a_list_a_matrix(bus: Bus, worker: Worker) -> None:
    one = await bus.models.embed("abc")
    many = await bus.models.embed(["a", "", "漢字"])
    assert (one.tolist(), many.tolist()) == ([3, 1], [[1, 1], [0, 1], [2, 1]])
    assert one.dtype == many.dtype == np.float32
    assert [(name, request.n, list(request.cols)) for name, request in worker.requests] == [
        (MODEL, 1, ["text"]),
        (MODEL, 3, ["text"]),
    ]


async def test_texts_may_be_any_sequence(bus: Bus) -> None:
    assert (await bus.models.embed(("a", "bb"))).tolist() == [[1, 1], [2, 1]]
    assert (await bus.models.embed([np.str_("a")])).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (5, "text is int"),
        (None, "text is NoneType"),
        (["a", 5], "text 1 is int"),
        ([b"a"], "text 0 is bytes"),
        (b"a", "text 0 is int"),
        ([["a"]], "text 0 is list"),
    ],
)
async def test_what_is_no_text_is_refused_before_it_is_sent(bus: Bus, worker: Worker, text: Any, told: str) -> None:
    with pytest.raises(BadColumn, match=f"{told}: give a str, or a sequence of str"):
        await bus.models.embed(text)
    assert worker.requests == []


async def test_no_texts_are_no_vectors(bus: Bus, worker: Worker) -> None:
    found = await bus.models.embed([])
    assert found.shape == (0, 0)
    assert found.dtype == np.float32
    assert worker.requests == []


async def test_model_is_named_in_the_subject(bus: Bus, worker: Worker) -> None:
    await bus.models.embed("a", model="other.v2")
    assert worker.requests[0][0] == "models.embed.other.v2"
    with pytest.raises(NoWorker, match=r"models\.embed\.absent"):
        await bus.models.embed("a", model="absent")
    with pytest.raises(NoWorker, match=r"models\.embed\.absent"):
        await bus.models.embed(["a", "b"], model="absent")
    with pytest.raises(ValueError, match="letters"):
        await bus.models.embed("a", model="a model")


# --- any operation ---------------------------------------------------------------------------------------------------


async def test_any_operation_can_be_called(bus: Bus) -> None:
    assert (await bus.call("echo", {"x": [1.0, 2.0]}))["x"].tolist() == [1, 2]
    assert (await bus.call_many("echo", {"x": np.arange(3)}))["x"].tolist() == [0, 1, 2]


async def test_pure_systems_are_asked_again_after_a_lost_connection(
    bus: Bus, worker: Worker, memory: MemoryBus, connection: MemoryConnection
) -> None:
    worker.silent = True
    asked = [
        asyncio.ensure_future(each)
        for each in (bus.matrix.add([1], [2]), bus.models.embed("a"), bus.models.embed(["a", "bb"]))
    ]
    once = bus.call("echo", {"x": 1})
    await turns()
    worker.silent = False
    memory.drop_connection(connection)
    memory.restore(connection)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*asked)
    assert [each.tolist() for each in found] == [[3], [1, 1], [[1, 1], [2, 1]]]
    with pytest.raises(Disconnected):
        await once


async def test_cancelled_agent_withdraws_its_row(bus: Bus, worker: Worker, memory: MemoryBus) -> None:
    cancels: list[Message] = []
    await memory.connect().subscribe("aikoryu.v1.default.ctl", cancels.append)
    worker.silent = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bus.matrix.matmul(np.ones((1, 1)), np.ones((1, 1)))
    await turns()
    assert len(cancels) == 1


# --- sessions and connections ----------------------------------------------------------------------------------------


async def test_session_follows_its_settings_and_leaves_the_connection_open(memory: MemoryBus) -> None:
    worker = Worker(memory.connect(), "acme.v1.prod")
    await worker.serve()
    connection = memory.connect()
    settings = Settings(bus=BusSettings(prefix="acme", namespace="prod", timeout_s=7, frame_bytes=1024))
    async with session(connection, settings) as bus:
        await asyncio.gather(*(bus.call("echo", {"x": np.zeros(100)}) for _ in range(3)))
        assert [request.n for _, request in worker.requests] == [1, 1, 1]
        assert worker.requests[0][1].ttl_ms == 7000
    with pytest.raises(Closed):
        bus.call("echo", {"x": 1})
    assert connection.subscriptions == []
    await connection.publish("still.open", b"")


async def test_session_ends_with_the_error_of_its_body(connection: MemoryConnection) -> None:
    with pytest.raises(LookupError):
        async with session(connection, Settings()):
            raise LookupError
    assert connection.subscriptions == []


async def test_connect_reaches_a_server_and_its_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    async with served() as url:
        elsewhere = Settings(nats=NatsSettings(url="nats://127.0.0.1:1"))
        async with connect(url) as bus, connect(url, settings=elsewhere) as other:
            assert (await bus.matrix.matmul([[1.0, 2.0]], [[3.0], [4.0]])).tolist() == [[11]]
            assert (await other.models.embed("abc")).tolist() == [3, 1]
        with pytest.raises(Closed):
            bus.call("echo", {"x": 1})
        monkeypatch.setenv("AIKORYU_NATS_URL", url)
        async with aikoryu.connect() as bus:
            assert (await bus.call("echo", {"x": 5}))["x"] == 5
            assert await bus.workers(wait_s=0.05) == []


async def test_connect_says_where_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"nats://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match=address):
            async with connect(address):
                pass


async def test_connect_refuses_an_address_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"nats\.url"):
        async with connect("localhost"):
            pass


# --- types -----------------------------------------------------------------------------------------------------------


async def test_types_are_known_to_a_checker(bus: Bus) -> None:
    # These lines are the test: mypy, which `make check` runs, reads them.
    assert_type(bus.matrix, Matrix)
    assert_type(bus.models, Models)
    assert_type(await bus.matrix.matmul([[1.0]], [[2.0]]), NDArray[Any])
    assert_type(await bus.matrix.add(np.ones(1), [2.0]), NDArray[Any])
    assert_type(await bus.models.embed("a"), NDArray[np.float32])
    assert_type(await bus.models.embed(["a"]), NDArray[np.float32])
    call = bus.call("echo", {"x": np.ones(1)}, {"k": 1}, timeout_s=1, priority=1, idempotent=True)
    assert_type(call, Answer)
    assert_type(await call, dict[str, Any])
    assert_type(await bus.call_many("echo", {"x": [1, 2], "s": ["a", "b"]}), dict[str, Any])
    assert_type(bus.stream("echo", [{"x": np.ones(1)}]), AsyncGenerator[dict[str, Any], None])
    assert_type(await bus.workers(0.0), list[dict[str, object]])


def public(owner: type) -> Iterable[Any]:
    return (member for name, member in vars(owner).items() if inspect.isfunction(member) and not name.startswith("_"))


@pytest.mark.parametrize("owner", [Bus, Matrix, Models])
def test_everything_public_has_types_and_a_docstring(owner: type) -> None:
    for member in public(owner):
        assert member.__doc__, member
        hints = get_type_hints(member)
        assert {*inspect.signature(member).parameters} - {"self"} <= hints.keys(), member
        assert "return" in hints, member

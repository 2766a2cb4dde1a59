"""Discovery as the standard has it (NATS ADR-32), asked by plain nats-py over a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import nats
import pytest
from structlog.testing import capture_logs

from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.discovery import Discovery, discover
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.service import Held, Service
from aikoryu.bus.subjects import Subjects

StartServer = Callable[..., Awaitable[Any]]

IDENTITY = {"name": str, "id": str, "version": str, "metadata": dict}
ENDPOINT_INFO = {"name": str, "subject": str, "queue_group": str, "metadata": dict}
ENDPOINT_STATS = {
    "name": str,
    "subject": str,
    "queue_group": str,
    "num_requests": int,
    "num_errors": int,
    "last_error": str,
    "processing_time": int,
    "average_processing_time": int,
    "data": dict,
}
NAME = re.compile(r"[A-Za-z0-9_-]+")
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")


class Worker:
    """A service with two operations that echo, and its discovery."""

    def __init__(self, transport: Any, name: str = "w1") -> None:
        self.service = Service(transport, Subjects(), name, reply_prefixes=("_INBOX",))
        self.discovery = Discovery(transport, self.service, name, "1.2.3", lambda operation: {"of": operation})

    async def start(self) -> None:
        await self.service.start()
        await self.service.serve("matrix.add", self._echo, {"help": "sums"})
        await self.service.serve("echo", self._echo)
        await self.discovery.start()

    def _echo(self, held: Held) -> None:
        self.service.answer(held, [(0, held.request.n)], held.request.cols, [])


def shape(document: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in document.items()}


async def ask(client: Any, subject: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((await client.request(subject, b"", timeout=5)).data)
    return document


@pytest.fixture
async def client(start_server: StartServer) -> AsyncIterator[Any]:
    """A plain client of a bus with one worker."""
    server = await start_server()
    transport = await NatsConnection.open(ConnectOptions(server.url))
    worker = Worker(transport)
    await worker.start()
    await transport.flush()
    client = await nats.connect(server.url)
    yield client
    await client.close()
    await worker.discovery.stop()
    await transport.close()


async def test_every_verb_answers_on_its_three_subjects(client: Any) -> None:
    for verb in ("PING", "INFO", "STATS"):
        answers = [await ask(client, f"$SRV.{verb}{tail}") for tail in ("", ".aikoryu", ".aikoryu.w1")]
        assert answers[0] == answers[1] == answers[2]
        assert answers[0]["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
        for tail in (".other", ".aikoryu.w2", ".other.w1"):
            with pytest.raises(nats.errors.NoRespondersError):
                await ask(client, f"$SRV.{verb}{tail}")


async def test_ping_has_exactly_the_standards_fields(client: Any) -> None:
    answer = await ask(client, "$SRV.PING")
    assert shape(answer) == {"type": str, **IDENTITY}
    assert answer["metadata"] == {}
    assert (answer["name"], answer["id"], answer["version"]) == ("aikoryu", "w1", "1.2.3")
    assert NAME.fullmatch(answer["name"])
    assert SEMVER.fullmatch(answer["version"])


async def test_info_has_exactly_the_standards_fields(client: Any) -> None:
    answer = await ask(client, "$SRV.INFO")
    assert shape(answer) == {"type": str, **IDENTITY, "description": str, "endpoints": list}
    first, second = answer["endpoints"]
    assert shape(first) == shape(second) == ENDPOINT_INFO
    assert first == {
        "name": "matrix-add",
        "subject": "aikoryu.v1.default.matrix.add",
        "queue_group": "matrix",
        "metadata": {"help": "sums"},
    }
    assert (second["name"], second["queue_group"], second["metadata"]) == ("echo", "echo", {})
    assert all(NAME.fullmatch(endpoint["name"]) for endpoint in answer["endpoints"])


async def test_stats_have_exactly_the_standards_fields(client: Any) -> None:
    answer = await ask(client, "$SRV.STATS")
    assert shape(answer) == {"type": str, **IDENTITY, "started": str, "endpoints": list}
    assert [shape(endpoint) for endpoint in answer["endpoints"]] == [ENDPOINT_STATS, ENDPOINT_STATS]
    assert answer["started"].endswith("Z")
    started = datetime.fromisoformat(answer["started"])
    assert started.utcoffset() == UTC.utcoffset(None)
    assert abs((datetime.now(UTC) - started).total_seconds()) < 60
    fresh = answer["endpoints"][1]
    assert (fresh["num_requests"], fresh["num_errors"], fresh["last_error"]) == (0, 0, "")
    assert (fresh["processing_time"], fresh["average_processing_time"], fresh["data"]) == (0, 0, {"of": "echo"})


async def test_stats_count_what_was_asked(client: Any) -> None:
    request = b'{"v":1,"n":1,"cols":{"x":[1]}}'
    for _ in range(3):
        await client.request("aikoryu.v1.default.echo", request, timeout=5)
    await client.request("aikoryu.v1.default.echo", b"garbage", timeout=5)
    summing, echo = (await ask(client, "$SRV.STATS"))["endpoints"]
    assert (echo["num_requests"], echo["num_errors"]) == (4, 1)
    assert echo["last_error"].startswith("not a frame") or "frame" in echo["last_error"]
    assert echo["processing_time"] > 1000  # ns: three frames take longer than a microsecond
    assert echo["average_processing_time"] == pytest.approx(echo["processing_time"] / 3, abs=1)
    assert summing["num_requests"] == 0


async def test_question_without_a_reply_is_ignored_and_stop_ends_the_answers() -> None:
    bus = MemoryBus()
    worker = Worker(bus.connect())
    await worker.start()
    asker = bus.connect()
    got: list[Any] = []
    await asker.subscribe("_INBOX.me", got.append)
    await asker.publish("$SRV.PING", b"")
    await asker.publish("$SRV.PING", b"", "_INBOX.me")
    await turns()
    assert len(got) == 1
    await worker.discovery.stop()
    await asker.publish("$SRV.PING", b"", "_INBOX.me")
    await turns()
    assert [message.headers for message in got] == [None, {"Status": "503"}]


async def test_subject_that_is_no_inbox_gets_no_answer() -> None:
    bus = MemoryBus()
    await Worker(bus.connect()).start()
    asker = bus.connect()
    got: list[Any] = []
    await asker.subscribe("aikoryu.v1.default.agent.>", got.append)
    for verb in ("PING", "INFO", "STATS"):
        await asker.publish(f"$SRV.{verb}", b"", "aikoryu.v1.default.agent.a.b")
    await turns()
    assert got == []


async def test_last_error_is_told_in_200_characters() -> None:
    bus = MemoryBus()
    worker = Worker(bus.connect())
    await worker.start()
    worker.service.endpoints["echo"].last_error = "x" * 1000
    (found,) = await discover(bus.connect(), wait_s=0.05)
    assert found["endpoints"][1]["last_error"] == "x" * 200


async def test_discover_finds_every_worker_with_its_metadata() -> None:
    bus = MemoryBus()
    for name in ("w2", "w1"):
        await Worker(bus.connect(), name).start()
    found = await discover(bus.connect(), wait_s=0.05)
    assert [worker["id"] for worker in found] == ["w1", "w2"]
    assert [(endpoint["name"], endpoint["metadata"]) for endpoint in found[0]["endpoints"]] == [
        ("matrix-add", {"help": "sums"}),
        ("echo", {}),
    ]
    assert found[0]["endpoints"][0]["num_requests"] == 0


@pytest.mark.parametrize(
    "answer",
    [b"", b"no json", b"[]", b"{}", b'{"type": "", "id": "x", "name": "aikoryu"}'],
)
async def test_discover_leaves_out_what_is_no_answer(answer: bytes) -> None:
    bus = MemoryBus()
    stranger = bus.connect()
    for verb in ("STATS", "INFO"):
        await stranger.subscribe(f"$SRV.{verb}.aikoryu", lambda message: stranger.send(message.reply, answer))
    await Worker(bus.connect()).start()
    with capture_logs() as logs:
        found = await discover(bus.connect(), wait_s=0.05)
    assert ([each["id"] for each in found], logs) == (["w1"], [])


async def test_discover_of_nobody_is_empty_and_leaves_no_subscription() -> None:
    connection = MemoryBus().connect()
    assert await discover(connection, wait_s=0.01) == []
    assert connection.subscriptions == []


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)

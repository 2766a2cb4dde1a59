"""The subject tree, and partitions against the server that computes the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.bus.subjects import Subjects, check_tokens, partition, queue_group

StartServer = Callable[..., Awaitable[Any]]

# The server's mapping takes a token: no dots, blanks or wildcards.
KEYS = ["a", "foobar", "agent-7", "Grüße", "0", "x" * 200, *(f"key{number}" for number in range(300))]


@pytest.mark.parametrize(
    ("key", "digest"),
    # Source: the test vectors of the FNV authors' page, 32 bit FNV-1a.
    [("", 0x811C9DC5), ("a", 0xE40C292C), ("b", 0xE70C2DE5), ("foob", 0x3F5076EF), ("foobar", 0xBF9CF968)],
)
def test_partition_is_fnv_1a_of_32_bits(key: str, digest: int) -> None:
    assert partition(key, 2**32) == digest
    assert partition(key, 7) == digest % 7
    assert partition(key.encode(), 7) == digest % 7


@given(st.binary(), st.integers(1, 10_000))
def test_partition_is_below_its_count(key: bytes, partitions: int) -> None:
    assert 0 <= partition(key, partitions) < partitions


async def test_partition_is_the_one_of_the_servers_mapping(start_server: StartServer) -> None:
    mappings = 'mappings: { "hash.*": "hashed.{{partition(10,1)}}.{{wildcard(1)}}" }'
    server = await start_server(mappings)
    client = await nats.connect(server.url)
    found: dict[str, int] = {}
    done = asyncio.Event()

    async def on_message(message: Any) -> None:
        _, number, key = message.subject.split(".")
        found[key] = int(number)
        if len(found) == len(KEYS):
            done.set()

    await client.subscribe("hashed.>", cb=on_message)
    for key in KEYS:
        await client.publish(f"hash.{key}")
    async with asyncio.timeout(10):
        await done.wait()
    await client.close()
    assert found == {key: partition(key, 10) for key in KEYS}
    assert len(set(found.values())) == 10


def test_subjects_have_the_documented_form() -> None:
    subjects = Subjects("acme", "prod")
    assert subjects.operation("matrix.matmul") == "acme.v1.prod.matrix.matmul"
    assert subjects.operation("models.embed.bge-m3", 3) == "acme.v1.prod.models.embed.bge-m3.3"
    assert subjects.operation("echo", 0) == "acme.v1.prod.echo.0"
    assert subjects.control == "acme.v1.prod.ctl"
    assert subjects.worker_control("host-1") == "acme.v1.prod.ctl.host-1"
    assert subjects.presence == "acme.v1.prod.presence"
    assert subjects.presence_of("host-1") == "acme.v1.prod.presence.host-1"
    assert Subjects().operation("echo") == "aikoryu.v1.default.echo"


def test_queue_group_is_the_system() -> None:
    assert queue_group("matrix.matmul") == "matrix"
    assert queue_group("echo") == "echo"


BAD_NAMES = ["", ".", "a..b", ".a", "a.", "a b", "a*", ">", "a.>", "é", "a\n", "a\nb", "a\r\n", "a\t", "a/b", "$SRV"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_that_is_no_token_is_refused_everywhere(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        check_tokens(name, "operation")
    with pytest.raises(ValueError, match="operation"):
        Subjects().operation(name)
    with pytest.raises(ValueError, match="prefix"):
        Subjects(prefix=name)
    with pytest.raises(ValueError, match="namespace"):
        Subjects(namespace=name)
    with pytest.raises(ValueError, match="worker"):
        Subjects().worker_control(name)


def test_handlers_and_topics_lie_beside_operations() -> None:
    subjects = Subjects("acme", "prod")
    assert subjects.asked("agent.planner.plan") == "acme.v1.prod.agent.planner.plan"
    assert subjects.asked("agent.planner.all.plan") == "acme.v1.prod.agent.planner.all.plan"
    assert subjects.asked("matrix.matmul") == "acme.v1.prod.matrix.matmul"
    assert subjects.agent("planner") == "acme.v1.prod.agent.planner"
    assert subjects.topic("market.>") == "acme.v1.prod.topic.market.>"
    assert subjects.topic("market.*.price") == "acme.v1.prod.topic.market.*.price"


@pytest.mark.parametrize("name", ["agent", "agent.planner", "agent..plan", "agent.planner.*", "topic.news", "ctl"])
def test_what_is_neither_operation_nor_handler_cannot_be_asked(name: str) -> None:
    with pytest.raises(ValueError, match=r"handler|operation"):
        Subjects().asked(name)


@pytest.mark.parametrize("name", ["", "a.", ".a", "a..b", "a.>.b", "a b", "a>", "*a"])
def test_topic_is_a_name_or_a_pattern(name: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Subjects().topic(name)


def test_agents_have_a_queue_group_each() -> None:
    assert [queue_group(name) for name in ("agent.planner", "agent.planner.plan", "matrix.add", "agents.assign")] == [
        "agent.planner",
        "agent.planner",
        "matrix",
        "agents",
    ]


def test_process_of_a_user_has_a_control_subject_below_its_name() -> None:
    assert Subjects().worker_control("p1", "planner") == "aikoryu.v1.default.ctl.planner.p1"
    for worker, user in (("p.1", "planner"), ("p1", "plan.ner"), ("*", "planner")):
        with pytest.raises(ValueError, match=r"worker|user"):
            Subjects().worker_control(worker, user)


def test_worker_is_one_token() -> None:
    with pytest.raises(ValueError, match="dot"):
        Subjects().worker_control("host.example")
    with pytest.raises(ValueError, match=r"process 'host\.example'"):
        Subjects().presence_of("host.example")


@pytest.mark.parametrize("name", ["agent.bob.greet", "topic.news", "presence", "ctl", "ctl.worker"])
def test_system_cannot_have_a_reserved_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        Subjects().operation(name)
    assert Subjects().operation(f"x-{name}")

"""docs/protocol.md: its examples are decoded, encoded again, and sent; its codes and subjects are those of the code."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

import aikoryu as ai
from aikoryu.agents import announcements, chain, lookout, presence, roster
from aikoryu.agents.announcements import Announced
from aikoryu.agents.announcer import Announcer
from aikoryu.bus import columns, errors, frames, open_streams, resends, silence
from aikoryu.bus.memory import MemoryBus, MemoryConnection
from aikoryu.bus.transport import Message
from aikoryu.config import ModelSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
ROOT = "aikoryu.v1.default"
SECONDS = 10
NUMBERS = itertools.count()
BYTES_A_LINE = 20

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "request": frames.decode_request,
    "reply": frames.decode_reply,
    "withdrawal": frames.decode_cancel,
    "question": frames.decode_question,
    "holding": frames.decode_holding,
    "chain": chain.decode_chain,
    "announcement": announcements.decode,
    "who": announcements.decode_question,
}


class Example(NamedTuple):
    """A block of the page: what it shows, where that goes, and the bytes."""

    kind: str
    subject: str
    text: str

    @property
    def payload(self) -> bytes:
        return bytes.fromhex("".join(line.partition("#")[0] for line in self.text.splitlines()))


def examples(language: str) -> list[Example]:
    found = re.findall(rf"^```{language} (\S+) ?(.*)\n((?:.*\n)*?)```$", PAGE, re.M)
    return [Example(*each) for each in found]


HEX = examples("hex")
JSON = examples("json")


def exchanges(blocks: list[Example]) -> list[tuple[Example, Example]]:
    """Each request with the reply that stands after it, if one does."""
    pairs = zip(blocks, [*blocks[1:], blocks[0]], strict=True)
    return [(first, second) for first, second in pairs if (first.kind, second.kind) == ("request", "reply")]


def annotated(payload: bytes) -> str:
    """The bytes of a MessagePack value as the page has them, a line a key, with what they mean."""
    lines = list(_lines(msgpack.unpackb(payload), ""))
    assert b"".join(data for data, _, _ in lines) == payload, "not the shortest form of each value"
    shown = [
        ("  " * depth + data[first : first + BYTES_A_LINE].hex(" "), "" if first else f"  # {meaning}")
        for data, depth, meaning in lines
        for first in range(0, len(data), BYTES_A_LINE)
    ]
    width = max(len(data) for data, _ in shown)
    return "".join(f"{f'{data:<{width}}{meaning}'.rstrip()}\n" for data, meaning in shown)


def _lines(value: Any, before: str, depth: int = 0, head: bytes = b"") -> Iterator[tuple[bytes, int, str]]:
    nested = value and isinstance(value, list | dict) and (isinstance(value, dict) or isinstance(value[0], dict))
    if not nested:
        yield head + msgpack.packb(value), depth, before + json.dumps(_shown(value), ensure_ascii=False)
        return
    what = "map" if isinstance(value, dict) else "list"
    mark = bytes([(0x80 if isinstance(value, dict) else 0x90) | len(value)])
    yield head + mark, depth, f"{before}{what} of {len(value)}"
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _lines(each, f"{key}: ", depth + 1, msgpack.packb(key))
    else:
        for each in value:
            yield from _lines(each, "", depth + 1)


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [_shown(each) for each in value] if isinstance(value, list) else value


# --- the bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", HEX, ids=lambda example: f"{example.kind} {example.subject}")
def test_example_is_what_services_read_and_write(example: Example) -> None:
    assert annotated(example.payload) == example.text
    assert announcements.encode(DECODERS[example.kind](example.payload)) == example.payload


def test_every_kind_of_frame_has_an_example() -> None:
    assert {example.kind for example in HEX} == set(DECODERS)


def test_announcements_are_those_of_a_process() -> None:
    process = Announcer("p1", 1_767_225_600_000_000, 5.0, 4096)
    process.describe([Announced("greeter", frozenset({"greet"}), ("count", "hello"), "Says hello.")])
    told = [process.beat({"greeter": 0.25}), *process.listing(), process.goodbye()]
    assert [example.payload for example in HEX if example.kind == "announcement"] == told


def test_columns_of_text_are_as_the_page_says() -> None:
    column = columns.pack_strings(["hi", ""])
    assert column.o is not None
    assert (column.o.hex(" ", 4), column.d.hex()) == ("00000000 02000000 02000000", "6869")
    assert "o: 00000000 02000000 02000000, d: 6869" in PAGE


# --- what is answered ------------------------------------------------------------------------------------------------


class Greeter(ai.Agent):
    """What the page's calls are for."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()

    @ai.handler
    async def hello(self, message: dict[str, str]) -> str:
        return f"hello {message['text']}"

    @ai.handler
    async def count(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    @ai.on("news.>")
    async def news(self, message: str) -> None:
        self.heard.put_nowait(message)


@pytest.fixture
def greeter() -> Greeter:
    return Greeter()


@pytest.fixture
async def caller(greeter: Greeter) -> AsyncIterator[MemoryConnection]:
    """A connection to a bus with a worker, and a process p1 that has the agent."""
    memory = MemoryBus()
    settings = Settings(models=ModelSettings(embed=()))
    async with AsyncExitStack() as stack:
        worker = Worker(memory.connect("_WORKER"), settings, [InlineEngine(load(catalogue_of(settings)))])
        await worker.start()
        stack.push_async_callback(worker.stop)
        app = ai.App.in_memory(memory, settings=Settings(worker=WorkerSettings(name="p1")))
        app.add(greeter, "greeter")
        await stack.enter_async_context(app)
        yield memory.connect()


async def ask(connection: MemoryConnection, subject: str, payload: bytes) -> bytes:
    """The first reply to a request."""
    replies: asyncio.Queue[Message] = asyncio.Queue()
    inbox = f"{connection.inbox_prefix}.{next(NUMBERS)}"
    subscription = await connection.subscribe(inbox, replies.put_nowait)
    await connection.publish(f"{ROOT}.{subject}", payload, inbox)
    async with asyncio.timeout(SECONDS):
        reply = await replies.get()
    await subscription.unsubscribe()
    return reply.data


def timeless(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply without the times that it tells."""
    if reply.get("by"):
        reply["by"]["queue_us"] = reply["by"]["run_us"] = 0
    return reply


async def test_requests_are_answered_as_shown(caller: MemoryConnection) -> None:
    asked = exchanges(HEX)
    assert [request.subject for request, _ in asked] == [
        *("echo", "echo", "agent.greeter.count", "agent.greeter.hello", "ctl.p1", "ctl.p1")
    ]
    for request, reply in asked:
        answer = msgpack.unpackb(await ask(caller, request.subject, request.payload))
        shown = msgpack.unpackb(reply.payload)
        assert msgpack.packb(timeless(answer)) == msgpack.packb(timeless(shown)), answer


async def test_requests_in_json_are_answered_as_shown(caller: MemoryConnection) -> None:
    asked = exchanges(JSON)
    assert [request.subject for request, _ in asked] == ["echo", "agent.greeter.hello"]
    for request, reply in asked:
        answer = json.loads(await ask(caller, request.subject, request.text.strip().encode()))
        assert timeless(answer) == timeless(json.loads(reply.text))


async def test_a_message_of_a_topic_is_heard(caller: MemoryConnection, greeter: Greeter) -> None:
    (told,) = (example for example in HEX if example.subject.startswith("topic."))
    await caller.publish(f"{ROOT}.{told.subject}", told.payload)
    async with asyncio.timeout(SECONDS):
        assert [await greeter.heard.get(), await greeter.heard.get()] == ["rain", "sun"]


# --- the tables ------------------------------------------------------------------------------------------------------


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def keys(text: str) -> set[str]:
    """What the first column of a table names."""
    return {name for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", text, re.M) for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("title", "struct"), [("Request", frames.Request), ("Reply", frames.Reply), ("Withdrawing", frames.Cancel)]
)
def test_every_field_is_told_and_no_other(title: str, struct: Any) -> None:
    table = PAGE.partition(f"\n### {title}\n")[2].partition("\n##")[0]
    version = {"v"} if title == "Withdrawing" else set()
    assert keys(table) | version == set(struct.__struct_fields__)


def test_every_type_of_column_is_told() -> None:
    table = section("Columns").partition("###")[0].partition("| --- |")[2]
    assert keys(table) == {*columns.FIXED, *columns.VARIABLE}


def test_every_code_is_told_or_said_to_be_the_clients() -> None:
    text = section("Errors")
    codes = {
        error.code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.BusError) and error is not errors.BusError
    }
    own = {errors.NoWorker, errors.Disconnected, errors.ConnectionFailed, errors.Closed, errors.ServerFailed}
    assert keys(text) == codes - {error.code for error in own}
    told = text.partition("Clients make others themselves")[2]
    assert all(f"`{error.code}`" in told for error in own)


def test_limits_are_those_of_the_code() -> None:
    assert resends.BUSY_RETRIES == 2
    for text in (
        f"0 … {frames.MAX_ROWS:,}".replace(",", " "),
        f"at most {frames.LONGEST_MESSAGE} characters",
        f"at most {frames.MAX_ASKED}.",
        f"at once ({open_streams.CREDIT_ROWS})",
        f"beyond {open_streams.MAX_STREAMS} one is forgotten",
        f"at most {columns.MAX_DIMENSIONS} dimensions",
        f"with {chain.MOST_HOPS} hops",
        f"each of {announcements.MOST_BYTES >> 10} KiB",
        f"with {announcements.MOST_CAPABILITIES:,} capabilities".replace(",", " "),
        f"keep {roster.MOST_PROCESSES} processes, and lists of about {roster.MOST_BYTES >> 20} MiB",
        f"no more than {lookout.QUESTIONS} missed lists",
        f"or {presence.ANSWER_BYTES >> 20} MiB of answers",
        f"{resends.LEAST_S * 1000:g} ms at the least",
        f"heard of it for {silence.QUIET_S:g} s",
        f"within {silence.ANSWER_S:g} s",
        f"try for {resends.UNSERVED_S:g} s, every {resends.SOONEST_S:g} to {resends.LATEST_S:g} s",
    ):
        assert text in " ".join(PAGE.split())

"""A gateway to a language model: an endpoint on loopback that does what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

import aikoryu as ai
from aikoryu.agents.gateway import Chat, Gateway, Turn

from .conftest import until

ASK = Chat([Turn("user", "Why?")], max_tokens=5)


class Endpoint:
    """Answers every request with the parts that it was given; it waits for a word between them.

    Attributes:
        url: of its API.
        requests: what was asked: the head's lines, and the body.
        open: how many requests are under way.
        most_open: how many ever were.
        parts: of the answer, head and all.
        go: lets the next part leave; None: they follow at once.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[list[str], dict[str, Any]]] = []
        self.open = self.most_open = 0
        self.parts: list[bytes] = []
        self.go: asyncio.Semaphore | None = None

    def says(self, *texts: str, end: bool = True) -> None:
        events = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
        first = json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        usage = json.dumps({"choices": [], "usage": {}})
        data = [first, *events, usage, *(["[DONE]"] if end else [])]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: hello\n\n"
        self.parts = [head, *(f"data: {each}\n\n".encode() for each in data)]

    def refuses(self, status: int, body: bytes, *head: str) -> None:
        lines = [f"HTTP/1.1 {status} No", f"Content-Length: {len(body)}", *head, "", ""]
        self.parts = ["\r\n".join(lines).encode() + body]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        left = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            (length,) = (int(line.split(":")[1]) for line in head if line.lower().startswith("content-length"))
            self.requests.append((head, json.loads(await reader.readexactly(length))))
            left = asyncio.ensure_future(reader.read())
            for part in self.parts:
                writer.write(part)
                await writer.drain()
                if self.go is not None:
                    go = asyncio.ensure_future(self.go.acquire())
                    await asyncio.wait({go, left}, return_when=asyncio.FIRST_COMPLETED)
                    go.cancel()
                if left.done():
                    return
        except ConnectionError:
            return
        finally:
            self.open -= 1
            if left is not None:
                left.cancel()
            writer.close()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield made
    server.close()


@pytest.fixture
async def bus(endpoint: Endpoint) -> AsyncIterator[ai.Bus]:
    app = ai.App.in_memory()
    app.add(Gateway(endpoint.url, "tiny", api_key="s3cret", silence_s=0.5), "llm", concurrency=2)
    app.add(Gateway("http://127.0.0.1:1/v1", "tiny"), "gone")
    async with app as bus:
        yield bus


def llm(bus: ai.Bus, name: str = "llm") -> Any:
    return bus.agents.get(name, Gateway)


async def test_the_answer_comes_piece_by_piece(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.says("Be", "cause", ".")
    endpoint.go = asyncio.Semaphore(2)  # its head, and that somebody answers
    heard = []
    async for token in llm(bus).tokens.stream(ASK):
        heard.append(token.text)
        for _ in range(3 if len(heard) == 3 else 1):
            endpoint.go.release()  # the next leaves when this has come
    assert heard == ["Be", "cause", "."]


async def test_the_answer_comes_as_a_whole(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.says("Be", "cause", ".")
    assert await llm(bus).answer(ASK) == "Because."
    ((head, body),) = endpoint.requests
    assert head[0] == "POST /v1/chat/completions HTTP/1.1"
    assert "authorization: Bearer s3cret" in [f"{k.lower()}:{v}" for k, _, v in (line.partition(":") for line in head)]
    assert body == {
        "model": "tiny",
        "stream": True,
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 5,
    }


async def test_a_caller_that_leaves_ends_the_request(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.says(*"abc")
    endpoint.go = asyncio.Semaphore(2)
    items = llm(bus).tokens.stream(ASK)
    assert (await anext(items)).text == "a"
    assert endpoint.open == 1
    await items.aclose()
    await until(lambda: not endpoint.open)


async def test_no_more_are_asked_at_once_than_the_agent_runs(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.says("a")
    assert await asyncio.gather(*(llm(bus).answer(ASK) for _ in range(7))) == ["a"] * 7
    assert endpoint.most_open == 2


@pytest.mark.parametrize(
    ("status", "body", "head", "code", "said"),
    [
        (429, b'{"error": {"message": "slow"}}', ["Retry-After: 7"], "llm_busy", "429: slow; ask again in 7 s"),
        (503, b"<html>", [], "llm_busy", "503: <html>; ask again later"),
        (401, b'{"error": {"message": "no such key"}}', [], "llm_refused", "401: no such key"),
        (400, b'{"error": "bad"}', [], "llm_refused", "400: bad"),
        (500, b"", [], "llm_failed", "500: no reason given"),
        (302, b"", ["Location: /elsewhere"], "llm_refused", "302: no reason given"),
    ],
)
async def test_what_the_endpoint_refuses_has_a_code(
    bus: ai.Bus, endpoint: Endpoint, status: int, body: bytes, head: list[str], code: str, said: str
) -> None:
    endpoint.refuses(status, body, *head)
    with pytest.raises(ai.BusError) as caught:
        await llm(bus).answer(ASK)
    assert (caught.value.code, str(caught.value)) == (code, f"the endpoint answered {said}")


async def test_an_answer_that_breaks_off_is_an_error_behind_its_pieces(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.says("Be", end=False)
    items = llm(bus).tokens.stream(ASK)
    assert (await anext(items)).text == "Be"
    with pytest.raises(ai.BusError) as caught:
        await anext(items)
    assert caught.value.code == "llm_failed"


@pytest.mark.parametrize("event", ['{"error": {"message": "out of memory"}}', "no json", "[]", '{"choices": [{}]}'])
async def test_an_event_that_is_none_is_an_error(bus: ai.Bus, endpoint: Endpoint, event: str) -> None:
    endpoint.parts = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", f"data: {event}\n\n".encode()]
    with pytest.raises(ai.BusError) as caught:
        await llm(bus).answer(ASK)
    assert caught.value.code == "llm_failed"


async def test_an_endpoint_that_is_silent_or_not_there_is_told_apart(bus: ai.Bus, endpoint: Endpoint) -> None:
    endpoint.parts, endpoint.go = [b""], asyncio.Semaphore(0)
    with pytest.raises(ai.BusError, match=r"silent for 0\.5 s") as caught:
        await llm(bus).answer(ASK)
    assert caught.value.code == "llm_failed"
    with pytest.raises(ai.BusError, match="see that it runs") as caught:
        await llm(bus, "gone").answer(ASK)
    assert caught.value.code == "llm_unreachable"

"""Good and bad clients, a process each: `python -m benchmarks.neighbour_clients ROLE URL`.

Each says "ready", then carries out orders, a number of seconds on a line, and reports on each as JSON. The polite one
has no SDK around it, which would call again after `busy` and hide it; it comes a second time, as the client of a plain
NATS service (`echo`), which no worker serves. The bad ones heed nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import aikoryu
from aikoryu.agents.bus import open_transport
from aikoryu.bus.columns import pack, unpack
from aikoryu.bus.errors import BusError
from aikoryu.bus.frames import Request, decode_reply, decode_request, encode
from aikoryu.bus.pending import RowsFailed
from aikoryu.bus.transport import Message
from aikoryu.config import load
from benchmarks import loop

OPERATION = "matrix.multiply"
SUBJECT = f"aikoryu.v1.default.{OPERATION}"
ECHO = "neighbours.echo"
WIDTH = 4
FACTOR = 3.0
RATE = 200  # calls a second of the polite one
TTL_MS = 10_000
LOOPS, ROWS = 32, 4096  # calls that the flood has under way all the time, and the rows of each
MESSAGES = 50_000  # a second, of the flood of messages
BURST_S = 0.01
SIDE = 512  # the answers that are never read are squares of float32, 1 MiB each
ASK_S = 0.005

Report = dict[str, Any]


class Polite:
    """Makes lone calls at a steady rate, whether or not those before are answered; latency counts from the due time.

    Args:
        url: of the server.
        subject: to ask.
        fault: what is wrong with the answer to the call of that number; empty if nothing is.
    """

    def __init__(self, url: str, subject: str, fault: Callable[[int, bytes], str]) -> None:
        self._url = url
        self._subject = subject
        self._fault = fault
        self._client = secrets.randbits(63) | 1
        self._asked = 0
        self._due: dict[int, float] = {}
        self._came = asyncio.Event()
        self._latencies: list[float] = []
        self._errors: Counter[str] = Counter()
        self._factors = pack(np.full((1, WIDTH), FACTOR))

    async def run(self) -> None:
        """Carry out orders."""
        transport = await open_transport(load(flags={"nats.url": self._url}))
        inbox = f"{transport.inbox_prefix}.{self._client:x}"
        await transport.subscribe(f"{inbox}.*", self._on_reply)

        def ask(payload: bytes) -> None:
            transport.send(self._subject, payload, f"{inbox}.{self._asked}")
            transport.push()

        async for seconds in _orders():
            _say(await self._call(ask, seconds))
        await transport.close()

    async def _call(self, ask: Callable[[bytes], None], seconds: float) -> Report:
        self._latencies, self._errors = [], Counter()
        began = time.perf_counter()
        for number in range(int(seconds * RATE)):
            due = began + number / RATE
            if (rest := due - time.perf_counter()) > 0:
                await asyncio.sleep(rest)
            self._asked += 1
            self._due[self._asked] = due
            columns = {"a": pack(_row(self._asked)), "b": self._factors}
            ask(encode(Request(v=1, n=1, cols=columns, client=self._client, id=self._asked, ttl_ms=TTL_MS)))
        with suppress(TimeoutError):
            async with asyncio.timeout(TTL_MS / 1000):
                while self._due:
                    self._came.clear()
                    await self._came.wait()
        self._errors["unanswered"] += len(self._due)
        self._due.clear()
        return {"latencies_s": self._latencies, "errors": +self._errors}

    def _on_reply(self, message: Message) -> None:
        if not message.data:  # a worker asks whether anybody listens here
            return
        now = time.perf_counter()
        number = int(message.subject.rpartition(".")[2])
        due = self._due.pop(number, None)
        self._came.set()
        fault = "twice" if due is None else self._fault(number, message.data)
        if fault:
            self._errors[fault] += 1
        elif due is not None:
            self._latencies.append(now - due)


def product_fault(number: int, data: bytes) -> str:
    """Of a worker's answer."""
    reply = decode_reply(data)
    if reply.err:
        return reply.err[0].code
    return "" if np.array_equal(unpack(reply.cols["c"], 1), _row(number) * FACTOR) else "wrong"


def echo_fault(number: int, data: bytes) -> str:
    """Of an echo, which is the request itself."""
    return "" if np.array_equal(unpack(decode_request(data).cols["a"], 1), _row(number)) else "wrong"


async def echo(url: str) -> None:
    """Be the plain service: each request is its own answer."""
    transport = await open_transport(load(flags={"nats.url": url}))

    def answer(message: Message) -> None:
        transport.send(message.reply, message.data)
        transport.push()

    await transport.subscribe(ECHO, answer)
    await transport.flush()
    async for _ in _orders():
        _say({})
    await transport.close()


async def flood(url: str) -> None:
    """Keep more rows under way than a worker's queue takes; what gets `busy` is asked again at once."""
    columns = {"a": np.ones((ROWS, WIDTH)), "b": np.full((ROWS, WIDTH), FACTOR)}
    async with aikoryu.connect(url) as bus:
        async for seconds in _orders():
            rows: Counter[str] = Counter()
            end = time.monotonic() + seconds

            async def ask(rows: Counter[str] = rows, end: float = end) -> None:
                while time.monotonic() < end:
                    try:
                        answer = await bus.call_many(OPERATION, columns)
                    except RowsFailed as failed:
                        rows.update(error.code for error in failed.errors.values())
                        rows["answered"] += ROWS - len(failed.errors)
                    except BusError as error:
                        rows[error.code] += ROWS
                    else:
                        rows["answered" if (answer["c"] == FACTOR).all() else "wrong"] += ROWS

            async with asyncio.TaskGroup() as loops:
                for _ in range(LOOPS):
                    loops.create_task(ask())
            _say({"rows": rows})


async def messages(url: str) -> None:
    """Publish frames of one row at a steady rate, whatever comes of them; answers are read and only counted."""
    reader, writer = await _connect(url)
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    column = pack(np.ones((1, WIDTH)))
    payload = encode(Request(v=1, n=1, cols={"a": column, "b": column}))
    burst = int(MESSAGES * BURST_S) * _publish(f"{inbox}.1", payload)
    writer.write(f"SUB {inbox}.* 1\r\n".encode())
    came: Counter[str] = Counter()

    async def read() -> None:
        rest = b""
        while data := await reader.read(1 << 20):
            rest += data
            came["refused"] += rest.count(b"HMSG ")
            came["answered"] += rest.count(b"MSG ") - rest.count(b"HMSG ")
            if b"PING\r\n" in rest:
                writer.write(b"PONG\r\n")
            rest = b"" if rest.endswith(b"MSG ") else rest[-4:]  # what may go on in what comes next

    reading = asyncio.create_task(read())
    async for seconds in _orders():
        came.clear()
        sent, began = 0, time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            while sent < MESSAGES * (now - began):
                writer.write(burst)
                sent += int(MESSAGES * BURST_S)
            await writer.drain()
            await asyncio.sleep(BURST_S)
        await asyncio.sleep(0.5)
        _say({"sent": sent, "a second": round(sent / seconds), **came})
    reading.cancel()
    writer.close()


class Mute:
    """Asks for large answers and reads nothing; when the server has cut its connection, it makes another.

    A connection that is cut does not tell who never reads. So a second one asks whether anybody listens to the inbox.
    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).hostname, urlsplit(url).port
        self._client, self._inbox = secrets.randbits(63) | 1, f"_INBOX.{secrets.token_hex(8)}"
        self._columns = {"a": pack(np.ones((1, SIDE, 1), np.float32)), "b": pack(np.ones((1, 1, SIDE), np.float32))}
        self._asked = self._cuts = 0

    def run(self) -> None:
        """Carry out orders."""
        with self._connection(f"{self._inbox}-watch") as watch:
            print("ready", flush=True)
            for line in sys.stdin:
                self._asked, self._cuts, end = 0, 0, time.monotonic() + float(line)
                while time.monotonic() < end:
                    self._ask(watch, end)
                _say({"asked": self._asked, "cuts": self._cuts})

    def _ask(self, watch: socket.socket, end: float) -> None:
        """Ask until the connection is cut, or for so long."""
        with self._connection(self._inbox) as connection:
            connection.sendall(b"PING\r\n")
            connection.recv(1 << 16)
            while time.monotonic() < end:
                self._asked += 1
                frame = Request(v=1, n=1, cols=self._columns, client=self._client, id=self._asked)
                connection.sendall(_publish(f"{self._inbox}.{self._asked}", encode(frame)))
                time.sleep(ASK_S)
                if not self._is_heard(watch):
                    self._cuts += 1
                    return

    def _is_heard(self, watch: socket.socket) -> bool:
        """Whether the server knows anybody who listens to the inbox."""
        watch.sendall(f"PUB {self._inbox}.0 {self._inbox}-watch.0 0\r\n\r\nPING\r\n".encode())
        said = b""
        while b"PONG\r\n" not in said:
            said += watch.recv(1 << 16)
        return b" 503" not in said

    def _connection(self, inbox: str) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.sendall(HELLO + f"SUB {inbox}.* 1\r\n".encode())
        return connection


HELLO = b'CONNECT {"verbose":false,"pedantic":false,"protocol":1,"headers":true,"no_responders":true}\r\n'


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port, limit=1 << 22)
    writer.write(HELLO)
    return reader, writer


def _publish(reply: str, payload: bytes) -> bytes:
    return f"PUB {SUBJECT} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


def _row(number: int) -> Any:
    """The numbers of a polite call, of which no other has any: (1, WIDTH) float64."""
    return np.arange(WIDTH * number, WIDTH * (number + 1), dtype=np.float64)[np.newaxis]


async def _orders() -> AsyncIterator[float]:
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield float(line)


def _say(report: Report) -> None:
    print(json.dumps(report), flush=True)


ASYNC: dict[str, Callable[[str], Awaitable[None]]] = {
    "polite": lambda url: Polite(url, SUBJECT, product_fault).run(),
    "plain": lambda url: Polite(url, ECHO, echo_fault).run(),
    "echo": echo,
    "flood": flood,
    "messages": messages,
}


if __name__ == "__main__":
    role, url = sys.argv[1:]
    if role == "mute":
        Mute(url).run()
    else:
        loop.run(ASYNC[role](url))  # type: ignore[arg-type]

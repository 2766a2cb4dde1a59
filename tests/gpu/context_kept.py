"""Keepers of context graphs on a real server, callers of theirs, and what graphs amount to in float64."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import msgspec
import numpy as np

import aikoryu as ai
from aikoryu.agents.bus import session
from aikoryu.agents.context import Context
from aikoryu.bus.columns import Array, Values, pack, unpack, widen_bf16
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.frames import decode_reply, encode
from aikoryu.bus.jetstream import JetStream
from aikoryu.bus.log_entry import Entry, Kind, decode
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.partition_log import LOG
from aikoryu.bus.server import EmbeddedServer
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.config import ContextSettings, CpuSettings, NatsSettings, ServerSettings, Settings, WorkerSettings
from aikoryu.gpu.context.keeper import GraphKeeper
from aikoryu.gpu.context.keepers import Keepers
from aikoryu.gpu.context.words import rounded

WAIT_S = 20.0
ROUNDING = 1e-4  # of vectors of length 10 or so, in float32


class Kept:
    """A server, keepers and callers; at the end all are stopped, and no keeper may hold a frame.

    Attributes:
        settings: of all.
    """

    def __init__(self, **context: Any) -> None:
        self._context = context
        self._stack = AsyncExitStack()
        self._lent: set[Keepers] = set()

    async def __aenter__(self) -> Self:
        server = await self._stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))
        self.settings = Settings(
            nats=NatsSettings(url=server.url),
            context=ContextSettings(**({"lease_s": 1} | self._context)),
            worker=WorkerSettings(drain_s=5.0),
            cpu=CpuSettings(threads=1),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for keepers in list(self._lent):
            await self.stop(keepers)
        await self._stack.aclose()

    async def connect(self) -> NatsConnection:
        connection = await NatsConnection.open(ConnectOptions.of(self.settings.nats))
        self._stack.push_async_callback(connection.close)
        return connection

    async def keepers(self, name: str = "a", settings: Settings | None = None) -> Keepers:
        keepers = Keepers(await self.connect(), settings or self.settings, "cpu", name, on_loaded=lambda: None)
        await keepers.start()
        self._lent.add(keepers)
        return keepers

    async def stop(self, keepers: Keepers) -> bool:
        """A planned stop; nothing may be left."""
        self._lent.discard(keepers)
        stopped = await keepers.stop()
        assert keepers._service.held == {}
        assert keepers.graphs == {}
        assert not keepers._tasks
        assert not keepers._opens
        if keepers.failed.done():
            assert keepers.failed.exception() is not None
        return stopped

    async def crash(self, keepers: Keepers) -> None:
        """Its process is gone: nothing more comes of it, its lease is not released."""
        self._lent.discard(keepers)
        tasks = [*keepers._tasks, *keepers._opens]
        for keeper in keepers.graphs.values():
            keeper._lease.on_lost.clear()
            tasks += [*keeper._tasks, keeper._lease._keeper]
        for task in tasks:
            task.cancel()
        keepers._transport.cut = lambda: None  # type: ignore[attr-defined]
        await keepers._transport.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(Exception):
            await keepers._open.aclose()

    async def bus(self, **bus: Any) -> ai.Bus:
        return await self._stack.enter_async_context(session(await self.connect(), self.settings))

    async def wire(self) -> Wire:
        return await Wire.open(await self.connect())

    async def log(self, graph: str = "team") -> list[Entry]:
        """All that a graph's log has."""
        subjects = Subjects()
        stream, subject = subjects.stream(LOG), f"{subjects.kept(LOG)}.context.{graph}"
        found: list[Entry] = []
        async with JetStream(await self.connect()) as jetstream:
            while True:
                at = found[-1].sequence + 1 if found else 1
                more = [decode(stored) async for stored in jetstream.scan(stream, subject, at)]
                if not more:
                    return found
                found += more

    async def changes(self, graph: str = "team") -> list[Entry]:
        """The windows of a graph's log."""
        return [entry for entry in await self.log(graph) if entry.kind is Kind.CHANGE]


class Wire:
    """A caller that writes its frames by hand."""

    def __init__(self, connection: NatsConnection) -> None:
        self._connection = connection
        self._inbox = f"{connection.inbox_prefix}.wire"
        self._came: dict[str, asyncio.Queue[bytes]] = {}

    @classmethod
    async def open(cls, connection: NatsConnection) -> Wire:
        wire = cls(connection)
        await connection.subscribe(f"{wire._inbox}.*", wire._on_reply)
        await connection.flush()
        return wire

    def _on_reply(self, message: Message) -> None:
        self._came[message.subject.rpartition(".")[2]].put_nowait(message.data)

    async def send(self, operation: str, payload: bytes) -> asyncio.Queue[bytes]:
        """Where the answers of a frame come."""
        number = str(len(self._came))
        queue = self._came[number] = asyncio.Queue()
        await self._connection.publish(f"aikoryu.v1.default.{operation}", payload, f"{self._inbox}.{number}")
        return queue

    async def ask(
        self, operation: str, columns: Mapping[str, Values], **parameters: Any
    ) -> tuple[list[dict[str, Any] | None], dict[int, str]]:
        """The answers of a frame's rows, in order, and codes of errors by row."""
        raw = frame_of(columns, **parameters)
        rows = raw["n"]
        queue = await self.send(operation, encode(raw))
        found: list[dict[str, Any] | None] = [None] * rows
        errors: dict[int, str] = {}
        async with asyncio.timeout(WAIT_S):
            while True:
                reply = decode_reply(await queue.get())
                at = [row for first, count in reply.at for row in range(first, first + count)]
                values = {name: unpack(column, len(at)) for name, column in reply.cols.items()}
                for place, row in enumerate(at):
                    assert found[row] is None
                    found[row] = {name: column[place] for name, column in values.items()}
                for error in reply.err:
                    errors |= dict.fromkeys(range(error.row, error.row + (error.n or rows)), error.code)
                if reply.last:
                    return found, errors

    async def ask_json(self, operation: str, frame: Mapping[str, Any]) -> dict[str, Any]:
        """The one answer of a frame in JSON."""
        queue = await self.send(operation, msgspec.json.encode(frame))
        async with asyncio.timeout(WAIT_S):
            answer: dict[str, Any] = msgspec.json.decode(await queue.get())
        return answer


class Latch:
    """Holds up the device's thread of keepers, and lets it go on.

    A work that is under way ends first.
    """

    def __init__(self, keepers: Keepers) -> None:
        self._open = threading.Event()
        self._reached = threading.Event()
        keepers._threads._serving.submit(self._wait)

    def _wait(self) -> None:
        self._reached.set()
        self._open.wait(WAIT_S)

    def release(self) -> None:
        self._open.set()


def frame_of(columns: Mapping[str, Values], **parameters: Any) -> dict[str, Any]:
    """A frame of a caller that has no number."""
    rows = len(next(iter(columns.values())))
    return {"v": 1, "n": rows, "cols": {name: pack(column) for name, column in columns.items()}, "p": parameters}


def puts(names: list[str], vectors: Any, version: int = 1, **more: Values) -> dict[str, Values]:
    """Columns of a frame of puts."""
    count = len(names)
    columns: dict[str, Values] = {"agent": names, "vector": np.asarray(vectors, np.float32)}
    columns |= {"version": np.full(count, version, np.uint64), "writer": np.ones(count, np.uint64)}
    return columns | more


def blended(own: Mapping[str, Any], links: Mapping[tuple[str, str], float], alpha: float = 0.3) -> dict[str, Array]:
    """What reaches each agent, by a dense solve in float64.

    Args:
        own: what each has put, by name.
        links: weights by source and target.
        alpha: of the graph.
    """
    names = sorted({*own, *(end for ends in links for end in ends)})
    number = {name: row for row, name in enumerate(names)}
    dimension = len(next(iter(own.values())))
    vectors, weights = np.zeros((len(names), dimension)), np.eye(len(names))
    for name, vector in own.items():
        vectors[number[name]] = widen_bf16(rounded(np.asarray(vector, np.float32)[None]))[0]
    for (source, target), weight in links.items():
        weights[number[target], number[source]] += np.float32(weight)
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.linalg.solve(np.eye(len(names)) - (1 - alpha) * weights, alpha * vectors)
    return dict(zip(names, found, strict=True))


async def check(graph: Context, own: Mapping[str, Any], links: Mapping[tuple[str, str], float]) -> None:
    """What a graph says reaches its agents is as near to what should as promised."""
    expected = blended(own, links)
    seen = await graph.get_many(list(expected))
    for name, vector in zip(expected, seen.vectors, strict=True):
        assert np.linalg.norm(vector - expected[name]) <= 1e-3 / 0.3 + ROUNDING, name


async def until(condition: Callable[[], object], within_s: float = WAIT_S) -> None:
    """Return when a condition holds; fail if it does not in time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is in other tasks and a server
            await asyncio.sleep(0.002)


def keeper(keepers: Keepers, graph: str = "team") -> GraphKeeper:
    """Who has a graph."""
    return keepers.graphs[graph]


def drawn(names: Iterable[str], dimension: int, seed: int) -> dict[str, Array]:
    """A vector for each."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(dimension).astype(np.float32) for name in names}

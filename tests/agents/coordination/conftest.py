"""A server that keeps its store over restarts, agents in this process, and agents that are processes of their own."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aikoryu.agents.coordination import Coordination, coordination
from aikoryu.bus import connection as connection_module
from aikoryu.bus.connection import NatsConnection
from aikoryu.bus.jetstream import JetStream, NoAnswer
from aikoryu.bus.options import ConnectOptions
from aikoryu.bus.subjects import Subjects

from ..lasting_server import Server

MEMBER = Path(__file__).parent / "member.py"


class Clock:
    """Monotonic time that a test can shift, s."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.shift_s


class Deaf(JetStream):
    """Loses answers to publishes.

    Attributes:
        faults: one letter a publish: `a` the answer is lost, `r` the request is lost, `-` it passes.
        then: called after a loss.
    """

    faults = ""
    then: Callable[[], Awaitable[object]] | None = None

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout_s: float | None = None
    ) -> int:
        fault, self.faults = self.faults[:1], self.faults[1:]
        if fault == "r":
            raise NoAnswer("lost by the test")
        sequence = await super().publish(subject, payload, headers, timeout_s=timeout_s)
        if fault == "a":
            if self.then is not None:
                await self.then()
            raise NoAnswer("lost by the test")
        return sequence


class Agent(Coordination):
    """An agent in this process.

    Attributes:
        connection: its own.
        clock: its own.
    """

    def __init__(self, connection: NatsConnection, clock: Clock, name: str) -> None:
        super().__init__(connection, Subjects(), name=name, clock=clock)
        self.connection = connection
        self.clock = clock

    async def deaf(self, faults: str, then: Callable[[], Awaitable[object]] | None = None) -> None:
        """Lose what `Deaf` says of the next publishes."""
        jetstream = await self._jetstream()
        assert isinstance(jetstream, Deaf)
        jetstream.faults, jetstream.then = faults, then


class Member:
    """An agent that is a process of its own, told what to do line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        await self.process.stdin.drain()

    async def says(self) -> list[str]:
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            return (await self.process.stdout.readline()).decode().split()

    async def ask(self, *words: object) -> list[str]:
        await self.tell(*words)
        return await self.says()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


Join = Callable[..., Awaitable[Agent]]
Spawn = Callable[[], Awaitable[Member]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was lost comes back soon."""
    monkeypatch.setattr(connection_module, "RETRY_LONGEST_S", 0.05)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "store")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def join(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Join]:
    """Connect an agent of this process; each is closed after the test."""
    monkeypatch.setattr(coordination, "JetStream", Deaf)
    async with AsyncExitStack() as stack:

        async def open_(name: str = "one", url: str = "") -> Agent:
            connection = await NatsConnection.open(ConnectOptions(url or server.url))
            stack.push_async_callback(connection.close)
            agent = Agent(connection, Clock(), name)
            stack.push_async_callback(agent.close)
            return agent

        yield open_


@pytest.fixture
async def agent(join: Join) -> Agent:
    return await join()


@pytest.fixture
async def spawn(server: Server) -> AsyncIterator[Spawn]:
    """Start an agent as a process; each is killed after the test."""
    async with AsyncExitStack() as stack:

        async def start() -> Member:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(MEMBER), server.url, stdin=PIPE, stdout=PIPE
            )
            member = Member(process)
            stack.push_async_callback(member.kill)
            assert await member.says() == ["ready"]
            return member

        yield start


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until a condition holds; fail after 10 s."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the condition is in another process
                await asyncio.sleep(0.005)

    return wait

"""Servers on free ports, and a way to wait for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class RestartableServer:
    """An embedded server that comes back on the port it had.

    Attributes:
        url: where it listens.
    """

    def __init__(self) -> None:
        self.url = ""
        self._server: EmbeddedServer | None = None
        self._port = 0

    async def start(self, config: str = "", max_payload_bytes: int = 1024 * 1024) -> None:
        settings = ServerSettings(port=self._port, max_payload_bytes=max_payload_bytes)
        self._server = EmbeddedServer(settings, extra_config=config)
        await self._server.start()
        self.url = self._server.url
        self._port = urlsplit(self.url).port or 0

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    async def restart(self, config: str = "") -> None:
        await self.stop()
        await self.start(config)


@pytest.fixture
async def start_server() -> AsyncIterator[Callable[..., Awaitable[RestartableServer]]]:
    """Start a server with lines of configuration; each is stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(config: str = "", **limits: int) -> RestartableServer:
            server = RestartableServer()
            await server.start(config, **limits)
            stack.push_async_callback(server.stop)
            return server

        yield start


@pytest.fixture
def eventually() -> Eventually:
    """Wait until a condition holds; fail after 10 s."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the condition is in another process
                await asyncio.sleep(0.005)

    return wait

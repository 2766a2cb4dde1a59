"""A nats-server whose durable data outlive it, for tests that end it and start it again."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings


class Server:
    """A server that comes back on the port and with the store it had."""

    def __init__(self, store: Path) -> None:
        self.url = ""
        self._store = store
        self._server: EmbeddedServer

    async def start(self) -> None:
        port = urlsplit(self.url).port or 0
        self._server = EmbeddedServer(ServerSettings(port=port, store_dir=str(self._store)))
        await self._server.start()
        self.url = self._server.url

    async def stop(self) -> None:
        await self._server.stop()

    async def restart(self, *, kill: bool = False) -> None:
        """End the server and start it again; killed, it says nothing to those it served."""
        process = self._server._process
        if kill and process is not None:
            process.kill()
            await process.wait()
        await self.stop()
        await self.start()

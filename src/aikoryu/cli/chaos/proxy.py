"""A TCP proxy before the server: the network, to be cut."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


class Proxy:
    """Passes connections on to a server as long as it is not told otherwise.

    Attributes:
        url: where it listens, `nats://127.0.0.1:port`; set once it has started.
    """

    url: str

    def __init__(self, server_url: str) -> None:
        where = urlsplit(server_url)
        self._host, self._port = where.hostname or "", where.port or 0
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[asyncio.StreamWriter] = set()
        self._passing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None, "it was started"
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def stall(self) -> None:
        """Let nothing through any more: connections stay, silent, as when a cable is pulled."""
        self._flowing.clear()

    def cut(self) -> None:
        """Reset every connection."""
        for link in list(self._links):
            link.transport.abort()

    def mend(self) -> None:
        """Let through what comes, and what waited."""
        self._flowing.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._links.add(sink)
        try:
            while data := await source.read(CHUNK_BYTES):
                await self._flowing.wait()
                if sink.is_closing():  # it was cut meanwhile: uvloop raises where asyncio drops
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._links.discard(sink)
            sink.transport.abort()

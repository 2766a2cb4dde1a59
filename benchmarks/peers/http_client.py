"""A lean HTTP/1.1 keep-alive client: the load generator for HTTP peers where no C one can be used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class HttpClient:
    """POSTs bodies to one path of a loopback server, a kept-alive connection for every call in flight."""

    def __init__(self, port: int, path: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        """Connections are opened as calls need them.

        Args:
            port: port of 127.0.0.1.
            path: path to POST to.
            encode: row to body.
            decode: body to answer.
        """
        self._port = port
        self._head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: ".encode()
        self._encode = encode
        self._decode = decode
        self._idle: list[_Connection] = []

    async def call(self, row: Any) -> Any:
        """The answer to one row.

        Raises:
            ConnectionError: the server closed the connection or answered with another status than 200. After a raise or
                a cancellation the connection is closed, so a server can see that the caller left.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        body = self._encode(row)
        try:
            answer = await connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return self._decode(answer)

    async def call_many(self, rows: Any) -> list[Any]:
        """The answers to rows, a request each."""
        return await asyncio.gather(*map(self.call, rows))

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(_END)
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        start = head.find(_LENGTH) + len(_LENGTH)
        body_at = head_end + len(_END)
        if len(self._buffer) < body_at + int(head[start:].split(b"\r\n", 1)[0]):
            return
        body, self._buffer = self._buffer[body_at:], b""
        if self._answer is None or self._answer.done():
            return
        if head[9:12] == b"200":
            self._answer.set_result(body)
        else:
            self._answer.set_exception(ConnectionError(f"{head.splitlines()[0].decode()}: {body[:200]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        """Send a request and wait for the body of its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Drop the connection."""
        self._transport.abort()

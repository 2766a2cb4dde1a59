"""The receiving side of a NATS connection: from the socket to the callback without a task, a queue or a second buffer.

nats-py reads through a stream, its parser and a queue a subscription: 56 µs for a message of 64 KiB, and three loop
iterations. Here the socket's own callback cuts the bytes into messages and calls who subscribed. What is not a message
for one of these callbacks (PING, INFO, errors, other subscriptions) is left to nats-py's parser, whole and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nats import errors

from .transport import Callback

LONGEST_LINE = 4096  # of the protocol's control lines, bytes: the server's own limit
# Messages handed over before the loop turns. uvloop reads up to 32 × 256 KiB at once while the socket has more: beside
# 50,000 messages a second a front whose core was full started two batches a turn and answered 1,000 a second, with this
# 12,000.
AT_ONCE = 128

_END = b"\r\n"


class Incoming:
    """A received message; see `transport.Message`."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.headers = headers


class Reader(asyncio.Protocol):
    """Takes a connection's socket over from its stream.

    Args:
        callbacks: who gets the messages of a subscription, by its number; shared with the client, which changes it.
        failed: called with an error that concerns one message only.

    Attributes:
        rest: protocol text for nats-py's parser, in order; an exception when the connection has ended.
    """

    def __init__(self, callbacks: dict[int, Callback], failed: Callable[[Exception], None]) -> None:
        self.rest: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._callbacks = callbacks
        self._failed = failed
        self._streams: asyncio.StreamReaderProtocol | None = None
        self._socket: asyncio.Transport | None = None
        self._handed = 0
        self._chunks: list[bytes] = []
        self._missing = 0
        self._stopped = False

    def take_over(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Become the protocol of a stream's transport, beginning with what the stream has buffered."""
        transport: Any = writer.transport
        self._streams = transport.get_protocol()
        transport.set_protocol(self)
        self._socket = transport
        transport.resume_reading()
        buffered = bytes(stream._buffer)  # type: ignore[attr-defined]
        if buffered:
            self.data_received(buffered)
        if stream.at_eof():
            self.eof_received()

    def stop(self) -> None:
        """Hand nothing over any more."""
        self._stopped = True

    def data_received(self, data: bytes) -> None:
        """Cut what came into messages; an incomplete one waits for its rest, uncopied until it is whole."""
        if self._stopped:
            return
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        at, length = 0, len(data)
        while at < length:
            end = data.find(_END, at)
            if end < 0:
                if length - at > LONGEST_LINE:
                    self.rest.put_nowait(errors.ProtocolError())
                    self.stop()
                    return
                self._keep(data[at:], 1)
                return
            if data.startswith((b"MSG ", b"HMSG "), at):
                line = data[at:end].split()
                after = end + 2 + int(line[-1]) + 2
                if after > length:
                    self._keep(data[at:], after - length)
                    return
                self._dispatch(line, data, at, end + 2, after)
            else:
                after = end + 2
                self.rest.put_nowait(data[at:after])
            at = after
        if self._handed >= AT_ONCE:
            self._let_others_run()

    def eof_received(self) -> None:
        """The server has closed its side."""
        self.rest.put_nowait(errors.UnexpectedEOF())

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; the stream's own protocol knows who waits for that."""
        self.rest.put_nowait(exc or errors.UnexpectedEOF())
        if self._streams is not None:
            self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket takes no more: `drain` waits, in the stream's own protocol."""
        if self._streams is not None:
            self._streams.pause_writing()

    def resume_writing(self) -> None:
        """The socket takes more again."""
        if self._streams is not None:
            self._streams.resume_writing()

    def _keep(self, part: bytes, missing: int) -> None:
        self._chunks.append(part)
        self._missing = missing

    def _dispatch(self, line: list[bytes], data: bytes, at: int, body: int, after: int) -> None:
        """Hand over the message whose control line is `line` and whose body lies from `body` to two before `after`."""
        callback = self._callbacks.get(int(line[2]))
        if callback is None:
            self.rest.put_nowait(data[at:after])
            return
        try:
            if line[0] == b"MSG":
                reply = line[3].decode() if len(line) == 5 else ""
                message = Incoming(line[1].decode(), reply, data[body : after - 2], None)
            else:
                reply = line[3].decode() if len(line) == 6 else ""
                split = body + int(line[-2])
                message = Incoming(line[1].decode(), reply, data[split : after - 2], headers_of(data[body:split]))
        except UnicodeDecodeError as error:
            # One publish of anyone with a subject that is not UTF-8 must not deafen the connection.
            self._failed(error)
            return
        self._handed += 1
        callback(message)

    def _let_others_run(self) -> None:
        """Read on when the loop has turned."""
        self._handed = 0
        if self._socket is not None and not self._socket.is_closing():
            self._socket.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()


def headers_of(block: bytes) -> dict[str, str]:
    """The headers of a message, an inline status (`NATS/1.0 503 No Responders`) as `Status` and `Description`.

    Source: NATS ADR-4.
    """
    first, _, rest = block.partition(_END)
    headers: dict[str, str] = {}
    status, _, description = first[len(b"NATS/1.0") :].strip().partition(b" ")
    if status.isdigit():
        headers["Status"] = status.decode()
        if description:
            headers["Description"] = description.decode("utf-8", "replace")
    for line in rest.split(_END):
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers

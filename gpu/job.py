"""What a front and an engine say to each other about batches whose data lies in slabs.

Messages go over a stream socket, each a four-byte length and MessagePack. They hold offsets, never rows.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

import msgspec

from ..bus.columns import Field, Schema
from ..bus.faults import Rule

MAX_UNSENT_BYTES = 64 << 20  # the errors of a front's batches are a fraction of it
MAX_SLABS = 128  # of a front: what one message may carry is bounded by the kernel at 253

_LENGTH = struct.Struct("<I")


class Part(msgspec.Struct, array_like=True):
    """A column in a slab: its data, and its u32 offsets if of variable width (`offsets` < 0: fixed)."""

    name: str
    field: Field
    data: int
    data_bytes: int
    offsets: int = -1


class Job(msgspec.Struct, array_like=True, tag="job"):
    """A batch to run.

    Attributes:
        id: the batch's number, counted by the front.
        slab: number of the slab it lies in.
        operation: what to run.
        rows: how many.
        parts: the input columns.
        parameters: encoded map.
        alive: offset of (rows,) bool; the front clears rows whose caller has gone, also while the batch runs.
        free: offset from which results may be written.
        began: offset at which the engine writes when it begins the batch, 0 before; negative: nobody asks.
        alone: nothing may run with it or beside it: engines may have died of it.
    """

    id: int
    slab: int
    operation: str
    rows: int
    parts: list[Part]
    parameters: bytes
    alive: int
    free: int
    began: int = -1
    alone: bool = False

    @property
    def lane(self) -> tuple[str, bytes, Schema]:
        """What batches must have in common to run as one: operation, parameters, and name and type of each column."""
        return self.operation, self.parameters, tuple([(part.name, part.field) for part in self.parts])


class Done(msgspec.Struct, array_like=True, tag="done"):
    """A batch's end.

    Attributes:
        id: the batch's number.
        parts: the answer's columns, in the same slab.
        errors: (row, code, message) of rows refused.
        run_us: time on the device, µs.
        failed: code of an error that concerns every row; empty if there is none.
        message: that error's message.
    """

    id: int
    parts: list[Part]
    errors: list[tuple[int, str, str]]
    run_us: int
    failed: str = ""
    message: str = ""


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """A front's first message, the file descriptors of its slabs beside it.

    Attributes:
        slab_bytes: size of each slab.
    """

    slab_bytes: int


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """An engine's process waits for batches.

    To its host it says that it has loaded. To a front it is the engine's first message, the file descriptor of its
    pulse beside it: eight bytes of shared memory in which the engine writes when it last began a batch, whosever.

    Attributes:
        device: its name.
        pid: its process.
    """

    device: str
    pid: int


class Begin(msgspec.Struct, array_like=True, tag="begin"):
    """A host lets an engine's process serve: until then it has loaded everything, and waits."""


class Report(msgspec.Struct, array_like=True, tag="report"):
    """An engine's figures, by the name of the metric (without its prefix)."""

    figures: dict[str, float]


class Inject(msgspec.Struct, array_like=True, tag="inject"):
    """A front asks its engine to misbehave; only an engine that was started for it does.

    Attributes:
        name: of the order, the same from every front; an engine takes it once.
        rules: what goes wrong from now on, in place of what did before.
    """

    name: str
    rules: list[Rule]


Message = Job | Done | Hello | Ready | Begin | Report | Inject
First = TypeVar("First", Hello, Ready)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class ControlSocket:
    """One end of the connection between front and engine."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self._unsent = bytearray()

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            OSError: the other end is gone, or (non-blocking) has not read for so long that its buffer is full.
        """
        body = _encoder.encode(message)
        self.sock.sendall(_LENGTH.pack(len(body)) + body)

    def send_soon(self, message: Message) -> bool:
        """Send one message as far as the other end reads, the rest with `flush`; whether all has gone.

        Raises:
            OSError: the other end is gone, or has not read for `MAX_UNSENT_BYTES`.
        """
        body = _encoder.encode(message)
        self._unsent += _LENGTH.pack(len(body)) + body
        return self.flush()

    def flush(self) -> bool:
        """Send what is left, as far as the other end reads; whether all has gone.

        Raises:
            OSError: as for `send_soon`.
        """
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        if len(self._unsent) > MAX_UNSENT_BYTES:
            raise TimeoutError("the other end does not read")
        return not self._unsent

    def greet(self, first: Hello | Ready, fds: list[int]) -> None:
        """Send this end's first message, with file descriptors.

        Raises:
            OSError: the other end is gone.
        """
        body = _encoder.encode(first)
        socket.send_fds(self.sock, [_LENGTH.pack(len(body)) + body], fds)

    def receive_greeting(self, kind: type[First]) -> tuple[First, list[int]]:
        """The other end's first message, and the file descriptors beside it.

        Raises:
            EOFError: it went away.
            BlockingIOError: it has not spoken yet (non-blocking).
            msgspec.DecodeError: it says something else.
        """
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 10, MAX_SLABS)
        if not data:
            raise EOFError
        try:
            return msgspec.msgpack.decode(data[_LENGTH.size :], type=kind), list(fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def receive(self) -> Iterator[Message]:
        """Read once from the socket, and give every message that is complete.

        Raises:
            EOFError: the other end is gone.
            BlockingIOError: nothing to read (non-blocking).
        """
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield _decoder.decode(body)

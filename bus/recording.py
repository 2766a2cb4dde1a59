"""Recordings: what was asked on a bus and what was answered, in a file that is only ever appended to.

A file is `MAGIC`, then records. A record is the length and the CRC-32 of its body (two u32, little-endian) and the
body, a MessagePack array whose first element names its kind. Whoever reads stops at the first record that is not whole,
so a writer may be killed at any moment. docs/replay.md describes the file for other languages.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from array import array
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from struct import Struct
from typing import TypeAlias
from zlib import crc32

import msgspec
import numpy as np

from .columns import Array
from .errors import BusError
from .exchange import Exchange

MAGIC = b"\x89AIKREC\n"
VERSION = 1

READ_TOGETHER = 256  # exchanges, before others get their turn

_HEAD = Struct("<II")


class BadRecording(BusError):
    """The file is no recording, or of a version that is not known here. Whoever named it must act."""

    code = "bad_recording"


class RecordingFull(BusError):
    """The next record would make the file larger than it may become; it was not written."""

    code = "recording_full"


class Began(msgspec.Struct, array_like=True, tag="recording"):
    """The first record.

    Attributes:
        v: version of the format.
        root: the first tokens of every subject recorded: prefix, version of the bus and namespace.
        patterns: which operations were recorded.
        time_ns: when it began, ns since 1970.
    """

    v: int
    root: str
    patterns: tuple[str, ...]
    time_ns: int


class Asked(msgspec.Struct, array_like=True, tag="asked"):
    """A request frame as it was sent, numbered from 0; `operation` is its subject below the root."""

    number: int
    time_ns: int
    operation: str
    data: memoryview


class Answered(msgspec.Struct, array_like=True, tag="answered"):
    """A reply frame to request `number`, as it was sent; of one request there may be several."""

    number: int
    time_ns: int
    data: memoryview


class Ended(msgspec.Struct, array_like=True, tag="ended"):
    """The last record, of a recording that was not cut: what was counted beside what is in the file."""

    time_ns: int
    counts: dict[str, int]


Record: TypeAlias = Began | Asked | Answered | Ended

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class RecordingWriter:
    """Writes a recording. A context manager.

    Each record is handed to the operating system before the call returns, so a process that is killed loses none; a
    machine that loses power may.

    Args:
        path: the file, which must not be there yet.
        root, patterns, time_ns: see `Began`.
        most_bytes: the file does not become larger.

    Attributes:
        bytes: of the file so far.
        requests, answers: records so far.

    Raises:
        OSError: the file is there, or cannot be written.
    """

    def __init__(self, path: str | Path, root: str, patterns: tuple[str, ...], time_ns: int, most_bytes: int) -> None:
        self.bytes = 0
        self.requests = 0
        self.answers = 0
        self._most_bytes = most_bytes
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._append(MAGIC + _record(Began(VERSION, root, patterns, time_ns)))

    def asked(self, time_ns: int, operation: str, data: bytes) -> int:
        """Write a request, and give its number. Raises as `answered`."""
        number = self.requests
        self._append(_record(Asked(number, time_ns, operation, memoryview(data))))
        self.requests += 1
        return number

    def answered(self, number: int, time_ns: int, data: bytes) -> None:
        """Write an answer.

        Raises:
            RecordingFull: the file may not become that large; nothing was written.
            OSError: it cannot be written; the file ends with the record before.
        """
        self._append(_record(Answered(number, time_ns, memoryview(data))))
        self.answers += 1

    def end(self, time_ns: int, counts: Mapping[str, int]) -> None:
        """Write the last record, for which there is always room."""
        self._most_bytes = 1 << 63
        self._append(_record(Ended(time_ns, dict(counts))))

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, record: bytes) -> None:
        if self.bytes + len(record) > self._most_bytes:
            raise RecordingFull(f"the recording would exceed {self._most_bytes} bytes: let it grow, or record less")
        written = 0
        try:
            while written < len(record):
                written += self._file.write(record[written:] if written else record)
        except OSError:
            os.truncate(self._file.fileno(), self.bytes)
            raise
        self.bytes += len(record)


class Recording:
    """A recording that is read: an index of it, and its exchanges out of a map of the file.

    A file that is still being written gives what was there when it was opened.

    Args:
        path: the file.

    Attributes:
        began: its first record.
        ended: its last one; None if it was cut, or is still being written.
        truncated: it ends, or is damaged, inside a record; what came before is given.
        operations: of each exchange, by its number in `names`.
        names: the operations that were asked for.
        times_ns: (n,) int64, when each request came, ns since 1970.
        sizes: (n,) int64, bytes of each request.

    Raises:
        BadRecording: the file is none, or of another version.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BadRecording(f"{path} is no recording: name a file that `aikoryu record` wrote")
            self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.names: list[str] = []
        self.ended: Ended | None = None
        self.truncated = False
        self._scan(str(path))

    def __len__(self) -> int:
        return len(self.times_ns)

    def exchange(self, number: int) -> Exchange:
        """One request, and the answers it got, in the order in which they came."""
        asked = self._read(int(self._asked[number]))
        assert isinstance(asked, Asked)
        first, end = np.searchsorted(self._numbers, [number, number + 1])
        found = [self._read(int(at)) for at in self._answered[first:end]]
        answers = tuple((each.time_ns, bytes(each.data)) for each in found if isinstance(each, Answered))
        return Exchange(number, asked.time_ns, asked.operation, bytes(asked.data), answers)

    def _scan(self, path: str) -> None:
        known: dict[str, int] = {}
        times, sizes, asked = array("q"), array("q"), array("q")
        operations, answered, numbers = array("q"), array("q"), array("q")
        began: Began | None = None
        at, end = len(MAGIC), len(self._map)
        while at < end:
            record = self._whole(at)
            if began is None:
                if not isinstance(record, Began):
                    raise BadRecording(f"{path} was cut within its first record: nothing is in it")
                if record.v != VERSION:
                    raise BadRecording(f"{path} is a recording of version {record.v}, {VERSION} is known here: upgrade")
                began = record
            elif isinstance(record, Asked) and record.number == len(asked):
                operations.append(known.setdefault(record.operation, len(known)))
                times.append(record.time_ns)
                sizes.append(len(record.data))
                asked.append(at)
            elif isinstance(record, Answered) and record.number < len(asked):
                numbers.append(record.number)
                answered.append(at)
            elif isinstance(record, Ended):
                self.ended = record
            else:
                self.truncated = True
                break
            at += _HEAD.size + _HEAD.unpack_from(self._map, at)[0]
        if began is None:
            raise BadRecording(f"{path} was cut within its first record: nothing is in it")
        self.began = began
        self.names = list(known)
        self.operations, self.times_ns, self.sizes, self._asked = map(_array, (operations, times, sizes, asked))
        order = np.argsort(_array(numbers), kind="stable")
        self._numbers, self._answered = _array(numbers)[order], _array(answered)[order]

    def _whole(self, at: int) -> Record | None:
        """The record at an offset; None if it is not whole."""
        if at + _HEAD.size > len(self._map):
            return None
        size, checksum = _HEAD.unpack_from(self._map, at)
        body = self._map[at + _HEAD.size : at + _HEAD.size + size]
        if len(body) < size or crc32(body) != checksum:
            return None
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _read(self, at: int) -> Record:
        size, _ = _HEAD.unpack_from(self._map, at)
        return _decoder.decode(self._map[at + _HEAD.size : at + _HEAD.size + size])


async def read(path: str | Path) -> AsyncIterator[Exchange]:
    """The exchanges of a recording, in the order in which they were asked. Raises as `Recording`."""
    recording = Recording(path)
    for number in range(len(recording)):
        yield recording.exchange(number)
        if number % READ_TOGETHER == READ_TOGETHER - 1:
            await asyncio.sleep(0)


def is_recording(path: str | Path) -> bool:
    """Whether a file begins as a recording does.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _record(record: Record) -> bytes:
    body = _encode(record)
    return _HEAD.pack(len(body), crc32(body)) + body


def _array(values: array[int]) -> Array:
    return np.array(values, np.int64)

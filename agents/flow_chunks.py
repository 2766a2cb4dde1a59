"""Whatever holds packets and their times, as chunks for a table of flows: captures, scapy's packets, Arrow's, live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..bus.columns import Array
from ..bus.errors import BadColumn
from ..netio.capture import Capture
from ..netio.packet_index import PacketIndex
from .frames import PacketSource, batches, captured, is_scapy

TICK_S = 1.0
"""Between two looks at the clock of packets that come live."""
LINGER_S = 0.1
"""For which packets that come live wait for others."""
QUEUED = 64
"""Parts of a live source that are read ahead."""
OVERHEAD_BYTES = 18
"""Of a packet, besides its own: length, time, bytes on the wire, link type."""
SECOND_NS = 10**9
US_NS = 1000


@dataclass(frozen=True, eq=False)
class Timed:
    """Packets and when each of them was captured.

    Attributes:
        frames: n packets.
        time_ns: (n,) int64, nanoseconds since 1970.
        wire: (n,) bytes of each on the wire; None where that is what `frames` has.
        link: (n,) link types; None where all are of the type that the call names.
    """

    frames: Sequence[bytes]
    time_ns: Any
    wire: Any = None
    link: Any = None

    def __len__(self) -> int:
        return len(self.frames)


TimedSource: TypeAlias = "str | Path | Capture | Timed | PacketSource"
"""Path of a capture, an open one, `Timed`, packets of scapy, or an Arrow table with the columns `frame` and `time`."""

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Piece:
    """Packets of one chunk.

    Attributes:
        row: makes the columns `frames`, `lengths`, `times`, `wire` and `links` of the chunk.
        held_bytes: that stay in memory as long as this does.
        now_ns: the time at which flows end after these packets; 0 for none.
        is_end: nothing follows.
    """

    row: Callable[[], Row]
    held_bytes: int = 0
    now_ns: int = 0
    is_end: bool = False


def _nothing() -> Row:
    return {"frames": b"", "lengths": b"", "times": b"", "wire": b"", "links": b""}


def tick(now_ns: int = 0) -> Piece:
    """A chunk without packets."""
    return Piece(_nothing, now_ns=now_ns)


END = Piece(_nothing, is_end=True)


@dataclass(frozen=True)
class Size:
    """How large a chunk may be.

    Attributes:
        packets: most of them.
        bytes: most bytes of its columns.
    """

    packets: int
    bytes: int

    def cuts(self, lengths: Array) -> Iterator[slice]:
        """Packets of these lengths in runs that are no larger; at least one each."""
        first, ends = 0, np.cumsum(lengths.astype(np.int64) + OVERHEAD_BYTES)
        while first < len(lengths):
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + self.bytes, "right"))
            last = min(max(last, first + 1), first + self.packets)
            yield slice(first, last)
            first = last


def of_capture(capture: Capture, size: Size, link: int) -> Iterator[Piece]:
    """The packets of a capture, which are read again if they are to be sent again.

    Flows end, after each `size.packets`, by the earliest time among these, as `netio.capture_flows` has it.
    """
    for index in capture.batches(size.packets):
        now_ns = int(index.time_ns[index.timed].min()) if index.timed.any() else 0
        for cut in size.cuts(index.captured):
            part = index[cut]
            last = cut.stop == len(index)
            yield Piece(partial(_captured, capture, part, link), _index_bytes(part), now_ns if last else 0)


def of_packets(packets: Timed, size: Size, link: int) -> Iterator[Piece]:
    """Packets in memory; flows end as those of a capture."""
    for first in range(0, len(packets), size.packets):
        part = _cut(packets, slice(first, first + size.packets))
        times = np.asarray(part.time_ns, np.int64)
        for cut in size.cuts(np.array([len(frame) for frame in part.frames])):
            piece = _cut(part, cut)
            now_ns = int(times.min()) if cut.stop == len(part) else 0
            held = sum(map(len, piece.frames)) + OVERHEAD_BYTES * len(piece)
            yield Piece(partial(_timed, piece, link), held, now_ns)


def timed(source: Any) -> Timed:
    """Packets of scapy, of an Arrow table or of a block of an interface with their times; `Timed` as it is.

    Raises:
        BadColumn: it holds no packets, or no times.
    """
    if isinstance(source, Timed):
        if len(np.asarray(source.time_ns)) != len(source):
            raise BadColumn(f"{len(source)} packets have {len(np.asarray(source.time_ns))} times: give one for each")
        return source
    if isinstance(source, Capture):
        index = source.index
        frames: list[Any] = captured(source.blob, index)["frame"]  # type: ignore[assignment]
        return Timed(frames, index.time_ns, index.wire, index.link)
    if type(source).__module__.partition(".")[0] == "pyarrow":
        names = source.schema.names if hasattr(source, "schema") else ()
        if "time" not in names:
            raise BadColumn("the table has no column `time`: give timestamps, or ns since 1970 as int64")
        times = np.array(source.column("time").to_numpy(), "M8[ns]").astype(np.int64)
    else:
        source = list(source)
        try:
            times = np.array([int(packet.time * SECOND_NS) for packet in source], np.int64)
        except AttributeError:
            raise BadColumn("bytes of packets have no times: give them as `Timed(frames, time_ns)`") from None
    columns = list(batches(source))
    frames = [frame for part in columns for frame in part["frame"]]
    rest = {
        name: np.concatenate([np.asarray(part[name]) for part in columns])
        for name in ("wire", "link")
        if columns and name in columns[0]
    }
    return Timed(frames, times, **rest)


class Live:
    """Packets as they come, and a clock that goes on while none do.

    The clock is the earliest time of the packets that came last, and goes on from there: so that packets of the past
    can be sent as if they came now.

    Args:
        source: gives packets, a few at a time or one by one.
        size: of a chunk.
        link: link type of packets that come without one.
    """

    def __init__(self, source: AsyncIterable[Any], size: Size, link: int) -> None:
        self._size = size
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Timed | BaseException | None] = asyncio.Queue(QUEUED)
        self._pieces: list[Piece] = []
        self._waiting: list[Timed] = []
        self._last: BaseException | None = None
        self._is_over = False
        self._clock_ns = 0
        self._seen = 0.0
        self._tick_at = self._loop.time() + TICK_S
        self._reader = asyncio.create_task(self._read(source))

    async def next(self) -> Piece:
        """What is to be sent next; `END` when the source has come to its end, which it may be asked for again.

        May be cancelled: nothing is lost.

        Raises:
            Exception: what the source raised.
        """
        while not self._pieces:
            if self._is_over and not self._waiting:
                if self._last is not None:
                    raise self._last
                return END
            await self._collect()
            self._cut()
        return self._pieces.pop(0)

    def close(self) -> None:
        """Read no more."""
        self._reader.cancel()

    async def _read(self, source: AsyncIterable[Any]) -> None:
        try:
            async for given in source:
                await self._queue.put(timed(given if _holds_packets(given) else [given]))
            await self._queue.put(None)
        except Exception as error:
            await self._queue.put(error)

    async def _collect(self) -> None:
        """Wait for packets, and a little for more of them, or until it is time to look at the clock."""
        linger_at = float("inf")
        while not self._is_over and sum(map(len, self._waiting)) < self._size.packets:
            try:
                async with asyncio.timeout_at(min(linger_at, self._tick_at)):
                    given = await self._queue.get()
            except TimeoutError:
                return
            if isinstance(given, Timed):
                if len(given):
                    self._waiting.append(given)
                    self._clock_ns, self._seen = int(np.min(given.time_ns)), self._loop.time()
                    linger_at = min(linger_at, self._seen + LINGER_S)
            else:
                self._is_over, self._last = True, given

    def _cut(self) -> None:
        """Make chunks of what has come; the last of them has the time if it is due."""
        if self._waiting:
            self._pieces += of_packets(_joined(self._waiting, self._link), self._size, self._link)
            self._waiting = []
        now = self._loop.time()
        if now >= self._tick_at:
            self._tick_at = now + TICK_S
            if self._clock_ns:  # some packet has come
                self._pieces.append(tick(self._clock_ns + int((now - self._seen) * SECOND_NS)))


def _holds_packets(given: Any) -> bool:
    """Whether it is no packet itself, though that may have a length, too."""
    if isinstance(given, bytes | bytearray | memoryview) or is_scapy(given):
        return False
    return isinstance(given, Capture) or hasattr(given, "__len__")


def _captured(capture: Capture, index: PacketIndex, link: int) -> Row:
    frames: list[Any] = captured(capture.blob, index)["frame"]  # type: ignore[assignment]
    return _row(b"".join(frames), index.captured, index.time_ns, index.wire, index.link, link)


def _timed(packets: Timed, link: int) -> Row:
    lengths = np.array([len(frame) for frame in packets.frames], "<u4")
    wire = lengths if packets.wire is None else np.asarray(packets.wire)
    links = np.full(len(packets), link) if packets.link is None else np.asarray(packets.link)
    return _row(b"".join(packets.frames), lengths, np.asarray(packets.time_ns), wire, links, link)


def _row(frames: bytes, lengths: Array, times: Array, wire: Array, links: Array, link: int) -> Row:
    return {
        "frames": frames,
        "lengths": lengths.astype("<u4").tobytes(),
        "times": times.astype("<i8").tobytes(),
        "wire": wire.astype("<u4").tobytes() if (wire != lengths).any() else b"",
        "links": links.astype("<u2").tobytes() if (links != link).any() else b"",
    }


def _cut(packets: Timed, rows: slice) -> Timed:
    wire = None if packets.wire is None else packets.wire[rows]
    link = None if packets.link is None else packets.link[rows]
    return Timed(packets.frames[rows], packets.time_ns[rows], wire, link)


def _joined(parts: Sequence[Timed], link: int) -> Timed:
    if len(parts) == 1:
        return parts[0]
    lengths = [[len(frame) for frame in part.frames] for part in parts]
    wire = [sizes if part.wire is None else part.wire for part, sizes in zip(parts, lengths, strict=True)]
    links = [np.full(len(part), link) if part.link is None else part.link for part in parts]
    frames = [frame for part in parts for frame in part.frames]
    times = np.concatenate([part.time_ns for part in parts])
    return Timed(frames, times, np.concatenate(wire), np.concatenate(links))


def _index_bytes(index: PacketIndex) -> int:
    return sum(getattr(index, name).nbytes for name in index.__slots__)

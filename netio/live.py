"""Packets of a network interface, as they come, on Linux.

docs/decisions/011-live-capture.md tells why it is done so.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from .bpf import compiled
from .capture import BATCH_PACKETS, Capture
from .errors import CannotCapture
from .packet_index import Array, PacketIndex
from .ring import Ring, read_block


class Counts(NamedTuple):
    """What became of the packets since the start.

    Attributes:
        received: how many passed the filter.
        dropped: how many of them found no room, because blocks were not taken in time.
    """

    received: int
    dropped: int


class Block(Capture):
    """Some packets of an interface: taken wherever a capture is.

    Args:
        blob: (m,) uint8, in which they lie.
        index: where, with times in ns and lengths on the wire.
    """

    def __init__(self, blob: Array, index: PacketIndex) -> None:
        self.blob = blob
        self.truncated = False
        self.index = index

    def batches(self, limit: int = BATCH_PACKETS) -> Iterator[PacketIndex]:
        """The packets in runs of `limit`, the last one shorter."""
        for first in range(0, len(self.index), limit):
            yield self.index[first : first + limit]


class LiveCapture:
    """The packets of an interface from now on, both those that come and those that go. A context manager.

    A block is there when it is full (1 MiB) or 0.1 s after its first packet; 32 MiB wait for whoever takes them, what
    comes then is dropped and counted. Frames are longer than the MTU, up to 512 KiB, where offloads of the interface
    join or have yet to cut them: `ethtool -K IFACE gro off gso off tso off lro off` shows what is on the wire.

    Args:
        interface: its name.
        filter: as tcpdump has it, `tcp port 80`; empty for all packets. Needs the extra `live`.

    Raises:
        CannotCapture: there is no such interface, it is down, its link type is not dissected, the filter is none, or
            this process may not capture.
    """

    def __init__(self, interface: str, filter: str = "") -> None:  # noqa: A002 - everybody calls it so
        self._interface = interface
        self._ring = Ring(interface, compiled(interface, filter) if filter else [])
        self._counts = Counts(0, 0)

    def fileno(self) -> int:
        """Readable when a block is there."""
        return self._ring.socket.fileno()

    def take(self, timeout_s: float = 0.0) -> Block | None:
        """The next block; None where none has come in time.

        Args:
            timeout_s: how long to wait.

        Raises:
            CannotCapture: the interface is down or gone.
        """
        if not self._ring.is_ready:
            waiting = select.poll()
            waiting.register(self.fileno(), select.POLLIN)
            waiting.poll(round(timeout_s * 1000))
        if not self._ring.is_ready:
            if self._ring.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise CannotCapture(f"{self._interface} is down: ip link set {self._interface} up, and start again")
            return None
        blob = self._ring.take()
        return Block(blob, read_block(blob, self._ring.link))

    async def blocks(self) -> AsyncIterator[Block]:
        """The blocks as they come, without end.

        Raises:
            CannotCapture: the interface is down or gone.
        """
        loop, there = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.fileno(), there.set)
        try:
            while True:
                there.clear()
                block = self.take()
                if block is None:
                    await there.wait()
                else:
                    yield block
        finally:
            loop.remove_reader(self.fileno())

    @property
    def counts(self) -> Counts:
        """How many packets passed the filter, and how many of them were dropped."""
        received, dropped = self._ring.counts()
        self._counts = Counts(self._counts.received + received, self._counts.dropped + dropped)
        return self._counts

    def close(self) -> None:
        """Stop. Blocks that were taken stay."""
        self._ring.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

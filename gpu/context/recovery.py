"""A graph's state from its snapshot and its log; and the snapshots that take the place of a log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial

import msgspec
import structlog

from ...bus.errors import BusError
from ...bus.jetstream import Refused, Unavailable
from ...bus.log_entry import Entry, Kind
from ...bus.partition_log import PartitionLog
from ...bus.snapshots import Snapshots
from ..device import Device
from .snapshot import Frozen, parts, restored
from .state import GraphState
from .threads import InThread
from .words import decode

TOGETHER = 64  # entries that go to the device's thread at once
MOST_TOGETHER_BYTES = 32 << 20

_log = structlog.get_logger(__name__)


class SnapshotMark(msgspec.Struct, frozen=True):
    """What a mark of the log says: where the snapshot is, and up to which entry it goes."""

    id: str
    epoch: int


class Recovery:
    """Makes a graph's state of its snapshot and its log.

    Args:
        device: where the state is to be.
        in_thread: where it is used.

    Attributes:
        log: the graph's, anybody's.
        snapshots: the graph's.
        state: of the entries up to `after`; None if these tell of none.
        after: sequence of the last entry that was read.
    """

    def __init__(self, log: PartitionLog, snapshots: SnapshotTaker, device: Device, in_thread: InThread) -> None:
        self.state: GraphState | None = None
        self.after = 0
        self.log = log
        self.snapshots = snapshots
        self._device = device
        self._in_thread = in_thread

    async def is_graph_there(self) -> bool:
        """Whether the log tells of a graph; a claim alone does not. Raises as `follow`."""
        async with aclosing(self.log.replay()) as entries:
            async for entry in entries:
                if entry.kind is not Kind.CLAIM:
                    return True
        return False

    async def start(self) -> None:
        """Restore the latest snapshot, if there is one, and follow. Raises as `follow`."""
        mark = await self.log.latest_mark()
        if mark is not None:
            said = msgspec.msgpack.decode(mark.data, type=SnapshotMark)
            parts_ = await self.snapshots.parts(said)
            self.state, self.after = await self._in_thread(partial(restored, parts_, self._device)), said.epoch
        await self.follow()

    async def follow(self) -> None:
        """Read what the log has got since.

        Raises:
            Unavailable, Disconnected, NoAnswer, Refused, Closed, Incomplete, LogGap: it cannot be read now.
        """
        together: list[Entry] = []
        size = 0
        async with aclosing(self.log.replay(self.after)) as entries:
            async for entry in entries:
                self.after = entry.sequence
                if entry.kind is Kind.CHANGE:
                    self.snapshots.count(len(entry.data))
                    together.append(entry)
                    size += len(entry.data)
                if len(together) == TOGETHER or size > MOST_TOGETHER_BYTES:
                    self.state = await self._in_thread(partial(_said, self.state, together, self._device))
                    together, size = [], 0
        self.state = await self._in_thread(partial(_settled, self.state, together, self._device))


class SnapshotTaker:
    """Takes a snapshot of a graph whenever its log has become long; further windows go on meanwhile.

    Args:
        name: of the graph.
        snapshots: where they are stored.
        log_bytes: of the log's entries, after which one is taken.
    """

    def __init__(self, name: str, snapshots: Snapshots, log_bytes: int) -> None:
        self._name = name
        self._snapshots = snapshots
        self._log_bytes = log_bytes
        self._since = 0
        self._storing: asyncio.Task[None] | None = None
        self._stored: SnapshotMark | None = None
        self._told: Callable[[], None] = lambda: None

    async def parts(self, mark: SnapshotMark) -> list[bytes]:
        """What a mark of the log names. Raises as `Snapshots.get`."""
        async with aclosing(self._snapshots.get(_snapshot(self._name), mark.id)) as found:
            return [part async for part in found]

    def count(self, entry_bytes: int) -> None:
        """The log has an entry that no snapshot holds."""
        self._since += entry_bytes

    @property
    def is_due(self) -> bool:
        """Whether a copy of the state is wanted."""
        return self._since >= self._log_bytes and self._storing is None and self._stored is None

    def take(self, copy: Frozen, epoch: int, told: Callable[[], None]) -> None:
        """Store a copy of the state as it is at an epoch; `told` is called when `mark` has something to say."""
        self._since = 0
        self._told = told
        self._storing = asyncio.create_task(self._store(copy, epoch), name=f"aikoryu-snapshot-{self._name}")

    async def mark(self, log: PartitionLog) -> None:
        """Say in the log that a snapshot is stored, if one is, and drop what it takes the place of.

        A log that takes no mark keeps its entries; it is tried again with the next snapshot.

        Raises:
            OwnershipLost, Unresolved, Disconnected, Closed: as `PartitionLog.mark`.
        """
        if self._stored is None:
            return
        mark, self._stored = self._stored, None
        try:
            await log.mark(msgspec.msgpack.encode(mark), log.last)
        except (Refused, Unavailable) as error:
            _log.warning("snapshot not marked", graph=self._name, error=str(error))
            return
        with suppress(BusError):  # what is not dropped now is dropped with the next
            await log.purge(mark.epoch + 1)
            await self._snapshots.drop(_snapshot(self._name), mark.id)

    async def stop(self) -> None:
        """Store no more; what was stored in part is deleted, if the server can be asked."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.wait({self._storing})

    async def _store(self, copy: Frozen, epoch: int) -> None:
        try:
            id_ = await self._snapshots.put(_snapshot(self._name), _each(copy))
            self._stored = SnapshotMark(id_, epoch)
            self._told()
        except BusError as error:
            _log.warning("snapshot not stored", graph=self._name, error=str(error))
        except Exception:
            _log.exception("snapshot not stored", graph=self._name)
        finally:
            self._storing = None


def _snapshot(name: str) -> str:
    return f"context.{name}"


def _said(state: GraphState | None, entries: list[Entry], device: Device) -> GraphState | None:
    for entry in entries:
        words = decode(entry.data)
        if state is None:
            assert words.spec is not None, "the first entry of a log has the graph's"
            state = GraphState(words.spec, device)
        state.say(entry.sequence, words)
    return state


def _settled(state: GraphState | None, entries: list[Entry], device: Device) -> GraphState | None:
    state = _said(state, entries, device)
    if state is not None:
        state.settle()
    return state


async def _each(copy: Frozen) -> AsyncIterator[bytes]:
    """The parts of a copy, made beside the loop: they are copied from the device."""
    made = parts(copy)
    while (part := await asyncio.to_thread(next, made, None)) is not None:
        yield part

"""A graph's state from its snapshot and its log; and the snapshots that take the place of a log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from ...bus.errors import BusError
from ...bus.log_entry import Entry, Kind
from ...bus.partition_log import PartitionLog
from ...bus.snapshots import Snapshots
from ..device import Device
from .snapshot import Frozen, parts, restored
from .state import GraphState
from .words import decode

TOGETHER = 64  # entries that go to the device's thread at once

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function in the device's thread, and gives what it returns."""

_log = structlog.get_logger(__name__)


class SnapshotMark(msgspec.Struct, frozen=True):
    """What a mark of the log says: where the snapshot is, and up to which entry it goes."""

    id: str
    epoch: int


async def recovered(
    name: str, log: PartitionLog, snapshots: Snapshots, device: Device, in_thread: InThread
) -> tuple[GraphState | None, int]:
    """The state that a log tells, and the sequence of the last entry it is made of; no state if it tells nothing.

    Raises:
        Unavailable, Disconnected, NoAnswer, Refused, Closed, Incomplete, LogGap: it cannot be read now.
    """
    state, after = None, 0
    mark = await log.latest_mark()
    if mark is not None:
        said = msgspec.msgpack.decode(mark.data, type=SnapshotMark)
        async with aclosing(snapshots.get(_snapshot(name), said.id)) as found:
            pieces = [piece async for piece in found]
        state, after = await in_thread(partial(restored, pieces, device)), said.epoch
    return await followed(log, state, after, device, in_thread)


async def followed(
    log: PartitionLog, state: GraphState | None, after: int, device: Device, in_thread: InThread
) -> tuple[GraphState | None, int]:
    """Bring a state up to date with the log.

    Args:
        log: anybody's.
        state: of the entries up to `after`; None before the first.
        after: a sequence.
        device: of the state.
        in_thread: where it is used.

    Returns:
        The state, and the sequence of the log's last entry.

    Raises:
        As `recovered`.
    """
    together: list[Entry] = []
    async with aclosing(log.replay(after)) as entries:
        async for entry in entries:
            after = entry.sequence
            if entry.kind is Kind.CHANGE:
                together.append(entry)
            if len(together) == TOGETHER:
                state = await in_thread(partial(_said, state, together, device))
                together = []
    return await in_thread(partial(_settled, state, together, device)), after


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

    def count(self, entry_bytes: int) -> None:
        """An entry was appended."""
        self._since += entry_bytes

    @property
    def is_due(self) -> bool:
        """Whether a copy of the state is wanted."""
        return self._since >= self._log_bytes and self._storing is None and self._stored is None

    def take(self, copy: Frozen, epoch: int) -> None:
        """Store a copy of the state as it is at an epoch."""
        self._since = 0
        self._storing = asyncio.create_task(self._store(copy, epoch), name=f"aikoryu-snapshot-{self._name}")

    async def mark(self, log: PartitionLog) -> None:
        """Say in the log that a snapshot is stored, if one is, and drop what it takes the place of.

        Raises:
            As `PartitionLog.mark`.
        """
        if self._stored is None:
            return
        mark, self._stored = self._stored, None
        await log.mark(msgspec.msgpack.encode(mark), log.last)
        with suppress(BusError):  # what is not dropped now is dropped with the next
            await log.purge(mark.epoch + 1)
            await self._snapshots.drop(_snapshot(self._name), mark.id)

    def stop(self) -> None:
        """Store no more."""
        if self._storing is not None:
            self._storing.cancel()

    async def _store(self, copy: Frozen, epoch: int) -> None:
        try:
            id_ = await self._snapshots.put(_snapshot(self._name), _each(copy))
            self._stored = SnapshotMark(id_, epoch)
        except BusError as error:
            _log.warning("snapshot not stored", graph=self._name, error=str(error))
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

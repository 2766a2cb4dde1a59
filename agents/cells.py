"""What a process remembers of keys between their calls: those used last, of all agents with state and partitions."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .saved import Saved

MOST_STATES = 16384  # that are kept in memory between calls
MOST_BYTES = 64 << 20  # of those


class Cell:
    """What is known of a key.

    Attributes:
        lock: held by the call that runs.
        users: calls that run or wait for it.
        saved: what the store has, None if that is not known.
        sequence: that the next write must name.
        bytes: what `saved` takes.
        counted: of these, what is counted among all.
    """

    __slots__ = ("among", "bytes", "counted", "key", "lock", "saved", "sequence", "users")

    def __init__(self, among: dict[str, Cell], key: str) -> None:
        self.among = among
        self.key = key
        self.lock = asyncio.Lock()
        self.users = 0
        self.counted = 0
        self.clear()

    def clear(self) -> None:
        self.saved: Saved | None = None
        self.sequence = 0
        self.bytes = 0

    def fill(self, saved: Saved, sequence: int, size: int) -> None:
        self.saved, self.sequence, self.bytes = saved, sequence, size


class Cells:
    """The cells of all partitions that a process owns; of more than there is room for, those used longest ago go.

    Attributes:
        bytes: what they take.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._used: OrderedDict[Cell, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    @asynccontextmanager
    async def turn(self, among: dict[str, Cell], key: str) -> AsyncIterator[Cell]:
        """Wait until no other call of a key runs.

        Args:
            among: the cells of its partition; kept here.
            key: which.
        """
        cell = among.get(key)
        if cell is None:
            cell = among[key] = Cell(among, key)
        self._used[cell] = None
        self._used.move_to_end(cell)
        cell.users += 1
        try:
            async with cell.lock:
                try:
                    yield cell
                finally:
                    if cell in self._used:  # else its partition went meanwhile
                        self.bytes += cell.bytes - cell.counted
                        cell.counted = cell.bytes
        finally:
            cell.users -= 1
            self._shrink()

    def forget(self, among: dict[str, Cell]) -> None:
        """Let go of a partition's cells; calls that run may go on."""
        for cell in among.values():
            del self._used[cell]
            self.bytes -= cell.counted
        among.clear()

    def _shrink(self) -> None:
        while len(self._used) > MOST_STATES or self.bytes > MOST_BYTES:
            cell = next((cell for cell in self._used if not cell.users), None)
            if cell is None:
                return
            del self._used[cell], cell.among[cell.key]
            self.bytes -= cell.counted

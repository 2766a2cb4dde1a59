"""Tables of flows as files, which outlive the engine process: what a table and its senders were at some moment.

A file is the *epoch*, the length of a `SavedTable`, that in MessagePack, and the arrays of a `FlowState`. It appears
whole, by its renaming. Who opens a table takes the next epoch, and from then on whoever had it before can write it no
more: of two engines that both think a table theirs, one goes on, from what is written down. Its modification time is
when it is forgotten, and like the epoch of the clock that all processes of a machine share and nobody sets.
"""

from __future__ import annotations

import os
import secrets
import struct
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import BinaryIO

import msgspec
import numpy as np

from ...bus.columns import bytes_of
from ...bus.errors import Busy
from ...netio.flow_record import RECORD
from ...netio.flow_state import FlowState
from ...netio.flow_wire import ONCE
from ..folder_lock import folder_lock
from .flow_senders import SenderState

MOST_FILES = 1024
FORGOTTEN_S = 3600.0
"""A table that nobody has written down for so long is forgotten when another is made."""
DONE_S = 60.0
"""The same of one that nobody has more packets for: its last answers may be asked for again."""

_HEAD = struct.Struct("<QQ")
_SUFFIX = ".flows"


class TableSpec(msgspec.Struct, frozen=True):
    """What makes one table differ from another of its name; see `netio.flow_table.FlowTable`."""

    header: str
    vlan: bool
    tunnel: bool
    idle_s: float | None
    active_s: float | None
    capacity: int


class SavedTable(msgspec.Struct, frozen=True):
    """What is written of a table besides its flows.

    Attributes:
        spec: how it was made.
        senders: by number.
        packets, ignored: as `FlowState`.
        flows: how many records follow.
    """

    spec: TableSpec
    senders: dict[int, SenderState]
    packets: int = 0
    ignored: int = 0
    flows: int = 0


class FlowStore:
    """The tables of one folder; several processes may share it.

    Args:
        folder: of its own; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def epoch(self, name: str) -> int:
        """The table's epoch; 0 if there is none."""
        try:
            file = os.open(self._path(name), os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            return _epoch(file)
        finally:
            os.close(file)

    def open(self, name: str, spec: TableSpec) -> tuple[int, SavedTable, FlowState]:
        """A table as it was written down last, a new one if there is none, and its next epoch.

        Args:
            name: letters, digits, `_` and `-`.
            spec: of a new one.

        Raises:
            Busy: there are too many.
        """
        with folder_lock(self._folder):
            try:
                file = os.open(self._path(name), os.O_RDWR)
            except FileNotFoundError:
                return self._made(name, spec)
            try:
                # Also later than that of a table of this name that was forgotten, and that somebody may still have.
                epoch = max(_epoch(file) + 1, monotonic_ns())
                os.pwrite(file, epoch.to_bytes(8, "little"), 0)
                _forget_in(FORGOTTEN_S, file)
            except BaseException:
                os.close(file)
                raise
        with os.fdopen(file, "rb") as read:
            return epoch, *_read(read)

    def save(self, name: str, epoch: int, saved: SavedTable, state: FlowState, is_done: bool = False) -> bool:
        """Write a table down; false, and nothing is written, if another has opened it since.

        Args:
            name: of the table.
            epoch: that it has here.
            saved, state: what to write.
            is_done: nobody has more packets for it.
        """
        draft = self._draft(name, epoch, saved, state)
        _forget_in(DONE_S if is_done else FORGOTTEN_S, draft)
        with folder_lock(self._folder):
            if self.epoch(name) == epoch:
                draft.replace(self._path(name))
                return True
        draft.unlink()
        return False

    def remove(self, name: str, epoch: int) -> None:
        """Forget a table, unless another has opened it since."""
        with folder_lock(self._folder):
            if self.epoch(name) == epoch:
                self._path(name).unlink()

    def _made(self, name: str, spec: TableSpec) -> tuple[int, SavedTable, FlowState]:
        """A new table, written down so that it has an epoch."""
        self._tidy()
        surplus = sum(1 for _ in self._folder.glob(f"*{_SUFFIX}")) + 1 - MOST_FILES
        if surplus > 0 and not self._made_room(surplus):
            raise Busy(f"{MOST_FILES} tables of flows are here: use fewer names", retry_after_s=1.0)
        epoch, saved, state = monotonic_ns(), SavedTable(spec, {}), FlowState.empty()
        draft = self._draft(name, epoch, saved, state)
        _forget_in(FORGOTTEN_S, draft)
        draft.replace(self._path(name))
        return epoch, saved, state

    def _draft(self, name: str, epoch: int, saved: SavedTable, state: FlowState) -> Path:
        """The file as it will be, under a name that nobody looks for."""
        draft = self._folder / f"{name}~{int(monotonic() + FORGOTTEN_S)}~{secrets.token_hex(8)}"
        head = msgspec.msgpack.encode(
            msgspec.structs.replace(saved, packets=state.packets, ignored=state.ignored, flows=len(state.records))
        )
        try:
            with draft.open("wb") as file:
                file.write(_HEAD.pack(epoch, len(head)) + head)
                file.write(bytes_of(state.records))
                file.write(bytes_of(state.latest))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft

    def _tidy(self) -> None:
        """Remove tables that nobody has used for long, and what was left half written."""
        now = monotonic()
        for path in self._folder.iterdir():
            until = path.stat().st_mtime if path.suffix == _SUFFIX else int(path.name.split("~")[1])
            if until < now:
                path.unlink()

    def _made_room(self, surplus: int) -> bool:
        """Forget runs that are done, or that nobody has used for a while; false if there are too few.

        Who is left of one sends again what it has, as after the loss of a worker.
        """
        before = monotonic() + FORGOTTEN_S - DONE_S
        unused = sorted(
            (until, path) for path in self._folder.glob(f"{ONCE}*{_SUFFIX}") if (until := path.stat().st_mtime) < before
        )
        for _, path in unused[:surplus]:
            path.unlink()
        return len(unused) >= surplus

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def _forget_in(time_s: float, file: Path | int) -> None:
    at = monotonic() + time_s
    os.utime(file, (at, at))


def _epoch(file: int) -> int:
    return int.from_bytes(os.pread(file, 8, 0), "little")


def _read(file: BinaryIO) -> tuple[SavedTable, FlowState]:
    _, size = _HEAD.unpack(file.read(_HEAD.size))
    saved = msgspec.msgpack.decode(file.read(size), type=SavedTable)
    records = np.fromfile(file, RECORD, saved.flows)
    latest = np.fromfile(file, np.int64, saved.flows)
    return saved, FlowState(saved.packets, saved.ignored, records, latest)

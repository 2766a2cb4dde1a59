"""The tables of flows of one engine: those in use, and how they reach the files that the next engine opens."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import Any, Protocol

import structlog

from ...bus.columns import Array
from ...bus.errors import BadParameter, NotWritten
from ...netio.flow_cuts import Timeouts
from ...netio.flow_key import KeyChoice
from ...netio.flow_state import FlowState
from ...netio.flow_table import FlowTable
from ...netio.flow_wire import MOST_ANSWER_BYTES
from ...netio.flows import Flows
from ..device import Device
from ..directory import directory_of
from .device_flows import DeviceFlowTable
from .flow_senders import ANSWERS, Answer, FlowSender
from .flow_store import FlowStore, SavedTable, TableSpec
from .frames import Frames
from .kernels import PacketKernels

MOST_TABLES = 64
MOST_FLOWS = 1 << 24
"""The capacities of all tables of an engine together, beyond the first: 9 GB when all of them are full."""
MOST_SENDERS = 256
MOST_KEPT_BYTES = ANSWERS * MOST_ANSWER_BYTES
"""Of answers that a table keeps: always all of one sender's."""
MOST_ANSWERS_BYTES = 4 * MOST_KEPT_BYTES
"""The same of all tables of an engine together, beyond the first."""
UNUSED_S = 300.0
"""A table that nobody has sent anything to for so long is let go of when another is used."""
SAVE_S = 1.0
SAVE_SHARE = 0.1
"""Of an engine's time, at most, for a table's being written down."""

_log = structlog.get_logger(__name__)


class Table(Protocol):
    """What keeps flows; see `netio.flow_table.FlowTable`."""

    ignored: int

    def __len__(self) -> int: ...
    def expire(self, now_ns: int) -> Flows: ...
    def flush(self) -> Flows: ...
    def state(self) -> FlowState: ...
    def restore(self, state: FlowState) -> None: ...


class HostFlows:
    """Packets and their flows on the host: the seam at which a device has its own."""

    def table(self, spec: TableSpec) -> Table:
        """A new table."""
        return FlowTable(*_made_as(spec))

    def update(self, table: Any, frames: Frames, time_ns: Array) -> Flows:
        """Give packets to a table."""
        found: Flows = table.update(frames.dissected(), time_ns, frames.wire)
        return found


class DeviceFlows(HostFlows):
    """The same on a GPU, with the same flows."""

    def __init__(self, kernels: PacketKernels) -> None:
        self._kernels = kernels

    def table(self, spec: TableSpec) -> Table:
        """A new table, whose memory is taken now."""
        return DeviceFlowTable(self._kernels, *_made_as(spec))

    def update(self, table: Any, frames: Frames, time_ns: Array) -> Flows:
        """Give packets to a table."""
        found: Flows = table.update_frames(frames, time_ns)
        return found


def flows_on(device: Device) -> HostFlows:
    """How flows are kept on a device."""
    kernels = PacketKernels.on(device)
    return HostFlows() if kernels is None else DeviceFlows(kernels)


def _made_as(spec: TableSpec) -> tuple[KeyChoice, Timeouts, int]:
    key = KeyChoice("outer" if spec.header == "outer" else "inner", spec.vlan, spec.tunnel)
    return key, Timeouts(spec.idle_s, spec.active_s), spec.capacity


class HeldTable:
    """A table that this engine has opened.

    Attributes:
        name: by which it is called.
        spec: how it was made.
        table: its flows.
        epoch: that it has in its file as long as no other engine has opened it.
        used_at: when it was asked for last, monotonic time, s.
        written_at: when this engine wrote it down last.
        writing_s: how long that took.
        is_written: nothing has changed since.
        trouble: why it could not be written down when that was tried last; empty if it was.
    """

    def __init__(self, name: str, epoch: int, saved: SavedTable, table: Table, now: float) -> None:
        self.name = name
        self.spec = saved.spec
        self.table = table
        self.epoch = epoch
        self.used_at = now
        # Due at once: engines that take turns at a table would otherwise step back for ever.
        self.written_at = float("-inf")
        self.writing_s = 0.0
        self.is_written = True
        self.trouble = ""
        self._senders = OrderedDict((number, FlowSender.of(state)) for number, state in saved.senders.items())
        self._written = {number: state.number for number, state in saved.senders.items()}

    def sender(self, number: int) -> FlowSender:
        """Who has this number; one that nothing was applied of yet is new, and kept with its first answer."""
        found = self._senders.get(number)
        if found is None:
            return FlowSender()
        self._senders.move_to_end(number)
        return found

    def written(self, number: int) -> int:
        """Up to which of a sender's chunks the table is written down."""
        return self._written.get(number, 0)

    def answer(self, number: int, ended: Flows, packets: int, is_end: bool, room_bytes: int) -> Answer:
        """The answer to a chunk that was given to the table.

        Args:
            number: of the sender.
            ended: flows that the chunk ended.
            packets: in it.
            is_end: nothing follows.
            room_bytes: for flows in the answer.
        """
        self.is_written = False
        sender = self._senders.setdefault(number, FlowSender())
        self._senders.move_to_end(number)
        sender.has_ended = is_end or (sender.has_ended and not packets)
        answer = sender.applied(ended, packets, room_bytes, open=len(self.table), ignored=self.table.ignored)
        self._forget()
        return answer

    @property
    def answer_bytes(self) -> int:
        """Of the answers that its senders may ask for again."""
        return sum(sender.answer_bytes for sender in self._senders.values())

    def _forget(self) -> None:
        """Let go of senders, and of answers, while there are too many: of those heard of longest ago."""
        while len(self._senders) > MOST_SENDERS:
            self._senders.popitem(last=False)
        surplus = self.answer_bytes - MOST_KEPT_BYTES
        for sender in self._senders.values():
            while surplus > 0 and sender.answer_bytes:
                before = sender.answer_bytes
                sender.drop_answer()
                surplus -= before - sender.answer_bytes

    @property
    def is_untouched(self) -> bool:
        """Nothing was ever given to it."""
        return not self._senders

    @property
    def is_done(self) -> bool:
        """Nobody has more packets for it, and all flows were given."""
        return not len(self.table) and all(each.has_ended and not each.left for each in self._senders.values())

    def is_due(self, now: float) -> bool:
        """Whether it is time to write it down."""
        return now - self.written_at >= max(SAVE_S, self.writing_s / SAVE_SHARE)

    def state(self) -> SavedTable:
        """What is to be written down besides the flows."""
        return SavedTable(self.spec, {number: each.state() for number, each in self._senders.items()})

    def was_written(self, saved: SavedTable) -> None:
        """A state of it is in its file."""
        self.is_written = True
        self.trouble = ""
        self._written = {number: state.number for number, state in saved.senders.items()}


class FlowTables:
    """Tables by name, for the one thread of an engine; several engines of a worker may have the same.

    Args:
        directory: where the worker keeps what outlives an engine; empty for a folder that goes with the process.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._held: OrderedDict[str, HeldTable] = OrderedDict()
        self._store: FlowStore | None = None
        self._path = HostFlows()

    def open(self, device: Device) -> None:
        """Make ready on the engine's device. Idempotent."""
        if self._store is not None:
            return
        self._store = FlowStore(directory_of(self, self._directory) / "flows")
        self._path = flows_on(device)

    @property
    def store(self) -> FlowStore:
        """Their files."""
        assert self._store is not None, "opened before the first batch"
        return self._store

    @property
    def path(self) -> HostFlows:
        """How flows are kept here."""
        return self._path

    def held(self, name: str, spec: TableSpec) -> HeldTable:
        """The table of this name: as it is here, or, where another engine has had it since, as that has left it.

        Raises:
            BadParameter: there is one that was made in another way.
            Busy: there are too many.
            NotWritten: a new one has no room on the disk.
        """
        held = self._held.get(name)
        if held is None or self.store.epoch(name) != held.epoch:
            self._held.pop(name, None)
            held = self._opened(name, spec)
        self._held[name] = held
        self._held.move_to_end(name)
        held.used_at = monotonic()
        self._make_room(held.used_at)
        # Kept all the same: opening it once more would cost as much, and take it from another engine again.
        if held.spec != spec:
            raise BadParameter(f"table {name!r} was made with {_told(held.spec)}: ask so, or use another name")
        return held

    def keep(self, held: HeldTable) -> None:
        """A table was changed: write it down if it is time, and let go of it if nobody needs it any more."""
        if held.is_untouched:  # a chunk came late, or of a stranger: no file is left of what it was refused
            self.forget(held)
        elif held.is_done:
            self._write(held)
            self._held.pop(held.name, None)
        elif held.is_due(monotonic()):
            self._write(held)

    def lose(self, held: HeldTable) -> None:
        """A table is not what it should be: it is opened anew, as it was written down last."""
        self._held.pop(held.name, None)

    def forget(self, held: HeldTable) -> None:
        """Nobody will ask for a table again: nothing is left of it."""
        self.lose(held)
        self.store.remove(held.name, held.epoch)

    def relieve(self) -> None:
        """Write all tables down and let go of them; they are opened again when they are asked for."""
        while self._held:
            self._write(self._held.popitem()[1])

    def _opened(self, name: str, spec: TableSpec) -> HeldTable:
        try:
            epoch, saved, state = self.store.open(name, spec)
        except OSError as error:
            reason = error.strerror or error
            raise NotWritten(
                f"table {name!r} of flows cannot be opened: {reason}: make room in residents.directory"
            ) from error
        table = self._path.table(saved.spec)
        table.restore(state)
        return HeldTable(name, epoch, saved, table, monotonic())

    def _make_room(self, now: float) -> None:
        """Let go of those used longest ago while there are too many, too large or idle ones; never of the last."""
        while len(self._held) > 1 and (
            len(self._held) > MOST_TABLES
            or sum(each.spec.capacity for each in self._held.values()) > MOST_FLOWS
            or sum(each.answer_bytes for each in self._held.values()) > MOST_ANSWERS_BYTES
            or next(iter(self._held.values())).used_at < now - UNUSED_S
        ):
            self._write(self._held.popitem(last=False)[1])

    def _write(self, held: HeldTable) -> None:
        """Write a table down; where another engine has it now, that one's stays."""
        if held.is_written:
            return
        began = monotonic()
        saved = held.state()
        try:
            if self.store.save(held.name, held.epoch, saved, held.table.state(), held.is_done):
                held.was_written(saved)
        except OSError as error:  # the senders keep what is not written down
            held.trouble = error.strerror or str(error)
            _log.warning("table of flows not written down", table=held.name, error=str(error))
        held.written_at = monotonic()
        held.writing_s = held.written_at - began


def _told(spec: TableSpec) -> str:
    return (
        f"key {spec.header}{', vlan' * spec.vlan}{', tunnel' * spec.tunnel}, idle_s {spec.idle_s}, "
        f"active_s {spec.active_s}, capacity {spec.capacity}"
    )

"""The flows of packets that come in batches; every cut into batches gives the same flows."""

from __future__ import annotations

import secrets

import numpy as np

from . import tcp_state
from .flow_batch import Arrivals, Known, Reason, Reduced, reduced
from .flow_cuts import BadTable, Timeouts, elapsed
from .flow_index import FlowIndex
from .flow_key import FlowKeys, KeyChoice
from .flow_record import RECORD, as_blocks, empty, originators, spans
from .flow_runs import Runs
from .flow_state import FlowState
from .flows import Flows
from .packet_index import Array
from .packets import Packets

CAPACITY = 1 << 20
PIECE = 1 << 16
"""Packets that are reduced at once: what is computed of them stays in the caches."""
SPARED = 64
"""A full table ends this part of its flows at once, so that it is not searched for the oldest with each new one."""


class FlowTable:
    """The flows that have not ended.

    A flow begins with a packet whose key no flow has, and ends

    - when none of its packets comes for `timeouts.idle_s` (`Reason.IDLE`);
    - `timeouts.active_s` after its first packet; what comes later is another record of it (`ACTIVE`);
    - when the table is full and others have younger packets, or as young ones and began later (`FULL`);
    - at `flush` (`END`).

    Time is that of packets, on a clock of each flow that never goes back: a packet dated before one that came earlier
    counts as simultaneous with it. `update` looks at the flows of its packets alone, `expire` at all. As long as the
    table is not full, every cut into batches gives the same flows, whenever `expire` is called with a time that is not
    beyond the packets still to come.

    Args:
        key: what names a flow.
        timeouts: when flows end.
        capacity: most flows at a time, 1 to 2**31. Memory, `bytes` when full, is taken as flows come.

    Attributes:
        packets: how many packets `update` was given.
        ignored: how many of them had no IP header.

    Raises:
        BadTable: the capacity is not allowed.
    """

    def __init__(
        self, key: KeyChoice | None = None, timeouts: Timeouts | None = None, capacity: int = CAPACITY
    ) -> None:
        if not 1 <= capacity <= 1 << 31:
            raise BadTable(f"a table of {capacity} flows: give a capacity of 1 to {1 << 31}")
        self.packets = 0
        self.ignored = 0
        self._key = key or KeyChoice()
        self._timeouts = timeouts or Timeouts()
        # Whoever sends the packets must not be able to choose keys that crowd the index.
        self._seed = secrets.randbits(64)
        self._index = FlowIndex(capacity)
        self._records = np.zeros(capacity, RECORD)
        # What is looked at of all flows lies together.
        self._hashes = np.zeros(capacity, np.uint64)
        self._begun = np.zeros(capacity, np.int64)
        self._latest = np.zeros(capacity, np.int64)
        self._is_live = np.zeros(capacity, bool)
        self._is_empty = np.zeros(capacity, bool)
        # Slots from `_fresh` on were never used; the first `_free_count` of these were, and are free again.
        self._free = np.empty(capacity, np.int64)
        self._free_count = 0
        self._fresh = 0

    def __len__(self) -> int:
        """How many flows have not ended."""
        return self._fresh - self._free_count

    @property
    def bytes(self) -> int:
        """Memory of a full table."""
        columns = (self._records, self._hashes, self._begun, self._latest, self._is_live, self._is_empty, self._free)
        return self._index.bytes + sum(column.nbytes for column in columns)

    def update(self, packets: Packets, time_ns: Array, wire: Array) -> Flows:
        """Adds packets in the order of their arrival, and gives the flows they show to have ended, by first packet.

        Args:
            packets: n dissected packets; those without an IP header are counted and ignored.
            time_ns: (n,) int64, nanoseconds since 1970.
            wire: (n,) uint32, bytes of each packet on the wire.
        """
        headers = packets.inner if self._key.header == "inner" else packets.outer
        serial = self.packets + np.arange(len(packets), dtype=np.uint64)
        ended = []
        size = min(PIECE, len(self._records))
        for first in range(0, len(packets), size):
            rows = np.flatnonzero(headers.version[first : first + size]) + first
            self.ignored += min(size, len(packets) - first) - len(rows)
            if not len(rows):
                continue
            payload = headers.payload_wire[rows]
            protocol = headers.protocol[rows] * (headers.fragment_offset[rows] == 0)
            keys = FlowKeys.of(packets, self._key, rows)
            arrivals = Arrivals(
                serial=serial[rows],
                time_ns=np.asarray(time_ns)[rows],
                side=keys.side,
                wire=np.asarray(wire)[rows],
                ip=headers.total_length[rows],
                payload=payload,
                flags=headers.tcp_flags[rows],
                kind=tcp_state.kinds(protocol, headers.tcp_flags[rows], payload),
                seq=headers.seq[rows],
                icmp=np.stack([headers.icmp_type[rows], headers.icmp_code[rows]], axis=1),
            )
            ended.append(self._add(keys, arrivals))
        self.packets += len(packets)
        return Flows.joined(ended)

    def expire(self, now_ns: int) -> Flows:
        """Ends the flows whose time-outs have passed, though no packet of theirs may come: live by the clock.

        Args:
            now_ns: nanoseconds since 1970.
        """
        now = np.array([now_ns], np.int64)
        idle, active = self._timeouts.idle_ns, self._timeouts.active_ns
        begun, latest = self._begun[: self._fresh], self._latest[: self._fresh]
        is_idle, is_active = np.zeros(self._fresh, bool), np.zeros(self._fresh, bool)
        if idle is not None:
            is_idle = self._is_live[: self._fresh] & (latest < now) & (elapsed(latest, now) >= idle)
        if active is not None:
            is_active = self._is_live[: self._fresh] & ~self._is_empty[: self._fresh] & ~is_idle
            is_active &= (begun < now) & (elapsed(begun, now) >= active)
        gone, cut = np.flatnonzero(is_idle), np.flatnonzero(is_active)
        reason = np.where(self._timeouts.cut_by_active(begun[gone], latest[gone]), Reason.ACTIVE, Reason.IDLE)
        parts = [Flows.of(self._records.take(cut), np.full(len(cut), Reason.ACTIVE, np.uint8))]
        parts.append(self._end(gone, reason.astype(np.uint8)))
        self._empty(cut)
        return Flows.joined(parts)

    def flush(self) -> Flows:
        """Ends all flows, and gives them in the order of their first packets; the table is empty then."""
        slots = np.flatnonzero(self._is_live[: self._fresh])
        return Flows.joined([self._end(slots, np.full(len(slots), Reason.END, np.uint8))])

    def state(self) -> FlowState:
        """A copy of all that it holds."""
        slots = np.flatnonzero(self._is_live[: self._fresh])
        return FlowState(self.packets, self.ignored, self._records.take(slots), self._latest[slots])

    def restore(self, state: FlowState) -> None:
        """Goes on where another table was, of the same key and time-outs. Only for a table that was given nothing.

        Raises:
            BadTable: there are more flows than it has room for.
        """
        count = len(state.records)
        if count > len(self._records):
            raise BadTable(f"{count} flows for a table of {len(self._records)}: give a larger capacity")
        self.packets, self.ignored = state.packets, state.ignored
        words = np.ascontiguousarray(state.records["key"].T)
        slots = self._taken(FlowKeys(words, np.zeros(count, np.uint8)).hashes(self._seed))
        as_blocks(self._records)[slots] = as_blocks(state.records)
        self._begun[slots], self._latest[slots] = spans(state.records)[0], state.latest
        self._is_empty[slots] = (state.records["packets"] == 0).all(axis=1)

    def _add(self, keys: FlowKeys, arrivals: Arrivals) -> Flows:
        hashes = keys.hashes(self._seed)
        runs = Runs.of(keys, hashes)
        first = runs.order[runs.start]
        words, hashes = keys.words[:, first], hashes[first]
        slots = self._index.find(hashes, lambda rows, found: self._has_key(found, words[:, rows]))
        is_known = slots >= 0
        known = Known(
            is_known=is_known,
            records=self._records.take(slots[is_known]),
            begun=self._begun[slots],
            latest=self._latest[slots],
            is_empty=self._is_empty[slots],
        )
        found = reduced(runs, words, arrivals, known, self._timeouts)
        crowded_out = self._make_room(int(np.count_nonzero(~is_known)), slots[is_known])
        slots[~is_known] = self._taken(hashes[~is_known])
        self._store(slots, found)
        ended = np.flatnonzero(~found.is_last)
        ended = ended[(found.records["packets"][ended] > 0).any(axis=1)]
        return Flows.joined([Flows.of(found.records.take(ended), found.reason[ended]), crowded_out])

    def _has_key(self, slots: Array, words: Array) -> Array:
        same: Array = (self._records["key"][slots] == words.T).all(axis=1)
        return same

    def _make_room(self, count: int, kept: Array) -> Flows:
        """Ends flows until `count` more have room, those without packets for longest first, but none of `kept`."""
        capacity = len(self._records)
        lacking = count - (capacity - len(self))
        if lacking <= 0:
            return Flows.joined([])
        may_go = self._is_live.copy()
        may_go[kept] = False
        slots = np.flatnonzero(may_go)
        oldest = self._oldest(slots, min(max(lacking, capacity // SPARED), len(slots)))
        return self._end(oldest, np.full(len(oldest), Reason.FULL, np.uint8))

    def _oldest(self, slots: Array, number: int) -> Array:
        """Those without packets for longest: of as old ones those that began first, whatever slots they have."""
        latest = self._latest[slots]
        limit = np.partition(latest, number - 1)[number - 1]
        older, tied = slots[latest < limit], slots[latest == limit]
        # Records without packets have one serial number, but keys of their own.
        first = np.lexsort((*self._records["key"][tied].T, self._records["serial"][tied]))
        return np.concatenate([older, tied[first[: number - len(older)]]])

    def _taken(self, hashes: Array) -> Array:
        """Slots for new flows."""
        count = len(hashes)
        reused = min(count, self._free_count)
        self._free_count -= reused
        fresh = np.arange(self._fresh, self._fresh + count - reused)
        self._fresh += len(fresh)
        slots = np.concatenate([self._free[self._free_count :][:reused], fresh])
        self._hashes[slots] = hashes
        self._is_live[slots] = True
        self._index.insert(hashes, slots)
        return slots

    def _store(self, slots: Array, found: Reduced) -> None:
        records = found.records.take(np.flatnonzero(found.is_last))
        as_blocks(self._records)[slots] = as_blocks(records)
        self._begun[slots], self._latest[slots] = spans(records)
        self._is_empty[slots] = False

    def _end(self, slots: Array, reason: Array) -> Flows:
        """Takes flows out of the table, and gives those that have packets."""
        has_packets = ~self._is_empty[slots]
        ended = Flows.of(self._records.take(slots[has_packets]), reason[has_packets])
        self._is_live[slots] = False
        self._index.remove(self._hashes[slots], slots)
        self._free[self._free_count :][: len(slots)] = slots
        self._free_count += len(slots)
        if self._index.is_worn:
            live = np.flatnonzero(self._is_live[: self._fresh])
            self._index.rebuild(self._hashes[live], live)
        return ended

    def _empty(self, slots: Array) -> None:
        """Empties records of flows that go on after their active time-out."""
        before = self._records.take(slots)
        records = empty(len(slots))
        records["key"] = before["key"]
        records["origin"] = originators(before)
        records["icmp"] = before["icmp"]
        records["is_continued"] = True
        as_blocks(self._records)[slots] = as_blocks(records)
        self._is_empty[slots] = True

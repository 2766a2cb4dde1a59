"""What the packets of a batch make of their flows: records that go on, and records that ended among them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from . import flow_letters, flow_sums
from .flow_cuts import Timeouts, active_cuts, clocks, elapsed
from .flow_record import as_blocks, empty, is_decided, originators, spans
from .flow_runs import Runs
from .packet_index import Array


class Reason(IntEnum):
    """Why a flow ended."""

    IDLE = 0
    """No packet came for the idle time-out."""
    ACTIVE = 1
    """It had gone on for the active time-out; the rest of it is another record, if there is any."""
    FULL = 2
    """The table was full, and other flows had younger packets."""
    END = 3
    """The table was flushed: nothing more was to come."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Packets in the order of their arrival.

    Attributes:
        serial: (n,) uint64, their numbers.
        time_ns: (n,) int64.
        side: (n,) uint8, the end of the key that sent it.
        wire, ip, payload: (n,) uint32, bytes.
        flags: (n,) uint16, of TCP.
        kind: (n,) uint8, of `tcp_state.kinds`.
        seq: (n,) uint32, of TCP.
        icmp: (n, 2) uint8, type and code.
    """

    serial: Array
    time_ns: Array
    side: Array
    wire: Array
    ip: Array
    payload: Array
    flags: Array
    kind: Array
    seq: Array
    icmp: Array


@dataclass(frozen=True, slots=True)
class Known:
    """What the table holds of the flows of a batch, one row a run; rows of flows that it does not know mean nothing.

    Attributes:
        is_known: (runs,) bool.
        records: (known runs,) of `flow_record.RECORD`.
        begun, latest: (runs,) int64, the clock at the first and the last packet.
        is_empty: (runs,) bool, whether the record has no packets.
    """

    is_known: Array
    records: Array
    begun: Array
    latest: Array
    is_empty: Array


@dataclass(frozen=True, slots=True)
class Reduced:
    """Records after a batch, in the order of runs, and in the order of time within each.

    Attributes:
        records: (m,) of `flow_record.RECORD`.
        is_last: (m,) bool, whether it is the last of its run, and so goes on; each run has one.
        reason: (m,) uint8, a `Reason`: why another follows.
    """

    records: Array
    is_last: Array
    reason: Array


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which record each packet belongs to.

    Attributes:
        clock: (n,) int64, by place.
        opens: (n,) bool, whether a record begins with the packet in this place.
        is_active: (n,) bool, whether the active time-out makes it do so.
        of_place: (n,) int64, the record of each place.
        known: (known runs,) int64, the record that each known run goes on with.
        run: (m,) int64, the run of each record.
    """

    clock: Array
    opens: Array
    is_active: Array
    of_place: Array
    known: Array
    run: Array


def reduced(runs: Runs, words: Array, arrivals: Arrivals, known: Known, timeouts: Timeouts) -> Reduced:
    """The records of a batch's flows.

    Args:
        runs: the packets, sorted by flow.
        words: (6, runs) uint64, the key of each run.
        arrivals: the packets.
        known: what the table holds.
        timeouts: when records end.
    """
    layout = _layout(runs, arrivals.time_ns, known, timeouts)
    order = runs.order
    records = empty(len(layout.run))
    as_blocks(records)[layout.known] = as_blocks(known.records)
    opening = np.flatnonzero(layout.opens)
    opened = layout.of_place[opening]
    records["key"][opened] = words.T[layout.run[opened]]
    records["serial"][opened] = arrivals.serial[order[opening]]
    records["origin"][opened] = arrivals.side[order[opening]]
    records["icmp"][opened] = arrivals.icmp[order[opening]]
    records["is_continued"][opened] = layout.is_active[opening]
    _number_empty(records, runs, layout, known, arrivals)
    side = arrivals.side[order]
    columns = (arrivals.wire[order], arrivals.ip[order], arrivals.payload[order], arrivals.flags[order])
    flow_sums.add(records, flow_sums.Columns(layout.of_place, side, layout.clock, *columns))
    flow_letters.add_letters(records, layout.of_place, side, arrivals.kind[order], arrivals.seq[order])
    _carry_over(records, opened[layout.is_active[opening]])
    is_last = np.append(layout.run[1:] != layout.run[:-1], True)
    return Reduced(records, is_last, _reasons(records, layout, opened, opening, timeouts))


def _layout(runs: Runs, time_ns: Array, known: Known, timeouts: Timeouts) -> _Layout:
    is_start, is_known = runs.is_start, known.is_known
    clock = clocks(runs, time_ns[runs.order], known.latest, is_known)
    before = np.append(clock[:1], clock[:-1])
    before[runs.start] = np.where(is_known, known.latest, clock[runs.start])
    idle = np.zeros(len(clock), bool)
    if timeouts.idle_ns is not None:
        idle = elapsed(before, clock) >= timeouts.idle_ns
    active = np.zeros(len(clock), bool)
    if timeouts.active_ns is not None:
        begun = clock.copy()
        goes_on = is_known & ~known.is_empty & ~idle[runs.start]
        begun[runs.start[goes_on]] = known.begun[goes_on]
        is_first = is_start | idle
        active = active_cuts(is_first, clock, begun[is_first], timeouts.active_ns)
    opens = idle | active
    opens[runs.start] |= ~is_known
    known_before = np.cumsum(is_known)[runs.of_place]
    of_place = np.cumsum(opens) - 1 + known_before
    places = np.flatnonzero(opens)
    records_known = (of_place - opens)[runs.start[is_known]]
    run = np.empty(len(places) + len(records_known), np.int64)
    run[of_place[places]] = runs.of_place[places]
    run[records_known] = np.flatnonzero(is_known)
    return _Layout(clock, opens, active, of_place, records_known, run)


def _number_empty(records: Array, runs: Runs, layout: _Layout, known: Known, arrivals: Arrivals) -> None:
    """Records without packets get the number of the first that they have now."""
    was_empty = known.is_empty[known.is_known]
    start = runs.start[known.is_known][was_empty]
    first = layout.known[was_empty]
    goes_on = ~layout.opens[start]
    records["serial"][first[goes_on]] = arrivals.serial[runs.order[start[goes_on]]]


def _carry_over(records: Array, cut: Array) -> None:
    """What follows an active time-out has the originator of what was before, unless a SYN of its own says who it is.

    The type and code of ICMP, which belong to that direction, stay too.

    Args:
        records: of the batch, changed in place.
        cut: (k,) int64, the records that follow.
    """
    if not len(cut):
        return
    is_anchor = np.ones(len(records), bool)
    is_anchor[cut] = is_decided(records[cut])
    anchor = np.maximum.accumulate(np.where(is_anchor, np.arange(len(records)), 0))
    before = anchor[cut - 1]
    records["origin"][cut] = originators(records)[before]
    records["icmp"][cut] = records["icmp"][before]


def _reasons(records: Array, layout: _Layout, opened: Array, opening: Array, timeouts: Timeouts) -> Array:
    reason = np.full(len(records), Reason.IDLE, np.uint8)
    follows = np.append(False, layout.run[1:] == layout.run[:-1])[opened]
    before, is_active = opened[follows] - 1, layout.is_active[opening[follows]]
    is_active |= timeouts.cut_by_active(*spans(records[before]))
    reason[before[is_active]] = Reason.ACTIVE
    return reason

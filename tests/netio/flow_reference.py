"""Flows one packet at a time, in plain Python: what the tables are compared with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from aikoryu.netio.flow_record import FIRST, MOST_REPEATS
from aikoryu.netio.flows import Flows, Reason
from aikoryu.netio.packet_index import Array
from aikoryu.netio.packets import HEADER_DTYPES, NO_VLAN, PACKET_DTYPES, Headers, Packets
from aikoryu.netio.tcp_state import ConnState, End, Kind, outcome, step

MOST_U4, MOST_U8 = 2**32 - 1, 2**64 - 1
NAMES = {
    Kind.SYN: "s",
    Kind.SYN_ACK: "h",
    Kind.ACK: "a",
    Kind.DATA: "d",
    Kind.FIN: "f",
    Kind.RST: "r",
    Kind.FIN_RST: "i",
    Kind.SYN_FIN: "q",
    Kind.SYN_RST: "q",
}


def kind_of(flags: int, payload: int) -> Kind:
    fin, syn, rst, ack = (bool(flags & bit) for bit in (1, 2, 4, 16))
    if syn + fin + rst > 1:
        return Kind.FIN_RST if fin and rst else Kind.SYN_FIN if fin else Kind.SYN_RST
    if syn:
        return Kind.SYN_ACK if ack else Kind.SYN
    if fin or rst:
        return Kind.FIN if fin else Kind.RST
    return Kind.DATA if payload else Kind.ACK if ack else Kind.NONE


@dataclass
class WholeFlow:
    """The state of one connection, all of whose packets take their step, and its history."""

    first_sender: Hashable
    packets: list[tuple[Hashable, Kind]] = field(default_factory=list)
    letters: list[tuple[Hashable, Kind]] = field(default_factory=list)
    last: dict[tuple[Hashable, Kind], int] = field(default_factory=dict)
    repeats: int = 0
    payload: int = 0
    is_flipped: bool = False
    """Whether the first SYN or SYN-ACK says that the first packet was the responder's."""

    def add(self, sender: Hashable, flags: int, seq: int, payload: int) -> None:
        kind = kind_of(flags, payload)
        self.payload += payload
        if kind == Kind.NONE:
            return
        self.packets.append((sender, kind))
        opens = kind in (Kind.SYN, Kind.SYN_ACK)
        if opens and not any(letter in (Kind.SYN, Kind.SYN_ACK) for _, letter in self.letters):
            self.is_flipped = (sender == self.first_sender) == (kind == Kind.SYN_ACK)
        is_new = (sender, kind) not in self.last
        if is_new:
            self.letters.append((sender, kind))
        elif NAMES[kind] in "shfr" and self.last[sender, kind] != seq and self.repeats < MOST_REPEATS:
            self.repeats += 1
            self.letters.append((sender, kind))
        self.last[sender, kind] = seq

    @property
    def state(self) -> ConnState:
        originator, responder = End.INACTIVE, End.INACTIVE
        for sender, kind in self.packets:
            if self.is_originator(sender):
                originator, responder = step(originator, responder, kind, True)
            else:
                responder, originator = step(responder, originator, kind, False)
        return outcome(originator, responder, not self.payload)

    @property
    def history(self) -> str:
        said = (NAMES[kind].upper() if self.is_originator(sender) else NAMES[kind] for sender, kind in self.letters)
        return "^" * self.is_flipped + "".join(said)

    def is_originator(self, sender: Hashable) -> bool:
        return (sender == self.first_sender) != self.is_flipped


class Packet(NamedTuple):
    """One packet, as `made` lays it into columns. Addresses and ports are small numbers."""

    time_ns: int
    source: tuple[int, int]
    destination: tuple[int, int]
    version: int = 4
    protocol: int = 6
    flags: int = 0
    seq: int = 0
    payload: int = 0
    wire: int = 60
    ip: int = 46
    vlans: tuple[int, int] = (NO_VLAN, NO_VLAN)
    tunnel: tuple[int, int] = (0, 0)
    fragment_offset: int = 0
    icmp: tuple[int, int] = (0, 0)


@dataclass
class Record:
    """One flow, as far as it has come."""

    packet: Packet
    serial: int
    origin: int
    is_continued: bool
    icmp: tuple[int, int]
    clock: int
    tcp: WholeFlow = field(init=False)
    packets: list[tuple[int, int, Packet]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tcp = WholeFlow(self.origin)

    @property
    def originator(self) -> int:
        """The side that sent the first SYN, or not the first SYN-ACK; without either, that of the first packet."""
        return self.origin ^ self.tcp.is_flipped


def plain_flows(
    packets: list[Packet], idle_s: float | None, active_s: float | None, vlan: bool = False, tunnel: bool = False
) -> list[dict[str, object]]:
    """All flows, one row each, in the order of their first packets."""
    idle, active = (None if value is None else round(value * 10**9) for value in (idle_s, active_s))
    live: dict[Hashable, Record] = {}
    ended: list[dict[str, object]] = []
    for serial, packet in enumerate(packets):
        key = key_of(packet, vlan, tunnel)
        if key is None:
            continue
        record = live.get(key)
        now = packet.time_ns if record is None else max(packet.time_ns, record.clock)
        before = None
        if record is not None:
            begun = record.packets[0][1]
            is_idle = idle is not None and now - record.clock >= idle
            is_active = active is not None and now - begun >= active
            if is_idle or is_active:
                cut_first = is_active and (not is_idle or begun + (active or 0) < record.clock + (idle or 0))
                ended.append(row_of(record, "ACTIVE" if cut_first else "IDLE"))
                before, record = None if is_idle else record, None
        if record is None:
            origin = before.originator if before else side_of(packet)
            icmp = before.icmp if before else packet.icmp
            record = live[key] = Record(packet, serial, origin, before is not None, icmp, now)
        record.clock = now
        record.packets.append((side_of(packet), now, packet))
        if packet.protocol == 6 and not packet.fragment_offset:
            record.tcp.add(side_of(packet), packet.flags, packet.seq, packet.payload)
        elif packet.protocol == 17 and not packet.fragment_offset:
            record.tcp.add(side_of(packet), 0, 0, 1)
    ended += [row_of(record, "END") for record in live.values()]
    return sorted(ended, key=lambda row: int(str(row["serial"])))


def side_of(packet: Packet) -> int:
    """0 where the lower end sent the packet, or both are the same, else 1."""
    return int(packet.source > packet.destination)


def key_of(packet: Packet, vlan: bool, tunnel: bool) -> Hashable:
    if not packet.version:
        return None
    ends = tuple(sorted([packet.source, packet.destination]))
    portless = packet.fragment_offset > 0 and packet.protocol in (6, 17, 33, 132, 136)
    return ends, packet.version, packet.protocol, portless, vlan and packet.vlans, tunnel and packet.tunnel


def row_of(record: Record, reason: str) -> dict[str, object]:
    ends = sorted([record.packet.source, record.packet.destination])
    order = [record.originator, 1 - record.originator]
    sides = [[(now, packet) for sender, now, packet in record.packets if sender == side] for side in order]
    gaps = [[later[0] - earlier[0] for earlier, later in pairwise(side)] for side in sides]
    sizes = [[packet.wire for _, packet in side] for side in sides]
    is_tcp = record.packet.protocol == 6 and not record.packet.fragment_offset
    state = record.tcp.state if is_tcp else ConnState.OTH
    if record.packet.protocol == 17 and not record.packet.fragment_offset:
        state = ConnState.SF if all(sides) else ConnState.S0
    return {
        "serial": record.serial,
        "ends": tuple(ends[side] for side in order),
        "reason": reason,
        "is_continued": record.is_continued,
        "is_flipped": record.tcp.is_flipped,
        "icmp": record.icmp,
        "first_ns": [side[0][0] if side else 0 for side in sides],
        "last_ns": [side[-1][0] if side else 0 for side in sides],
        "packets": [len(side) for side in sides],
        "wire_bytes": [sum(size) for size in sizes],
        "ip_bytes": [sum(packet.ip for _, packet in side) for side in sides],
        "payload_bytes": [sum(packet.payload for _, packet in side) for side in sides],
        "size_least": [min(size, default=0) for size in sizes],
        "size_most": [max(size, default=0) for size in sizes],
        "size_squares": [min(sum(value * value for value in size), MOST_U8) for size in sizes],
        "gap_sum_ns": [sum(gap) for gap in gaps],
        "gap_least_ns": [min(gap, default=0) for gap in gaps],
        "gap_most_ns": [max(gap, default=0) for gap in gaps],
        "gap_squares": [min(sum((value // 1000) ** 2 for value in gap), MOST_U8) for gap in gaps],
        "flag_counts": [[sum(packet.flags >> bit & 1 for _, packet in side) for bit in range(8)] for side in sides],
        "first_sizes": [padded(size) for size in sizes],
        "first_gaps_us": [
            padded([0] * bool(side) + [min(value // 1000, MOST_U4) for value in gap])
            for side, gap in zip(sides, gaps, strict=True)
        ],
        "state": state.name,
        "history": record.tcp.history,
    }


def padded(values: list[int]) -> list[int]:
    return (values + [0] * FIRST)[:FIRST]


def made(packets: list[Packet]) -> tuple[Packets, Array, Array]:
    """The same packets as columns, with their times and sizes."""
    rows = len(packets)
    columns = {name: np.zeros(rows, dtype) for name, dtype in (PACKET_DTYPES | HEADER_DTYPES).items()}
    given = {
        "src_low": [packet.source[0] for packet in packets],
        "dst_low": [packet.destination[0] for packet in packets],
        "sport": [packet.source[1] for packet in packets],
        "dport": [packet.destination[1] for packet in packets],
        "version": [packet.version for packet in packets],
        "protocol": [packet.protocol for packet in packets],
        "tcp_flags": [packet.flags for packet in packets],
        "seq": [packet.seq for packet in packets],
        "payload_wire": [packet.payload for packet in packets],
        "total_length": [packet.ip for packet in packets],
        "fragment_offset": [packet.fragment_offset for packet in packets],
        "vlan_outer": [packet.vlans[0] for packet in packets],
        "vlan_inner": [packet.vlans[1] for packet in packets],
        "tunnel": [packet.tunnel[0] for packet in packets],
        "tunnel_id": [packet.tunnel[1] for packet in packets],
        "icmp_type": [packet.icmp[0] for packet in packets],
        "icmp_code": [packet.icmp[1] for packet in packets],
    }
    for name, values in given.items():
        columns[name][:] = values
    headers = Headers(**{name: columns.pop(name) for name in HEADER_DTYPES})
    times = np.array([packet.time_ns for packet in packets], np.int64)
    return (
        Packets(**columns, outer=headers, inner=headers),
        times,
        np.array([packet.wire for packet in packets], np.uint32),
    )


def rows_of(flows: Flows) -> list[dict[str, object]]:
    """The flows of a table as `plain_flows` has them."""
    listed = {name: getattr(flows, name).tolist() for name in (*vars(flows), "gap_sum_ns", "state", "history")}
    same = ["serial", "is_continued", "is_flipped", "first_ns", "last_ns", "packets", "wire_bytes", "ip_bytes"]
    same += ["payload_bytes", "size_least", "size_most", "size_squares", "gap_sum_ns", "gap_least_ns", "gap_most_ns"]
    same += ["gap_squares", "flag_counts", "first_sizes", "first_gaps_us", "history"]
    return [
        {name: listed[name][row] for name in same}
        | {
            "ends": tuple((listed[f"{end}_low"][row], listed[f"{end}_port"][row]) for end in ("source", "destination")),
            "reason": Reason(listed["reason"][row]).name,
            "state": ConnState(listed["state"][row]).name,
            "icmp": (listed["icmp_type"][row], listed["icmp_code"][row]),
        }
        for row in range(len(flows))
    ]

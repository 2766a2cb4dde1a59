"""Every flow of the real captures against tshark's, and the state of each against a walk over its packets."""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pytest

from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.flow_cuts import Timeouts
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows
from aikoryu.netio.packet_index import PacketIndex
from aikoryu.netio.packets import Packets
from aikoryu.netio.tcp_state import TCP

from . import truth
from .flow_reference import WholeFlow

Choice: TypeAlias = Literal["inner", "outer"]
Row: TypeAlias = "tuple[str, ...]"

STRANGE = {"LINKTYPE_IPV4_invalid.pcap", "kday1.pcap"}
"""tshark follows the version nibble there; for us they have no IP header."""
UNPACKED = ("22_ipv6_ext_headers.pcap", "inner")
"""tshark unpacks IPComp there, and so has other ports."""

pytestmark = pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")


@pytest.mark.parametrize("header", ["outer", "inner"])
@pytest.mark.parametrize("path", truth.captures(), ids=lambda path: path.name)
def test_every_flow_agrees_with_tshark(path: Path, header: Choice) -> None:
    index, packets = dissected(path)
    flows = all_flows(index, packets, header)
    if path.name in STRANGE:
        assert not len(flows)
        return
    if (path.name, header) == UNPACKED:
        assert int(flows.packets.sum()) == len(index)
        return
    # Frames that end before tshark has both addresses.
    columns = truth.tshark_columns(path)
    pairs = zip(columns[f"{header[0]}_src"], columns[f"{header[0]}_dst"], strict=True)
    cut = {str(frame) for frame, pair in enumerate(pairs, 1) if "" in pair}
    theirs = [row for row in tshark_flows(path, header) if row[0] not in cut]
    assert [row for row in our_flows(flows) if row[0] not in cut] == theirs


@pytest.mark.parametrize("path", truth.captures(), ids=lambda path: path.name)
def test_every_connection_has_the_state_that_a_walk_over_its_packets_gives(path: Path) -> None:
    index, packets = dissected(path)
    flows = all_flows(index, packets, "inner")
    walked = walked_packets(packets)
    tcp = np.flatnonzero((flows.protocol == TCP) & ~flows.is_fragment)
    assert {int(flows.serial[row]) for row in tcp} == set(walked)
    ours = {int(flows.serial[row]): (int(flows.state[row]), str(flows.history[row])) for row in tcp}
    assert ours == {serial: (flow.state, flow.history) for serial, flow in walked.items()}


def test_the_captures_have_connections_of_most_states() -> None:
    seen: Counter[int] = Counter()
    for path in truth.captures():
        flows = all_flows(*dissected(path), "inner")
        seen.update(flows.state[flows.protocol == TCP].tolist())
    assert len(seen) >= 8


def dissected(path: Path) -> tuple[PacketIndex, Packets]:
    with open_capture(path) as capture:
        index = capture.index
        return index, dissect(capture.blob, index.offset, index.captured, index.link, index.wire)


def all_flows(index: PacketIndex, packets: Packets, header: Choice) -> Flows:
    table = FlowTable(KeyChoice(header), Timeouts(idle_s=None, active_s=None), capacity=1 << 14)
    return Flows.joined([table.update(packets, index.time_ns, index.wire), table.flush()])


def walked_packets(packets: Packets) -> dict[int, WholeFlow]:
    """Each TCP connection, by the number of its first packet."""
    headers = packets.inner
    columns = ("version", "src_high", "src_low", "sport", "dst_high", "dst_low", "dport", "protocol", "fragment_offset")
    values = zip(*(getattr(headers, name).tolist() for name in columns), strict=True)
    extra = zip(headers.tcp_flags.tolist(), headers.seq.tolist(), headers.payload_wire.tolist(), strict=True)
    flows: dict[frozenset[object], WholeFlow] = {}
    first: dict[int, WholeFlow] = {}
    for serial, (value, (flags, seq, payload)) in enumerate(zip(values, extra, strict=True)):
        version, *ends, protocol, fragment = value
        if protocol != TCP or fragment or not version:
            continue
        source, destination = (version, *ends[:3]), (version, *ends[3:])
        key = frozenset([(source, 0), (destination, 0)])
        if key not in flows:
            first[serial] = flows[key] = WholeFlow(source)
        flows[key].add(source, flags, seq, payload)
    return first


def our_flows(flows: Flows) -> list[Row]:
    """Frame of the first packet, version, protocol, ends, packets and bytes; who sent the first packet comes first."""
    rows = []
    columns = defaultdict(list, {name: getattr(flows, name).tolist() for name in vars(flows)})
    for row in range(len(flows)):
        version = columns["version"][row]
        ends = [
            (
                truth._address(version, columns[f"{end}_high"][row], columns[f"{end}_low"][row]),
                columns[f"{end}_port"][row] or "",
            )
            for end in ("source", "destination")
        ]
        counts = list(zip(columns["packets"][row], columns["wire_bytes"][row], strict=True))
        if columns["is_flipped"][row]:
            ends, counts = ends[::-1], counts[::-1]
        said = columns["serial"][row] + 1, version, columns["protocol"][row], *ends[0], *ends[1], *counts[0], *counts[1]
        rows.append(tuple(map(str, said)))
    return rows


def tshark_flows(path: Path, header: Choice) -> list[Row]:
    capture = truth.truth_of(path)
    name = capture.name.replace(".packets.csv", f".flows_{header}.csv")
    with gzip.open(capture.with_name(name), "rt", newline="") as file:
        return [
            (
                *(row[name] for name in ("first_frame", "ver")),
                row["proto"] or "0",
                *("" if row[name] == "0" else row[name] for name in ("a_ip", "a_port", "b_ip", "b_port")),
                *(row[name] for name in ("packets_ab", "bytes_ab", "packets_ba", "bytes_ba")),
            )
            for row in csv.DictReader(file)
        ]

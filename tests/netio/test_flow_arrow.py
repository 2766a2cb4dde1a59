"""Flows and packets as Arrow tables and Parquet files say what the columns say."""

from __future__ import annotations

from pathlib import Path

import pytest

from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows
from aikoryu.netio.packet_index import empty
from aikoryu.netio.packets import NO_VLAN

from .flow_reference import Packet, made

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'aikoryu[arrow]'")

import pyarrow.parquet as pq

from aikoryu.netio.arrow import FLOW_SCHEMA, PACKET_SCHEMA, flow_table, packet_table, write_parquet

A, B = (0x0A000001, 40000), (0x0A000002, 80)
PACKETS = [
    Packet(10**9, A, B, flags=2, wire=74),
    Packet(2 * 10**9, B, A, flags=18, wire=70, payload=3),
    Packet(3 * 10**9, A, B, version=6, protocol=17, vlans=(7, NO_VLAN), tunnel=(3, 5)),
    Packet(0, A, B, version=0),
]


def flows() -> Flows:
    table = FlowTable(KeyChoice(vlan=True, tunnel=True))
    table.update(*made(PACKETS))
    return table.flush()


def test_a_flow_is_a_row() -> None:
    table = flow_table(flows())
    first, second = table.to_pylist()
    assert table.schema == FLOW_SCHEMA
    assert (first["source"], first["source_port"], first["destination"]) == ("10.0.0.1", 40000, "10.0.0.2")
    assert (first["state"], first["history"], first["reason"], first["protocol"]) == ("S1", "Sh", "END", 6)
    assert (first["originator_wire_bytes"], first["responder_payload_bytes"]) == (74, 3)
    assert first["originator_first_sizes"] == [74, 0, 0, 0, 0, 0, 0, 0]
    assert first["responder_flag_counts"] == [0, 1, 0, 0, 1, 0, 0, 0]
    assert first["start"].timestamp() == first["originator_first"].timestamp()
    assert (first["vlan_outer"], second["vlan_outer"], second["vlan_inner"]) == (None, 7, None)
    assert (second["source"], second["tunnel"], second["tunnel_id"]) == ("::a00:1", "VXLAN", 5)
    assert second["responder_first"] is None


def test_a_packet_is_a_row() -> None:
    packets, times, wire = made(PACKETS)
    index = empty(len(PACKETS))
    index.time_ns[:], index.wire[:], index.timed[:] = times, wire, times > 0
    table = packet_table(packets, index)
    rows = table.to_pylist()
    assert table.schema == PACKET_SCHEMA
    assert [row["wire"] for row in rows] == [74, 70, 60, 60]
    assert [row["inner_source"] for row in rows] == ["10.0.0.1", "10.0.0.2", "::a00:1", None]
    assert [row["outer_tcp_flags"] for row in rows] == [2, 18, 0, 0]
    assert [row["time"] is None for row in rows] == [False, False, False, True]
    assert rows[2]["tunnel"] == "VXLAN"
    assert rows[0]["error"] == "NONE"


def test_parquet_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "flows.parquet"
    tables = [flow_table(flows()), flow_table(Flows.joined([])), flow_table(flows()[1:])]
    assert write_parquet(path, FLOW_SCHEMA, tables) == 3
    found = pq.read_table(path).to_pylist()
    assert found == [row for table in tables for row in table.to_pylist()]
    assert write_parquet(path, FLOW_SCHEMA, []) == 0
    assert pq.read_table(path).num_rows == 0

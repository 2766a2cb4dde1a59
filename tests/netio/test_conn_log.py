"""conn.log lines: Zeek's fields and forms, and addresses that are hidden on request."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json

import numpy as np

from aikoryu.netio.anonymise import Anonymiser
from aikoryu.netio.anonymised import anonymised_flows, anonymised_packets
from aikoryu.netio.conn_log import FIELDS, ConnLog, uids
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows

from .flow_reference import Packet, made

SECOND = 10**9
A, B = (0x0A000001, 40000), (0x0A000002, 80)
WEB = [
    Packet(1_700_000_000 * SECOND + 123_456_789, A, B, flags=2, ip=60),
    Packet(1_700_000_001 * SECOND, B, A, flags=18, ip=60),
    Packet(1_700_000_002 * SECOND, A, B, flags=24, ip=140, payload=100),
    Packet(1_700_000_003 * SECOND, B, A, flags=17, ip=40),
    Packet(1_700_000_004 * SECOND + 623_456_789, A, B, flags=17, ip=40),
]
PING = Packet(-SECOND // 2, A, B, protocol=1, icmp=(8, 0), ip=84)


def flows_of(packets: list[Packet]) -> Flows:
    table = FlowTable(KeyChoice(vlan=True))
    return Flows.joined([table.update(*made(packets)), table.flush()])


def logged(flows: Flows) -> list[str]:
    file = io.StringIO()
    with ConnLog(file, clock=lambda: 1_700_000_000.0) as log:
        log.write(flows)
    return file.getvalue().splitlines()


def test_a_log_is_what_readers_of_zeeks_logs_expect() -> None:
    lines = logged(flows_of([*WEB, PING]))
    assert lines[:6] == [
        "#separator \\x09",
        "#set_separator\t,",
        "#empty_field\t(empty)",
        "#unset_field\t-",
        "#path\tconn",
        "#open\t2023-11-14-22-13-20",
    ]
    assert lines[6].split("\t") == ["#fields", *FIELDS]
    assert lines[7].split("\t") == ["#types", *FIELDS.values()]
    assert lines[-1] == "#close\t2023-11-14-22-13-20"
    web, ping = (dict(zip(FIELDS, line.split("\t"), strict=True)) for line in lines[8:-1])
    assert web.pop("uid") != ping["uid"]
    ends = bytes([0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 6, 0, *(40000).to_bytes(2), *(80).to_bytes(2)])
    assert web.pop("community_id") == f"1:{base64.b64encode(hashlib.sha1(ends).digest()).decode()}"
    assert web == {
        "ts": "1700000000.123456",
        "id.orig_h": "10.0.0.1",
        "id.orig_p": "40000",
        "id.resp_h": "10.0.0.2",
        "id.resp_p": "80",
        "proto": "tcp",
        "service": "-",
        "duration": "4.500000",
        "orig_bytes": "100",
        "resp_bytes": "0",
        "conn_state": "SF",
        "local_orig": "-",
        "local_resp": "-",
        "missed_bytes": "-",
        "history": "ShDfF",
        "orig_pkts": "3",
        "orig_ip_bytes": "240",
        "resp_pkts": "2",
        "resp_ip_bytes": "100",
        "tunnel_parents": "-",
        "ip_proto": "6",
        "vlan": "-",
        "inner_vlan": "-",
    }
    assert (ping["proto"], ping["id.orig_p"], ping["id.resp_p"], ping["ts"]) == ("icmp", "8", "0", "-0.500000")
    assert (ping["duration"], ping["orig_bytes"], ping["conn_state"], ping["history"]) == ("-", "-", "OTH", "-")


def test_json_says_the_same_without_what_is_unset() -> None:
    flows = flows_of([*WEB, PING])
    file = io.StringIO()
    with ConnLog(file, "json") as log:
        log.write(flows)
    objects = [json.loads(line) for line in file.getvalue().splitlines()]
    rows = list(csv.DictReader(logged(flows)[8:-1], list(FIELDS), delimiter="\t"))
    assert len(objects) == len(rows)
    for found, row in zip(objects, rows, strict=True):
        said = {name: text for name, text in row.items() if text != "-"}
        assert found == {name: type(found[name])(text) for name, text in said.items()}
    assert isinstance(objects[0]["ts"], float)
    assert isinstance(objects[0]["id.orig_p"], int)


def test_protocols_versions_and_vlans_are_told() -> None:
    packets = [
        Packet(0, A, B, protocol=17, version=6, vlans=(7, 9)),
        Packet(1, (1, 0), (2, 0), protocol=47, vlans=(7, 0xFFFF)),
    ]
    udp, gre = (dict(zip(FIELDS, line.split("\t"), strict=True)) for line in logged(flows_of(packets))[8:-1])
    assert (udp["proto"], udp["id.orig_h"], udp["vlan"], udp["inner_vlan"]) == ("udp", "::a00:1", "7", "9")
    assert (gre["proto"], gre["ip_proto"], gre["vlan"], gre["inner_vlan"]) == ("unknown_transport", "47", "7", "-")


def test_uids_are_zeeks_in_form_and_repeatable() -> None:
    packets = [Packet(time, (1, 1), (2, time)) for time in range(2000)]
    names = uids(flows_of(packets))
    assert len(set(names)) == 2000
    assert all(len(name) == 18 and name.startswith("C") and name.isalnum() for name in names)
    assert uids(flows_of(packets)) == names


def test_hidden_addresses_leave_everything_else() -> None:
    flows = flows_of([*WEB, PING, Packet(9, (1, 1), (2, 2), version=6)])
    anonymiser = Anonymiser(bytes(range(32)))
    hidden = anonymised_flows(flows, anonymiser)
    for name, column in vars(flows).items():
        if not name.startswith(("source_", "destination_")) or name.endswith("port"):
            assert getattr(hidden, name).tolist() == column.tolist()
    assert hidden.source_low[0] == anonymiser.ipv4(np.array([A[0]], np.uint32))[0]
    assert hidden.destination_low[0] == anonymiser.ipv4(np.array([B[0]], np.uint32))[0]
    six = anonymiser.ipv6(np.array([[0, 1], [0, 2]], np.uint64)).tolist()
    assert [hidden.source_high[2], hidden.source_low[2]] == six[0]
    assert [hidden.destination_high[2], hidden.destination_low[2]] == six[1]
    lines = "\n".join(logged(hidden))
    assert "10.0.0." not in lines
    # A name that was computed of the true addresses would tell them to whoever tries some.
    assert not {row.split("\t")[22] for row in logged(flows)[8:-1]} & {
        row.split("\t")[22] for row in logged(hidden)[8:-1]
    }
    # The flows of hidden packets are the hidden flows.
    packets, times, wire = made([*WEB, PING, Packet(9, (1, 1), (2, 2), version=6)])
    table = FlowTable(KeyChoice(vlan=True))
    table.update(anonymised_packets(packets, anonymiser), times, wire)
    assert logged(table.flush()) == logged(hidden)

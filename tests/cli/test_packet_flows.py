"""`aikoryu packets flows`: what is printed of the flows of a capture, kept here and by a worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aikoryu.cli import main

from .test_packets import ETHER, said, syn, write

scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")

HEADING = (
    "Start                          Duration  Protocol  Originator             Responder              Packets   Back"
    "      Bytes       Back  State   History"
)
LINES = [
    "2023-11-14 22:13:20.000000     0.004500  TCP       10.0.0.1:51000         192.0.2.7:443                2      1"
    "        108         54  S1      ShA",
    "2023-11-14 22:13:20.006000     0.000000  ICMPv6    2001:db8::1            2001:db8::2                  1      0"
    "         62          0  OTH",
    "2023-11-14 22:13:20.009000     0.000000  UDP       [2001:db8::1]:5        [2001:db8::2]:53             1      0"
    "         62          0  S0      D",
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    ends = ETHER / scapy.IP(src="192.0.2.7", dst="10.0.0.1")
    outside = ETHER / scapy.IP(src="198.51.100.1", dst="198.51.100.2") / scapy.UDP(sport=9, dport=4789)
    six = ETHER / scapy.IPv6(src="2001:db8::1", dst="2001:db8::2")
    tcp = scapy.TCP(sport=51000, dport=443, flags="A", seq=8)
    return write(
        tmp_path / "trace.pcapng",
        syn(),
        ends / scapy.TCP(sport=443, dport=51000, flags="SA"),
        ETHER / scapy.ARP(pdst="192.0.2.1"),
        ETHER / scapy.IP(src="10.0.0.1", dst="192.0.2.7") / tcp,
        six / scapy.ICMPv6EchoRequest(),
        outside / scapy.VXLAN(vni=7) / syn("10.0.0.9"),
        six / scapy.UDP(sport=5, dport=53),
    )


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in said(capsys) if "10.0.0.9" not in line]


def test_a_line_a_flow(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "flows", str(trace)]) == 0
    assert lines(capsys) == [HEADING, *LINES]


def test_header_that_counts_is_chosen(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunnelled = {}
    for header in ("inner", "outer"):
        assert main(["packets", "flows", str(trace), "--header", header]) == 0
        tunnelled[header] = said(capsys)[3].split()[4:6]
    assert tunnelled == {
        "inner": ["10.0.0.9:51000", "192.0.2.7:443"],
        "outer": ["198.51.100.1:9", "198.51.100.2:4789"],
    }


@pytest.mark.parametrize(
    ("limits", "packets"),
    [
        ([], [3]),
        (["--idle", "0.002"], [2, 1]),
        (["--active", "0.001"], [1, 1, 1]),
        (["--idle", "0", "--active", "0"], [3]),
    ],
)
def test_time_outs_are_chosen(
    trace: Path, limits: list[str], packets: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["packets", "flows", str(trace), "--json", *limits]) == 0
    found = [json.loads(line) for line in said(capsys)]
    web = [each for each in found if "10.0.0.1" in (each["id.orig_h"], each["id.resp_h"])]
    assert [each["orig_pkts"] + each["resp_pkts"] for each in web] == packets


@pytest.mark.parametrize(("option", "said"), [("--idle", "--idle -1 --active 1800"), ("--active", "--active -1")])
def test_time_outs_that_are_none_are_refused(
    trace: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["packets", "flows", str(trace), option, "-1"]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert "or 0 for no time-out" in told
    assert "None" not in told


def test_conn_log_and_objects_say_the_same(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "flows", str(trace), "--conn-log"]) == 0
    log = said(capsys)
    names = next(line for line in log if line.startswith("#fields")).split("\t")[1:]
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in log if not line.startswith("#")]
    assert log[-1].startswith("#close")
    assert main(["packets", "flows", str(trace), "--json"]) == 0
    objects = [json.loads(line) for line in said(capsys)]
    assert [row["uid"] for row in rows] == [each["uid"] for each in objects]
    assert (rows[0]["conn_state"], rows[0]["history"], objects[0]["history"]) == ("S1", "ShA", "ShA")


@pytest.mark.parametrize("name", ["flows.parquet", "flows.arrow"])
def test_file_of_columns(trace: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `arrow`")
    from pyarrow import feather, parquet

    path = tmp_path / name
    assert main(["packets", "flows", str(trace), "--arrow", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: 4 flows\n"
    table = parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)
    assert table.column("originator_packets").to_pylist() == [2, 1, 1, 1]
    assert main(["packets", "flows", str(trace), "--arrow", str(tmp_path / "flows.txt")]) == 1
    assert "says no format" in capsys.readouterr().err


def test_lines_come_as_flows_end_and_columns_grow(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aikoryu.cli.packet_flows.BATCH_PACKETS", 1)
    assert main(["packets", "flows", str(trace), "--idle", "0.001"]) == 0
    found = said(capsys)
    assert len(found) == 1 + 6
    assert found[0] == HEADING
    long = ETHER / scapy.IPv6(src="2001:db8:1:2:3:4:5:6", dst="::1") / scapy.UDP(sport=1, dport=2)
    assert main(["packets", "flows", str(write(trace, syn(), long, syn("10.0.0.2"))), "--idle", "0.001"]) == 0
    first, second, third = said(capsys)[1:]
    assert first.index(" 192.0.2.7") < second.index(" [::1]") == third.index(" 192.0.2.7")


def test_lines_are_cut_at_the_edge_of_a_terminal(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["packets", "flows", str(trace)]) == 0
    assert max(map(len, said(capsys))) == 90


def test_capture_without_packets_and_one_that_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "flows", str(write(tmp_path / "none.pcapng"))]) == 0
    assert said(capsys) == [HEADING]
    path = write(tmp_path / "cut.pcapng", syn(), syn("10.0.0.2"))
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["packets", "flows", str(path)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "ends inside a packet" in err


def test_worker_keeps_the_same_flows(trace: Path, up: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "flows", str(trace), "--nats", up]) == 0
    assert lines(capsys) == [HEADING, *LINES]
    assert main(["packets", "flows", str(trace), "--nats", up, "--json", "--idle", "0.002"]) == 0
    asked = said(capsys)
    assert main(["packets", "flows", str(trace), "--json", "--idle", "0.002"]) == 0
    assert said(capsys) == asked

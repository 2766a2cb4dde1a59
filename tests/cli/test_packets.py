"""`aikoryu packets`: what is printed of captures."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu import netio
from aikoryu.cli import main
from aikoryu.netio.packet_index import DTYPES, PacketIndex
from aikoryu.netio.writer import write_pcapng

scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")

ETHER = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
T0 = 1_700_000_000 * 10**9


def write(path: Path, *frames: Any, link: int = 1, step_ns: int = 1_500_000) -> Path:
    """A capture of these packets, one each step."""
    data = [bytes(frame) for frame in frames]
    sizes = np.array([len(frame) for frame in data], np.uint32)
    columns = {
        "offset": np.cumsum(sizes) - sizes,
        "captured": sizes,
        "wire": sizes,
        "time_ns": T0 + step_ns * np.arange(len(data)),
        "timed": np.ones(len(data)),
        "link": np.full(len(data), link),
        "interface": np.zeros(len(data)),
    }
    index = PacketIndex(**{name: column.astype(DTYPES[name]) for name, column in columns.items()})
    with path.open("wb") as file:
        write_pcapng(file, np.frombuffer(b"".join(data), np.uint8), index)
    return path


def syn(source: str = "10.0.0.1") -> Any:
    return ETHER / scapy.IP(src=source, dst="192.0.2.7") / scapy.TCP(sport=51000, dport=443, flags="S", seq=7)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    outside = ETHER / scapy.IP(src="198.51.100.1", dst="198.51.100.2") / scapy.UDP(sport=9, dport=4789)
    six = ETHER / scapy.Dot1Q(vlan=5) / scapy.IPv6(src="2001:db8::1", dst="2001:db8::2")
    return write(
        tmp_path / "trace.pcapng",
        syn(),
        outside / scapy.VXLAN(vni=7) / syn() / b"abc",
        six / scapy.ICMPv6EchoRequest(),
        ETHER / scapy.ARP(pdst="192.0.2.1"),
        ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2", frag=185, flags="MF", proto=17) / b"12345678",
        bytes(syn())[:30],
    )


def test_inspect_prints_a_line_a_packet(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "inspect", str(trace)]) == 0
    assert said(capsys) == [
        "   No.         Time  Source             Destination        Protocol  Length  Info",
        "     1     0.000000  10.0.0.1           192.0.2.7          TCP           54"
        "  51000 → 443 [SYN] Seq=7 Win=8192 Len=0",
        "     2     0.001500  10.0.0.1           192.0.2.7          TCP          107"
        "  VXLAN 7  51000 → 443 [SYN] Seq=7 Win=8192 Len=3",
        "     3     0.003000  2001:db8::1        2001:db8::2        ICMPv6        66  VLAN 5  Echo request",
        "     4     0.004500  02:00:00:00:00:01  02:00:00:00:00:02  ARP           42",
        "     5     0.006000  10.0.0.1           10.0.0.2           IPv4          42"
        "  Fragment of UDP at byte 1480, more follow",
        "     6     0.007500  10.0.0.1           0.0.0.0            TCP           30  [a length is wrong]  0 → 0"
        " [no flags] Seq=0 Win=0 Len=0",
    ]


def test_inspect_as_json_says_what_was_read_and_no_more(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "inspect", str(trace), "--json"]) == 0
    first, second, third, fourth, _, last = map(json.loads, said(capsys))
    assert (first["number"], first["time_ns"], first["wire"], first["ip_headers"]) == (1, T0, 54, 1)
    assert {name: first["outer"][name] for name in ("version", "src", "dst", "dport", "tcp_flags")} == {
        "version": 4,
        "src": "10.0.0.1",
        "dst": "192.0.2.7",
        "dport": 443,
        "tcp_flags": 2,
    }
    assert (second["tunnel"], second["tunnel_id"], second["outer"]["dport"]) == ("vxlan", 7, 4789)
    assert (second["inner"]["dport"], second["inner"]["payload_wire"]) == (443, 3)
    assert (third["vlan_outer"], third["outer"]["icmp_type"], "sport" in third["outer"]) == (5, 128, False)
    assert fourth == {"number": 4, "time_ns": T0 + 4_500_000, "wire": 42, "captured": 42, "link": 1, "ethertype": 2054}
    assert last["error"] == "bad_length"


def test_inspect_names_what_first_bytes_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = ETHER / scapy.IP(src="10.0.0.1", dst="192.0.2.7")
    query = to / scapy.UDP(sport=50000, dport=53) / scapy.DNS(qd=scapy.DNSQR(qname="a.b"))
    path = write(tmp_path / "x.pcapng", query, to / scapy.UDP(sport=50000, dport=53) / b"x", to / scapy.ICMP())
    assert main(["packets", "inspect", str(path)]) == 0
    assert [line.split()[4] for line in said(capsys)[1:]] == ["DNS", "UDP", "ICMP"]
    assert main(["packets", "inspect", str(path), "--json"]) == 0
    found = [json.loads(line) for line in said(capsys)]
    assert [(each["label"], each["label_how"]) for each in found] == [
        ("DNS", "signature"),
        ("DNS", "port"),
        ("ICMP", "header"),
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_inspect_writes_columns(
    trace: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `arrow`")
    from pyarrow import feather, parquet

    monkeypatch.setattr("aikoryu.cli.packet_inspect.FILE_PACKETS", 2)
    out = tmp_path / f"out{suffix}"
    assert main(["packets", "inspect", str(trace), "--arrow", str(out), "--limit", "5"]) == 0
    assert capsys.readouterr().out == f"{out}: 5 packets\n"
    table = (parquet if suffix == ".parquet" else feather).read_table(out)
    rows = table.to_pylist()
    assert [row["inner_source"] for row in rows] == ["10.0.0.1", "10.0.0.1", "2001:db8::1", None, "10.0.0.1"]
    assert [(row["label"], row["label_how"]) for row in rows] == [
        ("TLS", "PORT"),
        ("TLS", "PORT"),
        ("ICMPv6", "HEADER"),
        (None, "NONE"),
        (None, "NONE"),
    ]
    assert rows[1]["tunnel"] == "VXLAN"
    assert table["time"].cast("int64").to_pylist() == [T0 + 1_500_000 * row for row in range(5)]


@pytest.mark.parametrize(
    ("name", "told"), [("out.csv", "end its name in .parquet, .arrow, .feather"), ("no/out.arrow", "cannot be written")]
)
def test_columns_that_cannot_be_written_are_refused(
    trace: Path, name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `arrow`")
    assert main(["packets", "inspect", str(trace), "--arrow", str(tmp_path / name)]) == 1
    assert told in capsys.readouterr().err


def test_columns_need_pyarrow(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "aikoryu.netio.arrow", raising=False)
    monkeypatch.delattr(netio, "arrow", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["packets", "inspect", str(trace), "--arrow", str(tmp_path / "x.parquet")]) == 1
    assert "pip install 'aikoryu[arrow]'" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_inspect_stops_at_a_limit(trace: Path, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "inspect", str(trace), "--limit", str(count)]) == 0
    assert len(said(capsys)) == 1 + min(count, 6)


def test_lines_are_cut_at_the_edge_of_a_terminal(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["packets", "inspect", str(trace)]) == 0
    assert max(map(len, said(capsys))) == 90


def test_columns_grow_with_what_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aikoryu.cli.packet_inspect.BATCH_PACKETS", 1)
    six = ETHER / scapy.IPv6(src="2001:db8:1:2:3:4:5:6", dst="::1") / scapy.UDP(sport=1, dport=2)
    path = write(tmp_path / "x.pcapng", syn(), six, syn())
    assert main(["packets", "inspect", str(path)]) == 0
    heading, *found = said(capsys)
    places = [line.find(word) for line, word in zip(found, ("TCP", "UDP", "TCP"), strict=True)]
    assert places[0] == heading.find("Protocol") < places[1] == places[2]


def test_time_is_left_out_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.pcapng", syn())
    simple = struct.pack("<III56sI", 3, 72, 54, bytes(syn()), 72)
    (tmp_path / "y.pcapng").write_bytes(path.read_bytes() + simple)
    assert main(["packets", "inspect", str(tmp_path / "y.pcapng")]) == 0
    assert said(capsys)[2].startswith("     2               10.0.0.1  ")


def test_cut_capture_is_printed_and_told(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace.write_bytes(trace.read_bytes()[:-5])
    assert main(["packets", "inspect", str(trace)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6
    assert "ends inside a packet" in err


def test_gzipped_capture_is_read(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = trace.with_suffix(".gz")
    packed.write_bytes(gzip.compress(trace.read_bytes()))
    assert main(["packets", "inspect", str(packed)]) == 0
    assert len(said(capsys)) == 7


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read: No such file"), (b"", "is empty"), (b"x" * 99, "name another")]
)
def test_what_is_no_capture_is_refused(
    tmp_path: Path, content: bytes | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert main(["packets", "inspect", str(tmp_path / "x")]) == 1
    assert told in capsys.readouterr().err


def test_limit_is_a_number_of_packets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["packets", "inspect", "x", "--limit", "0"])
    assert "write 1 or more" in capsys.readouterr().err


# --- rules ------------------------------------------------------------------------------------------------------------

RULES = """\
# the edge
web  tcp from any to any port 443
web  tcp from any to any port 80   # plain

low  udp from any to any port 0-1023
web  tcp from 10.0.0.0/8 to any port 443
any4 any from 0.0.0.0/0 to 0.0.0.0/0
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "edge.rules"
    path.write_text(RULES)
    return path


def test_check_names_rules_that_a_set_could_do_without(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules.write_text(RULES + "any4 any from any to any\n")
    assert main(["packets", "rules", "check", str(rules)]) == 1
    assert said(capsys) == [
        f"{rules}: 6 rules, 3 labels, our own format",
        "",
        "LINE  SHADOWED: NO PACKET REACHES IT                 TAKEN BY LINE",
        "   6  web tcp from 10.0.0.0/8 to 0.0.0.0/0 port 443  2",
        "",
        "LINE  REDUNDANT: A LATER RULE SAYS THE SAME  SAID BY LINE",
        "   7  any4 any from 0.0.0.0/0 to 0.0.0.0/0   8",
    ]


def test_check_is_content(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules.write_text("web tcp from any to any port 443\n")
    assert main(["packets", "rules", "check", str(rules)]) == 0
    assert said(capsys) == [
        f"{rules}: 1 rule, 1 label, our own format",
        "",
        "no rule is shadowed or redundant",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is no text: name a file of rules"),
        (b"web tcp from any to any\nx\n", "has 1 bad line\nline 2: '' is no protocol"),
        (b"x\ny\n", "has 2 bad lines\nline 1: "),
    ],
)
def test_file_without_rules_is_refused(
    tmp_path: Path, content: bytes | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert main(["packets", "rules", "check", str(tmp_path / "x")]) == 1
    assert told in capsys.readouterr().err


def test_classify_counts_packets_by_rule(trace: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "classify", str(trace), "--rules", str(rules)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "PACKETS  SHARE  BYTES  RULE  LINE  TEXT",
        "      2  33.3%    108              no rule (1 of them not IP)",
        "      2  33.3%    137     4     7  any4 any from 0.0.0.0/0 to 0.0.0.0/0",
        "      1  16.7%     54     0     2  web tcp from any to any port 443",
        "      1  16.7%     42     2     5  low udp from any to any port 0-1023",
    ]


def test_classify_looks_into_tunnels(trace: Path, rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packets", "classify", str(trace), "--rules", str(rules), "--inner", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"rule": -1, "packets": 2, "bytes": 108} in found
    assert {
        "rule": 0,
        "line": 2,
        "label": "web",
        "text": "web tcp from any to any port 443",
        "packets": 2,
        "bytes": 161,
    } in found


def test_classify_counts_what_comes_in_parts(
    trace: Path, rules: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["packets", "classify", str(trace), "--rules", str(rules)])
    whole = capsys.readouterr().out
    monkeypatch.setattr("aikoryu.cli.packet_classes.BATCH_PACKETS", 1)
    main(["packets", "classify", str(trace), "--rules", str(rules)])
    assert capsys.readouterr().out == whole


def test_sets_on_the_bus(trace: Path, rules: Path, up: str, capsys: pytest.CaptureFixture[str]) -> None:
    nats = ["--nats", up]
    assert main(["packets", "rules", "list", *nats]) == 0
    assert said(capsys) == ["no rule sets are on the bus"]
    assert main(["packets", "rules", "put", "edge", str(rules), *nats]) == 0
    assert said(capsys) == ["edge stands for 5 rules, version 1"]
    assert main(["packets", "rules", "list", *nats]) == 0
    heading, row = said(capsys)
    assert (heading.split(), row.split()[:3]) == (["NAME", "VERSION", "RULES", "DIGEST"], ["edge", "1", "5"])
    assert main(["packets", "classify", str(trace), "--rules", "edge", *nats]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "      2  33.3%    108        no rule (1 of them not IP)",
        "      2  33.3%    137     4  any4",
        "      1  16.7%     54     0  web",
        "      1  16.7%     42     2  low",
    ]
    rules.write_text("web tcp from 10.0.0.1/8 to any\n")
    assert main(["packets", "rules", "put", "edge", str(rules), *nats]) == 1
    assert "line 1: 10.0.0.1/8 has bits beyond /8: write 10.0.0.0/8" in capsys.readouterr().err
    assert main(["packets", "rules", "delete", "edge", *nats]) == 0
    assert said(capsys) == ["edge stands for nothing any more"]
    assert main(["packets", "rules", "delete", "edge", *nats]) == 1
    assert "no rule set is called 'edge'" in capsys.readouterr().err
    assert main(["packets", "classify", str(trace), "--rules", "edge", *nats]) == 1
    assert "no rule set 'edge' is here" in capsys.readouterr().err

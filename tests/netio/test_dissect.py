"""Dissection: what scapy builds is read back, and bytes of any kind end in an error at worst."""

from __future__ import annotations

import types
from dataclasses import fields
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio import dissect as module
from aikoryu.netio.dissect import dissect
from aikoryu.netio.layers.kinds import LINKS
from aikoryu.netio.layers.walk import MAX_IP_HEADERS, MAX_TAGS
from aikoryu.netio.packets import HEADER_DTYPES, NO_LABEL, NO_VLAN, PACKET_DTYPES, Error, Packets, Tunnel

ETHERNET, RAW = 1, 101

A4, B4, C4, D4 = "192.0.2.1", "198.51.100.2", "10.1.2.3", "10.4.5.6"
A6, B6, C6, D6 = "2001:db8::1", "2001:db8:0:1:2:3:4:5", "fd00::7", "fe80::8"


def packets_of(frames: list[bytes], links: int | list[int] = ETHERNET, **options: Any) -> Packets:
    """The frames dissected, side by side in one blob."""
    ends = np.cumsum([0, *map(len, frames)])
    types_ = np.full(len(frames), links, np.uint16)
    return dissect(np.frombuffer(b"".join(frames), np.uint8), ends[:-1], np.diff(ends), types_, **options)


def row_of(packets: Packets, row: int) -> dict[str, Any]:
    """All columns of one packet, by names such as `inner.ttl`."""
    values = {name: getattr(packets, name)[row].item() for name in PACKET_DTYPES}
    for part in ("outer", "inner"):
        headers = getattr(packets, part)
        values |= {f"{part}.{name}": getattr(headers, name)[row].item() for name in HEADER_DTYPES}
    return values


def read(frame: Any, link: int = ETHERNET, cut: int | None = None) -> dict[str, Any]:
    return row_of(packets_of([bytes(frame)[:cut]], link), 0)


def address(text: str) -> tuple[int, int]:
    number = int(ip_address(text))
    return number >> 64, number & (2**64 - 1)


def holds(row: dict[str, Any], part: str, src: str, dst: str, **values: Any) -> None:
    assert (row[f"{part}.src_high"], row[f"{part}.src_low"]) == address(src)
    assert (row[f"{part}.dst_high"], row[f"{part}.dst_low"]) == address(dst)
    assert row[f"{part}.version"] == ip_address(src).version
    assert {name: row[f"{part}.{name}"] for name in values} == values


def ether(kind: int, payload: bytes) -> bytes:
    return bytes(12) + kind.to_bytes(2, "big") + payload


def ip4(protocol: int, payload: bytes, src: str = A4, dst: str = B4, fragment: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = bytes([0x40 | size // 4, 7]) + (size + len(payload)).to_bytes(2, "big") + b"\x12\x34"
    head += fragment.to_bytes(2, "big") + bytes([61, protocol, 0, 0])
    return head + ip_address(src).packed + ip_address(dst).packed + options + payload


def ip6(protocol: int, payload: bytes, src: str = A6, dst: str = B6) -> bytes:
    head = b"\x61\x20\x00\x00" + len(payload).to_bytes(2, "big") + bytes([protocol, 62])
    return head + ip_address(src).packed + ip_address(dst).packed + payload


def udp(sport: int, dport: int, payload: bytes = b"") -> bytes:
    return b"".join(n.to_bytes(2, "big") for n in (sport, dport, 8 + len(payload), 0)) + payload


def tcp(sport: int, dport: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    head = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + (77).to_bytes(4, "big") + (88).to_bytes(4, "big")
    return (
        head
        + bytes([(20 + len(options)) // 4 << 4 | 0xA, 0x12])
        + (999).to_bytes(2, "big")
        + bytes(4)
        + options
        + payload
    )


HELLO = ip4(17, udp(1000, 2000, b"hello"))
HELLO6 = ip6(17, udp(1000, 2000, b"hello"))


def test_tcp_over_ipv4_fills_all_columns() -> None:
    frame = ether(0x0800, ip4(6, tcp(80, 50000, b"payload", bytes(4)), fragment=0x4000, options=b"\x01" * 8))
    row = read(frame + b"padding")
    assert (row["ethertype"], row["vlan_outer"], row["mpls_label"], row["ip_headers"]) == (0x0800, NO_VLAN, NO_LABEL, 1)
    assert (row["link"], row["error"], row["tunnel"]) == (ETHERNET, Error.NONE, Tunnel.NONE)
    holds(row, "outer", A4, B4, protocol=6, ttl=61, tos=7, header_length=28, total_length=59, identification=0x1234)
    holds(row, "outer", A4, B4, dont_fragment=True, more_fragments=False, fragment_offset=0, sport=80, dport=50000)
    holds(row, "outer", A4, B4, seq=77, ack=88, window=999, tcp_flags=0xA12, tcp_header_length=24)
    holds(row, "outer", A4, B4, payload_offset=14 + 28 + 24, payload_wire=7, payload_captured=7)
    assert all(row[f"inner.{name}"] == row[f"outer.{name}"] for name in HEADER_DTYPES)


@pytest.mark.parametrize(
    ("link", "header"),
    [
        (0, b"\x02\x00\x00\x00"),
        (0, b"\x00\x00\x00\x02"),
        (0, b"\x0f\x00\x08\x00"),
        (1, bytes(12) + b"\x08\x00"),
        (1, bytes(12) + b"\x00\x29\xaa\xaa\x03\x00\x00\x00\x08\x00"),
        (1, bytes(12) + b"\x00\x29\xaa\xaa\x03\x00\x00\xf8\x08\x00"),
        (1, bytes(12) + b"\x00\x24\x06\x06\x03"),
        (1, bytes(12) + b"\x88\x64\x11\x00\x00\x05\x00\x23\x00\x21"),
        (9, b"\xff\x03\x00\x21"),
        (9, b"\x21"),
        (50, b"\x00\x21"),
        (51, b"\x11\x00\x00\x05\x00\x23\x00\x21"),
        (12, b""),
        (14, b""),
        (101, b""),
        (104, b"\x0f\x00\x08\x00"),
        (105, b"\x08\x00" + bytes(22) + b"\xaa\xaa\x03\x00\x00\x00\x08\x00"),
        (105, b"\x88\x03" + bytes(22) + bytes(6) + bytes(2) + b"\xaa\xaa\x03\x00\x00\x00\x08\x00"),
        (105, b"\x88\x80" + bytes(22) + bytes(2) + bytes(4) + b"\xaa\xaa\x03\x00\x00\x00\x08\x00"),
        (108, b"\x00\x00\x00\x02"),
        (113, bytes(14) + b"\x08\x00"),
        (127, b"\x00\x00\x08\x00\x00\x00\x00\x00" + b"\x08\x00" + bytes(22) + b"\xaa\xaa\x03\x00\x00\x00\x08\x00"),
        (228, b""),
        (276, b"\x08\x00" + bytes(18)),
    ],
)
def test_each_link_type_leads_to_ip(link: int, header: bytes) -> None:
    row = read(header + HELLO, link)
    holds(row, "outer", A4, B4, sport=1000, dport=2000, payload_wire=5, payload_offset=len(header) + 28)
    assert row["error"] == Error.NONE


def test_every_link_type_has_a_test() -> None:
    marks = test_each_link_type_leads_to_ip.pytestmark  # type: ignore[attr-defined]
    assert {link for link, _ in marks[0].args[1]} | {229} == set(LINKS)
    holds(read(HELLO6, 229), "outer", A6, B6, dport=2000)


@pytest.mark.parametrize("words", [2, 3, 4])
def test_radiotap_says_what_lies_around_the_frame(words: int) -> None:
    """A timer, aligned to eight bytes behind some words of what is present; check sequence and padding."""
    present = b"\x03\x00\x00\x80" + b"\x00\x00\x00\x80" * (words - 2) + bytes(4)
    fields = present + bytes(-(4 + len(present)) % 8) + bytes(8) + b"\x30"
    radiotap = b"\x00\x00" + bytes([4 + len(fields)]) + b"\x00" + fields
    frame = b"\x88\x01" + bytes(22) + bytes(2) + b"PP" + b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + HELLO[:-1]
    row = read(radiotap + frame + b"4FCS", 127)
    holds(row, "outer", A4, B4, dport=2000, payload_wire=4)
    assert row["error"] == Error.BAD_LENGTH


@pytest.mark.parametrize(
    "header",
    [
        b"\x80\x00" + bytes(22),
        b"\x48\x00" + bytes(22),
        b"\x08\x40" + bytes(22),
        b"\x08\x00" + bytes(20) + b"\x01\x00",
        b"\x88\x00" + bytes(22) + b"\x80\x00",
    ],
)
def test_other_frames_of_80211_end_there(header: bytes) -> None:
    """A beacon, data without data, what is encrypted, later fragments and aggregates."""
    row = read(header + b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + HELLO, 105)
    assert (row["ip_headers"], row["error"]) == (0, Error.NONE)


def test_vlan_ids_are_the_first_and_the_last() -> None:
    tag = [b"\x81\x00\x20\x0a", b"\x88\xa8\x20\x0b", b"\x91\x00\x20\x0c"]
    for count, want in enumerate([(NO_VLAN, NO_VLAN), (10, NO_VLAN), (10, 11), (10, 12)]):
        row = read(bytes(12) + b"".join(tag[:count]) + b"\x08\x00" + HELLO)
        assert (row["vlan_outer"], row["vlan_inner"]) == want
        holds(row, "outer", A4, B4, dport=2000)


@pytest.mark.parametrize(
    ("inside", "headers"),
    [
        (HELLO, 1),
        (ether(0x0800, HELLO), 1),
        (b"\x00\x00\x00\x07" + ether(0x0800, HELLO), 1),
        (b"\x10\x00\x00\x21" + HELLO, 0),
    ],
)
def test_mpls_tells_what_follows_by_its_looks(inside: bytes, headers: int) -> None:
    row = read(ether(0x8847, b"\x00\x06\x40\xff" + b"\x00\x07\x41\xff" + inside))
    assert (row["mpls_label"], row["ip_headers"], row["error"]) == (100, headers, Error.NONE)
    assert row["outer.dport"] == 2000 * headers


@pytest.mark.parametrize("label", [13, 14])
def test_labels_of_channels_lead_to_no_packet(label: int) -> None:
    row = read(ether(0x8847, (label << 12 | 0x1FF).to_bytes(4, "big") + HELLO))
    assert (row["mpls_label"], row["ip_headers"], row["error"]) == (label, 0, Error.NONE)


def test_arp_is_whole_or_not() -> None:
    arp = ether(0x0806, b"\x00\x01\x08\x00\x06\x04\x00\x01" + bytes(20))
    assert read(arp)["error"] == Error.NONE
    assert read(arp, cut=-1)["error"] == Error.BAD_LENGTH


EXTENSIONS = [
    (b"\x2c\x01" + bytes(14), 0),  # hop-by-hop of 16 bytes
    (b"\x3c\x00\x00\x01" + b"\x00\x00\x00\x09", 44),  # the first fragment
    (b"\x2b\x00" + bytes(6), 60),
    (b"\x33\x00" + bytes(6), 43),
    (b"\x11\x01" + bytes(10), 51),  # AH of 12 bytes
]


def test_extension_headers_lead_to_the_transport() -> None:
    chain = b"".join(header for header, _ in EXTENSIONS)
    row = read(ether(0x86DD, ip6(0, chain + udp(1000, 2000, b"hello"))))
    holds(row, "outer", A6, B6, protocol=17, sport=1000, dport=2000, identification=9, more_fragments=True)
    holds(row, "outer", A6, B6, ttl=62, tos=0x12, header_length=40, total_length=40 + len(chain) + 13)
    holds(row, "outer", A6, B6, payload_offset=14 + 40 + len(chain) + 8, payload_wire=5)
    assert row["error"] == Error.NONE


def test_later_fragments_have_no_ports() -> None:
    row = read(ether(0x0800, ip4(17, b"\x01\x02\x03\x04", fragment=0x2003)))
    holds(row, "outer", A4, B4, more_fragments=True, fragment_offset=24, sport=0, payload_offset=34, payload_wire=4)
    row = read(ether(0x86DD, ip6(44, b"\x06\x00\x00\x19\x00\x00\x00\x05data")))
    holds(row, "outer", A6, B6, protocol=6, more_fragments=True, fragment_offset=24, identification=5, sport=0)


def test_the_first_fragment_may_say_more_than_is_there() -> None:
    datagram = udp(1000, 2000, bytes(100))
    row = read(ether(0x0800, ip4(17, datagram[:48], fragment=0x2000)))
    holds(row, "outer", A4, B4, dport=2000, payload_wire=40)
    assert row["error"] == Error.NONE


@pytest.mark.parametrize(
    ("protocol", "header", "size"),
    [
        (132, bytes([3, 232, 7, 208]) + bytes(8), 12),
        (33, bytes([3, 232, 7, 208, 4]) + bytes(11), 16),
        (136, bytes([3, 232, 7, 208]) + bytes(4), 8),
    ],
)
def test_ports_of_other_transports(protocol: int, header: bytes, size: int) -> None:
    row = read(ether(0x0800, ip4(protocol, header + b"data")))
    holds(row, "outer", A4, B4, sport=1000, dport=2000, payload_offset=34 + size, payload_wire=4)


@pytest.mark.parametrize("protocol", [1, 58])
def test_what_icmp_quotes_is_payload(protocol: int) -> None:
    row = read(ether(0x0800, ip4(protocol, b"\x03\x01" + bytes(6) + HELLO)))
    holds(row, "inner", A4, B4, icmp_type=3, icmp_code=1, sport=0, payload_wire=len(HELLO))
    assert row["ip_headers"] == 1


INNER = ip4(6, tcp(22, 33, b"inside"), C4, D4)
INNER6 = ip6(6, tcp(22, 33, b"inside"), C6, D6)
TEREDO_HEADERS = b"\x00\x01\x02\x03" + bytes(5) + bytes(9) + bytes(8)
GTP_EXTENSIONS = (
    b"\x34\xff\x00\x00\x00\x00\x00\x2a\x00\x01\x00\x85" + b"\x01\x10\x00\x85" + b"\x02" + bytes(6) + b"\x00"
)
ERSPAN_3 = b"\x10\x00\x22\xeb\x00\x00\x00\x01" + bytes(11) + b"\x01" + bytes(8)


@pytest.mark.parametrize(
    ("tunnel", "tunnel_id", "outer", "inner"),
    [
        (Tunnel.IP, 0, ip4(4, INNER), INNER),
        (Tunnel.IP, 0, ip4(41, INNER6), INNER6),
        (Tunnel.IP, 0, ip6(4, INNER), INNER),
        (Tunnel.IP, 0, ip6(41, INNER6), INNER6),
        (Tunnel.GRE, 0, ip4(47, b"\x00\x00\x08\x00" + INNER), INNER),
        (Tunnel.GRE, 5, ip4(47, b"\xb0\x00\x86\xdd" + bytes(4) + b"\x00\x00\x00\x05" + bytes(4) + INNER6), INNER6),
        (Tunnel.GRE, 0, ip4(47, b"\x00\x00\x65\x58" + ether(0x0800, INNER)), INNER),
        (Tunnel.GRE, 0, ip4(47, b"\x30\x81\x88\x0b" + bytes(12) + b"\xff\x03\x00\x21" + INNER), INNER),
        (Tunnel.GRE, 0, ip4(47, b"\x00\x00\x88\xbe" + ether(0x0800, INNER)), INNER),
        (Tunnel.GRE, 0, ip4(47, b"\x10\x00\x88\xbe" + bytes(12) + ether(0x0800, INNER)), INNER),
        (Tunnel.GRE, 0, ip4(47, ERSPAN_3 + ether(0x0800, INNER)), INNER),
        (Tunnel.GRE, 0, ip4(47, ERSPAN_3[:19] + b"\x00" + ether(0x0800, INNER)), INNER),
        (Tunnel.VXLAN, 42, ip4(17, udp(9, 4789, b"\x08" + bytes(5) + b"\x2a\x00" + ether(0x86DD, INNER6))), INNER6),
        (Tunnel.GENEVE, 42, ip6(17, udp(9, 6081, b"\x01\x00\x08\x00\x00\x00\x2a\x00" + bytes(4) + INNER)), INNER),
        (Tunnel.GENEVE, 7, ip4(17, udp(9, 6081, b"\0\0\x65\x58\0\0\x07\0" + ether(0x0800, INNER))), INNER),
        (Tunnel.GTP, 42, ip4(17, udp(2152, 2152, b"\x30\xff\x00\x00\x00\x00\x00\x2a" + INNER)), INNER),
        (Tunnel.GTP, 42, ip4(17, udp(9, 2152, GTP_EXTENSIONS + INNER6)), INNER6),
        (Tunnel.TEREDO, 0, ip4(17, udp(3544, 9, INNER6)), INNER6),
        (Tunnel.TEREDO, 0, ip4(17, udp(9, 3544, TEREDO_HEADERS + INNER6)), INNER6),
        (Tunnel.L2TP, 0, ip4(17, udp(1701, 1701, b"\x00\x02" + bytes(4) + b"\xff\x03\x00\x21" + INNER)), INNER),
        (Tunnel.L2TP, 0, ip4(17, udp(9, 1701, b"\x4a\x02" + bytes(10) + b"\0\x02??" + b"\x00\x57" + INNER6)), INNER6),
    ],
)
def test_tunnels(tunnel: Tunnel, tunnel_id: int, outer: bytes, inner: bytes) -> None:
    """The inner columns are those of the inner packet alone; the outer payload is the whole tunnel."""
    row, within = read(outer, RAW), read(inner, RAW)
    assert (row["tunnel"], row["tunnel_id"], row["ip_headers"], row["error"]) == (tunnel, tunnel_id, 2, Error.NONE)
    within["inner.payload_offset"] += len(outer) - len(inner)
    assert {n: v for n, v in row.items() if n.startswith("inner.")} == {
        n: v for n, v in within.items() if n.startswith("inner.")
    }
    head = 8 if row["outer.protocol"] == 17 else 0
    size = 40 if row["outer.version"] == 6 else 20
    assert row["outer.payload_offset"] == size + head
    assert row["outer.payload_wire"] == len(outer) - size - head
    assert row["outer.total_length"] == len(outer)
    assert row["outer.ttl"] == (62 if row["outer.version"] == 6 else 61)
    assert (row["outer.tcp_flags"], row["ethertype"]) == (0, 0)


@pytest.mark.parametrize(
    "outer",
    [
        ip4(47, b"\x40\x00\x08\x00" + bytes(4) + INNER),
        ip4(47, b"\x00\x02\x08\x00" + INNER),
        ip4(47, b"\x20\x81\x88\x0b" + bytes(8) + b"\x00\x21" + INNER),
        ip4(17, udp(9, 6081, b"\x40\x00\x08\x00" + bytes(4) + INNER)),
        ip4(17, udp(9, 2152, b"\x30\x01\x00\x00" + bytes(4) + INNER)),
        ip4(17, udp(9, 2152, b"\x50\xff\x00\x00" + bytes(4) + INNER)),
        ip4(17, udp(9, 1701, b"\x80\x02" + bytes(4) + b"\x00\x21" + INNER)),
        ip4(17, udp(9, 1701, b"\x00\x03" + bytes(4) + b"\x00\x21" + INNER)),
        ip4(17, udp(9, 3544, INNER)),
    ],
)
def test_what_carries_no_packet_is_no_tunnel(outer: bytes) -> None:
    """Routes in GRE, versions that are not known, control messages, acknowledgements, IPv4 in Teredo."""
    row = read(outer, RAW)
    assert (row["ip_headers"], row["tunnel"], row["error"]) == (1, Tunnel.NONE, Error.NONE)


def test_tunnels_in_tunnels_keep_the_first_and_the_last() -> None:
    middle = ip4(17, udp(1, 4789, b"\x08" + bytes(5) + b"\x2a\x00" + ether(0x86DD, INNER6)), "10.9.9.9", "10.8.8.8")
    row = read(ether(0x0800, ip4(47, b"\x20\x00\x08\x00\x00\x00\x00\x09" + middle)))
    holds(row, "outer", A4, B4, protocol=47)
    holds(row, "inner", C6, D6, protocol=6, dport=33)
    assert (row["tunnel"], row["tunnel_id"], row["ip_headers"]) == (Tunnel.GRE, 9, 3)


@pytest.mark.parametrize(
    ("frame", "error", "headers"),
    [
        (ether(0x0800, b"\x65" + HELLO[1:]), Error.BAD_VERSION, 0),
        (ether(0x86DD, b"\x40" + HELLO6[1:]), Error.BAD_VERSION, 0),
        (ether(0x0800, b"\x44" + HELLO[1:]), Error.BAD_LENGTH, 0),
        (ether(0x0800, HELLO[:2] + b"\x00\x13" + HELLO[4:]), Error.BAD_LENGTH, 0),
        (ether(0x0800, HELLO[:2] + b"\x00\xff" + HELLO[4:]), Error.BAD_LENGTH, 1),
        (ether(0x0800, ip4(17, udp(1, 2)[:4] + b"\x00\x07\x00\x00")), Error.BAD_LENGTH, 1),
        (ether(0x0800, ip4(17, udp(1, 2)[:4] + b"\x00\x09\x00\x00")), Error.BAD_LENGTH, 1),
        (ether(0x0800, ip4(6, tcp(1, 2)[:12] + b"\x40" + bytes(7))), Error.BAD_LENGTH, 1),
        (ether(0x0800, ip4(6, tcp(1, 2)[:12] + b"\x60" + bytes(7))), Error.BAD_LENGTH, 1),
        (ether(0x0800, ip4(6, tcp(1, 2)[:19])), Error.BAD_LENGTH, 1),
        (bytes(13), Error.BAD_LENGTH, 0),
    ],
)
def test_what_cannot_be_true_is_an_error(frame: bytes, error: Error, headers: int) -> None:
    row = read(frame)
    assert (row["error"], row["ip_headers"]) == (error, headers)


def test_a_cut_packet_is_truncated_and_one_that_is_short_is_bad() -> None:
    frame = ether(0x0800, ip4(6, tcp(80, 443, b"payload")))
    packets = packets_of([frame[:40]], wire_lengths=np.array([len(frame)]))
    assert packets.error.tolist() == [Error.TRUNCATED]
    holds(row_of(packets, 0), "outer", A4, B4, sport=80, dport=443, tcp_flags=0, payload_wire=27, payload_captured=6)
    packets = packets_of([frame[:58]], wire_lengths=np.array([len(frame)]))
    assert packets.error.tolist() == [Error.NONE]
    holds(row_of(packets, 0), "outer", A4, B4, tcp_flags=0xA12, payload_wire=7, payload_captured=4)


@pytest.mark.parametrize(
    ("frame", "cut", "dst", "port"),
    [
        (ether(0x0800, HELLO), 14 + 19, "0.0.0.0", 0),
        (ether(0x0800, ip4(17, udp(1000, 2000), options=b"\x01" * 40)), 14 + 30, B4, 0),
        (ether(0x0800, HELLO), 14 + 24, B4, 2000),
        (ether(0x86DD, HELLO6), 14 + 39, "::", 0),
        (ether(0x86DD, HELLO6), 14 + 44, B6, 2000),
    ],
)
def test_what_was_captured_of_a_header_is_kept(frame: bytes, cut: int, dst: str, port: int) -> None:
    row = row_of(packets_of([frame[:cut]], wire_lengths=np.array([len(frame)])), 0)
    holds(row, "outer", A4 if row["outer.version"] == 4 else A6, dst, protocol=17, dport=port)
    assert row["error"] == Error.TRUNCATED
    assert row["outer.payload_captured"] <= 4


def test_packets_that_end_with_a_label_are_truncated() -> None:
    frame = ether(0x8847, b"\x00\x06\x41\xff" + HELLO)
    assert packets_of([frame[:18]], wire_lengths=np.array([len(frame)])).error.tolist() == [Error.TRUNCATED]
    assert read(frame, cut=18)["error"] == Error.NONE


def test_a_header_that_goes_on_in_the_next_fragment_is_truncated() -> None:
    assert read(ether(0x0800, ip4(6, tcp(1, 2)[:16], fragment=0x2000)))["error"] == Error.TRUNCATED


def test_a_udp_length_of_0_is_for_ipv6_alone() -> None:
    datagram = udp(1000, 2000)[:4] + bytes(4) + b"jumbo"
    assert read(ether(0x0800, ip4(17, datagram)))["error"] == Error.BAD_LENGTH
    row = read(ether(0x86DD, ip6(17, datagram)))
    holds(row, "outer", A6, B6, payload_wire=5)
    assert row["error"] == Error.NONE


def test_offloaded_packets_end_with_their_frame() -> None:
    large = ip4(6, tcp(1, 2, bytes(70000))[:65000])
    row = read(ether(0x0800, large[:2] + b"\x00\x00" + large[4:]))
    holds(row, "outer", A4, B4, total_length=len(large), payload_wire=65000 - 20)
    large = ip6(6, tcp(1, 2, bytes(65000)))
    row = read(ether(0x86DD, large[:4] + b"\x00\x00" + large[6:]))
    holds(row, "outer", A6, B6, payload_wire=65000)


def test_chains_of_headers_end() -> None:
    nested = b"end"
    for _ in range(MAX_IP_HEADERS + 1):
        nested = ip4(4, nested)
    stack = b"\x81\x00\x00\x01" * (MAX_TAGS + 1) + b"\x08\x00" + HELLO
    labels = b"\x00\x00\x10\x00" * 500
    chain = ip6(60, b"\x3c\x00" + bytes(6) + (b"\x3c\x00" + bytes(6)) * 500)
    packets = packets_of([ether(0x0800, nested), bytes(12) + stack, ether(0x8847, labels), ether(0x86DD, chain)])
    assert packets.error.tolist() == [Error.LOOP_LIMIT] * 4
    assert packets.ip_headers.tolist() == [MAX_IP_HEADERS, 0, 0, 1]


def test_an_unknown_link_type_is_an_error() -> None:
    assert read(b"anything", 147)["error"] == Error.UNKNOWN_LINK


def test_no_packets_and_no_bytes() -> None:
    assert len(packets_of([])) == 0
    assert packets_of([b""] * len(LINKS), list(LINKS)).error.all()


SEEDS = [HELLO, HELLO6, INNER, INNER6, ip4(47, ERSPAN_3 + ether(0x0800, INNER)), ip4(17, udp(9, 2152, GTP_EXTENSIONS))]
SEEDS += [ip6(0, EXTENSIONS[0][0] + EXTENSIONS[1][0]), ip4(41, INNER6), ip4(17, udp(3544, 1, TEREDO_HEADERS + INNER6))]
SEEDS += [ip4(17, udp(9, 1701, b"\x4a\x02" + bytes(10) + b"\0\x02??" + b"\x00\x57" + INNER6))]
FRAMES = [ether(0x0800 if seed[0] >> 4 == 4 else 0x86DD, seed) for seed in SEEDS]
FRAMES += [ether(0x8847, b"\x00\x06\x41\xff" + HELLO), ether(0x8864, b"\x11\x00\x00\x05\x00\x23\x00\x21" + HELLO)]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame with some bytes changed, cut anywhere, under any link type; or bytes out of the blue."""
    link = draw(st.sampled_from([ETHERNET] * 10 + sorted(LINKS)))
    frame = bytearray(draw(st.one_of(st.sampled_from(FRAMES), st.binary(max_size=80))))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)):
        if place < len(frame):
            frame[place] = value
    return bytes(frame[: draw(st.integers(0, 200))]), link


def equal(left: Packets, right: Packets) -> None:
    for name in PACKET_DTYPES:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for part in ("outer", "inner"):
        for field in fields(left.outer):
            one, other = (getattr(getattr(side, part), field.name) for side in (left, right))
            np.testing.assert_array_equal(one, other, err_msg=f"{part}.{field.name}")


@given(st.lists(damaged(), min_size=1, max_size=8), st.binary(max_size=8), st.integers(0, 255))
def test_nothing_is_read_outside_of_a_packet(rows: list[tuple[bytes, int]], guard: bytes, fill: int) -> None:
    """What lies around packets, how they lie and which are neighbours changes nothing."""
    frames, links = [frame for frame, _ in rows], [link for _, link in rows]
    packets = packets_of(frames, links)
    pad = guard + bytes([fill]) * 100
    blob = pad + b"".join(frame + pad for frame in frames)
    starts = np.cumsum([len(pad), *(len(frame) + len(pad) for frame in frames)])[:-1]
    lengths = np.array([len(frame) for frame in frames])
    equal(packets, dissect(np.frombuffer(blob, np.uint8), starts, lengths, np.array(links, np.uint16)))
    for row, (frame, link) in enumerate(rows):
        alone = packets_of([frame], link)
        assert row_of(alone, 0) == row_of(packets, row)
        assert alone.inner.payload_offset[0] + alone.inner.payload_captured[0] <= len(frame)


@pytest.mark.parametrize("fill", [0x00, 0x45, 0x60, 0x81, 0xFF])
def test_a_cut_packet_does_not_see_what_follows(fill: int) -> None:
    """Cut at every byte, with the start of something else behind the cut."""
    cuts = [frame[:size] for frame in FRAMES for size in range(len(frame))]
    room = max(map(len, cuts)) + 64
    blob = np.full((len(cuts), room), fill, np.uint8)
    for row, cut in enumerate(cuts):
        blob[row, : len(cut)] = np.frombuffer(cut, np.uint8)
    lengths = np.array([len(cut) for cut in cuts])
    for wire in (None, lengths + 500):
        alone = packets_of(cuts, wire_lengths=wire)
        starts = np.arange(len(cuts)) * room
        equal(alone, dissect(blob.reshape(-1), starts, lengths, np.full(len(cuts), ETHERNET, np.uint16), wire))


@given(st.lists(damaged(), min_size=1, max_size=8))
def test_every_namespace_gives_the_same(rows: list[tuple[bytes, int]]) -> None:
    """The way that knows nothing of NumPy's memory, as CuPy takes it."""
    frames, links = [frame for frame, _ in rows], [link for _, link in rows]
    equal(packets_of(frames, links), packets_of(frames, links, xp=OTHER))


class _Namespace(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


OTHER = _Namespace("other")


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_offsets_that_lie_lead_nowhere_outside(offset: int, length: int, wire: int) -> None:
    blob = np.frombuffer(FRAMES[0], np.uint8)
    columns = (np.array([offset], "u8"), np.array([length], "u4"), np.array([ETHERNET], "u2"), np.array([wire], "u4"))
    packets = dissect(blob, *columns)
    captured = int(packets.inner.payload_offset[0]) + int(packets.inner.payload_captured[0])
    assert min(offset, len(blob)) + captured <= len(blob)
    assert packets.error[0] or offset + min(length, 14) <= len(blob)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packets_of(FRAMES)
    monkeypatch.setattr(module, "BLOCK_PACKETS", 3)
    equal(whole, packets_of(FRAMES))


def test_without_tunnels_inner_is_outer() -> None:
    packets = packets_of([ether(0x0800, HELLO)] * 2)
    assert packets.inner.ttl is packets.outer.ttl

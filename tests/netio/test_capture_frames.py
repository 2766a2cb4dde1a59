"""Packets of captures as rows, and addresses that are new in each loop."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.capture import Capture
from aikoryu.netio.capture_frames import CaptureFrames
from aikoryu.netio.dissect import dissect
from aikoryu.netio.fresh_addresses import freshened
from aikoryu.netio.pacing import Run
from aikoryu.netio.packet_index import PacketIndex
from aikoryu.netio.packets import Packets
from aikoryu.netio.writer import write_pcapng

scapy = pytest.importorskip("scapy.all", reason="scapy is not installed: pip install aikoryu[net]")

MAC = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}  # else scapy asks the network


def captured(frames: list[bytes], times_ns: list[int], timed: list[bool] | None = None) -> Capture:
    """A capture of Ethernet frames."""
    sizes = np.array([len(frame) for frame in frames], np.uint32)
    index = PacketIndex(
        offset=(np.cumsum(sizes) - sizes).astype(np.uint64),
        captured=sizes,
        wire=sizes + 4,
        time_ns=np.array(times_ns, np.int64),
        timed=np.array(timed or [True] * len(frames)),
        link=np.ones(len(frames), np.uint16),
        interface=np.zeros(len(frames), np.uint32),
    )
    file = io.BytesIO()
    write_pcapng(file, np.frombuffer(b"".join(frames), np.uint8), index)
    return Capture(np.frombuffer(file.getvalue(), np.uint8))


def dissected(frames: list[bytes]) -> Packets:
    sizes = np.array([len(frame) for frame in frames])
    blob = np.frombuffer(b"".join(frames), np.uint8)
    return dissect(blob, np.cumsum(sizes) - sizes, sizes, np.ones(len(frames), np.uint16))


def fresh(packet: Any, by: int) -> Any:
    """A packet of scapy with other addresses."""
    (frame,) = freshened([bytes(packet)], dissected([bytes(packet)]), by)
    return scapy.Ether(frame)


def checked(packet: Any) -> bool:
    """Whether its checksums are those that scapy would compute."""
    again = packet.copy()
    layer = again
    while layer:
        if "chksum" in layer.fields:
            del layer.chksum
        layer = layer.payload
    return bytes(again) == bytes(packet)


def test_rows_are_what_the_capture_has() -> None:
    frames = [bytes([number]) * (60 + number) for number in range(5)]
    source = CaptureFrames(captured(frames, [10, 20, 15, 40, 60]))
    rows = source.rows(Run(0, 1, 3))
    assert rows["frame"] == frames[1:4]
    assert [(name, rows[name].dtype.str, rows[name].tolist()) for name in ("time", "wire", "link")] == [  # type: ignore[union-attr]
        ("time", "<i8", [20, 15, 40]),
        ("wire", "<u4", [65, 66, 67]),
        ("link", "<u2", [1, 1, 1]),
    ]
    assert (len(source), source.bits.tolist()) == (5, [8 * (64 + number) for number in range(5)])
    assert source.rows(Run(2, 0, 1))["time"].tolist() == [10 + 2 * 51]  # type: ignore[union-attr]


def test_a_packet_without_a_time_goes_with_the_one_before() -> None:
    capture = captured([bytes(60)] * 4, [0, 100, 0, 300])
    capture.index.timed[:] = [False, True, False, True]
    assert CaptureFrames(capture).times_ns.tolist() == [100, 100, 100, 300]
    capture.index.timed[:] = False
    assert len(set(CaptureFrames(capture).times_ns.tolist())) == 1


def test_an_empty_capture_has_no_rows() -> None:
    assert len(CaptureFrames(captured([], []))) == 0


def test_loops_after_the_first_have_addresses_of_their_own() -> None:
    packet = scapy.Ether(**MAC) / scapy.IP(src="10.0.0.5", dst="10.0.0.9") / scapy.TCP(sport=1234, dport=80) / b"hello"
    source = CaptureFrames(captured([bytes(packet)], [0]), unique_addresses=True)
    sent = [scapy.Ether(source.rows(Run(loop, 0, 1))["frame"][0]) for loop in range(3)]
    assert [each[scapy.IP].src for each in sent] == ["10.0.0.5", "10.0.0.4", "10.0.0.3"]
    assert [each[scapy.IP].dst for each in sent] == ["10.0.0.9", "10.0.0.10", "10.0.0.11"]
    assert all(checked(each) for each in sent)
    same = CaptureFrames(captured([bytes(packet)], [0]))
    assert same.rows(Run(2, 0, 1))["frame"] == [bytes(packet)]


V4 = st.integers(0, 2**32 - 1).map(lambda number: str(scapy.ltoa(number)))
V6 = st.binary(min_size=16, max_size=16).map(lambda blob: str(scapy.inet_ntop(10, blob)))
PORTS = st.integers(0, 65535)


@given(st.tuples(V4, V4) | st.tuples(V6, V6), PORTS, PORTS, st.integers(0, 2**20), st.booleans())
def test_both_directions_stay_one_flow_and_checksums_stay_right(
    addresses: tuple[str, str], sport: int, dport: int, by: int, tcp: bool
) -> None:
    a, b = addresses
    network = scapy.IPv6 if ":" in a else scapy.IP
    transport = scapy.TCP if tcp else scapy.UDP
    there = fresh(scapy.Ether(**MAC) / network(src=a, dst=b) / transport(sport=sport, dport=dport) / b"payload", by)
    back = fresh(scapy.Ether(**MAC) / network(src=b, dst=a) / transport(sport=dport, dport=sport) / b"payload", by)
    assert checked(there)
    assert checked(back)
    if (a, sport) != (b, dport):
        assert (there[network].src, there[network].dst) == (back[network].dst, back[network].src)
    numbers = [int.from_bytes(scapy.inet_pton(10 if ":" in a else 2, each), "big") for each in (a, b)]
    end = 1 << (128 if ":" in a else 32)
    kept = min(numbers) < by or max(numbers) + by >= end
    moved = (there[network].src, there[network].dst) != (a, b)
    assert moved == (by > 0 and not kept)


def test_the_packet_in_a_tunnel_moves_too() -> None:
    inner = scapy.Ether(**MAC) / scapy.IP(src="192.168.0.9", dst="192.168.0.2") / scapy.UDP(sport=5, dport=6) / b"x"
    outer = scapy.IP(src="10.0.0.1", dst="10.0.0.2") / scapy.UDP(sport=1, dport=4789)
    packet = fresh(scapy.Ether(**MAC) / outer / scapy.VXLAN(vni=7) / inner, 1)
    assert (packet[scapy.IP].src, packet[scapy.IP].dst) == ("10.0.0.0", "10.0.0.3")
    inside = packet[scapy.VXLAN][scapy.IP]
    assert (inside.src, inside.dst) == ("192.168.0.10", "192.168.0.1")
    assert checked(packet)


def test_a_packet_in_a_tunnel_of_the_same_addresses_moves_once() -> None:
    ip = scapy.IP(src="10.0.0.1", dst="10.0.0.2")
    packet = fresh(scapy.Ether(**MAC) / ip / scapy.IP(src="10.0.0.1", dst="10.0.0.2") / scapy.UDP(), 1)
    assert (packet[scapy.IP].src, packet[scapy.IP].payload[scapy.IP].src) == ("10.0.0.0", "10.0.0.0")


def test_new_addresses_are_not_taken_for_old_ones() -> None:
    outer, inner = scapy.IP(src="10.0.0.1", dst="10.0.0.2"), scapy.IP(src="10.0.0.0", dst="10.0.0.3")
    packet = fresh(scapy.Ether(**MAC) / outer / inner / scapy.UDP(), 1)[scapy.IP]
    assert [(each.src, each.dst) for each in (packet, packet.payload)] == [
        ("10.0.0.0", "10.0.0.3"),
        ("9.255.255.255", "10.0.0.4"),
    ]


@pytest.mark.parametrize(
    "frame", [b"", bytes(14), bytes(scapy.Ether(**MAC) / scapy.ARP()), bytes(scapy.Ether(**MAC) / scapy.IP())[:30]]
)
def test_what_has_no_addresses_stays(frame: bytes) -> None:
    assert freshened([frame], dissected([frame]), 5) == [frame]


CAPTURES = sorted((Path(__file__).parents[3] / "shared/data/packets/captures").glob("*"))


@pytest.mark.skipif(not CAPTURES, reason="../shared/data/packets is not there")
def test_real_packets_differ_in_their_addresses_alone() -> None:
    from aikoryu.netio.capture import open_capture
    from aikoryu.netio.errors import NetError

    looked = 0
    for path in CAPTURES[:12]:
        try:
            capture = open_capture(path)
        except NetError:
            continue
        source = CaptureFrames(capture, unique_addresses=True)
        run = Run(3, 0, min(300, len(source)))
        before, after = CaptureFrames(capture).rows(run)["frame"], source.rows(run)["frame"]
        assert [len(frame) for frame in before] == [len(frame) for frame in after]
        looked += sum(old != new for old, new in zip(before, after, strict=True))
    assert looked > 100

"""Packets that scapy builds are read back: layers drawn at random, fields compared with scapy's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from aikoryu.netio.dissect import dissect
from aikoryu.netio.packets import NO_VLAN, Error

pytest.importorskip("scapy", reason="scapy is not installed: pip install aikoryu[net]")

from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

PACKETS = 200
MAC = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


class Maker:
    """Draws packets of known layers from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def frame(self) -> Packet:
        links: list[Callable[[], Packet]] = [
            lambda: Ether(**MAC),
            lambda: Ether(**MAC) / Dot1Q(vlan=self._number(4094)),
            lambda: Ether(**MAC) / Dot1AD(vlan=self._number(4094)) / Dot1Q(vlan=self._number(4094)),
            lambda: Ether(**MAC) / MPLS(label=self._number(2**20, 16), s=1),
            lambda: Ether(**MAC) / PPPoE(sessionid=1) / PPP(),
        ]
        link = self._random.choice(links)()
        return link / self._network(self._random.choice([0, 0, 1, 2]))

    def _network(self, tunnels: int) -> Packet:
        four = self._random.random() < 0.5
        inside = self._tunnel(tunnels) if tunnels else self._transport(four)
        if four:
            options = [IPOption_NOP()] * self._random.randrange(5)
            numbers = {"ttl": self._number(256), "tos": self._number(256), "id": self._number(2**16)}
            return IP(src=self._address(32), dst=self._address(32), options=options, **numbers) / inside
        layer = IPv6(src=self._address(128), dst=self._address(128), hlim=self._number(256), tc=self._number(256))
        for extension in (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting):
            if self._random.random() < 0.2:
                layer = layer / extension()
        if self._random.random() < 0.1:
            layer = layer / IPv6ExtHdrFragment(offset=0, m=0, id=self._number(2**32))
        return layer / inside

    def _tunnel(self, tunnels: int) -> Packet:
        frame, packet = Ether(**MAC) / self._network(tunnels - 1), self._network(tunnels - 1)
        carriers: list[Callable[[], Packet]] = [
            lambda: packet,
            lambda: GRE() / packet,
            lambda: GRE(key_present=1, key=self._number(2**32), seqnum_present=1) / packet,
            lambda: GRE(proto=0x6558) / frame,
            lambda: UDP(sport=self._number(1000, 1), dport=4789) / VXLAN(vni=self._number(2**24)) / frame,
            lambda: UDP(sport=self._number(1000, 1), dport=6081) / GENEVE(vni=self._number(2**24)) / frame,
            lambda: UDP(sport=2152, dport=2152) / GTP_U_Header(teid=self._number(2**32)) / packet,
        ]
        return self._random.choice(carriers)()

    def _transport(self, four: bool) -> Packet:
        # Below the ports that name tunnels.
        ports = {"sport": self._number(1000, 1), "dport": self._number(1000, 1)}
        data = Raw(self._random.randbytes(self._random.randrange(40)))
        layers = [
            TCP(**ports, seq=self._number(2**32), ack=self._number(2**32), flags=self._number(256), window=99),
            TCP(**ports, options=[("MSS", 1460), ("NOP", None)]),
            UDP(**ports),
            SCTP(**ports),
        ]
        if four:
            layers.append(ICMP(type=self._number(256), code=self._number(256)))
        return self._random.choice(layers) / data

    def _number(self, end: int, first: int = 0) -> int:
        return self._random.randrange(first, end)

    def _address(self, bits: int) -> str:
        return str(ip_address(self._random.randrange(2 ** (bits - 3), 2 ** (bits - 2))))


@pytest.mark.parametrize("seed", range(3))
def test_what_scapy_builds_is_read_back(seed: int) -> None:
    maker = Maker(seed)
    built = [maker.frame() for _ in range(PACKETS)]
    # Built and read again, so that lengths and protocols that scapy fills in stand in the fields.
    raw = [bytes(packet) for packet in built]
    ends = np.cumsum([0, *map(len, raw)])
    blob = np.frombuffer(b"".join(raw), np.uint8)
    packets = dissect(blob, ends[:-1], np.diff(ends), np.ones(PACKETS, np.uint16))
    assert packets.error.tolist() == [Error.NONE] * PACKETS
    for row, packet in enumerate(built):
        layers = [layer for layer in walk(packet) if isinstance(layer, (IP, IPv6))]
        assert packets.ip_headers[row] == len(layers)
        tags = [layer.vlan for layer in walk(packet) if isinstance(layer, (Dot1AD, Dot1Q))]
        tags += [NO_VLAN] * (2 - len(tags))
        assert [packets.vlan_outer[row], packets.vlan_inner[row]] == tags
        for headers, layer in ((packets.outer, layers[0]), (packets.inner, layers[-1])):
            want = expected(layer)
            assert {name: int(getattr(headers, name)[row]) for name in want} == want, packet.summary()


def walk(packet: Packet) -> list[Packet]:
    """The layers of a packet, down to its data."""
    layers = []
    while packet and not isinstance(packet, Raw):
        layers.append(packet)
        packet = packet.payload
    return layers


def expected(layer: Packet) -> dict[str, int]:
    """What the columns of an IP header and the transport behind it must say."""
    below = walk(layer)[1:]
    while below and "ExtHdr" in type(below[0]).__name__:
        below = below[1:]
    transport: Any = below[0] if below else None
    src, dst, low = int(ip_address(layer.src)), int(ip_address(layer.dst)), 2**64 - 1
    values = {"version": 4 if isinstance(layer, IP) else 6, "total_length": len(bytes(layer))}
    values |= {"src_high": src >> 64, "src_low": src & low, "dst_high": dst >> 64, "dst_low": dst & low}
    four = isinstance(layer, IP)
    values |= {"ttl": layer.ttl, "tos": layer.tos} if four else {"ttl": layer.hlim, "tos": layer.tc}
    if isinstance(transport, (TCP, UDP, SCTP)):
        values |= {"sport": transport.sport, "dport": transport.dport}
        values["protocol"] = {TCP: 6, UDP: 17, SCTP: 132}[type(transport)]
    if isinstance(transport, TCP):
        values |= {"seq": transport.seq, "ack": transport.ack, "tcp_flags": int(transport.flags)}
        values |= {"window": transport.window, "payload_wire": len(bytes(transport.payload))}
    if isinstance(transport, ICMP):
        values |= {"icmp_type": transport.type, "icmp_code": transport.code}
    return values

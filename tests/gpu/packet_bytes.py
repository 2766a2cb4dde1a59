"""Packets by the million: real ones, cut and with bytes changed, so that every path through headers is walked."""

from __future__ import annotations

from typing import Any

import numpy as np

from aikoryu.gpu.blobs import Blobs
from aikoryu.gpu.packets.frames import Frames
from aikoryu.netio.layers import kinds

Array = np.ndarray[Any, Any]

WORDS = [
    *(number.to_bytes(2) for number in (*kinds.ETHERTYPES, *kinds.UDP_PORTS, *kinds.PPP_PROTOCOLS)),
    *(bytes([number]) for number in (*kinds.TRANSPORTS, *kinds.EXTENSIONS, 0x45, 0x46, 0x4F, 0x60, 0, 0xFF)),
    *(b"\x65\x58", b"\x88\x0b", b"\x88\xbe", b"\x22\xeb", b"\xff\x03", b"\x00\x21", b"\xaa\xaa\x03", b"\x06\x06\x03"),
    *(b"\xb0\x00", b"\x30\x00", b"\x20\x00", b"\x10\x00", b"\x30\xff", b"\x34\xff", b"\x00\x02", b"\x42\x02"),
]
"""What leads from header to header: put anywhere, it is met sooner than random bytes are."""


def frames(packets: list[bytes], links: Array | None = None, wire: Array | None = None) -> Frames:
    """Packets as a batch has them."""
    return Frames(Blobs.of(packets), links, wire, 1)


def changed(seeds: list[tuple[bytes, int]], count: int, seed: int) -> Frames:
    """Packets made of others, with their link types and lengths on the wire.

    Args:
        seeds: bytes and link type.
        count: how many to make.
        seed: of what is random.
    """
    random = np.random.default_rng(seed)
    chosen = random.integers(len(seeds), size=count)
    links = np.array([seeds[at][1] for at in chosen], np.uint16)
    other = random.random(count) < 0.1
    links[other] = random.choice(np.array([*kinds.LINKS, 77], np.uint16), size=int(other.sum()))
    cuts, extra = random.random(count), random.integers(-4, 9, size=count)
    edits = random.integers(5, size=count)
    packets = []
    for at, cut, many in zip(chosen.tolist(), cuts.tolist(), edits.tolist(), strict=True):
        data = bytearray(seeds[at][0])
        for _ in range(many if data else 0):
            # Most of what is read lies near the beginning.
            place = int(random.integers(min(len(data), 120)))
            word = WORDS[int(random.integers(len(WORDS)))] if random.random() < 0.7 else random.bytes(1)
            data[place : place + len(word)] = word
        packets.append(bytes(data[: int(cut * 2 * len(data))] if cut < 0.5 else data))
    sizes = np.array([len(packet) for packet in packets])
    return Frames(Blobs.of(packets), links, np.maximum(sizes + extra * (extra > 0) * 5, 0).astype(np.uint32), 1)


def crafted() -> list[tuple[bytes, int]]:
    """A packet of each kind of header that is read, and its link type."""
    ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])

    def ipv4(protocol: int, payload: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
        size = 20 + len(options)
        first = bytes([0x40 | size // 4, 3]) + (size + len(payload)).to_bytes(2) + b"\x12\x34" + fragment.to_bytes(2)
        return first + bytes([64, protocol, 0, 0]) + ends + options + payload

    def ipv6(following: int, payload: bytes) -> bytes:
        first = b"\x61\x20\0\0" + len(payload).to_bytes(2) + bytes([following, 9])
        return first + b"\x20\x01\x0d\xb8" + bytes(11) + b"\1" + b"\xfe\x80" + bytes(13) + b"\2" + payload

    def ports(source: int, destination: int) -> bytes:
        return source.to_bytes(2) + destination.to_bytes(2)

    def udp(destination: int, payload: bytes) -> bytes:
        return ports(5000, destination) + (8 + len(payload)).to_bytes(2) + bytes(2) + payload

    tcp = ports(5000, 443) + b"\1\2\3\4\5\6\7\x08\x60\x12\x20\0" + bytes(8) + b"text"
    icmp = b"\x08\1" + bytes(6) + b"ping"
    inside = ipv4(6, tcp)
    frame = bytes(range(12)) + b"\x08\0" + inside
    ap = b"\x18\0" + ports(1, 2) + bytes(20)
    snap = b"\xaa\xaa\3\0\0\0\x08\0" + inside
    wifi = b"\x88\3" + bytes(20) + b"\0\0" + bytes(6) + b"\0\0" + snap
    gre = b"\xb0\0\x08\0" + bytes(4) + b"\0\0\0\7" + bytes(4) + inside
    pptp = b"\x30\x81\x88\x0b" + bytes(12) + b"\xff\x03\0\x21" + inside
    erspan = b"\x10\0\x88\xbe" + bytes(4) + bytes(8) + frame
    erspan3 = b"\x10\0\x22\xeb" + bytes(4) + bytes(11) + b"\1" + bytes(8) + frame
    gtp = b"\x36\xff\0\x40\0\0\0\7\0\0\0\x85\1\0\0\0" + inside
    teredo = b"\0\1\1\1" + bytes(11) + b"\0\0" + bytes(6) + ipv6(58, b"\x80" + bytes(11))
    l2tp = b"\x4a\2\0\x40" + bytes(8) + b"\0\0" + b"\xff\x03\0\x21" + inside
    tails = [
        *(
            ipv4(6, tcp),
            ipv4(6, tcp, b"\1" * 12),
            ipv4(17, udp(53, b"name")),
            ipv4(1, icmp),
            ipv4(132, ap),
            ipv4(33, ap),
        ),
        *(ipv4(136, ap), ipv4(17, udp(1, b"x" * 8), b"", 0x2000), ipv4(17, bytes(8), b"", 0x00B9), ipv4(50, bytes(16))),
        *(ipv4(51, b"\6\4" + bytes(22) + tcp), ipv4(4, inside), ipv4(41, ipv6(17, udp(53, b"")))),
        *(
            ipv4(47, each)
            for each in (gre, pptp, erspan, erspan3, b"\0\0\x65\x58" + frame, b"\0\0\x86\xdd" + ipv6(6, tcp))
        ),
        *(ipv4(17, udp(4789, b"\x08" + bytes(3) + b"\0\0\7\0" + frame)), ipv4(17, udp(2152, gtp))),
        *(ipv4(17, udp(6081, b"\2\0\x65\x58\0\0\7\0" + bytes(8) + frame)), ipv4(17, udp(3544, teredo))),
        *(ipv4(17, udp(1701, l2tp)), ipv4(137, b"\0\1\1\x40" + inside), ipv6(6, tcp), ipv6(58, b"\x80" + bytes(11))),
        *(
            ipv6(
                0,
                b"\x3c\0"
                + bytes(6)
                + b"\x2b\0"
                + bytes(6)
                + b"\x2c\0"
                + bytes(6)
                + b"\x11\0\0\1"
                + bytes(4)
                + udp(1, b""),
            ),
        ),
        *(
            ipv6(44, b"\x11\0\0\x08" + bytes(4) + bytes(9)),
            ipv6(51, b"\x11\4" + bytes(22) + udp(53, b"")),
            ipv6(4, inside),
        ),
    ]
    mac = bytes(range(12))
    of_tails = [(mac + (b"\x08\0" if tail[0] >> 4 == 4 else b"\x86\xdd") + tail, 1) for tail in tails]
    session = b"\x11\0\0\1" + (2 + len(inside)).to_bytes(2) + b"\0\x21" + inside
    padded = b"\x88\0" + bytes(28 - 2) + snap
    radio = b"\0\0\x1c\0\x03\0\0\x80" + bytes(4) + bytes(4) + bytes(8) + b"\x10" + b"\0" * 3
    others = [
        *((mac + b"\x81\0\0\5\x88\xa8\0\6\x08\0" + inside, 1), (mac + b"\x88\x64" + session, 1)),
        *((mac + b"\x88\x47\0\0\xd1\x40" + inside, 1), (mac + b"\x88\x47\0\0\xe1\x40" + inside, 1)),
        *((mac + b"\x88\x47\0\1\0\x40\0\2\1\x40" + inside, 1), (mac + b"\x88\x47\0\2\1\x40" + frame, 1)),
        *((mac + b"\x88\x47\0\2\1\x40" + bytes(4) + frame, 1), (mac + b"\x08\6\0\1\x08\0\6\4" + bytes(22), 1)),
        *(
            (mac + len(snap).to_bytes(2) + snap, 1),
            (mac + (3 + len(inside)).to_bytes(2) + b"\6\6\3" + inside, 1),
            (inside, 101),
            (ipv6(6, tcp), 12),
        ),
        *((bytes(14) + b"\x08\0" + inside, 113), (b"\x08\0" + bytes(18) + inside, 276), (b"\2\0\0\0" + inside, 0)),
        *((b"\0\0\0\x1e" + ipv6(6, tcp), 108), (b"\x0f\0\x08\0" + inside, 104), (b"\xff\3\0\x21" + inside, 9)),
        *((b"\x21" + inside, 50), (session, 51), (inside, 228), (ipv6(6, tcp), 229)),
        *((wifi, 105), (radio + wifi + bytes(4), 127), (b"\0\0\x09\0\2\0\0\0\x20" + padded, 127)),
    ]
    return of_tails + others

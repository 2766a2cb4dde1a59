"""Captures for benchmarks: one of our own making, from a seed, and real ones; tiled to as many packets as wanted."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.fresh_addresses import freshened
from aikoryu.netio.packet_index import Array, PacketIndex
from benchmarks.processes import ROOT

DATA = Path(os.environ.get("PACKET_TEST_DATA", ROOT.parent / "shared" / "data")) / "packets"
MIXED = DATA / "captures" / "50_mixed_100k.pcap.gz"
OWN_PACKETS = 100_000
OWN_FLOWS = 4096
SEED = 4
RECORD_BYTES = 16
START_S = 1_700_000_000
SPAN_S = 60.0
TILE_GAP_US = 1000

_ETHERNET = bytes.fromhex("020000000002 020000000001 0800")
_TAGGED = bytes.fromhex("020000000002 020000000001 8100 0064 0800")
_ETHERNET_6 = bytes.fromhex("020000000002 020000000001 86dd")


def _ipv4(protocol: int) -> bytes:
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0x4000, 64, protocol, 0, bytes(4), bytes(4))


def _tcp() -> bytes:
    return struct.pack("!HHIIBBHHH", 0, 0, 1, 1, 5 << 4, 0x10, 64_000, 0, 0)


@dataclass(frozen=True)
class _Kind:
    """Packets that have the same headers.

    Attributes:
        share: of all packets.
        head: their headers, with zeros for what differs.
        address: where the source address begins; the destination follows.
        size: bytes of an address.
        ports: where the source port is; the destination follows.
        lengths: where lengths are, and what of the packet they do not count.
    """

    share: float
    head: bytes
    address: int
    size: int
    ports: int
    lengths: tuple[tuple[int, int], ...]


_VXLAN = _ETHERNET + _ipv4(17) + struct.pack("!HHHH", 40_000, 4789, 0, 0) + bytes.fromhex("0800000000002a00")

_KINDS = (
    _Kind(0.62, _ETHERNET + _ipv4(6) + _tcp(), 26, 4, 34, ((16, 14),)),
    _Kind(0.18, _ETHERNET + _ipv4(17) + bytes(8), 26, 4, 34, ((16, 14), (38, 34))),
    _Kind(0.10, _ETHERNET_6 + struct.pack("!IHBB32s", 6 << 28, 0, 6, 64, bytes(32)) + _tcp(), 22, 16, 54, ((18, 54),)),
    _Kind(0.06, _TAGGED + _ipv4(6) + _tcp(), 30, 4, 38, ((20, 18),)),
    _Kind(0.04, _VXLAN + _ETHERNET + _ipv4(6) + _tcp(), 76, 4, 84, ((16, 14), (38, 34), (66, 64))),
)


def own_packets(packets: int = OWN_PACKETS, seed: int = SEED) -> tuple[Array, PacketIndex]:
    """Packets of TCP and UDP over IPv4 and IPv6, some tagged, some in VXLAN; half of them carry up to 400 bytes.

    Args:
        packets: how many.
        seed: of the generator; the same gives the same.

    Returns:
        (m,) uint8, in which they lie one after the other, and their index. All are Ethernet.
    """
    random = np.random.default_rng(seed)
    kind = random.choice(len(_KINDS), packets, p=[one.share for one in _KINDS])
    payload = np.where(random.random(packets) < 0.5, 0, random.integers(1, 401, packets))
    heads = np.array([len(one.head) for one in _KINDS])
    length = heads[kind] + payload
    offset = np.cumsum(length) - length
    blob = random.integers(0, 256, int(length.sum()), np.uint8)
    flow = random.integers(0, OWN_FLOWS, packets, dtype=np.uint64)
    is_answer = random.random(packets) < 0.5
    for number, one in enumerate(_KINDS):
        rows = np.flatnonzero(kind == number)
        found = np.tile(np.frombuffer(one.head, np.uint8), (len(rows), 1))
        for at, without in one.lengths:
            _put(found, at, length[rows] - without, ">u2")
        client = 0x0A00_0000 | (flow[rows] & np.uint64(0xFF)) << np.uint64(16) | flow[rows] >> np.uint64(8)
        ends = np.stack([client, np.full(len(rows), 0xC0A8_0001, np.uint64) + flow[rows] % np.uint64(37)])
        ports = np.stack([1024 + flow[rows] * np.uint64(13) % np.uint64(60_000), 53 + flow[rows] % np.uint64(5) * 97])
        side = is_answer[rows].astype(int)
        for place in (0, 1):
            low_end = one.address + (place + 1) * one.size - 4
            _put(found, low_end, ends[side ^ place, np.arange(len(rows))], ">u4")
            _put(found, one.ports + 2 * place, ports[side ^ place, np.arange(len(rows))], ">u2")
        blob[offset[rows][:, None] + np.arange(len(one.head))] = found
    time_ns = START_S * 10**9 + (np.arange(packets) * (SPAN_S * 1e9 / packets)).astype(np.int64)
    lengths = length.astype(np.uint32)
    link, zeros = np.ones(packets, np.uint16), np.zeros(packets, np.uint32)
    return blob, PacketIndex(offset.astype(np.uint64), lengths, lengths, time_ns, np.ones(packets, bool), link, zeros)


def _put(heads: Array, at: int, values: Array, dtype: str) -> None:
    """Write a number into each row, big-endian."""
    size = np.dtype(dtype).itemsize
    heads[:, at : at + size] = np.ascontiguousarray(values.astype(dtype)).view(np.uint8).reshape(-1, size)


class Tiles:
    """A capture that can be repeated: each repetition is later, and its flows are others.

    Args:
        blob: (m,) uint8, in which the packets lie.
        index: the packets, of one link type.

    Attributes:
        link: that link type.
    """

    def __init__(self, blob: Array, index: PacketIndex) -> None:
        self.link = int(index.link[0])
        self._blob = blob
        self._index = index
        self._records = index.captured.astype(np.int64) + RECORD_BYTES
        self._starts = np.cumsum(self._records) - self._records
        self._whole = _records(blob, index, self._starts)
        times_us = index.time_ns // 1000
        self._times_us = times_us - times_us.min()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def bytes_a_packet(self) -> float:
        """Bytes that were captured of a packet, on the average."""
        return float(self._index.captured.mean())

    def write(self, path: Path, packets: int) -> None:
        """Write so many packets as a pcap file in microseconds."""
        period_us = int(self._times_us.max()) + TILE_GAP_US
        with path.open("wb") as file:
            file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, self.link))
            for number, first in enumerate(range(0, packets, len(self))):
                rows = min(len(self), packets - first)
                end = len(self._whole) if rows == len(self) else int(self._starts[rows])
                file.write(self._tile(number, number * period_us)[:end].data)

    def frames(self) -> tuple[Array, Array]:
        """The packets alone, once: their bytes one after the other, and the (n + 1,) int64 ends of each."""
        is_frame = np.ones(len(self._whole), bool)
        is_frame[self._starts[:, None] + np.arange(RECORD_BYTES)] = False
        return self._whole[is_frame], np.concatenate([[0], np.cumsum(self._records - RECORD_BYTES)])

    def _tile(self, number: int, later_us: int) -> Array:
        tile = self._whole.copy()
        seconds, micros = np.divmod(self._times_us + later_us, 1_000_000)
        times = np.stack([seconds + START_S, micros], axis=1).astype("<u4").view(np.uint8).reshape(-1, 8)
        tile[self._starts[:, None] + np.arange(8)] = times
        # Both ends of a flow change alike, so that it stays one flow; the lowest byte stays as it is.
        tile[self._low_bytes - 1] ^= np.uint8(number & 0xFF)
        tile[self._low_bytes - 2] ^= np.uint8(number >> 8 & 0xFF)
        return tile

    @cached_property
    def _low_bytes(self) -> Array:
        """Where the lowest byte of each address lies: those that `freshened` changes by one, the last of a carry."""
        blob, index = self._blob, self._index
        ends = (index.offset + index.captured).tolist()
        frames = [blob[a:b].tobytes() for a, b in zip(index.offset.tolist(), ends, strict=True)]
        packets = dissect(blob, index.offset, index.captured, index.link, index.wire)
        before = np.frombuffer(b"".join(frames), np.uint8)
        after = np.frombuffer(b"".join(freshened(frames, packets, 1)), np.uint8)
        changed = np.flatnonzero(before != after)
        last = changed[np.append(np.diff(changed) > 1, True)]
        row = np.searchsorted(np.cumsum(index.captured, dtype=np.int64), last, side="right")
        found: Array = last + (row + 1) * RECORD_BYTES  # one record's head before each packet
        return found


def _records(blob: Array, index: PacketIndex, starts: Array) -> Array:
    """The packets of a pcap file, without times."""
    lengths = index.captured.astype(np.int64)
    whole = np.zeros(int(lengths.sum()) + RECORD_BYTES * len(index), np.uint8)
    sizes = np.stack([index.captured, index.wire], axis=1).astype("<u4").view(np.uint8).reshape(-1, 8)
    whole[starts[:, None] + np.arange(8, RECORD_BYTES)] = sizes
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    whole[np.repeat(starts + RECORD_BYTES, lengths) + within] = blob[
        np.repeat(index.offset.astype(np.int64), lengths) + within
    ]
    return whole


def own_tiles(packets: int = OWN_PACKETS) -> Tiles:
    """The capture of our own making."""
    return Tiles(*own_packets(packets))


def mixed_tiles() -> Tiles | None:
    """The mixed capture of ../shared/data; None where it is not there."""
    if not MIXED.exists():
        return None
    with open_capture(MIXED) as capture:
        return Tiles(capture.blob, capture.index)


def sources(packets: int = OWN_PACKETS) -> dict[str, Tiles]:
    """By name the captures there are: of our own making, of so many packets, and the mixed one if it is there."""
    mixed = mixed_tiles()
    return {"own": own_tiles(packets)} | ({} if mixed is None else {"mixed": mixed})

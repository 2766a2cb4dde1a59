"""The pcapng file format: sections of blocks, among them interfaces and packets.

Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Literal, TypeAlias

import numpy as np

from .chain import Chain
from .errors import BadCapture
from .packet_index import NO_LINK, Array, PacketIndex, empty, joined
from .records import headers

MAGIC = b"\x0a\x0d\x0d\x0a"
Order: TypeAlias = Literal["<", ">"]
BYTE_ORDER: dict[bytes, Order] = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}

SECTION = 0x0A0D0D0A
INTERFACE = 1
OBSOLETE_PACKET = 2
SIMPLE_PACKET = 3
ENHANCED_PACKET = 6

_HEAD = [("kind", "u4"), ("length", "u4")]
_TIMES = [("high", "u4"), ("low", "u4"), ("captured", "u4"), ("wire", "u4")]
BLOCKS = {
    OBSOLETE_PACKET: np.dtype([*_HEAD, ("interface", "u2"), ("drops", "u2"), *_TIMES]),
    SIMPLE_PACKET: np.dtype([*_HEAD, ("wire", "u4")]),
    ENHANCED_PACKET: np.dtype([*_HEAD, ("interface", "u4"), *_TIMES]),
}
"""What stands before the bytes of a packet."""

# A block's length stands at both of its ends.
MIN_BLOCK_BYTES = 12
MIN_SECTION_BYTES = 28
PACKET_BYTES = {kind: dtype.itemsize for kind, dtype in BLOCKS.items()}
LEAST_BYTES = {INTERFACE: 20} | {kind: size + 4 for kind, size in PACKET_BYTES.items()}

LARGEST_PACKET = 2**18

OPTION_END = 0
OPTION_TIME_RESOLUTION = 9
OPTION_TIME_OFFSET = 14

MICROSECONDS = 6
POWER_OF_TWO = 0x80


@dataclass(frozen=True, slots=True)
class Interface:
    """How packets of one interface are to be read.

    Attributes:
        link: link type.
        snap_bytes: most bytes captured of a packet; 0 = all.
        resolution: a unit of time is 10 to the power of -resolution seconds, or of 2 where the upper bit is set.
        offset_s: seconds that are added to each time.
    """

    link: int
    snap_bytes: int
    resolution: int = MICROSECONDS
    offset_s: int = 0


class PcapngScan:
    """Walks from block to block and says where packets lie.

    Args:
        blob: (n,) uint8, the whole file.

    Attributes:
        truncated: the file ended inside a block, or a block's length cannot be true; what came before was given. True
            only once the scan came to that place.

    Raises:
        BadCapture: the file does not begin with a whole section header.
    """

    def __init__(self, blob: Array) -> None:
        self._blob = blob
        self._at = 0
        self._blocks: PcapngBlocks
        self._chain: Chain
        self.truncated = False
        if not self._open_section():
            raise BadCapture("a pcapng file begins with a section header; this one is damaged: name another file")

    def take(self, limit: int) -> PacketIndex:
        """The next packets, `limit` of them, or fewer where the file ends."""
        parts, rows = [], 0
        while rows < limit:
            places = self._chain.take(limit - rows)
            rows += len(places)
            parts.append(self._read(places))
            if rows < limit:
                # The chain ends with its section.
                self._at = min(self._blocks.at, len(self._blob))
                if not self._open_section():
                    break
        return joined(parts)

    def _open_section(self) -> bool:
        """Takes the section header at hand; False where there is none."""
        head = self._blob[self._at : self._at + 12].tobytes()
        order = BYTE_ORDER.get(head[8:])
        if head[:4] != MAGIC or order is None:
            self.truncated = self._at != len(self._blob)
            return False
        (length,) = Struct(order + "I").unpack(head[4:8])
        if length < MIN_SECTION_BYTES or length > len(self._blob) - self._at:
            self.truncated = True
            return False
        self._blocks = PcapngBlocks(self._blob, self._at + length + -length % 4, order)
        if self._at:
            self._chain.follow(self._blocks)
        else:
            self._chain = Chain(self._blocks)
        return True

    def _read(self, offsets: Array) -> PacketIndex:
        """What the packet blocks at `offsets` say; all of them are of the section at hand."""
        index = empty(len(offsets))
        kinds = headers(self._blob, offsets, np.dtype(self._blocks.order + "u4"))
        for kind in PACKET_BYTES:
            rows = np.flatnonzero(kinds == kind)
            if len(rows):
                self._read_kind(index, rows, kind, offsets[rows])
        return index

    def _read_kind(self, index: PacketIndex, rows: Array, kind: int, offsets: Array) -> None:
        blocks = headers(self._blob, offsets, BLOCKS[kind].newbyteorder(self._blocks.order))
        head_bytes, room = PACKET_BYTES[kind], blocks["length"] - (PACKET_BYTES[kind] + 4)
        index.offset[rows] = offsets + head_bytes
        index.wire[rows] = blocks["wire"]
        number = blocks["interface"].astype(np.int64) if kind != SIMPLE_PACKET else np.zeros(len(rows), np.int64)
        index.interface[rows] = number
        index.link[rows] = NO_LINK
        captured = blocks["wire"] if kind == SIMPLE_PACKET else blocks["captured"]
        index.captured[rows] = np.minimum(captured, room)
        for which in np.unique(number[number < len(self._blocks.interfaces)]):
            interface = self._blocks.interfaces[which]
            mine = number == which
            index.link[rows[mine]] = interface.link
            if kind == SIMPLE_PACKET:
                if interface.snap_bytes:
                    index.captured[rows[mine]] = np.minimum(index.captured[rows[mine]], interface.snap_bytes)
                continue
            units = blocks["high"][mine].astype(np.uint64) << np.uint64(32) | blocks["low"][mine].astype(np.uint64)
            index.time_ns[rows[mine]] = _nanoseconds(units, interface)
            index.timed[rows[mine]] = True


class PcapngBlocks:
    """The blocks of one section; see `chain.Records`. Interfaces are taken on the way, other blocks are skipped.

    Attributes:
        interfaces: those that were described before the block at hand.
    """

    def __init__(self, blob: Array, at: int, order: Order) -> None:
        self.blob = blob
        self.at = at
        self.order = order
        self.interfaces: list[Interface] = []
        self._enhanced = BLOCKS[ENHANCED_PACKET].newbyteorder(order)
        self._head = np.dtype(_HEAD).newbyteorder(order)
        self.head_bytes = self._enhanced.itemsize

    def plain(self, until: int) -> Iterator[int]:
        """The packets one after the other, up to the end of the section."""
        blob, unpack = self.blob.data, Struct(self.order + "II").unpack_from
        size, at = len(blob), self.at
        end = min(until, size - MIN_BLOCK_BYTES + 1)
        while at < end:
            kind, length = unpack(blob, at)
            if kind == SECTION or length > size - at or length < LEAST_BYTES.get(kind, MIN_BLOCK_BYTES):
                break
            if kind in PACKET_BYTES:
                yield at
            elif kind == INTERFACE:
                self.interfaces.append(_interface(blob[at : at + length - 4], self.order))
            at += length + -length % 4
        self.at = at

    def mark(self) -> tuple[int, bytes]:
        """The lower half of an enhanced packet's kind."""
        return (0, b"\x06\x00") if self.order == "<" else (2, b"\x00\x06")

    def likely(self, places: Array) -> Array:
        """An enhanced packet block whose lengths fit each other."""
        blocks = headers(self.blob, places, self._enhanced)
        length, captured = blocks["length"].astype(np.int64), blocks["captured"].astype(np.int64)
        room = length - LEAST_BYTES[ENHANCED_PACKET] - captured
        likely: Array = (blocks["kind"] == ENHANCED_PACKET) & (length % 4 == 0) & (room >= 0)
        return likely & (captured <= LARGEST_PACKET) & (length <= 2 * LARGEST_PACKET)

    def following(self, places: Array) -> Array:
        """Where the next blocks begin; the end of the file behind any that is no enhanced packet."""
        heads = headers(self.blob, places, self._head)
        length = heads["length"].astype(np.int64)
        return np.where(self._sound(heads), places + length + -length % 4, len(self.blob))

    def packets(self, places: Array) -> int:
        """Those before the first that is no enhanced packet, or not whole."""
        heads = headers(self.blob, places, self._head)
        whole = self._sound(heads) & (heads["length"] <= len(self.blob) - places)
        return len(places) if whole.all() else int(np.argmin(whole))

    @staticmethod
    def _sound(heads: Array) -> Array:
        sound: Array = (heads["kind"] == ENHANCED_PACKET) & (heads["length"] >= LEAST_BYTES[ENHANCED_PACKET])
        return sound


def _interface(block: memoryview, order: Order) -> Interface:
    """What an interface block says; `block` is without the length at its end."""
    link, _, snap_bytes = Struct(order + "HHI").unpack_from(block, 8)
    resolution, offset_s = MICROSECONDS, 0
    at = 16
    while at <= len(block) - 4:
        option, length = Struct(order + "HH").unpack_from(block, at)
        value = block[at + 4 : at + 4 + length]
        if option == OPTION_END or len(value) < length:
            break
        if option == OPTION_TIME_RESOLUTION and length == 1:
            resolution = value[0]
        elif option == OPTION_TIME_OFFSET and length == 8:
            (offset_s,) = Struct(order + "q").unpack(value)
        at += 4 + length + -length % 4
    return Interface(link, snap_bytes, resolution, offset_s)


def _nanoseconds(units: Array, interface: Interface) -> Array:
    """(n,) int64 nanoseconds of (n,) uint64 units of an interface's clock, rounded down.

    Times beyond the 584 years that 64 bits hold wrap around.
    """
    exponent = interface.resolution & ~POWER_OF_TWO
    if not interface.resolution & POWER_OF_TWO:
        scale = 10 ** abs(exponent - 9)
        if exponent <= 9:
            time = units * np.uint64(scale)
        else:
            time = units // np.uint64(scale) if scale < 2**64 else np.zeros_like(units)
    else:
        shift = np.uint64(min(exponent, 63))
        seconds = units >> shift
        fraction = units & ((np.uint64(1) << shift) - np.uint64(1))
        # In two halves, because the product of a fraction of 63 bits does not fit 64.
        half, low, billion = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(1_000_000_000)
        upper = (fraction >> half) * billion + ((fraction & low) * billion >> half)
        part = upper >> (shift - half) if shift >= half else fraction * billion >> shift
        time = seconds * billion + part
    return time.view(np.int64) + np.int64((interface.offset_s * 1_000_000_000 + 2**63) % 2**64 - 2**63)

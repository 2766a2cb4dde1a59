"""The kernel's ring of packets (packet(7), TPACKET_V3): a socket, memory that both sides map, and what lies in it."""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from fcntl import ioctl

import numpy as np

from .bpf import MAY_NOT, Program
from .errors import CannotCapture
from .packet_index import Array, PacketIndex

BLOCK_BYTES = 1 << 20
"""The longest frame fits: receive offloads join up to 512 KiB."""
BLOCKS = 32
RETIRE_MS = 100
"""A block that is not full is handed over this long after its first packet."""

# linux/if_packet.h, linux/if_ether.h, linux/sockios.h, linux/if.h, asm-generic/socket.h
SOL_PACKET = 263
ADD_MEMBERSHIP, RX_RING, STATISTICS, VERSION, IGNORE_OUTGOING = 1, 5, 6, 10, 23
PROMISCUOUS = 1
TPACKET_V3 = 2
ETH_P_ALL = 3
SIOCGIFFLAGS, SIOCGIFHWADDR = 0x8913, 0x8927
IFF_UP, IFF_LOOPBACK = 1, 8
SO_ATTACH_FILTER = 26
TO_KERNEL, TO_USER = 0, 1
VLAN_VALID, TPID_VALID = 1 << 4, 1 << 6
STATUS, PACKETS, FIRST, LENGTH = 8, 12, 16, 20
"""Places in the head of a block."""
FRAME = np.dtype(
    [
        *((name, "u4") for name in ("next", "seconds", "nanoseconds", "captured", "wire", "status")),
        *(("mac", "u2"), ("net", "u2"), ("hash", "u4"), ("tci", "u4"), ("tpid", "u2"), ("padding", "u2")),
    ]
)
"""The head of a frame."""

TAG_BYTES = 4
STATIONS_BYTES = 12
DOT1Q = 0x8100
ETHERNET, RAW, WIFI, RADIOTAP = 1, 101, 105, 127
LINKS = {1: ETHERNET, 772: ETHERNET, 801: WIFI, 803: RADIOTAP} | dict.fromkeys((519, 768, 769, 776, 778, 65534), RAW)
"""Link types by the kernel's number of the device type (linux/if_arp.h)."""


class Ring:
    """An interface's packets from now on, block by block.

    Args:
        interface: its name.
        program: the filter; all packets pass an empty one.

    Attributes:
        link: link type of the packets.

    Raises:
        CannotCapture: there is no such interface, it is down, its link type is not dissected, or this process may not
            capture.
    """

    def __init__(self, interface: str, program: Program) -> None:
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise CannotCapture(MAY_NOT) from None
        self._next = 0
        try:
            self.link, is_loopback = _about(self.socket, interface)
            self._set(VERSION, TPACKET_V3)
            self._set(RX_RING, struct.pack("7I", BLOCK_BYTES, BLOCKS, BLOCK_BYTES, BLOCKS, RETIRE_MS, 0, 0))
            self._memory = mmap.mmap(self.socket.fileno(), BLOCK_BYTES * BLOCKS)
            if is_loopback:
                self._set(IGNORE_OUTGOING, 1)  # they come in again
            if program:
                _attach(self.socket, program)
            # Only now do packets come, so none has passed the filter by.
            self.socket.bind((interface, ETH_P_ALL))
            number = socket.if_nametoindex(interface)
            self._set(ADD_MEMBERSHIP, struct.pack("iHH8x", number, PROMISCUOUS, 0))
        except OSError as error:
            self.socket.close()
            raise CannotCapture(f"{interface}: {error.strerror}") from None
        except CannotCapture:
            self.socket.close()
            raise
        self._bytes = np.frombuffer(self._memory, np.uint8)

    @property
    def is_ready(self) -> bool:
        """Whether a block is there."""
        return bool(_number(self._bytes, self._next * BLOCK_BYTES + STATUS) & TO_USER)

    def take(self) -> Array:
        """A copy of the block that is there, from its head on, whose place the kernel fills anew: (m,) uint8."""
        first = self._next * BLOCK_BYTES
        block = self._bytes[first : first + _number(self._bytes, first + LENGTH)].copy()
        self._bytes[first + STATUS : first + STATUS + 4].view(np.uint32)[0] = TO_KERNEL
        self._next = (self._next + 1) % BLOCKS
        return block

    def counts(self) -> tuple[int, int]:
        """Packets that passed the filter since it was last asked, and how many of them found no room."""
        found = struct.unpack("3I", self.socket.getsockopt(SOL_PACKET, STATISTICS, 12))
        return found[0], found[1]

    def close(self) -> None:
        """Stop, and let go of the memory."""
        self.socket.close()
        del self._bytes
        self._memory.close()

    def _set(self, option: int, value: int | bytes) -> None:
        self.socket.setsockopt(SOL_PACKET, option, value)


def read_block(block: Array, link: int) -> PacketIndex:
    """Where the packets of a block lie, their VLAN tags, which the kernel has taken out, in them again.

    Args:
        block: (m,) uint8, from its head on; tags are written into it.
        link: link type of its packets.
    """
    packets = _number(block, PACKETS)
    heads = _chain(block, _number(block, FIRST), packets)
    frames = np.ndarray((len(block) - FRAME.itemsize + 1,), FRAME, block, 0, (1,))[heads]
    offset = heads + frames["mac"]
    is_tagged = (frames["status"] & VLAN_VALID) > 0
    if is_tagged.any():
        _restore_tags(block, offset[is_tagged], frames[is_tagged])
    added = is_tagged * TAG_BYTES
    return PacketIndex(
        offset=(offset - added).astype(np.uint64),
        captured=(frames["captured"] + added).astype(np.uint32),
        wire=(frames["wire"] + added).astype(np.uint32),
        time_ns=frames["seconds"].astype(np.int64) * 10**9 + frames["nanoseconds"],
        timed=np.ones(packets, bool),
        link=np.full(packets, link, np.uint16),
        interface=np.zeros(packets, np.uint32),
    )


def _chain(block: Array, first: int, count: int) -> Array:
    """Where frames begin, each of which says how far the next one is: (count,) int64. 0.13 µs a frame."""
    data, next_of, found = block.data, struct.Struct("I").unpack_from, []
    for _ in range(count):
        found.append(first)
        first += next_of(data, first)[0]
    return np.array(found, np.int64)


def _restore_tags(block: Array, at: Array, frames: Array) -> None:
    """Put tags behind the stations of frames that begin `at`; the stations move into the free bytes before them."""
    stations = at[:, None] + np.arange(STATIONS_BYTES)
    block[stations - TAG_BYTES] = block[stations]
    tpid = np.where(frames["status"] & TPID_VALID, frames["tpid"], DOT1Q)
    tags = np.stack([tpid, frames["tci"]], axis=1).astype(">u2").view(np.uint8)
    block[at[:, None] + np.arange(STATIONS_BYTES - TAG_BYTES, STATIONS_BYTES)] = tags


def _about(asked: socket.socket, interface: str) -> tuple[int, bool]:
    """The link type of an interface, and whether it is a loopback.

    Raises:
        CannotCapture: it is down, or its link type is not dissected.
        OSError: there is none.
    """
    request = struct.pack("16s24x", interface.encode()[:15])
    flags = struct.unpack_from("H", ioctl(asked, SIOCGIFFLAGS, request), 16)[0]
    kind = struct.unpack_from("H", ioctl(asked, SIOCGIFHWADDR, request), 16)[0]
    if not flags & IFF_UP:
        raise CannotCapture(f"{interface} is down: ip link set {interface} up")
    if kind not in LINKS:
        raise CannotCapture(f"{interface} is of device type {kind}, whose packets are not dissected: name another")
    return LINKS[kind], bool(flags & IFF_LOOPBACK)


def _attach(to: socket.socket, program: Program) -> None:
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(instructions)))


def _number(block: Array, at: int) -> int:
    return int(block[at : at + 4].view(np.uint32)[0])

"""Packets as bytes, of many conversations at once, and the flows that a table makes of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from aikoryu.netio.dissect import dissect
from aikoryu.netio.flow_cuts import Timeouts
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flow_table import FlowTable
from aikoryu.netio.flows import Flows

SECOND = 10**9
T0 = 1_700_000_000 * SECOND


def frame(source: int, destination: int, sport: int, dport: int, flags: int, seq: int, payload: int) -> bytes:
    """A TCP packet on Ethernet; the ends are in 10.0.0.0/16."""
    size = 40 + payload
    ip = b"\x45\0" + size.to_bytes(2) + bytes(4) + b"\x40\x06\0\0"
    ends = b"\x0a\0" + source.to_bytes(2) + b"\x0a\0" + destination.to_bytes(2)
    tcp = sport.to_bytes(2) + dport.to_bytes(2) + seq.to_bytes(4) + bytes(4) + bytes([0x50, flags]) + bytes(6)
    return bytes(12) + b"\x08\0" + ip + ends + tcp + bytes(payload)


def traffic(packets: int, seed: int = 1, step_ns: int = SECOND // 20) -> tuple[list[bytes], np.ndarray[Any, Any]]:
    """Frames, some of which are not IP, and their times, which rise: conversations begin, rest and are forgotten."""
    random = np.random.default_rng(seed)
    frames = []
    for number in range(packets):
        # Those that are busy now; each is forgotten for a while, so that the idle time-out ends it.
        which = int(random.integers(number // 40, number // 40 + 8)) % 30
        ends = (which, 1000 + which, 40_000 + which, 443)
        if random.random() < 0.4:
            ends = (*ends[1::-1], *ends[:1:-1])
        flags = int(random.choice([2, 18, 16, 16, 16, 24, 17, 4]))
        made = frame(*ends, flags, int(random.integers(4)), int(random.integers(60)))
        frames.append(bytes(12) + b"\x08\x06" + bytes(28) if random.random() < 0.05 else made)
    return frames, T0 + np.cumsum(random.integers(0, 2 * step_ns, packets))


def expected(frames: list[bytes], times: Any, chunk: int, timeouts: Timeouts, capacity: int = 1 << 12) -> list[Flows]:
    """What a table gives for each chunk, and at the end."""
    table = FlowTable(KeyChoice(), timeouts, capacity)
    found = []
    for first, last in pairwise([*range(0, len(frames), chunk), len(frames)]):
        part = frames[first:last]
        sizes = np.array([len(each) for each in part], np.uint32)
        offsets = (np.cumsum(sizes) - sizes).astype(np.uint64)
        blob = np.frombuffer(b"".join(part), np.uint8)
        packets = dissect(blob, offsets, sizes, np.ones(len(part), np.uint16), sizes)
        ended = table.update(packets, times[first:last], sizes)
        found.append(Flows.joined([ended, table.expire(int(times[first:last].min()))]))
    return [*found, table.flush()]

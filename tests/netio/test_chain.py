"""Walks in step find what the plain walk finds, whatever the guesses were."""

from __future__ import annotations

import random
from struct import pack
from typing import Literal

import numpy as np
import pytest

from aikoryu.netio import chain
from aikoryu.netio.capture import Capture
from aikoryu.netio.chain import Chain
from aikoryu.netio.packet_index import NAMES, Array
from aikoryu.netio.pcap import PcapRecords

HEADER = bytes(24)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions so small that a few kilobytes have many."""
    sizes = {"FIRST_REGION_BYTES": 4096, "REGION_BYTES": 8192, "SEGMENT_BYTES": 512, "SEARCH_BYTES": 256}
    for name, value in (sizes | {"LEAST_LANES": 4}).items():
        monkeypatch.setattr(chain, name, value)


def record(order: str, seconds: int, frame: bytes, captured: int | None = None) -> bytes:
    return pack(order + "IIII", seconds, 5, len(frame) if captured is None else captured, len(frame)) + frame


def plain_walk(data: bytes, order: Literal["<", ">"]) -> list[int]:
    places, at = [], len(HEADER)
    while at + 16 <= len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little" if order == "<" else "big")
        if at + 16 + length > len(data):
            break
        places.append(at)
        at += 16 + length
    return places


def found(data: bytes, order: Literal["<", ">"], limit: int = 100) -> list[int]:
    walk = Chain(PcapRecords(np.frombuffer(data, np.uint8), len(HEADER), order))
    places: list[int] = []
    while len(part := walk.take(limit)):
        places += part.tolist()
    return places


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("seed", range(8))
def test_all_records_are_found(order: Literal["<", ">"], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of all sizes, some of which hold what looks like records, under times that jump."""
    rng = random.Random(seed)
    data, seconds = bytearray(HEADER), 0x5F000000
    for _ in range(600):
        seconds += 0x10000 if rng.random() < 0.01 else 0
        frame = rng.randbytes(rng.choice([0, 40, 60, 200]))
        if rng.random() < 0.03:
            frame = record(order, seconds, bytes(30)) * rng.choice([2, 40])
        data += record(order, seconds, frame)
    lanes = counted_lanes(monkeypatch)
    assert found(bytes(data), order) == plain_walk(bytes(data), order)
    assert sum(lanes) > 20


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = pack(order + "I", len(body) + 12)
    return pack(order + "I", kind) + length + body + length


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("seed", range(6))
def test_all_blocks_are_found(order: Literal["<", ">"], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interfaces, sections, simple packets and blocks of no known kind among the packets, and packets in packets."""
    rng = random.Random(seed)

    def enhanced(frame: bytes) -> bytes:
        return block(order, 6, pack(order + "IIIII", 0, 0, 7, len(frame), len(frame)) + frame)

    section = block(order, 0x0A0D0D0A, pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    others = [block(order, 1, pack(order + "HHI", 1, 0, 0)), block(order, 77, b"other"), section]
    others += [block(order, 3, pack(order + "I", 6) + b"simple"), enhanced(enhanced(bytes(30)) * 40)]
    # Its length lacks the padding.
    others.append(pack(order + "IIIIIII", 6, 37, 0, 0, 7, 5, 5) + bytes(12))
    data = section + others[0]
    for _ in range(900):
        data += rng.choice(others) if rng.random() < 0.02 else enhanced(rng.randbytes(rng.choice([0, 40, 60, 200])))
    lanes = counted_lanes(monkeypatch)
    fast = Capture(np.frombuffer(data, np.uint8)).index
    assert sum(lanes) > 20
    monkeypatch.setattr(chain, "LEAST_LANES", 10**6)
    slow = Capture(np.frombuffer(data, np.uint8)).index
    for name in NAMES:
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)


@pytest.mark.parametrize("lie", [0, 12, 28, 2**20, 2**32 - 4])
def test_a_block_that_lies_ends_the_chain(lie: int) -> None:
    packet = block("<", 6, pack("<IIIII", 0, 0, 7, 40, 40) + bytes(40))
    good = block("<", 0x0A0D0D0A, pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + packet * 300
    capture = Capture(np.frombuffer(good + pack("<II", 6, lie) + packet[8:] + packet * 300, np.uint8))
    assert len(capture.index) == 300
    assert capture.truncated


def test_a_record_that_lies_ends_the_chain() -> None:
    good = HEADER + record("<", 0x5F000000, bytes(40)) * 300
    for length in (len(good), 0xFFFFFFFF):
        data = good + record("<", 0x5F000000, b"", length) + record("<", 0x5F000000, bytes(40)) * 300
        assert found(data, "<") == plain_walk(good, "<") == plain_walk(data, "<")


def test_a_record_that_hides_others_is_followed() -> None:
    """Its length leads to the middle of nowhere, where no guess is."""
    some = record("<", 0x5F000000, bytes(40)) * 300
    data = HEADER + some + record("<", 0x5F000000, b"", 3001) + some
    assert found(data, "<") == plain_walk(data, "<")


def test_the_order_of_guesses_does_not_depend_on_how_much_is_taken() -> None:
    data = HEADER + record("<", 0x5F000000, bytes(33)) * 500
    assert found(data, "<", 1) == found(data, "<", 7) == found(data, "<", 10**6)


def counted_lanes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many walks went in step, one number a region."""
    counts: list[int] = []
    lanes = Chain._lanes

    def counting(self: Chain, at: Array, stops: Array) -> Array:
        counts.append(len(at))
        return lanes(self, at, stops)

    monkeypatch.setattr(Chain, "_lanes", counting)
    return counts

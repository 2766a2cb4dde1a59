"""Packets of an interface: as they were sent, with their tags, filtered, counted."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("needs Linux", allow_module_level=True)

from aikoryu.agents.frames import batches
from aikoryu.netio import bpf, ring
from aikoryu.netio.errors import CannotCapture
from aikoryu.netio.live import Block, LiveCapture
from aikoryu.netio.packet_index import joined
from aikoryu.netio.ring import FRAME, TPID_VALID, VLAN_VALID, read_block

from .namespace import FAR, NEAR, ip, network, sender

STATIONS = b"\xff" * 6 + b"\2" * 6
PLAIN = STATIONS + b"\x08\0" + bytes(range(46))
TAGGED = STATIONS + b"\x81\0\x20\5" + PLAIN[12:]
STACKED = STATIONS + b"\x88\xa8\0\7\x81\0\0\5" + PLAIN[12:]
WAIT_S = 5.0


@pytest.fixture(scope="module")
def thread() -> Iterator[ThreadPoolExecutor]:
    with network() as made:
        yield made


Run = Callable[..., Any]


@pytest.fixture
def inside(thread: ThreadPoolExecutor) -> Run:
    """Run a function in the namespace."""
    return lambda function, *arguments: thread.submit(function, *arguments).result(timeout=30)


def taken(live: LiveCapture, count: int) -> list[bytes]:
    """The next packets, exactly as many."""
    found: list[bytes] = []
    while len(found) < count:
        block = live.take(WAIT_S)
        assert block is not None, f"{len(found)} packets of {count}"
        found += [block.packet(row) for row in range(len(block.index))]
    return found


def exchanged(text: str, frames: list[bytes], count: int) -> list[bytes]:
    with LiveCapture(FAR, text) as live, sender(NEAR) as out:
        for frame in frames:
            out.send(frame)
        found = taken(live, count)
        assert live.take() is None
        assert live.counts == live.counts == (count, 0)
    return found


def test_packets_come_as_they_were_sent_with_their_tags(inside: Run) -> None:
    frames = [PLAIN, TAGGED, STACKED, PLAIN + bytes(1400)]
    assert inside(exchanged, "", frames, 4) == frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [("vlan 5", [TAGGED]), ("vlan", [TAGGED, STACKED]), ("not vlan", [PLAIN]), ("tcp port 80", [])],
)
def test_filters_run_before_packets_are_copied(inside: Run, text: str, expected: list[bytes]) -> None:
    pytest.importorskip("cypcap", reason="needs the extra `live`")
    # The last one says that the others had their chance.
    frames = [PLAIN, TAGGED, STACKED, PLAIN[:-1] + b"\xff"]
    found = inside(exchanged, f"({text}) or ether[59] = 0xff", frames, len(expected) + 1)
    assert found == [*expected, frames[-1]]


def blocks_sent(frames: list[bytes]) -> list[Block]:
    """The blocks in which they come: usually one."""
    found: list[Block] = []
    with LiveCapture(FAR) as live, sender(NEAR) as out:
        for frame in frames:
            out.send(frame)
        while sum(len(block.index) for block in found) < len(frames):
            block = live.take(WAIT_S)
            assert block is not None
            found.append(block)
    return found


def test_a_block_is_a_capture(inside: Run) -> None:
    before = time.time_ns()
    found = inside(blocks_sent, [PLAIN, TAGGED])
    index = joined(block.index for block in found)
    assert before <= index.time_ns[0] <= index.time_ns[1] <= time.time_ns()
    assert index.timed.all()
    assert index.captured.tolist() == index.wire.tolist() == [60, 64]
    assert [frame for block in found for part in batches(block) for frame in part["frame"]] == [PLAIN, TAGGED]
    assert sum(len(list(block.batches(1))) for block in found) == 2


def spoken_to_itself() -> tuple[list[bytes], int]:
    ip("link set lo up")
    try:
        with LiveCapture("lo") as live, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
            speaker.bind(("127.0.0.1", 0))
            for text in (b"one", b"two"):
                speaker.sendto(text, speaker.getsockname())
            found = taken(live, 2)
            return [frame[-3:] for frame in found], live.counts.received
    finally:
        ip("link set lo down")


def test_packets_of_the_loopback_come_once(inside: Run) -> None:
    assert inside(spoken_to_itself) == ([b"one", b"two"], 2)


def crowded() -> tuple[int, int]:
    with LiveCapture(FAR) as live, sender(NEAR) as out:
        frame = PLAIN + bytes(1400)
        sent = 2 * ring.BLOCKS * ring.BLOCK_BYTES // (len(frame) + 96)
        for _ in range(sent):
            out.send(frame)
        # A busy machine loses some on the cable.
        received, dropped = live.counts
        assert received <= sent
        return dropped, len(taken(live, received - dropped))


def test_what_finds_no_room_is_counted(inside: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "BLOCKS", 4)
    dropped, _ = inside(crowded)
    assert dropped > 1000


def gone_down() -> None:
    with LiveCapture(FAR) as live:
        ip(f"link set {FAR} down")
        try:
            for _ in range(10):
                live.take(0.1)
        finally:
            ip(f"link set {FAR} up")


def test_an_interface_that_goes_down_is_told(inside: Run) -> None:
    with pytest.raises(CannotCapture, match=f"{FAR} is down: ip link set {FAR} up, and start again"):
        inside(gone_down)


def refused(interface: str, text: str) -> str:
    with pytest.raises(CannotCapture) as caught:
        LiveCapture(interface, text)
    return str(caught.value)


def test_what_cannot_be_captured_is_refused(inside: Run) -> None:
    assert inside(refused, "nowhere", "") == "nowhere: No such device"
    assert inside(refused, "lo", "") == "lo is down: ip link set lo up"


def test_what_is_no_filter_is_refused(inside: Run) -> None:
    pytest.importorskip("cypcap", reason="needs the extra `live`")
    assert inside(refused, FAR, "tcp prot 80").startswith("'tcp prot 80' is no filter: ")
    assert "nowhere: " in inside(refused, "nowhere", "tcp")


def test_filters_name_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cypcap", None)
    with pytest.raises(CannotCapture, match=r"pip install 'aikoryu\[live\]'"):
        bpf.compiled("lo", "tcp")


def test_who_may_not_capture_is_told_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(CannotCapture, match="run it as root, or with the capability CAP_NET_RAW"):
        LiveCapture("lo")


async def test_blocks_come_as_they_are_filled(inside: Run) -> None:
    live, out = inside(lambda: (LiveCapture(FAR), sender(NEAR)))
    with live, out:
        found = []
        async with asyncio.timeout(WAIT_S):
            out.send(PLAIN)
            async for block in live.blocks():
                found += [block.packet(row) for row in range(len(block.index))]
                if len(found) == 2:
                    break
                out.send(TAGGED)
        assert found == [PLAIN, TAGGED]


# --- without a kernel -------------------------------------------------------------------------------------------------


def filled(frames: list[tuple[bytes, dict[str, int]]]) -> np.ndarray[Any, Any]:
    """A block as the kernel fills one."""
    block = bytearray(struct.pack("6I", 1, 48, 1, len(frames), 48, 0) + bytes(24))
    for number, (data, said) in enumerate(frames):
        room = 82 + len(data) + -(82 + len(data)) % 16
        head = np.zeros(1, FRAME)
        head["next"] = room if number + 1 < len(frames) else 0
        head["captured"], head["wire"], head["mac"] = len(data), len(data), 82
        for name, value in said.items():
            head[name] = value
        block += (head.tobytes() + bytes(82 - FRAME.itemsize) + data).ljust(room, b"\xaa")
    return np.frombuffer(bytearray(block), np.uint8)


def test_tags_are_put_back() -> None:
    tag = {"status": VLAN_VALID | 1, "tci": 0x2005}
    block = filled(
        [
            (PLAIN, {"seconds": 7, "nanoseconds": 8}),
            (PLAIN, tag),
            (PLAIN, {**tag, "status": tag["status"] | TPID_VALID, "tpid": 0x88A8, "wire": 9000}),
        ]
    )
    index = read_block(block, 1)
    made = Block(block, index)
    assert [made.packet(row) for row in range(3)] == [PLAIN, TAGGED, TAGGED.replace(b"\x81\0\x20", b"\x88\xa8\x20")]
    assert index.wire.tolist() == [60, 64, 9004]
    assert (index.time_ns[0], index.link.tolist(), index.offset.dtype) == (7 * 10**9 + 8, [1, 1, 1], np.uint64)
    assert len(read_block(filled([]), 1)) == 0

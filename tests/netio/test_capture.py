"""Captures: forms of files, cut files, lengths that lie, and what is written reads back."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.capture import Capture, open_capture
from aikoryu.netio.errors import BadCapture
from aikoryu.netio.packet_index import DTYPES, NAMES, NO_LINK, PacketIndex
from aikoryu.netio.writer import write_pcap, write_pcapng

FRAMES = [b"one", b"three", b"", b"seventeen bytes !"]


def capture_of(data: bytes) -> Capture:
    return Capture(np.frombuffer(data, np.uint8))


def frames_of(capture: Capture) -> list[bytes]:
    return [capture.packet(row) for row in range(len(capture.index))]


def pcap_file(order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    """A pcap file of FRAMES at 5, 6, 7 and 8 seconds and 250 units, one byte longer on the wire."""
    data = pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for second, frame in enumerate(FRAMES, 5):
        data += pack(order + "IIII", second, 250, len(frame), len(frame) + 1) + frame
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return pack(order + "II", kind, length) + body + pack(order + "I", length)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int, snap: int = 0, *options: tuple[int, bytes]) -> bytes:
    body = pack(order + "HHI", link, 0, snap)
    for code, value in options:
        body += pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(order, 1, body)


def enhanced(order: str, number: int, units: int, frame: bytes, captured: int | None = None) -> bytes:
    captured = len(frame) if captured is None else captured
    head = pack(order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, captured, len(frame) + 1)
    return block(order, 6, head + frame)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_of_both_byte_orders_and_units(order: str, magic: int, unit_ns: int) -> None:
    capture = capture_of(pcap_file(order, magic, link=0xF0000000 | 113))
    assert frames_of(capture) == FRAMES
    assert capture.index.wire.tolist() == [len(frame) + 1 for frame in FRAMES]
    assert capture.index.time_ns.tolist() == [second * 10**9 + 250 * unit_ns for second in (5, 6, 7, 8)]
    assert capture.index.link.tolist() == [113] * 4
    assert capture.index.timed.all()
    assert not capture.truncated
    assert [getattr(capture.index, name).dtype for name in NAMES] == list(DTYPES.values())


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_blocks_of_all_kinds(order: str) -> None:
    obsolete = pack(order + "HHIIII", 1, 9, 0, 7, 2, 3) + b"ob"
    data = (
        section(order)
        + interface(order, 1, 4)
        + interface(order, 101, 0, (2, b"eth0"), (9, b"\x09"), (14, pack(order + "q", 3)), (0, b""))
        + block(order, 0xBAD, b"custom")
        + enhanced(order, 1, 5 << 32, b"enhanced")
        + block(order, 3, pack(order + "I", 6) + b"simp")
        + block(order, 2, obsolete)
        + enhanced(order, 0, 8, b"micro")
        + enhanced(order, 9, 8, b"whose")
    )
    index = capture_of(data).index
    assert frames_of(capture_of(data)) == [b"enhanced", b"simp", b"ob", b"micro", b"whose"]
    assert index.time_ns.tolist() == [(5 << 32) + 3 * 10**9, 0, 7 + 3 * 10**9, 8000, 0]
    assert index.timed.tolist() == [True, False, True, True, False]
    assert index.link.tolist() == [101, 1, 101, 1, NO_LINK]
    assert index.interface.tolist() == [1, 0, 1, 0, 9]
    assert index.wire.tolist() == [9, 6, 3, 6, 6]


def test_sections_have_their_own_byte_order_and_interfaces() -> None:
    data = section("<") + interface("<", 1) + enhanced("<", 0, 1, b"a") + section(">") + interface(">", 113)
    capture = capture_of(data + enhanced(">", 0, 2, b"b") + section("<") + enhanced("<", 0, 3, b"c"))
    assert frames_of(capture) == [b"a", b"b", b"c"]
    assert capture.index.link.tolist() == [1, 113, NO_LINK]
    assert not capture.truncated


@pytest.mark.parametrize(
    ("resolution", "units", "nanoseconds"),
    [
        (0, 3, 3 * 10**9),
        (6, 3, 3000),
        (9, 3, 3),
        (12, 3999, 3),
        (127, 2**63, 0),
        (0x80 | 1, 3, 1_500_000_000),
        (0x80 | 10, 1025, 10**9 + 10**9 // 1024),
        (0x80 | 40, 2**40 + 12345678901, 10**9 + 12345678901 * 10**9 // 2**40),
        (0x80 | 63, 2**63 + 2**62 + 1, 1_500_000_000),
    ],
)
def test_resolutions_are_powers_of_ten_and_of_two(resolution: int, units: int, nanoseconds: int) -> None:
    data = section("<") + interface("<", 1, 0, (9, bytes([resolution]))) + enhanced("<", 0, units, b"x")
    assert capture_of(data).index.time_ns.tolist() == [nanoseconds]


@pytest.mark.parametrize("whole", [pcap_file(), section("<") + interface("<", 1) + enhanced("<", 0, 1, b"first") * 3])
def test_a_file_cut_anywhere_gives_its_whole_packets(whole: bytes) -> None:
    frames, offsets = frames_of(capture_of(whole)), capture_of(whole).index.offset
    # Five bytes have three of padding, and four of length follow, in pcapng.
    tail = 7 if whole[:1] == b"\x0a" else 0
    ends = {int(offset) + len(frame) + tail for offset, frame in zip(offsets, frames, strict=True)}
    for size in range(64, len(whole)):
        capture = capture_of(whole[:size])
        found = frames_of(capture)
        assert found == frames[: len(found)]
        # A cut between two packets cannot be seen.
        assert capture.truncated == (size not in ends)


@pytest.mark.parametrize("length", [0, 8, 31, 0x7FFFFFFF, 0xFFFFFFFF])
def test_block_lengths_that_lie_end_the_walk(length: int) -> None:
    sound = section("<") + interface("<", 1) + enhanced("<", 0, 1, b"sound")
    capture = capture_of(sound + pack("<II", 6, length) + bytes(64))
    assert frames_of(capture) == [b"sound"]
    assert capture.truncated


def test_a_captured_length_beyond_its_block_is_cut_to_it() -> None:
    data = section("<") + interface("<", 1) + enhanced("<", 0, 1, b"four", captured=4000) + enhanced("<", 0, 1, b"next")
    assert frames_of(capture_of(data)) == [b"four", b"next"]


@given(st.binary(max_size=400), st.booleans(), st.sampled_from("<>"))
def test_any_bytes_lead_nowhere_outside(data: bytes, newer: bool, order: str) -> None:
    head = section(order) + interface(order, 1) if newer else pcap_file(order)[:24]
    index = capture_of(head + data).index
    assert np.all(index.offset + index.captured <= len(head) + len(data))


@pytest.mark.parametrize(
    "data", [b"", b"\x1f\x8b", b"text", pcap_file()[:23], section("<")[:27], section("<")[:8] + b"????"]
)
def test_other_files_are_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pcap"
    path.write_bytes(data)
    with pytest.raises(BadCapture, match=r"file\.pcap"):
        open_capture(path)


def test_files_are_mapped_or_unzipped(tmp_path: Path) -> None:
    plain, packed, cut = tmp_path / "a.pcap", tmp_path / "b.pcap.gz", tmp_path / "c.pcap.gz"
    plain.write_bytes(pcap_file())
    packed.write_bytes(gzip.compress(pcap_file()[:40]) + gzip.compress(pcap_file()[40:]))
    # Stored as it is behind 15 bytes, and cut behind the third packet, where pcap itself shows nothing.
    cut.write_bytes(gzip.compress(pcap_file(), 0)[: 15 + 24 + 3 * 16 + len(b"".join(FRAMES[:3]))])
    with open_capture(plain) as capture:
        assert frames_of(capture) == FRAMES
        kept = capture.blob[:4]
    assert kept.tobytes() == pcap_file()[:4]
    assert frames_of(open_capture(packed)) == FRAMES
    assert not open_capture(packed).truncated
    assert frames_of(open_capture(cut)) == FRAMES[:3]
    with open_capture(cut) as capture:
        assert len(capture.index) == 3
        assert capture.truncated


def test_batches_are_runs_of_the_index() -> None:
    for data in (pcap_file(), section("<") + interface("<", 1) + enhanced("<", 0, 1, b"x") * 5 + section(">")):
        capture = capture_of(data)
        runs = list(capture.batches(2))
        assert [len(run) for run in runs[:-1]] == [2] * (len(runs) - 1)
        assert_equal(capture.index, PacketIndex(*(np.concatenate([getattr(r, n) for r in runs]) for n in NAMES)))


def assert_equal(left: PacketIndex, right: PacketIndex, but: tuple[str, ...] = ()) -> None:
    for name in NAMES:
        if name not in but:
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


U32 = st.integers(0, 2**32 - 1)
ROW = st.tuples(
    st.binary(max_size=70), U32, st.integers(-(2**63), 2**63 - 1), st.sampled_from([1, 113]), st.integers(0, 5)
)


def index_of(rows: list[Any]) -> tuple[np.ndarray[Any, Any], PacketIndex]:
    frames = [row[0] for row in rows]
    ends = np.cumsum([0, *map(len, frames)])
    columns: list[Any] = [ends[:-1], [len(frame) for frame in frames], *([row[i] for row in rows] for i in (1, 2))]
    columns += [[True] * len(rows), [row[3] for row in rows], [row[4] for row in rows]]
    pairs = zip(columns, DTYPES.values(), strict=True)
    return np.frombuffer(b"".join(frames), np.uint8), PacketIndex(*(np.array(c, dtype) for c, dtype in pairs))


@given(st.lists(ROW, max_size=12))
def test_pcapng_reads_back(rows: list[Any]) -> None:
    blob, index = index_of(rows)
    file = io.BytesIO()
    write_pcapng(file, blob, index)
    capture = capture_of(file.getvalue())
    assert_equal(capture.index, index, but=("offset",))
    assert frames_of(capture) == [row[0] for row in rows]
    assert not capture.truncated


def test_times_before_1970_are_written_as_an_offset() -> None:
    """Readers take a clock of 64 bits for one without a sign."""
    blob, index = index_of([(b"x", 1, -1_500_000_000, 1, 0), (b"y", 1, 7, 1, 0)])
    file = io.BytesIO()
    write_pcapng(file, blob, index)
    assert pack("<qHH", -2, 0, 0) in file.getvalue()
    assert pack("<II", 0, 500_000_000) in file.getvalue()


@given(st.lists(ROW, max_size=12), st.sampled_from([1, 1000]))
def test_pcap_reads_back(rows: list[Any], unit_ns: int) -> None:
    blob, index = index_of([(frame, wire, time % (2**32 * 10**9), 113, 0) for frame, wire, time, _, _ in rows])
    file = io.BytesIO()
    write_pcap(file, blob, index, unit_ns=unit_ns)
    capture = capture_of(file.getvalue())
    index.time_ns[:] -= index.time_ns % unit_ns
    assert_equal(capture.index, index, but=("offset",))
    assert frames_of(capture) == [row[0] for row in rows]


@pytest.mark.parametrize(("times", "links"), [((0, 1), (1, 113)), ((-1, 0), (1, 1)), ((0, 2**32 * 10**9), (1, 1))])
def test_pcap_refuses_what_it_cannot_hold(times: tuple[int, int], links: tuple[int, int]) -> None:
    blob, index = index_of([(b"x", 1, time, link, 0) for time, link in zip(times, links, strict=True)])
    file = io.BytesIO()
    with pytest.raises(BadCapture, match="pcapng"):
        write_pcap(file, blob, index)
    assert not file.getvalue()

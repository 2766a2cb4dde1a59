"""packets.dissect over the bus: the columns of netio, whatever the packets come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.agents import Bus, session
from aikoryu.agents.frames import captured
from aikoryu.bus.errors import BadColumn, BadParameter
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.packets.columns import DTYPES, column_of
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.packets import Headers, Packets

from ..netio import truth

pytest.importorskip("torch", reason="needs the extra `worker`")
scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")

SETTINGS = Settings(
    models=ModelSettings(embed=()), worker=WorkerSettings(name="w1"), residents=ResidentSettings(host_bytes=64 << 20)
)


@pytest.fixture
async def bus(packet_path: None) -> AsyncIterator[Bus]:
    memory = MemoryBus()
    engine = InlineEngine(load(catalogue_of(SETTINGS)), slab_bytes=80 << 20)
    worker = Worker(memory.connect("_WORKER"), SETTINGS, [engine])
    await worker.start()
    async with session(memory.connect(), SETTINGS) as made:
        yield made
    await worker.stop()


def packets() -> list[Any]:
    """One of several kinds, one in a tunnel, one that is cut."""
    ether = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    inside = ether / scapy.IP(src="10.1.1.1", dst="10.1.1.2") / scapy.TCP(sport=80, dport=4000, flags="SA")
    outside = ether / scapy.IP(src="192.0.2.1", dst="192.0.2.2") / scapy.UDP(sport=9, dport=4789)
    return [
        inside,
        outside / scapy.VXLAN(vni=7) / inside,
        ether / scapy.Dot1Q(vlan=5) / scapy.IPv6(src="2001:db8::1", dst="::1") / scapy.UDP(dport=53),
        ether / scapy.ARP(pdst="192.0.2.1"),
        scapy.Ether(bytes(inside)[:30]),
    ]


def local(frames: list[bytes], links: int | Any = 1) -> Packets:
    """What netio says of them."""
    blob = np.frombuffer(b"".join(frames), np.uint8)
    sizes = np.array([len(frame) for frame in frames])
    return dissect(blob, np.cumsum(sizes) - sizes, sizes, np.broadcast_to(np.uint16(links), len(frames)))


def assert_same(found: Packets, expected: Packets) -> None:
    for name, dtype in DTYPES.items():
        column = column_of(found, name)
        np.testing.assert_array_equal(column, column_of(expected, name), name)
        assert column.dtype == dtype, name


async def test_every_column_is_that_of_netio(bus: Bus) -> None:
    frames = [bytes(packet) for packet in packets()]
    found = await bus.packets.dissect(frames)
    assert_same(found, local(frames))
    assert found.outer.dport.tolist() == [4000, 4789, 53, 0, 0]
    assert found.inner.dport.tolist() == [4000, 4000, 53, 0, 0]
    assert found.error.tolist() == [0, 0, 0, 0, 2]


async def test_columns_asked_for_are_answered_and_no_others(bus: Bus) -> None:
    found = await bus.packets.dissect(packets(), columns=["outer.dport", "tunnel", "outer.dport"])
    assert {name: column.tolist() for name, column in found.items()} == {
        "outer.dport": [4000, 4789, 53, 0, 0],
        "tunnel": [0, 3, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("name", "told"), [("dport", "such as 'outer.dport'"), ("outer.port", "such as 'error', 'outer.dport'")]
)
async def test_columns_that_packets_do_not_have_are_refused(bus: Bus, name: str, told: str) -> None:
    with pytest.raises(BadParameter, match=told):
        await bus.packets.dissect(packets(), columns=[name])


async def test_link_types_are_the_packets_own_or_that_of_the_call(bus: Bus) -> None:
    frame = bytes(packets()[0])[14:]
    assert_same(await bus.packets.dissect([frame], link=101), local([frame], 101))
    mixed = [scapy.IP() / scapy.TCP(dport=1), packets()[0]]
    assert (await bus.packets.dissect(mixed)).outer.dport.tolist() == [1, 4000]
    assert (await bus.call("packets.dissect", {"frame": frame}, {"columns": ["outer.dport"], "link": 101}))[
        "outer.dport"
    ] == 4000


async def test_no_packets_are_no_rows(bus: Bus) -> None:
    found = await bus.packets.dissect([])
    assert len(found) == 0
    assert {field.name: getattr(found.outer, field.name).dtype for field in fields(Headers)} == {
        name.removeprefix("outer."): dtype for name, dtype in DTYPES.items() if name.startswith("outer.")
    }


async def test_other_columns_are_refused(bus: Bus) -> None:
    with pytest.raises(BadColumn, match="send frame: bin, time\\?: i8, link\\?: u2, wire\\?: u4"):
        await bus.call("packets.dissect", {"packet": b""})


async def test_times_may_come_along(bus: Bus) -> None:
    row = {"frame": bytes(packets()[0]), "time": np.int64(1), "wire": np.uint32(1514)}
    answer = await bus.call("packets.dissect", row, {"columns": ["outer.payload_wire", "outer.sport"]})
    assert (answer["outer.sport"], answer["outer.payload_wire"]) == (80, 0)


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
async def test_captures_are_read_by_their_path(bus: Bus) -> None:
    for path in truth.captures()[::6]:
        with open_capture(path) as capture:
            index = capture.index[:4000]
            expected = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
            found = await bus.packets.dissect(path)
            assert len(found) == len(capture.index)
            if len(index) == len(found):
                assert_same(found, expected)
            assert captured(capture.blob, index)["frame"] == [capture.packet(row) for row in range(len(index))]
            assert Path(path).is_file()

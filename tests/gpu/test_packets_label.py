"""packets.label over the bus: what netio says, on the path of the CPU and on that of a GPU."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from aikoryu.agents import Bus, session
from aikoryu.bus.columns import Field
from aikoryu.bus.errors import BadColumn, BadParameter
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.device import Device
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.ops.packets.label import Label
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.labels import How, label

from ..netio import truth
from .packet_bytes import changed, crafted

pytest.importorskip("torch", reason="needs the extra `worker`")
scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")

SETTINGS = Settings(
    models=ModelSettings(embed=()), worker=WorkerSettings(name="w1"), residents=ResidentSettings(host_bytes=64 << 20)
)
ETHER = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
WEB = ETHER / scapy.IP(src="10.0.0.1", dst="10.0.0.2") / scapy.TCP(dport=80) / b"GET / HTTP/1.1\r\n"
PACKETS = [
    WEB,
    ETHER / scapy.IP(dst="10.0.0.2") / scapy.UDP(sport=9, dport=4789) / scapy.VXLAN(vni=7) / WEB,
    ETHER / scapy.IPv6(dst="2001:db8::1") / scapy.UDP(sport=50000) / scapy.DNS(qd=scapy.DNSQR(qname="a.b")),
    ETHER / scapy.IP(dst="10.0.0.2") / scapy.TCP(sport=50000, dport=22, flags="S"),
    ETHER / scapy.IP(dst="10.0.0.2") / scapy.ICMP(),
    ETHER / scapy.ARP(pdst="10.0.0.2"),
]


@pytest.fixture
async def bus(packet_path: None) -> AsyncIterator[Bus]:
    memory = MemoryBus()
    worker = Worker(
        memory.connect("_WORKER"), SETTINGS, [InlineEngine(load(catalogue_of(SETTINGS)), slab_bytes=80 << 20)]
    )
    await worker.start()
    async with session(memory.connect(), SETTINGS) as made:
        yield made
    await worker.stop()


async def test_packets_are_labelled(bus: Bus) -> None:
    found = await bus.packets.label(PACKETS)
    assert found.titles() == ["HTTP", "HTTP", "DNS", "SSH", "ICMP", ""]
    assert found.how.tolist() == [How.SIGNATURE, How.SIGNATURE, How.SIGNATURE, How.PORT, How.HEADER, How.NONE]
    assert (found.protocol.dtype, found.how.dtype) == (np.uint16, np.uint8)
    assert (await bus.packets.label(PACKETS, headers="outer")).titles()[:2] == ["HTTP", "VXLAN"]


async def test_names_come_where_they_are_asked_for(bus: Bus) -> None:
    row = {"frame": bytes(WEB)}
    assert (await bus.call("packets.label", row, {"names": True}))["name"] == "HTTP"
    assert set(await bus.call("packets.label", row)) == {"protocol", "how"}
    raw = await bus.call("packets.label", {"frame": bytes(WEB)[14:]}, {"link": 101, "names": True})
    assert raw["name"] == "HTTP"


async def test_no_packets_have_no_labels(bus: Bus) -> None:
    assert (await bus.packets.label([])).titles() == []


async def test_what_is_not_known_is_refused(bus: Bus) -> None:
    with pytest.raises(BadParameter, match="headers"):
        await bus.call("packets.label", {"frame": b""}, {"headers": "both"})
    with pytest.raises(BadColumn, match="send frame: bin"):
        await bus.call("packets.label", {"packet": b""})


async def test_changed_packets_have_the_labels_of_netio(bus: Bus) -> None:
    seeds = [(bytes(packet), 1) for packet in PACKETS] + crafted()
    given = changed(seeds, 4000, 5)
    columns: dict[str, Any] = {"frame": given.blobs.rows, "link": given.link, "wire": given.wire}
    for headers in ("inner", "outer"):
        found = await bus.call_many("packets.label", columns, {"headers": headers})
        expected = label(given.blobs.data, given.blobs.offsets[:-1], getattr(given.dissected(), headers))
        np.testing.assert_array_equal(found["protocol"], expected.protocol)
        np.testing.assert_array_equal(found["how"], expected.how)
    assert len(np.unique(expected.protocol)) > 5


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
async def test_captures_have_the_labels_of_netio(bus: Bus) -> None:
    for path in truth.captures()[1::5]:
        with open_capture(path) as capture:
            index = capture.index
            packets = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
            expected = label(capture.blob, index.offset, packets.inner)
            found = await bus.packets.label(capture)
        np.testing.assert_array_equal(found.protocol, expected.protocol)
        np.testing.assert_array_equal(found.how, expected.how)


def test_labels_on_a_device_are_those_of_the_host(device: Device) -> None:
    """On CUDA by its own kernels where CuPy is there."""
    operation = Label()
    operation.load(device)
    given = changed([(bytes(packet), 1) for packet in PACKETS], 3000, 6)
    columns: dict[str, Any] = {"frame": given.blobs, "link": given.link, "wire": given.wire}
    schema = tuple((name, Field(Label.signature.inputs[name])) for name in columns)
    batch = Batch(len(given), schema, columns, Label.Parameters(), np.ones(len(given), bool), device)
    answer = {name: device.to_host(column) for name, column in operation.run(batch, device).items()}
    device.synchronize()
    expected = label(given.blobs.data, given.blobs.offsets[:-1], given.dissected().inner)
    np.testing.assert_array_equal(answer["protocol"], expected.protocol)
    np.testing.assert_array_equal(answer["how"], expected.how)

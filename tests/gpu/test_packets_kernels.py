"""The kernels give what netio gives, bit for bit: compiled for the host here, on a GPU where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Field  # noqa: E402 - only where the extra is
from aikoryu.gpu.batch import Batch  # noqa: E402
from aikoryu.gpu.blobs import Blobs  # noqa: E402
from aikoryu.gpu.cuda import CudaDevice  # noqa: E402
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.packets import kernels as kernels_module  # noqa: E402
from aikoryu.gpu.packets.columns import DTYPES, column_of  # noqa: E402
from aikoryu.gpu.packets.flow_hash import flow_hashes  # noqa: E402
from aikoryu.gpu.packets.frames import Frames  # noqa: E402
from aikoryu.gpu.packets.kernels import DeviceFrames, DeviceKeys, PacketKernels  # noqa: E402
from aikoryu.netio.bit_vectors import BitVectors  # noqa: E402
from aikoryu.netio.capture import open_capture  # noqa: E402
from aikoryu.netio.class_tables import ClassTables  # noqa: E402
from aikoryu.netio.classify import Structure, compile_rules  # noqa: E402
from aikoryu.netio.keys import Keys  # noqa: E402
from aikoryu.netio.linear import LinearScan  # noqa: E402
from aikoryu.netio.maglev import MaglevTable  # noqa: E402
from aikoryu.netio.rules import Rule, RuleSet  # noqa: E402
from aikoryu.netio.tuple_tables import TupleTables  # noqa: E402

from ..netio import truth  # noqa: E402
from ..netio.test_classify import LARGE, MIDDLE, SMALL, needs_data  # noqa: E402
from ..netio.test_classify import load as load_set  # noqa: E402
from . import host_kernels  # noqa: E402
from .fake_cupy import Cupy  # noqa: E402
from .packet_bytes import changed, crafted, frames  # noqa: E402

STRUCTURES: tuple[type[Structure], ...] = (ClassTables, BitVectors, TupleTables, LinearScan)
Array = np.ndarray[Any, Any]

needs_captures = pytest.mark.skipif(
    not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA"
)


@pytest.fixture(
    scope="module",
    params=["host", pytest.param("gpu", marks=pytest.mark.gpu)],
)
def kernels(request: pytest.FixtureRequest) -> PacketKernels:
    if request.param == "host":
        if host_kernels.COMPILER is None:
            pytest.skip("needs a C++ compiler")
        return PacketKernels(Device("cpu", 1), host_kernels.compiled())
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = CudaDevice("cuda:0", threads=1)
    device.open()
    pytest.importorskip("cupy")
    made = PacketKernels.on(device)
    assert made is not None, "CuPy is there"
    return made


def on_host(kernels: PacketKernels) -> bool:
    return not kernels._device.is_cuda


def assert_same(kernels: PacketKernels, given: Frames, names: list[str] | None = None) -> None:
    """Every column of the packets."""
    expected = given.dissected()
    found = kernels.dissect(DeviceFrames.of(given, kernels._device), list(DTYPES) if names is None else names)
    for name, column in found.items():
        np.testing.assert_array_equal(column.cpu().numpy(), column_of(expected, name), name)


def of_capture(path: Path, most: int) -> Frames:
    """Packets from all over a capture."""
    with open_capture(path) as capture:
        rows = np.arange(0, len(capture.index), -(-len(capture.index) // most))
        index = capture.index[rows]
        return frames([capture.packet(row) for row in rows.tolist()], index.link, index.wire)


# --- what launches them ----------------------------------------------------------------------------------------------


EXPECTED = "__global__ void dissect("


class Gpu(Device):
    """A device that says that it is one."""

    @property
    def is_cuda(self) -> bool:
        return True


@pytest.fixture
def fresh() -> Iterator[None]:
    """What a test compiles is forgotten after it."""
    kernels_module._compiled.cache_clear()
    yield
    kernels_module._compiled.cache_clear()


def test_a_thread_a_row_is_launched(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    cupy = Cupy(EXPECTED)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert PacketKernels.on(Gpu("cpu", 1)) is not None
    launch = kernels_module._compiled()
    assert launch is not None
    for threads in (0, 1, 128, 129):
        launch("classify", threads, [np.uint64(7)])
    assert cupy.launched == [("classify", (blocks,), (128,), (7,)) for blocks in (1, 1, 2)]


def test_netio_stands_in_where_nothing_can_be_launched(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    assert PacketKernels.on(Device("cpu", 1)) is None
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert PacketKernels.on(Gpu("cpu", 1)) is None
    kernels_module._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", Cupy(EXPECTED, RuntimeError("failed to load libnvrtc.so")))
    with capture_logs() as logs:
        assert PacketKernels.on(Gpu("cpu", 1)) is None
    assert logs == [
        {
            "event": "packets run on the host: CuPy cannot compile",
            "log_level": "warning",
            "reason": "failed to load libnvrtc.so",
        }
    ]


# --- dissection -------------------------------------------------------------------------------------------------------


@needs_captures
def test_every_packet_of_captures(kernels: PacketKernels) -> None:
    for path in truth.captures():
        assert_same(kernels, of_capture(path, 20_000))


def test_changed_packets(kernels: PacketKernels) -> None:
    count = 40_000 if on_host(kernels) else 1_000_000
    seeds = crafted()
    for path in truth.captures():
        given = of_capture(path, 40)
        assert given.link is not None
        seeds += list(zip(given.blobs.rows, given.link.tolist(), strict=True))
    for seed in range(-(-count // 50_000)):
        given = changed(seeds, min(count, 50_000), seed)
        assert_same(kernels, given)
        # What is to be tested is there: errors, but for stacks without end; every tunnel; headers behind headers.
        packets = given.dissected()
        assert set(packets.error.tolist()) >= {0, 1, 2, 3, 5}
        assert set(packets.tunnel.tolist()) == set(range(8))
        assert packets.ip_headers.max() > 1


def test_a_packet_of_each_kind(kernels: PacketKernels) -> None:
    """Cut after every byte, on the capture and on the wire."""
    for whole, link in crafted():
        for on_the_wire in (False, True):
            cuts = range(len(whole) + 1)
            links = np.full(len(cuts), link, np.uint16)
            wire = np.full(len(cuts), len(whole), np.uint32) if on_the_wire else None
            assert_same(kernels, frames([whole[:size] for size in cuts], links, wire))


def test_random_bytes(kernels: PacketKernels) -> None:
    random = np.random.default_rng(1)
    packets = [random.bytes(int(size)) for size in random.integers(90, size=5000)]
    assert_same(kernels, frames(packets))
    links = random.integers(300, size=5000).astype(np.uint16)
    assert_same(kernels, frames(packets, links, random.integers(200, size=5000).astype(np.uint32)))


STACKS = {
    "tags": bytes(12) + b"\x81\x00\x00\x05" * 40 + b"\x08\x00",
    "labels": bytes(12) + b"\x88\x47" + b"\x00\x01\x00\x40" * 40,
    "extensions": bytes(12) + b"\x86\xdd\x60" + bytes(5) + b"\x00\x40" + bytes(32) + bytes(8) * 40,
    "IP in IP": bytes(12) + b"\x08\x00" + (b"\x45\0\0\0" + bytes(5) + b"\x04" + bytes(10)) * 20,
    "GRE in GRE": bytes(12) + b"\x08\x00" + (b"\x45\0\0\0" + bytes(5) + b"\x2f" + bytes(10) + b"\0\0\x08\0") * 20,
    "Ethernet in MPLS": bytes(12) + (b"\x88\x47\x00\x01\x01\x40" + bytes(12)) * 40,
}


@pytest.mark.parametrize("stack", STACKS)
def test_stacks_without_end(kernels: PacketKernels, stack: str) -> None:
    whole = STACKS[stack]
    assert_same(kernels, frames([whole[:size] for size in range(len(whole))]))
    assert frames([whole]).dissected().error.tolist() == [4], "the limit is met"


def test_columns_asked_for_and_no_packets(kernels: PacketKernels) -> None:
    given = frames([STACKS["GRE in GRE"][:90], b""], None, np.array([100, 7], np.uint32))
    assert_same(kernels, given, ["error", "inner.src_low", "outer.dont_fragment", "tunnel_id"])
    assert_same(kernels, frames([]))
    assert_same(kernels, Frames(given.blobs, None, None, 228))


def test_lengths_beyond_the_data(kernels: PacketKernels) -> None:
    """A batch's offsets are checked before; a kernel that reads beyond its data ends the engine all the same."""
    data = np.frombuffer(bytearray(STACKS["tags"]), np.uint8)
    offsets = np.array([0, 20, 5000, 6000], np.uint32)
    assert_same(kernels, Frames(Blobs(data, offsets), None, None, 1))


# --- classification ---------------------------------------------------------------------------------------------------


def batch_of(columns: dict[str, Array], kernels: PacketKernels) -> Batch:
    rows = len(next(iter(columns.values())))
    schema = tuple((name, Field({"uint64": "u8"}.get(column.dtype.name, "u1"))) for name, column in columns.items())
    return Batch(rows, schema, columns, None, np.ones(rows, bool), kernels._device)


def device_keys(keys: Keys, kernels: PacketKernels, *, narrow: bool = False) -> DeviceKeys:
    """Keys on the device, in one of the forms that requests have."""
    columns = {
        "source": np.stack([keys.source_high, keys.source_low], axis=1),
        "destination": np.stack([keys.destination_high, keys.destination_low], axis=1),
        **{name: getattr(keys, name) for name in ("source_port", "destination_port", "protocol", "vlan", "tcp_flags")},
    }
    if narrow:
        columns["source"] = keys.source_low.astype(np.uint32)
        columns["destination"] = keys.destination_low.astype(np.uint32)
    else:
        columns["version"] = keys.version
    return DeviceKeys.of(batch_of({name: np.ascontiguousarray(each) for name, each in columns.items()}, kernels))


def random_rules(count: int, random: np.random.Generator) -> list[Rule]:
    """Rules of both versions that overlap a lot, some with VLANs and flags."""
    rules = []
    for _ in range(count):
        family = int(random.choice([0, 4, 4, 6]))
        bits = {0: 0, 4: 32, 6: 128}[family]
        ends = []
        for _ in range(2):
            length = int(random.integers(bits + 1)) if random.random() < 0.7 else 0
            address = int.from_bytes(random.integers(3, size=16, dtype=np.uint8).tobytes()) >> (128 - bits)
            ends.append((address >> (bits - length) << (bits - length), length))
        low, high = sorted(random.integers(8, size=2).tolist())
        tcp = bool(random.random() < 0.3)
        rules.append(
            Rule(
                family=family,
                source=ends[0][0],
                source_length=ends[0][1],
                destination=ends[1][0],
                destination_length=ends[1][1],
                source_ports=(low, high) if random.random() < 0.5 else (0, 0xFFFF),
                destination_ports=(low, low) if random.random() < 0.5 else (0, 0xFFFF),
                protocol=6 if tcp else 0,
                protocol_mask=0xFF if tcp else 0,
                vlan=3 if random.random() < 0.2 else 0,
                vlan_mask=3,
                tcp_flags=2 if tcp else 0,
                tcp_flags_mask=2 if tcp else 0,
            )
        )
    return rules


def random_keys(count: int, random: np.random.Generator) -> Keys:
    """Keys of both versions, and of neither."""
    version = random.choice(np.array([0, 4, 4, 6], np.uint8), size=count)
    halves = random.integers(3, size=(4, count, 8), dtype=np.uint8).view(">u8")[..., 0].astype(np.uint64)
    four = version == 4
    for high, low in ((0, 1), (2, 3)):
        halves[low][four] &= np.uint64(0xFFFFFFFF)
        halves[high][four] = 0
    source_port, destination_port = random.integers(9, size=(2, count), dtype=np.uint16)
    return Keys(
        version=version,
        source_high=halves[0],
        source_low=halves[1],
        destination_high=halves[2],
        destination_low=halves[3],
        source_port=source_port,
        destination_port=destination_port,
        protocol=random.choice(np.array([6, 17], np.uint8), size=count),
        vlan=random.choice(np.array([0, 3, 0xFFFF], np.uint16), size=count),
        tcp_flags=random.integers(256, size=count, dtype=np.uint8),
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("count", [1, 3, 70, 300])
def test_random_rules(kernels: PacketKernels, structure: type[Structure], count: int) -> None:
    random = np.random.default_rng(count)
    keys = random_keys(3000, random)
    rules = RuleSet.of(random_rules(count, random))
    expected = compile_rules(rules, [LinearScan]).classify(keys)
    found = kernels.classify(device_keys(keys, kernels), kernels.prepared(compile_rules(rules, [structure])))
    np.testing.assert_array_equal(found.cpu().numpy(), expected)
    if count > 1:
        assert len(np.unique(expected)) > 2


def test_rules_of_no_version_and_of_one(kernels: PacketKernels) -> None:
    keys = random_keys(100, np.random.default_rng(1))
    for rules, expected in (
        ([], np.full(100, -1)),
        ([Rule(family=4, source=0, source_length=32), Rule(family=4)], np.where(keys.version == 4, 1, -1)),
        ([Rule()], np.where(keys.version == 0, -1, 0)),
    ):
        found = kernels.classify(device_keys(keys, kernels), kernels.prepared(compile_rules(RuleSet.of(rules))))
        np.testing.assert_array_equal(found.cpu().numpy(), expected)


def test_narrow_and_wide_keys_are_the_same(kernels: PacketKernels) -> None:
    random = np.random.default_rng(5)
    keys = random_keys(2000, random)
    keys = keys[keys.version == 4]
    classifier = compile_rules(RuleSet.of(random_rules(100, random)))
    rules = kernels.prepared(classifier)
    for narrow in (False, True):
        found = kernels.classify(device_keys(keys, kernels, narrow=narrow), rules)
        np.testing.assert_array_equal(found.cpu().numpy(), classifier.classify(keys))
    bare = {
        "source": keys.source_low.astype(np.uint32),
        "destination": keys.destination_low.astype(np.uint32),
        **{name: getattr(keys, name) for name in ("source_port", "destination_port", "protocol")},
    }
    found = kernels.classify(DeviceKeys.of(batch_of(bare, kernels)), rules)
    plain = Keys.ipv4(keys.source_low, keys.destination_low, keys.source_port, keys.destination_port, keys.protocol)
    np.testing.assert_array_equal(found.cpu().numpy(), classifier.classify(plain))


@needs_captures
@pytest.mark.parametrize(("side", "capture"), [("outer", "01_many_protocols"), ("inner", "16_vxlan")])
def test_keys_of_packets(kernels: PacketKernels, side: str, capture: str) -> None:
    given = of_capture(next(path for path in truth.captures() if capture in path.name), 1000)
    packets = given.dissected()
    random = np.random.default_rng(2)
    keys = Keys.of(getattr(packets, side), packets.vlan_outer)
    some = [
        Rule(family=4, source=int(low), source_length=32, destination_ports=(int(port), 65535))
        for low, port in zip(random.choice(keys.source_low, 20), random.choice(keys.destination_port, 20), strict=True)
    ]
    classifier = compile_rules(RuleSet.of([*some, Rule(protocol=6, protocol_mask=255, tcp_flags=2, tcp_flags_mask=2)]))
    found = kernels.classify(kernels.keys(DeviceFrames.of(given, kernels._device), side), kernels.prepared(classifier))
    np.testing.assert_array_equal(found.cpu().numpy(), classifier.classify(keys))
    assert len(torch.unique(found)) > 2


def test_generated_packets_are_dissected_and_classified_alike(kernels: PacketKernels) -> None:
    """A million of them on a GPU, by seed, in pieces: headers of both paths, and the first rule of each packet."""
    count, piece = (20_000, 10_000) if on_host(kernels) else (1_000_000, 50_000)
    random = np.random.default_rng(7)
    rules: list[Rule] = random_rules(60, random)
    found_rules: set[int] = set()
    for seed in range(count // piece):
        given = changed(crafted(), piece, 1000 + seed)
        assert_same(kernels, given)
        packets = given.dissected()
        keys = Keys.of(packets.inner, packets.vlan_outer)
        if not seed:  # rules that some of them fall under
            rules = rules_of(keys, 200, random) + rules
        classifier = compile_rules(RuleSet.of(rules))
        expected = classifier.classify(keys)
        on_device = kernels.keys(DeviceFrames.of(given, kernels._device), "inner")
        found = kernels.classify(on_device, kernels.prepared(classifier))
        np.testing.assert_array_equal(found.cpu().numpy(), expected)
        found_rules.update(expected.tolist())
    assert len(found_rules) > 20
    assert -1 in found_rules


def rules_of(keys: Keys, count: int, random: np.random.Generator) -> list[Rule]:
    """Rules that packets of these keys fall under."""
    rules = []
    for row in random.choice(np.flatnonzero(keys.version), count).tolist():
        family = int(keys.version[row])
        bits = 32 if family == 4 else 128
        length = int(random.integers(bits // 2, bits + 1))
        address = int(keys.source_high[row]) << 64 | int(keys.source_low[row])
        rules.append(
            Rule(
                family=family,
                source=address >> (bits - length) << (bits - length),
                source_length=length,
                destination_ports=(int(keys.destination_port[row]), 0xFFFF),
                protocol=int(keys.protocol[row]),
                protocol_mask=0xFF,
            )
        )
    return rules


@needs_data
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", [*SMALL, *MIDDLE, *LARGE])
def test_every_header_of_every_set(kernels: PacketKernels, name: str, structure: type[Structure]) -> None:
    if on_host(kernels) and (name in LARGE or (structure is LinearScan and name not in SMALL)):
        pytest.skip("it takes too long without a GPU")
    rules, keys, expected = load_set(name)
    if len(rules) > structure.MOST_RULES:
        pytest.skip("the structure does not take so many rules")
    classifier = compile_rules(rules, [structure])
    found = kernels.classify(device_keys(keys, kernels), kernels.prepared(classifier))
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


# --- back ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [7, 1009, 65_537])
def test_flows_are_dealt_alike(kernels: PacketKernels, slots: int) -> None:
    keys = random_keys(3000, np.random.default_rng(3))
    table = MaglevTable.of({"a": 1, "b": 2, "c": 0.5}, slots)
    found = kernels.balance(device_keys(keys, kernels), kernels.slots(table))
    np.testing.assert_array_equal(found.cpu().numpy(), table.lookup(flow_hashes(keys)))

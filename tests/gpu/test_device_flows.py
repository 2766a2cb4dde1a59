"""Flows kept on a device are netio's bit by bit: by kernels compiled for the host, on a GPU where there is one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.gpu.cuda import CudaDevice  # noqa: E402 - only where the extra is
from aikoryu.gpu.device import Device  # noqa: E402
from aikoryu.gpu.packets import device_flows  # noqa: E402
from aikoryu.gpu.packets.columns import column_of  # noqa: E402
from aikoryu.gpu.packets.device_flow_runs import sorted_rows  # noqa: E402
from aikoryu.gpu.packets.device_flows import DeviceFlowTable  # noqa: E402
from aikoryu.gpu.packets.flow_layout import CHUNK  # noqa: E402
from aikoryu.gpu.packets.flow_store import TableSpec  # noqa: E402
from aikoryu.gpu.packets.flow_tables import DeviceFlows, HostFlows, flows_on  # noqa: E402
from aikoryu.gpu.packets.kernels import PacketKernels  # noqa: E402
from aikoryu.netio import flow_table  # noqa: E402
from aikoryu.netio.capture import open_capture  # noqa: E402
from aikoryu.netio.flow_cuts import BadTable, Timeouts  # noqa: E402
from aikoryu.netio.flow_key import FlowKeys, KeyChoice  # noqa: E402
from aikoryu.netio.flow_table import FlowTable  # noqa: E402
from aikoryu.netio.flows import NAMES, Flows, Reason  # noqa: E402
from aikoryu.netio.packets import HEADER_DTYPES, NO_VLAN, PACKET_DTYPES, Headers, Packets  # noqa: E402

from ..netio import truth  # noqa: E402
from . import host_kernels  # noqa: E402
from .packet_bytes import crafted, frames  # noqa: E402

Array = np.ndarray[Any, Any]
SECOND = 10**9
SYN, SYN_ACK, ACK, FIN, RST = 2, 18, 16, 17, 4
MOST_U4 = 2**32 - 1


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> PacketKernels:
    if request.param == "host":
        return on_host()
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = CudaDevice("cuda:0", threads=1)
    device.open()
    pytest.importorskip("cupy")
    made = PacketKernels.on(device)
    assert made is not None, "CuPy is there"
    return made


def on_host(*, backwards: bool = False) -> PacketKernels:
    if host_kernels.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    return PacketKernels(Device("cpu", 1), host_kernels.compiled(backwards=backwards))


class Traffic:
    """Packets as both tables take them.

    Attributes:
        packets: as netio has them.
        time_ns, wire: (n,) int64 and uint32.
    """

    def __init__(self, columns: dict[str, Array], time_ns: Array, wire: Array) -> None:
        headers = Headers(**{name: columns[name] for name in HEADER_DTYPES})
        # What the outer headers say is the inner ones' turned round.
        turned = {"src_low": "dst_low", "dst_low": "src_low", "sport": "dport", "dport": "sport"}
        outer = Headers(**{name: columns[turned.get(name, name)] for name in HEADER_DTYPES})
        self.packets = Packets(**{name: columns[name] for name in PACKET_DTYPES}, outer=outer, inner=headers)
        self.time_ns = time_ns
        self.wire = wire
        self._columns = columns

    def __len__(self) -> int:
        return len(self.time_ns)

    def __getitem__(self, rows: slice) -> Traffic:
        columns = {name: column[rows] for name, column in self._columns.items()}
        return Traffic(columns, self.time_ns[rows], self.wire[rows])


def traffic(
    seed: int,
    count: int = 3000,
    flows: int = 200,
    *,
    step_ns: int = 2 * SECOND,
    jitter_ns: int = 0,
    tie: int = 1,
    skew: float = 1.0,
    most_wire: int = 1500,
) -> Traffic:
    """Packets of all kinds, of which no two flows have the same share.

    Args:
        seed: of all that is random.
        count: how many packets.
        flows: of how many pairs of ends.
        step_ns: time between two packets, on average.
        jitter_ns: how far times lie off their order.
        tie: so many packets after each other have the same time.
        skew: 1 for flows of equal shares; the larger, the more packets have the first.
        most_wire: bytes on the wire.
    """
    random = np.random.default_rng(seed)
    pair = (random.random(count) ** skew * flows).astype(np.uint64)
    is_back = random.random(count) < 0.4
    version = random.choice(np.array([4, 4, 6], np.uint8), size=flows + 1)[pair]
    kind = random.choice(np.array([6, 6, 6, 17, 1, 132, 58], np.uint8), size=flows + 1)[pair]
    version[random.random(count) < 0.03] = 0
    # Some flows are of one end with itself, and some of two ports of one address.
    one, other = (pair % np.uint64(50), np.uint64(1)), (np.uint64(20) + pair % np.uint64(7), pair % np.uint64(40))
    columns = {name: np.zeros(count, dtype) for name, dtype in (PACKET_DTYPES | HEADER_DTYPES).items()}
    high = np.uint64(2**63) * (pair % np.uint64(2))
    for end, address in (("src", np.where(is_back, other[0], one[0])), ("dst", np.where(is_back, one[0], other[0]))):
        columns[f"{end}_low"][:] = address
        columns[f"{end}_high"][:] = np.where(version == 6, high, np.uint64(0))
    columns["sport"][:] = np.where(is_back, other[1], one[1])
    columns["dport"][:] = np.where(is_back, one[1], other[1])
    columns["version"][:], columns["protocol"][:] = version, kind
    flags = random.choice(np.array([SYN, SYN_ACK, ACK, ACK, ACK, FIN, RST, 0xC1, 6, 3, 5, 0], np.uint16), size=count)
    columns["tcp_flags"][:] = np.where(kind == 6, flags, 0)
    columns["seq"][:] = np.where(kind == 6, random.integers(3, size=count), 0)
    columns["payload_wire"][:] = random.integers(3, size=count)
    columns["total_length"][:] = random.integers(2**32, size=count)
    columns["fragment_offset"][:] = np.where(random.random(count) < 0.1, 8, 0)
    is_icmp = (kind == 1) | (kind == 58)
    for name in ("icmp_type", "icmp_code"):
        columns[name][:] = np.where(is_icmp, random.integers(3, size=count), 0)
    columns["vlan_outer"][:] = random.choice(np.array([NO_VLAN, 1, 4095]), size=flows + 1)[pair]
    columns["vlan_inner"][:] = random.choice(np.array([NO_VLAN, 1]), size=count)
    columns["tunnel"][:] = random.integers(3, size=flows + 1)[pair]
    columns["tunnel_id"][:] = random.choice(np.array([0, 7, MOST_U4]), size=flows + 1)[pair]
    time_ns = np.cumsum(random.integers(2 * step_ns + 1, size=count))
    time_ns = time_ns[np.arange(count) // tie * tie]
    if jitter_ns:
        time_ns = time_ns + random.integers(-jitter_ns, jitter_ns, size=count)
    wire = random.integers(60, most_wire + 1, size=count).astype(np.uint32)
    return Traffic(columns, time_ns.astype(np.int64), wire)


class Both:
    """Two tables that are given the same, and are compared whenever they answer."""

    def __init__(
        self,
        kernels: PacketKernels,
        key: KeyChoice | None = None,
        timeouts: Timeouts | None = None,
        capacity: int = 4096,
    ) -> None:
        self.host = FlowTable(key, timeouts, capacity)
        self.device = DeviceFlowTable(kernels, key, timeouts, capacity)
        self._kernels = kernels

    def update(self, given: Traffic) -> Flows:
        return self._same(self.host.update(given.packets, given.time_ns, given.wire), add(self.device, given))

    def expire(self, now_ns: int) -> Flows:
        return self._same(self.host.expire(now_ns), self.device.expire(now_ns))

    def flush(self) -> Flows:
        return self._same(self.host.flush(), self.device.flush())

    def run(self, given: Traffic, cuts: list[int]) -> Flows:
        """All flows of packets that come in these batches."""
        bounds = [0, *sorted(cuts), len(given)]
        return Flows.joined([*(self.update(given[first:last]) for first, last in pairwise(bounds)), self.flush()])

    def _same(self, expected: Flows, found: Flows) -> Flows:
        assert_same(found, expected)
        for name in ("packets", "ignored"):
            assert getattr(self.device, name) == getattr(self.host, name)
        assert len(self.device) == len(self.host)
        return found


def add(table: DeviceFlowTable, given: Traffic) -> Flows:
    device = table._kernels.device
    columns = {name: on_device(device, column_of(given.packets, name)) for name in table.columns}
    return table.update(columns, on_device(device, given.time_ns), on_device(device, given.wire))


def on_device(device: Device, column: Array) -> Any:
    return torch.from_numpy(column.copy()).to(device.place)


def assert_same(found: Flows, expected: Flows) -> None:
    """All columns agree, bit by bit."""
    for name in NAMES:
        column, theirs = getattr(expected, name), getattr(found, name)
        assert theirs.dtype == column.dtype, name
        np.testing.assert_array_equal(theirs, column, name)


def random_cuts(seed: int, count: int, many: int) -> list[int]:
    random = np.random.default_rng(seed)
    cuts: list[int] = random.integers(count + 1, size=many).tolist()
    return cuts


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ties": {"tie": 40},
    "clocks that go back": {"jitter_ns": 300 * SECOND},
    "one flow with most": {"skew": 20.0, "step_ns": SECOND // 10},
    "every packet a flow": {"flows": 100_000},
    "large frames": {"most_wire": MOST_U4, "flows": 20},
}
LIMITS = [
    Timeouts(),
    Timeouts(idle_s=30, active_s=100),
    Timeouts(idle_s=None, active_s=7),
    Timeouts(idle_s=1, active_s=None),
    Timeouts(idle_s=1e-9, active_s=1e-9),
    Timeouts(None, None),
]


@pytest.mark.parametrize("timeouts", LIMITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_into_batches_gives_the_flows_of_the_host(
    kernels: PacketKernels, kind: str, timeouts: Timeouts
) -> None:
    given = traffic(1, **KINDS[kind])
    at_once = Both(kernels, timeouts=timeouts).run(given, [])
    assert_same(Both(kernels, timeouts=timeouts).run(given, random_cuts(2, len(given), 25)), at_once)


@pytest.mark.parametrize("timeouts", LIMITS[:3], ids=str)
def test_threads_may_run_in_any_order(timeouts: Timeouts) -> None:
    given = traffic(6, 4000, 1500, skew=3, jitter_ns=SECOND)
    both = Both(on_host(backwards=True), timeouts=timeouts, capacity=500)
    both.update(given[:1000])
    both.expire(int(given.time_ns[1000]))
    both.run(given[1000:], [1500])


@pytest.mark.parametrize("choice", [KeyChoice("outer"), KeyChoice(vlan=True), KeyChoice("outer", True, True)], ids=str)
def test_what_names_a_flow(kernels: PacketKernels, choice: KeyChoice) -> None:
    flows = Both(kernels, choice, Timeouts(100, 300)).run(traffic(5), [700, 701, 2000])
    assert len(np.unique(flows.tunnel)) == (3 if choice.tunnel else 1)
    assert len(np.unique(flows.vlan_outer)) == (3 if choice.vlan else 1)
    assert {*np.unique(flows.version).tolist()} == {4, 6}
    assert flows.is_fragment.any()
    assert flows.is_flipped.any()
    assert flows.icmp_type.any()


@pytest.mark.parametrize("timeouts", LIMITS, ids=str)
def test_packets_of_one_flow_from_chunk_to_chunk(kernels: PacketKernels, timeouts: Timeouts) -> None:
    """Chunks without a cut, cut at their ends, and cut by a time-out that began chunks before."""
    for step_ns in (SECOND // 1000, SECOND // 20, SECOND // 2, 5 * SECOND):
        given = traffic(8, 6 * CHUNK, 1, step_ns=step_ns, jitter_ns=3 * step_ns)
        flows = Both(kernels, timeouts=timeouts).run(given, [CHUNK - 1, CHUNK, 3 * CHUNK + 7])
        assert int(flows.packets.sum()) == len(given) - int((given.packets.inner.version == 0).sum())


def test_letters_from_chunk_to_chunk(kernels: PacketKernels) -> None:
    """Few packets have letters, so that they lie chunks apart, and their sequence numbers change or do not."""
    random = np.random.default_rng(3)
    for share in (0.002, 0.01, 0.3):
        given = traffic(4, 20 * CHUNK, 1, step_ns=1000)
        columns = given._columns
        columns["version"][:], columns["protocol"][:], columns["fragment_offset"][:] = 4, 6, 0
        columns["payload_wire"][:] = random.random(len(given)) < 0.5
        is_plain = random.random(len(given)) > share
        columns["tcp_flags"][is_plain] = ACK
        Both(kernels).run(given, [])


@pytest.mark.parametrize("capacity", [1, 3, 64, 500])
@pytest.mark.parametrize("kind", ["plain", "ties", "clocks that go back"])
def test_a_full_table_ends_the_flows_that_the_host_ends(kernels: PacketKernels, kind: str, capacity: int) -> None:
    given = traffic(11, min(2500, 100 * capacity), 1500, **KINDS[kind])
    flows = Both(kernels, timeouts=Timeouts(None, 400), capacity=capacity).run(given, random_cuts(1, len(given), 9))
    assert Reason.FULL in flows.reason


def test_pieces_of_a_full_table_are_those_of_the_host(kernels: PacketKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is room more is added at once, from then on as much as the host adds."""
    monkeypatch.setattr(flow_table, "PIECE", 100)
    monkeypatch.setattr(device_flows, "PIECE", 100)
    given = traffic(12, 3000, 2000)
    both = Both(kernels, timeouts=Timeouts(None, None), capacity=900)
    assert both.device._piece() == 900
    assert Reason.FULL in both.run(given, [1050]).reason
    assert Both(kernels, capacity=70).device._piece() == 70


def test_time_outs_are_looked_for_as_on_the_host(kernels: PacketKernels) -> None:
    given = traffic(13, 4000, 400, tie=3, jitter_ns=SECOND)
    both = Both(kernels, timeouts=Timeouts(200, 350), capacity=100)
    reasons = set()
    for first in range(0, len(given), 250):
        ended = [both.expire(int(given.time_ns[first])), both.update(given[first : first + 250])]
        reasons |= {*Flows.joined(ended).reason.tolist()}
    both.expire(-(2**63))
    both.expire(2**63 - 1)
    both.flush()
    assert reasons == {Reason.IDLE, Reason.ACTIVE, Reason.FULL}


def test_times_as_far_apart_as_there_are(kernels: PacketKernels) -> None:
    given = traffic(14, 600, 20)
    random = np.random.default_rng(1)
    given.time_ns[:] = random.choice(np.array([-(2**63), -1, 0, 2**63 - 1]), size=len(given))
    for timeouts in LIMITS:
        both = Both(kernels, timeouts=timeouts)
        both.update(given[:300])
        both.expire(5)
        both.run(given[300:], [])


def test_flows_come_and_go_and_the_index_is_renewed(kernels: PacketKernels) -> None:
    both = Both(kernels, timeouts=Timeouts(idle_s=1), capacity=64)
    given = traffic(15, 8000, 100_000, step_ns=SECOND // 8)
    for first in range(0, len(given), 40):
        both.update(given[first : first + 40])
        both.expire(int(given.time_ns[first + 39]))
    assert both.host.packets > 64 * 100


def test_keys_whose_hashes_agree_are_told_apart(kernels: PacketKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word of each is chosen so that all have one hash, and one that looks like what has left the index."""
    monkeypatch.setattr("secrets.randbits", lambda bits: 7)
    given = traffic(16, 2000, 40)
    columns = given._columns
    columns["version"][:], columns["protocol"][:], columns["fragment_offset"][:] = 4, 6, 0
    columns["src_high"][:], columns["dst_high"][:], columns["tunnel"][:] = 0, 0, 0
    last = last_words(given)
    columns["vlan_outer"][:], columns["vlan_inner"][:] = (
        last >> np.uint64(48),
        last >> np.uint64(32) & np.uint64(0xFFFF),
    )
    columns["tunnel_id"][:] = last & np.uint64(MOST_U4)
    both = Both(kernels, KeyChoice(vlan=True, tunnel=True), Timeouts(300, 900))
    asked: list[int] = []

    def counted(words: Any) -> Any:
        asked.append(len(words))
        return sorted_rows(words)

    monkeypatch.setattr("aikoryu.gpu.packets.device_flow_runs.sorted_rows", counted)
    ended = [both.update(given[:500]), both.expire(int(given.time_ns[499]))]
    assert len(both.host)
    flows = Flows.joined([*ended, both.run(given[500:], [100])])
    assert len(np.unique(flows.tunnel_id)) > 20
    assert asked == [500, 100, 1400]


def last_words(given: Traffic) -> Array:
    """Of each key, what gives it a hash of 5 << 32, which all shall have: (n,) uint64."""
    factor = 0x9E3779B97F4A7C15
    inverse = pow(factor, -1, 2**64)
    mixed = (5 << 32) * inverse % 2**64
    wanted = (mixed ^ mixed >> 32) * inverse % 2**64
    words = FlowKeys.of(given.packets, KeyChoice(tunnel=True), slice(None)).words
    before = np.zeros(len(given), np.uint64)
    for word in (np.full(len(given), 7, np.uint64), *words[:5]):
        before = (before ^ word) * np.uint64(factor)
        before ^= before >> np.uint64(32)
    return before ^ np.uint64(wanted)


def test_a_table_goes_on_where_another_was(kernels: PacketKernels) -> None:
    """On the host or on a device, whichever had it before."""
    given = traffic(17, 3000, 300)
    limits = Timeouts(500, 300)
    first = Both(kernels, timeouts=limits, capacity=150)
    first.update(given[:1000])
    first.expire(int(given.time_ns[1000]))
    host, device = first.host.state(), first.device.state()
    assert (device.packets, device.ignored) == (host.packets, host.ignored)
    assert (device.records["packets"] == 0).all(axis=1).any()
    for one, other in ((host, device), (device, host)):
        second = Both(kernels, timeouts=limits, capacity=150)
        second.host.restore(one)
        second.device.restore(other)
        ended = [second.update(given[1000:2000]), second.expire(int(given.time_ns[2000])), second.update(given[2000:])]
        assert {*Flows.joined(ended).reason.tolist()} == {Reason.ACTIVE, Reason.FULL}
        assert second.flush().is_continued.any()


def test_a_state_that_is_too_large_is_refused(kernels: PacketKernels) -> None:
    table = Both(kernels)
    table.update(traffic(18, 100, 1000))
    with pytest.raises(BadTable, match=r"\d+ flows for a table of 3: give a larger"):
        DeviceFlowTable(kernels, capacity=3).restore(table.device.state())


@pytest.mark.parametrize("has_wire", [True, False])
def test_frames_are_dissected_and_kept_where_they_are(kernels: PacketKernels, has_wire: bool) -> None:
    """From raw bytes on: nothing but flows that ended comes to the host."""
    packets, links = zip(*(each for each in crafted() for _ in range(3)), strict=True)
    sizes = np.array([len(packet) + 7 * has_wire for packet in packets], np.uint32)
    given = frames(list(packets), np.array(links, np.uint16), sizes if has_wire else None)
    time_ns = np.arange(len(packets)) * SECOND
    host, device = FlowTable(), DeviceFlowTable(kernels, capacity=1000)
    assert_same(device.update_frames(given, time_ns), host.update(given.dissected(), time_ns, sizes))
    assert_same(device.flush(), host.flush())
    assert device.ignored == host.ignored > 0


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
def test_the_flows_of_captures(kernels: PacketKernels) -> None:
    choice, limits = KeyChoice(vlan=True, tunnel=True), Timeouts(10, 30)
    host, device = FlowTable(choice, limits), DeviceFlowTable(kernels, choice, limits)
    for path in truth.captures():
        with open_capture(path) as capture:
            index = capture.index[:2000]
            given = frames([capture.packet(row) for row in range(len(index))], index.link, index.wire)
        found = device.update_frames(given, index.time_ns)
        assert_same(found, host.update(given.dissected(), index.time_ns, index.wire))
    assert len(host) > 1000
    assert_same(device.flush(), host.flush())


def test_an_engine_with_kernels_keeps_its_flows_on_the_device(
    kernels: PacketKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(flows_on(Device("cpu", 1))) is HostFlows
    monkeypatch.setattr(PacketKernels, "on", lambda device: kernels)
    host, device = HostFlows(), flows_on(kernels.device)
    assert isinstance(device, DeviceFlows)
    spec = TableSpec("outer", True, True, 5.0, None, 100)
    packets, links = zip(*crafted(), strict=True)
    sizes = np.array([len(packet) for packet in packets], np.uint32)
    given, time_ns = frames(list(packets), np.array(links, np.uint16), sizes), np.arange(len(packets)) * SECOND
    tables = [(path, path.table(spec)) for path in (host, device)]
    expected, found = (path.update(table, given, time_ns) for path, table in tables)
    assert len(expected)
    assert_same(found, expected)
    assert_same(tables[1][1].flush(), tables[0][1].flush())


def test_flows_leave_in_parts(kernels: PacketKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_flows, "MOST", 7)
    both = Both(kernels, timeouts=Timeouts(100, 50))
    given = traffic(20, 500)
    both.update(given)
    assert len(both.expire(int(given.time_ns[-1]))) > 7
    host, device = FlowTable(), DeviceFlowTable(kernels)
    host.restore(both.device.state())
    device.restore(both.host.state())
    assert_same(device.flush(), host.flush())
    assert len(both.flush()) > 7


def test_no_packets_and_an_empty_table(kernels: PacketKernels) -> None:
    both = Both(kernels)
    both.update(traffic(19)[:0])
    both.expire(0)
    given = traffic(19, 5)
    given.packets.inner.version[:] = 0
    both.update(given)
    assert both.device.ignored == 5
    assert not len(both.flush())
    state = both.device.state()
    assert len(state.records) == 0
    DeviceFlowTable(kernels).restore(state)


def test_memory_of_a_table(kernels: PacketKernels) -> None:
    table = DeviceFlowTable(kernels, capacity=1 << 12)
    assert table.bytes / (1 << 12) == 504 + 2 * 8 + 1 + 8 + 2 * 8


@pytest.mark.parametrize("capacity", [0, -1, 2**31 + 1])
def test_a_capacity_that_is_not_allowed_is_named(kernels: PacketKernels, capacity: int) -> None:
    with pytest.raises(BadTable, match=f"{capacity} flows: give a capacity"):
        DeviceFlowTable(kernels, capacity=capacity)

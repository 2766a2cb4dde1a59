"""Rule sets by name, packets classified by them, and flows balanced, over the bus."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.agents import Bus, session
from aikoryu.agents.rules import RuleInfo
from aikoryu.bus.errors import BadColumn, BadParameter, BadValue, Busy, NoWorker, TooLarge
from aikoryu.bus.memory import MemoryBus
from aikoryu.config import BusSettings, ModelSettings, ResidentSettings, Settings, WorkerSettings
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.host import ChildEngine
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.packets import rule_store
from aikoryu.gpu.packets.rule_store import Part, RuleStore
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.netio.keys import Keys
from aikoryu.netio.rule_text import read

from ..netio.test_classify import load as load_set
from ..netio.test_classify import needs_data

torch = pytest.importorskip("torch", reason="needs the extra `worker`")

EDGE = """
web   tcp from any to 192.0.2.7 port 443
dns   udp from any to any port 53
lab   any from 10.0.0.0/8 to any vlan 5
six   any from 2001:db8::/32 to ::/0
flood tcp from any to any flags S/SA
"""
SETTINGS = Settings(
    bus=BusSettings(partitions=8),
    models=ModelSettings(embed=()),
    worker=WorkerSettings(name="w1"),
    residents=ResidentSettings(host_bytes=64 << 20),
)


class Served:
    """A worker, and the bus it is on."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.memory = MemoryBus()
        self.settings = settings
        self.engine = InlineEngine(load(catalogue_of(settings)), slab_bytes=80 << 20)
        self.worker = Worker(self.memory.connect("_WORKER"), settings, [self.engine])


@pytest.fixture
async def served(packet_path: None) -> AsyncIterator[Served]:
    made = Served()
    await made.worker.start()
    yield made
    await made.worker.stop()


@pytest.fixture
async def bus(served: Served) -> AsyncIterator[Bus]:
    async with session(served.memory.connect(), served.settings) as made:
        yield made


def ipv4(*rows: tuple[str, str, int, int, int]) -> Keys:
    """Keys from source, destination, ports and protocol."""
    columns = list(zip(*rows, strict=True))
    number = [[int.from_bytes(map(int, text.split("."))) for text in column] for column in columns[:2]]
    return Keys.ipv4(*number, *columns[2:])


KEYS = ipv4(
    ("10.1.1.1", "192.0.2.7", 5000, 443, 6),
    ("10.1.1.1", "192.0.2.8", 5000, 53, 17),
    ("10.1.1.1", "192.0.2.8", 5000, 22, 6),
)


def frame(destination: bytes, vlan: int | None = None) -> bytes:
    """A SYN from 10.1.1.1 to port 443."""
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2)
    ip = b"\x45\0\0\x28" + bytes(4) + b"\x40\x06\0\0" + bytes([10, 1, 1, 1]) + destination
    return bytes(12) + tag + b"\x08\x00" + ip + b"\x13\x88\x01\xbb" + bytes(8) + b"\x50\x02" + bytes(6)


# --- named sets -------------------------------------------------------------------------------------------------------


async def test_a_set_is_put_listed_and_deleted(bus: Bus) -> None:
    rules = read(EDGE)
    info = await bus.packets.rules.put("edge", EDGE)
    assert info == RuleInfo("edge", 1, rules.digest, 5)
    assert await bus.packets.rules.put("other", rules) == RuleInfo("other", 1, rules.digest, 5)
    assert await bus.packets.rules.list() == [info, RuleInfo("other", 1, rules.digest, 5)]
    assert await bus.packets.rules.delete("edge")
    assert not await bus.packets.rules.delete("edge")
    assert [each.name for each in await bus.packets.rules.list()] == ["other"]


async def test_versions_count_what_changes(bus: Bus) -> None:
    versions = [(await bus.packets.rules.put("edge", text)).version for text in (EDGE, EDGE, EDGE + "# said\n", "")]
    assert versions == [1, 1, 1, 2]


async def test_texts_of_files_and_of_others_are_read(bus: Bus, tmp_path: Path) -> None:
    line = "@1.2.3.0/24 192.168.0.36/32 0 : 65535 80 : 80 6/0xfe\n"
    (tmp_path / "rules").write_text(line)
    assert (await bus.packets.rules.put("a", tmp_path / "rules")).rules == 1
    with pytest.raises(BadParameter, match="line 1: it is no ClassBench rule"):
        await bus.packets.rules.put("a", line.replace("6/0xfe", "6/0xfe x"), form="classbench")


async def test_bad_lines_are_named_and_nothing_changes(bus: Bus) -> None:
    info = await bus.packets.rules.put("edge", EDGE)
    with pytest.raises(BadParameter, match=r"(?s)nothing was changed.*line 2: .*write 10.0.0.0/8"):
        await bus.packets.rules.put("edge", "a tcp from any to any\na tcp from 10.0.0.1/8 to any\n")
    assert await bus.packets.rules.list() == [info]


@pytest.mark.parametrize("name", ["", "a b", "../x", "a.b", "x" * 65, "a~b"])
async def test_names_are_letters_and_digits(bus: Bus, name: str) -> None:
    for asking in (bus.packets.rules.put(name, EDGE), bus.packets.rules.delete(name)):
        with pytest.raises(BadValue, match="is no name of rules"):
            await asking


async def test_long_texts_come_in_parts(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.agents.rules.PART_BYTES", 100)
    text = "".join(f"a{n} tcp from any to 10.0.{n}.0/24 port {n}  # ü\n" for n in range(200))
    assert await bus.packets.rules.put("long", text) == RuleInfo("long", 1, read(text).digest, 200)
    with pytest.raises(BadParameter, match="line 201: 'x' is no protocol"):
        await bus.packets.rules.put("long", text + "b x\n")


async def test_nobody_keeps_sets(bus: Bus) -> None:
    other = Served(Settings(models=ModelSettings(embed=()), residents=ResidentSettings(partitions="none")))
    await other.worker.start()
    async with session(other.memory.connect(), other.settings) as alone:
        with pytest.raises(NoWorker, match=r"residents\.partitions is not `none`"):
            await alone.packets.rules.list()
    await other.worker.stop()


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> RuleStore:
        return RuleStore(tmp_path / "rules")

    def test_parts_come_in_any_order_and_again(self, store: RuleStore) -> None:
        lines = EDGE.splitlines(keepends=True)
        order = [3, 0, 3, 5, 1, 2]
        assert [store.add("edge", lines[n], None, Part(9, n, 6)) for n in order] == [None] * 6
        info = store.add("edge", lines[4], None, Part(9, 4, 6))
        assert info is not None
        assert (info.version, info.digest) == (1, read(EDGE).digest)
        assert store.add("edge", lines[2], None, Part(9, 2, 6)) == info, "the answer may have been lost"
        assert store.read("edge")[1] == read(EDGE)

    def test_set_appears_with_its_last_part(self, store: RuleStore) -> None:
        store.put("edge", EDGE, None)
        store.add("edge", "a any from any to any\n", None, Part(9, 0, 2))
        assert store.read("edge")[1] == read(EDGE)

    @pytest.mark.parametrize("part", [Part(0, 0, 2), Part(1, 2, 2), Part(1, 0, 0), Part(1, 0, 4097)])
    def test_parts_must_be_some(self, store: RuleStore, part: Part) -> None:
        with pytest.raises(BadValue, match="count from 0"):
            store.add("edge", EDGE, None, part)

    def test_text_of_which_no_part_comes_is_given_up(self, store: RuleStore, tmp_path: Path) -> None:
        store.add("edge", EDGE, None, Part(1, 0, 2))
        (left,) = (tmp_path / "rules").glob("edge~*")
        os.utime(left, (0, 0))
        store.add("edge", EDGE, None, Part(2, 0, 2))
        assert not left.exists()

    def test_what_is_kept_is_bounded(self, store: RuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rule_store, "MOST_SETS", 1)
        monkeypatch.setattr(rule_store, "MOST_UPLOADS", 1)
        monkeypatch.setattr(rule_store, "MOST_TEXT_BYTES", 2 * len(EDGE))
        store.put("a", EDGE, None)
        with pytest.raises(Busy, match="1 rule sets are here"):
            store.put("b", EDGE, None)
        with pytest.raises(TooLarge, match="bytes of text"):
            store.put("a", 3 * EDGE, None)
        store.add("a", EDGE, None, Part(1, 0, 3))
        with pytest.raises(Busy, match="1 texts of rules are on their way"):
            store.add("a", EDGE, None, Part(2, 0, 3))
        with pytest.raises(TooLarge, match="bytes of text"):
            store.add("a", 2 * EDGE, None, Part(1, 1, 3))
        store.add("a", EDGE, None, Part(2, 0, 3))

    def test_two_engines_count_one_sequence_of_versions(self, store: RuleStore, tmp_path: Path) -> None:
        other = RuleStore(tmp_path / "rules")
        texts = [f"a{n} any from any to any" for n in range(3)]
        versions = [
            which.put("edge", text, None).version for which, text in zip((store, other, store), texts, strict=True)
        ]
        assert versions == [1, 2, 3]
        assert other.list()[0].version == 3


# --- classification ---------------------------------------------------------------------------------------------------


async def test_keys_are_classified(bus: Bus) -> None:
    await bus.packets.rules.put("edge", EDGE)
    found = await bus.packets.classify(KEYS, rules="edge", labels=True)
    assert (found.rule.tolist(), found.label, found.version.tolist()) == ([0, 1, -1], ["web", "dns", ""], [1, 1, 1])
    assert (found.rule.dtype.name, found.version.dtype.name) == ("int32", "uint32")
    assert (await bus.packets.classify(KEYS, rules="edge")).label is None


async def test_keys_of_both_versions_with_tags_and_flags(bus: Bus) -> None:
    await bus.packets.rules.put("edge", EDGE)
    six = Keys.ipv6([(0x20010DB8 << 32, 1)] * 2, [(0, 1)] * 2, [1] * 2, [2] * 2, [17] * 2)
    both = Keys(**{name: np.concatenate([getattr(KEYS, name), getattr(six, name)]) for name in vars(KEYS)})
    both.vlan[2] = 5
    both.version[4] = 0
    assert (await bus.packets.classify(both, rules="edge")).rule.tolist() == [0, 1, 2, 3, -1]
    assert (await bus.packets.classify(six, rules="edge")).rule.tolist() == [3, 3]
    both.tcp_flags[:] = 2
    both.vlan[2] = 6
    assert (await bus.packets.classify(both[:3], rules="edge")).rule.tolist() == [0, 1, 4]


async def test_frames_are_dissected_first(bus: Bus) -> None:
    await bus.packets.rules.put("edge", EDGE)
    frames = [frame(b"\xc0\0\x02\x07"), frame(b"\xc0\0\x02\x08", 5), frame(b"\xc0\0\x02\x08")[:20]]
    assert (await bus.packets.classify(frames, rules="edge")).rule.tolist() == [0, 2, -1]
    outside = bytes(12) + b"\x08\0\x45\0\0\x3c" + bytes(4) + b"\x40\x04\0\0" + bytes(8)
    tunnelled = [outside + frame(b"\xc0\0\x02\x07")[14:]]
    assert (await bus.packets.classify(tunnelled, rules="edge")).rule.tolist() == [-1]
    assert (await bus.packets.classify(tunnelled, rules="edge", headers="inner")).rule.tolist() == [0]


async def test_nothing_is_classified_as_nothing(bus: Bus) -> None:
    await bus.packets.rules.put("edge", EDGE)
    nothing: Any
    for nothing in ([], KEYS[:0]):
        found = await bus.packets.classify(nothing, rules="edge", labels=True)
        assert (found.rule.tolist(), found.version.tolist(), found.label) == ([], [], [])


async def test_unknown_set_is_told(bus: Bus) -> None:
    with pytest.raises(BadParameter, match=r"no rule set 'edge' is here: put it with packets\.rules\.put"):
        await bus.packets.classify(KEYS, rules="edge")


ADDRESS = {"source": np.uint32(1), "destination": np.uint32(2)}
PORTS = {"source_port": np.uint16(1), "destination_port": np.uint16(2), "protocol": np.uint8(6)}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "columns are none: send raw packets as `frame`"),
        (ADDRESS, "or keys as source, destination, source_port, destination_port, protocol"),
        ({**ADDRESS, **PORTS, "frame": b""}, "send raw packets as `frame`"),
        ({**ADDRESS, **PORTS, "link": np.uint16(1)}, "send raw packets as `frame`"),
        ({**ADDRESS, **PORTS, "version": np.uint8(4)}, "leave `version` out"),
        ({**PORTS, "source": np.zeros(3, "u8"), "destination": np.zeros(3, "u8")}, "addresses are u8.3.: send u4"),
        ({**PORTS, "source": np.uint64(3), "destination": np.uint64(3)}, "addresses are u8: send u4"),
        ({**ADDRESS, **PORTS, "dport": np.uint16(1)}, "column 'dport' is not known here"),
    ],
)
async def test_other_columns_are_refused(bus: Bus, row: dict[str, Any], told: str) -> None:
    await bus.packets.rules.put("edge", EDGE)
    with pytest.raises(BadColumn, match=told):
        await bus.call(bus.packets.rules.operation("classify", "edge"), row, {"rules": "edge"})


async def test_batch_sees_one_version(served: Served, bus: Bus) -> None:
    """Rows that wait together while rules are put before and after them are of one version each."""
    await bus.packets.rules.put("edge", EDGE)
    served.engine.hold = True
    first = asyncio.ensure_future(bus.packets.classify(KEYS, rules="edge"))
    put = asyncio.ensure_future(bus.packets.rules.put("edge", "all any from any to any\n"))
    for _ in range(20):
        await asyncio.sleep(0)
    served.engine.hold = False
    served.engine.release()
    await put
    second = await bus.packets.classify(KEYS, rules="edge")
    assert (second.rule.tolist(), second.version.tolist()) == ([0, 0, 0], [2, 2, 2])
    assert len(set((await first).version.tolist())) == 1


async def test_changes_are_made_again_when_an_engine_is_lost(served: Served, bus: Bus) -> None:
    async def through_a_loss(change: Awaitable[Any]) -> Any:
        served.engine.hold = True
        before = len(served.engine.jobs)
        made = asyncio.ensure_future(change)
        while len(served.engine.jobs) == before:  # noqa: ASYNC110 - the front hands it over in a turn of this loop
            await asyncio.sleep(0)
        served.engine.hold = False
        served.engine.lose()
        return await made

    info = await through_a_loss(bus.packets.rules.put("edge", EDGE))
    assert await bus.packets.rules.list() == [info]
    assert await through_a_loss(bus.packets.rules.delete("edge"))
    assert await bus.packets.rules.list() == []


async def test_rules_survive_an_engine_that_dies(tmp_path: Path) -> None:
    settings = Settings(
        bus=BusSettings(partitions=8),
        models=ModelSettings(embed=()),
        worker=WorkerSettings(name="w1", device="cpu"),
        residents=ResidentSettings(directory=str(tmp_path), host_bytes=64 << 20),
    )
    memory = MemoryBus()
    worker = Worker(memory.connect("_WORKER"), settings)
    await worker.start()
    try:
        (engine,) = worker._engines
        assert isinstance(engine, ChildEngine)
        async with session(memory.connect(), settings) as bus:
            info = await bus.packets.rules.put("edge", EDGE)
            tensor = await bus.matrix.put(np.zeros(3))
            assert engine.host.pid is not None
            os.kill(engine.host.pid, signal.SIGKILL)
            found = await bus.packets.classify(KEYS, rules="edge")
            assert (found.rule.tolist(), found.version.tolist()) == ([0, 1, -1], [1, 1, 1])
            assert await bus.packets.rules.list() == [info]
            assert (await bus.matrix.get(tensor)).tolist() == [0, 0, 0], "tensors lie beside rules"
    finally:
        await worker.stop()


@needs_data
@pytest.mark.parametrize("name", ["acl1_1k", "acl6_1k", "fw1_10k"])
async def test_every_header_of_a_set(bus: Bus, name: str) -> None:
    rules, keys, expected = load_set(name)
    info = await bus.packets.rules.put(name, rules, timeout_s=100)
    assert info.digest == rules.digest
    found = await bus.packets.classify(keys, rules=name)
    np.testing.assert_array_equal(found.rule, expected)


# --- back ends --------------------------------------------------------------------------------------------------------


def flows(count: int) -> Keys:
    random = np.random.default_rng(1)
    ends = random.integers(1 << 32, size=(2, count))
    return Keys.ipv4(*ends, random.integers(1 << 16, size=count), np.full(count, 443), np.full(count, 6))


async def test_flows_are_dealt_by_weight_and_stay(bus: Bus) -> None:
    weights = {"b": 1.0, "a": 2.0, "c": 0.0}
    chosen = await bus.packets.balance(flows(30_000), weights)
    names, counts = np.unique(chosen, return_counts=True)
    assert names.tolist() == ["a", "b"]
    assert counts / 30_000 == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    np.testing.assert_array_equal(await bus.packets.balance(flows(30_000), dict(sorted(weights.items()))), chosen)
    fewer = await bus.packets.balance(flows(30_000), {"a": 2.0, "b": 1.0, "d": 0.3})
    moved = (fewer != chosen) & (fewer != "d")
    assert moved.mean() < 0.02


async def test_flows_of_both_versions_are_told_apart_by_five_fields(bus: Bus) -> None:
    weights = {f"b{n}": 1.0 for n in range(50)}
    one = flows(1)
    one = Keys(**{name: np.repeat(column, 7) for name, column in vars(one).items()})
    one.vlan[0], one.tcp_flags[0] = 5, 2
    one.source_low[1] += 1
    one.destination_low[2] += 1
    one.source_port[3] ^= 1
    one.destination_port[4] ^= 1
    one.protocol[5] = 17
    chosen = await bus.packets.balance(one, weights)
    assert chosen[0] == chosen[6]
    assert len(set(chosen[1:6].tolist()) - {chosen[0]}) >= 4
    six = Keys(**{**vars(one), "version": np.full(7, 6, np.uint8)})
    np.testing.assert_array_equal(await bus.packets.balance(six, weights), chosen)
    assert (await bus.packets.balance(one[:0], weights)).shape == (0,)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"backends": {}}, "no back end has a weight above 0"),
        ({"backends": {"a": -1.0}}, "the weight of 'a' is -1.0"),
        ({"backends": {"a": 1.0}, "slots": 100}, "take a prime"),
        ({"backends": {"a": 1.0}, "slots": 1 << 21}, "<= 1048576"),
    ],
)
async def test_back_ends_that_are_none_are_refused(bus: Bus, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(BadParameter, match=told):
        await bus.call("packets.balance", {**ADDRESS, **PORTS}, parameters)

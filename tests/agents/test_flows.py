"""Flows of packets over the bus: from whatever holds packets, each once, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

import aikoryu
from aikoryu.agents import Bus, flow_chunks, open_transport, session
from aikoryu.agents import flows as sending
from aikoryu.agents.flow_chunks import Size, Timed
from aikoryu.bus.errors import BadColumn, BadParameter, EngineLost, NotWritten, NoWorker, OutOfStep
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import (
    BusSettings,
    ModelSettings,
    NatsSettings,
    ResidentSettings,
    ServerSettings,
    Settings,
    WorkerSettings,
)
from aikoryu.gpu.engines import catalogue_of
from aikoryu.gpu.host import ChildEngine
from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.ops.packets.flows import Flows as Operation
from aikoryu.gpu.packets import flow_tables
from aikoryu.gpu.packets.flow_senders import ANSWERS, LEAST_GIVEN
from aikoryu.gpu.packets.flow_store import FlowStore
from aikoryu.gpu.registry import load
from aikoryu.gpu.worker import Worker
from aikoryu.netio.capture import Capture, open_capture
from aikoryu.netio.errors import BadCapture
from aikoryu.netio.flow_cuts import Timeouts
from aikoryu.netio.flow_key import KeyChoice
from aikoryu.netio.flows import Flows
from aikoryu.netio.packet_index import DTYPES, PacketIndex
from aikoryu.netio.writer import write_pcapng

from ..netio.flow_frames import T0, expected, frame, traffic
from ..netio.test_flow_table import assert_same

TIMEOUTS = Timeouts(5.0, 12.0)
CHUNK = 50
FRAMES, TIMES = traffic(1500)
EXPECTED = Flows.joined(expected(FRAMES, TIMES, CHUNK, TIMEOUTS))
SETTINGS = Settings(
    bus=BusSettings(partitions=8),
    models=ModelSettings(embed=()),
    worker=WorkerSettings(name="w1", device="cpu"),
    residents=ResidentSettings(host_bytes=64 << 20),
)

Found = AsyncGenerator[Flows, None]


class Served:
    """A worker, and the bus it is on.

    Attributes:
        engine: where its batches run.
        tables: the engine's.
    """

    def __init__(self, max_payload: int = 8 << 20) -> None:
        self.memory = MemoryBus(max_payload)
        operations = load(catalogue_of(SETTINGS))
        operation = operations["packets.flows"]
        assert isinstance(operation, Operation)
        self.tables = operation._tables
        self.engine = InlineEngine(operations, slab_bytes=80 << 20)
        self.worker = Worker(self.memory.connect("_WORKER"), SETTINGS, [self.engine])

    def lose_engine(self) -> None:
        """The engine dies, and the next one knows what is written down."""
        self.engine.lose()
        self.tables._held.clear()

    def lose_worker(self) -> None:
        """Its folder goes, too."""
        self.lose_engine()
        for path in self.tables.store._folder.iterdir():
            path.unlink()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    await made.worker.start()
    yield made
    await made.worker.stop()


@pytest.fixture
async def bus(served: Served) -> AsyncIterator[Bus]:
    async with session(served.memory.connect(), SETTINGS) as made:
        yield made


@pytest.fixture(params=["never", "now and then", "always"])
def writing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often a table is written down."""
    asked = 0

    def is_due(self: flow_tables.HeldTable, now: float) -> bool:
        nonlocal asked
        asked += 1
        return bool(request.param == "always" or (request.param == "now and then" and asked % 3 == 0))

    monkeypatch.setattr(flow_tables.HeldTable, "is_due", is_due)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(sending, "SOONEST_S", 0.001)
    monkeypatch.setattr(sending, "LATEST_S", 0.01)


def capture(path: Path, frames: list[bytes] = FRAMES, times: Any = TIMES) -> Path:
    """A file of these packets."""
    sizes = np.array([len(each) for each in frames])
    columns: dict[str, Any] = {
        "offset": np.cumsum(sizes) - sizes,
        "captured": sizes,
        "wire": sizes,
        "time_ns": times,
        "timed": np.ones(len(frames)),
        "link": np.ones(len(frames)),
        "interface": np.zeros(len(frames)),
    }
    index = PacketIndex(**{name: np.array(column).astype(DTYPES[name]) for name, column in columns.items()})
    with path.open("wb") as file:
        write_pcapng(file, np.frombuffer(b"".join(frames), np.uint8), index)
    return path


async def some(packets: int = 20) -> AsyncIterator[Timed]:
    """Packets as they come, a few at a time."""
    for first in range(0, len(FRAMES), packets):
        rows = slice(first, first + packets)
        yield Timed(FRAMES[rows], TIMES[rows])


async def joined(flows: Found) -> Flows:
    return Flows.joined([part async for part in flows])


def assert_flows(found: Flows, reasons: bool = True) -> None:
    """They are those expected; where batches are of chance, what had ended at the end may have been seen before."""
    for name, column in vars(EXPECTED).items():
        if name != "reason" or reasons:
            assert getattr(found, name).tolist() == column.tolist(), name


# --- from whatever holds packets --------------------------------------------------------------------------------------


async def test_flows_of_a_capture_are_those_of_the_host(bus: Bus, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcapng")
    assert_same(await joined(bus.packets.flows(path, timeouts=TIMEOUTS, chunk=CHUNK)), EXPECTED)
    with open_capture(path) as opened:
        assert_same(await joined(bus.packets.flows(opened, timeouts=TIMEOUTS, chunk=CHUNK)), EXPECTED)
    every = [part async for part in bus.packets.flows(str(path), timeouts=TIMEOUTS, chunk=CHUNK)]
    assert len(every) > 5
    assert all(len(part) for part in every)


async def test_flows_of_packets_in_memory(bus: Bus) -> None:
    assert_same(await joined(bus.packets.flows(Timed(FRAMES, TIMES), timeouts=TIMEOUTS, chunk=CHUNK)), EXPECTED)
    as_lists = Timed(FRAMES, TIMES.tolist(), [len(each) for each in FRAMES], [1] * len(FRAMES))
    assert_same(await joined(bus.packets.flows(as_lists, timeouts=TIMEOUTS, chunk=CHUNK, link=101)), EXPECTED)


async def test_flows_of_packets_that_come_live(bus: Bus) -> None:
    found = await joined(bus.packets.flows(some(), timeouts=TIMEOUTS, chunk=CHUNK))
    assert_flows(found, reasons=False)


async def test_flows_of_blocks_as_they_come(bus: Bus, tmp_path: Path) -> None:
    """An interface's blocks are captures."""

    async def blocks() -> AsyncIterator[Capture]:
        for first in range(0, len(FRAMES), 300):
            rows = slice(first, first + 300)
            with open_capture(capture(tmp_path / f"{first}.pcapng", FRAMES[rows], TIMES[rows])) as block:
                yield block

    found = await joined(bus.packets.flows(blocks(), timeouts=TIMEOUTS, chunk=CHUNK))
    assert_flows(found, reasons=False)


async def test_flows_of_scapy_and_arrow(bus: Bus) -> None:
    scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")
    packets = [scapy.Ether(each) for each in FRAMES[:100]]
    for packet, time_ns in zip(packets, TIMES.tolist(), strict=False):
        packet.time = scapy.EDecimal(time_ns).scaleb(-9)
    flows = Flows.joined(expected(FRAMES[:100], TIMES[:100], CHUNK, TIMEOUTS))
    assert_same(await joined(bus.packets.flows(packets, timeouts=TIMEOUTS, chunk=CHUNK)), flows)
    arrow = pytest.importorskip("pyarrow")
    for times in (arrow.array(TIMES[:100], arrow.timestamp("ns")), arrow.array(TIMES[:100])):
        table = arrow.table({"frame": FRAMES[:100], "time": times})
        assert_same(await joined(bus.packets.flows(table, timeouts=TIMEOUTS, chunk=CHUNK)), flows)

    async def one_by_one() -> AsyncIterator[Any]:
        for packet in packets:
            yield packet

    found = await joined(bus.packets.flows(one_by_one(), timeouts=TIMEOUTS))
    assert found.serial.tolist() == flows.serial.tolist()
    assert found.packets.tolist() == flows.packets.tolist()


async def test_key_time_outs_and_link_type_are_the_callers(bus: Bus) -> None:
    tagged = [frame[:12] + b"\x81\0\0" + bytes([number % 2]) + frame[12:] for number, frame in enumerate(FRAMES[:200])]
    plain = Timed(tagged, TIMES[:200])
    by_vlan = await joined(bus.packets.flows(plain, key=KeyChoice(vlan=True), timeouts=Timeouts(None, None)))
    assert set(by_vlan.vlan_outer.tolist()) == {0, 1}
    raw = Timed([frame[14:] for frame in FRAMES[:200]], TIMES[:200])
    one = await joined(bus.packets.flows(raw, timeouts=Timeouts(None, None), link=101))
    assert len(one) < len(by_vlan)
    assert len(await joined(bus.packets.flows(raw, capacity=2, link=101))) > len(one)


@pytest.mark.parametrize("source", [Timed([], []), []])
async def test_nothing_has_no_flows(bus: Bus, source: Any) -> None:
    assert len(await joined(bus.packets.flows(source))) == 0


async def test_what_holds_no_packets_or_times_is_refused(bus: Bus) -> None:
    async def bad() -> AsyncIterator[Any]:
        yield Timed(FRAMES[:1], TIMES[:1])
        yield b"bytes"

    for source in ([b"bytes"], Timed(FRAMES[:2], TIMES[:1]), bad()):
        with pytest.raises(BadColumn, match="times"):
            await joined(bus.packets.flows(source))
    with pytest.raises(BadCapture):
        await joined(bus.packets.flows(__file__))
    with pytest.raises(BadParameter):
        await joined(bus.packets.flows(Timed([], []), table="a b"))


async def test_error_of_a_live_source_is_the_callers(bus: Bus) -> None:
    async def broken() -> AsyncIterator[Timed]:
        async for part in some():
            yield part
            raise ZeroDivisionError("the tap is broken")

    with pytest.raises(ZeroDivisionError, match="the tap is broken"):
        await joined(bus.packets.flows(broken()))


async def test_nobody_keeps_flows() -> None:
    async with session(MemoryBus().connect(), SETTINGS) as alone:
        with pytest.raises(NoWorker):
            await joined(alone.packets.flows(Timed(FRAMES[:2], TIMES[:2])))


async def test_silence_ends_flows_by_the_clock(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_chunks, "TICK_S", 0.01)
    over = asyncio.Event()

    async def silent() -> AsyncIterator[Timed]:
        yield Timed([frame(1, 2, 5, 6, 2, 0, 0)], [T0])
        await over.wait()

    flows = bus.packets.flows(silent(), timeouts=Timeouts(idle_s=0.05))
    async with asyncio.timeout(10):
        (first,) = [await anext(flows)]
    assert first.reason.tolist() == [0]
    over.set()
    assert not [part async for part in flows]


async def test_source_that_is_silent_from_the_start_costs_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_chunks, "TICK_S", 0.01)
    looks = 0
    over = asyncio.Event()
    collect = flow_chunks.Live._collect

    async def counted(self: flow_chunks.Live) -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            over.set()
        await collect(self)

    async def silent() -> AsyncIterator[Timed]:
        await over.wait()
        yield Timed([], [])

    monkeypatch.setattr(flow_chunks.Live, "_collect", counted)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not [part async for part in bus.packets.flows(silent())]
    assert loop.time() - began > 0.025, "it slept between looks"


async def test_many_flows_at_the_end_come_in_parts(bus: Bus) -> None:
    count = 5000
    frames = [frame(number >> 8, 300, number & 255, 6, 2, 0, 0) for number in range(count)]
    found = [part async for part in bus.packets.flows(Timed(frames, T0 + np.arange(count)))]
    assert sum(map(len, found)) == count
    assert max(map(len, found)) == LEAST_GIVEN == sending.GIVEN


async def test_server_of_small_messages_gives_all_flows() -> None:
    """1,024 flows are more than it takes at once."""
    served = Served(200 << 10)
    await served.worker.start()
    frames = [frame(number >> 8, 300, number & 255, 6, 2, 0, 0) for number in range(1500)]
    async with session(served.memory.connect(), SETTINGS) as bus:
        found = [part async for part in bus.packets.flows(Timed(frames, T0 + np.arange(1500)))]
    await served.worker.stop()
    assert sum(map(len, found)) == 1500
    assert max(map(len, found)) < LEAST_GIVEN


# --- what is lost on the way ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("writing")
@pytest.mark.parametrize("which", ["capture", "memory", "live"])
@pytest.mark.parametrize("loss", ["engine", "worker"])
async def test_what_is_lost_is_sent_again(served: Served, bus: Bus, tmp_path: Path, which: str, loss: str) -> None:
    """Every third time that flows come. A live source cannot be read again: with its worker its open flows go."""
    source: Any = {"capture": capture(tmp_path / "x.pcapng"), "memory": Timed(FRAMES, TIMES), "live": some()}[which]
    lose: Callable[[], None] = served.lose_engine if loss == "engine" else served.lose_worker
    found: list[Flows] = []
    lost = 0
    async for part in bus.packets.flows(source, timeouts=TIMEOUTS, chunk=CHUNK, timeout_s=5):
        found.append(part)
        if len(found) % 3 == 2 and lost < 5:
            lost += 1
            lose()
    assert lost > 2
    if (which, loss) == ("live", "worker"):
        assert len(Flows.joined(found)) > 0.5 * len(EXPECTED)
    else:
        assert_flows(Flows.joined(found), reasons=which != "live")


async def test_chunks_are_kept_until_they_are_written_down(
    served: Served, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a limit the sender waits for the worker to write them down, instead of keeping more or letting go."""
    monkeypatch.setattr(sending, "KEPT_BYTES", 20_000)
    monkeypatch.setattr(sending, "WAIT_S", 0.01)
    monkeypatch.setattr(flow_tables, "SAVE_S", 0.05)
    most = 0
    made = sending.FlowRun._made

    async def watched(self: sending.FlowRun, number: int) -> Any:
        nonlocal most
        found = await made(self, number)
        most = max(most, self._kept_bytes)
        return found

    monkeypatch.setattr(sending.FlowRun, "_made", watched)
    assert_same(await joined(bus.packets.flows(Timed(FRAMES, TIMES), timeouts=TIMEOUTS, chunk=CHUNK)), EXPECTED)
    assert 20_000 < most < 20_000 + CHUNK * 200


async def test_worker_that_cannot_write_is_told_of_when_no_more_can_be_kept(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sending, "KEPT_BYTES", 20_000)
    monkeypatch.setattr(sending, "WAIT_S", 0.01)
    monkeypatch.setattr(flow_tables, "SAVE_S", 0.0)
    monkeypatch.setattr(FlowStore, "save", full)
    async with asyncio.timeout(10):
        with pytest.raises(NotWritten, match=r"'tap' of flows: No space left on device: make room"):
            await joined(bus.packets.flows(some(), table="tap", timeouts=TIMEOUTS, chunk=CHUNK, timeout_s=0.2))


async def test_worker_that_can_write_again_in_time_is_waited_for(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    save, tries = FlowStore.save, 0

    def full_for_a_while(*arguments: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries % 10:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(sending, "KEPT_BYTES", 20_000)
    monkeypatch.setattr(sending, "WAIT_S", 0.001)
    monkeypatch.setattr(flow_tables, "SAVE_S", 0.0)
    monkeypatch.setattr(flow_tables, "SAVE_SHARE", float("inf"))
    monkeypatch.setattr(FlowStore, "save", full_for_a_while)
    found = await joined(bus.packets.flows(Timed(FRAMES, TIMES), timeouts=TIMEOUTS, chunk=CHUNK, timeout_s=5))
    assert_same(found, EXPECTED)
    assert tries > 20


async def test_it_is_given_up_when_nothing_goes_on(served: Served, bus: Bus) -> None:
    served.engine.hold = True
    with pytest.raises(aikoryu.Expired):
        await joined(bus.packets.flows(Timed(FRAMES, TIMES), timeout_s=0.1))
    served.engine.release()


async def test_leaving_early_leaves_nothing_under_way(served: Served, bus: Bus) -> None:
    flows = bus.packets.flows(some(), timeouts=TIMEOUTS, chunk=CHUNK)
    await anext(flows)
    await flows.aclose()
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
    assert not any("Live" in name or "Stream" in name for name in names)


@pytest.mark.parametrize("table", [None, "tap"])
async def test_leaving_early_does_away_with_the_table_of_the_run(served: Served, bus: Bus, table: str | None) -> None:
    for _ in range(3):
        flows = bus.packets.flows(some(), table=table, timeouts=TIMEOUTS, chunk=CHUNK)
        await anext(flows)
        await flows.aclose()
    files = list(served.tables.store._folder.iterdir())
    assert [path.name for path in files] == ([] if table is None else ["tap.flows"])


async def test_leaving_early_waits_for_no_worker(served: Served, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "LEAVE_S", 0.05)
    flows = bus.packets.flows(some(), timeouts=TIMEOUTS, chunk=CHUNK)
    await anext(flows)
    served.engine.hold = True
    async with asyncio.timeout(1):
        await flows.aclose()
    served.engine.release()


async def test_engine_that_is_killed_loses_no_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server, a real engine process, killed three times between chunks."""
    (tmp_path / "torch.py").write_text("raise ImportError('flows on the host do without, and start faster')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    async with real_worker(tmp_path) as (url, engine), aikoryu.connect(url, settings=SETTINGS) as bus:
        found: list[Flows] = []
        killed: set[int] = set()
        async for part in bus.packets.flows(Timed(FRAMES, TIMES), timeouts=TIMEOUTS, chunk=CHUNK):
            found.append(part)
            if len(found) % 4 == 2 and len(killed) < 3 and engine.host.pid not in {None, *killed}:
                assert engine.host.pid is not None
                killed.add(engine.host.pid)
                os.kill(engine.host.pid, signal.SIGKILL)
        assert len(killed) == 3
        assert_same(Flows.joined(found), EXPECTED)
        assert engine.restarts == 3


@asynccontextmanager
async def real_worker(directory: Path) -> AsyncIterator[tuple[str, ChildEngine]]:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        settings = Settings(
            nats=NatsSettings(url=server.url),
            bus=SETTINGS.bus,
            models=SETTINGS.models,
            worker=SETTINGS.worker,
            residents=ResidentSettings(directory=str(directory), host_bytes=64 << 20),
        )
        transport = await open_transport(settings)
        worker = Worker(transport, settings)
        await worker.start()
        try:
            (engine,) = worker._engines
            assert isinstance(engine, ChildEngine)
            yield server.url, engine
        finally:
            await worker.stop()
            await transport.close()


# --- what is sent, and when -------------------------------------------------------------------------------------------


class Scripted:
    """A client whose worker does as it is told: one script a stream."""

    largest_bytes = 1 << 20

    def __init__(self, *scripts: Callable[[AsyncIterator[Any]], AsyncGenerator[Any, None]]) -> None:
        self._scripts = list(scripts)
        self.sent: list[list[Any]] = []

    async def stream(self, operation: str, rows: AsyncIterator[Any], parameters: Any, **_: Any) -> Any:
        sent: list[Any] = []
        self.sent.append(sent)

        async def noted() -> AsyncIterator[Any]:
            async for row in rows:
                sent.append((int(row["number"][0]), row["times"][0]))
                yield row

        async for answer in self._scripts.pop(0)(noted()):
            yield answer


def answer(saved: int = 0, left: int = 0) -> dict[str, Any]:
    return {"flows": [b""], "count": [0], "left": [left], "saved": [saved], "trouble": [""]}


async def answer_all(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    async for row in rows:
        yield answer(int(row["number"][0]))


def sent_by(client: Any) -> Found:
    source = Timed(FRAMES[:40], TIMES[:40])
    return sending.flows_by_worker(client, 8, source, "t", KeyChoice(), TIMEOUTS, 64, 1, 2, 5.0)


async def test_no_more_is_under_way_than_the_worker_keeps_answers() -> None:
    async def silent(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        for _ in range(ANSWERS):
            await anext(rows)
        further = asyncio.ensure_future(anext(rows))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not further.done()
        yield answer()
        await further
        raise EngineLost("that was all")

    client = Scripted(silent, answer_all)
    await joined(sent_by(client))
    assert [number for number, _ in client.sent[1]] == list(range(2, 22))


async def test_what_is_written_down_but_not_answered_is_kept() -> None:
    async def lost(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        for _ in range(3):
            await anext(rows)
        yield answer(saved=3)
        raise EngineLost("with the answers of two")

    client = Scripted(lost, answer_all)
    await joined(sent_by(client))
    assert client.sent[1][:2] == client.sent[0][1:3]
    assert len(client.sent[1]) == 20


async def knows_nothing(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    await anext(rows)
    raise OutOfStep("1 is the chunk expected")
    yield


async def test_chunk_that_overtook_the_one_before_is_sent_again_alone() -> None:
    """As when both found no engine: by the time it is known, the worker may have had, and written down, the other."""

    async def overtaken(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        for _ in range(2):
            await anext(rows)
        yield answer(saved=1)
        raise OutOfStep("1 is the chunk expected")

    client = Scripted(overtaken, answer_all)
    await joined(sent_by(client))
    assert [number for number, _ in client.sent[1]] == list(range(2, 22))


async def test_all_is_sent_as_it_was_when_the_worker_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the chunks that were made to wait: answers are known by their numbers."""
    monkeypatch.setattr(sending, "KEPT_BYTES", 300)
    monkeypatch.setattr(sending, "WAIT_S", 0.0)

    async def slow(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        async for row in rows:
            number = int(row["number"][0])
            yield answer(number if number % 10 == 0 else number // 10 * 10)
            if number == 25:
                raise OutOfStep("1 is the chunk expected")

    async def slower(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        async for _ in rows:
            yield answer()
            if len(client.sent[2]) > 28:
                raise BadParameter("enough")

    client = Scripted(slow, knows_nothing, slower)
    with pytest.raises(BadParameter):
        await joined(sent_by(client))
    assert any(not times for _, times in client.sent[0])
    assert client.sent[2][:25] == client.sent[0][:25]


async def test_refusal_that_leads_nowhere_is_the_callers() -> None:
    async def ahead(rows: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        await anext(rows)
        raise OutOfStep("9 is the chunk expected")
        yield

    with pytest.raises(OutOfStep):
        await joined(sent_by(Scripted(ahead)))


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "cuts"),
    [
        ([], []),
        ([1] * 5, [(0, 3), (3, 5)]),
        ([10, 30, 30, 30], [(0, 2), (2, 3), (3, 4)]),
        ([500, 1, 500], [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_chunks_are_bounded_in_packets_and_bytes(lengths: list[int], cuts: list[tuple[int, int]]) -> None:
    found = Size(packets=3, bytes=90).cuts(np.array(lengths, np.int64))
    assert [(cut.start, cut.stop) for cut in found] == cuts

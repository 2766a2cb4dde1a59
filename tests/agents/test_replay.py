"""Replays over the in-memory bus: what is sent again, what is counted, what differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.agents import Bus, session
from aikoryu.agents import replay as module
from aikoryu.agents.replay import RecordedFrames, Replay, replay, replay_capture
from aikoryu.bus.columns import Values, pack, unpack
from aikoryu.bus.differences import Difference, Tolerance
from aikoryu.bus.errors import BadValue
from aikoryu.bus.frames import Reply, Request, RowError, decode_parameters, decode_request, encode, encode_json, is_json
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.pending import RowsFailed
from aikoryu.bus.recorder import Recorder
from aikoryu.bus.recording import BadRecording, Recording, RecordingWriter, read
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.config import Settings
from aikoryu.netio.capture import Capture
from aikoryu.netio.capture_frames import CaptureFrames
from aikoryu.netio.pacing import Pacer, Plan, Run, Speed, Unit
from aikoryu.netio.packet_index import PacketIndex

SUBJECTS = Subjects()
TOP = Plan(Speed(Unit.TOP))

Columns = dict[str, Values]
Operation = Callable[[Columns, Any], Columns]


def double(columns: Columns, parameters: Any) -> Columns:
    return {"y": np.asarray(columns["x"]) * parameters.get("factor", 2)}


def echo(columns: Columns, parameters: Any) -> Columns:
    return columns


class Worker:
    """Answers operations with functions of whole columns.

    Attributes:
        operations: by name.
        fails: tells of the rows' first `x` which get an error.
        requests, subjects: every frame and where it came, in order.
    """

    def __init__(self, memory: MemoryBus) -> None:
        self.operations: dict[str, Operation] = {"demo.double": double, "echo": echo, "matrix.put.3": echo}
        self.requests: list[Request] = []
        self.subjects: list[str] = []
        self.fails: Callable[[Any], Any] = lambda x: x < 0
        self._transport = memory.connect()

    async def serve(self) -> None:
        await self._transport.subscribe(f"{SUBJECTS.root}.>", self._on_request, queue="test")

    def _on_request(self, message: Message) -> None:
        name = message.subject.removeprefix(f"{SUBJECTS.root}.")
        if name not in self.operations:
            return
        request = decode_request(message.data)
        self.requests.append(request)
        self.subjects.append(message.subject)
        columns = {key: unpack(column, request.n) for key, column in request.cols.items()}
        answer = self.operations[name](columns, decode_parameters(request.p))
        bad = self.fails(np.asarray(columns.get("x", np.zeros(request.n))).reshape(request.n, -1)[:, 0])
        good = np.flatnonzero(~bad)
        reply = Reply(
            id=request.id,
            at=[(int(row), 1) for row in good],
            cols={key: pack(_rows(values, good)) for key, values in answer.items()} if len(good) else {},
            err=[RowError(int(row), BadValue.code, "x is negative") for row in np.flatnonzero(bad)],
            again=request.again,
            last=True,
        )
        self._transport.send(message.reply, encode_json(reply) if is_json(message.data) else encode(reply))


def _rows(values: Values, rows: Any) -> Values:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


class Bench:
    """A bus, a worker, and a recording of what was asked while it recorded."""

    def __init__(self, path: Path) -> None:
        self.memory = MemoryBus()
        self.worker = Worker(self.memory)
        self.path = path
        self.bus: Bus

    async def record(self, asking: Callable[[Bus], Any]) -> None:
        """Record what this asks; times are ms apart."""
        clock = count(0, 1_000_000)
        with RecordingWriter(self.path, SUBJECTS.root, (">",), 0, 1 << 22) as writer:
            recorder = Recorder(self.memory.connect(), SUBJECTS, writer, [">"], ["_INBOX"], clock=lambda: next(clock))
            await recorder.start()
            await asking(self.bus)
            await recorder.stop(0.0)
        self.worker.requests.clear()
        self.worker.subjects.clear()


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "bus.rec")
    await made.worker.serve()
    async with session(made.memory.connect(), Settings()) as made.bus:
        monkeypatch.setattr(made.bus, "workers", silence)
        yield made


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - turns of the loop, no time
        await asyncio.sleep(0)


async def silence() -> list[dict[str, object]]:
    """Nobody tells what it serves."""
    return []


async def ask(bus: Bus) -> None:
    """Four requests of two operations, one row failing."""
    await bus.call_many("demo.double", {"x": np.arange(6.0).reshape(3, 2)})
    await bus.call_many("demo.double", {"x": np.array([1, 2])}, {"factor": 5}, priority=1, timeout_s=7)
    await bus.call("echo", {"t": "text", "b": b"\0"})
    with pytest.raises(RowsFailed, match="x is negative"):
        await bus.call_many("echo", {"x": np.array([1, -1, 3])})


async def test_requests_are_sent_again_as_they_were(bench: Bench) -> None:
    await bench.record(ask)
    recorded = [exchange.asked async for exchange in read(bench.path)]
    report = await replay(bench.bus, bench.path, TOP)
    sent = bench.worker.requests
    assert [(r.n, r.p, r.prio, r.ttl_ms, r.cols) for r in sent] == [
        (r.n, r.p, r.prio, r.ttl_ms, r.cols) for r in recorded
    ]
    assert {r.client for r in sent} == {bench.bus.client.number}
    assert not {r.id for r in sent} & {r.id for r in recorded}
    assert [r.again for r in sent] == [0] * 4
    assert (report.paced.sent, report.rows, dict(report.errors)) == (4, 9, {"bad_value": 1})
    tallies = {name: (t.frames, t.rows, t.answered, t.latencies.count) for name, t in report.operations.items()}
    assert tallies == {"demo.double": (2, 5, 2, 2), "echo": (2, 4, 2, 2)}
    assert report.compared == 0


async def test_the_same_worker_gives_the_same_answers(bench: Bench) -> None:
    await bench.record(ask)
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance())
    assert (report.compared, report.differing, report.differences) == (9, 0, [])


async def test_a_row_that_is_off_is_found(bench: Bench) -> None:
    def off_by_one(columns: Columns, parameters: Any) -> Columns:
        y = np.array(double(columns, parameters)["y"])
        if len(y) == 3:
            y[1, 1] += 1
        return {"y": y}

    await bench.record(ask)
    bench.worker.operations["demo.double"] = off_by_one
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance())
    assert (report.compared, report.differing) == (9, 1)
    assert report.differences == [Difference(0, "demo.double", 1, "y[1]", "6.0", "7.0")]
    assert str(report.differences[0]) == "request 0 demo.double, row 1 y[1]: recorded 6.0, now 7.0"


async def test_floats_may_be_apart_by_the_tolerance(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        await bus.call_many("demo.double", {"x": np.arange(1.0, 4.0)})

    await bench.record(asking)
    bench.worker.operations["demo.double"] = lambda columns, parameters: double(columns, {"factor": 2 * (1 + 1e-6)})
    assert (await replay(bench.bus, bench.path, TOP, verify=Tolerance(rtol=1e-5))).differing == 0
    assert (await replay(bench.bus, bench.path, TOP, verify=Tolerance())).differing == 3


async def test_errors_that_come_or_go_are_found(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        with pytest.raises(RowsFailed):
            await bus.call_many("demo.double", {"x": np.array([1, -2, 3])})

    await bench.record(asking)
    bench.worker.fails = lambda x: x > 2
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance())
    assert [(each.row, each.then, each.now) for each in report.differences] == [
        (1, "bad_value (x is negative)", "values"),
        (2, "values", "bad_value (x is negative)"),
    ]


async def test_at_most_so_many_differences_are_kept(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        await bus.call_many("demo.double", {"x": np.arange(100)})

    await bench.record(asking)
    bench.worker.operations["demo.double"] = echo_as_y
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance(), differences=7)
    assert (report.differing, [each.row for each in report.differences]) == (99, list(range(1, 8)))


def echo_as_y(columns: Columns, parameters: Any) -> Columns:
    return {"y": columns["x"]}


async def test_nobody_answering_is_an_error_and_a_difference(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        await bus.call("demo.double", {"x": 1}, timeout_s=0.05)

    await bench.record(asking)
    bench.worker.operations.clear()
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance())
    assert dict(report.errors) == {"expired": 1}
    assert [each.now.split(" ")[0] for each in report.differences] == ["expired"]
    tally = report.operations["demo.double"]
    assert (tally.frames, tally.answered, tally.latencies.count) == (1, 0, 0)


async def test_what_the_recording_has_no_answer_to_is_not_compared(bench: Bench) -> None:
    with RecordingWriter(bench.path, SUBJECTS.root, (">",), 0, 1 << 20) as writer:
        request = encode(Request(v=1, n=2, id=1, cols={"x": pack(np.arange(2))}))
        for answer in (None, b"no reply", encode(Reply(id=1, err=[RowError(0, "busy", "full", 0)], last=True))):
            number = writer.asked(0, "demo.double", request)
            if answer is not None:
                writer.answered(number, 1, answer)
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance())
    tally = report.operations["demo.double"]
    assert (tally.compared, tally.untold, tally.differing, tally.answered) == (0, 6, 0, 3)


async def test_a_request_typed_in_json_is_replayed(bench: Bench) -> None:
    answered: list[Message] = []
    plain = bench.memory.connect()
    await plain.subscribe("_INBOX.plain.1", answered.append)

    async def asking(bus: Bus) -> None:
        payload = b'{"v": 1, "n": 2, "cols": {"x": {"t": "f4", "d": [[0.1, 2], [3, 4]]}}, "p": {"factor": 3}}'
        plain.send(SUBJECTS.operation("demo.double"), payload, "_INBOX.plain.1")
        await plain.flush()
        await plain.flush()

    await bench.record(asking)
    assert is_json(answered[0].data)
    report = await replay(bench.bus, bench.path, TOP, verify=Tolerance(0.0, 0.0))
    assert (report.compared, report.differing, report.rows) == (2, 0, 2)
    assert bench.worker.requests[0].ttl_ms == 30_000


async def test_what_a_worker_keeps_is_left_alone_unless_told(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        await bus.call("matrix.put.3", {"x": 1})
        await bus.call("echo", {"x": 1})

    await bench.record(asking)
    report = await replay(bench.bus, bench.path, TOP)
    assert (dict(report.skipped), report.paced.sent) == ({"matrix.put.3": 1}, 1)
    assert bench.worker.subjects == [SUBJECTS.operation("echo")]
    report = await replay(bench.bus, bench.path, TOP, stateful=True)
    assert (dict(report.skipped), report.paced.sent) == ({}, 2)


async def test_operations_that_workers_call_impure_are_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def workers() -> list[dict[str, object]]:
        subjects = {"demo.double": "false", "echo": "true", "packets.put.*": "false"}
        return [
            {"endpoints": [{"subject": f"{SUBJECTS.root}.{n}", "metadata": {"pure": p}} for n, p in subjects.items()]}
        ]

    monkeypatch.setattr(bench.bus, "workers", workers)
    await bench.record(ask)
    assert dict((await replay(bench.bus, bench.path, TOP)).skipped) == {"demo.double": 2}


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("matrix.put", True),
        ("matrix.put.17", True),
        ("matrix.eval.17", True),
        ("matrix.eval", False),
        ("matrix.putter", False),
        ("matrix", False),
    ],
)
def test_partitions_are_left_out_with_their_operation(name: str, skipped: bool) -> None:
    assert module._below(name, frozenset({*module.STATEFUL, module.HANDLES})) == skipped


async def test_loops_send_everything_again(bench: Bench) -> None:
    await bench.record(ask)
    report = await replay(bench.bus, bench.path, Plan(Speed(Unit.TOP), loops=3), verify=Tolerance())
    assert (report.paced.sent, report.compared, report.differing) == (12, 27, 0)
    assert len({request.id for request in bench.worker.requests}) == 12


async def test_the_pace_of_the_recording_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, due = list[int](), Pacer.due

    def watched(pacer: Pacer, now_ns: int) -> Run:
        looked.append(now_ns)
        return due(pacer, now_ns)

    monkeypatch.setattr(Pacer, "due", watched)
    await bench.record(ask)
    span_ns = int(np.ptp(Recording(bench.path).times_ns))
    assert span_ns > 0
    report = await replay(bench.bus, bench.path)
    assert report.seconds >= span_ns / 1e9
    assert report.paced.seconds >= span_ns / 1e9
    assert len(looked) <= 4  # not in vain


async def test_what_is_under_way_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_BYTES", 1000)

    async def asking(bus: Bus) -> None:
        for number in range(20):
            await bus.call("echo", {"x": number})

    await bench.record(asking)
    bench.worker.operations.clear()
    source = RecordedFrames(Recording(bench.path), frozenset())
    replaying = Replay(bench.bus.client, source, Plan(Speed(Unit.TOP), most=1))
    running = asyncio.create_task(replaying.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert replaying.report.paced.sent == 4
    running.cancel()
    await asyncio.wait({running})


async def test_a_stop_waits_for_what_was_sent(bench: Bench) -> None:
    await bench.record(ask)
    source = RecordedFrames(Recording(bench.path), frozenset())
    replaying = Replay(bench.bus.client, source, Plan(Speed(Unit.ITEMS_S, 0.01)))
    running = asyncio.create_task(replaying.run())
    await until(lambda: bool(bench.worker.requests))
    replaying.stop()
    report = await running
    assert (report.paced.sent, report.operations["demo.double"].answered) == (1, 1)


async def test_what_is_cancelled_is_withdrawn(bench: Bench) -> None:
    async def asking(bus: Bus) -> None:
        await bus.call("demo.double", {"x": 1})

    await bench.record(asking)
    bench.worker.operations.clear()
    source = RecordedFrames(Recording(bench.path), frozenset())
    running = asyncio.create_task(Replay(bench.bus.client, source, TOP).run())
    client = bench.bus.client
    await until(lambda: bool(client._pending))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert client._pending == {}


async def test_an_empty_recording_is_soon_replayed(bench: Bench) -> None:
    RecordingWriter(bench.path, SUBJECTS.root, (">",), 0, 1 << 20).close()
    report = await replay(bench.bus, bench.path, verify=Tolerance())
    assert (report.paced.sent, report.rows, report.plain()["operations"]) == (0, 0, {})


async def test_another_file_is_refused(bench: Bench) -> None:
    bench.path.write_bytes(b"\xd4\xc3\xb2\xa1")
    with pytest.raises(BadRecording):
        await replay(bench.bus, bench.path)


# --- captures -------------------------------------------------------------------------------------------------------


def capture(packets: int) -> Capture:
    """Packets of their number's bytes, 1 ms apart."""
    made = Capture.__new__(Capture)
    sizes = np.arange(60, 60 + packets, dtype=np.uint32)
    made.blob = np.repeat(np.arange(packets, dtype=np.uint8), sizes)
    made.truncated = False
    made.index = PacketIndex(
        offset=(np.cumsum(sizes) - sizes).astype(np.uint64),
        captured=sizes,
        wire=sizes,
        time_ns=np.arange(packets) * 1_000_000,
        timed=np.ones(packets, bool),
        link=np.ones(packets, np.uint16),
        interface=np.zeros(packets, np.uint32),
    )
    return made


async def test_packets_of_a_capture_are_rows(bench: Bench) -> None:
    bench.worker.operations["packets.dissect"] = lambda columns, parameters: {"size": columns["wire"]}
    packets = CaptureFrames(capture(50))
    plan = Plan(Speed(Unit.TOP), loops=2, most=16)
    report = await replay_capture(bench.bus, packets, "packets.dissect", {"columns": ["size"]}, plan)
    sent = bench.worker.requests
    assert [request.n for request in sent] == [16, 16, 16, 2] * 2
    assert [(name, column.t) for name, column in sent[0].cols.items()] == [
        ("frame", "bin"),
        ("time", "i8"),
        ("wire", "u4"),
        ("link", "u2"),
    ]
    assert decode_parameters(sent[0].p) == {"columns": ["size"]}
    frames = [frame for request in sent for frame in unpack(request.cols["frame"], request.n)]
    assert frames == [bytes([number]) * (60 + number) for number in range(50)] * 2
    assert (report.rows, report.paced.sent, report.operations["packets.dissect"].answered) == (100, 100, 8)
    assert report.paced.bits == 2 * 8 * sum(range(60, 110))


async def test_packets_leave_at_their_time(bench: Bench) -> None:
    bench.worker.operations["packets.dissect"] = echo
    report = await replay_capture(bench.bus, CaptureFrames(capture(20)), "packets.dissect", plan=Plan())
    assert report.paced.sent == 20
    assert report.seconds >= 0.019


async def test_an_operation_that_is_none_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        await replay_capture(bench.bus, CaptureFrames(capture(1)), "topic.news")


async def test_packets_are_classified_where_their_rules_are(bench: Bench) -> None:
    operation = bench.bus.packets.rules.operation("classify", "edge")
    assert operation.startswith("packets.classify.")
    bench.worker.operations[operation] = lambda columns, parameters: {"rule": columns["link"]}
    packets = CaptureFrames(capture(3))
    report = await replay_capture(bench.bus, packets, "packets.classify", {"rules": "edge"}, TOP)
    assert report.operations[operation].answered == 1

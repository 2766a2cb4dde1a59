"""packets.flows: chunks applied once, tables written down, and engines that follow one another."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `worker`")

from aikoryu.bus.columns import Field
from aikoryu.bus.errors import BadParameter, BadValue, Busy, NotWritten, OutOfStep
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.blobs import Blobs
from aikoryu.gpu.device import Device
from aikoryu.gpu.ops.packets.flows import Flows as Operation
from aikoryu.gpu.packets import flow_senders, flow_store, flow_tables
from aikoryu.gpu.packets.flow_store import FlowStore, SavedTable, TableSpec
from aikoryu.gpu.packets.flow_tables import DeviceFlows, FlowTables
from aikoryu.gpu.packets.kernels import PacketKernels
from aikoryu.netio.flow_cuts import Timeouts
from aikoryu.netio.flow_state import FlowState
from aikoryu.netio.flow_wire import FLOW_BYTES, unpacked
from aikoryu.netio.flows import Flows

from ..netio.flow_frames import expected, frame, traffic
from ..netio.test_flow_table import assert_same
from . import host_kernels

PARAMETERS = {"table": "t", "idle_s": 5.0, "active_s": 12.0, "capacity": 4096}
SPEC = TableSpec("inner", False, False, 5.0, 12.0, 4096)
TIMEOUTS = Timeouts(5.0, 12.0)
CHUNK = 100
DEVICE = Device("cpu", threads=1)

DTYPES = {"u8": np.uint64, "i8": np.int64, "bool": np.bool_}

Row = dict[str, Any]


def chunk(frames: list[bytes], times: Any, number: int, source: int = 7, **more: Any) -> Row:
    """A row of the operation."""
    return {
        "source": source,
        "number": number,
        "frames": b"".join(frames),
        "lengths": np.array([len(each) for each in frames], "<u4").tobytes(),
        "times": np.array(times, "<i8").tobytes(),
        "now_ns": int(min(times)) if len(frames) else 0,
        "end": False,
        **more,
    }


def end(number: int, source: int = 7) -> Row:
    return chunk([], [], number, source, end=True)


FRAMES, TIMES = traffic(1000)
ROWS = [
    *(
        chunk(FRAMES[at : at + CHUNK], TIMES[at : at + CHUNK], number)
        for number, at in enumerate(range(0, 1000, CHUNK), 1)
    ),
    end(11),
]
EXPECTED = expected(FRAMES, TIMES, CHUNK, TIMEOUTS)
"""The flows of each row of `ROWS`."""


class Engine:
    """An engine's tables, and the operation on them."""

    def __init__(self, directory: Path, **parameters: Any) -> None:
        self.tables = FlowTables(str(directory))
        self.operation = Operation(self.tables)
        self.operation.load(DEVICE)
        self.parameters = msgspec.convert({**PARAMETERS, **parameters}, Operation.Parameters)

    def run(self, *rows: Row, alive: list[bool] | None = None) -> list[dict[str, Any]]:
        """What each row is answered: its columns, or `code` and `message`."""
        columns: dict[str, Any] = {}
        schema = []
        for name in rows[0]:
            dtype = self.operation.signature.inputs[name]
            values = [row[name] for row in rows]
            columns[name] = Blobs.of(values) if dtype == "bin" else np.array(values, DTYPES[dtype])
            schema.append((name, Field(dtype)))
        living = np.array(alive or [True] * len(rows))
        batch = Batch(len(rows), tuple(schema), columns, self.parameters, living, DEVICE)
        found = self.operation.run(batch, DEVICE)
        answers = []
        for row in range(len(rows)):
            if row in batch.errors:
                answers.append(dict(zip(("code", "message"), batch.errors[row], strict=True)))
            else:
                answers.append({name: values[row] for name, values in found.items()})
        return answers


def flows(answers: list[dict[str, Any]]) -> Flows:
    return Flows.joined([unpacked(answer["flows"]) for answer in answers])


def assert_answers(answers: list[dict[str, Any]], parts: list[Flows]) -> None:
    """Each answer has the flows of its part, and no more."""
    assert len(answers) == len(parts)
    for answer, part in zip(answers, parts, strict=True):
        assert_same(unpacked(answer["flows"]), part)
        assert (answer["count"], answer["left"]) == (len(part), 0)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture
def always_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "SAVE_S", 0.0)
    monkeypatch.setattr(flow_tables, "SAVE_SHARE", float("inf"))


# --- chunks -----------------------------------------------------------------------------------------------------------


def test_traffic_has_flows_that_end_before_the_end() -> None:
    assert sum(map(len, EXPECTED[:-1])) > 20
    assert len(EXPECTED[-1]) > 5


@pytest.mark.usefixtures("packet_path")
@pytest.mark.parametrize("sizes", [[1] * 11, [3, 8], [11]])
def test_flows_are_those_of_a_table(engine: Engine, sizes: list[int]) -> None:
    answers: list[dict[str, Any]] = []
    for size in sizes:
        answers += engine.run(*ROWS[len(answers) : len(answers) + size])
    assert_answers(answers, EXPECTED)
    ignored = sum(each[12:14] == b"\x08\x06" for each in FRAMES)
    assert (answers[-1]["open"], answers[-1]["ignored"]) == (0, ignored)


def test_chunk_that_comes_again_is_answered_again_and_changes_nothing(engine: Engine) -> None:
    first = engine.run(*ROWS[:4])
    again = engine.run(ROWS[1], ROWS[3], ROWS[2])
    assert [answer["flows"] for answer in again] == [first[row]["flows"] for row in (1, 3, 2)]
    assert again[0]["open"] == first[1]["open"]
    assert_answers(engine.run(*ROWS[4:]), EXPECTED[4:])


def test_chunk_that_does_not_follow_is_refused_with_the_number_to_send(engine: Engine) -> None:
    engine.run(*ROWS[:2])
    (refused,) = engine.run(ROWS[4])
    assert refused["code"] == OutOfStep.code
    assert OutOfStep(refused["message"]).expected == 3
    (unknown,) = engine.run(chunk([], [], 9, source=8))
    assert OutOfStep(unknown["message"]).expected == 1
    assert_answers(engine.run(*ROWS[2:]), EXPECTED[2:])


def test_answers_are_kept_for_a_while(engine: Engine) -> None:
    engine.run(*ROWS[:10])
    kept = [OutOfStep.code != answer.get("code") for answer in engine.run(*ROWS[:10])]
    assert kept == [False] * (10 - flow_senders.ANSWERS) + [True] * flow_senders.ANSWERS
    (refused,) = engine.run(chunk([], [], 0))
    assert OutOfStep(refused["message"]).expected == 11


def test_chunks_that_overtook_others_are_put_in_order(engine: Engine) -> None:
    answers = engine.run(*(ROWS[row] for row in (2, 1, 0, 5)))
    assert answers[3]["code"] == OutOfStep.code
    assert_answers([answers[row] for row in (2, 1, 0)], EXPECTED[:3])


def test_bad_chunk_is_refused_alone_and_can_be_mended(engine: Engine) -> None:
    bad = [
        {"lengths": np.array([len(FRAMES[0])], "<u4").tobytes()},
        {"lengths": np.zeros(CHUNK, "<u4").tobytes()},
        {"times": ROWS[1]["times"][:-1]},
        {"wire": b"\0" * 4},
        {"links": b"\0" * 2 * (CHUNK + 1)},
    ]
    engine.run(ROWS[0])
    for change in bad:
        (refused,) = engine.run({**ROWS[1], **change})
        assert refused["code"] == "bad_value"
    refused, after = engine.run({**ROWS[1], "times": b""}, ROWS[2])
    assert (refused["code"], after["code"]) == ("bad_value", "out_of_step")
    assert_answers(engine.run(*ROWS[1:]), EXPECTED[1:])


def test_rows_that_nobody_waits_for_are_left_out(engine: Engine) -> None:
    engine.run(*ROWS[:3], alive=[True, True, False])
    assert_answers(engine.run(*ROWS[2:]), EXPECTED[2:])


def test_what_packets_say_of_themselves_counts(engine: Engine) -> None:
    raw = [each[14:] for each in (FRAMES[0], FRAMES[1])]
    links, wire = np.array([101, 101], "<u2").tobytes(), np.array([9000, 9001], "<u4").tobytes()
    (answer,) = engine.run(chunk(raw, TIMES[:2], 1, links=links, wire=wire, end=True))
    assert int(unpacked(answer["flows"]).wire_bytes.sum()) == 18001
    plain = {name: value for name, value in chunk(raw, TIMES[:2], 1).items() if name not in ("now_ns", "end")}
    engine.parameters = msgspec.structs.replace(engine.parameters, table="other", link=101)
    (answer,) = engine.run(plain)
    assert answer["open"] == len(flows(engine.run(end(2)))) > 0


def test_two_senders_share_a_table(engine: Engine) -> None:
    syn, answered = frame(1, 2, 5, 6, 2, 0, 0), frame(2, 1, 6, 5, 18, 0, 0)
    one, two = engine.run(chunk([syn], [1], 1), chunk([answered], [2], 1, source=8))
    assert (one["open"], two["open"]) == (1, 1)
    (ended,) = engine.run(end(2, source=8))
    assert flows([ended]).history.tolist() == ["Sh"]
    (again, other) = engine.run(end(2, source=8), end(2))
    assert (again["count"], other["count"]) == (1, 0)


def test_flows_that_an_answer_has_no_room_for_come_with_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_senders, "LEAST_GIVEN", 4)
    frames = [frame(1, 2, port, 6, 2, 0, 0) for port in range(10)]
    engine.run(*(chunk(frames[at : at + 5], [1] * 5, at // 5 + 1) for at in (0, 5)))
    answers = engine.run(end(3), *(chunk([], [], number) for number in (4, 5, 6)))
    assert [(answer["count"], answer["left"]) for answer in answers] == [(4, 6), (4, 2), (2, 0), (0, 0)]
    assert flows(answers).source_port.tolist() == list(range(10))


# --- what is written down ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("always_written", "packet_path")
def test_flows_that_nobody_fetches_are_bounded(tmp_path: Path) -> None:
    """One sender brings packets, the other ends their flows and fetches few of them."""
    engine = Engine(tmp_path, capacity=2048)
    frames = [frame(number >> 8, 300, number & 255, 6, 2, 0, 0) for number in range(2048)]
    left: list[int] = []
    for number in range(1, 7):
        engine.run(chunk(frames, [number * 10**10] * 2048, number, now_ns=0))
        (answer,) = engine.run(chunk([], [], number, source=8, now_ns=number * 10**10 + 6 * 10**9))
        left.append(int(answer["left"]))
    assert left == [1024, 2048, 3072, 2048, 3072, 2048]
    for number in (7, 8):
        engine.run(chunk(frames, [number * 10**10] * 2048, number, now_ns=0))
        (answer,) = engine.run(end(number, source=8))
    assert answer["left"] == 4096
    engine.run(chunk(frames, [9 * 10**10] * 2048, 9, now_ns=0))
    engine.run(end(9, source=8))
    (refused,) = engine.run(end(10, source=8))
    assert refused["code"] == Busy.code
    assert "5120 flows" in refused["message"]
    (answer,) = engine.run(chunk([], [], 10, source=8))
    assert answer["count"] == 1024


def test_small_table_takes_small_chunks(tmp_path: Path) -> None:
    engine = Engine(tmp_path, capacity=1)
    (refused,) = engine.run(chunk(FRAMES[:257], TIMES[:257], 1))
    assert refused["code"] == BadValue.code
    assert "at most 256" in refused["message"]
    (answer,) = engine.run(chunk(FRAMES[:256], TIMES[:256], 1))
    assert answer["count"] > 100


def test_next_engine_goes_on_where_the_table_was_written_down(tmp_path: Path) -> None:
    answers = []
    for row in ROWS:
        (answer,) = Engine(tmp_path).run(row)
        assert answer["saved"] == row["number"]
        answers.append(answer)
    assert_answers(answers, EXPECTED)


def test_next_engine_has_what_was_written_down_and_the_rest_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_tables, "SAVE_S", float("inf"))
    first = Engine(tmp_path)
    assert [answer["saved"] for answer in first.run(*ROWS[:4])] == [4] * 4, "the first ones are written at once"
    assert [answer["saved"] for answer in first.run(*ROWS[4:8])] == [4] * 4
    second = Engine(tmp_path)
    (refused,) = second.run(ROWS[8])
    assert OutOfStep(refused["message"]).expected == 5
    (kept,) = second.run(ROWS[2])
    assert_same(unpacked(kept["flows"]), EXPECTED[2])
    assert_answers(second.run(*ROWS[4:]), EXPECTED[4:])


def test_table_is_written_once_a_second_and_for_a_tenth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    written = []

    def save(store: FlowStore, name: str, epoch: int, saved: SavedTable, state: FlowState, is_done: bool) -> bool:
        nonlocal now
        written.append((now, len(state.records)))
        now += 0.5
        return True

    monkeypatch.setattr(flow_tables, "monotonic", lambda: now)
    monkeypatch.setattr(FlowStore, "save", save)
    engine = Engine(tmp_path)
    for number in range(1, 200):
        engine.run(chunk([frame(1, 2, number, 6, 2, 0, 0)], [number], number))
        now += 0.1
    times = [at for at, _ in written]
    assert times[0] == 0.0, "at once"
    assert np.diff(times) == pytest.approx(5.5, abs=0.21)
    for _ in range(3):
        now += 100
        engine.run(chunk([], [], 199))
    assert len(written) == len(times) + 1, "nothing changes then"


@pytest.mark.usefixtures("always_written")
def test_flows_not_yet_given_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_senders, "LEAST_GIVEN", 4)
    frames = [frame(1, 2, port, 6, 2, 0, 0) for port in range(10)]
    first = Engine(tmp_path).run(chunk(frames[:3], [1] * 3, 1), chunk(frames[3:], [1] * 7, 2), end(3))
    rest = [Engine(tmp_path).run(chunk([], [], number))[0] for number in (4, 5)]
    assert flows([*first, *rest]).source_port.tolist() == list(range(10))
    assert [answer["left"] for answer in rest] == [2, 0]


@pytest.mark.parametrize("with_kernels", [False, True])
def test_two_engines_in_turn_are_one_table(tmp_path: Path, with_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a spare stands in for a GPU: each sees that the other has had the table, and writes what it adds."""
    monkeypatch.setattr(flow_tables, "SAVE_S", float("inf"))
    engines = [Engine(tmp_path)]
    if with_kernels:
        if host_kernels.COMPILER is None:
            pytest.skip("needs a C++ compiler")
        monkeypatch.setattr(PacketKernels, "on", lambda device: PacketKernels(device, host_kernels.compiled()))
    engines.append(Engine(tmp_path))
    assert isinstance(engines[1].tables.path, DeviceFlows) == with_kernels
    assert_answers([engines[row % 2].run(each)[0] for row, each in enumerate(ROWS)], EXPECTED)


def test_engine_whose_table_another_has_opened_writes_it_no_more(tmp_path: Path) -> None:
    first, second = Engine(tmp_path), Engine(tmp_path)
    first.run(*ROWS[:3])
    second.run(*ROWS[:2])
    held = first.tables._held["t"]
    first.tables.relieve()
    assert first.tables.store.epoch("t") > held.epoch
    assert_answers(second.run(*ROWS[2:]), EXPECTED[2:])
    (refused,) = first.run(ROWS[1])
    assert OutOfStep(refused["message"]).expected == 12, "it has what the other has written"


def test_failed_run_leaves_the_table_as_it_was_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tmp_path)
    engine.run(*ROWS[:2])
    engine.tables.relieve()

    def fail(self: Any, now_ns: int) -> Flows:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("aikoryu.netio.flow_table.FlowTable.expire", fail)
        with pytest.raises(MemoryError):
            engine.run(ROWS[2])
    assert_answers(engine.run(*ROWS[2:]), EXPECTED[2:])


def test_full_disk_costs_no_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch, always_written: None) -> None:
    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    engine.run(ROWS[0])
    with monkeypatch.context() as patched:
        patched.setattr(FlowStore, "save", full)
        (answer,) = engine.run(ROWS[1])
        assert (answer["saved"], answer["trouble"]) == (1, "No space left on device")
    for answer in engine.run(*ROWS[2:4]):
        assert (answer["saved"], answer["trouble"]) == (4, "")


def test_full_disk_is_told_when_a_table_is_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FlowStore, "_draft", full)
    with pytest.raises(NotWritten, match=r"'t' .* No space left on device: make room"):
        engine.run(ROWS[0])


def test_tables_of_an_engine_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "MOST_TABLES", 2)
    engine = Engine(tmp_path)
    answers: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    for row in ROWS:
        for name, found in answers.items():
            engine.parameters = msgspec.structs.replace(engine.parameters, table=name)
            found += engine.run(row)
            assert len(engine.tables._held) <= 2
    for found in answers.values():
        assert_answers(found, EXPECTED)
    assert not engine.tables._held, "all have ended"
    until = [path.stat().st_mtime for path in engine.tables.store._folder.iterdir()]
    assert max(until) < monotonic() + flow_store.DONE_S + 1, "and are forgotten soon"


def test_large_tables_make_room_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "MOST_FLOWS", 10_000)
    engine = Engine(tmp_path)
    for name in ("a", "b", "c"):
        engine.parameters = msgspec.structs.replace(engine.parameters, table=name)
        engine.run(ROWS[0])
    assert list(engine.tables._held) == ["b", "c"]
    engine.parameters = msgspec.structs.replace(engine.parameters, table="a")
    assert_answers(engine.run(*ROWS[1:]), EXPECTED[1:])


def test_table_that_nobody_uses_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(flow_tables, "monotonic", lambda: now)
    engine = Engine(tmp_path)
    other = msgspec.structs.replace(engine.parameters, table="other")
    engine.run(*ROWS[:2])
    engine.parameters, of_t = other, engine.parameters
    engine.run(ROWS[0])
    assert list(engine.tables._held) == ["t", "other"]
    now = flow_tables.UNUSED_S + 1
    engine.run(ROWS[1])
    assert list(engine.tables._held) == ["other"]
    engine.parameters = of_t
    assert_answers(engine.run(*ROWS[2:]), EXPECTED[2:])


def test_senders_of_a_table_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "MOST_SENDERS", 2)
    for source in (1, 2, 1, 3):
        engine.run(chunk([], [], 1, source))
    codes = [engine.run(chunk([], [], 2, source))[0].get("code") for source in (1, 3, 2)]
    assert codes == [None, None, "out_of_step"]


def test_refused_stranger_takes_no_senders_place(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "MOST_SENDERS", 2)
    engine.run(chunk([], [], 1, 1), chunk([], [], 1, 2))
    strangers = engine.run(chunk([], [], 9, 3), {**chunk(FRAMES[:1], TIMES[:1], 1, 4), "times": b"x"})
    assert [refused["code"] for refused in strangers] == ["out_of_step", "bad_value"]
    assert ["code" in answer for answer in engine.run(chunk([], [], 2, 1), chunk([], [], 2, 2))] == [False, False]


def syns(count: int) -> list[bytes]:
    """Packets, a flow each."""
    return [frame(number >> 8, 300, number & 255, 6, 2, 0, 0) for number in range(count)]


def test_answer_gives_no_more_flows_than_it_may_have_bytes(tmp_path: Path) -> None:
    engine = Engine(tmp_path, answer_bytes=20 * FLOW_BYTES + 5)
    answers = engine.run(chunk(syns(50), [1] * 50, 1, now_ns=0), end(2), chunk([], [], 3), chunk([], [], 4))
    assert [(answer["count"], answer["left"]) for answer in answers] == [(0, 0), (20, 30), (20, 10), (10, 0)]
    assert len(flows(answers)) == 50
    assert max(len(answer["flows"]) for answer in answers) < 20 * FLOW_BYTES + 4096
    smallest = Engine(tmp_path, answer_bytes=1)
    smallest.run(chunk(syns(2), [1] * 2, 5, now_ns=0))
    assert [answer["count"] for answer in smallest.run(end(6), chunk([], [], 7))] == [1, 1]


def test_bytes_of_answers_that_a_table_keeps_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of who was heard of longest ago make room; it is told, and never takes its flows for none."""
    monkeypatch.setattr(flow_tables, "MOST_KEPT_BYTES", 250 * FLOW_BYTES)
    for number in (1, 3):
        engine.run(chunk(syns(100), [1] * 100, number, now_ns=0), end(number + 1))
    held = engine.tables.held("t", SPEC)
    engine.run(chunk(syns(100), [1] * 100, 1, 8, now_ns=0), end(2, 8))
    (one, two, three, four) = engine.run(*(end(number) for number in (1, 2, 3, 4)))
    assert (one["code"], two["code"]) == ("forgotten", "forgotten")
    assert "made room for those of other senders" in two["message"]
    assert (three["count"], four["count"]) == (0, 100)
    assert engine.run(end(2, 8))[0]["count"] == 100
    assert held.answer_bytes <= 250 * FLOW_BYTES
    assert OutOfStep(engine.run(end(0))[0]["message"]).expected == 5


def test_tables_whose_answers_take_much_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tables, "MOST_ANSWERS_BYTES", 150 * FLOW_BYTES)
    engine = Engine(tmp_path)
    for name in ("a", "b", "c"):
        engine.parameters = msgspec.structs.replace(engine.parameters, table=name)
        engine.run(chunk(syns(100), [1] * 100, 1, now_ns=10**11), chunk(syns(1), [10**11], 2, now_ns=0))
    assert list(engine.tables._held) == ["b", "c"]
    engine.run(chunk([], [], 3))
    assert list(engine.tables._held) == ["c"]


def test_table_of_another_kind_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.run(ROWS[0])
    for change in ({"idle_s": None}, {"capacity": 5}, {"key": {"vlan": True}}):
        for other in (engine, Engine(tmp_path)):
            other.parameters = msgspec.convert({**PARAMETERS, **change}, Operation.Parameters)
            with pytest.raises(BadParameter, match="'t' was made with key inner, idle_s 5"):
                other.run(ROWS[1])
    other, table = Engine(tmp_path), engine.tables.store
    epochs = []
    for _ in range(2):
        other.parameters = msgspec.convert({**PARAMETERS, "capacity": 5}, Operation.Parameters)
        with pytest.raises(BadParameter):
            other.run(ROWS[1])
        epochs.append(table.epoch("t"))
    assert epochs[0] == epochs[1], "it is opened once"


@pytest.mark.parametrize(
    "change", [{"table": "a b"}, {"table": ""}, {"capacity": 0}, {"idle_s": 0}, {"key": {"header": "x"}}, {"x": 1}]
)
def test_parameters_that_are_none_are_refused(engine: Engine, change: dict[str, Any]) -> None:
    schema = tuple(
        (name, Field("bin" if name in ("frames", "lengths", "times") else "u8")) for name in list(ROWS[0])[:5]
    )
    with pytest.raises(BadParameter):
        engine.operation.outputs(schema, engine.operation.decode_parameters({**PARAMETERS, **change}))


def test_table_that_is_to_be_forgotten_leaves_nothing(engine: Engine) -> None:
    engine.run(*ROWS[:3])
    (answer,) = engine.run({**chunk([], [], 0), "forget": True})
    assert "code" not in answer
    assert not engine.tables._held
    assert not list(engine.tables.store._folder.iterdir())
    (gone,) = engine.run({**ROWS[3], "forget": False})
    assert OutOfStep(gone["message"]).expected == 1
    assert not list(engine.tables.store._folder.iterdir()), "nor of a chunk that came late"
    engine.run(ROWS[0])
    engine.run({**end(0), "forget": True}, alive=[False])
    assert len(list(engine.tables.store._folder.iterdir())) == 1, "it was withdrawn"


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> FlowStore:
        return FlowStore(tmp_path / "flows")

    def test_who_opens_a_table_takes_it(self, store: FlowStore) -> None:
        first, saved, state = store.open("t", SPEC)
        assert store.epoch("t") == first
        assert store.save("t", first, saved, state)
        second, _, _ = store.open("t", SPEC)
        assert second > first
        assert not store.save("t", first, saved, state)
        assert store.save("t", second, saved, state)
        assert len(list(store._folder.iterdir())) == 1

    def test_tables_that_nobody_uses_are_forgotten(self, store: FlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
        old, _, _ = store.open("old", SPEC)
        assert (store._folder / "old.flows").stat().st_mtime > monotonic() + flow_store.FORGOTTEN_S - 60
        os.utime(store._folder / "old.flows", (0, 0))
        (store._folder / "half~1~written").write_bytes(b"")
        store.open("new", SPEC)
        store.open("new", SPEC)
        assert [path.name for path in store._folder.iterdir()] == ["new.flows"]
        assert (store._folder / "new.flows").stat().st_mtime > monotonic() + flow_store.FORGOTTEN_S - 60
        assert store.epoch("old") == 0
        assert store.open("old", SPEC)[0] > old, "who still has it must see that it is another"
        monkeypatch.setattr(flow_store, "MOST_FILES", 2)
        with pytest.raises(Busy, match="2 tables of flows"):
            store.open("third", SPEC)

    def test_table_that_is_done_is_forgotten_soon(self, store: FlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
        epoch, saved, state = store.open("done", SPEC)
        now = monotonic()
        monkeypatch.setattr(flow_store, "monotonic", lambda: now)
        assert store.save("done", epoch, saved, state, is_done=True)
        store.open("b", SPEC)
        assert store.epoch("done") == epoch
        now += flow_store.DONE_S + 1
        store.open("c", SPEC)
        assert sorted(path.name for path in store._folder.iterdir()) == ["b.flows", "c.flows"]

    def test_runs_that_nobody_uses_make_room(self, store: FlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flow_store, "MOST_FILES", 4)
        now = monotonic()
        monkeypatch.setattr(flow_store, "monotonic", lambda: now)
        for name in ("named", "once-old", "once-older"):
            store.open(name, SPEC)
            now += 1
        store.open("once-old", SPEC)
        now += flow_store.DONE_S + 1
        store.open("once-new", SPEC)
        for name, gone in (("once-a", "once-older"), ("once-b", "once-old")):
            assert store.epoch(gone)
            store.open(name, SPEC)
            assert not store.epoch(gone)
        with pytest.raises(Busy):
            store.open("once-c", SPEC)
        assert store.epoch("named")
        assert store.epoch("once-new")

    def test_draft_that_cannot_be_written_is_removed(self, store: FlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
        epoch, saved, state = store.open("t", SPEC)
        monkeypatch.setattr(flow_store, "bytes_of", lambda array: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.save("t", epoch, saved, state)
        assert [path.name for path in store._folder.iterdir()] == ["t.flows"]

"""What several fronts handed over for one lane runs as one batch, and each gets its own rows and errors."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aikoryu.bus.columns import FIXED, OFFSET, VARIABLE, Array, Field, pack_strings
from aikoryu.bus.errors import BusError
from aikoryu.gpu.batch import Batch
from aikoryu.gpu.device import Device, DeviceLost, Mark, OutOfMemory
from aikoryu.gpu.executor import Executor, Piece, Running
from aikoryu.gpu.job import Done, Job, Part
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.signature import Signature
from aikoryu.gpu.slab import Slab, align

SLAB_BYTES = 1 << 16
Values = Array | list[str] | list[bytes]


class Crowded(MemoryError):
    """What the device of these tests raises where it has no room."""


class Small(Device):
    """A device with room for few rows.

    Attributes:
        rows: most that an operation may use at once.
        ran: rows of each run, in order.
    """

    def __init__(self, rows: int = 1 << 30) -> None:
        super().__init__("cpu", 1)
        self.rows = rows
        self.ran: list[int] = []

    def use(self, rows: int) -> None:
        self.ran.append(rows)
        if rows > self.rows:
            raise Crowded

    def explain(self, error: Exception) -> Exception:
        return OutOfMemory("no room") if isinstance(error, Crowded) else error


class Given(Operation):
    """Does what the test says."""

    name = "test.given"

    def __init__(
        self, run: Callable[[Batch], Mapping[str, Any]], inputs: str, outputs: str, *, pure: bool = True
    ) -> None:
        self.signature = Signature({"x": inputs}, {"y": outputs})
        self.pure = pure
        self._run = run

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        if isinstance(device, Small):
            device.use(batch.rows)
        return self._run(batch)


class Front:
    """One front's slab, and the batch of column `x` that lies in it."""

    def __init__(self, x: Values, field: Field, slab_bytes: int = SLAB_BYTES) -> None:
        self.slab = Slab.create(slab_bytes)
        self.rows = len(x)
        self.slab.view[: self.rows] = b"\1" * self.rows
        at = align(self.rows)
        if isinstance(x, list):
            packed = pack_strings(x)
            ends = np.frombuffer(packed.o or b"", OFFSET)
            data = align(at + ends.nbytes)
            self.slab.array(at, OFFSET, ends.shape)[...] = ends
            self.slab.view[data : data + len(packed.d)] = packed.d
            part = Part("x", field, data, len(packed.d), at)
        else:
            self.slab.array(at, x.dtype, x.shape)[...] = x
            part = Part("x", field, at, x.nbytes)
        self.job = Job(id(self), 0, "test.given", self.rows, [part], b"\x80", 0, align(part.data + part.data_bytes))

    @property
    def piece(self) -> Piece:
        return Piece(self.job, self.slab)

    def answer(self, done: Done) -> Any:
        """Column `y` of the answer: an array, or a list of bytes."""
        assert (done.id, done.failed) == (self.job.id, "")
        (part,) = done.parts
        assert part.data >= self.job.parts[0].data
        if part.field.dtype not in VARIABLE:
            return self.slab.array(part.data, FIXED[part.field.dtype], (self.rows, *part.field.shape))
        ends = self.slab.array(part.offsets, OFFSET, (self.rows + 1,)).tolist()
        data = bytes(self.slab.view[part.data : part.data + part.data_bytes])
        return [data[a:b] for a, b in itertools.pairwise(ends)]


Hand = Callable[..., Front]


@pytest.fixture
def hand() -> Iterator[Hand]:
    """Lay a batch out in a slab of its own."""
    fronts: list[Front] = []

    def lay(x: Values, dtype: str, **slab: int) -> Front:
        shape = x.shape[1:] if isinstance(x, np.ndarray) else ()
        fronts.append(Front(x, Field(dtype, shape), **slab))
        return fronts[-1]

    yield lay
    for front in fronts:
        front.slab.close()


def run(operation: Operation, fronts: Sequence[Front], device: Device | None = None) -> list[Done]:
    return Executor({operation.name: operation}, device or Small()).run([front.piece for front in fronts])


def i8(*values: int) -> Array:
    return np.array(values, np.int64)


def refuse_negative(batch: Batch) -> Mapping[str, Any]:
    for row in np.flatnonzero(batch["x"] < 0).tolist():
        batch.reject(row, "bad_value", str(batch["x"][row]))
    return {"y": batch["x"] * 2}


class TestColumns:
    @pytest.mark.parametrize("dtype", FIXED)
    def test_rows_of_any_fixed_width_come_back_to_whose_they_are(self, hand: Hand, dtype: str) -> None:
        bits = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 100, (6, 2, 3))
        x = bits.astype(FIXED[dtype])
        fronts = [hand(x[:1], dtype), hand(x[1:4], dtype), hand(x[4:], dtype)]
        device = Small()
        ends = run(Given(lambda batch: {"y": batch["x"][::-1]}, f"{dtype}[...]", f"{dtype}[...]"), fronts, device)
        assert device.ran == [6]
        got = [front.answer(done) for front, done in zip(fronts, ends, strict=True)]
        np.testing.assert_array_equal(np.concatenate(got), x[::-1])
        assert [len(each) for each in got] == [1, 3, 2]

    def test_input_is_answered_from_where_it_lies_or_copied(self, hand: Hand) -> None:
        fronts = [hand(i8(1, 2), "i8"), hand(i8(3), "i8")]
        ends = run(Given(lambda batch: {"y": batch["x"]}, "i8", "i8"), fronts)
        assert [front.answer(done).tolist() for front, done in zip(fronts, ends, strict=True)] == [[1, 2], [3]]

    @pytest.mark.parametrize("dtype", ["utf8", "bin"])
    def test_texts_and_bytes(self, hand: Hand, dtype: str) -> None:
        fronts = [hand([b"a", b"", "日".encode()], dtype), hand([b"bc"], dtype), hand([b"", b"d"], dtype)]
        seen: list[Any] = []

        def operation(batch: Batch) -> Mapping[str, Any]:
            seen.extend(batch["x"])
            return {"y": [value + value for value in batch["x"]]}

        ends = run(Given(operation, dtype, dtype), fronts)
        assert seen == (
            ["a", "", "日", "bc", "", "d"] if dtype == "utf8" else [b"a", b"", "日".encode(), b"bc", b"", b"d"]
        )
        got = [front.answer(done) for front, done in zip(fronts, ends, strict=True)]
        assert got == [[b"aa", b"", "日日".encode()], [b"bcbc"], [b"", b"dd"]]

    def test_rows_that_are_not_utf8_are_told_to_who_sent_them(self, hand: Hand) -> None:
        fronts = [hand([b"a", b"b"], "utf8"), hand([b"c", b"\xff", b"d"], "utf8")]
        ends = run(Given(lambda batch: {"y": batch["x"]}, "utf8", "utf8"), fronts)
        assert [[(row, code) for row, code, _ in done.errors] for done in ends] == [[], [(1, "bad_value")]]
        assert fronts[1].answer(ends[1]) == [b"c", b"", b"d"]


class TestErrors:
    def test_refused_rows_are_told_by_the_fronts_own_numbers(self, hand: Hand) -> None:
        fronts = [hand(i8(1, -2), "i8"), hand(i8(3), "i8"), hand(i8(-4, 5, -6), "i8")]
        ends = run(Given(refuse_negative, "i8", "i8"), fronts)
        assert [done.errors for done in ends] == [
            [(1, "bad_value", "-2")],
            [],
            [(0, "bad_value", "-4"), (2, "bad_value", "-6")],
        ]

    def test_only_the_batch_that_raises_fails(self, hand: Hand) -> None:
        def operation(batch: Batch) -> Mapping[str, Any]:
            if 13 in batch["x"]:
                raise ZeroDivisionError
            return refuse_negative(batch)

        fronts = [hand(i8(1, 2), "i8"), hand(i8(3, 13), "i8"), hand(i8(-4), "i8")]
        device = Small()
        with capture_logs() as logs:
            ends = run(Given(operation, "i8", "i8"), fronts, device)
        assert device.ran == [5, 2, 2, 1]
        assert [done.failed for done in ends] == ["", "operation_failed", ""]
        assert fronts[0].answer(ends[0]).tolist() == [2, 4]
        assert ends[2].errors == [(0, "bad_value", "-4")]
        assert [log["event"] for log in logs] == ["operation failed"], "the one that is to blame"

    def test_everybody_withdrew(self, hand: Hand) -> None:
        def operation(batch: Batch) -> Mapping[str, Any]:
            batch.checkpoint()
            return {"y": batch["x"]}

        fronts = [hand(i8(1), "i8"), hand(i8(2, 3), "i8")]
        fronts[0].slab.view[0] = 0
        assert [done.failed for done in run(Given(operation, "i8", "i8"), fronts)] == ["", ""]
        fronts[1].slab.view[:2] = b"\0\0"
        assert [done.failed for done in run(Given(operation, "i8", "i8"), fronts)] == ["cancelled", "cancelled"]

    def test_row_that_is_withdrawn_meanwhile_is_seen_by_the_next_step(self, hand: Hand) -> None:
        fronts = [hand(i8(1), "i8"), hand(i8(2, 3), "i8")]
        seen: list[list[bool]] = []

        def operation(batch: Batch) -> Mapping[str, Any]:
            seen.append(batch.alive.tolist())
            fronts[1].slab.view[1] = 0
            seen.append(batch.alive.tolist())
            return {"y": batch["x"]}

        run(Given(operation, "i8", "i8"), fronts)
        assert seen == [[True, True, True], [True, True, False]]


class TestOutOfMemory:
    @pytest.mark.parametrize("room", [1, 2, 3, 4, 6])
    def test_batch_is_halved_until_there_is_room(self, hand: Hand, room: int) -> None:
        fronts = [hand(i8(0, 1, -2, 3), "i8"), hand(i8(4, 5, -6), "i8")]
        device = Small(room)
        with capture_logs():
            ends = run(Given(refuse_negative, "i8", "i8"), fronts, device)
        assert sum(rows for rows in device.ran if rows <= room) == 7, "every row runs once"
        assert [front.answer(done).tolist() for front, done in zip(fronts, ends, strict=True)] == [
            [0, 2, -4, 6],
            [8, 10, -12],
        ]
        assert [done.errors for done in ends] == [[(2, "bad_value", "-2")], [(2, "bad_value", "-6")]]

    def test_texts_are_halved_too(self, hand: Hand) -> None:
        fronts = [hand([b"a", b"b"], "utf8"), hand([b"c"], "utf8")]
        with capture_logs():
            ends = run(Given(lambda batch: {"y": batch["x"]}, "utf8", "utf8"), fronts, Small(1))
        assert [front.answer(done) for front, done in zip(fronts, ends, strict=True)] == [[b"a", b"b"], [b"c"]]

    def test_tensors_are_halved_too(self, hand: Hand) -> None:
        pytest.importorskip("torch", reason="needs the extra `worker`")
        x = np.arange(10, dtype=np.uint16).reshape(5, 2)
        fronts = [hand(x[:2], "bf16"), hand(x[2:], "bf16")]
        with capture_logs():
            ends = run(Given(lambda batch: {"y": batch.tensor("x").clone()}, "bf16[2]", "bf16[2]"), fronts, Small(2))
        got = [front.answer(done) for front, done in zip(fronts, ends, strict=True)]
        np.testing.assert_array_equal(np.concatenate(got), x)

    def test_row_that_is_too_much_alone_fails_as_such(self, hand: Hand) -> None:
        with capture_logs() as logs:
            (done,) = run(Given(refuse_negative, "i8", "i8"), [hand(i8(1), "i8")], Small(0))
        assert done.failed == "operation_failed"
        assert "send smaller rows" in done.message
        assert logs

    def test_operation_with_effects_is_not_run_in_halves(self, hand: Hand) -> None:
        device = Small(2)
        with capture_logs():
            (done,) = run(Given(refuse_negative, "i8", "i8", pure=False), [hand(i8(1, 2, 3), "i8")], device)
        assert (done.failed, device.ran) == ("operation_failed", [3])


@pytest.mark.parametrize("count", [1, 2])
def test_device_that_is_lost_ends_everything(hand: Hand, count: int) -> None:
    def operation(batch: Batch) -> Mapping[str, Any]:
        raise DeviceLost("fell off the bus")

    device = Small()
    with pytest.raises(DeviceLost, match="fell off"):
        run(Given(operation, "i8", "i8"), [hand(i8(1), "i8") for _ in range(count)], device)
    assert device.ran == [count], "it is not tried again"


class Late(Device):
    """A device whose copies happen when the test lets a stream go on.

    Attributes:
        lost: what it raises instead.
    """

    def __init__(self) -> None:
        super().__init__("cpu", 1)
        self.lost: DeviceLost | None = None
        self._current = -1
        self._enqueued: dict[int, list[Callable[[], None]]] = defaultdict(list)

    @contextmanager
    def stream(self, number: int = 0) -> Iterator[object]:
        self._current, before = number, self._current
        yield None
        self._current = before

    def fetch(self, value: Any, into: Array) -> None:
        assert self._current >= 0, "on a stream"
        fetch = super().fetch
        self._enqueued[self._current].append(lambda: fetch(value, into))

    def mark(self) -> Mark:
        return LateMark(self, self._current)

    def go_on(self, number: int) -> None:
        for copy in self._enqueued.pop(number, []):
            copy()

    def waits(self, number: int) -> bool:
        if self.lost is not None:
            raise self.lost
        return bool(self._enqueued[number])


class LateMark:
    """The end of what is enqueued on a stream."""

    def __init__(self, device: Late, number: int) -> None:
        self._device = device
        self._number = number

    def query(self) -> bool:
        return not self._device.waits(self._number)

    def wait(self) -> None:
        assert self.query()


class TestStreams:
    def started(self, device: Late, front: Front, stream: int) -> Running:
        operation = Given(refuse_negative, "i8", "i8")
        return Executor({operation.name: operation}, device).start([front.piece], stream)

    def test_batches_end_when_their_streams_do(self, hand: Hand) -> None:
        device = Late()
        fronts = [hand(i8(1, 2), "i8"), hand(i8(3), "i8")]
        running = [self.started(device, front, number) for number, front in enumerate(fronts)]
        assert [each.done() for each in running] == [False, False]
        device.go_on(1)
        assert [each.done() for each in running] == [False, True]
        (done,) = running[1].wait()
        assert fronts[1].answer(done).tolist() == [6]
        device.go_on(0)
        (done,) = running[0].wait()
        assert fronts[0].answer(done).tolist() == [2, 4]

    def test_device_that_is_lost_meanwhile_is_told(self, hand: Hand) -> None:
        device = Late()
        running = self.started(device, hand(i8(1), "i8"), 0)
        device.lost = DeviceLost("fell off the bus")
        with pytest.raises(DeviceLost, match="fell off"):
            running.done()


def test_error_of_the_bus_fails_its_own_piece(hand: Hand) -> None:
    def operation(batch: Batch) -> Mapping[str, Any]:
        if 13 in batch["x"]:
            raise BusError("thirteen")
        return {"y": batch["x"]}

    ends = run(Given(operation, "i8", "i8"), [hand(i8(1, 2), "i8"), hand(i8(3, 13), "i8")])
    assert [done.failed for done in ends] == ["", "error"]


def test_what_is_not_pure_is_not_run_again_by_piece(hand: Hand) -> None:
    ran: list[int] = []

    def operation(batch: Batch) -> Mapping[str, Any]:
        ran.extend(batch["x"].tolist())
        raise ZeroDivisionError

    ends = run(Given(operation, "i8", "i8", pure=False), [hand(i8(1, 2), "i8"), hand(i8(3, 4), "i8")])
    assert ran == [1, 2, 3, 4]
    assert [done.failed for done in ends] == ["operation_failed"] * 2


def test_batch_that_failed_ends_when_its_stream_does(hand: Hand) -> None:
    """What it has enqueued may still write into the slab, which the front uses again."""
    operation = Given(lambda batch: {"y": batch["x"] * 2, "z": None}, "i8", "i8")
    operation.signature = Signature({"x": "i8"}, {"y": "i8", "z": "i8"})
    running = Executor({operation.name: operation}, Late()).start([hand(i8(1, 2), "i8").piece], 0)
    assert not running.done()

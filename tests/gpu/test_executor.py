"""The executor, on a slab a test has laid out: what an operation sees and what becomes of what it returns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from aikoryu.bus.columns import FIXED, OFFSET, Array, Field, pack_strings
from aikoryu.bus.errors import BadValue
from aikoryu.gpu.batch import Abandoned, Batch
from aikoryu.gpu.device import Device
from aikoryu.gpu.executor import Executor, Piece
from aikoryu.gpu.job import Done, Job, Part
from aikoryu.gpu.operation import Operation
from aikoryu.gpu.ops import matrix
from aikoryu.gpu.signature import Signature
from aikoryu.gpu.slab import Slab, align

Run = Callable[[Batch], Mapping[str, Any]]


class Given(Operation):
    """Does what the test says."""

    name = "test.given"

    def __init__(self, run: Run, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self.signature = Signature(inputs, outputs)
        self._run = run

    def run(self, batch: Batch, device: Device) -> Mapping[str, Any]:
        return self._run(batch)


@pytest.fixture
def slab() -> Iterator[Slab]:
    made = Slab.create(1 << 16)
    yield made
    made.close()


def lay_out(slab: Slab, operation: str, parameters: Any = None, **columns: Any) -> Job:
    """A job of arrays and lists of bytes (as `utf8`); an array as (array, "bf16") is its bits."""
    rows = len(next(iter(columns.values())))
    slab.view[:rows] = b"\1" * rows
    free = align(rows)
    parts = []
    for name, values in columns.items():
        if isinstance(values, list):
            packed = pack_strings(values)
            ends = np.frombuffer(packed.o or b"", OFFSET)
            slab.array(free, OFFSET, ends.shape)[...] = ends
            data = align(free + ends.nbytes)
            slab.view[data : data + len(packed.d)] = packed.d
            parts.append(Part(name, Field("utf8"), data, len(packed.d), free))
            free = align(data + len(packed.d))
        else:
            dtype = next(wire for wire, known in FIXED.items() if known == values.dtype)
            slab.array(free, values.dtype, values.shape)[...] = values
            parts.append(Part(name, Field(dtype, values.shape[1:]), free, values.nbytes))
            free = align(free + values.nbytes)
    return Job(5, 0, operation, rows, parts, msgspec.msgpack.encode(parameters or {}), 0, free)


def read(slab: Slab, part: Part, rows: int) -> Array:
    return slab.array(part.data, FIXED[part.field.dtype], (rows, *part.field.shape))


def run(slab: Slab, operation: Operation, **columns: Any) -> Done:
    executor = Executor({operation.name: operation}, Device("cpu", 1))
    return run_job(executor, lay_out(slab, operation.name, **columns), slab)


def run_job(executor: Executor, job: Job, slab: Slab) -> Done:
    """One batch of one front."""
    (done,) = executor.run([Piece(job, slab)])
    return done


X = np.arange(6, dtype=np.float32).reshape(3, 2)
IO = ({"x": "f4[n]"}, {"y": "f4[n]"})


def test_operation_sees_the_rows_in_shared_memory(slab: Slab) -> None:
    seen: list[Array] = []

    def operation(batch: Batch) -> Mapping[str, Any]:
        seen.append(batch["x"])
        return {"y": batch["x"] + 1}

    done = run(slab, Given(operation, *IO), x=X)
    np.testing.assert_array_equal(seen[0], X)
    assert slab.offset_of(seen[0].ctypes.data, 0) == 64
    assert (done.id, done.errors, done.failed) == (5, [], "")
    np.testing.assert_array_equal(read(slab, done.parts[0], 3), X + 1)


def test_answer_that_lies_in_the_slab_stays_where_it_is(slab: Slab) -> None:
    done = run(slab, Given(lambda batch: {"y": batch["x"]}, *IO), x=X)
    assert done.parts[0].data == 64


def test_answer_in_another_order_is_copied_and_overwrites_no_input(slab: Slab) -> None:
    done = run(
        slab, Given(lambda batch: {"y": batch["x"][::-1], "z": batch["x"]}, IO[0], {"y": "f4[n]", "z": "f4[n]"}), x=X
    )
    y, z = done.parts
    np.testing.assert_array_equal(read(slab, y, 3), X[::-1])
    np.testing.assert_array_equal(read(slab, z, 3), X)


def test_columns_left_out_of_the_signature_are_not_answered(slab: Slab) -> None:
    done = run(slab, Given(lambda batch: {"y": batch["x"], "more": 1}, *IO), x=X)
    assert [part.name for part in done.parts] == ["y"]


def test_texts_come_and_go(slab: Slab) -> None:
    operation = Given(lambda b: {"t": [t[::-1] for t in b["t"]]}, {"t": "utf8"}, {"t": "utf8"})
    done = run(slab, operation, t=[b"", "日本".encode(), b"ab"])
    (part,) = done.parts
    ends = slab.array(part.offsets, OFFSET, (4,)).tolist()
    data = bytes(slab.view[part.data : part.data + part.data_bytes])
    assert [data[a:b].decode() for a, b in itertools.pairwise(ends)] == ["", "本日", "ba"]


def test_row_that_is_not_utf8_is_refused_and_seen_as_empty(slab: Slab) -> None:
    seen: list[str] = []

    def look(batch: Batch) -> Mapping[str, Any]:
        seen.extend(batch["t"])
        return {"t": batch["t"]}

    operation = Given(look, {"t": "utf8"}, {"t": "utf8"})
    done = run(slab, operation, t=[b"ok", b"\xff", b"fine"])
    assert seen == ["ok", "", "fine"]
    assert [(row, code) for row, code, _ in done.errors] == [(1, BadValue.code)]
    assert done.failed == ""


def test_refused_rows_are_told_in_order(slab: Slab) -> None:
    def operation(batch: Batch) -> Mapping[str, Any]:
        batch.reject(2, "bad_value", "two")
        batch.reject(0, "bad_value", "zero")
        return {"y": batch["x"]}

    assert run(slab, Given(operation, *IO), x=X).errors == [(0, "bad_value", "zero"), (2, "bad_value", "two")]


def test_answer_larger_than_the_slab_is_too_large(slab: Slab) -> None:
    done = run(slab, Given(lambda b: {"y": np.zeros((3, 10_000), np.float32)}, IO[0], {"y": "f4[10000]"}), x=X)
    assert done.failed == "too_large"


@pytest.mark.parametrize("long", ["é" * 40_000, "x" * 70_000])
def test_text_too_large_for_the_slab_fails_its_row_alone(slab: Slab, long: str) -> None:
    answer = ["short", long, "também"]
    done = run(slab, Given(lambda b: {"y": answer}, IO[0], {"y": "utf8"}), x=X)
    ((row, code, message),) = done.errors
    assert (done.failed, row, code) == ("", 1, "too_large")
    assert str(len(long.encode())) in message
    (part,) = done.parts
    ends = slab.array(part.offsets, OFFSET, (4,)).tolist()
    data = bytes(slab.view[part.data : part.data + part.data_bytes])
    assert [data[a:b].decode() for a, b in itertools.pairwise(ends)] == ["short", "", "também"]


def test_operation_that_raises_fails_the_batch_without_its_words(slab: Slab) -> None:
    def operation(batch: Batch) -> Mapping[str, Any]:
        raise LookupError("a secret")

    done = run(slab, Given(operation, *IO), x=X)
    assert (done.failed, done.parts) == ("operation_failed", [])
    assert "LookupError" in done.message
    assert "secret" not in done.message


def test_batch_nobody_waits_for_is_cancelled(slab: Slab) -> None:
    def operation(batch: Batch) -> Mapping[str, Any]:
        batch.alive[:] = False
        batch.checkpoint()
        raise AssertionError("the checkpoint returned")

    assert run(slab, Given(operation, *IO), x=X).failed == "cancelled"


def test_job_that_cannot_be_opened_fails_and_the_executor_lives(slab: Slab) -> None:
    """What no check foresaw must not end the engine, or one frame would stop everybody."""
    operation = Given(lambda batch: {"y": batch["x"]}, *IO)
    executor = Executor({operation.name: operation}, Device("cpu", 1))
    job = lay_out(slab, operation.name, x=X)
    job.parts[0].field = Field("f4", (1,) * 99)
    assert run_job(executor, job, slab).failed == "bad_column"
    assert run_job(executor, lay_out(slab, "test.unknown", x=X), slab).failed == "operation_failed"
    assert run_job(executor, lay_out(slab, operation.name, x=X), slab).failed == ""


def test_lanes_remembered_are_bounded(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aikoryu.gpu.executor.MAX_LANES", 4)
    operation = Given(lambda batch: {"y": batch["x"]}, *IO)
    executor = Executor({operation.name: operation}, Device("cpu", 1))
    for width in range(20):
        run_job(executor, lay_out(slab, operation.name, x=np.zeros((1, width), np.float32)), slab)
    assert len(executor._lanes) <= 4


def test_tensors_are_answers_too(slab: Slab) -> None:
    operation = matrix.MatMul()
    executor = Executor({operation.name: operation}, Device("cpu", 1))
    executor.load()
    a, b = np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    done = run_job(executor, lay_out(slab, operation.name, a=a, b=b), slab)
    np.testing.assert_allclose(read(slab, done.parts[0], 3), a @ b, rtol=1e-6)


class TestBegin:
    """The engine writes when a batch begins, for whoever watches its time."""

    BEGAN = 1 << 15

    @pytest.fixture
    def times(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """What the clock will say."""
        given = [10.0, 20.0, 30.0, 40.0]
        monkeypatch.setattr("aikoryu.gpu.executor.time.monotonic", lambda: given.pop(0))
        return given

    def pieces(self, count: int) -> list[Piece]:
        made = [Piece(lay_out(slab, "test.given", x=X), slab) for slab in (Slab.create(1 << 16) for _ in range(count))]
        for job, _ in made:
            job.began = self.BEGAN
        return made

    def test_it_is_there_while_the_operation_runs(self, times: list[float]) -> None:
        (piece,), pulse, seen = self.pieces(1), Slab.create(8), []

        def operation(batch: Batch) -> Any:
            seen.append((piece.slab.stamped(self.BEGAN), pulse.stamped(0)))
            return {"y": batch["x"]}

        Executor({"test.given": Given(operation, *IO)}, Device("cpu", 1), pulse).run([piece])
        assert seen == [(10.0, 10.0)]

    def test_pieces_run_again_one_by_one_begin_again(self, times: list[float]) -> None:
        pieces, pulse = self.pieces(2), Slab.create(8)

        def operation(batch: Batch) -> Any:
            if batch.rows > len(X):
                raise ZeroDivisionError
            return {"y": batch["x"]}

        Executor({"test.given": Given(operation, *IO)}, Device("cpu", 1), pulse).run(pieces)
        assert [slab.stamped(self.BEGAN) for _, slab in pieces] == [20.0, 30.0]
        assert pulse.stamped(0) == 30.0

    def test_what_nobody_asks_for_is_not_written(self, slab: Slab) -> None:
        before = bytes(slab.view[-64:])
        run(slab, Given(lambda batch: {"y": batch["x"]}, *IO), x=X)
        assert bytes(slab.view[-64:]) == before


class TestBatch:
    def batch(self, *alive: bool) -> Batch:
        return Batch(len(alive), (), {}, None, np.array(alive), Device("cpu", 1))

    def test_checkpoint_passes_while_somebody_waits(self) -> None:
        assert self.batch(False, True).checkpoint()

    def test_checkpoint_skips_a_step_nobody_waits_for(self) -> None:
        batch = self.batch(False, False, True)
        assert not batch.checkpoint(slice(0, 2))
        assert batch.checkpoint(np.array([0, 2]))

    def test_checkpoint_unwinds_when_everybody_left(self) -> None:
        with pytest.raises(Abandoned):
            self.batch(False, False).checkpoint(slice(0, 1))

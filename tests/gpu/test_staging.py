"""Rows into a slab and answers out of it, against a plain reconstruction in Python lists."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.bus.columns import FIXED, OFFSET, VARIABLE, Column, Field, Schema, pack_strings, unpack
from aikoryu.bus.frames import Reply, Request, decode_reply, encode
from aikoryu.gpu.admission import LaneSpec
from aikoryu.gpu.job import Done
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.ops.echo import Echo
from aikoryu.gpu.plan import Place, Plan, Span, Ticket
from aikoryu.gpu.planner import ALONE_RUNS
from aikoryu.gpu.slab import ALIGN, Slab
from aikoryu.gpu.staging import Answers, stage

SLAB_BYTES = 1 << 16
FIELDS = st.one_of(
    st.builds(Field, st.sampled_from(sorted(FIXED)), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
    st.sampled_from([Field(kind) for kind in VARIABLE]),
)


@dataclass
class Frame:
    """A frame's columns, by row: bytes of a fixed column, bytes of a text."""

    rows: int
    blobs: dict[str, list[bytes]]
    runs: list[tuple[int, int]]
    request: Request

    @property
    def chosen(self) -> list[int]:
        return [row for start, count in self.runs for row in range(start, start + count)]


def blobs_of(field: Field) -> st.SearchStrategy[bytes]:
    if field.dtype == "utf8":
        return st.text(alphabet="aé日🙂\0", max_size=6).map(str.encode)
    if field.dtype == "bin":
        return st.binary(max_size=9)
    if field.dtype == "bool":
        size = field.row_bytes
        return st.lists(st.sampled_from([0, 1]), min_size=size, max_size=size).map(bytes)
    return st.binary(min_size=field.row_bytes, max_size=field.row_bytes)


def column_of(field: Field, blobs: list[bytes]) -> Column:
    if field.dtype in VARIABLE:
        column = pack_strings(blobs)
        return Column(field.dtype, column.d, None, column.o)
    return Column(field.dtype, memoryview(b"".join(blobs)), (len(blobs), *field.shape))


@st.composite
def runs_of(draw: st.DrawFn, rows: int) -> list[tuple[int, int]]:
    """Some consecutive pieces of a frame, in order, none touching the next."""
    wanted = draw(st.lists(st.booleans(), min_size=rows, max_size=rows).filter(any))
    runs: list[tuple[int, int]] = []
    for row, is_wanted in enumerate(wanted):
        if is_wanted and runs and sum(runs[-1]) == row:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif is_wanted:
            runs.append((row, 1))
    return runs


@st.composite
def frames_of(draw: st.DrawFn, schema: Schema) -> Frame:
    rows = draw(st.integers(1, 6))
    blobs = {name: draw(st.lists(blobs_of(field), min_size=rows, max_size=rows)) for name, field in schema}
    columns = {name: column_of(field, blobs[name]) for name, field in schema}
    return Frame(rows, blobs, draw(runs_of(rows)), Request(v=1, n=rows, cols=columns))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Schema, list[Frame]]:
    fields = draw(st.lists(FIELDS, min_size=1, max_size=3))
    schema = tuple((f"c{n}", field) for n, field in enumerate(fields))
    return schema, draw(st.lists(frames_of(schema), min_size=1, max_size=4))


def plan_of(frames: list[Frame]) -> Plan:
    lane = Lane("lane", 1 << 16, Place("cpu"))
    spans: list[Span] = []
    for frame in frames:
        ticket = Ticket(SimpleNamespace(request=frame.request), lane, frame.rows, 1, 0, 0.0, float("inf"))
        spans += [Span(ticket, start, count) for start, count in frame.runs]
    return Plan(lane, lane.place, spans, sum(span.count for span in spans), [])


def spec_of(schema: Schema) -> LaneSpec:
    variable = any(field.dtype in VARIABLE for _, field in schema)
    return LaneSpec("lane", Echo(), schema, schema, b"\x80", 1, variable)


def rows_in(part: Any, rows: int, slab: Slab) -> list[bytes]:
    """A column's rows as they lie in a slab."""
    data = bytes(slab.view[part.data : part.data + part.data_bytes])
    if part.offsets < 0:
        width = part.field.row_bytes
        assert part.data_bytes == rows * width
        return [data[row * width : (row + 1) * width] for row in range(rows)]
    ends = slab.array(part.offsets, OFFSET, (rows + 1,)).tolist()
    assert (ends[0], ends[-1]) == (0, part.data_bytes)
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@pytest.fixture(scope="module")
def slab() -> Slab:
    made = Slab.create(SLAB_BYTES)
    made.view[:] = b"\xa5" * SLAB_BYTES  # what an earlier batch left
    return made


@settings(max_examples=150, deadline=None)
@given(batch=batches())
def test_batch_in_a_slab_is_its_rows_one_after_another(slab: Slab, batch: tuple[Schema, list[Frame]]) -> None:
    schema, frames = batch
    plan = plan_of(frames)
    job = stage(7, plan, spec_of(schema), slab, 2)
    assert (job.id, job.slab, job.rows, job.operation) == (7, 2, plan.rows, "echo")
    assert bytes(slab.view[job.alive : job.alive + plan.rows]) == b"\1" * plan.rows
    assert (slab.stamped(job.began), job.began % 8) == (0.0, 0), "it has not begun"
    taken = [(job.alive, job.alive + plan.rows), (job.began, job.began + 8)]
    for (name, field), part in zip(schema, job.parts, strict=True):
        assert (part.name, part.field) == (name, field)
        assert rows_in(part, plan.rows, slab) == [frame.blobs[name][row] for frame in frames for row in frame.chosen]
        assert part.data % ALIGN == 0
        taken.append((part.data, part.data + part.data_bytes))
        if part.offsets >= 0:
            taken.append((part.offsets, part.offsets + 4 * (plan.rows + 1)))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken)), "columns overlap"
    assert job.free >= max(end for _, end in taken)


@settings(max_examples=150, deadline=None)
@given(batch=batches(), data=st.data())
def test_answers_find_their_frames(slab: Slab, batch: tuple[Schema, list[Frame]], data: st.DataObject) -> None:
    """Of every batch with rows refused and callers gone, each frame gets its own rows, in order, and nothing else."""
    schema, frames = batch
    plan = plan_of(frames)
    job = stage(1, plan, spec_of(schema), slab, 0)
    positions = st.sets(st.integers(0, plan.rows - 1))
    gone, refused = data.draw(positions, label="gone"), data.draw(positions, label="refused")
    for position in gone:
        slab.view[position] = 0
    errors = [(position, "bad_value", f"row {position}") for position in sorted(refused)]
    answers = Answers(slab, Done(1, job.parts, errors, 0), plan.rows)
    position = 0
    for frame in frames:
        spans = [span for span in plan.spans if span.ticket.frame.request is frame.request]
        at, columns, row_errors, dropped = answers.take(spans, position)
        numbered = list(enumerate(frame.chosen, position))
        position += len(numbered)
        answered = [row for n, row in numbered if n not in gone | refused]
        assert [row for start, count in at for row in range(start, start + count)] == answered
        assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(at)), "a run was cut"
        assert [(e.row, e.code, e.msg, e.n) for e in row_errors] == [
            (row, "bad_value", f"row {n}", 1) for n, row in numbered if n in refused - gone
        ]
        assert dropped == sum(1 for n, _ in numbered if n in gone)
        assert list(columns) == ([name for name, _ in schema] if answered else [])
        reply = decode_reply(encode(Reply(id=1, at=at, cols=columns)))
        for name, field in schema if answered else ():
            expected = column_of(field, [frame.blobs[name][row] for row in answered])
            assert reply.cols[name].t == field.dtype
            _assert_same(reply.cols[name], expected, len(answered))


def _assert_same(found: Column, expected: Column, rows: int) -> None:
    ours, theirs = unpack(found, rows), unpack(expected, rows)
    if isinstance(ours, list):
        assert ours == theirs
    else:
        assert isinstance(theirs, np.ndarray)
        assert (ours.shape, ours.dtype, ours.tobytes()) == (theirs.shape, theirs.dtype, theirs.tobytes())


@pytest.mark.parametrize(("runs", "alone"), [(0, False), (ALONE_RUNS - 1, False), (ALONE_RUNS, True)])
def test_batch_that_engines_died_of_runs_alone(slab: Slab, runs: int, alone: bool) -> None:
    schema = (("x", Field("u1")),)
    request = Request(v=1, n=1, cols={"x": column_of(schema[0][1], [b"\1"])})
    plan = plan_of([Frame(1, {}, [(0, 1)], request)])
    plan.runs = runs
    assert stage(1, plan, spec_of(schema), slab, 0).alone == alone


def test_answers_of_a_whole_batch_are_not_copied(slab: Slab) -> None:
    """The reply's encoder makes the only copy on the way out."""
    schema = (("x", Field("f4", (3,))),)
    blobs = [bytes([n] * 12) for n in range(4)]
    frames = [Frame(4, {"x": blobs}, [(0, 4)], Request(v=1, n=4, cols={"x": column_of(schema[0][1], blobs)}))]
    plan = plan_of(frames)
    job = stage(1, plan, spec_of(schema), slab, 0)
    _, columns, _, _ = Answers(slab, Done(1, job.parts, [], 0), 4).take(plan.spans, 0)
    slab.view[job.parts[0].data] = 99
    assert columns["x"].d[0] == 99


def test_batch_larger_than_its_slab_raises_and_writes_nothing_beyond() -> None:
    small = Slab.create(256)
    schema = (("x", Field("u1", (300,))),)
    request = Request(v=1, n=1, cols={"x": column_of(schema[0][1], [b"\1" * 300])})
    with pytest.raises(ValueError, match="assignment"):
        stage(1, plan_of([Frame(1, {}, [(0, 1)], request)]), spec_of(schema), small, 0)
    small.close()


def test_messages_about_a_batch_hold_no_rows(slab: Slab) -> None:
    schema = (("x", Field("f8", (100,))),)
    blobs = [bytes(800)] * 6
    request = Request(v=1, n=6, cols={"x": column_of(schema[0][1], blobs)})
    job = stage(1, plan_of([Frame(6, {"x": blobs}, [(0, 6)], request)]), spec_of(schema), slab, 0)
    assert len(msgspec.msgpack.encode(job)) < 100

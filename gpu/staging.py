"""Staging: a batch's rows from their frames into a slab, and its result from the slab to each frame.

Pure memory work: one copy a span and column on the way in, none on the way out (the reply's encoder makes it).
"""

from __future__ import annotations

import numpy as np

from ..bus.columns import FIXED, OFFSET, Array, Column
from ..bus.frames import RowError, Run
from .admission import LaneSpec
from .job import Done, Job, Part
from .plan import Plan, Span
from .planner import ALONE_RUNS
from .slab import TIME, Slab, align


def stage(number: int, plan: Plan, spec: LaneSpec, slab: Slab, slab_number: int) -> Job:
    """Lay a batch's columns out in a slab: first the flags of rows alive and the time it begins, then the columns."""
    view, rows = slab.view, plan.rows
    view[:rows] = b"\1" * rows
    for position in plan.gone:
        view[position] = 0
    began = -(-rows // TIME.size) * TIME.size
    slab.stamp(began, 0.0)
    free = align(began + TIME.size)
    parts: list[Part] = []
    for name, field in spec.schema:
        width = field.row_bytes
        columns = [(span, span.ticket.frame.request.cols[name]) for span in plan.spans]
        if width or field.dtype in FIXED:
            at = free
            for span, column in columns:
                end = free + span.count * width
                view[free:end] = column.d[span.start * width : (span.start + span.count) * width]
                free = end
            parts.append(Part(name, field, at, free - at))
        else:
            part = _stage_variable(name, spec, columns, slab, free)
            parts.append(part)
            free = part.data + part.data_bytes
        free = align(free)
    alone = plan.runs >= ALONE_RUNS
    return Job(number, slab_number, spec.operation.name, rows, parts, spec.parameters, 0, free, began, alone)


def _stage_variable(name: str, spec: LaneSpec, columns: list[tuple[Span, Column]], slab: Slab, free: int) -> Part:
    """Offsets of all rows, rebased, then their data."""
    rows = sum(span.count for span, _ in columns)
    offsets = slab.array(free, OFFSET, (rows + 1,))
    offsets[0] = 0
    data = at = align(free + offsets.nbytes)
    row = 0
    for span, column in columns:
        ends = np.frombuffer(column.o or b"", OFFSET)[span.start : span.start + span.count + 1]
        first, last = int(ends[0]), int(ends[-1])
        slab.view[at : at + last - first] = column.d[first:last]
        offsets[row + 1 : row + span.count + 1] = ends[1:] - first + (at - data)
        at += last - first
        row += span.count
    return Part(name, dict(spec.schema)[name], data, at - data, free)


class Answers:
    """A batch's result in a slab, to be handed out frame by frame."""

    def __init__(self, slab: Slab, done: Done, rows: int) -> None:
        self._slab = slab
        self._parts = done.parts
        self._errors = {row: (code, message) for row, code, message in done.errors}
        self._alive = slab.view[:rows]
        self._whole = not self._errors and bytes(self._alive).find(0) < 0

    def take(self, spans: list[Span], position: int) -> tuple[list[Run], dict[str, Column], list[RowError], int]:
        """What one frame gets of a batch.

        Args:
            spans: the frame's rows in it.
            position: the batch's row at which they begin.

        Returns:
            The runs answered, their columns, the rows refused, and how many rows have no caller any more.
        """
        if self._whole and len(spans) == 1:
            count = spans[0].count
            columns = {part.name: self._column(part, [(position, count)]) for part in self._parts}
            return [(spans[0].start, count)], columns, [], 0
        at: list[Run] = []
        pieces: list[Run] = []
        errors: list[RowError] = []
        gone = 0
        for span in spans:
            for row in range(span.start, span.start + span.count):
                if not self._alive[position]:
                    gone += 1
                elif position in self._errors:
                    errors.append(RowError(row, *self._errors[position]))
                else:
                    _extend(at, row)
                    _extend(pieces, position)
                position += 1
        return at, {part.name: self._column(part, pieces) for part in self._parts} if at else {}, errors, gone

    def _column(self, part: Part, pieces: list[Run]) -> Column:
        """A column of the given runs of the batch's rows."""
        rows = sum(count for _, count in pieces)
        if part.offsets < 0:
            width, view = part.field.row_bytes, self._slab.view
            blobs = [view[part.data + at * width : part.data + (at + count) * width] for at, count in pieces]
            return Column(part.field.dtype, _joined(blobs), (rows, *part.field.shape))
        ends = self._slab.array(part.offsets, OFFSET, (self._alive.nbytes + 1,))
        data = self._slab.view[part.data : part.data + part.data_bytes]
        blobs = [data[ends[at] : ends[at + count]] for at, count in pieces]
        sizes: Array = np.concatenate([np.diff(ends[at : at + count + 1]) for at, count in pieces])
        offsets = np.zeros(rows + 1, OFFSET)
        np.cumsum(sizes, out=offsets[1:])
        return Column(part.field.dtype, _joined(blobs), None, offsets.view(np.uint8).data)


def _joined(blobs: list[memoryview]) -> memoryview:
    return blobs[0] if len(blobs) == 1 else memoryview(b"".join(blobs))


def _extend(runs: list[Run], row: int) -> None:
    """Add a row to runs, lengthening the last where it follows."""
    if runs and runs[-1][0] + runs[-1][1] == row:
        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
    else:
        runs.append((row, 1))

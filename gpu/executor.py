"""The executor: runs batches that lie in slabs, and lays each answer beside its rows.

Batches of one lane that several fronts have handed over run as one. The same code runs in an engine process and in the
in-process engine of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import structlog

from ..bus.columns import FIXED, OFFSET, VARIABLE, Array, Column, Field, Schema, pack_strings
from ..bus.errors import BadValue, BusError, Cancelled, OperationFailed, TooLarge
from .batch import Abandoned, Batch
from .blobs import Blobs
from .device import Device, DeviceLost, Mark, OutOfMemory, suits
from .job import Done, Job, Part
from .operation import Operation
from .slab import ALIGN, Slab, align

MAX_LANES = 4096  # remembered
MOST_UTF8_BYTES = 4  # of a character
_FLAG = np.dtype("?")

_log = structlog.get_logger(__name__)


class Piece(NamedTuple):
    """A batch as one front handed it over: what to run, and the slab it lies in."""

    job: Job
    slab: Slab


class Lane(NamedTuple):
    """What the rows of one lane have in common, worked out once.

    Attributes:
        operation: what runs.
        schema, outputs: columns in and out.
        parameters: decoded.
    """

    operation: Operation
    schema: Schema
    outputs: Schema
    parameters: Any


class Running:
    """Batches of one lane that run as one.

    Attributes:
        pieces: the batches, as the fronts handed them over.
    """

    def __init__(self, pieces: Sequence[Piece], started: float, mark: Mark | None, ends: list[Done]) -> None:
        self.pieces = pieces
        self._started = started
        self._mark = mark
        self._ends = ends

    def done(self) -> bool:
        """Whether it has ended.

        Raises:
            DeviceLost: nothing can run there any more.
        """
        if self._mark is not None and self._mark.query():
            self._mark = None
        return self._mark is None

    def wait(self) -> list[Done]:
        """The end of each piece, in order.

        Raises:
            DeviceLost: nothing can run there any more.
        """
        if self._mark is not None:
            self._mark.wait()
        run_us = int((time.perf_counter() - self._started) * 1e6)
        for done in self._ends:
            done.run_us = run_us
        return self._ends


class Executor:
    """Runs batches of the given operations on one device.

    Args:
        operations: by name.
        device: where.
        pulse: in it is written when a batch was last begun, for fronts whose batches wait; None if nobody looks.
    """

    def __init__(self, operations: Mapping[str, Operation], device: Device, pulse: Slab | None = None) -> None:
        self._operations = operations
        self._device = device
        self._pulse = pulse
        self._lanes: dict[Hashable, Lane] = {}

    def load(self) -> None:
        """Claim the device and let every operation make ready."""
        self._device.open()
        with self._device.stream():
            for operation in self._operations.values():
                operation.load(self._device)
            self._device.synchronize()

    def max_rows(self, job: Job) -> int:
        """Most rows that may run together with this batch's."""
        operation = self._operations.get(job.operation)
        return operation.max_rows if operation is not None else 0

    def figures(self) -> dict[str, float]:
        """Of the device and the operations, by name of the metric."""
        figures = self._device.figures()
        for operation in self._operations.values():
            figures |= operation.figures()
        return figures

    def run(self, pieces: Sequence[Piece]) -> list[Done]:
        """Run batches of one lane, and wait for their end. See `start`."""
        return self.start(pieces).wait()

    def start(self, pieces: Sequence[Piece], stream: int = 0) -> Running:
        """Enqueue batches of one lane as one; whatever happens in the operation becomes part of the answers.

        Args:
            pieces: batches of the same operation, parameters and types of columns.
            stream: number of the device's stream.

        Raises:
            DeviceLost: nothing can run here any more.
        """
        started = time.perf_counter()
        with self._device.stream(stream):
            ends = self._ends(pieces)
            # Also where the operation raised: what it has enqueued may still write into the slabs.
            return Running(pieces, started, self._device.mark(), ends)

    def _ends(self, pieces: Sequence[Piece]) -> list[Done]:
        """Enqueue the work; the ends it will have come to."""
        self._stamp(pieces)
        operation = self._operations.get(pieces[0].job.operation)
        try:
            return self._run(pieces)
        except Abandoned:
            return _failed(pieces, Cancelled("every caller of the batch withdrew"))
        except Exception as error:
            reason = self._device.explain(error)
            if isinstance(reason, DeviceLost):
                raise reason from error
            if len(pieces) > 1 and operation is not None and operation.pure:
                # Whoever is to blame, the others shall not pay.
                self._device.synchronize()
                return [done for piece in pieces for done in self._ends([piece])]
            return _failed(pieces, self._told(pieces[0].job, error, reason))

    def _stamp(self, pieces: Sequence[Piece]) -> None:
        """Let the fronts see when these batches begin: what takes too long is told from what only waits."""
        now = time.monotonic()
        for job, slab in pieces:
            if job.began >= 0:
                slab.stamp(job.began, now)
        if self._pulse is not None:
            self._pulse.stamp(0, now)

    def _told(self, job: Job, error: Exception, reason: Exception) -> BusError:
        """What callers are told of an error; what is no business of theirs stays in the log."""
        if isinstance(error, BusError):
            return error
        _log.error("operation failed", operation=job.operation, rows=job.rows, exc_info=error)
        if isinstance(reason, OutOfMemory):
            return OperationFailed(f"{reason}: send smaller rows to {job.operation}")
        return OperationFailed(f"{job.operation} raised {type(error).__name__}; the worker's log holds the traceback")

    def _run(self, pieces: Sequence[Piece]) -> list[Done]:
        lane = self._lane(pieces[0].job)
        batch = self._open(pieces, lane)
        answer = self._compute(lane.operation, batch)
        laid: list[list[Part]] = [[] for _ in pieces]
        free = [align(piece.job.free) for piece in pieces]
        for name, field in lane.outputs:
            value = answer[name]
            rows = len(value)
            if rows != batch.rows:
                raise ValueError(f"column {name!r} has {rows} rows, the batch {batch.rows}")
            if field.dtype not in VARIABLE and not suits(value, field):
                raise ValueError(f"column {name!r} is {value.dtype} {list(value.shape[1:])} a row, declared as {field}")
            start = 0
            for number, (job, slab) in enumerate(pieces):
                own = value if job.rows == rows else value[start : start + job.rows]
                if field.dtype in VARIABLE:
                    own = _trimmed(name, own, slab.size_bytes - free[number], batch, start)
                part, free[number] = self._write(name, field, own, job.rows, slab, free[number])
                laid[number].append(part)
                start += job.rows
        errors = _split(batch.errors, pieces)
        return [Done(piece.job.id, laid[number], errors[number], 0) for number, piece in enumerate(pieces)]

    def _lane(self, job: Job) -> Lane:
        key = job.lane
        lane = self._lanes.get(key)
        if lane is None:
            operation, schema = self._operations[job.operation], key[2]
            parameters = msgspec.msgpack.decode(job.parameters, type=operation.parameters)
            if len(self._lanes) >= MAX_LANES:
                self._lanes.clear()
            lane = Lane(operation, schema, operation.outputs(schema, parameters), parameters)
            self._lanes[key] = lane
        return lane

    def _compute(self, operation: Operation, batch: Batch) -> Mapping[str, Any]:
        """Run an operation; where the device has no room for the batch, its halves one after the other."""
        try:
            return operation.run(batch, self._device)
        except Exception as error:
            if not operation.pure or not isinstance(self._device.explain(error), OutOfMemory):
                raise
        # Outside of the handler: the error's traceback holds what was allocated.
        _log.warning("out of memory, batch halved", operation=operation.name, rows=batch.rows)
        for each in self._operations.values():
            each.relieve()
        if batch.rows < 2:
            return operation.run(batch, self._device)
        half = batch.rows // 2
        answers: list[Mapping[str, Any]] = []
        for start, stop in ((0, half), (half, batch.rows)):
            part = batch.part(start, stop)
            answers.append(self._on_host(self._compute(operation, part)))
            batch.errors.update({start + row: error for row, error in part.errors.items()})
        return {name: _concatenated(answers[0][name], answers[1][name]) for name in answers[0]}

    def _on_host(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """Columns copied off the device, which must have room for what comes next."""
        columns = {name: self._device.to_host(value) for name, value in answer.items()}
        self._device.synchronize()
        return columns

    def _open(self, pieces: Sequence[Piece], lane: Lane) -> Batch:
        """The rows' columns as arrays over the slabs, and lists of strings."""
        rows = 0
        for piece in pieces:
            rows += piece.job.rows
        rejected: dict[int, str] = {}
        columns: dict[str, Any] = {}
        for number, (name, field) in enumerate(lane.schema):
            if field.dtype in VARIABLE:
                blobs = Blobs.joined([_blobs(number, piece) for piece in pieces])
                columns[name] = blobs if field.dtype == "bin" else _texts(name, blobs, rejected)
            else:
                columns[name] = tuple(
                    [
                        slab.array(job.parts[number].data, FIXED[field.dtype], (job.rows, *field.shape))
                        for job, slab in pieces
                    ]
                )
        alive = tuple([slab.array(job.alive, _FLAG, (job.rows,)) for job, slab in pieces])
        batch = Batch(rows, lane.schema, columns, lane.parameters, alive, self._device)
        for row, message in rejected.items():
            batch.reject(row, BadValue.code, message)
        return batch

    def _write(self, name: str, field: Field, value: Any, rows: int, slab: Slab, free: int) -> tuple[Part, int]:
        """Lay a column of an answer into a slab; what lies there already stays where it is."""
        if field.dtype in VARIABLE:
            column = _packed(name, value)
            if column.t != field.dtype:
                raise ValueError(f"column {name!r} is {column.t}, declared as {field}")
            offsets_at, free = _place(slab, free, np.frombuffer(column.o or b"", OFFSET))
            data_at, free = _place(slab, free, np.frombuffer(column.d, np.uint8))
            return Part(name, field, data_at, len(column.d), offsets_at), free
        size = rows * field.row_bytes
        at = self._device.offset_in(slab, value)
        if at is None:
            at, free = free, _room(slab, free, size)
            self._device.fetch(value, slab.array(at, FIXED[field.dtype], (rows, *field.shape)))
        return Part(name, field, at, size), free


def _concatenated(first: Any, second: Any) -> Any:
    return np.concatenate([first, second]) if isinstance(first, np.ndarray) else [*first, *second]


def _blobs(number: int, piece: Piece) -> Blobs:
    """A piece's rows of a column of variable width."""
    job, slab = piece
    part = job.parts[number]
    return Blobs(
        slab.array(part.data, np.dtype(np.uint8), (part.data_bytes,)),
        slab.array(part.offsets, OFFSET, (job.rows + 1,)),
    )


def _texts(name: str, blobs: Blobs, rejected: dict[int, str]) -> list[str]:
    """Rows as text; those that are not UTF-8 are rejected."""
    texts: list[str] = []
    for row, blob in enumerate(blobs.rows):
        try:
            texts.append(blob.decode())
        except UnicodeDecodeError as error:
            texts.append("")
            rejected[row] = f"column {name!r} is not UTF-8: {error.reason} at byte {error.start}"
    return texts


def _packed(name: str, rows: Any) -> Column:
    try:
        return pack_strings(rows)
    except BusError as error:
        raise ValueError(f"column {name!r} of the answer: {error}") from None  # the operation's fault, not the caller's


def _trimmed(name: str, rows: Sequence[Any], room: int, batch: Batch, start: int) -> Sequence[Any]:
    """Rows of variable width that fit into `room` bytes: the largest are refused until they do."""
    room -= (len(rows) + 1) * OFFSET.itemsize + 2 * ALIGN
    if sum(map(len, rows)) * MOST_UTF8_BYTES <= room:
        return rows
    sizes = [len(row.encode()) if isinstance(row, str) else len(row) for row in rows]
    over = sum(sizes) - room
    kept = list(rows)
    for row in sorted(range(len(rows)), key=sizes.__getitem__, reverse=True):
        if over <= 0:
            break
        over -= sizes[row]
        kept[row] = type(kept[row])()
        batch.reject(start + row, TooLarge.code, f"column {name!r} of the answer is {sizes[row]} bytes: ask for less")
    return kept


def _place(slab: Slab, free: int, array: Array) -> tuple[int, int]:
    """Copy an array to `free`; where it begins, and where the next may."""
    end = _room(slab, free, array.nbytes)
    slab.array(free, array.dtype, array.shape)[...] = array
    return free, end


def _room(slab: Slab, free: int, size: int) -> int:
    """Where the next array may begin after one of `size` bytes at `free`."""
    if free + size > slab.size_bytes:
        raise TooLarge(f"the answer of this batch is larger than the {slab.size_bytes} bytes there are for it")
    return align(free + size)


def _split(errors: Mapping[int, tuple[str, str]], pieces: Sequence[Piece]) -> list[list[tuple[int, str, str]]]:
    """The rows refused, for each piece by its own row numbers."""
    if not errors:
        return [[] for _ in pieces]
    found: list[list[tuple[int, str, str]]] = []
    start = 0
    for piece in pieces:
        end = start + piece.job.rows
        found.append([(row - start, *errors[row]) for row in sorted(errors) if start <= row < end])
        start = end
    return found


def _failed(pieces: Sequence[Piece], error: BusError) -> list[Done]:
    return [Done(piece.job.id, [], [], 0, error.code, str(error)) for piece in pieces]
